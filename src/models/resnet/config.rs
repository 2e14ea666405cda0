//! The sizes of a residual network.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::Resnet;
use crate::image_size::ImageSize;
use crate::models::limits::{colours, sides, within};
use crate::models::{Architecture, Interface, Network};
use crate::nn::Builder;
use crate::{Error, Result};

/// The stem of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// A 3x3 convolution of stride 1, for images of about 32 pixels (He et al. 2016, section 4.2).
    Small,
    /// A 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2, for ImageNet's 224 pixels.
    Imagenet,
}

/// The `model` section of `kind: resnet`: torchvision's `ResNet` of `BasicBlock`s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResnetConfig {
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`.
    pub image_size: ImageSize,
    /// Colour channels: 1 (grey) or 3 (RGB).
    pub image_channels: usize,
    /// Number of classes.
    pub num_classes: usize,
    /// Residual blocks of each layer; 2, 2, 2, 2 is ResNet-18, 3, 4, 6, 3 is ResNet-34. Every layer but the first halves the
    /// image.
    pub blocks: Vec<usize>,
    /// Channels of each layer.
    pub widths: Vec<usize>,
    /// The part before the first layer.
    pub stem: Stem,
}

impl Default for ResnetConfig {
    /// ResNet-18 for CIFAR-10.
    fn default() -> Self {
        Self {
            image_size: 32.into(),
            image_channels: 3,
            num_classes: 10,
            blocks: vec![2, 2, 2, 2],
            widths: vec![64, 128, 256, 512],
            stem: Stem::Small,
        }
    }
}

impl ResnetConfig {
    /// Height and width of the feature map after `layers` layers, in pixels.
    pub fn feature_size(&self, layers: usize) -> ImageSize {
        let halvings = layers.saturating_sub(1) + if self.stem == Stem::Imagenet { 2 } else { 0 };
        (0..halvings).fold(self.image_size, |size, _| size.halved())
    }
}

impl Architecture for ResnetConfig {
    fn kind(&self) -> &'static str {
        "resnet"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label: false }
    }

    fn is_classifier(&self) -> bool {
        true
    }

    fn network(&self, builder: &mut Builder) -> Result<Network> {
        Ok(Network::Classifier(Rc::new(Resnet::new(builder, self)?)))
    }

    fn validate(&self) -> Result<()> {
        let limits = [
            ("image_channels", self.image_channels, 4),
            ("num_classes", self.num_classes, 65_535),
            ("blocks", self.blocks.len(), 8),
        ];
        within(&limits)?;
        sides(self.image_size, 1024)?;
        colours(self.image_channels)?;
        if self.widths.len() != self.blocks.len() {
            let message = format!("{} widths for {} layers of blocks", self.widths.len(), self.blocks.len());
            return Err(Error::config("model.widths", message, "give one width for each layer of model.blocks"));
        }
        for (&blocks, &width) in self.blocks.iter().zip(&self.widths) {
            within(&[("blocks", blocks, 256), ("widths", width, 65_536)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_maps_have_torchvisions_sizes() {
        let imagenet = ResnetConfig { image_size: 224.into(), stem: Stem::Imagenet, ..ResnetConfig::default() };
        assert_eq!([1, 2, 3, 4].map(|layers| imagenet.feature_size(layers)), [56, 28, 14, 7].map(ImageSize::from));
        assert_eq!(
            [1, 2, 3, 4].map(|layers| ResnetConfig::default().feature_size(layers)),
            [32, 16, 8, 4].map(ImageSize::from)
        );
        let fashion = ResnetConfig { image_size: 28.into(), image_channels: 1, ..ResnetConfig::default() };
        assert_eq!([1, 2, 3, 4].map(|layers| fashion.feature_size(layers)), [28, 14, 7, 4].map(ImageSize::from));
        let wide = ResnetConfig { image_size: [18, 32].into(), ..ResnetConfig::default() };
        assert_eq!([1, 4].map(|layers| wide.feature_size(layers).sides()), [[18, 32], [3, 4]]);
    }

    #[test]
    fn each_bad_size_names_its_key() {
        let base = ResnetConfig::default;
        for (key, config) in [
            ("model.image_channels", ResnetConfig { image_channels: 2, ..base() }),
            ("model.num_classes", ResnetConfig { num_classes: 0, ..base() }),
            ("model.blocks", ResnetConfig { blocks: vec![], widths: vec![], ..base() }),
            ("model.blocks", ResnetConfig { blocks: vec![2, 0, 2, 2], ..base() }),
            ("model.widths", ResnetConfig { widths: vec![64], ..base() }),
            ("model.widths", ResnetConfig { widths: vec![64, 128, 0, 512], ..base() }),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(key), "{message}");
        }
    }
}
