//! Shared parts of the commands that edit images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::bar::Bar;
use super::data::Background;
use super::flags;
use super::machine::MachineOptions;
use super::options::RunOptions;
use super::output::{OutputKind, OutputPath};
use super::sampling::SamplingOptions;
use crate::error::{Error, Result};
use crate::ops::host::parallel::install;
use crate::picture::{Fit, Image, read_picture, write_npy, write_png};
use crate::pipeline::{Edit, EditRecipe, Model, OnProgress, SampleRequest, pictures, read_fitted, strip};
use crate::words::counted;

/// The model and its sampling options.
#[derive(Clone, Debug, Args)]
pub struct EditOptions {
    /// A model file, a checkpoint, a run folder (its model.safetensors), or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME")]
    pub model: PathBuf,
    /// A class by name or number, or none [default: none]
    #[arg(long, value_name = "NAME|N|none")]
    pub class: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingOptions,
    /// Images computed together [default: up to 32]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    #[command(flatten)]
    pub fit: FitOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    #[command(flatten)]
    pub run: RunOptions,
}

/// How many results, and of which seed.
#[derive(Clone, Copy, Debug, Args)]
pub struct ResultOptions {
    /// Number of results
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: usize,
    /// Result k of a seed is always the same image
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// The outcome of an edit of a picture.
pub struct Edited {
    /// The images, with values in about [-1, 1].
    pub images: Vec<Vec<f32>>,
    /// The parameters, for the PNG.
    pub edit: Edit,
    /// The outcome in words, for the report.
    pub summary: String,
}

impl EditOptions {
    /// A whole edit: loads the model, draws with `draw`, writes to `out`, and reports.
    ///
    /// # Errors
    /// Those of [`EditOptions::with_model`], of `draw`, and of an output that exists, before anything is drawn.
    pub fn draw(
        &self,
        results: ResultOptions,
        out: &Path,
        draw: impl FnOnce(&Model, &SampleRequest, OnProgress) -> Result<Edited> + Send,
    ) -> Result<()> {
        let started = Instant::now();
        let out = OutputPath::new(out, OutputKind::STILL)?;
        out.refuse_taken(self.run.force)?;
        refuse_taken_pictures(&out, results.count, self.run.force)?;
        self.with_model(|model| {
            let request = self.request(model, results.count, results.seed)?;
            let bar = self.bar();
            let Edited { images, edit, summary } = draw(model, &request, &mut bar.updates())?;
            drop(bar);
            let text = self.text(model, &request, edit);
            write_images(&out, &pictures(&images, model.image_shape())?, &text)?;
            self.report(&out.path, &summary, &request, started);
            Ok(())
        })
    }

    /// Opens the device, loads the model and calls `work` with it.
    ///
    /// # Errors
    /// Those of [`Model::load`], and of `work`.
    pub fn with_model(&self, work: impl FnOnce(&Model) -> Result<()> + Send) -> Result<()> {
        let machine = self.machine.open()?;
        install(move || {
            let model: Model = machine.load(&self.model)?;
            if !self.run.quiet {
                let (path, precision) = (model.path.display(), model.parameters.precision_name());
                eprintln!("{path} after step {}, on {} in {precision}", model.info.step, machine.note);
            }
            work(&model)
        })
    }

    /// A request for `count` images.
    ///
    /// # Errors
    /// [`Error::Config`] for an invalid class, sampler or value.
    pub fn request(&self, model: &Model, count: usize, seed: u64) -> Result<SampleRequest> {
        if !(1..=1_000_000).contains(&count) {
            return Err(Error::config("--count", counted(count, "image"), "give 1 to 1000000"));
        }
        let label = match &self.class {
            Some(class) => model.class_label(class)?,
            None => model.default_label()?,
        };
        let mut request = model.request(vec![label; count]);
        request.seed = seed;
        request.batch = self.batch.unwrap_or(request.batch);
        self.sampling.changes()?.apply(&mut request.sampling);
        request.sampling.validate(model.info.config.diffusion.num_steps)?;
        Ok(request)
    }

    /// A progress bar over evaluations of the network.
    pub fn bar(&self) -> Bar {
        Bar::of("evaluations", self.run.quiet)
    }

    /// The parameters of a picture, for its PNG.
    pub fn text(&self, model: &Model, request: &SampleRequest, edit: Edit) -> Vec<(&'static str, String)> {
        EditRecipe::new(model, request, self.class.as_deref(), edit).text()
    }

    /// Reports what was written.
    pub fn report(&self, out: &Path, what: &str, request: &SampleRequest, started: Instant) {
        if !self.run.quiet {
            println!(
                "wrote {}: {what} in {:.2} s ({} {}, guidance {}, seed {})",
                out.display(),
                started.elapsed().as_secs_f64(),
                request.sampling.sampler,
                counted(request.sampling.num_steps, "step"),
                request.sampling.describe_guidance(),
                request.seed
            );
        }
    }
}

/// How input pictures are fitted to the model's size.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct FitOptions {
    /// How a picture of another aspect ratio is fitted [default: crop]
    #[arg(long, value_enum)]
    pub fit: Option<Fit>,
    /// The color under transparent pixels and for padding: white, black, grey or RRGGBB [default: white]
    #[arg(long, value_name = "COLOR")]
    pub background: Option<Background>,
}

impl FitOptions {
    /// The fit mode and the colour.
    pub fn chosen(&self) -> (Fit, [u8; 3]) {
        (self.fit.unwrap_or_default(), self.background.map_or([255; 3], |Background(colour)| colour))
    }
}

impl EditOptions {
    /// Reads a picture of any format as values in [-1, 1], fitted to `[height, width, channels]`, and reports the change.
    ///
    /// # Errors
    /// Those of [`read_fitted`].
    pub fn read_image(&self, path: &Path, shape: [usize; 3]) -> Result<Vec<f32>> {
        let (fit, background) = self.fit.chosen();
        let (values, note) = read_fitted(path, shape, fit, background)?;
        if let Some(note) = note.filter(|_| !self.run.quiet) {
            eprintln!("note: {}", flags::noted(&note));
        }
        Ok(values)
    }

    /// Reads a mask for the picture at `image`: of its size or of `[height, width]`, and fitted like the picture. Padding is kept.
    ///
    /// # Errors
    /// Those of [`read_picture`]; [`Error::File`] for a mask of another size.
    pub fn read_mask(&self, path: &Path, image: &Path, [height, width]: [usize; 2]) -> Result<Image> {
        let (fit, _) = self.fit.chosen();
        let mask = read_picture(path, [0; 3])?.image;
        let over = read_picture(image, [0; 3])?.image;
        if (mask.width(), mask.height()) != (over.width(), over.height()) {
            return Ok(mask);
        }
        mask.resized(width, height, fit, [0; 3])
    }
}

/// The name of picture `k` in a folder.
fn picture_name(k: usize) -> String {
    format!("{k:05}.png")
}

/// Refuses to overwrite one of `count` pictures in a folder without `force`, before they are drawn.
///
/// # Errors
/// [`Error::File`] with the first that exists.
pub fn refuse_taken_pictures(out: &OutputPath, count: usize, force: bool) -> Result<()> {
    match out.kind {
        OutputKind::Folder => out.refuse_taken_in((0..count).map(picture_name), force),
        _ => Ok(()),
    }
}

/// Writes still images: one PNG (a sheet where there are several), an array, or a folder of PNGs.
///
/// # Errors
/// Those of the writers.
pub fn write_images(out: &OutputPath, images: &[Image], text: &[(&'static str, String)]) -> Result<()> {
    let text: Vec<(&str, &str)> = text.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
    match (out.kind, images) {
        (OutputKind::Array, _) => write_npy(&out.path, images),
        (OutputKind::Folder, _) => {
            images.iter().enumerate().try_for_each(|(k, image)| write_png(out.path.join(picture_name(k)), image, &text))
        }
        (_, [image]) => write_png(&out.path, image, &text),
        _ => write_png(&out.path, &strip(images)?, &text),
    }
}
