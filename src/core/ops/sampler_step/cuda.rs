//! Sampling on accelerators.

use super::SamplerState;
use crate::device::launches::{SamplerStepAdvance, SamplerStepNoise, SamplerStepPixels, SamplerStepTime};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{by_item, optional_mut};
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn fill_noise(
    accelerator: &dyn Accelerator,
    x: &Tensor,
    batch: usize,
    control: &Tensor,
    seed: u64,
    scale: f32,
) -> Result<()> {
    let rows = x.sizes()[0];
    let elements = x.len() / rows;
    SamplerStepNoise {
        x: x.slice_mut(),
        control: control.slice(),
        batch: batch as u32,
        elements: elements as u32,
        copies: (rows / batch) as u32,
        seed,
        scale,
    }
    .launch(accelerator, by_item(batch, elements, THREADS))
}

pub(super) fn time(accelerator: &dyn Accelerator, time: &Tensor, table: &Tensor, control: &Tensor) -> Result<()> {
    SamplerStepTime {
        time: time.slice_mut(),
        table: table.slice(),
        control: control.slice(),
        count: time.len() as u32,
        stages: table.sizes()[0] as u32,
    }
    .launch(accelerator, LaunchConfig::elements(time.len(), THREADS))
}

pub(super) fn advance(
    accelerator: &dyn Accelerator,
    state: &SamplerState,
    table: &Tensor,
    control: &Tensor,
    seed: u64,
) -> Result<()> {
    let batch = state.x.sizes()[0] / state.copies;
    let elements = state.x.len() / (batch * state.copies);
    SamplerStepAdvance {
        x: state.x.slice_mut(),
        saved_state: optional_mut(state.saved_state),
        saved: optional_mut(state.saved),
        prediction: state.prediction.slice(),
        table: table.slice(),
        control: control.slice(),
        batch: batch as u32,
        elements: elements as u32,
        copies: state.copies as u32,
        stages: table.sizes()[0] as u32,
        seed,
    }
    .launch(accelerator, by_item(batch, elements, THREADS))
}

pub(super) fn pixels(accelerator: &dyn Accelerator, x: &Tensor, pixels: &Tensor) -> Result<()> {
    SamplerStepPixels { pixels: pixels.slice_mut(), x: x.slice(), n: x.len() as u64 }
        .launch(accelerator, LaunchConfig::elements(x.len(), THREADS))
}
