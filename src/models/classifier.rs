//! The interface of classifiers for the trainer and the evaluation.

use super::resnet::Resnet;
use crate::error::Result;
use crate::nn::Scope;
use crate::tape::Var;

/// A network that classifies images.
pub trait Classifier {
    /// Height, width and channels of the images.
    fn image_shape(&self) -> [usize; 3];

    /// The number of classes.
    fn num_classes(&self) -> usize;

    /// `images` `[B, H, W, C]` f32 in [-1, 1]: the logits `[B, num_classes]`, f32 or of the precision, which becomes f32.
    ///
    /// Outside training, row b of the result depends only on row b of the images, to the bit.
    ///
    /// # Errors
    /// Those of the ops.
    fn forward(&self, s: &Scope, images: &Var) -> Result<Var>;

    /// The features of the images, of which the logits are a linear function, `[B, width]`, and the logits, both f32; None for a
    /// network without features. Distances of image sets are computed on them.
    ///
    /// # Errors
    /// Those of the ops.
    fn features(&self, s: &Scope, images: &Var) -> Result<Option<[Var; 2]>> {
        let _ = (s, images);
        Ok(None)
    }

    /// The width of [`Classifier::features`]; 0 if there are none.
    fn num_features(&self) -> usize {
        0
    }
}

impl Classifier for Resnet {
    fn image_shape(&self) -> [usize; 3] {
        self.image_shape()
    }

    fn num_classes(&self) -> usize {
        self.config().num_classes
    }

    fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        self.forward(s, images)
    }

    fn features(&self, s: &Scope, images: &Var) -> Result<Option<[Var; 2]>> {
        self.pooled(s, images).map(Some)
    }

    fn num_features(&self) -> usize {
        *self.config().widths.last().unwrap_or(&0)
    }
}
