//! Cross-entropy on accelerators.

use super::{Call, Results};
use crate::device::launches::{CrossEntropyBwd, CrossEntropyFwdItems, CrossEntropyFwdMean};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Items of a block: a warp each.
const ITEMS: usize = 4;

pub(super) fn forward(accelerator: &dyn Accelerator, call: &Call, results: &Results) -> Result<()> {
    CrossEntropyFwdItems {
        items: results.items.slice_mut(),
        statistics: call.statistics.slice_mut(),
        right: results.right.slice_mut(),
        logits: call.logits.slice(),
        labels: call.labels.slice(),
        batch: call.batch as u32,
        classes: call.classes as u32,
        smoothing: call.smoothing,
    }
    .launch(accelerator, LaunchConfig::linear(call.batch.div_ceil(ITEMS) as u32, 32 * ITEMS as u32))?;
    CrossEntropyFwdMean {
        loss: results.loss.slice_mut(),
        correct: results.correct.slice_mut(),
        items: results.items.slice(),
        right: results.right.slice(),
        batch: call.batch as u32,
        scale: call.scale,
    }
    .launch(accelerator, LaunchConfig::linear(1, THREADS))
}

pub(super) fn backward(
    accelerator: &dyn Accelerator,
    call: &Call,
    dloss: &Tensor,
    destination: &Destination,
) -> Result<()> {
    CrossEntropyBwd {
        dlogits: destination.slice_mut(),
        dloss: dloss.slice(),
        logits: call.logits.slice(),
        labels: call.labels.slice(),
        statistics: call.statistics.slice(),
        batch: call.batch as u32,
        classes: call.classes as u32,
        smoothing: call.smoothing,
        scale: call.scale,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(call.logits.len(), THREADS))
}
