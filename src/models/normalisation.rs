//! Normalization of images to the mean and deviation that a pretrained network expects.

use crate::error::Result;
use crate::nn::{Builder, ConstantId, Scope};
use crate::ops::batch_norm::{self, batch_norm};
use crate::tape::Var;

/// (x − mean) / √variance, channel by channel.
pub(super) struct Normalisation {
    mean: ConstantId,
    variance: ConstantId,
    one: ConstantId,
    zero: ConstantId,
}

impl Normalisation {
    pub fn new(builder: &mut Builder, mean: Vec<f64>, variance: Vec<f64>) -> Self {
        let channels = mean.len();
        Self {
            mean: builder.constant([channels], mean),
            variance: builder.constant([channels], variance),
            one: builder.constant([channels], vec![1.0; channels]),
            zero: builder.constant([channels], vec![0.0; channels]),
        }
    }

    /// Normalizes `x` `[B, H, W, C]`, f32.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let running =
            batch_norm::Running { mean: s[self.mean].tensor().clone(), variance: s[self.variance].tensor().clone() };
        let norm = batch_norm::BatchNorm {
            statistics: batch_norm::Statistics::Running,
            epsilon: 0.0,
            ..batch_norm::BatchNorm::default()
        };
        batch_norm(s, x, None, &s[self.one], &s[self.zero], &running, norm)
    }
}
