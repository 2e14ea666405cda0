//! Weighted mean squared error.
//!
//! loss = scale · mean_b(w_b · mean_e((prediction − target)²)), in f32, summed in two stages of fixed order: first each
//! item, then the items. dprediction = dloss · scale · 2 · w_b · (prediction − target) / (B · E), with dloss read on the
//! device. Saved: prediction, target and weight.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, Tensor};

const OP: &str = "mse_loss";

/// The loss `[1]` and the items' own weighted losses `[B]` of `prediction` `[B, …]` against `target` of the same
/// shape, f32, item b weighted by `weight` `[B]` (f32; `None` for ones), all of it times `scale` (1 / the number of
/// micro-batches of a step). The prediction alone gets a gradient.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit together or are empty.
pub fn mse_loss(
    tape: &Tape,
    prediction: &Var,
    target: &Var,
    weight: Option<&Var>,
    scale: f32,
) -> Result<(Var, Tensor)> {
    let batch = prediction.sizes().first().copied().unwrap_or(0);
    let weight_fits = weight.is_none_or(|w| w.sizes() == [batch] && w.dtype() == prediction.dtype());
    if prediction.shape() != target.shape() || prediction.dtype() != target.dtype() || !weight_fits {
        return Err(Error::shape(
            OP,
            format!(
                "prediction {} {}, target {} {}, weight {:?}",
                prediction.shape(),
                prediction.dtype(),
                target.shape(),
                target.dtype(),
                weight.map(Var::shape)
            ),
        ));
    }
    if prediction.shape().is_empty() {
        return Err(Error::shape(OP, "nothing to compare: the batch is empty"));
    }
    let context = prediction.context();
    let call = Call {
        batch,
        elements: prediction.shape().len() / batch,
        scale,
        prediction: prediction.tensor().clone(),
        target: target.tensor().clone(),
        weight: weight.map(|weight| weight.tensor().clone()),
    };
    let loss = context.empty([1], prediction.dtype())?;
    let partial = context.empty([batch], prediction.dtype())?;
    context.charge("mse_loss_fwd", call.cost(2));
    run!(f32 loss, forward(&call, &partial, &loss))?;
    let mut inputs = tape.inputs(OP);
    let dprediction = inputs.add("prediction", prediction);
    let loss = inputs.record(loss, move |backward| {
        let dloss = backward.gradient();
        backward.context().charge("mse_loss_bwd", call.cost(3));
        let Some(destination) = backward.destination(dprediction)? else { return Ok(()) };
        run!(f32 dloss, backward(&call, dloss, &destination))
    });
    Ok((loss, partial))
}

/// One call: sizes and saved tensors.
struct Call {
    batch: usize,
    elements: usize,
    scale: f32,
    prediction: Tensor,
    target: Tensor,
    weight: Option<Tensor>,
}

impl Call {
    /// `passes` times over the prediction's size, three operations an element.
    fn cost(&self, passes: usize) -> Cost {
        let weight = self.weight.as_ref().map_or(0, Tensor::bytes);
        // The partial sums are written and read.
        let sums = (2 * self.batch + 1) * self.prediction.dtype().size();
        Cost::scalar(3 * self.prediction.len(), passes * self.prediction.bytes() + weight + sums)
    }
}
