//! Presets, overrides, and the whole configuration of a run.
//!
//! A [`Config`] starts from a preset or a YAML file, takes overrides (`training.batch_size=64`), is validated once, and
//! then travels with the run and inside the model file.
//!
//! ```
//! use engine::config::Config;
//!
//! let mut config = Config::preset("dit-cifar10")?;
//! config.set("training.batch_size=32")?;
//! config.validate()?;
//! assert_eq!(config.training.batch_size, 32);
//!
//! let error = config.set("training.batchsize=32").unwrap_err();
//! assert!(error.to_string().contains("did you mean training.batch_size?"));
//! # Ok::<(), engine::Error>(())
//! ```

mod evaluation;
mod precision;
mod presets;
mod sections;
mod tree;

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use crate::diffusion::{DiffusionConfig, SamplingConfig};
pub use crate::models::ModelConfig;
pub use evaluation::{BestBy, Rule, SampleMetric};
pub use precision::Precision;
pub use presets::{Preset, presets};
pub use sections::{CommunicationDtype, DataConfig, Every, LrSchedule, OptimizerKind, TrainingConfig};

use crate::error::nearest;
use crate::words::counted;
use crate::{Error, Result};
use tree::{Entry, MAX_BYTES, Node, Origin, Overlay};

/// The whole configuration of a run. The default is the preset `dit-cifar10`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The architecture and its sizes.
    pub model: ModelConfig,
    /// The training data.
    pub data: DataConfig,
    /// Noise schedule, prediction, loss weighting.
    pub diffusion: DiffusionConfig,
    /// Length, optimizer, logs and checkpoints.
    pub training: TrainingConfig,
    /// Settings of sampling.
    pub sampling: SamplingConfig,
}

/// The sections of a classifier's configuration.
#[derive(Serialize)]
struct ClassifierSections<'a> {
    model: &'a ModelConfig,
    data: &'a DataConfig,
    training: &'a TrainingConfig,
}

impl<'a> ClassifierSections<'a> {
    fn of(config: &'a Config) -> Self {
        Self { model: &config.model, data: &config.data, training: &config.training }
    }
}

impl Config {
    /// The preset called `name`, from [`presets()`].
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest preset and a list of all.
    pub fn preset(name: &str) -> Result<Self> {
        Self::preset_at(name, "preset")
    }

    fn preset_at(name: &str, place: &str) -> Result<Self> {
        let Some(preset) = presets().iter().find(|preset| preset.name == name) else {
            let names: Vec<&str> = presets().iter().map(|preset| preset.name).collect();
            let all = names.join(", ");
            let advice = match nearest(name, names) {
                Some(near) => format!("did you mean {near}? Known: {all}"),
                None => format!("use one of {all}"),
            };
            let short: String = name.chars().take(60).collect();
            return Err(Error::config(place, format!("no preset is called `{}`", short.escape_debug()), advice));
        };
        let origin = format!("preset {name}");
        let mut overlay = Overlay::new(&Self::default())?;
        overlay.apply_document(Node::parse(preset.yaml, &origin)?, &[], &Origin { place: &origin })?;
        overlay.finish()
    }

    /// Reads a YAML file. `preset: NAME` at its top selects its base, which is [`Config::default`] otherwise; keys that are not in
    /// the file keep their values. The result is not yet validated, because overrides may follow.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Config`] with file, line and key of the first error.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        let place = path.display().to_string();
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let message = format!("byte {} is not UTF-8 text", error.valid_up_to());
            Error::config(&place, message, "give a YAML file; a model or run goes to `model` or `resume`")
        })?;
        Self::from_yaml(text, &place)
    }

    /// Reads YAML as [`Config::from_file`] does; `place` is the file's name in errors.
    ///
    /// # Errors
    /// [`Error::Config`] with place, line and key.
    pub fn from_yaml(text: &str, place: &str) -> Result<Self> {
        let document = Node::parse(text, place)?;
        let base = match &document {
            Node::Mapping(entries) => entries.iter().find(|entry| entry.key == "preset"),
            _ => None,
        };
        let base = match base {
            None => Self::default(),
            Some(Entry { line, value: Node::Scalar(serde_json::Value::String(name)), .. }) => {
                Self::preset_at(name, &format!("{place}:{line}: preset"))?
            }
            Some(entry) => {
                let place = format!("{place}:{}: preset", entry.line);
                return Err(Error::config(place, "is not a name", "write `preset: dit-cifar10`"));
            }
        };
        let mut overlay = Overlay::new(&base)?;
        overlay.apply_document(document, &["preset"], &Origin { place })?;
        overlay.finish()
    }

    /// Applies one override such as `training.batch_size=64`; the value is read as YAML (`null`, `[40, 80]`, `5 epochs`).
    /// Setting one of `training.num_steps` and `training.num_epochs` clears the other.
    ///
    /// # Errors
    /// [`Error::Config`] for text not of the form KEY=VALUE, an unknown key (with the nearest known one), or a value of another
    /// type.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            let short: String = assignment.chars().take(60).collect();
            let message = format!("`{}` is not of the form SECTION.KEY=VALUE", short.escape_debug());
            return Err(Error::config("set", message, "write for example training.batch_size=64"));
        };
        let (key, value) = (key.trim(), value.trim());
        let mut overlay = Overlay::new(self)?;
        let Some((section, name)) = key.split_once('.') else {
            return Err(overlay.unknown(key, format!("set: {}", key.escape_debug())));
        };
        let value = match value {
            "" => Node::Scalar(serde_json::Value::String(String::new())),
            text => Node::parse(text, &format!("set: {}", key.escape_debug()))?,
        };
        overlay.apply_value(section, Entry { key: name.into(), line: 0, value }, &Origin { place: "set" })?;
        *self = overlay.finish()?;
        Ok(())
    }

    /// Refuses an invalid configuration before anything is allocated: first each section alone, then their combinations.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.data.validate()?;
        self.training.validate()?;
        if self.model.is_classifier() {
            self.validate_classifier()?;
        } else {
            self.diffusion.validate()?;
            self.sampling.validate(self.diffusion.num_steps)?;
            if self.training.label_smoothing > 0.0 {
                let message = "is for classifiers, and this model takes noise away";
                return Err(Error::config("training.label_smoothing", message, "set it to 0"));
            }
        }
        let (kept, known) = (self.data.classes.len(), self.model.num_classes());
        // A model without classes takes no labels.
        if kept > 0 && known > 0 && kept != known {
            let message = format!("{} in data.classes, {known} in the model", counted(kept, "class"));
            return Err(Error::config("model.num_classes", message, format!("set it to {kept}")));
        }
        if self.model.null_label().is_none() {
            let message = "needs a label that stands for no class";
            if self.training.label_dropout > 0.0 {
                let advice = match self.model.is_classifier() {
                    true => "set it to 0: a classifier learns from all labels",
                    false => "set model.null_label to true, or this to 0",
                };
                return Err(Error::config("training.label_dropout", message, advice));
            }
            if self.sampling.is_guided() && !self.model.is_classifier() {
                let advice = "set model.null_label to true, or this to 1";
                return Err(Error::config("sampling.guidance", message, advice));
            }
        }
        Ok(())
    }

    /// Settings that a classifier does not use would be ignored silently.
    fn validate_classifier(&self) -> Result<()> {
        for (section, changed) in [
            ("diffusion", self.diffusion != DiffusionConfig::default()),
            ("sampling", self.sampling != SamplingConfig::default()),
        ] {
            if changed {
                let message = "the model is a classifier: it does not denoise, so it cannot draw";
                return Err(Error::config(section, message, "leave this section out"));
            }
        }
        if self.training.sample_every != Every::Never {
            let message = "a classifier draws no samples; its pictures come at the end";
            return Err(Error::config("training.sample_every", message, "set it to never"));
        }
        if self.training.evaluate_every != Every::Never {
            let message = "a classifier draws no samples that a metric could be taken of";
            return Err(Error::config("training.evaluate_every", message, "set it to never"));
        }
        Ok(())
    }

    /// The whole configuration as YAML that [`Config::from_yaml`] reads back equal.
    ///
    /// # Errors
    /// [`Error::Config`] if a path is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        let text = match self.model.is_classifier() {
            true => serde_saphyr::to_string(&ClassifierSections::of(self)),
            false => serde_saphyr::to_string(self),
        };
        text.map_err(|error| {
            Error::config("configuration", format!("cannot be written as YAML: {error}"), "give data.path as UTF-8")
        })
    }

    /// The whole configuration as one line of JSON, for the model file's metadata.
    ///
    /// # Errors
    /// [`Error::Config`] if a path is not UTF-8.
    pub fn to_json(&self) -> Result<String> {
        let text = match self.model.is_classifier() {
            true => serde_json::to_string(&ClassifierSections::of(self)),
            false => serde_json::to_string(self),
        };
        text.map_err(|error| {
            Error::config("configuration", format!("cannot be written as JSON: {error}"), "give data.path as UTF-8")
        })
    }

    /// Reads the output of [`Config::to_json`]. Keys missing in older files take their defaults; unknown ones are an error.
    ///
    /// # Errors
    /// [`Error::Config`] with `place` and the key.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let document = Node::parse_json(text, place)?;
        let mut overlay = Overlay::new(&Self::default())?;
        overlay.apply_document(document, &[], &Origin { place })?;
        overlay.finish()
    }
}

#[cfg(test)]
mod tests;
