//! The U-Net of diffusion models (Ho, Jain, Abbeel 2020, *Denoising Diffusion Probabilistic Models*; Ronneberger et al.
//! 2015, *U-Net*).
//!
//! Levels of residual blocks with group norm, each half as high and wide as the one before; attention at the smaller ones; skips
//! from encoder to decoder, which are never copied into a concatenation:
//!
//! ```text
//! c = SiLU(MLP(sinusoids of the time) + label embedding)
//! h = conv(x)
//! h = A(R(h, c))                          each block down; by a convolution of stride 2 to the next level
//! h = R(A(R(h, c)), c)                    in the middle
//! h = A(R([h | skip], c))                 each block up; doubled, by a convolution, to the next level
//! y = conv(SiLU(GN(h)))                   from zero
//!
//! R(h, c) = conv(dropout(SiLU(GN(conv(SiLU(GN(h))) + c · W)))) + h, or the same with c · W as scale and shift of the second GN
//! A(h) = attention of the pixels of GN(h), + h
//! ```
//!
//! `tools/goldens/README.md` lists every parameter with name, shape and order.

mod blocks;
mod config;
mod levels;

pub use config::{DownsamplePadding, Skips, TimeConditioning, UnetConfig};

use blocks::ZERO;
use levels::{Declare, Middle, UnetLevel};

use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::models::{Architecture, check_images};
use crate::nn::{Builder, Conv2d, Embedding, GroupNorm, Mlp, Scope};
use crate::ops::elementwise::{cast, silu};
use crate::ops::linear::Activation;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Var;
use crate::tensor::DType;

/// A U-Net.
pub struct Unet {
    config: UnetConfig,
    conv_in: Conv2d,
    time: Mlp,
    class: Option<Embedding>,
    down: Vec<UnetLevel>,
    middle: Middle,
    /// The smallest level first.
    up: Vec<UnetLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for inconsistent sizes.
    pub fn new(builder: &mut Builder, config: &UnetConfig) -> Result<Self> {
        config.validate()?;
        let (first, levels) = (config.channels[0], config.channels.len());
        let conv_in = Conv2d::new(builder, "conv_in", config.image_channels, first, 3);
        let widths = [config.time_embedding_dim, config.time_hidden_dim, config.time_output_dim];
        let time = Mlp::new(builder, "time", widths, Activation::Silu);
        let labels = config.interface().num_labels();
        let class = (labels > 0).then(|| Embedding::new(builder, "class.embedding", labels, config.time_output_dim));
        let mut declare = Declare::new(builder, config);
        Ok(Self {
            config: config.clone(),
            conv_in,
            time,
            class,
            down: (0..levels).map(|level| declare.down(level)).collect(),
            middle: declare.middle(),
            up: (0..levels).rev().map(|level| declare.up(level)).collect(),
            norm_out: GroupNorm::new(builder, "norm_out", first, config.norm_groups),
            conv_out: Conv2d::with_init(builder, "conv_out", first, config.image_channels, 3, ZERO),
        })
    }

    /// The condition `[B, time_output_dim]` after its SiLU, with which every block starts.
    fn condition(&self, s: &Scope, time: &Var, labels: &Var) -> Result<Var> {
        let time = timestep_embedding(s, time, self.config.time_embedding_dim, s.precision())?;
        let class = self.class.as_ref().map(|class| class.forward(s, labels)).transpose()?;
        silu(s, &self.time.residual(&class).forward(s, &time)?)
    }
}

impl Denoiser for Unet {
    fn image_shape(&self) -> [usize; 3] {
        self.config.interface().image_shape()
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        check_images("unet", x, self.image_shape())?;
        let c = self.condition(s, time, labels)?;
        let mut h = cast(s, x, s.precision())?;
        h = self.conv_in.forward(s, &h)?;
        let mut skips = if self.config.skips == Skips::Block { vec![h.clone()] } else { Vec::new() };
        for level in &self.down {
            h = level.down(s, h, &c, &mut skips)?;
        }
        h = self.middle.forward(s, &h, &c)?;
        for level in &self.up {
            h = level.up(s, h, &c, &mut skips)?;
        }
        h = self.norm_out.silu().forward(s, &h)?;
        h = self.conv_out.forward(s, &h)?;
        cast(s, &h, DType::F32)
    }
}
