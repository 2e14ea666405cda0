//! Elementwise ops: one family, a functor each.
//!
//! | op | value | gradients |
//! |---|---|---|
//! | [`gelu`], [`silu`] | f(x) | dx = dy · f′(x) |
//! | [`add`] | a + b | dy, dy |
//! | [`scale`] | factor · x | dx = factor · dy |
//! | [`cast`] | x in another dtype | dx = dy in x's dtype |
//! | [`gate`] | x + g · y, g per sample and column | dx = dout, dy = g · dout, dg = Σ over tokens of dout · y |
//!
//! [`add_into`] is the tape's own sum of gradients.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Accumulate, Destination, Tape, Var};
use crate::tensor::{Backend, Cost, DType, Tensor};

const OP: &str = "elementwise";

/// The functions of one variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Gelu,
    Silu,
}

/// GELU in the tanh form (Hendrycks and Gimpel 2016) of `x`, any shape. Saves `x`.
pub fn gelu(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Gelu, "gelu_fwd", "gelu_bwd")
}

/// SiLU (Elfwing et al. 2017) of `x`, any shape. Saves `x`.
pub fn silu(tape: &Tape, x: &Var) -> Result<Var> {
    unary(tape, x, Function::Silu, "silu_fwd", "silu_bwd")
}

fn unary(tape: &Tape, x: &Var, function: Function, fwd: &'static str, bwd: &'static str) -> Result<Var> {
    let y = x.context().empty(x.shape(), x.dtype())?;
    x.context().charge(fwd, Cost::memory(2 * y.bytes()));
    match y.context().backend() {
        Backend::Plan => {}
        Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
            cpu::unary::<T>(function, x.tensor(), &y);
            Ok(())
        })?,
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
            cuda::unary::<T>(accelerator, function, x.tensor(), &y)
        })?,
    }
    let saved = x.tensor().clone();
    Ok(tape.record(&[x], y, move |backward| {
        let dy = backward.gradient().clone();
        let Some(dx) = backward.destination(0)? else { return Ok(()) };
        backward.context().charge(bwd, Cost::memory(3 * dy.bytes()));
        match dy.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::unary_backward::<T>(function, &saved, &dy, &dx);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::unary_backward::<T>(accelerator, function, &saved, &dy, &dx)
            }),
        }
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
    match y.context().backend() {
        Backend::Plan => {}
        Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
            cpu::add::<T>(a.tensor(), b.tensor(), &y);
            Ok(())
        })?,
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
            cuda::add::<T>(accelerator, a.tensor(), b.tensor(), &y)
        })?,
    }
    Ok(tape.record(&[a, b], y, |backward| {
        backward.pass(0, add_into)?;
        backward.pass(1, add_into)
    }))
}

/// `factor · x`, any shape. Saves nothing. The factor is fixed when a program is captured.
pub fn scale(tape: &Tape, x: &Var, factor: f32) -> Result<Var> {
    let y = x.context().empty(x.shape(), x.dtype())?;
    let all = Destination { tensor: y.clone(), mode: Accumulate::Write };
    x.context().charge("scale_fwd", Cost::memory(2 * y.bytes()));
    scale_into(&all, x.tensor(), factor)?;
    Ok(tape.record(&[x], y, move |backward| {
        let Some(dx) = backward.destination(0)? else { return Ok(()) };
        backward.context().charge("scale_bwd", Cost::memory(2 * dx.tensor.bytes()));
        scale_into(&dx, backward.gradient(), factor)
    }))
}

fn scale_into(to: &Destination, x: &Tensor, factor: f32) -> Result<()> {
    match x.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, x.dtype(), T => {
            cpu::scale::<T>(to, x, factor);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, x.dtype(), T => {
            cuda::scale::<T>(accelerator, to, x, factor)
        }),
    }
}

/// `x` in another float dtype: `f32` or `bf16`. Where `x` has that dtype already, `x` itself. In `f64` (oracle runs) a cast to
/// `f32` stays in `f64`, as everything does there.
///
/// # Errors
/// [`Error::Unsupported`] for `bf16` on the CPU.
pub fn cast(tape: &Tape, x: &Var, dtype: DType) -> Result<Var> {
    if x.dtype() == dtype || (x.dtype(), dtype) == (DType::F64, DType::F32) {
        return Ok(x.clone());
    }
    let y = x.context().empty(x.shape(), dtype)?;
    let all = Destination { tensor: y.clone(), mode: Accumulate::Write };
    x.context().charge("cast_fwd", Cost::memory(x.tensor().bytes() + y.bytes()));
    accumulate(&all, x.tensor())?;
    Ok(tape.record(&[x], y, |backward| {
        let Some(dx) = backward.destination(0)? else { return Ok(()) };
        backward.context().charge("cast_bwd", Cost::memory(dx.tensor.bytes() + backward.gradient().bytes()));
        accumulate(&dx, backward.gradient())
    }))
}

/// Writes or adds `gradient` into a destination of as many elements, in its dtype: for [`Backward::pass`] and the tape's sums.
///
/// [`Backward::pass`]: crate::tape::Backward::pass
///
/// # Errors
/// [`Error::Shape`] where the lengths differ, [`Error::Unsupported`] for a pair of dtypes that no device adds.
pub fn add_into(destination: &Destination, gradient: &Tensor) -> Result<()> {
    if destination.tensor.len() != gradient.len() {
        return Err(Error::shape("add", format!("{} into {}", gradient.shape(), destination.tensor.shape())));
    }
    let reads = 1 + (destination.mode == Accumulate::Add) as usize;
    gradient.context().charge("add_into", Cost::memory(gradient.bytes() + reads * destination.tensor.bytes()));
    accumulate(destination, gradient)
}

fn accumulate(to: &Destination, x: &Tensor) -> Result<()> {
    if to.tensor.dtype() == x.dtype() && to.mode == Accumulate::Write {
        return to.tensor.copy_from(x);
    }
    match x.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu if to.tensor.dtype() == x.dtype() => with_host_float!(OP, x.dtype(), T => {
            cpu::add_into::<T>(&to.tensor, x);
            Ok(())
        }),
        Backend::Cpu => Err(Error::Unsupported {
            op: OP,
            device: "cpu".into(),
            reason: format!("{} from {}: the CPU computes in one dtype; use f32", to.tensor.dtype(), x.dtype()),
        }),
        Backend::Accelerator(accelerator) => match (x.dtype(), to.tensor.dtype()) {
            (DType::F32, DType::BF16) => cuda::narrow(accelerator, to, x),
            (DType::BF16, DType::F32) => cuda::widen(accelerator, to, x),
            (from, dtype) if from == dtype => with_kernel_float!(OP, accelerator, from, T => {
                cuda::add_into::<T>(accelerator, &to.tensor, x)
            }),
            (from, dtype) => Err(Error::Unsupported {
                op: OP,
                device: accelerator.name(),
                reason: format!("no kernel makes {dtype} of {from}; use f32 or bf16"),
            }),
        },
    }
}

fn same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Err(Error::shape(op, format!("{} {} and {} {}", a.shape(), a.dtype(), b.shape(), b.dtype())));
    }
    Ok(())
}

/// Sizes of a gated sum.
#[derive(Clone, Copy, Debug)]
struct Gate {
    rows: usize,
    cols: usize,
    /// Tokens per sample.
    rows_per_sample: usize,
    /// Columns of the modulation matrix.
    stride: usize,
    column: usize,
}

/// `x + g · y`: `x` and `y` `[B, T, D]` (or `[B, …, D]`), g being columns `column .. column + D` of `modulation` `[B, M]`, of their dtype
/// (adaLN-zero; Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*). Saves `y`.
///
/// # Errors
/// [`Error::Shape`] where these do not fit each other.
pub fn gate(tape: &Tape, x: &Var, y: &Var, modulation: &Var, column: usize) -> Result<Var> {
    same("gate", x.tensor(), y.tensor())?;
    let samples = x.sizes()[0];
    let sizes = Gate {
        rows: x.shape().rows(),
        cols: x.shape().last(),
        rows_per_sample: x.shape().rows() / samples.max(1),
        stride: modulation.shape().last(),
        column,
    };
    if modulation.shape().rows() != samples || column + sizes.cols > sizes.stride || modulation.dtype() != x.dtype() {
        return Err(Error::shape(
            "gate",
            format!(
                "modulation {} {}, column {column}, for x {} {}",
                modulation.shape(),
                modulation.dtype(),
                x.shape(),
                x.dtype()
            ),
        ));
    }
    let out = x.context().empty(x.shape(), x.dtype())?;
    x.context().charge("gate_fwd", Cost::memory(3 * out.bytes() + samples * sizes.cols * out.dtype().size()));
    match out.context().backend() {
        Backend::Plan => {}
        Backend::Cpu => with_host_float!(OP, out.dtype(), T => {
            cpu::gate::<T>(sizes, x.tensor(), y.tensor(), modulation.tensor(), &out);
            Ok(())
        })?,
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, out.dtype(), T => {
            cuda::gate::<T>(accelerator, sizes, x.tensor(), y.tensor(), modulation.tensor(), &out)
        })?,
    }
    let saved = modulation.needs_gradient().then(|| y.tensor().clone());
    let matrix = modulation.tensor().clone();
    Ok(tape.record(&[x, y, modulation], out, move |backward| {
        backward.pass(0, add_into)?;
        let dout = backward.gradient().clone();
        let dy = backward.destination(1)?;
        let dm = backward.destination(2)?;
        if dy.is_none() && dm.is_none() {
            return Ok(());
        }
        // Only this call's columns get something: the others start from zero.
        if let Some(dm) = dm.as_ref().filter(|dm| dm.mode == Accumulate::Write) {
            dm.tensor.zero()?;
        }
        let dm = dm.map(|dm| dm.tensor);
        let passes = 1 + dy.is_some() as usize + dm.is_some() as usize;
        backward.context().charge("gate_bwd", Cost::memory(passes * dout.bytes()));
        let call =
            GateBackward { sizes, dout: &dout, y: saved.as_ref(), matrix: &matrix, dy: dy.as_ref(), dm: dm.as_ref() };
        match dout.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dout.dtype(), T => {
                cpu::gate_backward::<T>(&call);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dout.dtype(), T => {
                cuda::gate_backward::<T>(accelerator, &call)
            }),
        }
    }))
}

/// What the gated sum's backward reads and writes. `y` is there where `dm` is; `dm` is added to.
struct GateBackward<'a> {
    sizes: Gate,
    dout: &'a Tensor,
    y: Option<&'a Tensor>,
    matrix: &'a Tensor,
    dy: Option<&'a Destination>,
    dm: Option<&'a Tensor>,
}
