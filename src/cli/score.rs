//! `engine score`: how unlike the training data images are.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::data::of_model;
use super::edit::{moves, read_image};
use super::machine::MachineOptions;
use crate::config::Model;
use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::eval::{DenoisingErrors, ErrorSpec, Reference, Score};
use crate::files::write_atomically;
use crate::ops::host::parallel::install;
use crate::tensor::{Context, DType};

/// Score how unlike the training data images are (anomaly detection).
///
/// Each image is noised to several levels and denoised. Its score says by how many standard deviations its error lies above
/// that of reference images: near 0 for images like those, several for strange ones.
#[derive(Clone, Debug, Args)]
pub struct ScoreCommand {
    /// PNG files of the model's size
    #[arg(value_name = "FILE.png", required_unless_present = "data", conflicts_with = "data")]
    images: Vec<PathBuf>,
    /// A model file, a checkpoint, or a run folder: its model.safetensors
    #[arg(long, value_name = "FILE|RUN")]
    model: PathBuf,
    /// Score the validation images of a data set instead: a file, a published set's name, or `builtin`
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// How many of them
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// The data set whose training images are the reference [default: the one that the model was trained on]
    #[arg(long, value_name = "DATA")]
    reference: Option<String>,
    /// How many reference images
    #[arg(long, value_name = "N", default_value_t = 256)]
    reference_count: usize,
    /// The folder of data sets
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    /// Score images as ones of this class, against reference images of it [default: of no class, against all]
    #[arg(long, value_name = "NAME|N")]
    class: Option<String>,
    /// Noise levels
    #[arg(long, value_name = "N", default_value_t = 8)]
    levels: usize,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Images that are computed together
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    #[command(flatten)]
    machine: MachineOptions,
    /// Write everything as JSON; `-` prints it instead of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Print no table
    #[arg(long)]
    quiet: bool,
}

/// Images in [-1, 1] and what they are called.
struct Named {
    names: Vec<String>,
    values: Vec<f32>,
}

impl ScoreCommand {
    /// Measures, compares, prints.
    ///
    /// # Errors
    /// Those of [`Model::load`], of the data set, of the pictures and of [`DenoisingErrors`].
    pub fn run(self) -> Result<()> {
        let machine = self.machine.open()?;
        install(move || {
            let context = Context::new(machine.device.clone());
            let dtype = machine.dtype(Model::inspect(&self.model)?.config.training.precision);
            let model = Model::load(&self.model, &context, dtype)?;
            self.score(&model, dtype)
        })
    }

    fn score(&self, model: &Model, dtype: DType) -> Result<()> {
        if !self.quiet {
            eprintln!("{} after step {}, activations in {dtype}", model.path.display(), model.info.step);
        }
        let class = self.class.as_ref().map(|class| model.class_label(class)).transpose()?;
        let label = class.map_or_else(|| model.default_label(), Ok)?;
        let class = class.filter(|class| *class < model.info.config.model.num_classes());
        let given = self.given(model, class)?;
        let set = self.open(model, self.reference.as_deref())?;
        let data = &model.info.config.data;
        // A set without the classes that were trained on was named on purpose: it is taken as it is.
        let set = match data.classes.iter().all(|class| set.class_label(class).is_ok()) {
            true => set.arranged(&data.classes, data.validation_fraction, data.split_seed)?,
            false => set,
        };
        let reference = self.take(model, &set, Split::Train, class, self.reference_count)?;

        let spec = ErrorSpec { levels: self.levels, draws: 1, seed: self.seed, batch: self.batch };
        let mut measure = DenoisingErrors::new(model, spec)?;
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} evaluations, {eta} left") {
            bar.set_style(style);
        }
        let mut errors =
            |images: &Named| measure.measure(&images.values, &vec![label; images.names.len()], moves(&bar));
        let normal = Reference::new(&errors(&reference)?)?;
        let errors = errors(&given)?;
        bar.finish_and_clear();
        let scores: Vec<Score> = errors.iter().map(|errors| normal.score(errors)).collect();

        let times = measure.times();
        if let Some(path) = &self.json {
            let images: Vec<_> = (given.names.iter().zip(&scores).zip(&errors))
                .map(|((name, score), errors)| {
                    serde_json::json!({
                        "image": name, "score": score.score, "percentile": score.percentile, "errors": errors,
                    })
                })
                .collect();
            let all = serde_json::json!({
                "model": model.path.display().to_string(), "step": model.info.step, "class": self.class,
                "reference": set.name(), "reference_images": reference.names.len(), "seed": self.seed,
                "times": times, "images": images,
            });
            let text = format!("{all:#}\n");
            if path.as_os_str() == "-" {
                print!("{text}");
                return Ok(());
            }
            write_atomically(path, text.as_bytes())?;
        }
        if !self.quiet {
            println!("{:>8}  {:>10}  image", "score", "percentile");
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].score.total_cmp(&scores[*a].score));
            for k in order {
                println!("{:8.2}  {:9.1}%  {}", scores[k].score, 100.0 * scores[k].percentile, given.names[k]);
            }
            let mean = scores.iter().map(|score| score.score).sum::<f64>() / scores.len() as f64;
            println!("mean {mean:.2}, against {} training images of {}", reference.names.len(), set.name());
        }
        Ok(())
    }

    /// The images to score.
    fn given(&self, model: &Model, class: Option<usize>) -> Result<Named> {
        if let Some(data) = &self.data {
            let set = self.open(model, Some(data))?;
            let split = if set.split_len(Split::Validation) > 0 { Split::Validation } else { Split::Train };
            return self.take(model, &set, split, class, self.count);
        }
        let mut named = Named { names: Vec::new(), values: Vec::new() };
        for path in &self.images {
            named.values.extend(read_image(path, model.model.image_shape())?);
            named.names.push(path.display().to_string());
        }
        Ok(named)
    }

    fn open(&self, model: &Model, name: Option<&str>) -> Result<Dataset> {
        of_model(&model.info, name, "--reference", &self.data_dir, self.quiet)
    }

    /// Images of a data set, evenly spread over it, of one class where one is named.
    fn take(&self, model: &Model, set: &Dataset, split: Split, class: Option<usize>, count: usize) -> Result<Named> {
        // By name: a model of some classes numbers them anew.
        let names = model.class_names();
        let same = |class: usize| set.class_names().iter().position(|name| names.get(class) == Some(name));
        let wanted = class.map(|class| same(class).unwrap_or(class));
        let fits = |index: &usize| wanted.is_none_or(|wanted| usize::from(set.labels()[*index]) == wanted);
        let indices: Vec<usize> = set.split_indices(split).filter(fits).collect();
        if indices.is_empty() || count == 0 {
            let of = class.map_or(String::new(), |class| format!(" of class {}", names[class]));
            let message = format!("{} of its images{of} are asked for, and it has {}", count, indices.len());
            return Err(Error::config(format!("data set {:?}", set.name()), message, "give another number or class"));
        }
        let count = count.min(indices.len());
        let mut named = Named { names: Vec::with_capacity(count), values: Vec::new() };
        for k in 0..count {
            let index = indices[k * indices.len() / count];
            named.values.extend(set.image(index).iter().map(|value| f32::from(*value) / 127.5 - 1.0));
            let label = usize::from(set.labels()[index]);
            let class = set.class_names().get(label).cloned().unwrap_or_else(|| label.to_string());
            named.names.push(format!("{} {index} ({class})", set.name()));
        }
        Ok(named)
    }
}
