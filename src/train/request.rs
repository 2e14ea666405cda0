//! What is asked of training, and what it reports.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{EvaluationLine, Memory, Task, TrainingLine, ValidationLine};
use crate::cluster::Collective;
use crate::config::Config;
use crate::data::{BUILTIN, Dataset, OFFICIAL, ResolveOptions, Split, resolve};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};

/// A run that is to begin or to go on. Make one with [`TrainRequest::new`] or [`TrainRequest::resume`] and change what
/// should be otherwise.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// Names the run folder `runs/NAME` where `out` does not.
    pub name: String,
    /// The configuration of a new run; None goes on with the one in `resume`.
    pub config: Option<Config>,
    /// The task; None trains the network that the configuration's `model` section describes, which a task's own replaces.
    pub task: Option<Arc<dyn Task>>,
    /// The folder of the run that goes on.
    pub resume: Option<PathBuf>,
    /// The folder of a new run.
    pub out: Option<PathBuf>,
    /// The data set itself, all of it; else it is found as the configuration and the next two say. Of either, the
    /// configuration's `data.classes` are kept and its `data.validation_fraction` is held out.
    pub dataset: Option<Dataset>,
    /// A data set file, a published set's name, or `builtin`.
    pub data: Option<String>,
    /// Where data sets lie.
    pub data_dir: PathBuf,
    /// Where to train.
    pub device: DeviceChoice,
    /// The run's length in steps, where it is not what the configuration says. A run that goes on can become longer only
    /// under a constant learning rate.
    pub steps: Option<u64>,
    /// The same in epochs.
    pub epochs: Option<u64>,
    /// Set from elsewhere, it ends the run with a checkpoint and [`Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
    /// Show the progress of a download, where there is one, on standard error.
    pub show_downloads: bool,
    /// The processes that train together: rank 0 by [`train`](super::train()), the others by [`follow`](super::follow()), with the same
    /// request. None is this one alone.
    pub team: Option<Arc<dyn Collective>>,
    /// Capture steps as graphs, which a GPU replays; the bits are the same without.
    pub graphs: bool,
}

impl TrainRequest {
    /// A new run, on the device that is best, in `runs/NAME`.
    pub fn new(name: impl Into<String>, config: Config) -> Self {
        Self {
            name: name.into(),
            config: Some(config),
            task: None,
            resume: None,
            out: None,
            dataset: None,
            data: None,
            data_dir: "data".into(),
            device: DeviceChoice::Auto,
            steps: None,
            epochs: None,
            stop: Arc::default(),
            show_downloads: false,
            team: None,
            graphs: true,
        }
    }

    /// The run in `folder` goes on from its newest sound checkpoint.
    pub fn resume(folder: impl Into<PathBuf>) -> Self {
        let folder: PathBuf = folder.into();
        let name = folder.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
        let mut request = Self::new(name, Config::default());
        (request.config, request.resume) = (None, Some(folder));
        request
    }

    /// The same run of somebody's own task: [`Denoise`](super::Denoise), [`Classify`](super::Classify) or another.
    pub fn with_task(self, task: impl Task + 'static) -> Self {
        Self { task: Some(Arc::new(task)), ..self }
    }

    /// What is trained on, of the data set that `config` names afterwards.
    pub(super) fn find_data(&self, config: &mut Config) -> Result<Dataset> {
        let whole = self.find_set(config)?;
        let data = &config.data;
        whole.arranged(&data.classes, data.validation_fraction, data.split_seed)
    }

    /// The whole data set.
    fn find_set(&self, config: &mut Config) -> Result<Dataset> {
        if let Some(dataset) = &self.dataset {
            name_data(config, dataset.name());
            return Ok(dataset.clone());
        }
        if let Some(data) = &self.data {
            choose_data(config, data)?;
        }
        let explicit = match &config.data.path {
            Some(path) => Some(path.to_str().ok_or_else(|| {
                let message = format!("{} is not UTF-8", path.display());
                Error::config("data.path", message, "rename the file")
            })?),
            None => None,
        };
        let options = ResolveOptions {
            data_dir: &self.data_dir,
            shapes_seed: config.data.shapes_seed,
            shapes_count: config.data.shapes_count,
            quiet: !self.show_downloads,
        };
        let dataset = resolve(&config.data.name, explicit, &options)?;
        if config.data.path.is_some() {
            name_data(config, dataset.name());
        }
        Ok(dataset)
    }
}

/// Lets the configuration say what `--data` said, so that a run that goes on finds the same set.
fn choose_data(config: &mut Config, data: &str) -> Result<()> {
    let named = match data {
        BUILTIN | "shapes" => Some("shapes"),
        _ => OFFICIAL.iter().map(|official| official.name).find(|name| *name == data),
    };
    match named.filter(|_| !Path::new(data).exists()) {
        Some(name) => (config.data.name, config.data.path) = (name.into(), None),
        None => config.data.path = Some(std::path::absolute(data).map_err(Error::io(data, "find"))?),
    }
    Ok(())
}

/// Takes a data set's own name over where it can stand in a configuration.
fn name_data(config: &mut Config, name: &str) {
    let mut data = config.data.clone();
    data.name = name.into();
    if data.validate().is_ok() {
        config.data = data;
    }
}

/// Tells a data set from others: sizes and a checksum of images and labels, so that a run never goes on with another one
/// than it began with.
pub fn fingerprint(dataset: &Dataset) -> String {
    let labels: Vec<u8> = dataset.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
    let images = dataset.runs(0..dataset.len()).fold(0, crc32c::crc32c_append);
    let crc = crc32c::crc32c_append(images, &labels);
    let (height, width, channels) = (dataset.height(), dataset.width(), dataset.channels());
    let [train, validation, test] =
        [Split::Train, Split::Validation, Split::Test].map(|split| dataset.split_len(split));
    let divided = if test > 0 { format!(", divided {train}/{validation}/{test}") } else { String::new() };
    format!("{} images {height}x{width}x{channels}{divided}, checksum {crc:08x}", dataset.len())
}

/// What a run is, told once before its first step.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The whole configuration.
    pub config: Config,
    /// Number of parameters.
    pub parameters: usize,
    /// The data set in words.
    pub data: String,
    /// The device in words, and why it was chosen.
    pub device: String,
    /// The processes that train together, in words; empty for one alone.
    pub ranks: String,
    /// What it needs and what there is.
    pub memory: Memory,
    /// Its length in optimizer steps.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// The step after which it goes on; 0 for a new one.
    pub from: u64,
}

/// What happens during a run. The library itself prints nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The first of all.
    Start(Box<Start>),
    /// Something that a person should know.
    Warning(String),
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
    },
    /// A line went to `metrics.jsonl`.
    Logged(TrainingLine),
    /// An epoch is over.
    Epoch {
        /// Its number, from 1.
        epoch: u64,
        /// Mean loss of its steps.
        loss: f64,
        /// Seconds that they took.
        seconds: f64,
    },
    /// The averaged weights were validated.
    Validated {
        /// The line in `metrics.jsonl`.
        line: ValidationLine,
        /// Whether it is the lowest loss so far.
        best: bool,
    },
    /// A metric of samples was taken.
    Evaluated {
        /// The line in `metrics.jsonl`.
        line: EvaluationLine,
        /// Whether it is the best so far.
        best: bool,
        /// Whether the run ends with it, for no better one came for long.
        last: bool,
    },
    /// Something slow besides training begins: `draws samples`.
    Busy(&'static str),
    /// A file was written: a checkpoint or a picture.
    Wrote(PathBuf),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its folder.
    pub folder: PathBuf,
    /// `model.safetensors` in it: the averaged weights.
    pub model: PathBuf,
    /// `samples/final.png` in it: there where the network is a denoiser or a classifier.
    pub samples: PathBuf,
    /// Optimizer steps done in all.
    pub steps: u64,
    /// Mean training loss of the last line of the log.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation_loss: Option<f64>,
    /// A classifier's last share of right answers in validation.
    pub validation_accuracy: Option<f64>,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
}
