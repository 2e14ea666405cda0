//! The sizes and options of a diffusion transformer.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::Dit;
use crate::Result;
use crate::image_size::ImageSize;
use crate::models::limits::{colours, divides, divides_sides, even, labels, sides, within};
use crate::models::{Architecture, Interface, Network};
use crate::nn::Builder;

#[cfg(test)]
mod tests;

/// How time and class condition the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// As one more token before the patches, which attend to it.
    Token,
    /// Shift, scale and gate of every block computed from time and class, gates zero at the start (Peebles & Xie 2023,
    /// "Scalable Diffusion Models with Transformers").
    AdalnZero,
}

/// The `model` section of `kind: dit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DitConfig {
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`.
    pub image_size: ImageSize,
    /// Colour channels: 1 (grey) or 3 (RGB).
    pub image_channels: usize,
    /// Height and width of a patch, in pixels; divides both sides of `image_size`.
    pub patch_size: usize,
    /// Width of a token.
    pub hidden_dim: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Number of query heads; divides `hidden_dim`.
    pub num_heads: usize,
    /// Number of key and value heads, each shared by `num_heads / num_kv_heads` query heads (Ainslie et al. 2023,
    /// "GQA"); divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a block's MLP in multiples of `hidden_dim`.
    pub mlp_ratio: usize,
    /// How time and class condition the blocks.
    pub conditioning: Conditioning,
    /// Normalise queries and keys per head before their product.
    pub qk_norm: bool,
    /// Width of the sinusoidal time embedding; even.
    pub time_embedding_dim: usize,
    /// Hidden width of the two MLPs that map time and class to `hidden_dim`.
    pub condition_hidden_dim: usize,
    /// Width of the class embedding.
    pub class_embedding_dim: usize,
    /// Number of classes, without the null label; 0 for a model that takes no labels.
    pub num_classes: usize,
    /// An additional label, `num_classes`, that means "no class", for classifier-free guidance.
    pub null_label: bool,
}

impl Default for DitConfig {
    fn default() -> Self {
        Self {
            image_size: 32.into(),
            image_channels: 3,
            patch_size: 4,
            hidden_dim: 384,
            depth: 12,
            num_heads: 8,
            num_kv_heads: 2,
            mlp_ratio: 4,
            conditioning: Conditioning::Token,
            qk_norm: false,
            time_embedding_dim: 128,
            condition_hidden_dim: 400,
            class_embedding_dim: 128,
            num_classes: 10,
            null_label: true,
        }
    }
}

impl DitConfig {
    /// Rows and columns of patches.
    pub fn patches(&self) -> [usize; 2] {
        self.image_size.sides().map(|side| side / self.patch_size)
    }

    /// Number of patches of an image.
    pub fn num_patches(&self) -> usize {
        self.patches().into_iter().product()
    }

    /// Tokens before the patches: one under [`Conditioning::Token`], else none.
    pub fn condition_tokens(&self) -> usize {
        usize::from(self.conditioning == Conditioning::Token)
    }

    /// Sequence length: the conditioning token, if any, and the patches.
    pub fn num_tokens(&self) -> usize {
        self.condition_tokens() + self.num_patches()
    }

    /// Values in a patch: `patch_size` × `patch_size` × `image_channels`.
    pub fn patch_dim(&self) -> usize {
        self.patch_size * self.patch_size * self.image_channels
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_dim / self.num_heads
    }
}

impl Architecture for DitConfig {
    fn kind(&self) -> &'static str {
        "dit"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, null_label, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label }
    }

    fn size_step(&self) -> usize {
        self.patch_size
    }

    fn network(&self, builder: &mut Builder) -> Result<Network> {
        Ok(Network::Denoiser(Rc::new(Dit::new(builder, self)?)))
    }

    fn validate(&self) -> Result<()> {
        let limits = [
            ("image_channels", self.image_channels, 4),
            ("patch_size", self.patch_size, 1024),
            ("hidden_dim", self.hidden_dim, 65_536),
            ("depth", self.depth, 1024),
            ("num_heads", self.num_heads, 1024),
            ("num_kv_heads", self.num_kv_heads, 1024),
            ("mlp_ratio", self.mlp_ratio, 64),
            ("time_embedding_dim", self.time_embedding_dim, 65_536),
            ("condition_hidden_dim", self.condition_hidden_dim, 65_536),
            ("class_embedding_dim", self.class_embedding_dim, 65_536),
        ];
        within(&limits)?;
        sides(self.image_size, 1024)?;
        labels(self.num_classes, self.null_label)?;
        colours(self.image_channels)?;
        divides_sides("patch_size", self.patch_size, self.image_size)?;
        divides("num_heads", self.num_heads, "hidden_dim", self.hidden_dim)?;
        divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)?;
        even(self.time_embedding_dim)
    }
}
