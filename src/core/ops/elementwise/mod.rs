//! Elementwise ops: one family, a functor each.
//!
//! | op | value | gradients |
//! |---|---|---|
//! | [`gelu`], [`silu`], [`relu`], [`relu6`] | f(x) | dx = dy · f′(x) |
//! | [`add`] | a + b | dy, dy |
//! | [`scale`] | factor · x | dx = factor · dy |
//! | [`cast`] | x in another dtype | dx = dy in x's dtype |
//!
//! The tape sums gradients with kernels of this family: `tape/sum.rs`.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{self, Destination, Tape, Var};
use crate::tensor::{Cost, DType, Tensor};

const OP: &str = "elementwise";

/// The functions of one variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Gelu,
    Silu,
    Relu,
    Relu6,
}

/// GELU in the tanh form (Hendrycks and Gimpel 2016) of `x`, any shape. Saves `x`.
pub fn gelu(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Gelu, "gelu_fwd", "gelu_bwd")
}

/// SiLU (Elfwing et al. 2017) of `x`, any shape. Saves `x`.
pub fn silu(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Silu, "silu_fwd", "silu_bwd")
}

/// ReLU of `x`, any shape: max(x, 0), and at 0 no gradient. A NaN stays. Saves `x`.
pub fn relu(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Relu, "relu_fwd", "relu_bwd")
}

/// min(ReLU(x), 6) (Howard et al. 2017, MobileNets) of `x`, any shape; no gradient at 0 and at 6. A NaN stays. Saves `x`.
pub fn relu6(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Relu6, "relu6_fwd", "relu6_bwd")
}

fn unary(tape: &Tape, x: &Var, function: Function, fwd: &'static str, bwd: &'static str) -> Result<Var> {
    let y = x.context().empty(x.shape(), x.dtype())?;
    x.context().charge(fwd, Cost::memory(2 * y.bytes()));
    run!(held y, unary(function, x.tensor(), &y))?;
    let saved = x.tensor().clone();
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        backward.context().charge(bwd, Cost::memory(3 * dy.bytes()));
        run!(held dy, unary_backward(function, &saved, dy, &dx))
    }))
}

/// `a + b`, of the same shape and dtype. Saves nothing.
///
/// # Errors
/// [`Error::Shape`] where shapes or dtypes differ.
pub fn add(tape: &Tape, a: &Var, b: &Var) -> Result<Var> {
    same("add", a.tensor(), b.tensor())?;
    let y = a.context().empty(a.shape(), a.dtype())?;
    a.context().charge("add_fwd", Cost::memory(3 * y.bytes()));
    run!(held y, add(a.tensor(), b.tensor(), &y))?;
    let mut inputs = tape.inputs(OP);
    let (da, db) = (inputs.add("a", a), inputs.add("b", b));
    Ok(inputs.record(y, move |backward| {
        backward.pass(da)?;
        backward.pass(db)
    }))
}

/// `factor · x`, any shape. Saves nothing. The factor is fixed when a program is captured.
pub fn scale(tape: &Tape, x: &Var, factor: f32) -> Result<Var> {
    let y = x.context().empty(x.shape(), x.dtype())?;
    x.context().charge("scale_fwd", Cost::memory(2 * y.bytes()));
    run!(held y, scale(&Destination::overwrite(&y), x.tensor(), factor))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        backward.context().charge("scale_bwd", Cost::memory(2 * dx.bytes()));
        run!(held dy, scale(&dx, dy, factor))
    }))
}

/// `x` in another float dtype: `f32` or `bf16`. Where `x` has that dtype already, `x` itself. In `f64` (oracle runs) a cast to
/// `f32` stays in `f64`, as everything does there.
///
/// # Errors
/// [`Error::Unsupported`] for other dtypes.
pub fn cast(tape: &Tape, x: &Var, dtype: DType) -> Result<Var> {
    if x.dtype() == dtype || (x.dtype(), dtype) == (DType::F64, DType::F32) {
        return Ok(x.clone());
    }
    let y = x.context().empty(x.shape(), dtype)?;
    x.context().charge("cast_fwd", Cost::memory(x.tensor().bytes() + y.bytes()));
    tape::convert(&Destination::overwrite(&y), x.tensor())?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        backward.context().charge("cast_bwd", Cost::memory(dx.bytes() + backward.gradient().bytes()));
        tape::convert(&dx, backward.gradient())
    }))
}

/// Overwrites `to` with `x` in the dtype of `to`, of as many elements; outside of any tape, and in captured programs too. `f32` becomes
/// `bf16` to the nearest, ties to even, on every device; a NaN becomes a quiet NaN with its sign and what is left of its payload.
///
/// # Errors
/// [`Error::Shape`] where the lengths differ, [`Error::Unsupported`] for a pair of dtypes that the device does not convert.
pub fn cast_into(x: &Tensor, to: &Tensor) -> Result<()> {
    tape::convert(&Destination::overwrite(to), x)
}

fn same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Err(Error::shape(op, format!("{} {} and {} {}", a.shape(), a.dtype(), b.shape(), b.dtype())));
    }
    Ok(())
}
