//! The sizes and options of a U-Net.

use std::cmp::Ordering;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::Unet;
use crate::image_size::ImageSize;
use crate::models::limits::{colours, divides, even, labels, sides, within};
use crate::models::{Architecture, Interface, Network};
use crate::nn::Builder;
use crate::{Error, Result};

#[cfg(test)]
mod tests;

/// How the time embedding (plus the class embedding) conditions the residual blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeConditioning {
    /// Added to every pixel after a block's first convolution (Ho et al. 2020).
    Add,
    /// Scale and shift of a block's second group norm (Nichol & Dhariwal 2021).
    ScaleShift,
}

/// Which activations of the encoder are skips to the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skips {
    /// Those of the first convolution, every block and every downsampling; a level has one more block in the decoder than in the
    /// encoder, and each takes one skip (Ho et al. 2020).
    Block,
    /// One per level, taken by the first of as many blocks up as down (Ronneberger et al. 2015).
    Level,
}

/// Where zeros are padded when a 3x3 convolution of stride 2 halves an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsamplePadding {
    /// One row and column on every side: PyTorch's `padding=1`.
    Symmetric,
    /// TensorFlow's `SAME`, as in the code of Ho et al. 2020: as many as needed, the odd one at the end. An even image gets one
    /// row below and one column to the right.
    Same,
}

/// The `model` section of `kind: unet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetConfig {
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`. Each further level halves both,
    /// rounding up.
    pub image_size: ImageSize,
    /// Colour channels: 1 (grey) or 3 (RGB).
    pub image_channels: usize,
    /// Channels of each level, full resolution first.
    pub channels: Vec<usize>,
    /// Residual blocks of a level in the encoder.
    pub res_blocks: usize,
    /// Heights, in pixels, of the levels with attention after every residual block.
    pub attention_sizes: Vec<usize>,
    /// Attention between the two middle residual blocks.
    pub middle_attention: bool,
    /// Number of attention heads; divides the channels of levels with attention.
    pub num_heads: usize,
    /// Groups of every group norm; divides all channels.
    pub norm_groups: usize,
    /// Width of the sinusoidal time embedding; even.
    pub time_embedding_dim: usize,
    /// Hidden width of the MLP after the time embedding.
    pub time_hidden_dim: usize,
    /// Width of that MLP's result, which every residual block projects to its channels.
    pub time_output_dim: usize,
    /// How that result conditions the residual blocks.
    pub time_conditioning: TimeConditioning,
    /// Which activations of the encoder are skips to the decoder.
    pub skips: Skips,
    /// Where zeros are padded in downsampling.
    pub downsample_padding: DownsamplePadding,
    /// Dropout probability before a block's second convolution in training, in [0, 1).
    pub dropout: f64,
    /// Number of classes, without the null label; 0 for a model that takes no labels.
    pub num_classes: usize,
    /// An additional label, `num_classes`, that means "no class", for classifier-free guidance.
    pub null_label: bool,
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self {
            image_size: 32.into(),
            image_channels: 3,
            channels: vec![64, 128, 256],
            res_blocks: 2,
            attention_sizes: vec![16, 8],
            middle_attention: true,
            num_heads: 4,
            norm_groups: 8,
            time_embedding_dim: 128,
            time_hidden_dim: 512,
            time_output_dim: 128,
            time_conditioning: TimeConditioning::Add,
            skips: Skips::Block,
            downsample_padding: DownsamplePadding::Symmetric,
            dropout: 0.0,
            num_classes: 0,
            null_label: false,
        }
    }
}

impl UnetConfig {
    /// Height and width of each level, in pixels.
    pub fn sizes(&self) -> Vec<ImageSize> {
        std::iter::successors(Some(self.image_size), |size| Some(size.halved())).take(self.channels.len()).collect()
    }

    /// Whether a level has attention after its residual blocks.
    pub fn has_attention(&self, level: usize) -> bool {
        self.sizes().get(level).is_some_and(|size| self.attention_sizes.contains(&size.height))
    }
}

impl Architecture for UnetConfig {
    fn kind(&self) -> &'static str {
        "unet"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, null_label, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label }
    }

    fn network(&self, builder: &mut Builder) -> Result<Network> {
        Ok(Network::Denoiser(Rc::new(Unet::new(builder, self)?)))
    }

    fn validate(&self) -> Result<()> {
        let limits = [
            ("image_channels", self.image_channels, 4),
            ("res_blocks", self.res_blocks, 16),
            ("num_heads", self.num_heads, 1024),
            ("norm_groups", self.norm_groups, 4096),
            ("time_embedding_dim", self.time_embedding_dim, 65_536),
            ("time_hidden_dim", self.time_hidden_dim, 65_536),
            ("time_output_dim", self.time_output_dim, 65_536),
        ];
        within(&limits)?;
        sides(self.image_size, 1024)?;
        colours(self.image_channels)?;
        labels(self.num_classes, self.null_label)?;
        if !(1..=8).contains(&self.channels.len()) {
            let message = format!("{} levels", self.channels.len());
            return Err(Error::config("model.channels", message, "give 1 to 8, as in [64, 128, 256]"));
        }
        let sizes = self.sizes();
        let one = sizes.iter().position(|size| size.sides().contains(&1));
        if let Some(level) = one.filter(|level| level + 1 < sizes.len()) {
            let ImageSize { height, width } = self.image_size;
            let what = match height.cmp(&width) {
                Ordering::Less => format!("a height of {height}"),
                Ordering::Equal => height.to_string(),
                Ordering::Greater => format!("a width of {width}"),
            };
            let message = format!("{} levels halve {what} pixels too many times", sizes.len());
            return Err(Error::config("model.channels", message, format!("give at most {}", level + 1)));
        }
        // The same number of zeros before the first pixel is used for both sides.
        let mixed = |size: &&ImageSize| size.height % 2 != size.width % 2;
        let halved = &sizes[..sizes.len() - 1];
        if let Some(size) = halved.iter().find(mixed).filter(|_| self.downsample_padding == DownsamplePadding::Same) {
            let message = format!("`same` pads odd and even sides differently, and a level of {size} has both");
            return Err(Error::config("model.downsample_padding", message, "set it to symmetric"));
        }
        for (level, &channels) in self.channels.iter().enumerate() {
            within(&[("channels", channels, 4096)])?;
            divides("norm_groups", self.norm_groups, "channels", channels)?;
            let middle = self.middle_attention && level + 1 == self.channels.len();
            if middle || self.has_attention(level) {
                divides("num_heads", self.num_heads, "channels", channels)?;
            }
        }
        if let Some(stranger) =
            self.attention_sizes.iter().find(|&height| sizes.iter().all(|size| size.height != *height))
        {
            let all: Vec<String> = sizes.iter().map(|size| size.height.to_string()).collect();
            let message = format!("no level is {stranger} pixels high");
            return Err(Error::config("model.attention_sizes", message, format!("use one of {}", all.join(", "))));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("{} is outside [0, 1)", self.dropout);
            return Err(Error::config("model.dropout", message, "0.1 is usual, 0 drops nothing"));
        }
        even(self.time_embedding_dim)
    }
}
