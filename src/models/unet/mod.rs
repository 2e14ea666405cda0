//! The U-Net of diffusion models (Ho, Jain, Abbeel 2020, *Denoising Diffusion Probabilistic Models*; Ronneberger et al.
//! 2015, *U-Net*).
//!
//! Levels of residual blocks with group norm, each half as high and wide as the one before; attention at the smaller ones;
//! skips from the way down to the way up, which are never copied into a concatenation. `tools/goldens/README.md` lists
//! every parameter; its names, shapes and order are these.

mod blocks;
mod config;

pub use config::{DownsamplePadding, Skips, TimeConditioning, UnetConfig};

use blocks::{AttentionBlock, ResBlock, ZERO};

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::nn::{Builder, Conv2d, Embedding, GroupNorm, Linear, Scope};
use crate::ops::conv2d::Geometry;
use crate::ops::elementwise::{cast, silu};
use crate::ops::linear::Activation;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Var;
use crate::tensor::DType;

/// A residual block and the attention that may follow it.
struct Stage {
    block: ResBlock,
    attention: Option<AttentionBlock>,
}

/// A level on the way down or up, and the convolution that leads to the next.
struct Level {
    stages: Vec<Stage>,
    resample: Option<Conv2d>,
}

/// A U-Net.
pub struct Unet {
    config: UnetConfig,
    conv_in: Conv2d,
    time_fc1: Linear,
    time_fc2: Linear,
    class_embedding: Option<Embedding>,
    down: Vec<Level>,
    middle: (ResBlock, Option<AttentionBlock>, ResBlock),
    /// The smallest level first.
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// Declares the parameters in the order of the forward pass and counts the residual blocks.
struct Declare<'a> {
    builder: &'a mut Builder,
    config: &'a UnetConfig,
    blocks: u32,
}

impl Declare<'_> {
    fn block(&mut self, name: &str, channels: [usize; 3]) -> ResBlock {
        self.blocks += 1;
        ResBlock::new(self.builder, name, self.blocks - 1, self.config, channels)
    }

    fn attention(&mut self, name: &str, channels: usize) -> AttentionBlock {
        AttentionBlock::new(self.builder, name, self.config, channels)
    }

    /// Block `number` of a level, from `channels` and `skip` channels to the level's.
    fn stage(&mut self, way: &str, level: usize, number: usize, channels: usize, skip: usize) -> Stage {
        let out = self.config.channels[level];
        let block = self.block(&format!("{way}.{level}.blocks.{number}"), [channels, skip, out]);
        let attention = self.config.has_attention(level);
        let attention = attention.then(|| self.attention(&format!("{way}.{level}.attentions.{number}"), out));
        Stage { block, attention }
    }

    fn conv(&mut self, name: &str, channels: usize) -> Conv2d {
        Conv2d::new(self.builder, name, channels, channels, 3)
    }
}

impl Unet {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit together.
    pub fn new(builder: &mut Builder, config: &UnetConfig) -> Result<Self> {
        config.validate()?;
        let (first, last) = (config.channels[0], config.channels.len() - 1);
        let every_block = config.skips == Skips::Block;
        let conv_in = Conv2d::new(builder, "conv_in", config.image_channels, first, 3);
        let time_fc1 = Linear::new(builder, "time.fc1", config.time_embedding_dim, config.time_hidden_dim);
        let time_fc2 = Linear::new(builder, "time.fc2", config.time_hidden_dim, config.time_output_dim);
        let class_embedding = (config.num_classes > 0)
            .then(|| Embedding::new(builder, "class.embedding", config.num_labels(), config.time_output_dim));
        let mut declare = Declare { builder, config, blocks: 0 };

        // Channels of the skips, in the order in which the way down leaves them.
        let mut skips = if every_block { vec![first] } else { Vec::new() };
        let mut channels = first;
        let mut down = Vec::new();
        for (level, &out) in config.channels.iter().enumerate() {
            let mut stages = Vec::new();
            for number in 0..config.res_blocks {
                stages.push(declare.stage("down", level, number, channels, 0));
                channels = out;
                if every_block || number + 1 == config.res_blocks {
                    skips.push(out);
                }
            }
            let resample = (level < last).then(|| declare.conv(&format!("down.{level}.downsample"), out));
            if every_block && level < last {
                skips.push(out);
            }
            down.push(Level { stages, resample });
        }
        let middle = (
            declare.block("middle.block1", [channels, 0, channels]),
            config.middle_attention.then(|| declare.attention("middle.attention", channels)),
            declare.block("middle.block2", [channels, 0, channels]),
        );
        let mut up = Vec::new();
        for (level, &out) in config.channels.iter().enumerate().rev() {
            let mut stages = Vec::new();
            for number in 0..config.res_blocks + usize::from(every_block) {
                let skip = if takes_skip(config.skips, number) { skips.pop().unwrap_or(0) } else { 0 };
                stages.push(declare.stage("up", level, number, channels, skip));
                channels = out;
            }
            let resample = (level > 0).then(|| declare.conv(&format!("up.{level}.upsample"), out));
            up.push(Level { stages, resample });
        }
        debug_assert!(skips.is_empty());
        let norm_out = GroupNorm::new(builder, "norm_out", first, config.norm_groups, true);
        let conv_out = Conv2d::with_init(builder, "conv_out", first, config.image_channels, 3, ZERO);
        let config = config.clone();
        Ok(Self { config, conv_in, time_fc1, time_fc2, class_embedding, down, middle, up, norm_out, conv_out })
    }

    /// The condition `[B, time_output_dim]` after its SiLU, which every block begins with.
    fn condition(&self, s: &Scope, time: &Var, labels: &Var) -> Result<Var> {
        let width = self.config.time_embedding_dim;
        let mut condition = timestep_embedding(s, time, width, s.precision())?;
        condition = self.time_fc1.forward(s, &condition, Activation::Silu, None)?;
        let class = match &self.class_embedding {
            Some(embedding) => Some(embedding.forward(s, labels)?),
            None => None,
        };
        condition = self.time_fc2.forward(s, &condition, Activation::None, class.as_ref())?;
        silu(s, &condition)
    }
}

/// Whether block `number` of a level on the way up takes a skip.
fn takes_skip(skips: Skips, number: usize) -> bool {
    skips == Skips::Block || number == 0
}

/// A stride of 2 that halves a height and width of `size`, rounding up.
fn halving(padding: DownsamplePadding, size: usize) -> Geometry {
    let pad_before = match padding {
        DownsamplePadding::Symmetric => 1,
        // An odd image needs two rows, one on each side; an even one a single row.
        DownsamplePadding::Same => size % 2,
    };
    Geometry { stride: 2, pad_before, resize: None }
}

impl Denoiser for Unet {
    fn image_shape(&self) -> [usize; 3] {
        [self.config.image_size, self.config.image_size, self.config.image_channels]
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let config = &self.config;
        let shape = self.image_shape();
        if x.sizes().len() != 4 || x.sizes()[1..] != shape {
            return Err(Error::shape("unet", format!("images {} for a model of {shape:?}", x.shape())));
        }
        let every_block = config.skips == Skips::Block;
        let time = &self.condition(s, time, labels)?;
        let run = |stage: &Stage, x: &Var, skip: Option<&Var>| -> Result<Var> {
            let x = stage.block.forward(s, x, skip, time)?;
            match &stage.attention {
                Some(attention) => attention.forward(s, &x),
                None => Ok(x),
            }
        };

        let mut x = cast(s, x, s.precision())?;
        x = self.conv_in.forward(s, &x, Geometry::same(3), None, None)?;
        let mut skips = if every_block { vec![x.clone()] } else { Vec::new() };
        for (level, size) in self.down.iter().zip(config.sizes()) {
            for (number, stage) in level.stages.iter().enumerate() {
                x = run(stage, &x, None)?;
                if every_block || number + 1 == level.stages.len() {
                    skips.push(x.clone());
                }
            }
            if let Some(downsample) = &level.resample {
                let geometry = halving(config.downsample_padding, size);
                x = downsample.forward(s, &x, geometry, None, None)?;
                if every_block {
                    skips.push(x.clone());
                }
            }
        }
        let (block1, attention, block2) = &self.middle;
        x = block1.forward(s, &x, None, time)?;
        if let Some(attention) = attention {
            x = attention.forward(s, &x)?;
        }
        x = block2.forward(s, &x, None, time)?;
        for level in &self.up {
            for (number, stage) in level.stages.iter().enumerate() {
                let skip = if takes_skip(config.skips, number) { skips.pop() } else { None };
                x = run(stage, &x, skip.as_ref())?;
            }
            if let (Some(upsample), Some(skip)) = (&level.resample, skips.last()) {
                let resize = Some([skip.sizes()[1], skip.sizes()[2]]);
                x = upsample.forward(s, &x, Geometry { resize, ..Geometry::same(3) }, None, None)?;
            }
        }
        x = self.norm_out.forward(s, &x, None, None)?;
        x = self.conv_out.forward(s, &x, Geometry::same(3), None, None)?;
        cast(s, &x, DType::F32)
    }
}
