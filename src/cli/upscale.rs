//! `engine upscale`: a larger version of a small image.

use std::path::PathBuf;

use clap::Args;

use super::edit_options::{EditOptions, Edited, ResultOptions};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::pipeline::Edit;
use crate::words::counted;

/// Draw an image of the model's size whose block means equal the pixels of a small image.
#[derive(Clone, Debug, Args)]
pub struct UpscaleCommand {
    #[command(flatten)]
    edit: EditOptions,
    /// A picture; resized so that --factor times its size is the model's
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// 2 or 4
    #[arg(long, value_name = "N", default_value_t = 2)]
    factor: usize,
    /// Repetitions of each step: more fit better to the given image, and take proportionally longer
    #[arg(long, value_name = "N", default_value_t = 1)]
    resample: usize,
    #[command(flatten)]
    results: ResultOptions,
    /// F.png: the image, or a grid of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "upscaled.png")]
    out: PathBuf,
}

impl UpscaleCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::upscale`](crate::pipeline::Model::upscale), and invalid options.
    pub fn run(self) -> Result<()> {
        if !matches!(self.factor, 2 | 4) {
            return Err(Error::config("--factor", format!("{} is given", self.factor), "give 2 or 4"));
        }
        self.edit.draw(self.results, &self.out, |model, request, progress| {
            let [height, width, channels] = model.image_shape();
            let image = self.edit.read_image(&self.image, [height / self.factor, width / self.factor, channels])?;
            let name = self.image.display().to_string();
            Ok(Edited {
                images: model.upscale(&image, self.factor, self.resample, request, progress)?,
                edit: Edit::Upscale { image: name, factor: self.factor, resample: self.resample },
                summary: format!("{} of {}", counted(self.results.count, "image"), ImageSize::new(height, width)),
            })
        })
    }
}
