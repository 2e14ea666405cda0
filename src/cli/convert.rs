//! `engine convert`: a model file of other weights or in another dtype.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::model_file::{Loaded, Storage, Weights};
use crate::models::Network;
use crate::tensor::{Context, DType};

/// Make a model file out of a checkpoint, a run or another model file.
///
/// What is written holds all that sampling needs. In bf16 or f16 it is half as large, and half of the weights' precision
/// is gone for good.
#[derive(Clone, Debug, Args)]
pub struct ConvertCommand {
    /// A model file, a checkpoint, or a run folder: its model.safetensors
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The model file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The moving average of the weights, or the raw ones; only checkpoints hold both [default: those of a model file;
    /// ema of a checkpoint]
    #[arg(long, value_enum)]
    weights: Option<WeightsChoice>,
    /// What the weights are stored in
    #[arg(long, value_enum, default_value = "f32")]
    dtype: StorageChoice,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Say nothing unless something goes wrong
    #[arg(long)]
    quiet: bool,
}

/// `--weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsChoice {
    /// The exponential moving average: what is sampled from.
    Ema,
    /// As the optimizer left them.
    Raw,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StorageChoice {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
}

impl ConvertCommand {
    /// Reads, writes, and says so.
    ///
    /// # Errors
    /// Those of [`Loaded::load_weights`] and [`Loaded::save_as`]; [`Error::File`] where OUT exists. OUT is then untouched.
    pub fn run(self) -> Result<()> {
        if self.output.is_dir() {
            return Err(Error::file(&self.output, "is a folder", "name a file, as in model.safetensors"));
        }
        if self.output.exists() && !self.force {
            return Err(Error::file(&self.output, "exists already", "name another file, or replace it with --force"));
        }
        let weights = self.weights.map(|weights| match weights {
            WeightsChoice::Ema => Weights::Ema,
            WeightsChoice::Raw => Weights::Raw,
        });
        let storage = match self.dtype {
            StorageChoice::F32 => Storage::F32,
            StorageChoice::Bf16 => Storage::Bf16,
            StorageChoice::F16 => Storage::F16,
        };
        let model = Loaded::<Network>::load_weights(&self.input, &Context::cpu(), DType::F32, weights)?;
        model.save_as(&self.output, storage)?;
        if !self.quiet {
            let size = |path: &PathBuf| std::fs::metadata(path).map_err(Error::io(path, "read")).map(|file| file.len());
            println!(
                "wrote {}: {} parameters of {} after step {} ({} weights) in {}, {} bytes ({} before)",
                self.output.display(),
                model.parameters.count(),
                model.path.display(),
                model.info.step,
                model.info.weights,
                storage.name(),
                size(&self.output)?,
                model.digest.bytes,
            );
        }
        Ok(())
    }
}
