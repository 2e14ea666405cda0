//! The token sequence on accelerators.

use crate::device::launches::{TokensBwdExtract, TokensBwdPosition, TokensFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional};
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    patches: &Tensor,
    token: Option<&Tensor>,
    position: &Tensor,
    y: &Tensor,
) -> Result<()> {
    TokensFwd::<T> {
        y: y.slice_mut(),
        patches: patches.slice(),
        token: optional(token),
        position: position.slice(),
        batch: y.sizes()[0] as u32,
        length: y.sizes()[1] as u32,
        width: y.sizes()[2] as u32,
    }
    .launch(accelerator, LaunchConfig::elements(y.len(), THREADS))
}

pub(super) fn extract<T: Stored>(
    accelerator: &dyn Accelerator,
    dy: &Tensor,
    destination: &Destination,
    first: usize,
) -> Result<()> {
    let [batch, length, width] = [dy.sizes()[0], dy.sizes()[1], dy.sizes()[2]];
    TokensBwdExtract::<T> {
        part: destination.slice_mut(),
        dy: dy.slice(),
        batch: batch as u32,
        length: length as u32,
        width: width as u32,
        first: first as u32,
        count: (destination.len() / (batch * width)) as u32,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(destination.len(), THREADS))
}

pub(super) fn sum_batch<T: Stored>(
    accelerator: &dyn Accelerator,
    dy: &Tensor,
    destination: &Destination,
) -> Result<()> {
    TokensBwdPosition::<T> {
        dposition: destination.slice_mut(),
        dy: dy.slice(),
        batch: dy.sizes()[0] as u32,
        elements: destination.len() as u32,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(destination.len(), THREADS))
}
