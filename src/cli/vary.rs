//! `engine vary`: variations of an image.

use std::path::PathBuf;

use clap::Args;

use super::edit_options::{EditOptions, Edited, ResultOptions};
use crate::error::Result;
use crate::pipeline::Edit;
use crate::words::counted;

/// Make variations of an image: add noise and denoise it again.
#[derive(Clone, Debug, Args)]
pub struct VaryCommand {
    #[command(flatten)]
    edit: EditOptions,
    /// A picture: PNG, JPEG, WebP, GIF, BMP, TIFF or PNM; fitted to the model's size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// The share of the denoising steps to run: 0 returns the image, 1 ignores it
    #[arg(long, value_name = "0…1", default_value_t = 0.6)]
    strength: f64,
    #[command(flatten)]
    results: ResultOptions,
    /// F.png: the image, or a grid of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "varied.png")]
    out: PathBuf,
}

impl VaryCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::vary`](crate::pipeline::Model::vary), and invalid options.
    pub fn run(self) -> Result<()> {
        self.edit.draw(self.results, &self.out, |model, request, progress| {
            let image = self.edit.read_image(&self.image, model.image_shape())?;
            Ok(Edited {
                images: model.vary(&image, self.strength, request, progress)?,
                edit: Edit::Vary { image: self.image.display().to_string(), strength: self.strength },
                summary: format!("{} of strength {}", counted(self.results.count, "image"), self.strength),
            })
        })
    }
}
