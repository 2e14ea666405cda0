//! The `model` section of a configuration: which architecture, and its sizes.

use serde::{Deserialize, Serialize};

use crate::models::dit::DitConfig;
use crate::models::linear_transformer::LinearTransformerConfig;
use crate::models::resnet::ResnetConfig;
use crate::models::resnet_dit::ResnetDitConfig;
use crate::models::unet::UnetConfig;
use crate::{Error, Result};

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
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Dit(DitConfig::default())
    }
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
        ]
    }

    /// The name under `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dit(_) => "dit",
            Self::Unet(_) => "unet",
            Self::LinearTransformer(_) => "linear-transformer",
            Self::Resnet(_) => "resnet",
            Self::ResnetDit(_) => "resnet-dit",
        }
    }

    /// Whether it tells classes apart instead of taking noise away.
    pub fn is_classifier(&self) -> bool {
        matches!(self, Self::Resnet(_))
    }

    /// Height and width of the images, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Dit(config) => config.image_size,
            Self::Unet(config) => config.image_size,
            Self::LinearTransformer(config) => config.image_size,
            Self::Resnet(config) => config.image_size,
            Self::ResnetDit(config) => config.image_size,
        }
    }

    /// Colour channels of the images: 1 or 3.
    pub fn image_channels(&self) -> usize {
        match self {
            Self::Dit(config) => config.image_channels,
            Self::Unet(config) => config.image_channels,
            Self::LinearTransformer(config) => config.image_channels,
            Self::Resnet(config) => config.image_channels,
            Self::ResnetDit(config) => config.image_channels,
        }
    }

    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.image_size(), self.image_size(), self.image_channels()]
    }

    /// Number of classes, the null label not counted; 0 where the model takes no labels.
    pub fn num_classes(&self) -> usize {
        match self {
            Self::Dit(config) => config.num_classes,
            Self::Unet(config) => config.num_classes,
            Self::LinearTransformer(config) => config.num_classes,
            Self::Resnet(config) => config.num_classes,
            Self::ResnetDit(config) => config.num_classes,
        }
    }

    /// The label that stands for "no class", where the model has one.
    pub fn null_label(&self) -> Option<usize> {
        match self {
            Self::Dit(config) => config.null_label.then_some(config.num_classes),
            Self::Unet(config) => config.null_label.then_some(config.num_classes),
            Self::LinearTransformer(config) => config.null_label.then_some(config.num_classes),
            Self::Resnet(_) => None,
            Self::ResnetDit(config) => config.null_label.then_some(config.num_classes),
        }
    }

    /// Refuses sizes of which no network can be built.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the key and the mend.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Dit(config) => config.validate(),
            Self::Unet(config) => config.validate(),
            Self::LinearTransformer(config) => config.validate(),
            Self::Resnet(config) => config.validate(),
            Self::ResnetDit(config) => config.validate(),
        }
    }
}

/// Each value (key, value, most) must lie between 1 and its most.
pub(super) fn within(limits: &[(&str, usize, usize)]) -> Result<()> {
    for &(key, value, most) in limits {
        if !(1..=most).contains(&value) {
            let message = format!("{value} is outside 1…{most}");
            return Err(Error::config(format!("model.{key}"), message, "give a value in that range"));
        }
    }
    Ok(())
}

/// Images are grey or RGB.
pub(super) fn colours(channels: usize) -> Result<()> {
    if matches!(channels, 1 | 3) {
        return Ok(());
    }
    let message = format!("{channels} colour channels");
    Err(Error::config("model.image_channels", message, "give 1 for grey or 3 for RGB"))
}

/// Classes, which may be none, and a null label, which needs some.
pub(super) fn labels(num_classes: usize, null_label: bool) -> Result<()> {
    if num_classes > 65_535 {
        let message = format!("{num_classes} is outside 0…65535");
        return Err(Error::config("model.num_classes", message, "give a value in that range"));
    }
    if null_label && num_classes == 0 {
        let message = "a model without classes has no use for a null label";
        return Err(Error::config("model.null_label", message, "set it to false, or model.num_classes above 0"));
    }
    Ok(())
}

/// The width of the sinusoidal time embedding must be even.
pub(super) fn even(width: usize) -> Result<()> {
    if width.is_multiple_of(2) {
        return Ok(());
    }
    let message = format!("{width} is odd, but sines and cosines come in pairs");
    Err(Error::config("model.time_embedding_dim", message, "give an even width"))
}

/// `divisor` must divide `whole`; the mend lists the divisors next to it.
pub(super) fn divides(key: &str, divisor: usize, whole_key: &str, whole: usize) -> Result<()> {
    if whole.is_multiple_of(divisor) {
        return Ok(());
    }
    let below = (1..divisor.min(whole)).rev().find(|d| whole.is_multiple_of(*d)).unwrap_or(1);
    let above = (divisor + 1..=whole).find(|d| whole.is_multiple_of(*d));
    let mend = match above {
        Some(above) => format!("give {below} or {above}, or change model.{whole_key}"),
        None => format!("give {below}, or change model.{whole_key}"),
    };
    Err(Error::config(format!("model.{key}"), format!("{divisor} does not divide model.{whole_key} = {whole}"), mend))
}
