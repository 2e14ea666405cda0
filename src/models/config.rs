//! The `model` section of a configuration: which architecture, and its sizes.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::dit::DitConfig;

/// The `model` section: the architecture's name under `kind`, its sizes beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ModelConfig {
    /// Diffusion transformer with grouped-query attention.
    Dit(DitConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Dit(DitConfig::default())
    }
}

impl ModelConfig {
    /// A default configuration of each kind, in the order in which error messages list them.
    pub fn kinds() -> Vec<Self> {
        vec![Self::Dit(DitConfig::default())]
    }

    /// The name under `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dit(_) => "dit",
        }
    }

    /// Height and width of the images, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Dit(config) => config.image_size,
        }
    }

    /// Colour channels of the images: 1 or 3.
    pub fn image_channels(&self) -> usize {
        match self {
            Self::Dit(config) => config.image_channels,
        }
    }

    /// Number of classes, the null label not counted.
    pub fn num_classes(&self) -> usize {
        match self {
            Self::Dit(config) => config.num_classes,
        }
    }

    /// The label that stands for "no class", where the model has one.
    pub fn null_label(&self) -> Option<usize> {
        match self {
            Self::Dit(config) => config.null_label.then_some(config.num_classes),
        }
    }

    /// Refuses sizes of which no network can be built.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the key and the mend.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Dit(config) => config.validate(),
        }
    }
}
