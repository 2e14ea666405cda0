//! `engine classify`: finds the class of images, with a diffusion model or a classifier.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::bar::shown;
use super::data::ClassList;
use super::edit_options::FitOptions;
use super::flags;
use super::machine::MachineOptions;
use super::options::DataFolder;
use super::output::JsonPath;
use super::progress::Drawing;
use crate::error::{Error, Result};
use crate::eval::{Asked, Classification, Confusion, Division, ErrorSpec, Images, Judge, Verdicts, data_of, divided};
use crate::model_file::ModelInfo;
use crate::ops::host::parallel::install;
use crate::words::counted;

/// Most classes for which the confusion matrix is printed; with more it would be wider than a screen.
const MOST_COLUMNS: usize = 20;

/// Classify images: the class under which the model denoises an image best.
///
/// Each image is noised to several levels and denoised under each class, with the same noise. A model that was trained as a
/// classifier, as with the preset resnet18-cifar10, classifies directly. Without image files, the command classifies a split of a
/// data set and prints the accuracy.
#[derive(Clone, Debug, Args)]
pub struct ClassifyCommand {
    /// Pictures, or folders of them; fitted to the model's size and channels
    #[arg(value_name = "FILE|FOLDER", conflicts_with_all = ["data", "split", "count"])]
    images: Vec<PathBuf>,
    /// A model file, a checkpoint, a run folder, or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME")]
    model: PathBuf,
    /// A data set file, a published set's name, or `builtin` [default: the set that the model was trained on]
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    #[command(flatten)]
    folder: DataFolder,
    /// The split to classify [default: test]
    #[arg(long, value_enum)]
    split: Option<SplitChoice>,
    /// Choose among these classes, using only their images [default: all classes of the model]
    #[arg(long, value_name = "A,B,…")]
    classes: Option<ClassList>,
    /// Number of images: the first ones of each class, in proportion [default: all]
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
    /// Evaluations of the model computed together (one per image, class, level and draw; for a classifier one per image)
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    #[command(flatten)]
    fit: FitOptions,
    #[command(flatten)]
    machine: MachineOptions,
    /// Write everything as JSON, with each image's probabilities; `-` prints it instead of the text
    #[arg(long, value_name = "FILE.json|-")]
    out: Option<JsonPath>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Print nothing
    #[arg(long)]
    quiet: bool,
}

/// `--split`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitChoice {
    /// The held-out images of the data set file.
    Test,
    /// The validation images of the training run: as `Test`, unless data.validation_fraction held images out of the training images.
    Validation,
    /// The training images of the model.
    Train,
}

impl From<SplitChoice> for Division {
    fn from(choice: SplitChoice) -> Self {
        match choice {
            SplitChoice::Test => Self::Test,
            SplitChoice::Validation => Self::Validation,
            SplitChoice::Train => Self::Train,
        }
    }
}

impl ClassifyCommand {
    /// Classifies, counts, prints.
    ///
    /// # Errors
    /// Those of the model file, the data set, the pictures and the judge.
    pub fn run(self) -> Result<()> {
        if self.count == Some(0) {
            return Err(Error::config("--count", "0 images", "give 1 or more, or leave it out to take all"));
        }
        if let Some(path) = &self.out {
            path.refuse_taken(self.force)?;
        }
        let machine = self.machine.open()?;
        install(move || self.classify(&Judge::new(machine.load(&self.model)?)?))
    }

    fn classify(&self, judge: &Judge) -> Result<()> {
        let told = !self.quiet && !self.out.as_ref().is_some_and(JsonPath::is_printed);
        if told {
            eprintln!(
                "{} after step {}, activations in {}",
                judge.path().display(),
                judge.info().step,
                judge.precision_name()
            );
        }
        let info = judge.info();
        if info.config.model.is_classifier() {
            self.refuse_noise()?;
        }
        let (labels, names) = (self.labels(info)?, info.class_names());
        let mut planned = judge.plan(&labels, self.spec())?;
        // The judge has refused labels without a class, such as the null label.
        let classes = labels.iter().map(|&label| names[label].clone()).collect::<Vec<String>>();
        let images = self.images(info, &classes)?;
        let started = Instant::now();
        let mut drawing = Drawing::new(self.quiet, false, images.names.len());
        let found = planned.classify(&images.values, &mut |done, total| drawing.update(done, total))?;
        drop(drawing);
        let seconds = started.elapsed().as_secs_f64();
        let verdicts = Verdicts::new(classes, images, found, planned.asked());
        if let Some(path) = &self.out {
            path.write(&verdicts.json(judge))?;
        }
        if told {
            print!("{}", said(&verdicts, seconds));
        }
        Ok(())
    }

    /// How a diffusion model is evaluated.
    fn spec(&self) -> ErrorSpec {
        ErrorSpec {
            levels: self.levels.unwrap_or(8),
            draws: self.draws.unwrap_or(1),
            seed: self.seed.unwrap_or(0),
            batch: self.batch,
        }
    }

    /// A classifier takes no noise.
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

    /// The model's labels to choose among.
    fn labels(&self, info: &ModelInfo) -> Result<Vec<usize>> {
        let known = info.config.model.num_classes();
        match &self.classes {
            Some(ClassList(names)) if known > 0 => {
                names.iter().map(|name| info.class_label(name).map_err(|error| at("--classes", error))).collect()
            }
            _ => Ok((0..known.min(info.class_names().len())).collect()),
        }
    }

    /// The pictures, or the images of these classes in a split of a data set.
    fn images(&self, info: &ModelInfo, classes: &[String]) -> Result<Images> {
        if !self.images.is_empty() {
            let (fit, background) = self.fit.chosen();
            let images = Images::of_files(&self.images, info, fit, background)?;
            images.notes.iter().filter(|_| !self.quiet).for_each(|note| eprintln!("note: {}", flags::noted(note)));
            return Ok(images);
        }
        let whole = data_of(info, self.data.as_deref(), "data", &self.folder.data_dir, &shown(self.quiet))?;
        let set = whole.subset(classes).map_err(|error| at("--data", error))?;
        divided(set, info, self.split.unwrap_or(SplitChoice::Test).into(), self.count)
    }
}

/// The error with another place.
fn at(place: &str, error: Error) -> Error {
    match error {
        Error::Config { message, advice, .. } => Error::config(place, message, advice),
        other => other,
    }
}

/// All results as text.
fn said(verdicts: &Verdicts, seconds: f64) -> String {
    let Verdicts { classes, images, found, asked, confusion } = verdicts;
    let text = match confusion {
        Some(confusion) => measured(confusion, classes),
        None => guesses(&images.names, found, classes),
    };
    let count = images.names.len();
    let of = images.data.as_ref().map_or(String::new(), |(name, split)| format!(" of {name} ({split})"));
    let how = asked.as_ref().map_or(String::new(), |Asked { spec: ErrorSpec { levels, draws, .. }, .. }| {
        let evaluations = counted(count * classes.len() * levels * draws, "evaluation");
        let [classes, levels, draws] =
            [(classes.len(), "class"), (*levels, "level"), (*draws, "draw")].map(|(count, noun)| counted(count, noun));
        format!(": {classes} x {levels} x {draws}, {evaluations}")
    });
    let speed = count as f64 / seconds.max(1e-9);
    format!("{text}{}{of} in {seconds:.1} s, {speed:.1} images/s{how}\n", counted(count, "image"))
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

/// The classes found for files.
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
        // More classes than fit on a screen.
        let many: Vec<String> = (0..30).map(|class| format!("class {class}")).collect();
        assert!(measured(&Confusion::new(30), &many).lines().all(|line| line.chars().count() < 80));
    }
}
