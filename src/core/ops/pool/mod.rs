//! Pooling, channels last: the largest and the mean of a window of pixels, and the mean of an image.
//!
//! Max: y\[b, oy, ox, c\] = max over ky, kx of x\[b, oy · stride + ky − padding, ox · stride + kx − padding, c\], pixels outside the image
//! left out. The gradient goes to the first of the largest, in the order of rows; a NaN counts as largest. Saved: which one it was,
//! a byte an output.
//!
//! Mean: the same windows' means over the pixels that are there; what padding adds is not counted. A pixel's gradient is the sum over
//! its windows of dy divided by the number of their pixels. Nothing is saved.
//!
//! Average: y\[b, c\] = mean over all pixels, in f32; dx = dy / (H · W). Nothing is saved.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, DType};

const OP: &str = "pool";

/// The largest side of a window: a winner's number is a byte.
const LARGEST_KERNEL: usize = 16;

/// A square window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its side in pixels, 1 to 16.
    pub kernel: usize,
    /// Pixels from a window to the next.
    pub stride: usize,
    /// Pixels that the first window begins before the image, at most half a window.
    pub padding: usize,
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Of the output, with its columns.
    rows: usize,
    cols: usize,
    window: Window,
}

fn image(x: &Var) -> Result<[usize; 4]> {
    match x.sizes() {
        &[batch, height, width, channels] if !x.tensor().is_empty() && x.shape().len() <= u32::MAX as usize => {
            Ok([batch, height, width, channels])
        }
        _ => Err(Error::shape(OP, format!("x {}; it is [B, H, W, C], not empty and not too large", x.shape()))),
    }
}

/// Sizes of a call over windows, and the shape of its result.
fn windows(x: &Var, window: Window) -> Result<(Sizes, [usize; 4])> {
    let [batch, height, width, channels] = image(x)?;
    let Window { kernel, stride, padding } = window;
    let fits = (1..=LARGEST_KERNEL).contains(&kernel) && stride > 0 && 2 * padding <= kernel;
    if !fits || height.min(width) + 2 * padding < kernel {
        let found = format!("a window of {kernel}, stride {stride}, padding {padding} for x {}", x.shape());
        return Err(Error::shape(OP, format!("{found}; 1 to 16, 1 or more, half of it at most, and no larger than x")));
    }
    let side = |length: usize| (length + 2 * padding - kernel) / stride + 1;
    let sizes = Sizes { batch, height, width, channels, rows: side(height), cols: side(width), window };
    Ok((sizes, [batch, sizes.rows, sizes.cols, channels]))
}

/// The mean of each window of `x` `[B, H, W, C]`, of the pixels that lie in the image; sizes as [`max_pool`]'s.
///
/// # Errors
/// As [`max_pool`]; also for a padding of half a window or more, whose first window would have no pixel.
pub fn mean_pool(tape: &Tape, x: &Var, window: Window) -> Result<Var> {
    let (sizes, shape) = windows(x, window)?;
    if 2 * window.padding >= window.kernel && window.padding > 0 {
        let found = format!("a padding of {} for the mean of a window of {}", window.padding, window.kernel);
        return Err(Error::shape(OP, format!("{found}; less than half of it")));
    }
    let context = x.context();
    let y = context.empty(shape, x.dtype())?;
    let cost = Cost::scalar(window.kernel * window.kernel * y.len(), x.tensor().bytes() + y.bytes());
    context.charge("mean_pool_fwd", cost);
    run!(held y, mean(sizes, x.tensor(), &y))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        backward.context().charge("mean_pool_bwd", cost);
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        run!(held dy, mean_backward(sizes, dy, &dx))
    }))
}

/// The largest of each window of `x` `[B, H, W, C]`: `[B, rows, cols, C]`, rows = (H + 2 · padding − kernel) / stride + 1, rounded down.
///
/// # Errors
/// [`Error::Shape`] for an `x` of another rank or an empty one, and for a window that does not fit it.
pub fn max_pool(tape: &Tape, x: &Var, window: Window) -> Result<Var> {
    let (sizes, shape) = windows(x, window)?;
    let kernel = window.kernel;
    let context = x.context();
    let (y, winners) = (context.empty(shape, x.dtype())?, context.empty(shape, DType::U8)?);
    let comparisons = kernel * kernel * y.len();
    let cost = Cost::scalar(comparisons, x.tensor().bytes() + y.bytes() + winners.bytes());
    context.charge("max_pool_fwd", cost);
    run!(held y, max(sizes, x.tensor(), &y, &winners))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        backward.context().charge("max_pool_bwd", cost);
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        run!(held dy, max_backward(sizes, dy, &winners, &dx))
    }))
}

/// The mean of all pixels of `x` `[B, H, W, C]`: `[B, C]`.
///
/// # Errors
/// [`Error::Shape`] for an `x` of another rank or an empty one.
pub fn global_average_pool(tape: &Tape, x: &Var) -> Result<Var> {
    let [batch, height, width, channels] = image(x)?;
    let context = x.context();
    let y = context.empty([batch, channels], x.dtype())?;
    let cost = Cost::scalar(x.shape().len(), x.tensor().bytes() + y.bytes());
    context.charge("global_average_pool_fwd", cost);
    let pixels = height * width;
    run!(held y, average(pixels, x.tensor(), &y))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        backward.context().charge("global_average_pool_bwd", cost);
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        run!(held dy, average_backward(pixels, dy, &dx))
    }))
}
