//! `engine inpaint`: fill a region of an image.

use std::path::PathBuf;

use clap::Args;

use super::edit_options::{EditOptions, Edited, ResultOptions};
use crate::error::Result;
use crate::pipeline::{Edit, Inpaint, free_pixels};
use crate::words::counted;

/// Fill the white region of a mask in an image; every other pixel is kept exactly.
#[derive(Clone, Debug, Args)]
pub struct InpaintCommand {
    #[command(flatten)]
    edit: EditOptions,
    /// A picture: PNG, JPEG, WebP, GIF, BMP, TIFF or PNM; fitted to the model's size
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// A picture of the same size: white is filled, black is kept
    #[arg(long, value_name = "FILE")]
    mask: PathBuf,
    /// Repetitions of each step: more blend better with the kept pixels, and take proportionally longer
    #[arg(long, value_name = "N", default_value_t = 1)]
    resample: usize,
    #[command(flatten)]
    results: ResultOptions,
    /// F.png: the image, or a grid of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "inpainted.png")]
    out: PathBuf,
}

impl InpaintCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::inpaint`](crate::pipeline::Model::inpaint), and invalid options.
    pub fn run(self) -> Result<()> {
        self.edit.draw(self.results, &self.out, |model, request, progress| {
            let shape = model.image_shape();
            let image = self.edit.read_image(&self.image, shape)?;
            let size = [shape[0], shape[1]];
            let free = free_pixels(&self.edit.read_mask(&self.mask, &self.image, size)?, &self.mask, size)?;
            let inpaint = Inpaint { image: &image, free: &free, rounds: self.resample };
            let filled = free.iter().filter(|free| **free).count();
            let (image, mask) = (self.image.display().to_string(), self.mask.display().to_string());
            Ok(Edited {
                images: model.inpaint(inpaint, request, progress)?,
                edit: Edit::Inpaint { image, mask, resample: self.resample },
                summary: format!("{filled} of {} filled", counted(free.len(), "pixel")),
            })
        })
    }
}
