//! `engine sample`: draw images from a model file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::machine::MachineOptions;
use crate::config::{Model, ModelInfo, SampleRequest, presets};
use crate::error::{Error, Result};
use crate::ops::host::parallel::install;
use crate::picture::{Image, Labels, Layout, labelled_grid, write_npy, write_png};
use crate::tensor::{Context, Device};

/// Most pixels of a sheet, below what a picture may have.
const MAX_SHEET_PIXELS: usize = 1 << 27;

/// Draw images from a trained model.
///
/// What is not given is taken from the model's own configuration. Image k of a seed is the same image whatever the batch,
/// the number of threads and the number of images.
#[derive(Clone, Debug, Args)]
pub struct SampleCommand {
    /// A model file, or a run folder: its model.safetensors
    #[arg(long, value_name = "FILE|RUN")]
    model: PathBuf,
    /// How many images; with --class all, how many of each class [default: one of each class; with --class, the model's]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// A class by name or number, all (a row for each), or none [default: all classes in turn]
    #[arg(long, value_name = "NAME|N|all|none")]
    class: Option<String>,
    /// ddpm, ddim or heun
    #[arg(long, value_name = "SAMPLER")]
    sampler: Option<String>,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// The share of DDPM's noise in a DDIM step: 0 to 1
    #[arg(long, value_name = "ETA")]
    eta: Option<f64>,
    /// Classifier-free guidance: 1 is none, more follows the class harder
    #[arg(long, value_name = "SCALE")]
    guidance: Option<f64>,
    /// Image k of a seed is always the same image
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Images that are computed together [default: up to 32 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    #[command(flatten)]
    machine: MachineOptions,
    /// F.png: one sheet; F.npy: f32 in [0, 1]; else a folder of single PNG files
    #[arg(long, value_name = "F.png|F.npy|DIR", default_value = "samples.png")]
    out: PathBuf,
    /// Replace images that are in the folder already
    #[arg(long)]
    force: bool,
    /// Say nothing unless something goes wrong
    #[arg(long)]
    quiet: bool,
}

/// Which images are drawn.
#[derive(Clone, Debug, PartialEq)]
enum Choice {
    /// So many of each of the classes, class by class.
    Each(usize),
    /// The classes in turn.
    InTurn,
    /// One label, or none where the model has no classes.
    One,
}

/// Where the images go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    Sheet,
    Array,
    Folder,
}

impl SampleCommand {
    /// Draws the images, writes them, and says so.
    ///
    /// # Errors
    /// Those of [`Model::load`] and [`Model::sample_each`], and what is wrong with the options, which is found before
    /// anything is drawn.
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let output = self.output()?;
        let machine = self.machine.open()?;
        install(move || {
            let context = Context::new(machine.device.clone());
            let info = self.look()?;
            let model = Model::load(&self.model, &context, machine.dtype(info.config.training.precision))?;
            if !self.quiet {
                eprintln!("{}, on {}", self.describe(&model), machine.note);
            }
            self.draw(&model, output, &machine.note, started)
        })
    }

    /// What the model file says, or what somebody who named none may have meant.
    fn look(&self) -> Result<ModelInfo> {
        let preset = self.model.to_str().filter(|name| presets().iter().any(|preset| preset.name == *name));
        if let (Some(name), false) = (preset, self.model.exists()) {
            let mend = format!("train it with `engine train --preset {name}`, then name the run folder");
            return Err(Error::config("--model", format!("{name} is a preset, not a trained model"), mend));
        }
        Model::inspect(&self.model)
    }

    fn describe(&self, model: &Model) -> String {
        let info = &model.info;
        let weights = if info.weights == "ema" { "moving average" } else { "raw weights" };
        let newest = if self.model.is_dir() { ", the newest model of the run" } else { "" };
        format!("{}{newest}: {weights} after step {} (epoch {})", model.path.display(), info.step, info.epoch)
    }

    fn output(&self) -> Result<Output> {
        let extension = self.out.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let named_folder = self.out.is_dir() || self.out.as_os_str().to_string_lossy().ends_with('/');
        match extension.to_ascii_lowercase().as_str() {
            _ if named_folder => Ok(Output::Folder),
            "png" => Ok(Output::Sheet),
            "npy" => Ok(Output::Array),
            "" => Ok(Output::Folder),
            other => Err(Error::config(
                "--out",
                format!("{} is no kind of file that can be written: .{other}", self.out.display()),
                "end it in .png or .npy, or in / for a folder",
            )),
        }
    }

    /// The labels to draw and how they are arranged.
    fn choose(&self, model: &Model) -> Result<(Choice, Vec<usize>)> {
        if self.count == Some(0) {
            return Err(Error::config("--count", "0 images", "give 1 or more"));
        }
        let classes = model.class_names().len();
        let usual = model.info.config.sampling.count_per_class;
        let (choice, count, label): (Choice, usize, Box<dyn Fn(usize) -> usize>) = match self.class.as_deref() {
            None if classes == 0 => (Choice::One, self.count.unwrap_or(usual), Box::new(|_| 0)),
            None => (Choice::InTurn, self.count.unwrap_or(classes.min(100)), Box::new(|k| k % classes)),
            Some("all") if classes > 0 => {
                let each = self.count.unwrap_or(usual);
                (Choice::Each(each), each.saturating_mul(classes), Box::new(move |k| k / each))
            }
            Some(class) => {
                let label = model.class_label(class)?;
                (Choice::One, self.count.unwrap_or(usual), Box::new(move |_| label))
            }
        };
        if count > 10_000_000 {
            return Err(Error::config("--count", format!("{count} images in one go"), "give up to 10000000 in all"));
        }
        Ok((choice, (0..count).map(label).collect()))
    }

    fn request(&self, model: &Model, labels: Vec<usize>) -> Result<SampleRequest> {
        let most = if matches!(model.context().device(), Device::Cpu) { 32 } else { 256 };
        // Batches of one size: the last one is computed whole too.
        let batches = labels.len().div_ceil(most);
        let batch = self.batch.unwrap_or(labels.len().div_ceil(batches.max(1)));
        let mut request = SampleRequest { seed: self.seed, batch, ..model.request(labels) };
        if request.batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        let sampling = &mut request.sampling;
        if let Some(sampler) = &self.sampler {
            sampling.sampler = sampler.parse().map_err(by_option)?;
        }
        sampling.num_steps = self.steps.unwrap_or(sampling.num_steps);
        sampling.eta = self.eta.unwrap_or(sampling.eta);
        sampling.guidance = self.guidance.unwrap_or(sampling.guidance);
        sampling.validate(model.info.config.diffusion.num_steps).map_err(by_option)?;
        Ok(request)
    }

    fn draw(&self, model: &Model, output: Output, device: &str, started: Instant) -> Result<()> {
        let (choice, labels) = self.choose(model)?;
        let request = self.request(model, labels)?;
        let names = self.label_names(model, &request);
        let sheet = match output {
            Output::Sheet => Some(self.layout(model, &choice, request.labels.len())?),
            Output::Array => None,
            Output::Folder => {
                self.prepare_folder(&names)?;
                None
            }
        };
        let parameters = self.parameters(model, &request, device);
        let text = |more: &[(&'static str, String)]| -> Vec<(&'static str, String)> {
            let mut text = vec![
                ("Software", format!("engine {}", env!("CARGO_PKG_VERSION"))),
                ("engine.sampling", parameters.to_string()),
            ];
            text.extend_from_slice(more);
            text
        };

        let [height, width, channels] = model.model.image_shape();
        let bar = self.bar(request.labels.len());
        let mut images = Vec::new();
        let mut first = None;
        model
            .sample_each(
                &request,
                |done, total| {
                    bar.set_position((done * request.labels.len() / total) as u64);
                    bar.tick();
                    Ok(())
                },
                |k, values| {
                    first.get_or_insert_with(|| started.elapsed());
                    let image = Image::from_signed(width, height, channels, values)?;
                    if output == Output::Folder {
                        let text = text(&[("engine.image", k.to_string()), ("engine.class", names[k].clone())]);
                        return write_png(self.out.join(file_name(k, &names[k])), &image, &borrow(&text));
                    }
                    images.push(image);
                    Ok(())
                },
            )
            .map_err(by_option)?;
        bar.finish_and_clear();

        match sheet {
            Some(layout) => {
                let labels = captions(&choice, layout, &names);
                write_png(&self.out, &labelled_grid(&images, layout, &labels)?, &borrow(&text(&[])))?;
            }
            None if output == Output::Array => write_npy(&self.out, &images)?,
            None => {}
        }
        if !self.quiet {
            println!("{}", self.summary(&request, first.unwrap_or_default(), started.elapsed()));
        }
        Ok(())
    }

    fn bar(&self, images: usize) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} images, {per_sec}, {eta} left");
        let bar = ProgressBar::new(images as u64);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar
    }

    fn summary(&self, request: &SampleRequest, first: Duration, total: Duration) -> String {
        let (count, sampling) = (request.labels.len(), &request.sampling);
        format!(
            "wrote {}: {count} image{} in {:.2} s, the first after {:.2} s ({} {} steps, guidance {}, seed {})",
            self.out.display(),
            if count == 1 { "" } else { "s" },
            total.as_secs_f64(),
            first.as_secs_f64(),
            sampling.sampler,
            sampling.num_steps,
            sampling.guidance,
            request.seed,
        )
    }

    /// The class of each image, in words; empty where the model has no classes.
    fn label_names(&self, model: &Model, request: &SampleRequest) -> Vec<String> {
        let names = model.class_names();
        let null = model.info.config.model.null_label();
        let name = |&label: &usize| match names.get(label) {
            Some(name) => name.clone(),
            None if Some(label) == null => "none".into(),
            None if model.info.config.model.num_classes() == 0 => String::new(),
            None => label.to_string(),
        };
        request.labels.iter().map(name).collect()
    }

    /// Everything that is needed to draw the same images again.
    fn parameters(&self, model: &Model, request: &SampleRequest, device: &str) -> serde_json::Value {
        let sampling = &request.sampling;
        let precision = model.parameters.precision().to_string();
        serde_json::json!({
            "model": model.path.display().to_string(),
            "weights": model.info.weights,
            "step": model.info.step,
            "sampler": sampling.sampler.name(),
            "steps": sampling.num_steps,
            "eta": sampling.eta,
            "guidance": sampling.guidance,
            "seed": request.seed,
            "count": self.count.unwrap_or(request.labels.len()),
            "class": self.class.clone(),
            "images": request.labels.len(),
            "precision": precision,
            "device": device,
        })
    }

    /// How the sheet is laid out; images are drawn smaller where there are many.
    fn layout(&self, model: &Model, choice: &Choice, count: usize) -> Result<Layout> {
        let columns = match choice {
            Choice::Each(each) => *each,
            Choice::InTurn => count.min(model.class_names().len()).min(20),
            Choice::One => count.min(if count > 100 { 20 } else { 10 }),
        };
        let [height, width, _] = model.model.image_shape();
        let pixels = |scale: usize| {
            let (wide, high) =
                ((width * scale + 4) * columns + 320, (height * scale + 24) * count.div_ceil(columns) + 60);
            wide.saturating_mul(high)
        };
        let most = (96 / width).clamp(1, 4);
        match (1..=most).rev().find(|&scale| pixels(scale) <= MAX_SHEET_PIXELS) {
            Some(scale) => Ok(Layout { columns, scale, ..Layout::default() }),
            None => Err(Error::config(
                "--out",
                format!("{count} images are too many for one sheet"),
                "name a folder or a .npy file, or draw fewer with --count",
            )),
        }
    }

    /// Makes the folder and refuses to write over images in it.
    fn prepare_folder(&self, names: &[String]) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create the folder"))?;
        if self.force {
            return Ok(());
        }
        let paths = names.iter().enumerate().map(|(k, name)| self.out.join(file_name(k, name)));
        match paths.into_iter().find(|path| path.exists()) {
            Some(taken) => Err(Error::file(taken, "exists already", "name another folder, or replace with --force")),
            None => Ok(()),
        }
    }
}

/// The words on a sheet.
fn captions(choice: &Choice, layout: Layout, names: &[String]) -> Labels {
    let title = names.first().cloned().unwrap_or_default();
    match choice {
        Choice::Each(_) => {
            Labels { rows: names.iter().step_by(layout.columns).cloned().collect(), ..Labels::default() }
        }
        Choice::InTurn => Labels { cells: names.to_vec(), ..Labels::default() },
        Choice::One => Labels { title, ..Labels::default() },
    }
}

/// `00012-dog.png`, `00012.png` without a class; what a file's name may not have becomes a dash.
fn file_name(k: usize, class: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '_' | '-') { c } else { '-' };
    let class: String = class.chars().take(40).map(plain).collect();
    if class.is_empty() { format!("{k:05}.png") } else { format!("{k:05}-{class}.png") }
}

fn borrow<'a>(text: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    text.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect()
}

/// Names the option instead of the configuration's key.
fn by_option(error: Error) -> Error {
    match error {
        Error::Config { place, message, mend } => {
            let option = match place.as_str() {
                "sampler" | "sampling.sampler" => "--sampler",
                "sampling.num_steps" => "--steps",
                "sampling.eta" => "--eta",
                "sampling.guidance" => "--guidance",
                other => other,
            };
            Error::Config { place: option.to_string(), message, mend }
        }
        other => other,
    }
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

    #[test]
    fn errors_name_the_option() {
        let error = by_option(Error::config("sampling.num_steps", "0 steps", "give 1"));
        assert_eq!(error.to_string(), "--steps: 0 steps; give 1");
        let error = by_option(Error::config("--class", "x", "y"));
        assert_eq!(error.to_string(), "--class: x; y");
    }
}
