//! The scope of a forward pass: all that a layer needs beside its input.

use std::ops::{Deref, Index};

use super::store::{ConstantId, ParamId};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Tensor};

/// A forward pass under way: its tape, the parameters bound to it ([`super::Parameters::bind`]), the dtype of activations, and
/// whether it is a training step.
///
/// Layers take it as `fc.forward(s, &x)`. It stands for its tape, so that ops take it too, as in `silu(s, &x)`; and `&s[id]` is
/// a parameter or a constant.
pub struct Scope<'t> {
    tape: &'t Tape,
    parameters: Vec<Var>,
    constants: Vec<Var>,
    precision: DType,
    mode: Mode,
}

/// The purpose of a forward pass, where layers differ by it.
#[derive(Clone)]
pub enum Mode {
    /// Sampling, validation, evaluation: dropout passes everything on, batch norms go by their running statistics.
    Inference,
    /// A training step: dropout drops, batch norms go by the batch and move their running statistics.
    Training {
        /// The control buffer, of which masks read the step and the number of the batch's first item.
        control: Tensor,
        /// The run's seed, of which masks are drawn.
        seed: u64,
    },
}

impl<'t> Scope<'t> {
    /// A scope of inference.
    pub(super) fn new(tape: &'t Tape, parameters: Vec<Var>, constants: Vec<Var>, precision: DType) -> Self {
        Self { tape, parameters, constants, precision, mode: Mode::Inference }
    }

    /// The same in a training step: [`Mode::Training`].
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

    /// A parameter of the model whose builder gave `id`.
    fn index(&self, id: ParamId) -> &Var {
        &self.parameters[id.0]
    }
}

impl Index<ConstantId> for Scope<'_> {
    type Output = Var;

    /// A constant of the model whose builder gave `id`.
    fn index(&self, id: ConstantId) -> &Var {
        &self.constants[id.0]
    }
}
