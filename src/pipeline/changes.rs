//! Overrides of the model's own sampling settings.

use crate::diffusion::{GuidanceSchedule, SamplerKind, SamplingConfig, TimestepSchedule};

/// The sampling settings of a request; all others are the model's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// The sampler.
    pub sampler: Option<SamplerKind>,
    /// The number of steps, which discards a list of timesteps.
    pub steps: Option<usize>,
    /// The step spacing, which discards a list of timesteps.
    pub schedule: Option<TimestepSchedule>,
    /// The timesteps one by one.
    pub timesteps: Option<Vec<i64>>,
    /// The share of DDPM's noise in a DDIM step.
    pub eta: Option<f64>,
    /// Scale of all noise.
    pub temperature: Option<f64>,
    /// Guidance scale, which alone discards a list of scales.
    pub guidance: Option<f64>,
    /// Guidance over the steps.
    pub guidance_schedule: Option<GuidanceSchedule>,
}

impl Changes {
    /// Applies the changes. [`SamplingConfig::validate`] checks the result.
    pub fn apply(&self, sampling: &mut SamplingConfig) {
        sampling.sampler = self.sampler.unwrap_or(sampling.sampler);
        if self.steps.is_some() || self.schedule.is_some() {
            sampling.timesteps = None;
        }
        sampling.num_steps = self.steps.unwrap_or(sampling.num_steps);
        sampling.schedule = self.schedule.unwrap_or(sampling.schedule);
        if self.timesteps.is_some() {
            sampling.timesteps = self.timesteps.clone();
        }
        sampling.eta = self.eta.unwrap_or(sampling.eta);
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        match &self.guidance_schedule {
            Some(schedule) => sampling.guidance_schedule = schedule.clone(),
            None if self.guidance.is_some() && matches!(sampling.guidance_schedule, GuidanceSchedule::List(_)) => {
                sampling.guidance_schedule = GuidanceSchedule::Constant;
            }
            None => {}
        }
        sampling.guidance = self.guidance.unwrap_or(sampling.guidance);
    }

    /// As [`Changes::apply`], for frames between two ends: a stochastic sampler, with which neighbouring frames would differ, is
    /// replaced by deterministic DDIM unless it was requested.
    pub fn apply_without_noise(&self, sampling: &mut SamplingConfig) {
        self.apply(sampling);
        if self.sampler.is_none() && sampling.sampler == SamplerKind::Ddpm {
            sampling.sampler = SamplerKind::Ddim;
        }
        if self.eta.is_none() {
            sampling.eta = 0.0;
        }
    }
}
