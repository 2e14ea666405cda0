//! The first stages as a backbone: features of images of any size.

use super::{Block, Conv, STAGES, STEM, blocks};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::models::normalisation::Normalisation;
use crate::nn::{Builder, Scope};
use crate::ops::elementwise::{cast, relu6};
use crate::tape::Var;

/// Stem and first stages of the network, with batch norms folded. At its own 224 pixels the stem halves the image; for images of
/// about 32 pixels it does not, with the same weights.
pub struct Stages {
    channels: usize,
    normalisation: Normalisation,
    stem: Conv,
    blocks: Vec<Block>,
}

impl Stages {
    /// Number of stages.
    pub const COUNT: usize = STAGES.len();

    /// Channels after each stage, and its blocks.
    pub fn sizes() -> (Vec<usize>, Vec<usize>) {
        STAGES.iter().map(|&(repeats, _, _, _, out)| (out, repeats)).unzip()
    }

    /// Height and width of an image after `stages` stages, with a stem that halves or not.
    pub fn feature_size(image: ImageSize, stages: usize, halving_stem: bool) -> ImageSize {
        let halvings = STAGES[..stages].iter().filter(|stage| stage.2 == 2).count() + usize::from(halving_stem);
        (0..halvings).fold(image, |size, _| size.halved())
    }

    /// Declares stem and first `stages` stages for images with `channels` colours, with `prefix` before each name.
    pub fn new(builder: &mut Builder, prefix: &str, channels: usize, stages: usize, halving_stem: bool) -> Self {
        // (x + 1) · 127.5 is a byte; the network was trained on (byte − 127) / 128.
        let (mean, deviation) = (127.0 / 127.5 - 1.0, 128.0 / 127.5);
        let normalisation = Normalisation::new(builder, vec![mean; channels], vec![deviation * deviation; channels]);
        let stride = if halving_stem { 2 } else { 1 };
        let stem = Conv::new(builder, &format!("{prefix}_conv_stem"), channels, STEM, (3, stride));
        Self { channels, normalisation, stem, blocks: blocks(builder, prefix, stages) }
    }

    /// Images `[B, H, W, C]` in [-1, 1], f32, to features `[B, h, w, width]` in the dtype of activations.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another rank or number of channels.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        if images.sizes().len() != 4 || images.shape().last() != self.channels {
            let found = format!("images {}; they are [B, H, W, {}]", images.shape(), self.channels);
            return Err(Error::shape("efficientnet", found));
        }
        let mut x = cast(s, &self.normalisation.forward(s, images)?, s.precision())?;
        x = relu6(s, &self.stem.forward(s, &x)?)?;
        for block in &self.blocks {
            x = block.forward(s, &x)?;
        }
        Ok(x)
    }
}
