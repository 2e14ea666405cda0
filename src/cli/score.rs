//! `engine score`: rates how unlike the training data images are.

use std::path::PathBuf;

use clap::Args;

use super::bar::{Bar, shown};
use super::edit_options::FitOptions;
use super::flags;
use super::machine::MachineOptions;
use super::options::DataFolder;
use super::output::JsonPath;
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::eval::{ErrorSpec, Images, Scores, as_trained, data_of, scored_split, spread};
use crate::ops::host::parallel::install;
use crate::pipeline::Model;
use crate::words::counted;

/// Score how unlike the training data images are (anomaly detection).
///
/// Each image is noised to several levels and denoised. The score is how many standard deviations its error lies above that of
/// reference images: near 0 for similar images, several for unusual ones.
#[derive(Clone, Debug, Args)]
pub struct ScoreCommand {
    /// Pictures, or folders of them; fitted to the model's size and channels
    #[arg(value_name = "FILE|FOLDER", required_unless_present = "data", conflicts_with = "data")]
    images: Vec<PathBuf>,
    /// A model file, a checkpoint, a run folder (its model.safetensors), or the name of a model that comes with the engine
    #[arg(long, value_name = "FILE|RUN|NAME")]
    model: PathBuf,
    /// Score the validation images of a data set instead: a file, a published set's name, or `builtin`
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Number of those images
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// The data set whose training images are the reference [default: the model's training set]
    #[arg(long, value_name = "DATA")]
    reference: Option<String>,
    /// Number of reference images
    #[arg(long, value_name = "N", default_value_t = 256)]
    reference_count: usize,
    #[command(flatten)]
    folder: DataFolder,
    /// Score images as members of this class, against reference images of that class [default: no class, against all]
    #[arg(long, value_name = "NAME|N")]
    class: Option<String>,
    /// Noise levels
    #[arg(long, value_name = "N", default_value_t = 8)]
    levels: usize,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Images computed together
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    #[command(flatten)]
    fit: FitOptions,
    #[command(flatten)]
    machine: MachineOptions,
    /// Write everything as JSON; `-` prints it instead of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<JsonPath>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Print no table
    #[arg(long)]
    quiet: bool,
}

impl ScoreCommand {
    /// Measures, compares, prints.
    ///
    /// # Errors
    /// Those of [`Model::load`], of the data set, of the pictures and of [`Scores::measure`].
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.json {
            path.refuse_taken(self.force)?;
        }
        let machine = self.machine.open()?;
        install(move || self.score(&machine.load(&self.model)?))
    }

    fn score(&self, model: &Model) -> Result<()> {
        let info = &model.info;
        if !self.quiet {
            let precision = model.parameters.precision_name();
            eprintln!("{} after step {}, activations in {precision}", model.path.display(), info.step);
        }
        let class = self.class.as_ref().map(|class| model.class_label(class)).transpose()?;
        let label = class.map_or_else(|| model.default_label(), Ok)?;
        let class = class.filter(|class| *class < info.config.model.num_classes());
        let given = self.given(model, class)?;
        let set = as_trained(self.open(model, self.reference.as_deref())?, info)?;
        let reference = spread(&set, info, Split::Train, class, self.reference_count)?;

        let spec = ErrorSpec { levels: self.levels, draws: 1, seed: self.seed, batch: self.batch };
        let bar = Bar::of("evaluations", self.quiet);
        let scores = Scores::measure(model, spec, label, (given, &reference), bar.updates())?;
        drop(bar);
        self.tell(model, &set, &scores)
    }

    fn tell(&self, model: &Model, set: &Dataset, scores: &Scores) -> Result<()> {
        if let Some(path) = &self.json {
            let all = serde_json::json!({
                "model": model.path.display().to_string(), "step": model.info.step, "class": self.class,
                "reference": set.name(), "reference_images": scores.reference, "seed": self.seed,
                "times": scores.times, "images": scores.json(),
            });
            path.write(&all)?;
            if path.is_printed() {
                return Ok(());
            }
        }
        if !self.quiet {
            println!("{:>8}  {:>10}  image", "score", "percentile");
            for k in scores.order() {
                let score = scores.scores[k];
                println!("{:8.2}  {:9.1}%  {}", score.score, 100.0 * score.percentile, scores.names[k]);
            }
            let (mean, reference) = (scores.mean(), scores.reference);
            println!("mean {mean:.2}, against {} of {}", counted(reference, "training image"), set.name());
        }
        Ok(())
    }

    /// The images to score.
    fn given(&self, model: &Model, class: Option<usize>) -> Result<Images> {
        match &self.data {
            Some(data) => {
                let set = self.open(model, Some(data))?;
                spread(&set, &model.info, scored_split(&set), class, self.count)
            }
            None => {
                let (fit, background) = self.fit.chosen();
                let images = Images::of_files(&self.images, &model.info, fit, background)?;
                images.notes.iter().filter(|_| !self.quiet).for_each(|note| eprintln!("note: {}", flags::noted(note)));
                Ok(images)
            }
        }
    }

    fn open(&self, model: &Model, name: Option<&str>) -> Result<Dataset> {
        data_of(&model.info, name, "reference", &self.folder.data_dir, &shown(self.quiet))
    }
}
