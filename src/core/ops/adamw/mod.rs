//! The optimizer's step over flat buffers: gradient norm and clipping, AdamW with the moving average of weights, metrics.
//!
//! With g the gradient times the clip scale, rates and bias corrections from the control buffer ([`control::Control`]):
//!
//! ```text
//! p -= rate · decay · p (decoupled; Loshchilov and Hutter 2019), or g += decay · p (Kingma and Ba 2015)
//! m  = m + (1 - beta1) · (g - m)
//! v  = beta2 · v + (1 - beta2) · g²
//! p -= rate · m · first_correction / (√(v · second_correction) + epsilon)
//! ema = p + ema_decay · (ema - p)
//! ```
//!
//! as PyTorch's `clip_grad_norm_` and `AdamW`. Nothing is read on the host: one captured program serves every step.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{control, no_kernel, run};
use crate::tensor::{Backend, Context, Cost, DType, Tensor};

const OP: &str = "adamw";

/// Elements whose squares are summed by one block, before the blocks' sums are.
const PART: usize = 8192;

/// The constant that PyTorch adds to the norm before it divides.
const CLIP_EPSILON: f64 = 1e-6;

/// Hyperparameters that stay the same over a run. In `f64`, since 1 - beta2 in `f32` would be off by 1e-5 of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the gradients' mean.
    pub beta1: f64,
    /// Decay of the gradients' mean square.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay acts on the parameters directly (AdamW) or as a gradient (Adam with L2).
    pub decoupled: bool,
}

/// The flat buffers, all of one length, f32 but for `compute`.
#[derive(Clone, Copy, Debug)]
pub struct AdamWState<'a> {
    /// Master weights; updated.
    pub parameters: &'a Tensor,
    /// The weights as the model reads them (bf16, or of the masters' dtype), where they are a copy; written.
    pub compute: Option<&'a Tensor>,
    /// Gradients, before clipping.
    pub gradients: &'a Tensor,
    /// Means of the gradients; updated.
    pub first: &'a Tensor,
    /// Means of the squared gradients; updated.
    pub second: &'a Tensor,
    /// The moving average of the parameters; updated.
    pub ema: Option<&'a Tensor>,
}

/// A persistent buffer for [`gradient_norm`]'s results: zero norm, clip scale one.
///
/// # Errors
/// Where memory is out.
pub fn statistics(context: &Context) -> Result<Tensor> {
    context.tensor(&[0.0f32, 1.0, 0.0, 0.0], [4])
}

fn check_statistics(statistics: &Tensor, like: &Tensor) -> Result<()> {
    if statistics.sizes() == [4] && statistics.dtype() == like.dtype() {
        return Ok(());
    }
    Err(Error::shape(
        OP,
        format!("statistics {} {}; they are [4] {}", statistics.shape(), statistics.dtype(), like.dtype()),
    ))
}

/// Writes the norm of `gradients` (flat, f32) and the clip scale min(1, `max_norm` / (norm + 1e-6)), 1 without `max_norm`, to
/// `statistics` `[4]` (norm, scale, 0, 0). The sum of squares has a fixed order.
///
/// A norm that is not finite is left to be seen: the step's metrics show it, and the parameters become NaN.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, or a `max_norm` that is not positive.
pub fn gradient_norm(context: &Context, gradients: &Tensor, statistics: &Tensor, max_norm: Option<f32>) -> Result<()> {
    check_statistics(statistics, gradients)?;
    if let Some(max_norm) = max_norm.filter(|&norm| norm.is_nan() || norm <= 0.0) {
        return Err(Error::shape(OP, format!("a largest gradient norm of {max_norm}; it is positive")));
    }
    if gradients.is_empty() {
        return Err(Error::shape(OP, "no gradients"));
    }
    let partial = context.empty([gradients.len().div_ceil(PART)], gradients.dtype())?;
    let bytes = gradients.bytes() + 2 * partial.bytes() + statistics.bytes();
    let cost = Cost::scalar(2 * gradients.len(), bytes);
    context.charge("adamw_norm", cost);
    run!(f32 gradients, gradient_norm(gradients, &partial, statistics, max_norm))
}

/// One step of the optimizer in one pass over `state`, with the clip scale in `statistics` and learning rate, bias
/// corrections and EMA decay in `control`.
///
/// # Errors
/// [`Error::Shape`] for buffers of different lengths or other dtypes.
pub fn adamw(context: &Context, state: &AdamWState, control: &Tensor, statistics: &Tensor, hyper: AdamW) -> Result<()> {
    let AdamWState { parameters, compute, gradients, first, second, ema } = *state;
    control::check(OP, control)?;
    check_statistics(statistics, parameters)?;
    let masters = [Some(gradients), Some(first), Some(second), ema];
    let fits = masters.iter().flatten().all(|t| t.len() == parameters.len() && t.dtype() == parameters.dtype());
    if !fits || compute.is_some_and(|compute| compute.len() != parameters.len()) {
        return Err(Error::shape(
            OP,
            format!(
                "buffers of {} {} parameters, {} gradients, {} and {} means, {:?} averages, {:?} copies",
                parameters.len(),
                parameters.dtype(),
                gradients.len(),
                first.len(),
                second.len(),
                ema.map(Tensor::len),
                compute.map(Tensor::len)
            ),
        ));
    }
    if parameters.is_empty() {
        return Err(Error::shape(OP, "no parameters"));
    }
    let passes = 7 + 2 * usize::from(ema.is_some());
    let bytes = passes * parameters.bytes() + compute.map_or(0, Tensor::bytes) + statistics.bytes() + control.bytes();
    context.charge(OP, Cost::scalar(16 * parameters.len(), bytes));
    match context.backend() {
        Backend::Accelerator(accelerator) if parameters.dtype() != DType::F32 => {
            Err(no_kernel(OP, accelerator, parameters.dtype(), "f32"))
        }
        _ => run!(compute.unwrap_or(parameters), update(state, control, statistics, hyper)),
    }
}

/// Puts the step's metrics into row `control.row` of `ring` `[R, 2 + n]` (persistent): the loss `[1]`, summed over the step's
/// micro-batches (`control.micro` = 0 starts the sum), the gradient norm of `statistics`, and the loss's `terms` `[n]`, summed
/// likewise.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes.
pub fn record(
    context: &Context,
    ring: &Tensor,
    loss: &Tensor,
    terms: Option<&Tensor>,
    statistics: &Tensor,
    control: &Tensor,
) -> Result<()> {
    control::check(OP, control)?;
    check_statistics(statistics, ring)?;
    let count = terms.map_or(0, Tensor::len);
    let ring_fits = matches!(*ring.sizes(), [rows, width] if rows > 0 && width == 2 + count);
    let values_fit = loss.len() == 1 && [Some(loss), terms].iter().flatten().all(|v| v.dtype() == ring.dtype());
    if !ring_fits || !values_fit {
        let message = format!("a ring {}, a loss {} {}, {count} terms", ring.shape(), loss.shape(), loss.dtype());
        return Err(Error::shape(OP, message));
    }
    let values = (3 + 2 * count) * loss.dtype().size();
    context.charge("adamw_record", Cost::memory(statistics.bytes() + values + control.bytes()));
    run!(f32 ring, record(ring, loss, terms, statistics, control))
}

#[cfg(test)]
mod tests;
