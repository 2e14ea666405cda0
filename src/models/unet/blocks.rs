//! The parts of a U-Net: residual block, attention block.

use super::config::{TimeConditioning, UnetConfig};
use crate::error::Result;
use crate::nn::{Builder, Conv2d, Dropout, GroupNorm, Init, Linear, ParameterKind, Scope};
use crate::ops::attention::attention;
use crate::tape::Var;

/// Every branch ends in a layer initialized to zero, so that a new network's blocks are their shortcuts (Ho et al. 2020 start
/// these at 1e-10 of the usual scale).
pub(super) const ZERO: Init = Init::Constant(0.0);

/// The shortcut of a residual block.
enum Shortcut {
    /// Its input.
    Identity,
    /// Its input through a 1x1 convolution; `skip` is that of the second part of a concatenation.
    Projection { x: Linear, skip: Option<Linear> },
}

impl Shortcut {
    fn forward(&self, s: &Scope, x: &Var, skip: Option<&Var>) -> Result<Var> {
        let Self::Projection { x: projection, skip: skip_projection } = self else { return Ok(x.clone()) };
        let projected = projection.forward(s, x)?;
        match (skip_projection, skip) {
            (Some(projection), Some(skip)) => projection.residual(&projected).forward(s, skip),
            _ => Ok(projected),
        }
    }
}

/// GN, SiLU, 3x3, time; GN, SiLU, dropout, 3x3; plus the shortcut.
pub(super) struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    conditioning: TimeConditioning,
    norm2: GroupNorm,
    dropout: Dropout,
    conv2: Conv2d,
    shortcut: Shortcut,
}

impl ResBlock {
    /// A block from `channels` and, concatenated with them, `skip` channels to `out`. `number` distinguishes the model's blocks.
    pub fn new(
        builder: &mut Builder,
        name: &str,
        number: u32,
        config: &UnetConfig,
        [channels, skip, out]: [usize; 3],
    ) -> Self {
        let part = |part: &str| format!("{name}.{part}");
        let groups = config.norm_groups;
        let time_out = match config.time_conditioning {
            TimeConditioning::Add => out,
            TimeConditioning::ScaleShift => 2 * out,
        };
        Self {
            norm1: GroupNorm::new(builder, &part("norm1"), channels + skip, groups),
            conv1: Conv2d::new(builder, &part("conv1"), channels + skip, out, 3),
            time: Linear::new(builder, &part("time"), config.time_output_dim, time_out),
            conditioning: config.time_conditioning,
            norm2: GroupNorm::new(builder, &part("norm2"), out, groups),
            dropout: Dropout::new(config.dropout as f32, number),
            conv2: Conv2d::with_init(builder, &part("conv2"), out, out, 3, ZERO),
            shortcut: if skip == 0 && channels == out {
                Shortcut::Identity
            } else {
                let init = Init::xavier(channels + skip, out);
                let x = Linear::with_init(builder, &part("shortcut"), channels, out, init);
                let mut weight = || builder.add(part("shortcut.skip_weight"), [out, skip], ParameterKind::Matrix, init);
                Shortcut::Projection { x, skip: (skip > 0).then(|| Linear::of_weight(weight())) }
            },
        }
    }

    /// `x` `[B, H, W, C]`, `skip` `[B, H, W, S]`, the condition `c` `[B, D]` after its SiLU; the result is `[B, H, W, out]`.
    pub fn forward(&self, s: &Scope, x: &Var, skip: Option<&Var>, c: &Var) -> Result<Var> {
        let mut h = self.norm1.silu().skip(skip).forward(s, x)?;
        let time = self.time.forward(s, c)?;
        let (channel_add, scale_shift) = match self.conditioning {
            TimeConditioning::Add => (Some(&time), None),
            TimeConditioning::ScaleShift => (None, Some(&time)),
        };
        h = self.conv1.channel_add(channel_add).forward(s, &h)?;
        h = self.norm2.silu().scale_shift(scale_shift).dropout(&self.dropout).forward(s, &h)?;
        let shortcut = self.shortcut.forward(s, x, skip)?;
        self.conv2.residual(&shortcut).forward(s, &h)
    }
}

/// Self-attention over the pixels: GN, queries, keys and values in one linear layer, attention, linear; plus its input.
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
    heads: usize,
}

impl AttentionBlock {
    pub fn new(builder: &mut Builder, name: &str, config: &UnetConfig, channels: usize) -> Self {
        Self {
            norm: GroupNorm::new(builder, &format!("{name}.norm"), channels, config.norm_groups),
            qkv: Linear::new(builder, &format!("{name}.qkv"), channels, 3 * channels),
            out: Linear::with_init(builder, &format!("{name}.out"), channels, channels, ZERO),
            heads: config.num_heads,
        }
    }

    /// `x` `[B, H, W, C]`.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let shape = x.shape();
        let &[batch, height, width, channels] = x.sizes() else { unreachable!("images have four dimensions") };
        let x = x.view([batch, height * width, channels])?;
        let mut h = self.norm.forward(s, &x)?;
        h = self.qkv.forward(s, &h)?;
        h = attention(s, &h, self.heads, self.heads)?;
        self.out.residual(&x).forward(s, &h)?.view(shape)
    }
}
