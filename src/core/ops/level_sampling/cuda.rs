//! The law of the bins on accelerators: one block.

use super::{Law, MOST_BINS};
use crate::device::launches::LevelSamplingUpdate;
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn update(
    accelerator: &dyn Accelerator,
    state: &Tensor,
    losses: &Tensor,
    levels: &Tensor,
    law: Law,
) -> Result<()> {
    LevelSamplingUpdate {
        state: state.slice_mut(),
        losses: losses.slice(),
        levels: levels.slice(),
        bins: state.sizes()[1] as u32,
        batch: losses.len() as u32,
        decay: law.decay,
        uniform: law.uniform,
    }
    .launch(accelerator, LaunchConfig::linear(1, MOST_BINS as u32))
}
