//! `engine sample`: draw images from a model file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::bar::shown;
use super::machine::{MachineOptions, PrecisionChoice};
use super::options::{DataFolder, RunOptions};
use super::output::{OutputKind, OutputPath};
use super::progress::Drawing;
use super::sampling::{SamplingOptions, TimestepOptions};
use crate::data::{Dataset, Parts, ResolveOptions, resolve};
use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};
use crate::eval::real_images;
use crate::ops::host::parallel::install;
use crate::picture::{Image, Layout, read_png, write_npy, write_png};
use crate::pipeline::{Choice, Model, Recipe, SampleRequest, even_batch, layout, sheet};
use crate::tensor::Device;
use crate::words::counted;

/// Draw images from a trained model.
///
/// Settings that you do not give come from the model's configuration. Image k of a seed is the same for any batch size, number of
/// threads and number of images. Each PNG holds its parameters, for --like.
#[derive(Clone, Debug, Args)]
pub struct SampleCommand {
    /// A model file, a checkpoint, a run folder (its model.safetensors), or the name of a model that comes with the engine
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
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    timesteps: TimestepOptions,
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
    #[command(flatten)]
    data: DataFolder,
    /// F.png: one grid; F.npy: f32 in [0, 1]; F.safetensors: a data set, labelled, for training; else a folder of single
    /// PNG files [default: samples.png; with --like, repeated.png]
    #[arg(long, value_name = "F.png|F.npy|F.safetensors|DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    run: RunOptions,
    /// Show progress without a terminal too, as lines on standard error
    #[arg(long, conflicts_with = "quiet")]
    progress: bool,
}

/// The images to draw, and their output.
struct Job {
    /// The command, completed from the picture of `--like`.
    command: SampleCommand,
    model: PathBuf,
    out: OutputPath,
    /// Whether the output is a single image, named as in a folder.
    single: bool,
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
            if !job.command.run.quiet {
                let precision = model.parameters.precision_name();
                eprintln!("{}, on {} in {precision}", job.describe(&model), machine.note);
            }
            job.draw(&model, &machine.note, started)
        })
    }
}

impl Job {
    fn new(mut command: SampleCommand) -> Result<Self> {
        let read = |path: &Path| Recipe::of_texts(&read_png(path)?.1, path);
        let like = command.like.as_deref().map(read).transpose()?;
        let default = if like.is_some() { "repeated.png" } else { "samples.png" };
        let out = command.out.clone().unwrap_or_else(|| default.into());
        let out = OutputPath::new(&out, OutputKind::SAMPLES)?;
        let mut single = false;
        if let Some(like) = &like {
            single = like.single && out.kind == OutputKind::Png && command.count.is_none_or(|count| count == 1);
            command.fill_up(like, out.kind == OutputKind::Png && !single)?;
        }
        let job = Self {
            // The argument parser ensures that one of the two is given.
            model: command.model.clone().unwrap_or_default(),
            command,
            out,
            single,
            like,
        };
        job.check_out()?;
        Ok(job)
    }

    /// Whether the images are put on one sheet.
    fn is_sheet(&self) -> bool {
        self.out.kind == OutputKind::Png && !self.single
    }

    fn check_out(&self) -> Result<()> {
        if self.command.compare_with.is_some() && !self.is_sheet() {
            let message = "real images are put beside the generated ones on a grid";
            return Err(Error::config("--compare-with", message, "end --out in .png"));
        }
        let same = |path: &Path| match (path.canonicalize(), self.out.path.canonicalize()) {
            (Ok(path), Ok(out)) => path == out,
            _ => false,
        };
        match &self.command.like {
            Some(like) if same(like) && !self.command.run.force => {
                Err(Error::file(like, "would be overwritten by its reproduction", "give another --out, or add --force"))
            }
            _ => self.out.refuse_taken(self.command.run.force),
        }
    }

    /// Adds advice for `--like` to an error.
    fn explain(&self, error: Error) -> Error {
        let (Some(_), Some(path)) = (&self.like, &self.command.like) else { return error };
        match error {
            Error::File { path: model, message, advice } if !model.exists() => Error::File {
                path: path.clone(),
                message: format!("was drawn by {}: {message}", model.display()),
                advice: format!("{advice}, or give its new path with --model"),
            },
            error => error,
        }
    }

    fn note(&self, text: &str) {
        if !self.command.run.quiet {
            eprintln!("note: {text}");
        }
    }

    fn describe(&self, model: &Model) -> String {
        let info = &model.info;
        let weights = if info.weights == "ema" { "moving average" } else { "raw weights" };
        let newest = if self.model.is_dir() { ", the newest model of the run" } else { "" };
        format!("{}{newest}: {weights} after step {} (epoch {})", model.path.display(), info.step, info.epoch)
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
        command.timesteps.added_to(command.sampling.changes()?)?.apply(&mut request.sampling);
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
        let mut drawing = Drawing::new(command.run.quiet, command.progress, count);
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
        if !command.run.quiet {
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
        match self.out.kind {
            OutputKind::Png if !self.single => {
                let shape = model.image_shape();
                let blocks = if self.command.compare_with.is_some() { 2 } else { 1 };
                let layout = layout(choice, request.labels.len(), model.class_names().len(), shape, blocks)?;
                Ok(Some(SheetPlan { layout, real: self.real(model, request, shape)? }))
            }
            OutputKind::Folder => self.prepare_folder(names, request.first).map(|()| None),
            _ => Ok(None),
        }
    }

    /// The data set's name and a real image for each drawn image.
    fn real(&self, model: &Model, request: &SampleRequest, shape: [usize; 3]) -> Result<Option<(String, Vec<Image>)>> {
        let Some(given) = &self.command.compare_with else { return Ok(None) };
        let data = &model.info.config.data;
        let options = ResolveOptions {
            data_dir: &self.command.data.data_dir,
            shapes_seed: data.shapes_seed,
            shapes_count: data.shapes_count,
            progress: shown(self.command.run.quiet),
            trains: false,
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
            "wrote {}: {} in {:.2} s, the first after {:.2} s ({} {}, guidance {}, seed {})",
            self.out.path.display(),
            counted(count, "image"),
            total.as_secs_f64(),
            first.as_secs_f64(),
            sampling.sampler,
            counted(steps, "step"),
            sampling.describe_guidance(),
            request.seed,
        )
    }

    /// Makes the folder and refuses to overwrite images in it.
    fn prepare_folder(&self, names: &[String], first: u32) -> Result<()> {
        std::fs::create_dir_all(&self.out.path).map_err(Error::io(&self.out.path, "create the folder"))?;
        let names = names.iter().enumerate().map(|(k, name)| file_name(first as usize + k, name));
        self.out.refuse_taken_in(names, self.command.run.force)
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
        let out = &self.job.out.path;
        match self.job.out.kind {
            OutputKind::Folder => {
                self.single(&out.join(file_name(self.request.first as usize + k, &self.names[k])), k, &image)
            }
            _ if self.job.single => self.single(out, k, &image),
            _ => {
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
            return write_with(&self.job.out.path, &sheet, self.recipe, &[]);
        }
        let out = &self.job.out;
        match out.kind {
            OutputKind::Array => write_npy(&out.path, &self.images),
            OutputKind::Set => self.data_set()?.write(&out.path, self.job.command.run.force),
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
        let name = self.job.out.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
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
    fn fill_up(&mut self, like: &Recipe, is_sheet: bool) -> Result<()> {
        self.model.get_or_insert_with(|| like.model.clone().into());
        self.count.get_or_insert(like.count);
        self.class = self.class.take().or_else(|| like.class.clone());
        self.sampling.fill_up(like);
        self.seed.get_or_insert(like.seed);
        if is_sheet {
            self.compare_with = self.compare_with.take().or_else(|| like.compare_with.clone());
        }
        if self.machine.precision.is_none() {
            self.machine.precision = Some(match like.precision.as_str() {
                "bf16" => PrecisionChoice::Bf16,
                "tf32" => PrecisionChoice::Tf32,
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
