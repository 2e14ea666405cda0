//! `engine inpaint`: fill a region of an image.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::edit::{EditOptions, Output, moves, pictures, read_image, write_images};
use crate::config::{Inpaint, Model};
use crate::error::{Error, Result};
use crate::picture::read_png;

/// Fill the white region of a mask in an image; every other pixel is kept exactly.
#[derive(Clone, Debug, Args)]
pub struct InpaintCommand {
    #[command(flatten)]
    edit: EditOptions,
    /// A PNG file of the model's size
    #[arg(long, value_name = "FILE.png")]
    image: PathBuf,
    /// A PNG file of the same size: what is white is filled, what is black is kept
    #[arg(long, value_name = "FILE.png")]
    mask: PathBuf,
    /// How often each step is done: more fits better to what is kept, and takes as much longer
    #[arg(long, value_name = "N", default_value_t = 1)]
    resample: usize,
    /// How many results
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Result k of a seed is always the same image
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// F.png: the image, or a sheet of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "inpainted.png")]
    out: PathBuf,
}

impl InpaintCommand {
    /// Draws, writes, and says so.
    ///
    /// # Errors
    /// Those of [`Model::inpaint`], and what is wrong with the options.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        Output::still(&self.out)?;
        self.edit.refuse_taken(&self.out)?;
        self.edit.with_model(|model| {
            let request = self.edit.request(model, self.count, self.seed)?;
            let image = read_image(&self.image, model.model.image_shape())?;
            let free = read_mask(&self.mask, model)?;
            let bar = self.edit.bar();
            let inpaint = Inpaint { image: &image, free: &free, rounds: self.resample };
            let drawn = model.inpaint(inpaint, &request, &mut moves(&bar))?;
            bar.finish_and_clear();
            let what = serde_json::json!({
                "command": "inpaint", "image": self.image.display().to_string(),
                "mask": self.mask.display().to_string(), "resample": self.resample,
            });
            let text = self.edit.text(model, &request, what);
            write_images(&self.out, &pictures(model, &drawn)?, &text, self.edit.force)?;
            let filled = free.iter().filter(|free| **free).count();
            self.edit.report(&self.out, &format!("{filled} of {} pixels filled", free.len()), &request, started);
            Ok(())
        })
    }
}

/// The pixels that a mask leaves free: those brighter than the middle.
fn read_mask(path: &Path, model: &Model) -> Result<Vec<bool>> {
    let [height, width, _] = model.model.image_shape();
    let (mask, _) = read_png(path)?;
    if (mask.height(), mask.width()) != (height, width) {
        let message = format!("this mask is {}x{} pixels, the image {width}x{height}", mask.width(), mask.height());
        return Err(Error::file(path, message, "draw it over a copy of the image"));
    }
    let bright = |pixel: &[u8]| pixel.iter().map(|value| usize::from(*value)).sum::<usize>() > 127 * pixel.len();
    let free: Vec<bool> = mask.pixels().chunks_exact(mask.channels()).map(bright).collect();
    if !free.contains(&true) {
        return Err(Error::file(path, "this mask leaves nothing to fill", "paint white what is to be filled"));
    }
    Ok(free)
}
