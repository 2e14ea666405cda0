//! The levels of a U-Net: declaration and forward pass of encoder, middle and decoder.

use super::blocks::{AttentionBlock, ResBlock};
use super::config::{DownsamplePadding, Skips, UnetConfig};
use crate::error::Result;
use crate::image_size::ImageSize;
use crate::nn::{Builder, Conv2d, Scope};
use crate::ops::conv2d::Geometry;
use crate::tape::Var;

/// A residual block with optional attention.
pub(super) struct UnetBlock {
    block: ResBlock,
    attention: Option<AttentionBlock>,
    /// Whether its result is a skip (encoder), or it takes one (decoder).
    skips: bool,
}

impl UnetBlock {
    fn forward(&self, s: &Scope, x: &Var, skip: Option<&Var>, c: &Var) -> Result<Var> {
        let x = self.block.forward(s, x, skip, c)?;
        match &self.attention {
            Some(attention) => attention.forward(s, &x),
            None => Ok(x),
        }
    }
}

/// An encoder or decoder level, and the convolution to the next.
pub(super) struct UnetLevel {
    stages: Vec<UnetBlock>,
    resample: Option<Conv2d>,
    /// Whether the result of that convolution is a skip too, in the encoder.
    skips: bool,
}

impl UnetLevel {
    /// Encoder: pushes skips. `x` `[B, H, W, C]`; the condition `c` `[B, D]`.
    pub fn down(&self, s: &Scope, mut x: Var, c: &Var, skips: &mut Vec<Var>) -> Result<Var> {
        for stage in &self.stages {
            x = stage.forward(s, &x, None, c)?;
            if stage.skips {
                skips.push(x.clone());
            }
        }
        if let Some(downsample) = &self.resample {
            x = downsample.forward(s, &x)?;
            if self.skips {
                skips.push(x.clone());
            }
        }
        Ok(x)
    }

    /// Decoder: pops skips, the newest first.
    pub fn up(&self, s: &Scope, mut x: Var, c: &Var, skips: &mut Vec<Var>) -> Result<Var> {
        for stage in &self.stages {
            let skip = if stage.skips { skips.pop() } else { None };
            x = stage.forward(s, &x, skip.as_ref(), c)?;
        }
        match &self.resample {
            Some(upsample) => upsample.forward(s, &x),
            None => Ok(x),
        }
    }
}

/// The smallest level, between encoder and decoder: a residual block, attention, a residual block.
pub(super) struct Middle {
    first: UnetBlock,
    second: ResBlock,
}

impl Middle {
    /// `x` `[B, H, W, C]`; the condition `c` `[B, D]`.
    pub fn forward(&self, s: &Scope, x: &Var, c: &Var) -> Result<Var> {
        self.second.forward(s, &self.first.forward(s, x, None, c)?, None, c)
    }
}

/// Declares the parameters in the order of the forward pass. Counts the residual blocks, and tracks the channels of the current
/// activations and of the unused skips.
pub(super) struct Declare<'a> {
    builder: &'a mut Builder,
    config: &'a UnetConfig,
    blocks: u32,
    channels: usize,
    skips: Vec<usize>,
}

impl<'a> Declare<'a> {
    /// After the first convolution.
    pub fn new(builder: &'a mut Builder, config: &'a UnetConfig) -> Self {
        let first = config.channels[0];
        let skips = if config.skips == Skips::Block { vec![first] } else { Vec::new() };
        Self { builder, config, blocks: 0, channels: first, skips }
    }

    fn block(&mut self, name: &str, skip: usize, out: usize) -> ResBlock {
        let channels = [std::mem::replace(&mut self.channels, out), skip, out];
        self.blocks += 1;
        ResBlock::new(self.builder, name, self.blocks - 1, self.config, channels)
    }

    fn attention(&mut self, present: bool, name: &str) -> Option<AttentionBlock> {
        present.then(|| AttentionBlock::new(self.builder, name, self.config, self.channels))
    }

    fn conv(&mut self, name: &str) -> Conv2d {
        Conv2d::new(self.builder, name, self.channels, self.channels, 3)
    }

    /// Level `level` of the encoder.
    pub fn down(&mut self, level: usize) -> UnetLevel {
        let (config, name) = (self.config, format!("down.{level}"));
        let (out, every_block) = (config.channels[level], config.skips == Skips::Block);
        let stage = |number: usize| {
            let block = self.block(&format!("{name}.blocks.{number}"), 0, out);
            let attention = self.attention(config.has_attention(level), &format!("{name}.attentions.{number}"));
            let skips = every_block || number + 1 == config.res_blocks;
            self.skips.extend(skips.then_some(out));
            UnetBlock { block, attention, skips }
        };
        let stages = (0..config.res_blocks).map(stage).collect();
        let resample = (level + 1 < config.channels.len()).then(|| {
            self.skips.extend(every_block.then_some(out));
            let halving = halving(config.downsample_padding, config.sizes()[level]);
            self.conv(&format!("{name}.downsample")).geometry(halving)
        });
        UnetLevel { stages, resample, skips: every_block }
    }

    /// The middle.
    pub fn middle(&mut self) -> Middle {
        let out = self.channels;
        let block = self.block("middle.block1", 0, out);
        let attention = self.attention(self.config.middle_attention, "middle.attention");
        Middle { first: UnetBlock { block, attention, skips: false }, second: self.block("middle.block2", 0, out) }
    }

    /// Level `level` of the decoder.
    pub fn up(&mut self, level: usize) -> UnetLevel {
        let (config, name) = (self.config, format!("up.{level}"));
        let (out, every_block) = (config.channels[level], config.skips == Skips::Block);
        let stage = |number: usize| {
            let skips = every_block || number == 0;
            let skip = if skips { self.skips.pop().unwrap_or(0) } else { 0 };
            let block = self.block(&format!("{name}.blocks.{number}"), skip, out);
            let attention = self.attention(config.has_attention(level), &format!("{name}.attentions.{number}"));
            UnetBlock { block, attention, skips }
        };
        let stages = (0..config.res_blocks + usize::from(every_block)).map(stage).collect();
        let resample = level.checked_sub(1).map(|next| {
            let size = config.sizes()[next];
            self.conv(&format!("{name}.upsample")).resized(size.sides())
        });
        UnetLevel { stages, resample, skips: false }
    }
}

/// A stride of 2 that halves an image of `size`, rounding up.
fn halving(padding: DownsamplePadding, size: ImageSize) -> Geometry {
    let pad_before = match padding {
        DownsamplePadding::Symmetric => 1,
        // An odd image needs two rows, one on each side; an even one a single row. Both sides have the same parity.
        DownsamplePadding::Same => size.height % 2,
    };
    Geometry { stride: 2, pad_before: [pad_before; 2], ..Geometry::same(3) }
}
