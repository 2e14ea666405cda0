//! `engine sample`: draw images from a model file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::bar::shown;
use super::machine::{MachineOptions, PrecisionChoice};
use super::progress::Drawing;
use crate::data::{Dataset, Parts, ResolveOptions, resolve};
use crate::diffusion::{NoiseSchedule, Profile};
use crate::error::{Error, Result};
use crate::eval::real_images;
use crate::ops::host::parallel::install;
use crate::picture::{Image, Layout, read_png, write_npy, write_png};
use crate::pipeline::{Changes, Choice, Model, Recipe, SampleRequest, even_batch, layout, sheet};
use crate::tensor::Device;

/// Draw images from a trained model.
///
/// Settings that you do not give come from the model's configuration. Image k of a seed is the same for any batch size, number of
/// threads and number of images. Each PNG holds its parameters, for --like.
#[derive(Clone, Debug, Args)]
pub struct SampleCommand {
    /// A model file, a run folder (its model.safetensors), or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME", required_unless_present = "like")]
    model: Option<PathBuf>,
    /// Reproduce the picture FILE.png from the parameters in it; other options override them
    #[arg(long, value_name = "FILE.png")]
    like: Option<PathBuf>,
    /// Number of images; with --class all, per class [default: one of each class; with --class, the model's]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// A class by name or number, all (a row for each), or none [default: all classes in turn]
    #[arg(long, value_name = "NAME|N|all|none")]
    class: Option<String>,
    /// ddpm, ddim, heun or dpmpp2m (DPM-Solver++)
    #[arg(long, value_name = "SAMPLER")]
    sampler: Option<String>,
    /// Steps by name: fast (20), standard (50) or high (100)
    #[arg(long, value_enum, conflicts_with_all = ["steps", "timesteps"])]
    profile: Option<Profile>,
    /// Denoising steps
    #[arg(long, value_name = "N", conflicts_with = "timesteps")]
    steps: Option<usize>,
    /// Spacing of the steps over the noise levels: uniform, quadratic or logarithmic (more steps at low noise)
    #[arg(long, value_name = "SCHEDULE", conflicts_with = "timesteps")]
    schedule: Option<String>,
    /// The timesteps one by one, as in 999,750,500,250,0; repeats and values outside the model's noise levels are dropped
    #[arg(long, value_name = "T,T,…", allow_hyphen_values = true)]
    timesteps: Option<String>,
    /// The share of DDPM's noise in a DDIM step: 0 to 1
    #[arg(long, value_name = "ETA")]
    eta: Option<f64>,
    /// Scale of all noise: 1 is as in training, less gives smoother and less varied images
    #[arg(long, value_name = "SCALE")]
    temperature: Option<f64>,
    /// Classifier-free guidance: 1 is none, higher values follow the class more strictly
    #[arg(long, value_name = "SCALE")]
    guidance: Option<f64>,
    /// Guidance over the steps: constant, adaptive (little, then all, then more), or a list of scales such as 1,2,3
    #[arg(long, value_name = "COURSE")]
    guidance_schedule: Option<String>,
    /// Image k of a seed is always the same image [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Images computed together [default: up to 32 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    #[command(flatten)]
    machine: MachineOptions,
    /// Show real images of the same classes beside the generated ones: a data set file, the name of a published set, or `builtin`
    #[arg(long, value_name = "DATA")]
    compare_with: Option<String>,
    /// The folder of data sets, for --compare-with
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    /// F.png: one sheet; F.npy: f32 in [0, 1]; F.safetensors: a data set, labelled, for training; else a folder of single
    /// PNG files [default: samples.png; with --like, repeated.png]
    #[arg(long, value_name = "F.png|F.npy|F.safetensors|DIR")]
    out: Option<PathBuf>,
    /// Replace existing images in the folder
    #[arg(long)]
    force: bool,
    /// Show progress without a terminal too, as lines on standard error
    #[arg(long, conflicts_with = "quiet")]
    progress: bool,
    /// Print only errors
    #[arg(long)]
    quiet: bool,
}

/// The output.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    Sheet,
    /// A single image, named as in a folder.
    Single,
    Array,
    /// A data set file.
    Set,
    Folder,
}

/// The images to draw, and their output.
struct Job {
    /// The command, completed from the picture of `--like`.
    command: SampleCommand,
    model: PathBuf,
    out: PathBuf,
    output: Output,
    /// The recipe in that picture.
    like: Option<Recipe>,
}

impl SampleCommand {
    /// Draws the images, writes them, and reports.
    ///
    /// # Errors
    /// Those of [`Model::load`] and [`Model::sample_each`], and invalid options, before anything is drawn.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let job = Job::new(self)?;
        let machine = job.command.machine.open().map_err(|error| job.explain(error))?;
        install(move || {
            let model: Model = machine.load(&job.model).map_err(|error| job.explain(error))?;
            if let (Some(like), Some(path)) = (&job.like, &job.command.like) {
                like.check_model(&model, path)?;
                if like.device.starts_with("cpu") != matches!(machine.device, Device::Cpu) {
                    let note = format!("{} was drawn on {}: pixels agree within rounding", path.display(), like.device);
                    job.note(&note);
                }
            }
            if !job.command.quiet {
                let precision = model.parameters.precision();
                eprintln!("{}, on {} in {precision}", job.describe(&model), machine.note);
            }
            job.draw(&model, &machine.note, started)
        })
    }
}

/// The list of `--timesteps`; it may be empty.
fn timesteps(text: &str) -> Result<Vec<i64>> {
    let parts = text.split([',', ' ']).map(str::trim).filter(|part| !part.is_empty());
    let number = |part: &str| {
        part.parse().map_err(|_| {
            let short: String = part.chars().take(40).collect();
            let message = format!("`{}` is not a timestep", short.escape_debug());
            Error::config("--timesteps", message, "list whole numbers, as in 999,750,500,250,0")
        })
    };
    parts.map(number).collect()
}

impl Job {
    fn new(mut command: SampleCommand) -> Result<Self> {
        let read = |path: &Path| Recipe::of_texts(&read_png(path)?.1, path);
        let like = command.like.as_deref().map(read).transpose()?;
        let default = if like.is_some() { "repeated.png" } else { "samples.png" };
        let out = command.out.clone().unwrap_or_else(|| default.into());
        let mut output = output(&out)?;
        if let Some(like) = &like {
            if like.single && output == Output::Sheet && command.count.is_none_or(|count| count == 1) {
                output = Output::Single;
            }
            command.fill_up(like, output)?;
        }
        let job = Self {
            // The argument parser ensures that one of the two is given.
            model: command.model.clone().unwrap_or_default(),
            command,
            out,
            output,
            like,
        };
        job.check_out()?;
        Ok(job)
    }

    fn check_out(&self) -> Result<()> {
        if self.command.compare_with.is_some() && self.output != Output::Sheet {
            let message = "real images are put beside the generated ones on a sheet";
            return Err(Error::config("--compare-with", message, "end --out in .png"));
        }
        if self.output == Output::Set && self.out.exists() && !self.command.force {
            // Check before the work, not after it.
            return Err(Error::file(&self.out, "already exists", "give another file, or replace it with --force"));
        }
        let same = |path: &Path| match (path.canonicalize(), self.out.canonicalize()) {
            (Ok(path), Ok(out)) => path == out,
            _ => false,
        };
        match &self.command.like {
            Some(like) if same(like) && !self.command.force => {
                Err(Error::file(like, "would be overwritten by its reproduction", "give another --out, or add --force"))
            }
            _ => Ok(()),
        }
    }

    /// Adds advice for `--like` to an error.
    fn explain(&self, error: Error) -> Error {
        let (Some(_), Some(path)) = (&self.like, &self.command.like) else { return error };
        match error {
            Error::Config { place, message, .. } if place == "--precision" => Error::Config {
                place: path.display().to_string(),
                message: format!("was drawn in bf16; {message}"),
                advice: "draw nearly the same with --precision f32, or give --device cuda".into(),
            },
            Error::File { path: model, message, advice } if !model.exists() => Error::File {
                path: path.clone(),
                message: format!("was drawn by {}: {message}", model.display()),
                advice: format!("{advice}, or give its new path with --model"),
            },
            error => error,
        }
    }

    fn note(&self, text: &str) {
        if !self.command.quiet {
            eprintln!("note: {text}");
        }
    }

    fn describe(&self, model: &Model) -> String {
        let info = &model.info;
        let weights = if info.weights == "ema" { "moving average" } else { "raw weights" };
        let newest = if self.model.is_dir() { ", the newest model of the run" } else { "" };
        format!("{}{newest}: {weights} after step {} (epoch {})", model.path.display(), info.step, info.epoch)
    }

    /// The sampling options that were given.
    fn changes(&self) -> Result<Changes> {
        let command = &self.command;
        let schedule = command.schedule.as_deref().map(str::parse);
        let guidance_schedule = command.guidance_schedule.as_deref().map(str::parse);
        Ok(Changes {
            sampler: command.sampler.as_deref().map(str::parse).transpose()?,
            steps: command.profile.map(Profile::steps).or(command.steps),
            schedule: schedule.transpose()?,
            timesteps: command.timesteps.as_deref().map(timesteps).transpose()?,
            eta: command.eta,
            temperature: command.temperature,
            guidance: command.guidance,
            guidance_schedule: guidance_schedule.transpose()?,
        })
    }

    fn request(&self, model: &Model, labels: Vec<usize>) -> Result<SampleRequest> {
        let command = &self.command;
        let batch = command.batch.unwrap_or_else(|| even_batch(model.context().device(), labels.len()));
        let mut request = SampleRequest { seed: command.seed.unwrap_or(0), batch, ..model.request(labels) };
        if request.batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        if let Some(like) = &self.like {
            like.resume(&mut request);
        }
        self.changes()?.apply(&mut request.sampling);
        request.sampling.validate(model.info.config.diffusion.num_steps)?;
        Ok(request)
    }

    fn draw(&self, model: &Model, device: &str, started: Instant) -> Result<()> {
        let command = &self.command;
        let (choice, labels) = Choice::new(&model.info, command.class.as_deref(), command.count)?;
        let request = self.request(model, labels)?;
        let count = request.labels.len();
        let times = request.sampling.times(&NoiseSchedule::new(&model.info.config.diffusion)?)?;
        if let Some(note) = &times.note {
            self.note(note);
        }
        let recipe = Recipe {
            count: if let Choice::Each(each) = choice { each } else { count },
            class: command.class.clone(),
            compare_with: command.compare_with.clone(),
            ..Recipe::new(model, &request, device)
        };
        let names = model.info.label_names(&request.labels);
        let sheet = self.prepare(model, &request, &choice, &names)?;
        let classes = model.info.class_names();
        let images = Vec::new();
        let mut target = Target { job: self, request: &request, names: &names, classes, recipe: &recipe, images };

        let shape = model.image_shape();
        let mut drawing = Drawing::new(command.quiet, command.progress, count);
        let mut first = None;
        let mut progress = |done, total| {
            drawing.update(done, total);
            Ok(())
        };
        let mut sink = |k: usize, values: &[f32]| {
            first.get_or_insert_with(|| started.elapsed());
            target.take(k, Image::from_signed(shape[1], shape[0], shape[2], values)?)
        };
        model.sample_each(&request, &mut progress, &mut sink)?;
        drop(drawing);
        target.finish(&choice, sheet)?;
        if !command.quiet {
            println!("{}", self.summary(&request, times.times.len(), first.unwrap_or_default(), started.elapsed()));
        }
        Ok(())
    }

    /// Prepares the output before anything is drawn: the layout of a sheet and the real images for it, or a folder.
    fn prepare(
        &self,
        model: &Model,
        request: &SampleRequest,
        choice: &Choice,
        names: &[String],
    ) -> Result<Option<SheetPlan>> {
        match self.output {
            Output::Sheet => {
                let shape = model.image_shape();
                let blocks = if self.command.compare_with.is_some() { 2 } else { 1 };
                let layout = layout(choice, request.labels.len(), model.class_names().len(), shape, blocks)?;
                Ok(Some(SheetPlan { layout, real: self.real(model, request, shape)? }))
            }
            Output::Folder => self.prepare_folder(names, request.first).map(|()| None),
            Output::Single | Output::Array | Output::Set => Ok(None),
        }
    }

    /// The data set's name and a real image for each drawn image.
    fn real(&self, model: &Model, request: &SampleRequest, shape: [usize; 3]) -> Result<Option<(String, Vec<Image>)>> {
        let Some(given) = &self.command.compare_with else { return Ok(None) };
        let data = &model.info.config.data;
        let options = ResolveOptions {
            data_dir: &self.command.data_dir,
            shapes_seed: data.shapes_seed,
            shapes_count: data.shapes_count,
            progress: shown(self.command.quiet),
        };
        let dataset: Dataset = resolve(&data.name, Some(given), &options)?;
        // A model file without class names has numbers in their place; then the data set's order applies.
        let names = if model.info.classes.is_empty() { dataset.class_names() } else { &model.info.classes };
        let class_of = |&label: &usize| {
            let of_no_class = label >= model.info.config.model.num_classes();
            (!of_no_class).then(|| names.get(label).cloned().unwrap_or_else(|| label.to_string()))
        };
        let classes: Vec<Option<String>> = request.labels.iter().map(class_of).collect();
        Ok(Some((dataset.name().to_string(), real_images(&dataset, &classes, shape)?)))
    }

    fn summary(&self, request: &SampleRequest, steps: usize, first: Duration, total: Duration) -> String {
        let (count, sampling) = (request.labels.len(), &request.sampling);
        format!(
            "wrote {}: {count} image{} in {:.2} s, the first after {:.2} s ({} {steps} steps, guidance {}, seed {})",
            self.out.display(),
            if count == 1 { "" } else { "s" },
            total.as_secs_f64(),
            first.as_secs_f64(),
            sampling.sampler,
            sampling.describe_guidance(),
            request.seed,
        )
    }

    /// Makes the folder and refuses to overwrite images in it.
    fn prepare_folder(&self, names: &[String], first: u32) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create the folder"))?;
        if self.command.force {
            return Ok(());
        }
        let paths = names.iter().enumerate().map(|(k, name)| self.out.join(file_name(first as usize + k, name)));
        match paths.into_iter().find(|path| path.exists()) {
            Some(taken) => Err(Error::file(taken, "already exists", "give another folder, or replace with --force")),
            None => Ok(()),
        }
    }
}

/// A sheet before its images are drawn.
struct SheetPlan {
    layout: Layout,
    /// The data set's name and a real image for each drawn image.
    real: Option<(String, Vec<Image>)>,
}

/// Where images are written as they are drawn.
struct Target<'a> {
    job: &'a Job,
    request: &'a SampleRequest,
    /// The class name of each image.
    names: &'a [String],
    /// The model's classes, by label.
    classes: Vec<String>,
    recipe: &'a Recipe,
    /// Images that are written together.
    images: Vec<Image>,
}

impl Target<'_> {
    /// Writes image k of the request, or keeps it for a joint file.
    fn take(&mut self, k: usize, image: Image) -> Result<()> {
        let out = &self.job.out;
        match self.job.output {
            Output::Folder => {
                self.single(&out.join(file_name(self.request.first as usize + k, &self.names[k])), k, &image)
            }
            Output::Single => self.single(out, k, &image),
            Output::Sheet | Output::Array | Output::Set => {
                self.images.push(image);
                Ok(())
            }
        }
    }

    fn single(&self, path: &Path, k: usize, image: &Image) -> Result<()> {
        let (number, name) = (self.request.first + k as u32, &self.names[k]);
        let class = (!name.is_empty()).then(|| name.clone());
        let recipe = Recipe { first: number, single: true, count: 1, images: 1, class, ..self.recipe.clone() };
        let text = [("engine.image", number.to_string()), ("engine.class", name.clone())];
        write_with(path, image, &recipe, &text)
    }

    /// Writes a joint file.
    fn finish(&self, choice: &Choice, plan: Option<SheetPlan>) -> Result<()> {
        if let Some(SheetPlan { layout, real }) = plan {
            let real = real.as_ref().map(|(source, images)| (source.as_str(), images.as_slice()));
            let sheet = sheet(&self.images, real, choice, layout, self.names)?;
            return write_with(&self.job.out, &sheet, self.recipe, &[]);
        }
        match self.job.output {
            Output::Array => write_npy(&self.job.out, &self.images),
            Output::Set => self.data_set()?.write(&self.job.out, self.job.command.force),
            _ => Ok(()),
        }
    }
}

impl Target<'_> {
    /// The images as a data set for training; unconditional images get one class.
    fn data_set(&self) -> Result<Dataset> {
        let label = |name: &String| self.classes.iter().position(|class| class == name);
        let labels: Option<Vec<u16>> = self.names.iter().map(|name| label(name).map(|label| label as u16)).collect();
        let (class_names, labels) = match labels {
            Some(labels) => (self.classes.clone(), labels),
            None => (vec!["unlabelled".to_owned()], vec![0; self.names.len()]),
        };
        let first = self.images.first();
        let name = self.job.out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Dataset::from_parts(Parts {
            name,
            height: first.map_or(0, Image::height),
            width: first.map_or(0, Image::width),
            channels: first.map_or(0, Image::channels),
            class_names,
            images: self.images.iter().flat_map(|image| image.pixels().iter().copied()).collect(),
            train: labels.len(),
            labels,
            notes: self.recipe.text().into_iter().map(|(keyword, text)| format!("{keyword}: {text}")).collect(),
            ..Parts::default()
        })
    }
}

impl SampleCommand {
    /// Takes missing settings from the recipe of a picture.
    fn fill_up(&mut self, like: &Recipe, output: Output) -> Result<()> {
        self.model.get_or_insert_with(|| like.model.clone().into());
        self.count.get_or_insert(like.count);
        self.class = self.class.take().or_else(|| like.class.clone());
        self.sampler.get_or_insert_with(|| like.sampler.to_string());
        self.eta.get_or_insert(like.eta);
        self.temperature.get_or_insert(like.temperature);
        if self.guidance.is_none() {
            self.guidance_schedule.get_or_insert_with(|| like.guidance_schedule.to_string());
        }
        self.guidance.get_or_insert(like.guidance);
        self.seed.get_or_insert(like.seed);
        if output == Output::Sheet {
            self.compare_with = self.compare_with.take().or_else(|| like.compare_with.clone());
        }
        if self.machine.precision.is_none() {
            self.machine.precision = Some(match like.precision.as_str() {
                "bf16" => PrecisionChoice::Bf16,
                "f32" => PrecisionChoice::F32,
                other => {
                    let message =
                        format!("the picture was drawn in {}, which this engine does not know", other.escape_debug());
                    return Err(Error::config("--like", message, "give --precision"));
                }
            });
        }
        Ok(())
    }
}

/// The output format of a path.
fn output(out: &Path) -> Result<Output> {
    let extension = out.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let named_folder = out.is_dir() || out.as_os_str().to_string_lossy().ends_with('/');
    match extension.to_ascii_lowercase().as_str() {
        _ if named_folder => Ok(Output::Folder),
        "png" => Ok(Output::Sheet),
        "npy" => Ok(Output::Array),
        "safetensors" => Ok(Output::Set),
        "" => Ok(Output::Folder),
        other => Err(Error::config(
            "--out",
            format!("{} is not a supported kind of file: .{other}", out.display()),
            "end it in .png, .npy or .safetensors, or in / for a folder",
        )),
    }
}

/// Writes a PNG with its recipe and `more` text chunks.
fn write_with(path: &Path, image: &Image, recipe: &Recipe, more: &[(&'static str, String)]) -> Result<()> {
    let recipe = recipe.text();
    let text: Vec<(&str, &str)> = recipe.iter().chain(more).map(|(keyword, text)| (*keyword, text.as_str())).collect();
    write_png(path, image, &text)
}

/// `00012-dog.png`, `00012.png` without a class; characters that a file name cannot have become dashes.
fn file_name(k: usize, class: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '_' | '-') { c } else { '-' };
    let class: String = class.chars().take(40).map(plain).collect();
    if class.is_empty() { format!("{k:05}.png") } else { format!("{k:05}-{class}.png") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name(7, "dog"), "00007-dog.png");
        assert_eq!(file_name(123_456, "T-shirt/top"), "123456-T-shirt-top.png");
        assert_eq!(file_name(0, "../x y"), "00000----x-y.png");
        assert_eq!(file_name(3, ""), "00003.png");
    }
}
