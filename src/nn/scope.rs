//! The scope of a forward pass: everything that a layer needs besides its input.

use std::ops::{Deref, Index};

use super::store::{ConstantId, ParamId};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Tensor};

/// A forward pass in progress: its tape, the parameters bound to it ([`super::Parameters::bind`]), the dtype of activations, and
/// whether it is a training step.
///
/// Layers take it as `fc.forward(s, &x)`. It dereferences to its tape, so ops take it too, as in `silu(s, &x)`; `&s[id]` is a
/// parameter or a constant.
pub struct Scope<'t> {
    tape: &'t Tape,
    parameters: Vec<Var>,
    constants: Vec<Var>,
    precision: DType,
    mode: Mode,
}

/// The purpose of a forward pass, for layers that depend on it.
#[derive(Clone)]
pub enum Mode {
    /// Sampling, validation, evaluation: dropout is off, batch norms use their running statistics.
    Inference,
    /// A training step: dropout is on, batch norms use batch statistics and update their running statistics.
    Training {
        /// The control buffer, from which masks read the step and the index of the batch's first item.
        control: Tensor,
        /// The run's seed, from which masks are drawn.
        seed: u64,
    },
}

impl<'t> Scope<'t> {
    /// A scope for inference.
    pub(super) fn new(tape: &'t Tape, parameters: Vec<Var>, constants: Vec<Var>, precision: DType) -> Self {
        Self { tape, parameters, constants, precision, mode: Mode::Inference }
    }

    /// Turns it into a training step: [`Mode::Training`].
    pub fn in_training(self, control: &Tensor, seed: u64) -> Self {
        Self { mode: Mode::Training { control: control.clone(), seed }, ..self }
    }

    /// The tape.
    pub fn tape(&self) -> &'t Tape {
        self.tape
    }

    /// The dtype of activations.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// Training or inference.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Whether this is a training step.
    pub fn is_training(&self) -> bool {
        matches!(self.mode, Mode::Training { .. })
    }
}

impl Deref for Scope<'_> {
    type Target = Tape;

    fn deref(&self) -> &Tape {
        self.tape
    }
}

impl Index<ParamId> for Scope<'_> {
    type Output = Var;

    /// The parameter with the id `id`.
    fn index(&self, id: ParamId) -> &Var {
        &self.parameters[id.0]
    }
}

impl Index<ConstantId> for Scope<'_> {
    type Output = Var;

    /// The constant with the id `id`.
    fn index(&self, id: ConstantId) -> &Var {
        &self.constants[id.0]
    }
}
