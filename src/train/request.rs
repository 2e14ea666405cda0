//! The request for a training run, and its events.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{EvaluationLine, Memory, Task, TrainingLine, ValidationLine};
use crate::cluster::Collective;
use crate::config::Config;
use crate::data::{BUILTIN, Dataset, OFFICIAL, ResolveOptions, Split, resolve};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::progress::Reporter;

/// A run to start or resume. Create one with [`TrainRequest::new`] or [`TrainRequest::resume`] and change its fields.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// Names the run folder `runs/NAME` if `out` is not given.
    pub name: String,
    /// The configuration of a new run; None resumes with the one in `resume`.
    pub config: Option<Config>,
    /// The task; None trains the network of the configuration's `model` section, which a task replaces with its own.
    pub task: Option<Arc<dyn Task>>,
    /// The folder of the run to resume.
    pub resume: Option<PathBuf>,
    /// The folder of a new run.
    pub out: Option<PathBuf>,
    /// The whole data set; else it is found by the configuration and the next two fields. In any case the configuration's
    /// `data.classes` are kept and its `data.validation_fraction` is held out.
    pub dataset: Option<Dataset>,
    /// A data set file, a published set's name, or `builtin`.
    pub data: Option<String>,
    /// The folder of data sets.
    pub data_dir: PathBuf,
    /// The device.
    pub device: DeviceChoice,
    /// The run's length in steps, if different from the configuration. A resumed run can only become longer with a constant
    /// learning rate.
    pub steps: Option<u64>,
    /// The length in epochs.
    pub epochs: Option<u64>,
    /// Setting it ends the run with a checkpoint and [`Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
    /// The receiver of the progress of downloads.
    pub progress: Reporter,
    /// The processes that train together: rank 0 with [`train`](super::train()), the others with [`follow`](super::follow()) and
    /// the same request. None for a single process.
    pub team: Option<Arc<dyn Collective>>,
    /// Capture steps as graphs, which a GPU replays; without it the bits are the same.
    pub graphs: bool,
}

impl TrainRequest {
    /// A new run, on the best device, in `runs/NAME`.
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
            progress: Reporter::default(),
            team: None,
            graphs: true,
        }
    }

    /// Resumes the run in `folder` from its newest intact checkpoint.
    pub fn resume(folder: impl Into<PathBuf>) -> Self {
        let folder: PathBuf = folder.into();
        let name = folder.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
        let mut request = Self::new(name, Config::default());
        (request.config, request.resume) = (None, Some(folder));
        request
    }

    /// The request with a task of your own: [`Denoise`](super::Denoise), [`Classify`](super::Classify) or another.
    pub fn with_task(self, task: impl Task + 'static) -> Self {
        Self { task: Some(Arc::new(task)), ..self }
    }

    /// The training data; `config` refers to the data set afterwards.
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
            progress: self.progress.clone(),
            trains: true,
        };
        let dataset = resolve(&config.data.name, explicit, &options)?;
        if config.data.path.is_some() {
            name_data(config, dataset.name());
        }
        Ok(dataset)
    }
}

/// Records `--data` in the configuration, so that a resumed run finds the set.
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

/// Takes a data set's name if it is valid in a configuration.
fn name_data(config: &mut Config, name: &str) {
    let mut data = config.data.clone();
    data.name = name.into();
    if data.validate().is_ok() {
        config.data = data;
    }
}

/// Identifies a data set by its sizes and a checksum of images and labels, so that a run is never resumed with another one.
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

/// Description of a run, reported once before its first step.
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
    /// The data set as text.
    pub data: String,
    /// The device as text, and why it was chosen.
    pub device: String,
    /// The processes that train together, as text; empty for a single one.
    pub ranks: String,
    /// Required and available memory.
    pub memory: Memory,
    /// Its length in optimizer steps.
    pub steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// The step from which it resumes; 0 for a new one.
    pub from: u64,
}

/// The events of a run. The library itself prints nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Always the first event.
    Start(Box<Start>),
    /// A message for the user.
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
        /// Whether it is the lowest loss so far, by which the best model is kept.
        best: bool,
    },
    /// A metric of samples was evaluated.
    Evaluated {
        /// The line in `metrics.jsonl`.
        line: EvaluationLine,
        /// Whether it is the best so far.
        best: bool,
        /// Whether the run ends because there was no improvement for long.
        last: bool,
    },
    /// The resumed run has ended before, and its files are there: nothing is left to do.
    Complete,
    /// Slow work other than training begins: `draws samples`.
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
    /// `samples/final.png` in it, if the network is a denoiser or a classifier.
    pub samples: PathBuf,
    /// Total optimizer steps.
    pub steps: u64,
    /// Mean training loss of the last line of the log.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation_loss: Option<f64>,
    /// A classifier's last validation accuracy.
    pub validation_accuracy: Option<f64>,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
}
