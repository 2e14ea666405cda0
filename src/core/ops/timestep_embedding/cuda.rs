//! Sinusoidal features on accelerators.

use super::MAX_PERIOD;
use crate::device::launches::TimestepEmbeddingFwd;
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
use crate::tensor::Tensor;

const THREADS: u32 = 128;

pub(super) fn forward<T: Stored>(accelerator: &dyn Accelerator, time: &Tensor, y: &Tensor) -> Result<()> {
    TimestepEmbeddingFwd::<T> {
        y: y.slice_mut(),
        time: time.slice(),
        batch: time.len() as u32,
        width: y.shape().last() as u32,
        log_max_period: MAX_PERIOD.ln() as f32,
    }
    .launch(accelerator, LaunchConfig::elements(y.len(), THREADS))
}
