//! The training objective: draw noise, predict, compare.

use super::{Denoiser, DiffusionConfig, LossWeighting, NoiseSchedule, Prediction, Schedule, TimestepSampling};
use crate::error::Result;
use crate::nn::Bound;
use crate::ops::gather::{Order, gather};
use crate::ops::mse_loss::mse_loss;
use crate::ops::noise_step::{Draw, NoiseStep, Target, Times, noise_step};
use crate::tape::{Tape, Var};
use crate::tensor::{Context, Tensor};

/// Images on the device, and how batches are taken from them.
#[derive(Clone)]
pub struct Batch {
    /// `[N, H, W, C]` u8.
    pub images: Tensor,
    /// `[N]` i32.
    pub labels: Tensor,
    /// Images in a batch.
    pub size: usize,
    /// Which images a batch takes, from the control buffer's epoch and cursor on.
    pub order: Order,
    /// The seed by which images are mirrored; None for never.
    pub flip: Option<u64>,
}

/// Everything about the loss that stays the same from step to step, on the device.
pub struct Objective {
    noise: NoiseStep,
    weighted: bool,
}

impl Objective {
    /// The objective of a configuration. `label_dropout` is the share of labels replaced by `null_label`.
    ///
    /// # Errors
    /// Those of the schedule, and of putting its tables on the device.
    pub fn new(
        context: &Context,
        config: &DiffusionConfig,
        seed: u64,
        label_dropout: f32,
        null_label: Option<usize>,
    ) -> Result<Self> {
        let schedule = NoiseSchedule::new(config)?;
        let times = match schedule.tables() {
            Some((a, s)) => Times::Table { a: context.tensor(&a, [a.len()])?, s: context.tensor(&s, [s.len()])? },
            None => Times::Flow,
        };
        debug_assert_eq!(matches!(times, Times::Flow), config.schedule == Schedule::Flow);
        let weighted = config.loss_weighting == LossWeighting::MinSnr;
        let noise = NoiseStep {
            seed,
            times,
            draw: match config.timestep_sampling {
                TimestepSampling::Uniform => Draw::Uniform,
                TimestepSampling::LogitNormal => {
                    Draw::LogitNormal { mean: config.logit_mean as f32, std: config.logit_std as f32 }
                }
            },
            target: match config.prediction {
                Prediction::Epsilon => Target::Epsilon,
                Prediction::X0 => Target::X0,
                Prediction::V => Target::V,
                Prediction::Flow => Target::Flow,
            },
            min_snr_gamma: weighted.then_some(config.min_snr_gamma as f32),
            label_dropout: if null_label.is_some() { label_dropout } else { 0.0 },
            null_label: null_label.unwrap_or(0) as i32,
        };
        Ok(Self { noise, weighted })
    }

    /// The loss `[1]` of the batch that `control` names, times `scale`: gathers images, draws times, noise and dropped
    /// labels, predicts, and takes the (weighted) mean squared error.
    pub fn loss(
        &self,
        tape: &Tape,
        model: &dyn Denoiser,
        parameters: &Bound,
        batch: &Batch,
        control: &Tensor,
        scale: f32,
    ) -> Result<Var> {
        let context = tape.context();
        let (x0, labels) = gather(context, &batch.images, &batch.labels, control, batch.size, batch.order, batch.flip)?;
        let noised = noise_step(context, &x0, &labels, control, &self.noise)?;
        drop((x0, labels));
        let constant = |tensor: &Tensor| tape.constant(tensor);
        let prediction = model.forward(
            tape,
            parameters,
            &constant(&noised.x_t),
            &constant(&noised.time),
            &constant(&noised.labels),
        )?;
        let weight = self.weighted.then(|| constant(&noised.weight));
        mse_loss(tape, &prediction, &constant(&noised.target), weight.as_ref(), scale)
    }
}
