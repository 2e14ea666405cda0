//! A training batch's draws on accelerators.

use super::{Draw, NoiseStep, Noised, Target, TimeGrid};
use crate::device::{Accelerator, Slice, SliceMut, launches};
use crate::error::Result;
use crate::ops::by_item;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// `Target` in the kernel.
fn kind(target: Target) -> u32 {
    match target {
        Target::Epsilon => 0,
        Target::X0 => 1,
        Target::V => 2,
        Target::Flow => 3,
    }
}

pub(super) fn forward(
    accelerator: &dyn Accelerator,
    x0: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    config: &NoiseStep,
    noised: &Noised,
) -> Result<()> {
    let (logit_normal, mean, deviation) = match config.draw {
        Draw::Uniform | Draw::Adaptive(_) => (0, 0.0, 0.0),
        Draw::LogitNormal { mean, std } => (1, mean, std),
    };
    let (bin_state, bins) = match &config.draw {
        Draw::Adaptive(state) => (state.slice(), state.sizes()[1]),
        _ => (Slice::none(), 0),
    };
    let (table_a, table_s, timesteps) = match &config.times {
        TimeGrid::Table { a, s } => (a.slice(), s.slice(), a.len()),
        TimeGrid::Flow => (Slice::none(), Slice::none(), 1),
    };
    let (batch, elements) = (labels.len(), x0.len() / labels.len());
    launches::NoiseStep {
        x_t: noised.x_t.slice_mut(),
        target: noised.target.slice_mut(),
        time: noised.time.slice_mut(),
        batch_labels: noised.labels.slice_mut(),
        weight: noised.weight.slice_mut(),
        level_of: noised.level.as_ref().map_or(SliceMut::none(), Tensor::slice_mut),
        x0: x0.slice(),
        labels: labels.slice(),
        control: control.slice(),
        table_a,
        table_s,
        bin_state,
        bins: bins as u32,
        elements: elements as u32,
        timesteps: timesteps as u32,
        seed: config.seed,
        logit_normal,
        mean,
        deviation,
        kind: kind(config.target),
        // Not positive: no weights.
        gamma: config.min_snr_gamma.unwrap_or(0.0),
        label_dropout: config.label_dropout,
        null_label: config.null_label,
    }
    .launch(accelerator, by_item(batch, elements, THREADS))
}
