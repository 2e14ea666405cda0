//! Norms: by token, by group of channels, by batch.

use super::super::scope::Scope;
use super::super::store::{Builder, Init, ParamId, ParameterKind};
use super::Dropout;
use crate::error::Result;
use crate::ops::batch_norm::{self, Running, Statistics, batch_norm};
use crate::ops::group_norm_silu::{self, group_norm_silu};
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::tape::Var;

/// Declares `name.weight` (ones) and `name.bias` (zeros), `[width]`.
fn affine(builder: &mut Builder, name: &str, width: usize) -> (ParamId, ParamId) {
    let mut add = |part: &str, start| {
        builder.add(format!("{name}.{part}"), [width], ParameterKind::Vector, Init::Constant(start))
    };
    (add("weight", 1.0), add("bias", 0.0))
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
        let (weight, bias) = affine(builder, name, width);
        Self { weight, bias }
    }

    /// `x` `[…, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another width.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let affine = Affine::Parameters { weight: &s[self.weight], bias: &s[self.bias] };
        layer_norm(s, x, affine, Self::EPSILON)
    }
}

/// Group norm with weight and bias; ε = 1e-6, as in the networks of Ho et al. 2020.
pub struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    groups: usize,
}

impl GroupNorm {
    /// ε of every group norm here.
    pub const EPSILON: f32 = 1e-6;

    /// Declares `name.weight` (ones) and `name.bias` (zeros), `[channels]`; `groups` divides `channels`.
    pub fn new(builder: &mut Builder, name: &str, channels: usize, groups: usize) -> Self {
        let (weight, bias) = affine(builder, name, channels);
        Self { weight, bias, groups }
    }

    fn call(&self) -> GroupNormCall<'_> {
        GroupNormCall { layer: self, silu: false, skip: None, scale_shift: None, dropout: None }
    }

    /// SiLU(GN(x)).
    pub fn silu(&self) -> GroupNormCall<'_> {
        GroupNormCall { silu: true, ..self.call() }
    }

    /// `x` `[B, …, channels]`, normed.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another number of channels.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        self.call().forward(s, x)
    }
}

/// A [`GroupNorm`] with fused operations: dropout(SiLU(GN(\[x | skip\]) · (1 + scale) + shift)).
#[derive(Clone, Copy)]
pub struct GroupNormCall<'a> {
    layer: &'a GroupNorm,
    silu: bool,
    skip: Option<&'a Var>,
    scale_shift: Option<&'a Var>,
    dropout: Option<&'a Dropout>,
}

impl<'a> GroupNormCall<'a> {
    /// Normalizes the concatenation of x `[B, …, Cx]` with `skip` `[B, …, Cs]`: `[B, …, Cx + Cs]`.
    pub fn skip(self, skip: impl Into<Option<&'a Var>>) -> Self {
        Self { skip: skip.into(), ..self }
    }

    /// Multiplies the normalized x by 1 plus the first half of `scale_shift` `[B, 2 channels]` and adds its second half; before the SiLU.
    pub fn scale_shift(self, scale_shift: impl Into<Option<&'a Var>>) -> Self {
        Self { scale_shift: scale_shift.into(), ..self }
    }

    /// Applies `dropout`, in training only.
    pub fn dropout(self, dropout: &'a Dropout) -> Self {
        Self { dropout: Some(dropout), ..self }
    }

    /// As [`GroupNorm::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for operands of mismatched shapes.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let GroupNorm { weight, bias, groups } = *self.layer;
        let norm = group_norm_silu::GroupNormSilu { groups, epsilon: GroupNorm::EPSILON, silu: self.silu };
        let dropout = self.dropout.map(|dropout| dropout.mask(s)).transpose()?.flatten();
        group_norm_silu(s, x, self.skip, [&s[weight], &s[bias]], self.scale_shift, norm, dropout)
    }
}

/// When a batch norm uses batch statistics and updates its running statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunningStatistics {
    /// In training steps; otherwise it uses the running statistics.
    Track,
    /// Never: it uses the running statistics in training too.
    Freeze,
}

/// Batch norm with weight, bias and running statistics; PyTorch's constants: ε = 1e-5, momentum 0.1.
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
    mean: ParamId,
    variance: ParamId,
    running: RunningStatistics,
}

impl BatchNorm {
    /// Declares `name.weight` (ones), `name.bias` (zeros) and the buffers `name.running_mean` (zeros) and `name.running_var` (ones),
    /// each `[channels]`.
    pub fn new(builder: &mut Builder, name: &str, channels: usize, running: RunningStatistics) -> Self {
        let (weight, bias) = affine(builder, name, channels);
        let mut buffer =
            |part: &str, start| builder.buffer(format!("{name}.{part}"), [channels], Init::Constant(start));
        Self { weight, bias, mean: buffer("running_mean", 0.0), variance: buffer("running_var", 1.0), running }
    }

    fn call(&self) -> BatchNormCall<'_> {
        BatchNormCall { layer: self, relu: false, residual: None }
    }

    /// ReLU(BN(x)).
    pub fn relu(&self) -> BatchNormCall<'_> {
        BatchNormCall { relu: true, ..self.call() }
    }

    /// `x` `[B, …, channels]`, normed.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another number of channels.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        self.call().forward(s, x)
    }
}

/// A [`BatchNorm`] with fused operations: ReLU(BN(x) + residual).
#[derive(Clone, Copy)]
pub struct BatchNormCall<'a> {
    layer: &'a BatchNorm,
    relu: bool,
    residual: Option<&'a Var>,
}

impl<'a> BatchNormCall<'a> {
    /// Adds `residual`, of the shape of x; before the ReLU.
    pub fn residual(self, residual: impl Into<Option<&'a Var>>) -> Self {
        Self { residual: residual.into(), ..self }
    }

    /// As [`BatchNorm::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for operands of mismatched shapes.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let BatchNorm { weight, bias, mean, variance, running } = *self.layer;
        let batch = s.is_training() && running == RunningStatistics::Track;
        let norm = batch_norm::BatchNorm {
            statistics: if batch { Statistics::Batch } else { Statistics::Running },
            relu: self.relu,
            ..batch_norm::BatchNorm::default()
        };
        let running = Running { mean: s[mean].tensor().clone(), variance: s[variance].tensor().clone() };
        batch_norm(s, x, self.residual, &s[weight], &s[bias], &running, norm)
    }
}
