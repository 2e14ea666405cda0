//! The balanced loss on accelerators.

use super::{Call, Results, TERMS};
use crate::device::launches::{BalancedLossBwd, BalancedLossFwdItems, BalancedLossFwdMean, BalancedLossUpdate};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::optional;
use crate::tape::Destination;
use crate::tensor::Tensor;

/// Threads of an item's block at most: with so few items as a batch has, an SM has little else to hide reads behind.
const ITEM_THREADS: usize = 512;
const THREADS: u32 = 256;

/// A block per item, whose threads (and so the order of its sums) depend on the image's size alone.
fn by_image(batch: usize, elements: usize) -> LaunchConfig {
    LaunchConfig::linear(batch as u32, elements.next_multiple_of(32).min(ITEM_THREADS) as u32)
}

pub(super) fn forward(
    accelerator: &dyn Accelerator,
    call: &Call,
    results: &Results,
    state: Option<&Tensor>,
) -> Result<()> {
    let (image, [mse, l1, cosine, high_frequency, edge]) = (call.image, call.config.weights);
    BalancedLossFwdItems {
        statistics: call.statistics.slice_mut(),
        prediction: call.prediction.slice(),
        target: call.target.slice(),
        elements: image.elements() as u32,
        row: image.row() as u32,
        channels: image.channels as u32,
    }
    .launch(accelerator, by_image(call.batch, image.elements()))?;
    BalancedLossFwdMean {
        loss: results.loss.slice_mut(),
        items: results.items.slice_mut(),
        terms: results.terms.slice_mut(),
        factors: call.factors.slice_mut(),
        statistics: call.statistics.slice(),
        weight: optional(call.weight.as_ref()),
        state: optional(state),
        batch: call.batch as u32,
        scale: call.config.scale,
        mse,
        l1,
        cosine,
        high_frequency,
        edge,
    }
    .launch(accelerator, LaunchConfig::linear(1, THREADS))
}

pub(super) fn backward(
    accelerator: &dyn Accelerator,
    call: &Call,
    dloss: &Tensor,
    destination: &Destination,
) -> Result<()> {
    let image = call.image;
    let chunks = image.elements().div_ceil(THREADS as usize);
    BalancedLossBwd {
        dprediction: destination.slice_mut(),
        dloss: dloss.slice(),
        prediction: call.prediction.slice(),
        target: call.target.slice(),
        weight: optional(call.weight.as_ref()),
        statistics: call.statistics.slice(),
        factors: call.factors.slice(),
        batch: call.batch as u32,
        elements: image.elements() as u32,
        row: image.row() as u32,
        channels: image.channels as u32,
        scale: call.config.scale,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::grid([call.batch, chunks], THREADS))
}

pub(super) fn update(accelerator: &dyn Accelerator, state: &Tensor, terms: &Tensor, decay: f32) -> Result<()> {
    const { assert!(TERMS < 32) };
    BalancedLossUpdate { state: state.slice_mut(), terms: terms.slice(), decay }
        .launch(accelerator, LaunchConfig::linear(1, 32))
}
