//! The decoder from the feature map to the image.

use super::config::ResnetDitConfig;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, GroupNorm, Init, Linear, Scope};
use crate::ops::elementwise::silu;
use crate::tape::Var;

/// Convolutions that double the map, then two at full size, with the noisy image as a skip and the condition in between.
pub(super) struct Decoder {
    /// The doubling convolutions, each with the norm before it except the first.
    doublings: Vec<(Option<GroupNorm>, Conv2d)>,
    /// Used if nothing is to be doubled.
    project: Option<Conv2d>,
    noisy: Conv2d,
    modulation: Linear,
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn new(builder: &mut Builder, config: &ResnetDitConfig) -> Self {
        let (width, groups, colours) = (config.decoder_channels, config.norm_groups, config.image_channels);
        let mut channels = config.hidden_dim;
        let mut doublings = Vec::new();
        for (number, size) in config.decoder_sizes().into_iter().enumerate() {
            let name = |part: &str| format!("decoder.up.{number}.{part}");
            let norm = (number > 0).then(|| GroupNorm::new(builder, &name("norm"), channels, groups));
            let conv = Conv2d::new(builder, &name("conv"), std::mem::replace(&mut channels, width), width, 3);
            doublings.push((norm, conv.resized(size.sides())));
        }
        let project = doublings.is_empty().then(|| Conv2d::new(builder, "decoder.project", channels, width, 1));
        let zero = Init::Constant(0.0);
        Self {
            doublings,
            project,
            noisy: Conv2d::new(builder, "decoder.noisy", colours, width, 3),
            modulation: Linear::with_init(builder, "decoder.modulation", config.hidden_dim, 4 * width, zero),
            norm1: GroupNorm::new(builder, "decoder.norm1", 2 * width, groups),
            conv1: Conv2d::new(builder, "decoder.conv1", 2 * width, width, 3),
            norm2: GroupNorm::new(builder, "decoder.norm2", width, groups),
            conv_out: Conv2d::with_init(builder, "decoder.conv_out", width, colours, 3, zero),
        }
    }

    /// `map` `[B, h, w, D]`, `noisy` `[B, H, W, C]` and the condition `c` `[B, D]` in the dtype of activations: `[B, H, W, C]`.
    pub fn forward(&self, s: &Scope, map: &Var, noisy: &Var, c: &Var) -> Result<Var> {
        let mut u = map.clone();
        for (norm, double) in &self.doublings {
            if let Some(norm) = norm {
                u = norm.silu().forward(s, &u)?;
            }
            u = double.forward(s, &u)?;
        }
        if let Some(project) = &self.project {
            u = project.forward(s, &u)?;
        }
        let skip = self.noisy.forward(s, noisy)?;
        let scale_shift = self.modulation.forward(s, &silu(s, c)?)?;
        u = self.norm1.silu().skip(&skip).scale_shift(&scale_shift).forward(s, &u)?;
        u = self.conv1.forward(s, &u)?;
        u = self.norm2.silu().forward(s, &u)?;
        self.conv_out.forward(s, &u)
    }
}
