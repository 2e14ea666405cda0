//! The `model` section of a configuration: which architecture, and its sizes.

use serde::{Deserialize, Serialize};

use super::{CustomConfig, Network};
use crate::Result;
use crate::image_size::ImageSize;
use crate::models::dit::DitConfig;
use crate::models::linear_transformer::LinearTransformerConfig;
use crate::models::resnet::ResnetConfig;
use crate::models::resnet_dit::ResnetDitConfig;
use crate::models::unet::UnetConfig;
use crate::nn::Builder;

/// The `model` section: the architecture's name under `kind`, its sizes beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ModelConfig {
    /// Diffusion transformer with grouped-query attention.
    Dit(DitConfig),
    /// U-Net of residual blocks and attention.
    Unet(UnetConfig),
    /// Transformer of linear attention with a residual decoder.
    LinearTransformer(LinearTransformerConfig),
    /// Residual network: a classifier.
    Resnet(ResnetConfig),
    /// Transformer on the features of a pretrained residual network.
    ResnetDit(ResnetDitConfig),
    /// Somebody's own network.
    Custom(CustomConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Dit(DitConfig::default())
    }
}

/// Sizes of a network's inputs, and the number of classes it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Height and width of the images, in pixels.
    pub image_size: ImageSize,
    /// Colour channels of the images: 1 or 3.
    pub image_channels: usize,
    /// Number of classes, the null label not counted; 0 where the model takes no labels.
    pub num_classes: usize,
    /// One more label, `num_classes`, that stands for "no class".
    pub null_label: bool,
}

impl Interface {
    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.image_size.height, self.image_size.width, self.image_channels]
    }

    /// Labels: the classes and, where there is one, the null label; 0 for a model without labels.
    pub fn num_labels(&self) -> usize {
        self.num_classes + usize::from(self.null_label)
    }
}

/// The sizes of one architecture: all that the rest of the engine asks of a `model` section.
pub trait Architecture {
    /// The name under `kind`.
    fn kind(&self) -> &'static str;

    /// Sizes of its network's inputs.
    fn interface(&self) -> Interface;

    /// Whether it tells classes apart instead of taking noise away.
    fn is_classifier(&self) -> bool {
        false
    }

    /// Both sides of an image are multiples of this many pixels.
    fn size_step(&self) -> usize {
        1
    }

    /// Refuses sizes of which no network can be built. The methods of a configuration do not divide by zero after this.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the key and the mend.
    fn validate(&self) -> Result<()>;

    /// The network, its parameters declared to `builder`.
    ///
    /// # Errors
    /// As [`Architecture::validate`]; for a network whose code is no part of the engine, that it is needed.
    fn network(&self, builder: &mut Builder) -> Result<Network>;
}

impl ModelConfig {
    /// A default configuration of each kind, in the order in which error messages list them.
    pub fn kinds() -> Vec<Self> {
        vec![
            Self::Dit(DitConfig::default()),
            Self::Unet(UnetConfig::default()),
            Self::LinearTransformer(LinearTransformerConfig::default()),
            Self::Resnet(ResnetConfig::default()),
            Self::ResnetDit(ResnetDitConfig::default()),
            Self::Custom(CustomConfig::default()),
        ]
    }

    /// The architecture's sizes.
    pub fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Dit(config) => config,
            Self::Unet(config) => config,
            Self::LinearTransformer(config) => config,
            Self::Resnet(config) => config,
            Self::ResnetDit(config) => config,
            Self::Custom(config) => config,
        }
    }

    /// The name under `kind`.
    pub fn kind(&self) -> &'static str {
        self.architecture().kind()
    }

    /// Whether it tells classes apart instead of taking noise away.
    pub fn is_classifier(&self) -> bool {
        self.architecture().is_classifier()
    }

    /// Height and width of the images, in pixels.
    pub fn image_size(&self) -> ImageSize {
        self.architecture().interface().image_size
    }

    /// Colour channels of the images: 1 or 3.
    pub fn image_channels(&self) -> usize {
        self.architecture().interface().image_channels
    }

    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        self.architecture().interface().image_shape()
    }

    /// Number of classes, the null label not counted; 0 where the model takes no labels.
    pub fn num_classes(&self) -> usize {
        self.architecture().interface().num_classes
    }

    /// The label that stands for "no class", where the model has one.
    pub fn null_label(&self) -> Option<usize> {
        let Interface { num_classes, null_label, .. } = self.architecture().interface();
        null_label.then_some(num_classes)
    }

    /// Refuses sizes of which no network can be built.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the key and the mend.
    pub fn validate(&self) -> Result<()> {
        self.architecture().validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_under_its_name() {
        for config in ModelConfig::kinds() {
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(written["kind"], config.kind());
            assert_eq!(serde_json::from_value::<ModelConfig>(written).unwrap(), config);
        }
    }
}
