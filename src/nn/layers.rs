//! Layers: parameters with the op that uses them.
//!
//! A layer is called with a [`Scope`], as in `fc.forward(s, &x)`. What surrounds its op in the same pass is said before:
//! `fc.gelu().forward(s, &x)` or `fc.residual(&x).forward(s, &h)`. An operand of such a call may be a [`Var`], an `Option<&Var>`
//! or a reference to an `Option<Var>`; where it is none, nothing is added.
//!
//! # An op as a layer
//!
//! A layer holds the ids of its parameters. `new` declares them, in the order in which a model file has them, and says how
//! they start; `forward` hands them to the op. This is all of it, for an op with one parameter:
//!
//! ```
//! use engine::Result;
//! use engine::nn::{Builder, Init, Kind, ParamId, Scope};
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
//!         let table = builder.add(format!("{name}.table"), [rows, width], Kind::Vector, Init::Normal(0.02));
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
//! [`Kind::Matrix`](super::Kind) is for what matrix products read, in the dtype of activations; all else is
//! [`Kind::Vector`](super::Kind), in `f32`. What differs between training and inference asks [`Scope::mode`]. An op with
//! optional operands gets a struct of its own for its calls, as [`LinearCall`] is one, rather than arguments that are mostly
//! `None`. A parameter that a model adds is added behind the others, or old model files are no longer read.

mod conv;
mod modulation;
mod norm;

pub use conv::{Conv2d, Conv2dCall};
pub use modulation::{Modulated, Modulation};
pub use norm::{BatchNorm, BatchNormCall, GroupNorm, GroupNormCall, LayerNorm, Moving};

use super::scope::{Mode, Scope};
use super::store::{Builder, Init, Kind, ParamId};
use crate::error::Result;
use crate::ops::dropout::dropout;
use crate::ops::embedding::embedding;
use crate::ops::linear::{Activation, linear};
use crate::ops::mask::Mask;
use crate::tape::Var;
use crate::tensor::Tensor;

/// y = x · weightᵀ + bias; `weight` `[out, in]`, `bias` `[out]`.
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
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
            bias: Some(builder.add(format!("{name}.bias"), [fan_out], Kind::Vector, Init::Constant(0.0))),
        }
    }

    /// Without a bias; `weight` `[out, in]` is one that is declared already.
    pub fn of_weight(weight: ParamId) -> Self {
        Self { weight, bias: None }
    }

    fn call(&self) -> LinearCall<'_> {
        LinearCall { layer: self, activation: Activation::None, residual: None }
    }

    /// SiLU(y).
    pub fn silu(&self) -> LinearCall<'_> {
        LinearCall { activation: Activation::Silu, ..self.call() }
    }

    /// GELU(y).
    pub fn gelu(&self) -> LinearCall<'_> {
        LinearCall { activation: Activation::Gelu, ..self.call() }
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

/// A [`Linear`], and what follows it in the same pass: activation(y) + residual.
#[derive(Clone, Copy)]
pub struct LinearCall<'a> {
    layer: &'a Linear,
    activation: Activation,
    residual: Option<&'a Var>,
}

impl<'a> LinearCall<'a> {
    /// Plus `residual` `[…, out]`.
    pub fn residual(self, residual: impl Into<Option<&'a Var>>) -> Self {
        Self { residual: residual.into(), ..self }
    }

    /// As [`Linear::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input or a residual of another width.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let bias = self.layer.bias.map(|bias| &s[bias]);
        linear(s, x, &s[self.layer.weight], bias, self.activation, self.residual)
    }
}

/// A perceptron of two layers: fc2(activation(fc1(x))).
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    /// Declares `name.fc1` and `name.fc2`. `widths`: of the input, between the layers, of the result.
    pub fn new(builder: &mut Builder, name: &str, widths: [usize; 3], activation: Activation) -> Self {
        let [fan_in, hidden, fan_out] = widths;
        Self {
            fc1: Linear::new(builder, &format!("{name}.fc1"), fan_in, hidden),
            fc2: Linear::new(builder, &format!("{name}.fc2"), hidden, fan_out),
            activation,
        }
    }

    /// Plus `residual` `[…, out]`.
    pub fn residual<'a>(&'a self, residual: impl Into<Option<&'a Var>>) -> MlpCall<'a> {
        MlpCall { layer: self, residual: residual.into() }
    }

    /// `x` `[…, in]` to `[…, out]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another width.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        MlpCall { layer: self, residual: None }.forward(s, x)
    }
}

/// An [`Mlp`] plus a residual.
#[derive(Clone, Copy)]
pub struct MlpCall<'a> {
    layer: &'a Mlp,
    residual: Option<&'a Var>,
}

impl MlpCall<'_> {
    /// As [`Mlp::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input or a residual of another width.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let Mlp { fc1, fc2, activation } = self.layer;
        let hidden = LinearCall { activation: *activation, ..fc1.call() }.forward(s, x)?;
        fc2.residual(self.residual).forward(s, &hidden)
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
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for indices of another rank.
    pub fn forward(&self, s: &Scope, indices: &Var) -> Result<Var> {
        embedding(s, &s[self.table], indices, s.precision())
    }
}

/// Dropout (Srivastava et al. 2014): in training an element is zero with a probability, else scaled up to keep the mean.
pub struct Dropout {
    probability: f32,
    layer: u32,
}

impl Dropout {
    /// `layer` tells the model's layers of dropout apart.
    pub fn new(probability: f32, layer: u32) -> Self {
        Self { probability, layer }
    }

    /// `x` `[B, …]`; itself where the probability is 0 or this is no training step ([`Mode::Training`]).
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

    /// For an op that ends in dropout: the mask and the control buffer, where anything is dropped.
    fn mask<'s>(&self, s: &'s Scope) -> Result<Option<(Mask, &'s Tensor)>> {
        match s.mode() {
            Mode::Training { control, seed } if self.probability > 0.0 => {
                Ok(Some((Mask::new(self.probability, *seed, self.layer)?, control)))
            }
            _ => Ok(None),
        }
    }
}
