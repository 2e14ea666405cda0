//! Layers: parameters with the op that uses them.

use super::store::{Bound, Builder, Init, Kind, ParamId};
use crate::error::Result;
use crate::ops::embedding::embedding;
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::linear::{Activation, linear};
use crate::tape::{Tape, Var};

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
    pub fn forward(
        &self,
        tape: &Tape,
        parameters: &Bound,
        x: &Var,
        activation: Activation,
        residual: Option<&Var>,
    ) -> Result<Var> {
        linear(tape, x, parameters.var(self.weight), Some(parameters.var(self.bias)), activation, residual)
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
    pub fn forward(&self, tape: &Tape, parameters: &Bound, x: &Var) -> Result<Var> {
        let affine = Affine::Parameters { weight: parameters.var(self.weight), bias: parameters.var(self.bias) };
        layer_norm(tape, x, affine, Self::EPSILON)
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
    pub fn forward(&self, tape: &Tape, parameters: &Bound, indices: &Var) -> Result<Var> {
        embedding(tape, parameters.var(self.table), indices, parameters.precision())
    }
}
