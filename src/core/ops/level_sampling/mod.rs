//! Where a diffusion model's loss is, by noise level, and how often each level is drawn because of it.
//!
//! The unit interval of times is cut into K bins of one width. For each bin the state keeps a running mean of the squared
//! loss of the items drawn there, and from it the probability with which the bin is drawn (Nichol and Dhariwal 2021,
//! *Improved Denoising Diffusion Probabilistic Models*, section 3.3, here with bins, running means and a floor):
//!
//! ```text
//! q_k = ℓ̄²_k at the first visit, then decay · q_k + (1 - decay) · ℓ̄²_k    ℓ̄²_k: mean of ℓ² over the batch's items in bin k
//! r_k = √q_k, and the mean of the others' where bin k has not been visited yet
//! p_k = (1 - uniform) · r_k / Σ r + uniform / K                            1 / K while no loss is known
//! ```
//!
//! ℓ is an item's loss without its importance weight 1 / (K · p_k), by which [`noise_step`](super::noise_step) multiplies the
//! item's weight: the mean of the weighted losses stays an unbiased estimate of the loss under uniform times, with a smaller
//! variance, whatever the state is. Bins that the batch did not visit keep their q. All of it is on the device, in a fixed
//! order; no gradient.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tensor::{Context, Cost, DType, Tensor};

const OP: &str = "level_sampling";

/// Most bins: one thread of a block has each.
pub const MOST_BINS: usize = 256;

/// The law's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    /// Share of the old mean in the new one, in [0, 1).
    pub decay: f32,
    /// Share of the draws that stay uniform, in (0, 1]: it bounds the importance weights by its reciprocal.
    pub uniform: f32,
}

/// The state that the distribution starts from, `[3, bins]` row by row: q (negative: not visited yet), p, and the bins' upper ends Σ p.
pub fn start(bins: usize) -> Vec<f32> {
    let equal = 1.0 / bins as f32;
    let ends = (1..=bins).map(|k| k as f32 / bins as f32);
    std::iter::repeat_n(-1.0, bins).chain(std::iter::repeat_n(equal, bins)).chain(ends).collect()
}

/// Checks a state `[3, K]` and says K.
pub(super) fn bins(op: &'static str, state: &Tensor, dtype: DType) -> Result<usize> {
    match *state.sizes() {
        [3, bins] if (1..=MOST_BINS).contains(&bins) && state.dtype() == dtype => Ok(bins),
        _ => Err(Error::shape(
            op,
            format!("a state {} {}; it is [3, K] {dtype} with K up to {MOST_BINS}", state.shape(), state.dtype()),
        )),
    }
}

/// Moves `state` `[3, K]` (f32, as [`start`] makes it) on by a batch: `losses` `[B]` (f32) with the importance weights that the
/// state gave them, drawn in bins `levels` `[B]` (i32).
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, and for constants out of their range.
pub fn update(context: &Context, state: &Tensor, losses: &Tensor, levels: &Tensor, law: Law) -> Result<()> {
    bins(OP, state, losses.dtype())?;
    let batch = losses.len();
    if losses.sizes() != [batch] || levels.sizes() != [batch] || levels.dtype() != DType::I32 || batch == 0 {
        let message = format!("losses {}, levels {} {}", losses.shape(), levels.shape(), levels.dtype());
        return Err(Error::shape(OP, message));
    }
    if !((0.0..1.0).contains(&law.decay) && law.uniform > 0.0 && law.uniform <= 1.0) {
        return Err(Error::shape(OP, format!("a decay of {} and a uniform share of {}", law.decay, law.uniform)));
    }
    let bytes = 2 * state.bytes() + losses.bytes() + levels.bytes();
    context.charge(OP, Cost::scalar(4 * batch + 10 * state.len(), bytes));
    run!(f32 losses, update(state, losses, levels, law))
}

#[cfg(test)]
mod tests;
