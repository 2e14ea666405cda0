//! Sampling on accelerators.

use super::SamplerState;
use crate::device::launches::{SamplerStepAdvance, SamplerStepNoise, SamplerStepPixels, SamplerStepTime};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{by_item, optional_mut};
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn fill_noise(accelerator: &dyn Accelerator, x: &Tensor, words: &Tensor) -> Result<()> {
    let rows = x.sizes()[0];
    let elements = x.len() / rows;
    SamplerStepNoise { x: x.slice_mut(), words: words.slice(), rows: rows as u32, elements: elements as u32 }
        .launch(accelerator, by_item(rows, elements, THREADS))
}

pub(super) fn time(accelerator: &dyn Accelerator, time: &Tensor, words: &Tensor) -> Result<()> {
    SamplerStepTime { time: time.slice_mut(), words: words.slice(), rows: time.len() as u32 }
        .launch(accelerator, LaunchConfig::elements(time.len(), THREADS))
}

pub(super) fn advance(accelerator: &dyn Accelerator, state: &SamplerState, words: &Tensor) -> Result<()> {
    let rows = state.x.sizes()[0];
    let elements = state.x.len() / rows;
    SamplerStepAdvance {
        x: state.x.slice_mut(),
        saved_state: optional_mut(state.saved_state),
        saved: optional_mut(state.saved),
        prediction: state.prediction.slice(),
        words: words.slice(),
        rows: rows as u32,
        elements: elements as u32,
    }
    .launch(accelerator, by_item(rows, elements, THREADS))
}

pub(super) fn pixels(accelerator: &dyn Accelerator, x: &Tensor, pixels: &Tensor) -> Result<()> {
    SamplerStepPixels { pixels: pixels.slice_mut(), x: x.slice(), n: x.len() as u64 }
        .launch(accelerator, LaunchConfig::elements(x.len(), THREADS))
}
