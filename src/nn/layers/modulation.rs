//! Shifts, scales and gates that are linear in a condition.

use super::super::scope::Scope;
use super::super::store::{Builder, Init};
use super::{LayerNorm, Linear};
use crate::error::Result;
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::linear::Gate;
use crate::tape::Var;

/// Vectors linear in a condition, which shift, scale and gate activations (Perez et al. 2018, *FiLM*; Peebles and Xie 2023,
/// *Scalable Diffusion Models with Transformers*: adaLN-zero). They start at zero: every norm starts as a plain one and every gate
/// closed.
pub struct Modulation {
    linear: Linear,
    width: usize,
}

impl Modulation {
    /// Declares `name.weight` and `name.bias`, zeros: `count` vectors of `width` from a condition of width `condition`.
    pub fn new(builder: &mut Builder, name: &str, condition: usize, width: usize, count: usize) -> Self {
        let linear = Linear::with_init(builder, name, condition, count * width, Init::Constant(0.0));
        Self { linear, width }
    }

    /// The vectors m_0, m_1, … for a `condition` `[B, C]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for a condition of another width.
    pub fn forward(&self, s: &Scope, condition: &Var) -> Result<Modulated> {
        Ok(Modulated { vectors: self.linear.forward(s, condition)?, width: self.width })
    }
}

/// The vectors of one condition, by index.
pub struct Modulated {
    vectors: Var,
    width: usize,
}

impl Modulated {
    /// LN(x) · (1 + m_scale) + m_shift, where the scale vector follows the one at index `shift`; `x` `[B, …, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another width, and for missing vectors.
    pub fn norm(&self, s: &Scope, x: &Var, shift: usize) -> Result<Var> {
        let column = |number: usize| number * self.width;
        let affine = Affine::Modulation { matrix: &self.vectors, shift: column(shift), scale: column(shift + 1) };
        layer_norm(s, x, affine, LayerNorm::EPSILON)
    }

    /// The vector m_number, as a factor of a layer's result `[B, …, width]`: `fc.gate(m.gate(2)).residual(&x)` is x + m_2 · fc.
    pub fn gate(&self, number: usize) -> Gate<'_> {
        Gate { modulation: &self.vectors, column: number * self.width }
    }
}
