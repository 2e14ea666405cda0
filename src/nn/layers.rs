//! Layers: parameters with the op that uses them.
//!
//! A layer is called with a [`Scope`], as in `fc.forward(s, &x)`. Fused operations are added before: `fc.gelu().forward(s, &x)` or
//! `fc.residual(&x).forward(s, &h)`. An operand of such a call may be a [`Var`], an `Option<&Var>` or a reference to an
//! `Option<Var>`, and a gate a [`Gate`] or an `Option<Gate>`; None adds nothing.
//!
//! # An op as a layer
//!
//! A layer holds the ids of its parameters. `new` declares them, in the order of the model file, with their initialization;
//! `forward` passes them to the op. For an op with one parameter, this is all:
//!
//! ```
//! use engine::Result;
//! use engine::nn::{Builder, Init, ParameterKind, ParamId, Scope};
//! use engine::ops::embedding::embedding; // my_op
//! use engine::tape::Var;
//!
//! /// The paper, the equation, and the shapes of the parameters: `table` `[rows, width]`.
//! pub struct MyLayer {
//!     table: ParamId,
//! }
//!
//! impl MyLayer {
//!     /// Declares `name.table`, normal with standard deviation 0.02.
//!     pub fn new(builder: &mut Builder, name: &str, rows: usize, width: usize) -> Self {
//!         let table = builder.add(format!("{name}.table"), [rows, width], ParameterKind::Vector, Init::Normal(0.02));
//!         Self { table }
//!     }
//!
//!     /// `x` `[B]` (i32) to `[B, width]` in the dtype of activations.
//!     pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
//!         embedding(s, &s[self.table], x, s.precision())
//!     }
//! }
//! ```
//!
//! [`ParameterKind::Matrix`](super::ParameterKind) is for operands of matrix products, in the dtype of activations; everything else is
//! [`ParameterKind::Vector`](super::ParameterKind), in `f32`. For differences between training and inference use [`Scope::mode`]. An op with
//! optional operands gets a struct for its calls, such as [`LinearCall`], rather than arguments that are mostly `None`. Add new
//! parameters of a model behind the others, or old model files can no longer be read.

mod conv;
mod modulation;
mod norm;

pub use conv::{Conv2d, Conv2dCall};
pub use modulation::{Modulated, Modulation};
pub use norm::{BatchNorm, BatchNormCall, GroupNorm, GroupNormCall, LayerNorm, RunningStatistics};

use super::scope::{Mode, Scope};
use super::store::{Builder, Init, ParamId, ParameterKind};
use crate::error::Result;
use crate::ops::dropout::dropout;
use crate::ops::embedding::embedding;
use crate::ops::linear::{Activation, Gate, gated_linear, linear};
use crate::ops::mask::Mask;
use crate::tape::Var;
use crate::tensor::Tensor;

/// y = x · weightᵀ + bias; `weight` `[out, in]`, `bias` `[out]`.
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// Declares `name.weight` and `name.bias`, the weight with Glorot initialization, the bias zero.
    pub fn new(builder: &mut Builder, name: &str, fan_in: usize, fan_out: usize) -> Self {
        Self::with_init(builder, name, fan_in, fan_out, Init::xavier(fan_in, fan_out))
    }

    /// As [`Linear::new`] with another initialization of the weight.
    pub fn with_init(builder: &mut Builder, name: &str, fan_in: usize, fan_out: usize, init: Init) -> Self {
        Self {
            weight: builder.add(format!("{name}.weight"), [fan_out, fan_in], ParameterKind::Matrix, init),
            bias: Some(builder.add(format!("{name}.bias"), [fan_out], ParameterKind::Vector, Init::Constant(0.0))),
        }
    }

    /// Without a bias; `weight` `[out, in]` is already declared.
    pub fn of_weight(weight: ParamId) -> Self {
        Self { weight, bias: None }
    }

    fn call(&self) -> LinearCall<'_> {
        LinearCall { layer: self, activation: Activation::None, gate: None, residual: None }
    }

    /// SiLU(y).
    pub fn silu(&self) -> LinearCall<'_> {
        LinearCall { activation: Activation::Silu, ..self.call() }
    }

    /// GELU(y).
    pub fn gelu(&self) -> LinearCall<'_> {
        LinearCall { activation: Activation::Gelu, ..self.call() }
    }

    /// `gate` · y, for an input `[B, …, in]`.
    pub fn gate<'a>(&'a self, gate: impl Into<Option<Gate<'a>>>) -> LinearCall<'a> {
        LinearCall { gate: gate.into(), ..self.call() }
    }

    /// y + `residual` `[…, out]`.
    pub fn residual<'a>(&'a self, residual: impl Into<Option<&'a Var>>) -> LinearCall<'a> {
        self.call().residual(residual)
    }

    /// `x` `[…, in]` to `[…, out]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another width.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        self.call().forward(s, x)
    }
}

/// A [`Linear`] with fused operations: activation(y) + residual, or gate · y + residual.
#[derive(Clone, Copy)]
pub struct LinearCall<'a> {
    layer: &'a Linear,
    activation: Activation,
    /// Only where there is no activation.
    gate: Option<Gate<'a>>,
    residual: Option<&'a Var>,
}

impl<'a> LinearCall<'a> {
    /// Adds `residual` `[…, out]`.
    pub fn residual(self, residual: impl Into<Option<&'a Var>>) -> Self {
        Self { residual: residual.into(), ..self }
    }

    /// As [`Linear::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input or a residual of another width, and a gate of other samples
    /// or beyond its matrix's columns.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let (weight, bias) = (&s[self.layer.weight], self.layer.bias.map(|bias| &s[bias]));
        match self.gate {
            Some(gate) => gated_linear(s, x, weight, bias, gate, self.residual),
            None => linear(s, x, weight, bias, self.activation, self.residual),
        }
    }
}

/// A two-layer perceptron: fc2(activation(fc1(x))).
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    /// Declares `name.fc1` and `name.fc2`. `widths`: of the input, the hidden layer and the result.
    pub fn new(builder: &mut Builder, name: &str, widths: [usize; 3], activation: Activation) -> Self {
        let [fan_in, hidden, fan_out] = widths;
        Self {
            fc1: Linear::new(builder, &format!("{name}.fc1"), fan_in, hidden),
            fc2: Linear::new(builder, &format!("{name}.fc2"), hidden, fan_out),
            activation,
        }
    }

    fn call(&self) -> MlpCall<'_> {
        MlpCall { layer: self, gate: None, residual: None }
    }

    /// Multiplies the result by `gate`, for an input `[B, …, in]`.
    pub fn gate<'a>(&'a self, gate: impl Into<Option<Gate<'a>>>) -> MlpCall<'a> {
        MlpCall { gate: gate.into(), ..self.call() }
    }

    /// Adds `residual` `[…, out]`.
    pub fn residual<'a>(&'a self, residual: impl Into<Option<&'a Var>>) -> MlpCall<'a> {
        self.call().residual(residual)
    }

    /// `x` `[…, in]` to `[…, out]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another width.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        self.call().forward(s, x)
    }
}

/// An [`Mlp`] with fused operations: gate · y + residual.
#[derive(Clone, Copy)]
pub struct MlpCall<'a> {
    layer: &'a Mlp,
    gate: Option<Gate<'a>>,
    residual: Option<&'a Var>,
}

impl<'a> MlpCall<'a> {
    /// Adds `residual` `[…, out]`.
    pub fn residual(self, residual: impl Into<Option<&'a Var>>) -> Self {
        Self { residual: residual.into(), ..self }
    }

    /// As [`Mlp::forward`].
    ///
    /// # Errors
    /// As [`LinearCall::forward`].
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let Mlp { fc1, fc2, activation } = self.layer;
        let hidden = LinearCall { activation: *activation, ..fc1.call() }.forward(s, x)?;
        fc2.gate(self.gate).residual(self.residual).forward(s, &hidden)
    }
}

/// A table of vectors, `[rows, width]`.
pub struct Embedding {
    table: ParamId,
}

impl Embedding {
    /// Declares `name`, normal with standard deviation 0.02.
    pub fn new(builder: &mut Builder, name: &str, rows: usize, width: usize) -> Self {
        Self { table: builder.add(name, [rows, width], ParameterKind::Vector, Init::Normal(0.02)) }
    }

    /// The rows at `indices` `[B]` (i32): `[B, width]` in the dtype of activations.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for indices of another rank.
    pub fn forward(&self, s: &Scope, indices: &Var) -> Result<Var> {
        embedding(s, &s[self.table], indices, s.precision())
    }
}

/// Dropout (Srivastava et al. 2014): in training an element is zeroed with a probability, and otherwise scaled to keep the mean.
pub struct Dropout {
    probability: f32,
    layer: u32,
}

impl Dropout {
    /// `layer` distinguishes the model's dropout layers.
    pub fn new(probability: f32, layer: u32) -> Self {
        Self { probability, layer }
    }

    /// `x` `[B, …]`; returned unchanged if the probability is 0 or this is not a training step ([`Mode::Training`]).
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input without a batch.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        match s.mode() {
            Mode::Training { control, seed } if self.probability > 0.0 => {
                dropout(s, x, self.probability, *seed, self.layer, control)
            }
            _ => Ok(x.clone()),
        }
    }

    /// For an op fused with dropout: the mask and the control buffer, if elements are dropped.
    fn mask<'s>(&self, s: &'s Scope) -> Result<Option<(Mask, &'s Tensor)>> {
        match s.mode() {
            Mode::Training { control, seed } if self.probability > 0.0 => {
                Ok(Some((Mask::new(self.probability, *seed, self.layer)?, control)))
            }
            _ => Ok(None),
        }
    }
}
