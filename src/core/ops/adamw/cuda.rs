//! The optimizer's step on accelerators.

use super::{AdamW, AdamWState, PART};
use crate::device::launches::{AdamwNormFinal, AdamwNormPartial, AdamwRecord, AdamwUpdate};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, optional_mut};
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// Elements of a thread in the update.
const ELEMENTS: usize = 8;

pub(super) fn gradient_norm(
    accelerator: &dyn Accelerator,
    gradients: &Tensor,
    partial: &Tensor,
    statistics: &Tensor,
    max_norm: Option<f32>,
) -> Result<()> {
    AdamwNormPartial {
        partial: partial.slice_mut(),
        gradients: gradients.slice(),
        n: gradients.len() as u64,
        part: PART as u32,
    }
    .launch(accelerator, LaunchConfig::linear(partial.len() as u32, THREADS))?;
    AdamwNormFinal {
        statistics: statistics.slice_mut(),
        partial: partial.slice(),
        parts: partial.len() as u32,
        max_norm: max_norm.unwrap_or(0.0),
    }
    .launch(accelerator, LaunchConfig::linear(1, THREADS))
}

pub(super) fn update<T: Stored>(
    accelerator: &dyn Accelerator,
    state: &AdamWState,
    control: &Tensor,
    statistics: &Tensor,
    hyper: AdamW,
) -> Result<()> {
    let n = state.parameters.len();
    AdamwUpdate::<T> {
        parameters: state.parameters.slice_mut(),
        compute: optional_mut(state.compute),
        first: state.first.slice_mut(),
        second: state.second.slice_mut(),
        ema: optional_mut(state.ema),
        gradients: state.gradients.slice(),
        control: control.slice(),
        statistics: statistics.slice(),
        n: n as u64,
        rest1: (1.0 - hyper.beta1) as f32,
        beta2: hyper.beta2 as f32,
        rest2: (1.0 - hyper.beta2) as f32,
        epsilon: hyper.epsilon as f32,
        decay: hyper.weight_decay as f32,
        decoupled: hyper.decoupled.into(),
    }
    .launch(accelerator, LaunchConfig::elements(n.div_ceil(ELEMENTS), THREADS))
}

pub(super) fn record(
    accelerator: &dyn Accelerator,
    ring: &Tensor,
    loss: &Tensor,
    terms: Option<&Tensor>,
    statistics: &Tensor,
    control: &Tensor,
) -> Result<()> {
    AdamwRecord {
        ring: ring.slice_mut(),
        loss: loss.slice(),
        terms: optional(terms),
        statistics: statistics.slice(),
        control: control.slice(),
        rows: ring.sizes()[0] as u32,
        count: terms.map_or(0, Tensor::len) as u32,
    }
    .launch(accelerator, LaunchConfig::linear(1, 32))
}
