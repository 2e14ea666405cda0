//! `engine interpolate`: interpolates between two samples or two images.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::edit_options::{EditOptions, refuse_taken_pictures, write_images};
use super::output::{OutputKind, OutputPath};
use crate::error::{Error, Result};
use crate::picture::{AnimationTiming, Image, write_animation, write_png};
use crate::pipeline::{Edit, Ends, Model, pictures, strip};
use crate::words::counted;

/// Interpolate between the images of two seeds, or between two given images.
///
/// Between seeds the ends are the images that `engine sample --count 1` draws with the same class, sampler and steps; between
/// images they are the images themselves.
#[derive(Clone, Debug, Args)]
pub struct InterpolateCommand {
    #[command(flatten)]
    edit: EditOptions,
    /// Two seeds
    #[arg(long, num_args = 2, value_names = ["A", "B"], required_unless_present = "images", conflicts_with = "images")]
    seeds: Option<Vec<u64>>,
    /// Two pictures, fitted to the model's size
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    images: Option<Vec<PathBuf>>,
    /// Number of images, including both ends
    #[arg(long, value_name = "N", default_value_t = 16)]
    frames: usize,
    /// F.png: a strip; F.gif and F.apng: an animation; F.npy; else a folder of PNG files. May be given several times
    #[arg(long, value_name = "FILE|DIR", default_value = "interpolation.png")]
    out: Vec<PathBuf>,
    /// Frames a second of an animation: 1 to 50
    #[arg(long, value_name = "N", default_value_t = 12)]
    fps: u16,
    /// Append the frames in reverse, so that an animation loops
    #[arg(long)]
    bounce: bool,
}

impl InterpolateCommand {
    /// Draws, writes, and reports.
    ///
    /// # Errors
    /// Those of [`Model::interpolate`], and invalid options, before anything is drawn.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let out = |path: &PathBuf| {
            let out = OutputPath::new(path, OutputKind::FRAMES)?;
            out.refuse_taken(self.edit.run.force)?;
            refuse_taken_pictures(&out, self.frames, self.edit.run.force)?;
            Ok(out)
        };
        let outputs = self.out.iter().map(out).collect::<Result<Vec<_>>>()?;
        if !(1..=50).contains(&self.fps) {
            return Err(Error::config("--fps", format!("{} a second", counted(self.fps, "frame")), "give 1 to 50"));
        }
        if self.frames < 2 {
            let message = counted(self.frames, "frame");
            return Err(Error::config("--frames", message, "give 2 or more"));
        }
        self.edit.with_model(|model| self.draw(model, &outputs, started))
    }

    fn draw(&self, model: &Model, outputs: &[OutputPath], started: Instant) -> Result<()> {
        let seed = self.seeds.as_ref().map_or(0, |seeds| seeds[0]);
        let mut request = self.edit.request(model, self.frames, seed)?;
        // A stochastic sampler comes from the model here, not from the user.
        self.edit.sampling.changes()?.apply_without_noise(&mut request.sampling);
        if self.images.is_some() {
            // The library does the same; it is repeated here for the report and the PNG.
            request.sampling = request.sampling.unguided();
        }
        let bar = self.edit.bar();
        let (drawn, what) = match (&self.seeds, &self.images) {
            (Some(seeds), _) => {
                let seeds = [seeds[0], seeds[1]];
                let what = Edit::Interpolate { seeds: Some(seeds), images: None, frames: self.frames };
                (model.interpolate(Ends::Seeds(seeds[0], seeds[1]), &request, &mut bar.updates())?, what)
            }
            (None, images) => {
                let paths: Vec<&PathBuf> = images.iter().flatten().collect();
                let images = paths.iter().map(|path| self.edit.read_image(path, model.image_shape()));
                let images = images.collect::<Result<Vec<_>>>()?;
                let names = [paths[0], paths[1]].map(|path| path.display().to_string());
                let what = Edit::Interpolate { seeds: None, images: Some(names), frames: self.frames };
                (model.interpolate(Ends::Images(&images[0], &images[1]), &request, &mut bar.updates())?, what)
            }
        };
        drop(bar);
        let text = self.edit.text(model, &request, what);
        let frames = pictures(&drawn, model.image_shape())?;
        for out in outputs {
            self.write(out, &frames, &text)?;
            let count = match out.kind {
                OutputKind::Gif | OutputKind::Apng => self.timing().count(frames.len()),
                _ => frames.len(),
            };
            self.edit.report(&out.path, &counted(count, "frame"), &request, started);
        }
        Ok(())
    }

    fn timing(&self) -> AnimationTiming {
        AnimationTiming { delay: 100 / self.fps, bounce: self.bounce }
    }

    /// Writes the frames to an output.
    fn write(&self, out: &OutputPath, frames: &[Image], text: &[(&'static str, String)]) -> Result<()> {
        let borrowed: Vec<(&str, &str)> = text.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
        match out.kind {
            OutputKind::Png => write_png(&out.path, &strip(frames)?, &borrowed),
            OutputKind::Gif | OutputKind::Apng => {
                let scale = (256 / frames[0].height().max(frames[0].width())).clamp(1, 8);
                let large = frames.iter().map(|frame| frame.upscale(scale)).collect::<Result<Vec<_>>>()?;
                write_animation(&out.path, &large, self.timing(), &borrowed)
            }
            _ => write_images(out, frames, text),
        }
    }
}
