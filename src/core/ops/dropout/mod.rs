//! Dropout: y = x · keep / (1 − p), each element kept with probability 1 − p.
//!
//! Which elements are kept: [`Mask`]. Backward draws the mask again: nothing is saved, and the control buffer has to hold the same
//! words then.
//!
//! Srivastava et al. 2014, *Dropout: A Simple Way to Prevent Neural Networks from Overfitting*.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::Result;
use crate::ops::mask::Mask;
use crate::ops::{control, run};
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Cost, Tensor};

const OP: &str = "dropout";

/// Sets elements of `x` `[B, …]` to zero with `probability` (below 1) and divides the others by 1 − `probability`; `layer` (below
/// 2²⁴) numbers the calls of one model, so that each draws a mask of its own. Probability 0 is the identity.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for a probability outside [0, 1), too large a layer, or what is no control buffer.
pub fn dropout(tape: &Tape, x: &Var, probability: f32, seed: u64, layer: u32, control: &Tensor) -> Result<Var> {
    control::check(OP, control)?;
    let mask = Mask::new(probability, seed, layer)?;
    if probability == 0.0 || x.tensor().is_empty() {
        return Ok(x.clone());
    }
    let y = x.context().empty(x.shape(), x.dtype())?;
    apply("dropout_fwd", mask, x.tensor(), control, &Destination::overwrite(&y))?;
    let control = control.clone();
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| match backward.destination(dx)? {
        Some(dx) => apply("dropout_bwd", mask, backward.gradient(), &control, &dx),
        None => Ok(()),
    }))
}

/// `to` = `from` · keep / (1 − p), or `+=`: forward and backward.
fn apply(name: &'static str, mask: Mask, from: &Tensor, control: &Tensor, to: &Destination) -> Result<()> {
    let context = from.context();
    // A Philox call for four elements is about 100 operations.
    let bytes = from.bytes() + to.bytes() + control.bytes();
    context.charge(name, Cost::scalar(26 * from.len(), bytes));
    run!(held from, apply(mask, from, control, to))
}
