//! The interface of diffusion models for the trainer and the samplers.

use crate::error::Result;
use crate::nn::Scope;
use crate::tape::Var;

/// A network that predicts ε, x_0, v or a flow's velocity from a noisy image.
pub trait Denoiser {
    /// Height, width and channels of the images.
    fn image_shape(&self) -> [usize; 3];

    /// `x` `[B, H, W, C]` f32, `time` `[B]` f32 (see `NoiseSchedule::time_input`), `labels` `[B]` i32, including the null label:
    /// the prediction `[B, H, W, C]`, f32 or of the precision, which becomes f32.
    ///
    /// Row b of the result depends only on row b of the inputs, to the bit.
    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var>;
}
