//! `engine vary`: variations of an image.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::edit::{EditOptions, write_images};
use super::output::{OutputKind, OutputPath};
use crate::error::Result;
use crate::pipeline::{Edit, pictures};

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
    /// Number of variations
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Variation k of a seed is always the same image
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// F.png: the image, or a sheet of several; F.npy: f32 in [0, 1]; else a folder of PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "varied.png")]
    out: PathBuf,
}

impl VaryCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::vary`](crate::pipeline::Model::vary), and invalid options.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let out = OutputPath::new(&self.out, OutputKind::STILL)?;
        out.refuse_taken(self.edit.run.force)?;
        self.edit.with_model(|model| {
            let request = self.edit.request(model, self.count, self.seed)?;
            let image = self.edit.read_image(&self.image, model.image_shape())?;
            let bar = self.edit.bar();
            let drawn = model.vary(&image, self.strength, &request, &mut bar.updates())?;
            drop(bar);
            let what = Edit::Vary { image: self.image.display().to_string(), strength: self.strength };
            let text = self.edit.text(model, &request, what);
            write_images(&out, &pictures(&drawn, model.image_shape())?, &text, self.edit.run.force)?;
            self.edit.report(&self.out, &format!("{} of strength {}", self.count, self.strength), &request, started);
            Ok(())
        })
    }
}
