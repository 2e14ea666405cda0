//! Embedding on accelerators.

use crate::device::launches::{EmbeddingBwd, EmbeddingFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 128;

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    table: &Tensor,
    indices: &Tensor,
    y: &Tensor,
) -> Result<()> {
    EmbeddingFwd::<T> {
        y: y.slice_mut(),
        table: table.slice(),
        indices: indices.slice(),
        batch: indices.len() as u32,
        rows: table.shape().rows() as u32,
        width: table.shape().last() as u32,
    }
    .launch(accelerator, LaunchConfig::elements(y.len(), THREADS))
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    dy: &Tensor,
    indices: &Tensor,
    dtable: &Destination,
) -> Result<()> {
    EmbeddingBwd::<T> {
        dtable: dtable.slice_mut(),
        dy: dy.slice(),
        indices: indices.slice(),
        batch: indices.len() as u32,
        rows: dtable.shape().rows() as u32,
        width: dy.shape().last() as u32,
        accumulate: dtable.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(dtable.len(), THREADS))
}
