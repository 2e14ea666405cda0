//! The token sequence on accelerators.

use super::Gradients;
use crate::device::launches::{TokensBwd, TokensFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, optional_mut, wanted};
use crate::tape::{Destination, SumOrder};
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

/// Sequences of a block of the backward.
const SEQUENCES: usize = 16;

/// Rows of scratch `[parts, length, width]` that the positions' sums take.
pub(super) fn parts(batch: usize) -> usize {
    batch.div_ceil(SEQUENCES)
}

/// In which order they are added up.
pub(super) fn order(parts: usize) -> SumOrder {
    if parts > 32 { SumOrder::Across } else { SumOrder::One }
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    dy: &Tensor,
    skip: usize,
    partial: Option<&Tensor>,
    to: &Gradients,
) -> Result<()> {
    let [batch, length, width] = [dy.sizes()[0], dy.sizes()[1], dy.sizes()[2]];
    let (patches, token) = (to.patches.as_ref(), to.token.as_ref());
    let aligned = dy.is_aligned() && [patches, token].into_iter().flatten().all(Destination::is_aligned);
    let piece = 16 / size_of::<T>();
    let vector = if aligned && width.is_multiple_of(piece) { piece } else { 1 };
    let ((dpatches, accumulate_patches), (dtoken, accumulate_token)) = (wanted(patches), wanted(token));
    TokensBwd::<T> {
        dpatches,
        dtoken,
        partial: optional_mut(partial),
        dy: dy.slice(),
        batch: batch as u32,
        length: length as u32,
        width: width as u32,
        skip: skip as u32,
        vector: vector as u32,
        accumulate_patches,
        accumulate_token,
    }
    .launch(
        accelerator,
        LaunchConfig::grid([parts(batch), (length * width / vector).div_ceil(THREADS as usize)], THREADS),
    )
}
