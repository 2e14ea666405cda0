//! Cross-entropy of logits against labels, with label smoothing (Szegedy et al. 2016), and the count of right answers.
//!
//! With z an item's K logits, s the smoothing, lse = log Σ exp z, and p the target, (1 − s) at the label plus s / K everywhere:
//!
//! ```text
//! item = −Σ p · (z − lse) = lse − (1 − s) · z[label] − s / K · Σ z
//! loss = scale · mean_b item;   dz = dloss · scale / B · (exp(z − lse) − p)
//! ```
//!
//! An item is right where its label is the first of its largest logits. A label outside 0..K (padding) is no item: no loss, no
//! gradient, never right; the mean stays one over the batch. All in f32, in sums of fixed order: each item's, then the items.
//! Saved: logits, labels, and an item's largest logit m and log Σ exp (z − m): their sum, lse, would lose digits.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, DType, Tensor};

const OP: &str = "cross_entropy";

/// The results of [`cross_entropy`].
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// `[1]`: the loss.
    pub loss: Var,
    /// `[1]`: how many items are right, of the logits' dtype.
    pub correct: Tensor,
    /// `[B]`: the items' losses, before `scale`.
    pub items: Tensor,
}

/// The loss of `logits` `[B, K]`, f32, against `labels` `[B]`, i32, smoothed by `smoothing` (0 to below 1), times `scale` (1 / the number
/// of micro-batches of a step). The logits alone get a gradient.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, empty ones, or a smoothing outside [0, 1).
pub fn cross_entropy(tape: &Tape, logits: &Var, labels: &Var, smoothing: f32, scale: f32) -> Result<CrossEntropy> {
    let dtype = logits.dtype();
    let &[batch, classes] = logits.sizes() else {
        return Err(Error::shape(OP, format!("logits {}; they are [B, K]", logits.shape())));
    };
    if labels.sizes() != [batch] || labels.dtype() != DType::I32 {
        let found = format!("labels {} {}; they are [{batch}] i32", labels.shape(), labels.dtype());
        return Err(Error::shape(OP, found));
    }
    if logits.shape().is_empty() || logits.shape().len() > u32::MAX as usize {
        return Err(Error::shape(OP, format!("logits {}: none, or too many", logits.shape())));
    }
    if !(0.0..1.0).contains(&smoothing) {
        return Err(Error::shape(OP, format!("a smoothing of {smoothing}; it is 0 to below 1")));
    }
    let context = logits.context();
    let empty = |len: usize| context.empty([len], dtype);
    let call = Call {
        batch,
        classes,
        smoothing,
        scale,
        logits: logits.tensor().clone(),
        labels: labels.tensor().clone(),
        statistics: context.empty([batch, 2], dtype)?,
    };
    let results = Results { loss: empty(1)?, correct: empty(1)?, items: empty(batch)?, right: empty(batch)? };
    context.charge("cross_entropy_fwd", call.cost(1));
    run!(f32 logits, forward(&call, &results))?;
    let Results { loss, correct, items, .. } = results;
    let mut inputs = tape.inputs(OP);
    let dlogits = inputs.add("logits", logits);
    let loss = inputs.record(loss, move |backward| {
        let dloss = backward.gradient();
        backward.context().charge("cross_entropy_bwd", call.cost(2));
        let Some(destination) = backward.destination(dlogits)? else { return Ok(()) };
        run!(f32 dloss, backward(&call, dloss, &destination))
    });
    Ok(CrossEntropy { loss, correct, items })
}

/// One call: sizes and saved tensors.
struct Call {
    batch: usize,
    classes: usize,
    smoothing: f32,
    scale: f32,
    logits: Tensor,
    labels: Tensor,
    /// `[B, 2]`: the largest logit, and the logarithm of the sum of exponentials about it.
    statistics: Tensor,
}

/// The outputs of the forward besides the statistics.
struct Results {
    loss: Tensor,
    correct: Tensor,
    items: Tensor,
    /// `[B]`: 1 where the item is right.
    right: Tensor,
}

impl Call {
    /// `passes` times over the logits; an exponential (about ten operations) and four more each.
    fn cost(&self, passes: usize) -> Cost {
        // Labels, statistics, items and right answers, the latter two read again.
        let beside = 7 * self.batch * self.logits.dtype().size() + 16;
        Cost::scalar(14 * self.logits.len(), passes * self.logits.bytes() + beside)
    }
}
