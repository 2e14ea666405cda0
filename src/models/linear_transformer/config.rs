//! The sizes of a linear-attention transformer.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::LinearTransformer;
use crate::image_size::ImageSize;
use crate::models::limits::{colours, divides, divides_sides, even, sides, within};
use crate::models::{Architecture, Interface, Network};
use crate::nn::Builder;
use crate::{Error, Result};

/// The `model` section of `kind: linear-transformer`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearTransformerConfig {
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`.
    pub image_size: ImageSize,
    /// Colour channels: 1 (grey) or 3 (RGB).
    pub image_channels: usize,
    /// Height and width of a patch, in pixels; divides both sides of `image_size`.
    pub patch_size: usize,
    /// Width of a token; a multiple of 4, for the sines and cosines of rows and columns.
    pub hidden_dim: usize,
    /// Number of encoder layers.
    pub depth: usize,
    /// Number of heads; divides `hidden_dim`.
    pub num_heads: usize,
    /// Width of a layer's MLP, and of the decoder's, in multiples of `hidden_dim`.
    pub mlp_ratio: usize,
    /// Width of the sinusoidal noise-level embedding; even.
    pub time_embedding_dim: usize,
    /// Width of the condition: the sum of noise-level and label embedding.
    pub condition_dim: usize,
    /// Channels of the convolutional refinement at full resolution.
    pub refine_channels: usize,
    /// Groups of the refinement's group norms; divides `refine_channels`.
    pub norm_groups: usize,
    /// Number of classes, without the null label.
    pub num_classes: usize,
    /// An additional label, `num_classes`, that means "no class", for classifier-free guidance.
    pub null_label: bool,
}

impl Default for LinearTransformerConfig {
    fn default() -> Self {
        Self {
            image_size: 32.into(),
            image_channels: 3,
            patch_size: 4,
            hidden_dim: 256,
            depth: 6,
            num_heads: 8,
            mlp_ratio: 4,
            time_embedding_dim: 128,
            condition_dim: 256,
            refine_channels: 32,
            norm_groups: 8,
            num_classes: 2,
            null_label: true,
        }
    }
}

impl LinearTransformerConfig {
    /// Rows and columns of patches.
    pub fn patches(&self) -> [usize; 2] {
        self.image_size.sides().map(|side| side / self.patch_size)
    }

    /// Number of tokens, one per patch.
    pub fn num_tokens(&self) -> usize {
        self.patches().into_iter().product()
    }

    /// Values in a patch: `patch_size` × `patch_size` × `image_channels`.
    pub fn patch_dim(&self) -> usize {
        self.patch_size * self.patch_size * self.image_channels
    }
}

impl Architecture for LinearTransformerConfig {
    fn kind(&self) -> &'static str {
        "linear-transformer"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, null_label, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label }
    }

    fn size_step(&self) -> usize {
        self.patch_size
    }

    fn network(&self, builder: &mut Builder) -> Result<Network> {
        Ok(Network::Denoiser(Rc::new(LinearTransformer::new(builder, self)?)))
    }

    fn validate(&self) -> Result<()> {
        let limits = [
            ("image_channels", self.image_channels, 4),
            ("patch_size", self.patch_size, 1024),
            ("hidden_dim", self.hidden_dim, 65_536),
            ("depth", self.depth, 1024),
            ("num_heads", self.num_heads, 1024),
            ("mlp_ratio", self.mlp_ratio, 64),
            ("time_embedding_dim", self.time_embedding_dim, 65_536),
            ("condition_dim", self.condition_dim, 65_536),
            ("refine_channels", self.refine_channels, 65_536),
            ("norm_groups", self.norm_groups, 65_536),
            ("num_classes", self.num_classes, 65_535),
        ];
        within(&limits)?;
        sides(self.image_size, 1024)?;
        colours(self.image_channels)?;
        divides_sides("patch_size", self.patch_size, self.image_size)?;
        divides("num_heads", self.num_heads, "hidden_dim", self.hidden_dim)?;
        divides("norm_groups", self.norm_groups, "refine_channels", self.refine_channels)?;
        if !self.hidden_dim.is_multiple_of(4) {
            let message = format!("{} is not a multiple of 4, as two-dimensional positions require", self.hidden_dim);
            let advice = format!("give {}", self.hidden_dim.next_multiple_of(4));
            return Err(Error::config("model.hidden_dim", message, advice));
        }
        even(self.time_embedding_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_the_pets_transformer() {
        let config = LinearTransformerConfig::default();
        config.validate().unwrap();
        assert_eq!((config.num_tokens(), config.patch_dim(), config.interface().num_labels()), (64, 48, 3));
    }

    #[test]
    fn each_bad_size_names_its_key_and_advice() {
        let base = LinearTransformerConfig::default;
        let cases: [(&str, &str, LinearTransformerConfig); 6] = [
            ("model.image_channels", "1 for grey", LinearTransformerConfig { image_channels: 2, ..base() }),
            ("model.patch_size", "give 4 or 8", LinearTransformerConfig { patch_size: 5, ..base() }),
            ("model.num_heads", "give 4 or 8", LinearTransformerConfig { num_heads: 7, ..base() }),
            ("model.norm_groups", "give 4 or 8", LinearTransformerConfig { norm_groups: 5, ..base() }),
            ("model.hidden_dim", "give 56", LinearTransformerConfig { hidden_dim: 54, num_heads: 6, ..base() }),
            ("model.time_embedding_dim", "even", LinearTransformerConfig { time_embedding_dim: 127, ..base() }),
        ];
        for (key, advice, config) in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(key) && message.contains(advice), "{message}");
        }
    }
}
