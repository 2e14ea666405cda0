//! `engine classify`: which class images are of, told by a diffusion model or by a classifier.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::data::{ClassList, of_model};
use super::edit::read_image;
use super::machine::{Machine, MachineOptions};
use super::progress::Drawing;
use crate::config::{ClassifierModel, Digest, Model, ModelInfo};
use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::eval::{Classification, Classifier, Confusion, ErrorSpec, NetworkClassifier, check_labels};
use crate::files::write_atomically;
use crate::ops::host::parallel::install;
use crate::tensor::{Context, DType};

/// Most classes whose confusion is printed; of more it would be wider than a screen.
const MOST_COLUMNS: usize = 20;

/// Tell the class of images by the class under which the model denoises them best.
///
/// Each image is noised to several levels and denoised under each class, with the same noise. A model that was trained as a
/// classifier, as by the preset resnet18-cifar10, is asked for its verdict instead. Without image files, a split of a data set
/// is classified, and the accuracy told.
#[derive(Clone, Debug, Args)]
pub struct ClassifyCommand {
    /// PNG files of the model's size
    #[arg(value_name = "FILE.png", conflicts_with_all = ["data", "split", "count"])]
    images: Vec<PathBuf>,
    /// A model file, a checkpoint, a run folder, or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME")]
    model: PathBuf,
    /// A data set file, a published set's name, or `builtin` [default: the set that the model was trained on]
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// The folder of data sets
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    /// Which of its images [default: test]
    #[arg(long, value_enum)]
    split: Option<SplitChoice>,
    /// Tell these classes apart, on images of them alone [default: all that the model knows]
    #[arg(long, value_name = "A,B,…")]
    classes: Option<ClassList>,
    /// How many images: the first ones of each class, in its share [default: all]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Noise levels [default: 8]
    #[arg(long, value_name = "N")]
    levels: Option<usize>,
    /// Draws of noise at each level [default: 1]
    #[arg(long, value_name = "N")]
    draws: Option<usize>,
    /// Seed of the noise [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Evaluations of the model (an image, a class, a level and a draw; of a classifier an image) that are computed together
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    #[command(flatten)]
    machine: MachineOptions,
    /// Write everything as JSON, with each image's probabilities; `-` prints it instead of the text
    #[arg(long, value_name = "FILE.json|-")]
    out: Option<PathBuf>,
    /// Print nothing
    #[arg(long)]
    quiet: bool,
}

/// `--split`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitChoice {
    /// What the data set's file holds out.
    Test,
    /// What training validated on: the same, unless data.validation_fraction held images out of the training images.
    Validation,
    /// What the model learned from.
    Train,
}

impl SplitChoice {
    fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Train => "training",
        }
    }
}

/// Images in [-1, 1], what they are called, and where known which of the classes each is of.
struct Given {
    names: Vec<String>,
    values: Vec<f32>,
    truth: Option<Vec<usize>>,
    /// The data set's name and the split's.
    data: Option<(String, &'static str)>,
}

/// What tells the classes apart.
enum Judge {
    Diffusion(Model),
    Network(ClassifierModel),
}

impl Judge {
    fn load(path: &Path, context: &Context, machine: &Machine) -> Result<(Self, DType)> {
        let info = Model::inspect(path)?;
        let dtype = machine.dtype(info.config.training.precision);
        let judge = match info.config.model.is_classifier() {
            true => Self::Network(ClassifierModel::load(path, context, dtype)?),
            false => Self::Diffusion(Model::load(path, context, dtype)?),
        };
        Ok((judge, dtype))
    }

    fn info(&self) -> &ModelInfo {
        match self {
            Self::Diffusion(model) => &model.info,
            Self::Network(model) => &model.info,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Diffusion(model) => &model.path,
            Self::Network(model) => &model.path,
        }
    }

    fn digest(&self) -> &Digest {
        match self {
            Self::Diffusion(model) => &model.digest,
            Self::Network(model) => &model.digest,
        }
    }
}

/// How a diffusion model was asked.
struct Asked {
    spec: ErrorSpec,
    times: Vec<f64>,
    weights: Vec<f64>,
}

impl ClassifyCommand {
    /// Classifies, counts, prints.
    ///
    /// # Errors
    /// Those of [`Model::load`], of the data set, of the pictures, of [`Classifier`] and of [`NetworkClassifier`].
    pub fn run(self) -> Result<()> {
        if self.count == Some(0) {
            return Err(Error::config("--count", "0 images", "give 1 or more, or leave it out to take all"));
        }
        let machine = self.machine.open()?;
        install(move || {
            let context = Context::new(machine.device.clone());
            let (judge, dtype) = Judge::load(&self.model, &context, &machine)?;
            self.classify(&judge, &context, dtype)
        })
    }

    fn classify(&self, judge: &Judge, context: &Context, dtype: DType) -> Result<()> {
        let told = !self.quiet && self.out.as_ref().is_none_or(|out| out.as_os_str() != "-");
        if told {
            eprintln!("{} after step {}, activations in {dtype}", judge.path().display(), judge.info().step);
        }
        let labels = self.labels(judge.info())?;
        let names = judge.info().class_names();
        let classes = || labels.iter().map(|&label| names[label].clone()).collect::<Vec<String>>();
        let (given, found, asked, seconds) = match judge {
            Judge::Diffusion(model) => {
                let spec = self.spec();
                let mut classifier = Classifier::new(model, &labels, spec)?;
                let given = self.given(&model.info, &classes())?;
                let asked = Asked { spec, times: classifier.times(), weights: classifier.weights().to_vec() };
                let (found, seconds) = self.timed(&given, |progress| classifier.classify(&given.values, progress))?;
                (given, found, Some(asked), seconds)
            }
            Judge::Network(model) => {
                self.refuse_noise()?;
                check_labels(&labels, &names)?;
                let (network, parameters) = (model.network.clone(), model.parameters.clone());
                let mut classifier = NetworkClassifier::new(context, network, parameters, self.batch)?;
                let given = self.given(&model.info, &classes())?;
                let (found, seconds) = self.timed(&given, |progress| classifier.classify(&given.values, progress))?;
                (given, found.iter().map(|found| found.among(&labels)).collect(), None, seconds)
            }
        };
        let classes = classes();
        let confusion = given.truth.as_ref().map(|truth| {
            let mut confusion = Confusion::new(classes.len());
            truth.iter().zip(&found).for_each(|(truth, found)| confusion.add(*truth, found.prediction));
            confusion
        });
        if let Some(path) = &self.out {
            let all = self.json(judge, asked.as_ref(), &classes, &given, &found, confusion.as_ref());
            let text = format!("{all:#}\n");
            if path.as_os_str() == "-" {
                print!("{text}");
            } else {
                write_atomically(path, text.as_bytes())?;
            }
        }
        if told {
            match &confusion {
                Some(confusion) => print!("{}", measured(confusion, &classes)),
                None => print!("{}", guesses(&given.names, &found, &classes)),
            }
            let images = given.names.len();
            let of = given.data.as_ref().map_or(String::new(), |(name, split)| format!(" of {name} ({split})"));
            let how =
                asked.as_ref().map_or(String::new(), |Asked { spec: ErrorSpec { levels, draws, .. }, .. }| {
                    let evaluations = images * classes.len() * levels * draws;
                    let classes = classes.len();
                    format!(": {classes} classes x {levels} levels x {draws} draws, {evaluations} evaluations")
                });
            let speed = images as f64 / seconds.max(1e-9);
            println!("{images} images{of} in {seconds:.1} s, {speed:.1} images/s{how}");
        }
        Ok(())
    }

    /// How a diffusion model is asked.
    fn spec(&self) -> ErrorSpec {
        ErrorSpec {
            levels: self.levels.unwrap_or(8),
            draws: self.draws.unwrap_or(1),
            seed: self.seed.unwrap_or(0),
            batch: self.batch,
        }
    }

    /// A classifier is shown no noise.
    fn refuse_noise(&self) -> Result<()> {
        let given = [self.levels.map(|_| "--levels"), self.draws.map(|_| "--draws"), self.seed.map(|_| "--seed")];
        match given.into_iter().flatten().next() {
            Some(option) => {
                let message = "the model is a classifier: it looks at images without noise";
                Err(Error::config(option, message, "leave it out"))
            }
            None => Ok(()),
        }
    }

    /// What `classify` finds, with a bar, and the seconds that it took.
    fn timed(
        &self,
        given: &Given,
        classify: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<Vec<Classification>>,
    ) -> Result<(Vec<Classification>, f64)> {
        let started = Instant::now();
        let mut drawing = Drawing::new(self.quiet, false, given.names.len());
        let found = classify(&mut |done, total| drawing.update(done, total))?;
        drawing.end();
        Ok((found, started.elapsed().as_secs_f64()))
    }

    /// The model's labels that are told apart.
    fn labels(&self, info: &ModelInfo) -> Result<Vec<usize>> {
        let known = info.config.model.num_classes();
        match &self.classes {
            Some(ClassList(names)) if known > 0 => {
                names.iter().map(|name| info.class_label(name).map_err(|error| at("--classes", error))).collect()
            }
            _ => Ok((0..known.min(info.class_names().len())).collect()),
        }
    }

    fn given(&self, info: &ModelInfo, classes: &[String]) -> Result<Given> {
        if self.images.is_empty() {
            return self.take(info, classes);
        }
        let mut given = Given { names: Vec::new(), values: Vec::new(), truth: None, data: None };
        for path in &self.images {
            given.values.extend(read_image(path, info.config.model.image_shape())?);
            given.names.push(path.display().to_string());
        }
        Ok(given)
    }

    /// The images of a split of a data set that are of the classes.
    fn take(&self, info: &ModelInfo, classes: &[String]) -> Result<Given> {
        let whole = of_model(info, self.data.as_deref(), "--data", &self.data_dir, self.quiet)?;
        let set = whole.subset(classes).map_err(|error| at("--data", error))?;
        let config = &info.config.data;
        let choice = self.split.unwrap_or(SplitChoice::Test);
        let (set, split) = match (choice, config.validation_fraction) {
            (SplitChoice::Test, _) => (set.clone(), set.held_out()),
            // As training divided it. A file of three splits says so itself.
            (_, Some(fraction)) if set.split_len(Split::Test) == 0 => {
                let divided = set.stratified(fraction, config.split_seed)?;
                (divided, if choice == SplitChoice::Train { Split::Train } else { Split::Validation })
            }
            (SplitChoice::Validation, _) => (set, Split::Validation),
            (SplitChoice::Train, _) => (set, Split::Train),
        };
        if set.split_len(split) == 0 {
            let message = format!("it has no {} images", choice.name());
            return Err(Error::config(format!("data set {:?}", set.name()), message, "give --split train"));
        }
        let all: Vec<usize> = set.split_indices(split).collect();
        let indices = in_proportion(&set, &all, self.count.unwrap_or(usize::MAX));
        let mut given = Given {
            names: Vec::with_capacity(indices.len()),
            values: Vec::with_capacity(indices.len() * set.image_bytes()),
            truth: Some(indices.iter().map(|&index| usize::from(set.labels()[index])).collect()),
            data: Some((set.name().to_string(), choice.name())),
        };
        let first = set.split_indices(split).start;
        for index in indices {
            given.values.extend(set.image(index).iter().map(|value| f32::from(*value) / 127.5 - 1.0));
            given.names.push(format!("{} {}", choice.name(), index - first));
        }
        Ok(given)
    }

    /// Everything that was found. What differs from run to run, as the time taken, is not in it.
    fn json(
        &self,
        judge: &Judge,
        asked: Option<&Asked>,
        classes: &[String],
        given: &Given,
        found: &[Classification],
        confusion: Option<&Confusion>,
    ) -> serde_json::Value {
        let images: Vec<_> = (given.names.iter().zip(found).enumerate())
            .map(|(k, (name, found))| {
                json!({
                    "image": name,
                    "label": given.truth.as_ref().map(|truth| &classes[truth[k]]),
                    "prediction": classes[found.prediction],
                    "probabilities": found.probabilities,
                    // A classifier has logits, which stand here with the other sign.
                    "errors": asked.map(|_| &found.errors),
                    "logits": asked.is_none().then(|| found.errors.iter().map(|error| -error).collect::<Vec<f64>>()),
                })
            })
            .collect();
        json!({
            "accuracy": confusion.map(Confusion::accuracy),
            "interval": confusion.map(Confusion::interval),
            "mean_class_accuracy": confusion.map(Confusion::mean_class_accuracy),
            "confusion": confusion.map(Confusion::counts),
            "classes": classes,
            "settings": {
                "model": judge.path().display().to_string(),
                "model_sha256": judge.digest().sha256,
                "weights": judge.info().weights,
                "step": judge.info().step,
                "data": given.data.as_ref().map(|(name, _)| name),
                "split": given.data.as_ref().map(|(_, split)| split),
                "count": given.names.len(),
                "levels": asked.map(|asked| asked.spec.levels),
                "draws": asked.map(|asked| asked.spec.draws),
                "seed": asked.map(|asked| asked.spec.seed),
                "times": asked.map(|asked| &asked.times),
                "level_weights": asked.map(|asked| &asked.weights),
            },
            "images": images,
        })
    }
}

/// The same error at another place.
fn at(place: &str, error: Error) -> Error {
    match error {
        Error::Config { message, mend, .. } => Error::config(place, message, mend),
        other => other,
    }
}

/// Up to `count` of some images, which rise, as they do: the first ones of each class, in its share.
pub(super) fn in_proportion(set: &Dataset, images: &[usize], count: usize) -> Vec<usize> {
    let class = |index: usize| usize::from(set.labels()[index]);
    let mut totals = vec![0u32; set.class_names().len()];
    images.iter().for_each(|&index| totals[class(index)] += 1);
    let mut seen = vec![0u32; totals.len()];
    let mut order: Vec<(f64, usize)> = images
        .iter()
        .map(|&index| {
            let class = class(index);
            seen[class] += 1;
            ((f64::from(seen[class]) - 0.5) / f64::from(totals[class]), index)
        })
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut indices: Vec<usize> = order.into_iter().take(count).map(|(_, index)| index).collect();
    indices.sort_unstable();
    indices
}

/// Accuracy, and the confusion as a table.
fn measured(confusion: &Confusion, classes: &[String]) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let [low, high] = confusion.interval();
    let mut text = format!(
        "accuracy {} ({} of {}), 95% interval {} to {}; mean of the classes {}\n\n",
        percent(confusion.accuracy()),
        confusion.correct(),
        confusion.total(),
        percent(low),
        percent(high),
        percent(confusion.mean_class_accuracy())
    );
    let whole = classes.len() <= MOST_COLUMNS;
    let width = |text: &str| text.chars().count();
    let first = classes.iter().map(|name| width(name)).max().unwrap_or(0).max(width("is \\ taken for"));
    let digits = confusion.total().to_string().len();
    let columns: Vec<usize> = classes.iter().map(|name| width(name).max(digits)).collect();
    text += &format!("{:first$}", if whole { "is \\ taken for" } else { "class" });
    for (name, columns) in classes.iter().zip(&columns).filter(|_| whole) {
        text += &format!("  {name:>columns$}");
    }
    text += "  accuracy\n";
    for (class, (name, counts)) in classes.iter().zip(confusion.counts()).enumerate() {
        text += &format!("{name:first$}");
        for (count, columns) in counts.iter().zip(&columns).filter(|_| whole) {
            text += &format!("  {count:>columns$}");
        }
        text += &format!("  {:>8}\n", confusion.class_accuracy(class).map_or("-".into(), percent));
    }
    text + "\n"
}

/// What files were taken for.
fn guesses(names: &[String], found: &[Classification], classes: &[String]) -> String {
    let widest = classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("class".len());
    let mut text = format!("{:widest$}  probability  {:widest$}  probability  image\n", "class", "next");
    for (name, found) in names.iter().zip(found) {
        let others = (0..classes.len()).filter(|&class| class != found.prediction);
        let next = others.min_by(|&a, &b| found.errors[a].total_cmp(&found.errors[b])).unwrap_or(found.prediction);
        for class in [found.prediction, next] {
            text += &format!("{:widest$}  {:>10.1}%  ", classes[class], 100.0 * found.probabilities[class]);
        }
        text += &format!("{name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Parts;

    #[test]
    fn each_class_gives_its_share_and_more_images_keep_the_fewer() {
        // 60 of a, then 30 of b, then 10 of c; the last 4 are held out.
        let labels: Vec<u16> = [vec![0; 60], vec![1; 30], vec![2; 14]].concat();
        let set = Dataset::from_parts(Parts {
            name: "sorted".into(),
            height: 1,
            width: 1,
            channels: 1,
            class_names: ["a", "b", "c"].map(String::from).into(),
            images: vec![0; 104],
            labels,
            train: 100,
            ..Parts::default()
        })
        .unwrap();
        let counts =
            |indices: &[usize]| [0, 1, 2].map(|class| indices.iter().filter(|i| set.labels()[**i] == class).count());
        let of = |split, count| in_proportion(&set, &set.split_indices(split).collect::<Vec<_>>(), count);
        let ten = of(Split::Train, 10);
        let twenty = of(Split::Train, 20);
        assert_eq!((counts(&ten), counts(&twenty)), ([6, 3, 1], [12, 6, 2]));
        assert!(ten.iter().all(|index| twenty.contains(index)) && ten.is_sorted());
        assert_eq!(of(Split::Train, 1000), (0..100).collect::<Vec<_>>());
        assert_eq!(of(Split::Validation, 2), [100, 101]);
    }

    #[test]
    fn the_table_is_aligned() {
        let mut confusion = Confusion::new(3);
        for (truth, prediction, count) in [(0, 0, 120), (0, 1, 7), (1, 1, 3), (1, 0, 1)] {
            (0..count).for_each(|_| confusion.add(truth, prediction));
        }
        let classes = ["cat", "Ankle boot", "ü"].map(String::from);
        let text = measured(&confusion, &classes);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("accuracy 93.9% (123 of 131), 95% interval 88.4% to 96.9%; mean of"), "{text}");
        assert_eq!(lines[2], "is \\ taken for  cat  Ankle boot    ü  accuracy");
        assert_eq!(lines[3], "cat             120           7    0     94.5%");
        assert_eq!(lines[4], "Ankle boot        1           3    0     75.0%");
        assert_eq!(lines[5], "ü                 0           0    0         -");
        // More classes than a screen is wide.
        let many: Vec<String> = (0..30).map(|class| format!("class {class}")).collect();
        assert!(measured(&Confusion::new(30), &many).lines().all(|line| line.chars().count() < 80));
    }
}
