//! Batches on accelerators.

use super::{Call, Order};
use crate::device::Accelerator;
use crate::device::launches::AssembleBatch;
use crate::error::Result;
use crate::ops::by_item;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward(
    accelerator: &dyn Accelerator,
    call: &Call,
    images: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    x0: &Tensor,
    batch_labels: &Tensor,
) -> Result<()> {
    let (shuffled, order_seed) = match call.order {
        Order::Shuffled { seed } => (1, seed),
        Order::Sequential => (0, 0),
    };
    AssembleBatch {
        x0: x0.slice_mut(),
        batch_labels: batch_labels.slice_mut(),
        images: images.slice(),
        labels: labels.slice(),
        control: control.slice(),
        count: call.count as u32,
        elements: call.elements() as u32,
        width: call.width as u32,
        channels: call.channels as u32,
        shuffled,
        order_seed,
        flip: call.augment.flip.into(),
        crop: call.augment.crop.into(),
        augment_seed: call.augment.seed,
    }
    .launch(accelerator, by_item(batch_labels.len(), call.elements(), THREADS))
}
