//! `engine upscale`: a larger version of a small image.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::edit::{EditOptions, write_images};
use super::output::{OutputKind, OutputPath};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::pipeline::{Edit, pictures};

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
    /// Number of results
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Result k of a seed is always the same image
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// F.png: the image, or a sheet of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "upscaled.png")]
    out: PathBuf,
}

impl UpscaleCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::upscale`](crate::pipeline::Model::upscale), and invalid options.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let out = OutputPath::new(&self.out, OutputKind::STILL)?;
        out.refuse_taken(self.edit.run.force)?;
        if !matches!(self.factor, 2 | 4) {
            return Err(Error::config("--factor", format!("{} is given", self.factor), "give 2 or 4"));
        }
        self.edit.with_model(|model| {
            let request = self.edit.request(model, self.count, self.seed)?;
            let [height, width, channels] = model.image_shape();
            let image = self.edit.read_image(&self.image, [height / self.factor, width / self.factor, channels])?;
            let bar = self.edit.bar();
            let drawn = model.upscale(&image, self.factor, self.resample, &request, &mut bar.updates())?;
            drop(bar);
            let image = self.image.display().to_string();
            let what = Edit::Upscale { image, factor: self.factor, resample: self.resample };
            let text = self.edit.text(model, &request, what);
            write_images(&out, &pictures(&drawn, [height, width, channels])?, &text, self.edit.run.force)?;
            self.edit.report(
                &self.out,
                &format!("{} at {}", self.count, ImageSize::new(height, width)),
                &request,
                started,
            );
            Ok(())
        })
    }
}
