//! Checkpoints: the state that a run needs to resume with the same bits.
//!
//! One safetensors file: `weights.NAME` for every parameter, including frozen ones and running statistics; `first.NAME`,
//! `second.NAME` and `ema.NAME` for trained ones; `objective.NAME` for the state of the loss; and in the metadata the
//! configuration, the step and the best validation loss. There is no random number state: numbers are functions of the seed and
//! their position.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{StepMetrics, Trainer};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model_file::{Array, ArrayFile, CHECKPOINT_FORMAT, ModelInfo, Storage, arrays, write_arrays, write_model};
use crate::nn::{Init, ParameterKind, Role, Spec};

/// State of a run besides the trainer's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunState {
    /// The lowest validation loss so far and its step.
    pub best: Option<(f64, u64)>,
    /// State of the evaluations.
    pub evaluations: Evaluations,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Identifies the data set; see [`fingerprint`](super::fingerprint).
    pub data: String,
    /// The steps since the last line of the log.
    pub line: Tally,
    /// The steps since the last epoch's end.
    pub epoch: Tally,
}

/// The history of the metric that a run evaluates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluations {
    /// The best value so far and its step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since then.
    pub worse: u64,
}

impl Evaluations {
    /// As bits, so that comparisons after resuming are the same.
    fn write(self) -> Option<String> {
        self.best.map(|(value, step)| format!("{:016x} {step} {}", value.to_bits(), self.worse))
    }

    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [value, step, worse] = words.as_slice() else { return None };
        let value = u64::from_str_radix(value, 16).ok().map(f64::from_bits)?;
        Some(Self { best: Some((value, step.parse().ok()?)), worse: worse.parse().ok()? })
    }
}

/// Sums over steps since the last report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sum of their losses.
    pub loss: f64,
    /// Their number.
    pub steps: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Sums of the loss terms, if any.
    pub terms: Vec<f64>,
}

impl Tally {
    /// Mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.steps.max(1) as f64
    }

    /// Adds a step.
    pub(super) fn add(&mut self, metrics: &StepMetrics) {
        self.loss += metrics.loss;
        self.steps += 1;
        self.terms.resize(metrics.terms.len(), 0.0);
        self.terms.iter_mut().zip(&metrics.terms).for_each(|(sum, term)| *sum += term);
    }

    /// As bits, so that the log continues with the same values.
    fn write(&self) -> String {
        let mut text = format!("{:016x} {} {:016x}", self.loss.to_bits(), self.steps, self.seconds.to_bits());
        for term in &self.terms {
            text += &format!(" {:016x}", term.to_bits());
        }
        text
    }

    fn read(text: &str) -> Option<Self> {
        let bits = |word: &str| u64::from_str_radix(word, 16).ok().map(f64::from_bits);
        let words: Vec<&str> = text.split(' ').collect();
        let [loss, steps, seconds, terms @ ..] = words.as_slice() else { return None };
        let terms = terms.iter().map(|word| bits(word)).collect::<Option<_>>()?;
        Some(Self { loss: bits(loss)?, steps: steps.parse().ok()?, seconds: bits(seconds)?, terms })
    }
}

impl Trainer {
    /// Writes a checkpoint to `path`: to a temporary file first, which is synced and renamed.
    ///
    /// # Errors
    /// [`Error::Io`]; an existing file at `path` is then unchanged.
    pub fn save_checkpoint(&self, path: &Path, progress: &RunState) -> Result<()> {
        let specs = self.parameters().specs();
        let trained = self.parameters().trained_specs();
        let weights = self.parameters().download()?;
        let [first, second, ema] = self.optimizer_state().map(|tensor| tensor.download::<f32>());
        let (first, second, ema) = (first?, second?, ema?);
        let groups = [("first.", &first), ("second.", &second), ("ema.", &ema)];
        let objective = self
            .objective_state()
            .into_iter()
            .map(|(name, state)| Ok((format!("objective.{name}"), state.sizes().to_vec(), state.download::<f32>()?)));
        let objective = objective.collect::<Result<Vec<_>>>()?;
        let mut all = arrays(specs, &weights, "weights.");
        all.extend(groups.iter().flat_map(|(prefix, flat)| arrays(&trained, flat, prefix)));
        all.extend(objective.iter().map(|(name, shape, values)| Array {
            name: name.clone(),
            shape: shape.clone(),
            values,
        }));
        let mut metadata = BTreeMap::from([
            ("format".to_string(), CHECKPOINT_FORMAT.to_string()),
            ("config".to_string(), self.config().to_json()?),
            ("step".to_string(), self.step_count().to_string()),
            ("epochs".to_string(), (self.step_count() / self.steps_per_epoch()).to_string()),
            ("seconds".to_string(), progress.seconds.to_string()),
            ("classes".to_string(), serde_json::Value::from(progress.classes.clone()).to_string()),
            ("data".to_string(), progress.data.clone()),
            ("line".to_string(), progress.line.write()),
            ("epoch".to_string(), progress.epoch.write()),
        ]);
        if let Some((loss, step)) = progress.best {
            // As bits: comparisons after resuming must be the same.
            metadata.insert("best_loss".into(), format!("{:016x}", loss.to_bits()));
            metadata.insert("best_step".into(), step.to_string());
        }
        metadata.extend(progress.evaluations.write().map(|text| ("evaluations".to_string(), text)));
        write_arrays(path, &all, metadata, Storage::F32)
    }

    /// Restores the trainer from the checkpoint at `path`.
    ///
    /// # Errors
    /// [`Error::File`] for a damaged file or one of another model; the trainer is then unchanged.
    pub fn load_checkpoint(&mut self, path: &Path) -> Result<RunState> {
        let file = ArrayFile::open(path, &[CHECKPOINT_FORMAT], "a checkpoint")?;
        let specs = self.parameters().specs();
        let weights = file.flat(specs, self.parameters().flat_len(), "weights.", false)?;
        let (trained, len) = (self.parameters().trained_specs(), self.parameters().trained_len());
        let [first, second, ema] = ["first.", "second.", "ema."].map(|prefix| file.flat(&trained, len, prefix, false));
        let (first, second, ema) = (first?, second?, ema?);
        let objective = self.objective_state().into_iter().map(|(name, state)| {
            let (name, shape) = (name.to_string(), state.shape());
            let (kind, init, role) = (ParameterKind::Vector, Init::Constant(0.0), Role::Buffer);
            let spec = Spec { name, shape, kind, init, role, offset: 0 };
            file.flat(&[spec], shape.len(), "objective.", false)
        });
        let objective = objective.collect::<Result<Vec<_>>>()?;
        let step = file.number("step")?;
        let best = match file.metadata.get("best_loss") {
            Some(bits) => {
                let bits = u64::from_str_radix(bits, 16)
                    .map_err(|_| file.fault("its metadata's `best_loss` cannot be read".into()))?;
                Some((f64::from_bits(bits), file.number("best_step")?))
            }
            None => None,
        };
        let tally = |key: &str| -> Result<Tally> {
            Tally::read(file.entry(key)?).ok_or_else(|| file.fault(format!("its metadata's `{key}` cannot be read")))
        };
        let evaluations = match file.metadata.get("evaluations") {
            Some(text) => Evaluations::read(text)
                .ok_or_else(|| file.fault("its metadata's `evaluations` cannot be read".into()))?,
            None => Evaluations::default(),
        };
        let progress = RunState {
            evaluations,
            data: file.entry("data")?.to_string(),
            line: tally("line")?,
            epoch: tally("epoch")?,
            best,
            seconds: file.entry("seconds")?.parse().unwrap_or(0.0),
            classes: serde_json::from_str(file.entry("classes")?)
                .map_err(|fault| file.fault(format!("its list of classes cannot be read: {fault}")))?,
        };
        self.parameters().set_flat(&weights)?;
        for (tensor, values) in self.optimizer_state().into_iter().zip([&first, &second, &ema]) {
            tensor.upload(values)?;
        }
        for ((_, state), values) in self.objective_state().into_iter().zip(&objective) {
            state.upload(values)?;
        }
        self.set_step_count(step);
        Ok(progress)
    }

    /// Writes the moving average as a model file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_model(&self, path: &Path, classes: &[String]) -> Result<()> {
        let info = ModelInfo {
            config: self.config().clone(),
            weights: "ema".into(),
            step: self.step_count(),
            epoch: self.step_count() / self.steps_per_epoch(),
            classes: classes.to_vec(),
        };
        write_model(path, &info, self.parameters().specs(), &self.averaged().download()?, Storage::F32)
    }
}

/// The configuration in a checkpoint.
///
/// # Errors
/// As [`ArrayFile::open`].
pub fn checkpoint_config(path: &Path) -> Result<Config> {
    ArrayFile::open(path, &[CHECKPOINT_FORMAT], "a checkpoint")?.config()
}

/// The checkpoints of a folder (`step-N.safetensors`), newest first.
///
/// # Errors
/// [`Error::Io`].
pub fn list_checkpoints(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(fault) => return Err(Error::io(folder, "list")(fault)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
        found.extend(step.map(|step: u64| (step, path)));
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}
