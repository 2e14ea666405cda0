//! `engine convert`: writes a model file with other weights or another dtype.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::options::RunOptions;
use super::output::refuse_taken;
use crate::error::{Error, Result};
use crate::model_file::{Loaded, Storage, Weights};
use crate::models::Network;
use crate::tensor::{Context, DType};
use crate::words::counted;

/// Make a model file from a checkpoint, a run or another model file.
///
/// The file holds everything needed to sample. bf16 and f16 halve its size and permanently reduce the precision of the weights.
#[derive(Clone, Debug, Args)]
pub struct ConvertCommand {
    /// A model file, a checkpoint, a run folder (its model.safetensors), or the name of a model that comes with the engine
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The model file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The moving average of the weights, or the raw ones; only checkpoints hold both [default: those of a model file;
    /// ema of a checkpoint]
    #[arg(long, value_enum)]
    weights: Option<WeightsChoice>,
    /// The dtype of the stored weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: StorageChoice,
    #[command(flatten)]
    run: RunOptions,
}

/// `--weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsChoice {
    /// The exponential moving average, used for sampling.
    Ema,
    /// The raw weights of the optimizer.
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
    /// Reads, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Loaded::load_weights`] and [`Loaded::save_as`]; [`Error::File`] if OUT exists, which is then unchanged.
    pub fn run(self) -> Result<()> {
        if self.output.is_dir() {
            return Err(Error::file(&self.output, "is a folder", "give a file, as in model.safetensors"));
        }
        refuse_taken(&self.output, self.run.force)?;
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
        if !self.run.quiet {
            let size = |path: &PathBuf| std::fs::metadata(path).map_err(Error::io(path, "read")).map(|file| file.len());
            println!(
                "wrote {}: {} of {} after step {} ({} weights) in {}, {} bytes ({} before)",
                self.output.display(),
                counted(model.parameters.count(), "parameter"),
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
