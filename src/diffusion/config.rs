//! The `diffusion` and `sampling` sections of a configuration: noise schedule, prediction, loss weighting, sampler.

use serde::{Deserialize, Serialize};

use super::guidance::GuidanceSchedule;
use super::timesteps::{self, TimestepSchedule};
use crate::ops::level_sampling;
use crate::{Error, Result};

/// How noise grows with the timestep t in 0…`num_steps` - 1: x_t = α_t x_0 + σ_t ε.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// β rises linearly from `beta_start` to `beta_end`; α² + σ² = 1 (Ho et al. 2020, "Denoising Diffusion
    /// Probabilistic Models").
    Linear,
    /// ᾱ follows a squared cosine, β clipped at 0.999; α² + σ² = 1 (Nichol & Dhariwal 2021, "Improved Denoising
    /// Diffusion Probabilistic Models"). `beta_start` and `beta_end` are not used.
    Cosine,
    /// Straight paths, α = 1 - t and σ = t on the unit interval (Liu et al. 2022, "Flow Straight and Fast"; Lipman et
    /// al. 2022, "Flow Matching for Generative Modeling"). `beta_start` and `beta_end` are not used.
    Flow,
}

/// The target of the network's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise ε.
    Epsilon,
    /// The clean image x_0.
    X0,
    /// The velocity v = α ε - σ x_0 (Salimans & Ho 2022); needs α² + σ² = 1.
    V,
    /// The flow's velocity ε - x_0; needs `schedule: flow`.
    Flow,
}

/// How a training image's timestep is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSampling {
    /// Uniformly.
    Uniform,
    /// In proportion to the loss, by [`level_sampling`], with importance weights that keep the mean loss the same as under uniform
    /// times.
    Adaptive,
    /// The unit-interval time is the logistic function of a normal variate with `logit_mean` and `logit_std`, which favours middle
    /// noise levels (Esser et al. 2024, "Scaling Rectified Flow Transformers").
    LogitNormal,
}

/// The weight of a training image's squared error by its noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeighting {
    /// The plain mean squared error of the prediction.
    None,
    /// min(SNR, `min_snr_gamma`) on the scale of x_0 (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
    /// Weighting Strategy").
    MinSnr,
}

/// How a prediction is compared with its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The mean squared error.
    Mse,
    /// Squared, absolute, angular, high-frequency and edge errors, balanced by their running magnitudes: see
    /// [`balanced_loss`](crate::ops::balanced_loss).
    Balanced,
}

/// The terms of [`LossKind::Balanced`], in the order of `diffusion.balanced_weights`, as named in logs.
pub const BALANCED_TERMS: [&str; 5] = ["mse", "l1", "cosine", "high_frequency", "edge"];

/// The `diffusion` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Number of noise levels T of the training; timesteps are 0…T - 1.
    pub num_steps: usize,
    /// How noise grows with the timestep.
    pub schedule: Schedule,
    /// β at the first timestep (`linear` only), in (0, 1).
    pub beta_start: f64,
    /// β at the last timestep (`linear` only), in (0, 1).
    pub beta_end: f64,
    /// The target of the network's output.
    pub prediction: Prediction,
    /// How a training image's timestep is drawn.
    pub timestep_sampling: TimestepSampling,
    /// Mean of the normal variate of `logit_normal`, dimensionless.
    pub logit_mean: f64,
    /// Standard deviation of the normal variate of `logit_normal`, dimensionless, above 0.
    pub logit_std: f64,
    /// Number of noise level bins whose losses `adaptive` tracks, 1 to 256.
    pub adaptive_bins: usize,
    /// Decay of a bin's mean loss under `adaptive`, in [0, 1).
    pub adaptive_decay: f64,
    /// Share of uniform draws under `adaptive`, in (0, 1].
    pub adaptive_uniform: f64,
    /// How a prediction is compared with its target.
    pub loss: LossKind,
    /// The weights λ of the squared, absolute, angular, high-frequency and edge errors under `balanced`; 0 turns a term off.
    pub balanced_weights: [f64; 5],
    /// Decay of a term's running magnitude under `balanced`, in [0, 1).
    pub balanced_decay: f64,
    /// The weight of an image's loss by its noise level.
    pub loss_weighting: LossWeighting,
    /// The bound γ on the signal-to-noise ratio under `min_snr`, above 0.
    pub min_snr_gamma: f64,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            num_steps: 1000,
            schedule: Schedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            prediction: Prediction::Epsilon,
            timestep_sampling: TimestepSampling::Uniform,
            logit_mean: 0.0,
            logit_std: 1.0,
            adaptive_bins: 32,
            adaptive_decay: 0.98,
            adaptive_uniform: 0.2,
            loss: LossKind::Mse,
            balanced_weights: [1.0, 0.5, 0.1, 0.5, 0.25],
            balanced_decay: 0.99,
            loss_weighting: LossWeighting::None,
            min_snr_gamma: 5.0,
        }
    }
}

impl DiffusionConfig {
    /// Refuses values without a valid schedule.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self) -> Result<()> {
        if !(2..=1_000_000).contains(&self.num_steps) {
            let message = format!("{} noise levels", self.num_steps);
            return Err(Error::config("diffusion.num_steps", message, "give 2 to 1000000; 1000 is usual"));
        }
        for (key, beta) in [("diffusion.beta_start", self.beta_start), ("diffusion.beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::config(key, format!("β = {beta} is outside (0, 1)"), "1e-4 to 0.02 is usual"));
            }
        }
        if self.beta_start > self.beta_end {
            let message = format!("β would fall from {} to {}", self.beta_start, self.beta_end);
            return Err(Error::config("diffusion.beta_start", message, "give a value up to diffusion.beta_end"));
        }
        let flow = self.schedule == Schedule::Flow;
        if self.prediction == Prediction::Flow && !flow {
            let message = "the flow's velocity is defined on straight paths only";
            return Err(Error::config("diffusion.prediction", message, "set diffusion.schedule to flow, or predict v"));
        }
        if flow && matches!(self.prediction, Prediction::Epsilon | Prediction::V) {
            let message = "under the flow schedule α reaches 0 and α² + σ² is not 1";
            return Err(Error::config("diffusion.prediction", message, "predict flow or x0, or use another schedule"));
        }
        if !(1..=level_sampling::MOST_BINS).contains(&self.adaptive_bins) {
            let message = format!("{} bins of noise levels", self.adaptive_bins);
            let advice = format!("give 1 to {}; 32 is usual", level_sampling::MOST_BINS);
            return Err(Error::config("diffusion.adaptive_bins", message, advice));
        }
        for (key, decay) in
            [("diffusion.adaptive_decay", self.adaptive_decay), ("diffusion.balanced_decay", self.balanced_decay)]
        {
            if !(0.0..1.0).contains(&decay) {
                return Err(Error::config(key, format!("{decay} is outside [0, 1)"), "0.98 to 0.99 is usual"));
            }
        }
        if !(self.adaptive_uniform > 0.0 && self.adaptive_uniform <= 1.0) {
            let message = format!("{} is outside (0, 1]", self.adaptive_uniform);
            return Err(Error::config("diffusion.adaptive_uniform", message, "0.2 is usual"));
        }
        let weights = &self.balanced_weights;
        if !weights.iter().all(|weight| (0.0..=1e6).contains(weight)) || weights.iter().all(|weight| *weight == 0.0) {
            let message = format!("{weights:?} are not valid weights");
            let advice = "give five numbers from 0 to 1e6, one of them above 0: mse, l1, cosine, high frequency, edge";
            return Err(Error::config("diffusion.balanced_weights", message, advice));
        }
        if !self.logit_mean.is_finite() {
            return Err(Error::config("diffusion.logit_mean", "must be a finite number", "0 is usual"));
        }
        for (key, value) in [("diffusion.logit_std", self.logit_std), ("diffusion.min_snr_gamma", self.min_snr_gamma)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::config(key, format!("{value} is not above 0"), "1 and 5 are usual"));
            }
        }
        Ok(())
    }
}

/// The sampling method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling (Ho et al. 2020): fresh noise at each step.
    Ddpm,
    /// Song et al. 2020, "Denoising Diffusion Implicit Models": deterministic at η = 0.
    Ddim,
    /// Heun's second-order method on the probability-flow ODE (Karras et al. 2022): two network calls per step.
    Heun,
    /// DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"):
    /// second order using the previous step, one network call per step.
    Dpmpp2m,
}

impl SamplerKind {
    /// Every sampler.
    pub const ALL: [Self; 4] = [Self::Ddpm, Self::Ddim, Self::Heun, Self::Dpmpp2m];

    /// Its name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp2m",
        }
    }
}

impl std::fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for SamplerKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let short: String = text.chars().take(60).collect();
            let message = format!("no sampler is called `{}`", short.escape_debug());
            Error::config("sampler", message, "use ddpm, ddim, heun or dpmpp2m")
        })
    }
}

/// The `sampling` section: sampling during training, and the defaults of `engine sample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// The sampling method.
    pub sampler: SamplerKind,
    /// Denoising steps, at most `diffusion.num_steps`; a schedule with repeats has fewer.
    pub num_steps: usize,
    /// How the steps are spaced.
    pub schedule: TimestepSchedule,
    /// The timesteps one by one, in 0…`diffusion.num_steps` - 1, instead of `num_steps` of a `schedule`; see
    /// [`SamplingConfig::times`].
    pub timesteps: Option<Vec<i64>>,
    /// η of DDIM in [0, 1]: 0 adds no noise, 1 as much as DDPM.
    pub eta: f64,
    /// Scale of the initial noise and of all fresh noise: 1 as in training, less gives smoother and less varied images, 0 none at
    /// all.
    pub temperature: f64,
    /// Classifier-free guidance scale (Ho & Salimans 2022): 1 is the plain conditional prediction, higher values follow the class
    /// more strictly, at twice the cost. Values other than 1 need the null label.
    pub guidance: f64,
    /// Guidance over a sample's progress: `constant`, `adaptive`, or a list of scales.
    pub guidance_schedule: GuidanceSchedule,
    /// Clamp each step's estimate of x_0 to the pixels' range [-1, 1].
    pub clip_x0: bool,
    /// Images per class in sample grids; for a model without classes, images in all.
    pub count_per_class: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Ddim,
            num_steps: 50,
            schedule: TimestepSchedule::Uniform,
            timesteps: None,
            eta: 0.0,
            temperature: 1.0,
            guidance: 2.0,
            guidance_schedule: GuidanceSchedule::Constant,
            clip_x0: true,
            count_per_class: 10,
        }
    }
}

impl SamplingConfig {
    /// Whether any step is guided, so that the model needs its null label.
    pub fn is_guided(&self) -> bool {
        self.guidance_schedule.is_guided(self.guidance)
    }

    /// The settings without guidance.
    pub fn unguided(self) -> Self {
        Self { guidance: 1.0, guidance_schedule: GuidanceSchedule::Constant, ..self }
    }

    /// The guidance as text: `2`, `2 (adaptive)`, `1,2,3`.
    pub fn describe_guidance(&self) -> String {
        match &self.guidance_schedule {
            GuidanceSchedule::Constant => self.guidance.to_string(),
            GuidanceSchedule::Adaptive => format!("{} (adaptive)", self.guidance),
            list => list.to_string(),
        }
    }

    /// Refuses values that no sampler can use; `num_levels` is `diffusion.num_steps`.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self, num_levels: usize) -> Result<()> {
        if self.num_steps == 0 || self.num_steps > num_levels {
            let message = format!("{} denoising steps on a schedule of {num_levels}", self.num_steps);
            return Err(Error::config("sampling.num_steps", message, format!("give 1 to {num_levels}")));
        }
        if let Some(list) = &self.timesteps {
            timesteps::listed(list, num_levels)?;
        }
        if !(0.0..=1.0).contains(&self.eta) {
            let message = format!("η = {} is outside [0, 1]", self.eta);
            return Err(Error::config("sampling.eta", message, "0 is deterministic, 1 adds as much noise as DDPM"));
        }
        if !(0.0..=10.0).contains(&self.temperature) {
            let message = format!("a temperature of {} is outside [0, 10]", self.temperature);
            return Err(Error::config("sampling.temperature", message, "1 is usual, 0.8 gives smoother images"));
        }
        if !(0.0..=100.0).contains(&self.guidance) {
            let message = format!("a guidance scale of {} is outside [0, 100]", self.guidance);
            return Err(Error::config("sampling.guidance", message, "1 means no guidance, 1.5 to 4 is usual"));
        }
        self.guidance_schedule.validate()?;
        if !(1..=1000).contains(&self.count_per_class) {
            let message = format!("{} images per class", self.count_per_class);
            return Err(Error::config("sampling.count_per_class", message, "give 1 to 1000; 10 is usual"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_usual_ones_and_valid() {
        let config = DiffusionConfig::default();
        config.validate().unwrap();
        assert_eq!((config.num_steps, config.beta_start, config.beta_end), (1000, 1e-4, 0.02));
        SamplingConfig::default().validate(config.num_steps).unwrap();
    }

    #[test]
    fn each_bad_value_names_its_key() {
        let base = DiffusionConfig::default;
        let cases: [(&str, DiffusionConfig); 12] = [
            ("diffusion.num_steps", DiffusionConfig { num_steps: 1, ..base() }),
            ("diffusion.beta_start", DiffusionConfig { beta_start: 0.5, ..base() }),
            ("diffusion.beta_end", DiffusionConfig { beta_end: f64::NAN, ..base() }),
            ("diffusion.prediction", DiffusionConfig { prediction: Prediction::Flow, ..base() }),
            ("diffusion.prediction", DiffusionConfig { schedule: Schedule::Flow, ..base() }),
            ("diffusion.logit_std", DiffusionConfig { logit_std: 0.0, ..base() }),
            ("diffusion.adaptive_bins", DiffusionConfig { adaptive_bins: 257, ..base() }),
            ("diffusion.adaptive_decay", DiffusionConfig { adaptive_decay: 1.0, ..base() }),
            ("diffusion.adaptive_uniform", DiffusionConfig { adaptive_uniform: 0.0, ..base() }),
            ("diffusion.balanced_decay", DiffusionConfig { balanced_decay: f64::NAN, ..base() }),
            ("diffusion.balanced_weights", DiffusionConfig { balanced_weights: [0.0; 5], ..base() }),
            ("diffusion.min_snr_gamma", DiffusionConfig { min_snr_gamma: -1.0, ..base() }),
        ];
        for (key, config) in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(key), "{message}");
        }
        let base = SamplingConfig::default;
        let cases: [(&str, SamplingConfig); 7] = [
            ("sampling.num_steps", SamplingConfig { num_steps: 1001, ..base() }),
            ("sampling.timesteps", SamplingConfig { timesteps: Some(vec![-1, 1001]), ..base() }),
            ("sampling.temperature", SamplingConfig { temperature: -0.1, ..base() }),
            ("sampling.temperature", SamplingConfig { temperature: f64::NAN, ..base() }),
            ("sampling.eta", SamplingConfig { eta: 1.5, ..base() }),
            ("sampling.guidance", SamplingConfig { guidance: f64::INFINITY, ..base() }),
            ("sampling.count_per_class", SamplingConfig { count_per_class: 0, ..base() }),
        ];
        for (key, config) in cases {
            let message = config.validate(1000).unwrap_err().to_string();
            assert!(message.starts_with(key), "{message}");
        }
    }

    #[test]
    fn sampler_names_parse_back() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("euler".parse::<SamplerKind>().unwrap_err().to_string().contains("heun"));
    }
}
