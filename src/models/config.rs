//! The `model` section of a configuration: the architecture and its sizes.

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

/// The `model` section: the architecture's name under `kind`, with its sizes.
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
    /// A custom network.
    Custom(CustomConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Dit(DitConfig::default())
    }
}

/// Sizes of a network's inputs, and its number of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Height and width of the images, in pixels.
    pub image_size: ImageSize,
    /// Colour channels of the images: 1 or 3.
    pub image_channels: usize,
    /// Number of classes, without the null label; 0 if the model takes no labels.
    pub num_classes: usize,
    /// An additional label, `num_classes`, that means "no class".
    pub null_label: bool,
}

impl Interface {
    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.image_size.height, self.image_size.width, self.image_channels]
    }

    /// Number of labels: the classes and the null label, if any; 0 for a model without labels.
    pub fn num_labels(&self) -> usize {
        self.num_classes + usize::from(self.null_label)
    }
}

/// The sizes of one architecture, as far as the rest of the engine needs them.
pub trait Architecture {
    /// The name under `kind`.
    fn kind(&self) -> &'static str;

    /// Sizes of its network's inputs.
    fn interface(&self) -> Interface;

    /// Whether it is a classifier instead of a denoiser.
    fn is_classifier(&self) -> bool {
        false
    }

    /// Both sides of an image must be multiples of this many pixels.
    fn size_step(&self) -> usize {
        1
    }

    /// Refuses sizes without a valid network. Afterwards the methods of a configuration do not divide by zero.
    ///
    /// # Errors
    /// [`crate::Error::Config`] with the key and advice.
    fn validate(&self) -> Result<()>;

    /// Builds the network and declares its parameters to `builder`.
    ///
    /// # Errors
    /// As [`Architecture::validate`]; for a custom network, an error that its code is needed.
    fn network(&self, builder: &mut Builder) -> Result<Network>;
}

impl ModelConfig {
    /// A default configuration of each kind, in the order of error messages.
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

    /// Whether it is a classifier instead of a denoiser.
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

    /// Number of classes, without the null label; 0 if the model takes no labels.
    pub fn num_classes(&self) -> usize {
        self.architecture().interface().num_classes
    }

    /// The label that means "no class", if the model has one.
    pub fn null_label(&self) -> Option<usize> {
        let Interface { num_classes, null_label, .. } = self.architecture().interface();
        null_label.then_some(num_classes)
    }

    /// Refuses sizes without a valid network.
    ///
    /// # Errors
    /// [`crate::Error::Config`] with the key and advice.
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
