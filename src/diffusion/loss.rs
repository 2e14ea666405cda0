//! The training objective: draw noise, predict, compare.

use super::config::BALANCED_TERMS;
use super::{
    Denoiser, DiffusionConfig, LossKind, LossWeighting, NoiseSchedule, Prediction, Schedule, TimestepSampling,
};
use crate::error::Result;
use crate::nn::Scope;
use crate::ops::balanced_loss::{BalancedLoss, balanced_loss, update_magnitudes};
use crate::ops::elementwise::cast;
use crate::ops::level_sampling::{self, Law};
use crate::ops::mse_loss::mse_loss;
use crate::ops::noise_step::{Draw, NoiseStep, Target, TimeGrid, noise_step};
use crate::tape::Var;
use crate::tensor::{Context, DType, Tensor};

/// A batch of images with their labels.
pub struct Batch {
    /// `[B, H, W, C]` f32 in [-1, 1].
    pub images: Tensor,
    /// `[B]` i32.
    pub labels: Tensor,
}

/// The purpose of an objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossMode {
    /// Training: noise levels and term weights may adapt to earlier losses.
    Training,
    /// Validation: uniform or logit-normal times, and the configured term weights λ.
    Validation,
}

/// The loss of a batch.
pub struct Loss {
    /// The mean over the batch, times the requested scale, `[1]`.
    pub mean: Var,
    /// The batch means of the terms of [`LossKind::Balanced`] `[5]`, or a classifier's correct predictions `[1]`.
    pub terms: Option<Tensor>,
    /// Under adaptive times: the items' losses `[B]` and their noise level bins `[B]`.
    pub items: Option<(Tensor, Tensor)>,
}

/// The constant part and the state of the loss, on the device.
pub struct Objective {
    noise: NoiseStep,
    weighted: bool,
    kind: LossKind,
    balanced: [f32; 5],
    /// The running magnitudes of the terms and their decay.
    magnitudes: Option<(Tensor, f32)>,
    /// The state of adaptive times and their distribution.
    levels: Option<(Tensor, Law)>,
}

impl Objective {
    /// The objective of a configuration. `label_dropout` is the share of labels replaced by `null_label`.
    ///
    /// # Errors
    /// Those of the schedule, and of copying its tables to the device.
    pub fn new(
        context: &Context,
        config: &DiffusionConfig,
        purpose: LossMode,
        seed: u64,
        label_dropout: f32,
        null_label: Option<usize>,
    ) -> Result<Self> {
        let schedule = NoiseSchedule::new(config)?;
        let times = match schedule.tables() {
            Some((a, s)) => TimeGrid::Table { a: context.tensor(&a, [a.len()])?, s: context.tensor(&s, [s.len()])? },
            None => TimeGrid::Flow,
        };
        debug_assert_eq!(matches!(times, TimeGrid::Flow), config.schedule == Schedule::Flow);
        let training = purpose == LossMode::Training;
        let levels = if training && config.timestep_sampling == TimestepSampling::Adaptive {
            let bins = config.adaptive_bins;
            let law = Law { decay: config.adaptive_decay as f32, uniform: config.adaptive_uniform as f32 };
            Some((context.tensor(&level_sampling::start(bins), [3, bins])?, law))
        } else {
            None
        };
        let magnitudes = if training && config.loss == LossKind::Balanced {
            Some((context.zeros([BALANCED_TERMS.len() + 1], DType::F32)?, config.balanced_decay as f32))
        } else {
            None
        };
        let min_snr = config.loss_weighting == LossWeighting::MinSnr;
        let noise = NoiseStep {
            seed,
            times,
            draw: match (config.timestep_sampling, &levels) {
                (TimestepSampling::Adaptive, Some((state, _))) => Draw::Adaptive(state.clone()),
                (TimestepSampling::Adaptive | TimestepSampling::Uniform, _) => Draw::Uniform,
                (TimestepSampling::LogitNormal, _) => {
                    Draw::LogitNormal { mean: config.logit_mean as f32, std: config.logit_std as f32 }
                }
            },
            target: match config.prediction {
                Prediction::Epsilon => Target::Epsilon,
                Prediction::X0 => Target::X0,
                Prediction::V => Target::V,
                Prediction::Flow => Target::Flow,
            },
            min_snr_gamma: min_snr.then_some(config.min_snr_gamma as f32),
            label_dropout: if null_label.is_some() { label_dropout } else { 0.0 },
            null_label: null_label.unwrap_or(0) as i32,
        };
        Ok(Self {
            noise,
            weighted: min_snr || levels.is_some(),
            kind: config.loss,
            balanced: config.balanced_weights.map(|weight| weight as f32),
            magnitudes,
            levels,
        })
    }

    /// The state of the objective, by name: a checkpoint stores it.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        let levels = self.levels.iter().map(|(state, _)| ("levels", state));
        levels.chain(self.magnitudes.iter().map(|(state, _)| ("magnitudes", state))).collect()
    }

    /// The names of [`Loss::terms`].
    pub fn terms(&self) -> &'static [&'static str] {
        match self.kind {
            LossKind::Mse => &[],
            LossKind::Balanced => &BALANCED_TERMS,
        }
    }

    /// Whether [`Objective::learn`] does anything.
    pub fn learns(&self) -> bool {
        self.levels.is_some() || self.magnitudes.is_some()
    }

    /// Whether it learns from [`Loss::items`].
    pub fn learns_from_items(&self) -> bool {
        self.levels.is_some()
    }

    /// Updates the state after a step: from the mean of its batches' `terms`, and the losses and bins of all its items.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for wrong shapes.
    pub fn learn(&self, context: &Context, terms: Option<&Tensor>, items: Option<&(Tensor, Tensor)>) -> Result<()> {
        if let (Some((state, decay)), Some(terms)) = (&self.magnitudes, terms) {
            update_magnitudes(context, state, terms, *decay)?;
        }
        if let (Some((state, law)), Some((losses, bins))) = (&self.levels, items) {
            level_sampling::update(context, state, losses, bins, *law)?;
        }
        Ok(())
    }

    /// The loss of `batch`, times `scale`: draws times, noise and dropped labels for the step and items in `control`, predicts,
    /// and compares. It consumes the images, so that their memory is free before the network runs. [`Objective::learn`] updates
    /// the state.
    ///
    /// # Errors
    /// Those of the network and of the ops.
    pub fn loss(&self, s: &Scope, model: &dyn Denoiser, batch: Batch, control: &Tensor, scale: f32) -> Result<Loss> {
        let context = s.context();
        let noised = noise_step(context, &batch.images, &batch.labels, control, &self.noise)?;
        drop(batch);
        let constant = |tensor: &Tensor| s.constant(tensor);
        let prediction =
            model.forward(s, &constant(&noised.x_t), &constant(&noised.time), &constant(&noised.labels))?;
        let prediction = cast(s, &prediction, DType::F32)?;
        let weight = self.weighted.then(|| constant(&noised.weight));
        let target = constant(&noised.target);
        let (mean, terms, items) = match self.kind {
            LossKind::Mse => {
                let (mean, items) = mse_loss(s, &prediction, &target, weight.as_ref(), scale)?;
                (mean, None, items)
            }
            LossKind::Balanced => {
                let config = BalancedLoss { weights: self.balanced, scale };
                let magnitudes = self.magnitudes.as_ref().map(|(state, _)| state);
                let balanced = balanced_loss(s, &prediction, &target, weight.as_ref(), magnitudes, &config)?;
                (balanced.loss, Some(balanced.terms), balanced.items)
            }
        };
        Ok(Loss { mean, terms, items: noised.level.map(|bins| (items, bins)) })
    }
}
