//! `engine compare`: compares models.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::bar::{Bar, shown};
use super::compare_samples::{SampleTask, joined};
use super::compare_text::{Row, deviations, picture, short_names, tables};
use super::features::FeatureOptions;
use super::flags;
use super::machine::{Machine, MachineOptions};
use super::options::DataFolder;
use super::output::{JsonPath, OutputKind, OutputPath};
use super::sampling::SamplerOptions;
use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};
use crate::eval::evaluation::{Measured as Of, MetricKind};
use crate::eval::{
    Better, CommonLevels, Comparison, DenoisingErrors, Drawn, ErrorSpec, HeldOut, HeldOutSource, Metric, WARM_UP,
    draw_timed, label_of,
};
use crate::image_size::ImageSize;
use crate::ops::host::parallel::{install, threads};
use crate::picture::write_png;
use crate::pipeline::{Model, SampleRequest, even_batch, pictures, png_text};
use crate::tensor::Device;
use crate::words::counted;

/// The PNG keyword for the compared settings, as JSON.
const KEYWORD: &str = "engine.compare";

/// Compare models: pictures of the same seeds side by side, errors by noise level, size and speed.
///
/// All models denoise the same held-out images with the same noise at the same signal-to-noise ratios, so schedules with any
/// number of steps can be compared. The error is the mean squared error of the predicted noise; differences come with a 95 %
/// interval. Sampling options hold for all models; without them each model uses its own settings.
#[derive(Clone, Debug, Args)]
pub struct CompareCommand {
    /// Two or more of: a model file, a checkpoint, a run folder (its model.safetensors), the name of a model that comes with the
    /// engine
    #[arg(value_name = "MODEL", required = true)]
    pub(super) models: Vec<PathBuf>,
    /// A data set file, a published set's name, or `builtin`, whose held-out images are denoised [default: the set that the
    /// first model was trained on]
    #[arg(long, value_name = "DATA")]
    pub(super) data: Option<String>,
    #[command(flatten)]
    pub(super) folder: DataFolder,
    /// Number of images to denoise, in proportion to the classes
    #[arg(long, value_name = "N", default_value_t = 256)]
    images: usize,
    /// Noise levels
    #[arg(long, value_name = "N", default_value_t = 8)]
    levels: usize,
    /// Images that each model draws
    #[arg(long, value_name = "N", default_value_t = 20)]
    count: usize,
    /// Seed of the pictures, and of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    #[command(flatten)]
    sampling: SamplerOptions,
    /// Images computed together [default: up to 32 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N")]
    pub(super) batch: Option<usize>,
    /// Metrics of samples, as for `engine eval` [default: none]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC,…")]
    pub(super) metrics: Vec<MetricKind>,
    /// Samples of each model for the metrics, the classes in turn
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(super) num_samples: usize,
    #[command(flatten)]
    pub(super) features: FeatureOptions,
    #[command(flatten)]
    machine: MachineOptions,
    /// The picture to write
    #[arg(long, value_name = "FILE.png", default_value = "comparison.png")]
    out: PathBuf,
    /// Write everything as JSON; `-` prints it instead of the tables
    #[arg(long, value_name = "FILE.json|-")]
    json: Option<JsonPath>,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Print nothing
    #[arg(long)]
    pub(super) quiet: bool,
}

/// The labels that each model draws, and the captions.
struct Places {
    requests: Vec<SampleRequest>,
    captions: Vec<String>,
    notes: Vec<String>,
}

/// The data for the errors.
#[derive(Clone, Copy)]
struct Task<'a> {
    names: &'a [String],
    levels: &'a CommonLevels,
    held_out: &'a HeldOut,
    /// Each model's labels of the held-out images.
    labels: &'a [Vec<usize>],
    places: &'a Places,
    samples: Option<&'a SampleTask>,
}

/// The errors of each model, by image and level, and its pictures.
#[derive(Default)]
struct Measured {
    errors: Vec<Vec<Vec<f64>>>,
    drawn: Vec<Drawn>,
    /// Metrics of samples.
    metrics: Vec<Vec<Of>>,
}

/// All results.
struct Found {
    comparison: Comparison,
    drawn: Vec<Drawn>,
    notes: Vec<String>,
    /// The extractor and the reference of the sample metrics, for JSON.
    by: Option<Value>,
}

impl CompareCommand {
    /// Loads, denoises, draws, compares, prints.
    ///
    /// # Errors
    /// Those of [`Model::load`], of the data set, of sampling and of writing; [`Error::Config`] for models that cannot be compared
    /// and invalid options, and [`Error::File`] for outputs that exist, before anything is computed.
    pub fn run(self) -> Result<()> {
        self.check()?;
        let machine = self.machine.open()?;
        install(move || self.compare(&machine))
    }

    fn check(&self) -> Result<()> {
        if let [alone] = self.models.as_slice() {
            let message = format!("{} alone cannot be compared", alone.display());
            return Err(Error::config("compare", message, "give two models or more"));
        }
        if self.images < 2 {
            let message = format!(
                "{} {} no standard error",
                counted(self.images, "image"),
                if self.images == 1 { "has" } else { "have" }
            );
            return Err(Error::config("--images", message, "give 2 or more; 256 is usual"));
        }
        if !(1..=10_000).contains(&self.count) {
            return Err(Error::config(
                "--count",
                format!("{} of each model", counted(self.count, "image")),
                "give 1 to 10000",
            ));
        }
        if self.batch.is_some_and(|batch| !(1..=1 << 20).contains(&batch)) {
            let message = format!("{} images in a batch", self.batch.unwrap_or_default());
            return Err(Error::config("--batch", message, "give 1 to 1048576"));
        }
        OutputPath::new(&self.out, &[OutputKind::Png])?.refuse_taken(self.force)?;
        self.json.as_ref().map_or(Ok(()), |path| path.refuse_taken(self.force))
    }

    fn compare(&self, machine: &Machine) -> Result<()> {
        let models = self.models.iter().map(|path| machine.load(path)).collect::<Result<Vec<Model>>>()?;
        let names = short_names(&models.iter().map(|model| model.path.clone()).collect::<Vec<_>>());
        check_sizes(&names, &models)?;
        let schedule = |model: &Model| NoiseSchedule::new(&model.info.config.diffusion);
        let schedules = models.iter().map(schedule).collect::<Result<Vec<_>>>()?;
        let levels = CommonLevels::new(&schedules, self.levels)?;
        let places = self.places(&names, &models)?;
        let source = HeldOutSource {
            data: self.data.as_deref(),
            data_dir: &self.folder.data_dir,
            images: self.images,
            progress: shown(self.quiet || self.json.as_ref().is_some_and(JsonPath::is_printed)),
        };
        let mut held_out = source.held_out(&names, &models)?;
        let labels = labels(&names, &models, &mut held_out)?;
        let mut notes = std::mem::take(&mut held_out.notes);
        notes.extend(places.notes.iter().cloned());
        if levels.len() < self.levels {
            notes.push(format!(
                "{} requested; the models have {} in common",
                counted(self.levels, "noise level"),
                levels.len()
            ));
        }

        let shape = models[0].image_shape();
        let settings = settings_rows(&models, &places.requests);
        let described: Vec<Value> =
            models.iter().zip(&places.requests).map(|(model, request)| settings_json(model, request)).collect();
        let samples = match self.metrics.is_empty() {
            true => None,
            false => Some(SampleTask::new(self, machine)?),
        };
        let parameters = models.iter().map(|model| model.parameters.count() as f64).collect();
        let task = Task {
            names: &names,
            levels: &levels,
            held_out: &held_out,
            labels: &labels,
            places: &places,
            samples: samples.as_ref(),
        };
        let Measured { errors, drawn, metrics } = self.measure(machine, models, task)?;

        let mut comparison = Comparison::new(names, levels, errors)?;
        comparison.add(Metric::of_values("parameters", "", Better::Lower, parameters, None))?;
        let times = drawn.iter().map(|drawn| 1e3 * drawn.seconds_per_image).collect();
        comparison.add(Metric::of_values("sampling", "ms/image", Better::Lower, times, None))?;
        notes.extend(deviations(&comparison));
        let by = samples.as_ref().map(|samples| samples.to_json(self.num_samples));
        if let Some(samples) = &samples {
            joined(&metrics).into_iter().try_for_each(|metric| comparison.add(metric))?;
            notes.extend(samples.notes(self.num_samples, &metrics));
        }
        let found = Found { comparison, drawn, notes, by };
        self.draw(&found, &places, &described, shape)?;
        self.tell(machine, &found, &held_out, &settings, described)
    }

    /// Measures one model at a time; each one's memory is freed before the next is loaded.
    fn measure(&self, machine: &Machine, models: Vec<Model>, task: Task) -> Result<Measured> {
        let Task { names, levels, held_out, labels, places, samples } = task;
        let mut found = Measured::default();
        let bar = Bar::of("evaluations", self.quiet);
        let batch = |count: usize| self.batch.unwrap_or_else(|| even_batch(&machine.device, count));
        for (place, model) in models.into_iter().enumerate() {
            let within = |error: Error| of_model(&names[place], error);
            bar.begin(&format!("{} denoises", names[place]));
            let spec = ErrorSpec { levels: levels.len(), draws: 1, seed: self.seed, batch: batch(labels[place].len()) };
            let mut measure = DenoisingErrors::at_times(&model, &levels.times[place], spec).map_err(within)?;
            found.errors.push(measure.measure_independent(&held_out.values, &labels[place], bar.updates())?);
            drop(measure);
            bar.begin(&format!("{} draws", names[place]));
            let request = SampleRequest { batch: batch(self.count), ..places.requests[place].clone() };
            found.drawn.push(draw_timed(&model, &request, bar.updates()).map_err(within)?);
            if let Some(samples) = samples {
                found.metrics.push(samples.measured(self, &model, &request.sampling).map_err(within)?);
            }
        }
        Ok(found)
    }

    /// The same class in the same place for every model that has classes.
    fn places(&self, names: &[String], models: &[Model]) -> Result<Places> {
        let mut notes = Vec::new();
        let classes_of = |model: &&Model| model.info.config.model.num_classes() > 0;
        let mut known = models.iter().filter(classes_of).peekable();
        let first = known.peek().map_or(Vec::new(), |model| model.class_names());
        let with_classes: Vec<&Model> = known.collect();
        let label = |model: &Model, number: usize| {
            label_of(model, &first[number], number, first.len()).filter(|(_, told)| *told).map(|(label, _)| label)
        };
        let common: Vec<usize> = (0..first.len())
            .filter(|&number| with_classes.iter().all(|model| label(model, number).is_some()))
            .collect();
        if common.is_empty() && !with_classes.is_empty() {
            notes.push("the models have no class in common: all images are unconditional".to_string());
        } else if with_classes.len() < models.len() && !with_classes.is_empty() {
            let bare: Vec<&str> = (names.iter().zip(models))
                .filter(|(_, model)| !classes_of(model))
                .map(|(name, _)| name.as_str())
                .collect();
            notes.push(format!("{} has no classes: its images are unconditional", bare.join(" and ")));
        }
        let place = |k: usize| (!common.is_empty()).then(|| common[k % common.len()]);
        let request = |(name, model): (&String, &Model)| {
            let label = |k: usize| match place(k) {
                Some(number) if classes_of(&model) => Ok(label(model, number).unwrap_or_default()),
                _ => model.default_label().map_err(|error| of_model(name, error)),
            };
            self.request(model, (0..self.count).map(label).collect::<Result<_>>()?)
                .map_err(|error| of_model(name, error))
        };
        let requests = names.iter().zip(models).map(request).collect::<Result<_>>()?;
        let captions = (0..self.count).map(|k| place(k).map_or_else(|| format!("{k}"), |number| first[number].clone()));
        Ok(Places { requests, captions: captions.collect(), notes })
    }

    /// A model's own sampling settings, with the overrides of the command line.
    fn request(&self, model: &Model, labels: Vec<usize>) -> Result<SampleRequest> {
        let mut request = SampleRequest { seed: self.seed, ..model.request(labels) };
        self.sampling.changes()?.apply(&mut request.sampling);
        let sampling = &request.sampling;
        sampling.validate(model.info.config.diffusion.num_steps)?;
        if sampling.is_guided() && model.info.config.model.null_label().is_none() {
            let message = "the model was trained without a null label, so it cannot be guided";
            return Err(Error::config("--guidance", message, "give 1"));
        }
        if request.labels.iter().all(|&label| Some(label) == model.info.config.model.null_label()) {
            request.sampling = request.sampling.unguided();
        }
        Ok(request)
    }

    fn draw(&self, found: &Found, places: &Places, described: &[Value], shape: [usize; 3]) -> Result<()> {
        let block = |((name, drawn), request): ((&String, &Drawn), &SampleRequest)| {
            Ok((format!("{name}: {}", way(request)), pictures(&drawn.images, shape)?))
        };
        let blocks = found.comparison.names().iter().zip(&found.drawn).zip(&places.requests).map(block);
        let sheet = picture(&blocks.collect::<Result<Vec<_>>>()?, &places.captions, shape)?;
        let what = json!({ "models": described, "seed": self.seed, "places": places.captions }).to_string();
        let text = png_text(KEYWORD, what);
        let text: Vec<(&str, &str)> = text.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
        write_png(&self.out, &sheet, &text)
    }

    fn tell(
        &self,
        machine: &Machine,
        found: &Found,
        held_out: &HeldOut,
        settings: &[Row],
        described: Vec<Value>,
    ) -> Result<()> {
        let on_cpu = matches!(machine.device, Device::Cpu);
        let device =
            if on_cpu { format!("{}, {}", machine.note, counted(threads(), "thread")) } else { machine.note.clone() };
        if let Some(path) = &self.json {
            path.write(&self.all(found, held_out, described, &device))?;
            if path.is_printed() {
                return Ok(());
            }
        }
        if self.quiet {
            return Ok(());
        }
        let comparison = &found.comparison;
        println!("{}", tables(comparison, settings));
        println!(
            "ε-error: mean squared error of the predicted noise on {} held-out images of {} ({}), the same noise for all \
             (seed {}); the mean weights all levels equally; ± is one standard error over the images (variation \
             between training runs is not included)",
            comparison.images(),
            held_out.set,
            held_out.split,
            self.seed
        );
        let batches: Vec<String> = found.drawn.iter().map(|drawn| drawn.batch.to_string()).collect();
        let alike = batches.iter().all(|batch| *batch == batches[0]);
        println!(
            "sampling: {} at a time after {WARM_UP} evaluations to warm up, on {device}",
            if alike { batches[0].clone() } else { batches.join(", ") }
        );
        found.notes.iter().for_each(|note| println!("note: {}", flags::noted(note)));
        println!("wrote {}: {} of each model, seed {}", self.out.display(), counted(self.count, "image"), self.seed);
        comparison.verdicts().iter().for_each(|verdict| println!("\n{verdict}"));
        Ok(())
    }

    /// All results. Values that vary between runs, such as times, are only under `timing`.
    fn all(&self, found: &Found, held_out: &HeldOut, models: Vec<Value>, device: &str) -> Value {
        let comparison = &found.comparison;
        let levels = comparison.levels();
        let names = comparison.names();
        let pairs = || (0..names.len()).flat_map(|a| (a + 1..names.len()).map(move |b| (a, b)));
        let differences = |metric: &Metric| -> Vec<Value> {
            let pair = |(a, b): (usize, usize)| {
                metric.difference(a, b).map(|found| json!({ "models": [names[a], names[b]], "difference": found }))
            };
            pairs().filter_map(pair).collect()
        };
        let of_metric = |metric: &Metric| {
            json!({
                "name": metric.name,
                "unit": metric.unit,
                "better": metric.better,
                "values": metric.values,
                "standard_errors": metric.standard_errors,
                "best": names[metric.best()],
                "differences": differences(metric),
            })
        };
        let of_level = |level: usize| {
            let metric = comparison.at_level(level);
            json!({
                "log_snr": levels.log_snr[level],
                "times": levels.times.iter().map(|times| times[level]).collect::<Vec<_>>(),
                "actual_log_snr": levels.actual.iter().map(|actual| actual[level]).collect::<Vec<_>>(),
                "errors": metric.values,
                "standard_errors": metric.standard_errors,
                "differences": differences(&metric),
            })
        };
        let timed = |metric: &&Metric| metric.unit == "ms/image";
        let named = models.into_iter().zip(names).map(|(mut model, name)| {
            model["name"] = json!(name);
            model
        });
        json!({
            "verdicts": comparison.verdicts(),
            "models": named.collect::<Vec<_>>(),
            "metrics": comparison.metrics().iter().filter(|metric| !timed(metric)).map(of_metric).collect::<Vec<_>>(),
            "levels": (0..levels.len()).map(of_level).collect::<Vec<_>>(),
            "settings": {
                "data": held_out.set,
                "split": held_out.split,
                "images": comparison.images(),
                "levels": self.levels,
                "count": self.count,
                "seed": self.seed,
                "picture": self.out.display().to_string(),
                "samples": found.by,
            },
            "notes": found.notes,
            "timing": {
                "device": device,
                "warm_up_evaluations": WARM_UP,
                "batch": found.drawn.iter().map(|drawn| drawn.batch).collect::<Vec<_>>(),
                "batches": found.drawn.iter().map(|drawn| drawn.batches).collect::<Vec<_>>(),
                "metrics": comparison.metrics().iter().filter(timed).map(of_metric).collect::<Vec<_>>(),
            },
        })
    }
}

/// The error with the model's name.
fn of_model(name: &str, error: Error) -> Error {
    match error {
        Error::Config { place, message, advice } => {
            Error::Config { place, message: format!("{name}: {message}"), advice }
        }
        other => other,
    }
}

/// Models of different sizes or channels draw and denoise different images.
fn check_sizes(names: &[String], models: &[Model]) -> Result<()> {
    let shapes: Vec<[usize; 3]> = models.iter().map(|model| model.image_shape()).collect();
    let Some(other) = shapes.iter().position(|shape| *shape != shapes[0]) else { return Ok(()) };
    let what = if shapes[other][..2] == shapes[0][..2] { "channels" } else { "sizes" };
    let told = |place: usize| {
        let [height, width, channels] = shapes[place];
        format!("{} {}", names[place], ImageSize::new(height, width).with_channels(channels))
    };
    let message = format!("the models' images have different {what}: {}, {}", told(0), told(other));
    Err(Error::config("compare", message, "compare models with the same image size and channels"))
}

/// Each model's labels of the images, with a note if a model is not given the class.
fn labels(names: &[String], models: &[Model], held_out: &mut HeldOut) -> Result<Vec<Vec<usize>>> {
    let mut all = Vec::with_capacity(models.len());
    for (name, model) in names.iter().zip(models) {
        let mut untold = 0;
        let classes = &held_out.classes;
        let label = |&class: &usize| {
            let Some((label, told)) = label_of(model, &classes[class], class, classes.len()) else {
                let message = format!("{name} has no class {} and no null label", classes[class]);
                return Err(Error::config("--data", message, "give a data set whose classes all models have"));
            };
            untold += usize::from(!told);
            Ok(label)
        };
        all.push(held_out.labels.iter().map(label).collect::<Result<Vec<_>>>()?);
        // Note it if other models get the class.
        if untold > 0 && models.iter().any(|model| model.info.config.model.num_classes() > 0) {
            let of = held_out.labels.len();
            held_out
                .notes
                .push(format!("{name} denoises {untold} of the {} without their class", counted(of, "image")));
        }
    }
    Ok(all)
}

/// How images are drawn: `ddim 50 steps, guidance 2`.
fn way(request: &SampleRequest) -> String {
    let sampling = &request.sampling;
    let steps = sampling.timesteps.as_ref().map_or(sampling.num_steps, Vec::len);
    let guidance =
        if sampling.is_guided() { format!(", guidance {}", sampling.describe_guidance()) } else { String::new() };
    format!("{} {}{guidance}", sampling.sampler, counted(steps, "step"))
}

/// The name of a unit variant in a configuration.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(String::from)).unwrap_or_default()
}

/// Properties of the models, for the first table.
fn settings_rows(models: &[Model], requests: &[SampleRequest]) -> Vec<Row> {
    let of = |told: &dyn Fn(&Model) -> String| models.iter().map(told).collect::<Vec<_>>();
    vec![
        ("kind", of(&|model| model.info.config.model.kind().into())),
        ("trained", of(&|model| format!("{} ({})", counted(model.info.step, "step"), model.info.weights))),
        (
            "noise",
            of(&|model| {
                let diffusion = &model.info.config.diffusion;
                format!("{}, {}", word(diffusion.schedule), counted(diffusion.num_steps, "step"))
            }),
        ),
        ("predicts", of(&|model| word(model.info.config.diffusion.prediction))),
        ("draws", requests.iter().map(way).collect()),
    ]
}

/// Properties of a model, for JSON.
fn settings_json(model: &Model, request: &SampleRequest) -> Value {
    let (info, diffusion) = (&model.info, &model.info.config.diffusion);
    json!({
        "path": model.path.display().to_string(),
        "sha256": model.digest.sha256,
        "kind": info.config.model.kind(),
        "weights": info.weights,
        "step": info.step,
        "parameters": model.parameters.count(),
        "precision": model.parameters.precision_name(),
        "schedule": diffusion.schedule,
        "noise_steps": diffusion.num_steps,
        "prediction": diffusion.prediction,
        "data": info.config.data,
        "sampling": request.sampling,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        compare: CompareCommand,
    }

    fn fault(arguments: &[&str]) -> String {
        let cli = Cli::try_parse_from(["compare"].iter().chain(arguments)).unwrap();
        cli.compare.check().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_met_is_told_before_anything_is_loaded() {
        for (arguments, told) in [
            (&["a"][..], "compare: a alone cannot be compared; give two models or more"),
            (&["a", "b", "--images", "1"], "--images: 1 image has no standard error"),
            (&["a", "b", "--count", "0"], "--count: 0 images of each model"),
            (&["a", "b", "--count", "10001"], "--count: 10001 images of each model"),
            (&["a", "b", "--batch", "0"], "--batch: 0 images in a batch"),
            (&["a", "b", "--out", "x.gif"], "--out: x.gif is not a PNG file"),
        ] {
            assert!(fault(arguments).starts_with(told), "{arguments:?}: {}", fault(arguments));
        }
        assert!(Cli::try_parse_from(["compare"]).is_err());
    }
}
