//! A model file's metadata.

use std::path::Path;

use super::{Storage, arrays, write_arrays};
use crate::config::{Config, ModelConfig};
use crate::error::{Error, Result};
use crate::names::{find_class, unknown_class};
use crate::nn::Spec;

/// The format of model files.
pub(super) const FORMAT: &str = "engine-model-1";
/// The format of checkpoints.
pub const CHECKPOINT_FORMAT: &str = "engine-checkpoint-1";

/// The metadata of a model file.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The configuration of its training.
    pub config: Config,
    /// `ema` (the moving average) or `raw`.
    pub weights: String,
    /// Optimizer steps of its training.
    pub step: u64,
    /// Epochs of its training.
    pub epoch: u64,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
}

/// Which weights of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Their exponential moving average.
    Ema,
    /// The raw weights of the optimizer.
    Raw,
}

impl Weights {
    /// Its name in model files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ema => "ema",
            Self::Raw => "raw",
        }
    }

    /// The prefix of parameter names in a checkpoint.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Ema => "ema.",
            Self::Raw => "weights.",
        }
    }
}

impl ModelInfo {
    /// The names of the classes by label; numbers if the file has no names. None if the model takes no labels.
    pub fn class_names(&self) -> Vec<String> {
        let count = self.config.model.num_classes();
        match self.classes.len() {
            0 => (0..count).map(|label| label.to_string()).collect(),
            named => self.classes[..named.min(count)].to_vec(),
        }
    }

    /// The label of a class given by name, by number, or as `none` for the null label.
    ///
    /// Case matters only if the model's names differ by case alone.
    ///
    /// # Errors
    /// [`Error::Config`] that gives the nearest class and lists all, or says that the model has none.
    pub fn class_label(&self, text: &str) -> Result<usize> {
        let names = self.class_names();
        // A model with more labels than trained classes does not know the other labels.
        let count = names.len();
        if count == 0 {
            return Err(Error::config("class", "the model was trained without classes", "leave it out"));
        }
        match (text, self.config.model.null_label()) {
            ("none", Some(null)) if !names.iter().any(|name| name == text) => Ok(null),
            _ => {
                find_class(&names, count, text).ok_or_else(|| unknown_class("class", "the model", &names, count, text))
            }
        }
    }

    /// The label of unconditional images.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has several classes and no null label.
    pub fn default_label(&self) -> Result<usize> {
        match (self.config.model.null_label(), self.config.model.num_classes()) {
            (Some(null), _) => Ok(null),
            (None, 0 | 1) => Ok(0),
            (None, _) => {
                let advice = format!("use one of {}", self.class_names().join(", "));
                Err(Error::config("class", "the model draws nothing without a class", advice))
            }
        }
    }

    /// The class of each label as text: its name, `none` for the null label, empty if the model has no classes.
    pub fn label_names(&self, labels: &[usize]) -> Vec<String> {
        let (names, model) = (self.class_names(), &self.config.model);
        let name = |&label: &usize| match names.get(label) {
            Some(name) => name.clone(),
            None if Some(label) == model.null_label() => "none".into(),
            None if model.num_classes() == 0 => String::new(),
            None => label.to_string(),
        };
        labels.iter().map(name).collect()
    }
}

/// Writes a model file; `flat` holds the weights in the order of `specs`.
///
/// # Errors
/// As [`write_arrays`].
pub fn write_model(path: &Path, info: &ModelInfo, specs: &[Spec], flat: &[f32], storage: Storage) -> Result<()> {
    // Model files are shared; the path of the data on the original machine is private.
    let mut config = info.config.clone();
    config.data.path = None;
    if let ModelConfig::ResnetDit(model) = &mut config.model {
        model.backbone = None;
    }
    let entries = [
        ("format", FORMAT.to_string()),
        ("config", config.to_json()?),
        ("weights", info.weights.clone()),
        ("step", info.step.to_string()),
        ("epoch", info.epoch.to_string()),
        ("classes", serde_json::Value::from(info.classes.clone()).to_string()),
    ];
    let metadata = entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    write_arrays(path, &arrays(specs, flat, ""), metadata, storage)
}
