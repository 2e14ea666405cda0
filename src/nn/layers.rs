//! Layers: parameters with the op that uses them.

use super::scope::{Mode, Scope};
use super::store::{Builder, Init, Kind, ParamId};
use crate::error::Result;
use crate::ops::batch_norm::{self, Running, Statistics, batch_norm};
use crate::ops::conv2d::{Geometry, conv2d};
use crate::ops::dropout::dropout;
use crate::ops::embedding::embedding;
use crate::ops::group_norm_silu::{self, group_norm_silu};
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::linear::{Activation, linear};
use crate::tape::Var;

/// y = activation(x · weightᵀ + bias) \[+ residual\]; `weight` `[out, in]`, `bias` `[out]`.
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// Declares `name.weight` and `name.bias`, the weight by Glorot's rule, the bias zero.
    pub fn new(builder: &mut Builder, name: &str, fan_in: usize, fan_out: usize) -> Self {
        Self::with_init(builder, name, fan_in, fan_out, Init::xavier(fan_in, fan_out))
    }

    /// The same with another start for the weight.
    pub fn with_init(builder: &mut Builder, name: &str, fan_in: usize, fan_out: usize, init: Init) -> Self {
        Self {
            weight: builder.add(format!("{name}.weight"), [fan_out, fan_in], Kind::Matrix, init),
            bias: builder.add(format!("{name}.bias"), [fan_out], Kind::Vector, Init::Constant(0.0)),
        }
    }

    /// `x` `[…, in]` to `[…, out]`.
    pub fn forward(&self, s: &Scope, x: &Var, activation: Activation, residual: Option<&Var>) -> Result<Var> {
        linear(s, x, &s[self.weight], Some(&s[self.bias]), activation, residual)
    }
}

/// Layer norm with weight and bias; ε = 1e-5.
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
}

impl LayerNorm {
    /// ε of every layer norm here.
    pub const EPSILON: f32 = 1e-5;

    /// Declares `name.weight` (ones) and `name.bias` (zeros), `[width]`.
    pub fn new(builder: &mut Builder, name: &str, width: usize) -> Self {
        Self {
            weight: builder.add(format!("{name}.weight"), [width], Kind::Vector, Init::Constant(1.0)),
            bias: builder.add(format!("{name}.bias"), [width], Kind::Vector, Init::Constant(0.0)),
        }
    }

    /// `x` `[…, width]`.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let affine = Affine::Parameters { weight: &s[self.weight], bias: &s[self.bias] };
        layer_norm(s, x, affine, Self::EPSILON)
    }
}

/// A table of vectors, `[rows, width]`.
pub struct Embedding {
    table: ParamId,
}

impl Embedding {
    /// Declares `name`, normal with standard deviation 0.02.
    pub fn new(builder: &mut Builder, name: &str, rows: usize, width: usize) -> Self {
        Self { table: builder.add(name, [rows, width], Kind::Vector, Init::Normal(0.02)) }
    }

    /// The rows at `indices` `[B]` (i32): `[B, width]` in the dtype of activations.
    pub fn forward(&self, s: &Scope, indices: &Var) -> Result<Var> {
        embedding(s, &s[self.table], indices, s.precision())
    }
}

/// y = conv(x, weight) \[+ bias\] \[+ channel_add\] \[+ residual\]; `weight` `[out, k, k, in]`, `bias` `[out]`.
pub struct Conv2d {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Conv2d {
    /// Declares `name.weight` and `name.bias`, the weight by Glorot's rule over the window, the bias zero. `kernel` is the
    /// window's height and width: odd.
    pub fn new(builder: &mut Builder, name: &str, channels_in: usize, channels_out: usize, kernel: usize) -> Self {
        let window = kernel * kernel;
        let init = Init::xavier(window * channels_in, window * channels_out);
        Self::with_init(builder, name, channels_in, channels_out, kernel, init)
    }

    /// The same with another start for the weight.
    pub fn with_init(
        builder: &mut Builder,
        name: &str,
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        init: Init,
    ) -> Self {
        let mut conv = Self::without_bias(builder, name, channels_in, channels_out, kernel, init);
        conv.bias = Some(builder.add(format!("{name}.bias"), [channels_out], Kind::Vector, Init::Constant(0.0)));
        conv
    }

    /// `name.weight` alone, as before a batch norm, which has a bias of its own.
    pub fn without_bias(
        builder: &mut Builder,
        name: &str,
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        init: Init,
    ) -> Self {
        let shape = [channels_out, kernel, kernel, channels_in];
        Self { weight: builder.add(format!("{name}.weight"), shape, Kind::Matrix, init), bias: None }
    }

    /// `x` `[B, H, W, in]` to `[B, H', W', out]`; `channel_add` `[B, out]` and `residual`, of the result's shape, are added.
    pub fn forward(
        &self,
        s: &Scope,
        x: &Var,
        geometry: Geometry,
        channel_add: Option<&Var>,
        residual: Option<&Var>,
    ) -> Result<Var> {
        let (weight, bias) = (&s[self.weight], self.bias.map(|bias| &s[bias]));
        conv2d(s, x, weight, bias, geometry, channel_add, residual)
    }
}

/// Group norm with weight and bias, with or without SiLU after it; ε = 1e-6, as in the networks of Ho et al. 2020.
pub struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    norm: group_norm_silu::GroupNorm,
}

impl GroupNorm {
    /// ε of every group norm here.
    pub const EPSILON: f32 = 1e-6;

    /// Declares `name.weight` (ones) and `name.bias` (zeros), `[channels]`; `groups` divides `channels`.
    pub fn new(builder: &mut Builder, name: &str, channels: usize, groups: usize, silu: bool) -> Self {
        Self {
            weight: builder.add(format!("{name}.weight"), [channels], Kind::Vector, Init::Constant(1.0)),
            bias: builder.add(format!("{name}.bias"), [channels], Kind::Vector, Init::Constant(0.0)),
            norm: group_norm_silu::GroupNorm { groups, epsilon: Self::EPSILON, silu },
        }
    }

    /// `x` `[B, …, Cx]`, with `skip` `[B, …, Cs]` their concatenation, to `[B, …, Cx + Cs]`. `scale_shift` `[B, 2 (Cx + Cs)]` modulates
    /// what is normed before the SiLU.
    pub fn forward(&self, s: &Scope, x: &Var, skip: Option<&Var>, scale_shift: Option<&Var>) -> Result<Var> {
        let (weight, bias) = (&s[self.weight], &s[self.bias]);
        group_norm_silu(s, x, skip, weight, bias, scale_shift, self.norm)
    }
}

/// When a batch norm goes by the batch, and moves its running statistics on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// In training steps; else it goes by the running statistics.
    InTraining,
    /// Never: it goes by the running statistics in training too.
    Never,
}

/// Batch norm with weight and bias and running statistics; PyTorch's constants: ε = 1e-5, momentum 0.1.
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
    mean: ParamId,
    variance: ParamId,
    moving: Moving,
}

impl BatchNorm {
    /// Declares `name.weight` (ones), `name.bias` (zeros) and the buffers `name.running_mean` (zeros) and `name.running_var` (ones),
    /// each `[channels]`.
    pub fn new(builder: &mut Builder, name: &str, channels: usize, moving: Moving) -> Self {
        let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
        Self {
            weight: builder.add(format!("{name}.weight"), [channels], Kind::Vector, one),
            bias: builder.add(format!("{name}.bias"), [channels], Kind::Vector, zero),
            mean: builder.buffer(format!("{name}.running_mean"), [channels], zero),
            variance: builder.buffer(format!("{name}.running_var"), [channels], one),
            moving,
        }
    }

    /// `x` `[B, …, channels]`, normed; plus `residual` of its shape; then, with `relu`, what is positive of it.
    pub fn forward(&self, s: &Scope, x: &Var, residual: Option<&Var>, relu: bool) -> Result<Var> {
        let batch = s.is_training() && self.moving == Moving::InTraining;
        let norm = batch_norm::BatchNorm {
            statistics: if batch { Statistics::Batch } else { Statistics::Running },
            relu,
            ..batch_norm::BatchNorm::default()
        };
        let tensor = |id: ParamId| s[id].tensor().clone();
        let running = Running { mean: tensor(self.mean), variance: tensor(self.variance) };
        let (weight, bias) = (&s[self.weight], &s[self.bias]);
        batch_norm(s, x, residual, weight, bias, &running, norm)
    }
}

/// Dropout (Srivastava et al. 2014): in training an element is zero with a probability, else scaled up to keep the mean.
pub struct DropoutLayer {
    probability: f32,
    layer: u32,
}

impl DropoutLayer {
    /// `layer` tells the model's layers of dropout apart.
    pub fn new(probability: f32, layer: u32) -> Self {
        Self { probability, layer }
    }

    /// `x` `[B, …]`; itself where the probability is 0 or this is no training step ([`Mode::Training`]).
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        match s.mode() {
            Mode::Training { control, seed } if self.probability > 0.0 => {
                dropout(s, x, self.probability, *seed, self.layer, control)
            }
            _ => Ok(x.clone()),
        }
    }
}
