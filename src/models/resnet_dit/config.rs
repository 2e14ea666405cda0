//! The sizes of a transformer on a residual network's features.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::ResnetDit;
use super::features::BackboneKind;
use crate::image_size::ImageSize;
use crate::models::dit::{Conditioning, DitConfig};
use crate::models::efficientnet::Stages;
use crate::models::limits::{colours, divides, even, labels, sides, within};
use crate::models::resnet::{ResnetConfig, Stem};
use crate::models::{Architecture, Interface, Network};
use crate::nn::Builder;
use crate::{Error, Result};

#[cfg(test)]
mod tests;

/// The `model` section of `kind: resnet-dit`. Tokens, positions and decoder follow from the backbone's feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResnetDitConfig {
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`.
    pub image_size: ImageSize,
    /// Colour channels: 1 (grey) or 3 (RGB).
    pub image_channels: usize,
    /// The source of the backbone's weights for training: `resnet18` (downloaded by `engine fetch resnet18`), a torchvision `.pth`
    /// or `.safetensors` file, `efficientnet-lite0` or its file, or a model file or run folder of `engine train --preset
    /// resnet18-cifar10`. Null in model files, which hold the weights themselves.
    pub backbone: Option<String>,
    /// The kind of backbone; read from its file at the start of training.
    pub backbone_kind: BackboneKind,
    /// Residual blocks of the backbone's layers; read from its file at the start of training.
    pub backbone_blocks: Vec<usize>,
    /// Channels of the backbone's layers; read from its file at the start of training.
    pub backbone_widths: Vec<usize>,
    /// The backbone's stem; ImageNet's is converted to a small one if set here.
    pub backbone_stem: Stem,
    /// Number of its layers that compute the features.
    pub backbone_layers: usize,
    /// Freeze the backbone: no gradients, no optimizer state. Otherwise it is trained with the rest, but its batch norms still use
    /// their running statistics.
    pub freeze_backbone: bool,
    /// Width of a token.
    pub hidden_dim: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Number of attention heads; divides `hidden_dim`.
    pub num_heads: usize,
    /// Width of a block's MLP in multiples of `hidden_dim`.
    pub mlp_ratio: usize,
    /// Width of the sinusoidal time embedding; even.
    pub time_embedding_dim: usize,
    /// Channels of the decoder.
    pub decoder_channels: usize,
    /// Groups of the decoder's group norms; divides `decoder_channels`.
    pub norm_groups: usize,
    /// Number of classes, without the null label; 0 for a model that takes no labels.
    pub num_classes: usize,
    /// An additional label, `num_classes`, that means "no class", for classifier-free guidance.
    pub null_label: bool,
}

impl Default for ResnetDitConfig {
    /// ResNet-18's stem, layer1 and layer2 under four blocks of width 256.
    fn default() -> Self {
        let backbone = ResnetConfig::default();
        Self {
            image_size: 32.into(),
            image_channels: 3,
            backbone: Some("resnet18".into()),
            backbone_kind: BackboneKind::Resnet,
            backbone_blocks: backbone.blocks,
            backbone_widths: backbone.widths,
            backbone_stem: Stem::Small,
            backbone_layers: 2,
            freeze_backbone: true,
            hidden_dim: 256,
            depth: 4,
            num_heads: 4,
            mlp_ratio: 4,
            time_embedding_dim: 256,
            decoder_channels: 64,
            norm_groups: 8,
            num_classes: 0,
            null_label: false,
        }
    }
}

impl ResnetDitConfig {
    /// The whole residual network whose first layers are a backbone of that kind.
    pub fn backbone(&self) -> ResnetConfig {
        ResnetConfig {
            image_size: self.image_size,
            image_channels: self.image_channels,
            num_classes: 1,
            blocks: self.backbone_blocks.clone(),
            widths: self.backbone_widths.clone(),
            stem: self.backbone_stem,
        }
    }

    /// Height and width of the feature map, in pixels: one token each.
    pub fn feature_size(&self) -> ImageSize {
        match self.backbone_kind {
            BackboneKind::Resnet => self.backbone().feature_size(self.backbone_layers),
            BackboneKind::EfficientnetLite0 => {
                Stages::feature_size(self.image_size, self.backbone_layers, self.backbone_stem == Stem::Imagenet)
            }
        }
    }

    /// Channels of the feature map. Call [`ResnetDitConfig::validate`] first.
    pub fn feature_channels(&self) -> usize {
        self.backbone_widths[self.backbone_layers - 1]
    }

    /// The sizes, in pixels, of the decoder's doublings: from the feature map's to the image's.
    pub fn decoder_sizes(&self) -> Vec<ImageSize> {
        let from = self.feature_size();
        let sizes = std::iter::successors(Some(self.image_size), |size| Some(size.halved()));
        let mut sizes: Vec<ImageSize> = sizes.take_while(|&size| size != from).collect();
        sizes.reverse();
        sizes
    }

    /// The transformer over the features: a class token for time and label, and a token per pixel.
    pub(super) fn transformer(&self) -> DitConfig {
        DitConfig {
            image_size: self.feature_size(),
            image_channels: 1,
            patch_size: 1,
            hidden_dim: self.hidden_dim,
            depth: self.depth,
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            conditioning: Conditioning::Token,
            qk_norm: false,
            time_embedding_dim: self.time_embedding_dim,
            condition_hidden_dim: self.hidden_dim,
            class_embedding_dim: self.hidden_dim,
            num_classes: self.num_classes,
            null_label: self.null_label,
        }
    }
}

impl Architecture for ResnetDitConfig {
    fn kind(&self) -> &'static str {
        "resnet-dit"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, null_label, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label }
    }

    fn network(&self, builder: &mut Builder) -> Result<Network> {
        Ok(Network::Denoiser(Rc::new(ResnetDit::new(builder, self)?)))
    }

    fn validate(&self) -> Result<()> {
        let limits = [
            ("image_channels", self.image_channels, 4),
            ("backbone_layers", self.backbone_layers, self.backbone_blocks.len().max(1)),
            ("hidden_dim", self.hidden_dim, 65_536),
            ("depth", self.depth, 1024),
            ("num_heads", self.num_heads, 1024),
            ("mlp_ratio", self.mlp_ratio, 64),
            ("time_embedding_dim", self.time_embedding_dim, 65_536),
            ("decoder_channels", self.decoder_channels, 4096),
            ("norm_groups", self.norm_groups, 4096),
        ];
        within(&limits)?;
        sides(self.image_size, 1024)?;
        colours(self.image_channels)?;
        labels(self.num_classes, self.null_label)?;
        match self.backbone_kind {
            BackboneKind::Resnet => self.backbone().validate().map_err(|error| match error {
                Error::Config { place, message, advice } => {
                    let place = place.replace("model.", "model.backbone_");
                    Error::config(place, message, advice.replace("model.blocks", "model.backbone_blocks"))
                }
                other => other,
            })?,
            BackboneKind::EfficientnetLite0 => self.check_efficientnet()?,
        }
        divides("num_heads", self.num_heads, "hidden_dim", self.hidden_dim)?;
        divides("norm_groups", self.norm_groups, "decoder_channels", self.decoder_channels)?;
        even(self.time_embedding_dim)
    }
}
