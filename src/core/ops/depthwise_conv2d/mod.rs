//! Depthwise convolution, channels last: each channel by a window of its own (Howard et al. 2017, *MobileNets*).
//!
//! With stride s and p rows and columns of zeros before, x zero outside:
//!
//! y\[b, i, j, c\] = bias\[c\] + Σ over (ky, kx) of w\[ky, kx, c\] · x\[b, s i + ky − p, s j + kx − p, c\].
//!
//! The gradients: dx is the transposed convolution of dy, dw\[ky, kx, c\] = Σ over pixels of dy · x, dbias = Σ over pixels of dy. Saved
//! for backward: `x` where the weight wants a gradient. The weight is `f32` whatever the activations are: it is small, and every
//! product is its own sum.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Parts, SumOrder, Tape, Var, sum_parts};
use crate::tensor::{Cost, Device};

const OP: &str = "depthwise_conv2d";

/// How the window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Distance of neighbouring windows, above 0.
    pub stride: usize,
    /// Rows and columns of zeros before the first one, less than the window; behind the last come as many as the windows reach.
    pub pad_before: usize,
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Of the result, with its columns.
    rows: usize,
    cols: usize,
    kernel: usize,
    window: Window,
}

/// Where the weight's and the bias's gradients go.
struct To {
    weight: Option<Destination>,
    bias: Option<Destination>,
}

/// Convolves `x` `[B, H, W, C]` with `weight` `[k, k, C]` (f32) and adds `bias` `[C]` (f32): `[B, ⌈H / stride⌉, ⌈W / stride⌉, C]` in the dtype of
/// `x`.
///
/// # Errors
/// [`Error::Shape`] where these do not fit each other.
pub fn depthwise_conv2d(tape: &Tape, x: &Var, weight: &Var, bias: Option<&Var>, window: Window) -> Result<Var> {
    let context = x.context().clone();
    let sizes = sizes(x, weight, bias, window)?;
    let y = context.empty([sizes.batch, sizes.rows, sizes.cols, sizes.channels], x.dtype())?;
    let products = 2 * sizes.kernel * sizes.kernel * y.len();
    let bytes = x.tensor().bytes() + y.bytes() + weight.tensor().bytes();
    let cost = Cost::scalar(products, bytes);
    context.charge("depthwise_conv2d_fwd", cost);
    run!(y, forward(sizes, x.tensor(), weight.tensor(), bias.map(Var::tensor), &y))?;
    let saved = (weight.needs_gradient() || bias.is_some_and(Var::needs_gradient)).then(|| x.tensor().clone());
    let taps = weight.tensor().clone();
    let mut inputs = tape.inputs(OP);
    let (dx, dw, db) = (inputs.add("x", x), inputs.add("weight", weight), inputs.optional("bias", bias));
    Ok(inputs.record(y, move |backward| {
        let (context, dy) = (backward.context(), backward.gradient());
        if let Some(dx) = backward.destination(dx)? {
            context.charge("depthwise_conv2d_bwd_input", cost);
            run!(dy, input_backward(sizes, dy, &taps, &dx))?;
        }
        let to = To { weight: backward.destination(dw)?, bias: backward.destination(db)? };
        let Some(x) = saved.as_ref().filter(|_| to.weight.is_some() || to.bias.is_some()) else { return Ok(()) };
        context.charge("depthwise_conv2d_bwd_weight", cost);
        let parts = match context.device() {
            Device::Accelerator(_) => cuda::parts(sizes),
            Device::Cpu => 1,
        };
        let width = (sizes.kernel * sizes.kernel + 1) * sizes.channels;
        let partial = context.empty([parts, width], dy.dtype().exact())?;
        run!(dy, weight_backward(sizes, dy, x, &partial, &to))?;
        let sums = [(to.weight.as_ref(), 0), (to.bias.as_ref(), width - sizes.channels)];
        sum_parts(&partial, Parts { count: parts, stride: width, order: SumOrder::Across }, sums)
    }))
}

fn sizes(x: &Var, weight: &Var, bias: Option<&Var>, window: Window) -> Result<Sizes> {
    let (&[batch, height, width, channels], &[kernel, columns, of]) = (x.sizes(), weight.sizes()) else {
        let message = format!("x {} and weight {}; they are [B, H, W, C] and [k, k, C]", x.shape(), weight.shape());
        return Err(Error::shape(OP, message));
    };
    let exact = x.dtype().exact();
    let fits = kernel == columns && of == channels && weight.dtype() == exact && kernel > 0;
    if !fits || bias.is_some_and(|bias| bias.sizes() != [channels] || bias.dtype() != exact) {
        let message =
            format!("x {} {} and weight {} {} do not fit", x.shape(), x.dtype(), weight.shape(), weight.dtype());
        return Err(Error::shape(OP, message));
    }
    let Window { stride, pad_before } = window;
    if stride == 0 || pad_before >= kernel || x.tensor().is_empty() || x.shape().len() > u32::MAX as usize {
        let message = format!("{window:?} of {kernel} for x {}", x.shape());
        return Err(Error::shape(OP, format!("{message}; a stride above 0, less padding than window, x not empty")));
    }
    let (rows, cols) = (height.div_ceil(stride), width.div_ceil(stride));
    Ok(Sizes { batch, height, width, channels, rows, cols, kernel, window })
}
