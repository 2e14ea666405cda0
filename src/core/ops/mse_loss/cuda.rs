//! Mean squared error on accelerators.

use super::Call;
use crate::device::launches::{MseLossBwd, MseLossFwdItems, MseLossFwdMean};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{by_item, optional};
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward(accelerator: &dyn Accelerator, call: &Call, partial: &Tensor, loss: &Tensor) -> Result<()> {
    MseLossFwdItems {
        partial: partial.slice_mut(),
        prediction: call.prediction.slice(),
        target: call.target.slice(),
        weight: optional(call.weight.as_ref()),
        elements: call.elements as u32,
    }
    .launch(accelerator, LaunchConfig::linear(call.batch as u32, THREADS))?;
    MseLossFwdMean { loss: loss.slice_mut(), partial: partial.slice(), batch: call.batch as u32, scale: call.scale }
        .launch(accelerator, LaunchConfig::linear(1, THREADS))
}

pub(super) fn backward(
    accelerator: &dyn Accelerator,
    call: &Call,
    dloss: &Tensor,
    destination: &Destination,
) -> Result<()> {
    MseLossBwd {
        dprediction: destination.slice_mut(),
        dloss: dloss.slice(),
        prediction: call.prediction.slice(),
        target: call.target.slice(),
        weight: optional(call.weight.as_ref()),
        batch: call.batch as u32,
        elements: call.elements as u32,
        scale: call.scale,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, by_item(call.batch, call.elements, THREADS))
}
