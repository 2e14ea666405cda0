//! Dropout on accelerators.

use crate::device::{Accelerator, launches};
use crate::error::Result;
use crate::ops::mask::Mask;
use crate::ops::{Stored, by_item};
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn apply<T: Stored>(
    accelerator: &dyn Accelerator,
    mask: Mask,
    from: &Tensor,
    control: &Tensor,
    to: &Destination,
) -> Result<()> {
    let batch = from.sizes()[0];
    let elements = from.len() / batch;
    launches::Dropout::<T> {
        to: to.slice_mut(),
        from: from.slice(),
        control: control.slice(),
        elements: elements as u32,
        probability: mask.probability,
        scale: mask.scale(),
        seed: mask.seed,
        purpose: mask.purpose,
        accumulate: to.mode.flag(),
    }
    .launch(accelerator, by_item(batch, elements, THREADS))
}
