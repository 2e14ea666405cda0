//! The residual decoder.

use super::config::LinearTransformerConfig;
use super::mlp;
use crate::error::Result;
use crate::models::Architecture;
use crate::nn::{Builder, Conv2d, GroupNorm, Init, Linear, Mlp, Modulation, Scope};
use crate::ops::elementwise::cast;
use crate::ops::patchify::unpatchify;
use crate::tape::Var;
use crate::tensor::DType;

/// An MLP on each patch, then convolutions over the whole image.
pub(super) struct Decoder {
    modulation: Modulation,
    mlp: Mlp,
    head: Linear,
    shape: [usize; 3],
    patch_size: usize,
    conv_coarse: Conv2d,
    conv_noisy: Conv2d,
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn new(builder: &mut Builder, config: &LinearTransformerConfig) -> Self {
        let (colours, refine, groups) = (config.image_channels, config.refine_channels, config.norm_groups);
        let (width, zero) = (config.hidden_dim, Init::Constant(0.0));
        Self {
            modulation: Modulation::new(builder, "decoder.modulation", config.condition_dim, width, 4),
            mlp: mlp(builder, "decoder.mlp", config),
            head: Linear::new(builder, "decoder.head", width, config.patch_dim()),
            shape: config.interface().image_shape(),
            patch_size: config.patch_size,
            conv_coarse: Conv2d::new(builder, "decoder.conv_coarse", colours, refine, 3),
            conv_noisy: Conv2d::new(builder, "decoder.conv_noisy", colours, refine, 3),
            norm1: GroupNorm::new(builder, "decoder.norm1", refine, groups),
            conv1: Conv2d::new(builder, "decoder.conv1", refine, refine, 3),
            norm2: GroupNorm::new(builder, "decoder.norm2", refine, groups),
            conv_out: Conv2d::with_init(builder, "decoder.conv_out", refine, colours, 3, zero),
        }
    }

    /// `h` `[B, T, D]`, `noisy` `[B, H, W, C]` f32, the condition `c` `[B, condition_dim]`: the prediction `[B, H, W, C]`, f32.
    pub fn forward(&self, s: &Scope, h: &Var, noisy: &Var, c: &Var) -> Result<Var> {
        let m = self.modulation.forward(s, c)?;
        let h = self.mlp.residual(h).forward(s, &m.norm(s, h, 0)?)?;
        let patches = self.head.forward(s, &m.norm(s, &h, 2)?)?;
        let coarse = cast(s, &unpatchify(s, &patches, 0, self.shape, self.patch_size)?, s.precision())?;

        let mut r = self.conv_noisy.forward(s, &cast(s, noisy, s.precision())?)?;
        r = self.conv_coarse.residual(&r).forward(s, &coarse)?;
        r = self.conv1.residual(&r).forward(s, &self.norm1.silu().forward(s, &r)?)?;
        r = self.conv_out.residual(&coarse).forward(s, &self.norm2.silu().forward(s, &r)?)?;
        cast(s, &r, DType::F32)
    }
}
