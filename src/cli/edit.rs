//! Shared parts of the commands that edit images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::bar::Bar;
use super::data::Background;
use super::flags;
use super::machine::MachineOptions;
use crate::diffusion::Profile;
use crate::error::{Error, Result};
use crate::ops::host::parallel::install;
use crate::picture::{Fit, Image, read_picture, write_npy, write_png};
use crate::pipeline::{Changes, Edit, EditRecipe, Model, SampleRequest, read_fitted, strip};

/// The model and its sampling options.
#[derive(Clone, Debug, Args)]
pub struct EditOptions {
    /// A model file, a checkpoint, a run folder (its model.safetensors), or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME")]
    pub model: PathBuf,
    /// A class by name or number, or none [default: none]
    #[arg(long, value_name = "NAME|N|none")]
    pub class: Option<String>,
    /// ddpm, ddim, heun or dpmpp2m [default: the model's]
    #[arg(long, value_name = "SAMPLER")]
    pub sampler: Option<String>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Steps by name: fast (20), standard (50) or high (100)
    #[arg(long, value_enum, conflicts_with = "steps")]
    pub profile: Option<Profile>,
    /// The share of DDPM's noise in a DDIM step: 0 to 1
    #[arg(long, value_name = "ETA")]
    pub eta: Option<f64>,
    /// Classifier-free guidance: 1 is none, higher values follow the class more strictly
    #[arg(long, value_name = "SCALE")]
    pub guidance: Option<f64>,
    /// Guidance over the steps: constant, adaptive (little, then all, then more), or a list of scales such as 1,2,3
    #[arg(long, value_name = "COURSE")]
    pub guidance_schedule: Option<String>,
    /// Scale of all noise: less gives smoother images
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Images computed together [default: up to 32]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    #[command(flatten)]
    pub fit: FitOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
    /// Print only errors
    #[arg(long)]
    pub quiet: bool,
}

impl EditOptions {
    /// Opens the device, loads the model and calls `work` with it.
    ///
    /// # Errors
    /// Those of [`Model::load`], and of `work`.
    pub fn with_model(&self, work: impl FnOnce(&Model) -> Result<()> + Send) -> Result<()> {
        let machine = self.machine.open()?;
        install(move || {
            let model: Model = machine.load(&self.model)?;
            if !self.quiet {
                let (path, precision) = (model.path.display(), model.parameters.precision());
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
            return Err(Error::config("--count", format!("{count} images"), "give 1 to 1000000"));
        }
        let label = match &self.class {
            Some(class) => model.class_label(class)?,
            None => model.default_label()?,
        };
        let mut request = model.request(vec![label; count]);
        request.seed = seed;
        request.batch = self.batch.unwrap_or(request.batch);
        self.changes()?.apply(&mut request.sampling);
        request.sampling.validate(model.info.config.diffusion.num_steps)?;
        Ok(request)
    }

    /// The sampling options that were given.
    ///
    /// # Errors
    /// [`Error::Config`] for an invalid sampler or guidance schedule.
    pub fn changes(&self) -> Result<Changes> {
        let guidance_schedule = self.guidance_schedule.as_deref().map(str::parse);
        Ok(Changes {
            sampler: self.sampler.as_deref().map(str::parse).transpose()?,
            steps: self.steps.or(self.profile.map(Profile::steps)),
            eta: self.eta,
            temperature: self.temperature,
            guidance: self.guidance,
            guidance_schedule: guidance_schedule.transpose()?,
            ..Changes::default()
        })
    }

    /// Refuses to overwrite a file without `--force`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn refuse_taken(&self, out: &Path) -> Result<()> {
        if out.is_file() && !self.force {
            return Err(Error::file(out, "already exists", "give another file, or replace it with --force"));
        }
        Ok(())
    }

    /// A progress bar over evaluations of the network.
    pub fn bar(&self) -> Bar {
        Bar::of("evaluations", self.quiet)
    }

    /// The parameters of a picture, for its PNG.
    pub fn text(&self, model: &Model, request: &SampleRequest, edit: Edit) -> Vec<(&'static str, String)> {
        EditRecipe::new(model, request, self.class.as_deref(), edit).text()
    }

    /// Reports what was written.
    pub fn report(&self, out: &Path, what: &str, request: &SampleRequest, started: Instant) {
        if !self.quiet {
            println!(
                "wrote {}: {what} in {:.2} s ({} {} steps, guidance {}, seed {})",
                out.display(),
                started.elapsed().as_secs_f64(),
                request.sampling.sampler,
                request.sampling.num_steps,
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
    /// The colour under transparent pixels and for padding: white, black, grey or RRGGBB [default: white]
    #[arg(long, value_name = "COLOUR")]
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
        if let Some(note) = note.filter(|_| !self.quiet) {
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

/// The output format, from the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// One PNG: a single image, or a sheet.
    Png,
    /// `.gif`.
    Gif,
    /// `.apng`.
    Apng,
    /// `.npy`.
    Array,
    /// A folder of PNGs.
    Folder,
}

impl Output {
    /// # Errors
    /// [`Error::Config`] for an unknown ending.
    pub fn of(out: &Path) -> Result<Self> {
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let named_folder = out.is_dir() || out.as_os_str().to_string_lossy().ends_with('/');
        match ending.as_str() {
            _ if named_folder => Ok(Self::Folder),
            "png" => Ok(Self::Png),
            "gif" => Ok(Self::Gif),
            "apng" => Ok(Self::Apng),
            "npy" => Ok(Self::Array),
            "" => Ok(Self::Folder),
            other => Err(Error::config(
                "--out",
                format!("{} is not a supported kind of file: .{other}", out.display()),
                "end it in .png or .npy, or in / for a folder",
            )),
        }
    }

    /// # Errors
    /// [`Error::Config`] for an animation.
    pub fn still(out: &Path) -> Result<Self> {
        match Self::of(out)? {
            Self::Gif | Self::Apng => {
                let message = format!("{} is an animation format", out.display());
                Err(Error::config("--out", message, "end it in .png or .npy, or in / for a folder"))
            }
            output => Ok(output),
        }
    }
}

/// Writes still images: one PNG (a sheet where there are several), an array, or a folder of PNGs.
///
/// # Errors
/// Those of the writers.
pub fn write_images(out: &Path, images: &[Image], text: &[(&'static str, String)], force: bool) -> Result<()> {
    let text: Vec<(&str, &str)> = text.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
    match (Output::still(out)?, images) {
        (Output::Array, _) => write_npy(out, images),
        (Output::Folder, _) => {
            let paths: Vec<PathBuf> = (0..images.len()).map(|k| out.join(format!("{k:05}.png"))).collect();
            if let Some(taken) = paths.iter().find(|path| path.exists() && !force) {
                return Err(Error::file(taken, "already exists", "give another folder, or replace with --force"));
            }
            paths.iter().zip(images).try_for_each(|(path, image)| write_png(path, image, &text))
        }
        (_, [image]) => write_png(out, image, &text),
        _ => write_png(out, &strip(images)?, &text),
    }
}
