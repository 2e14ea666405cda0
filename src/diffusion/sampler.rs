//! Samplers as plans: every decision is made beforehand, so that a device runs a stage without asking the host.
//!
//! A [`Plan`] is a list of [`Stage`]s. A stage is one evaluation of the network and one update of the state, which is elementwise
//! and, except for the clamp, linear with constant coefficients. With the state x, the network's output `pred` (under guidance
//! `guidance·cond + (1 - guidance)·uncond`), fresh standard normal noise z, and the buffers `saved_state` and `saved`, in this
//! order:
//!
//! ```text
//! raw   = x0_x·x + x0_pred·pred
//! x0    = clamp(raw, -clip, clip)
//! eps   = eps_x·x + eps_pred·pred + eps_clip·(x0 - raw)
//! base  = BASE_IS_SAVED ? saved_state : x
//! next  = next_base·base + next_x0·x0 + next_eps·eps + (USES_SAVED ? next_saved·saved : 0) + (NEEDS_NOISE ? next_noise·z : 0)
//! SAVES_STATE ? saved_state = x
//! SAVES       ? saved = save_x0·x0 + save_eps·eps
//! x     = next
//! ```
//!
//! `eps_clip` = -a/s keeps (x0, eps) a decomposition of x when the clamp acts, as in Ho et al. 2020 (and in diffusers with
//! `use_clipped_model_output`). The state starts as standard normal noise, times the temperature.

use bytemuck::{Pod, Zeroable};

use super::schedule::Inverse;
use super::{NoiseLevel, NoiseSchedule, Prediction, SamplerKind, SamplingConfig};
use crate::{Error, Result};

/// Pixels, and so x_0, lie in [-1, 1].
const PIXEL_BOUND: f64 = 1.0;

/// Heun corrects a step only if σ falls by at most this factor (and always under `flow`).
///
/// The trapezoid in σ multiplies any difference between the two derivatives by (σ - σ')/2. From the end of the cosine schedule (σ
/// = 2e4) to the next level of a 20-step plan (σ' = 13) the state would overshoot far beyond σ'; a plain step, which ends exactly
/// at σ', is better there, as in the last step, to σ' = 0.
const HEUN_MAX_SIGMA_RATIO: f64 = 20.0;

/// The variance of the noise that a DDPM step adds (Ho et al. 2020, section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variance {
    /// "Fixed small": the posterior variance β̃, optimal for data at a single point; better for few steps.
    #[default]
    Posterior,
    /// "Fixed large": the forward process's β, optimal for normally distributed data; for many steps.
    Forward,
}

/// One evaluation of the network and its update; the module documentation defines each number.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The index of the sampling step, from 0; Heun's corrected steps have two stages.
    pub step: usize,
    /// The diffusion time at which the network is evaluated.
    pub time: f64,
    /// The time input of the network.
    pub time_input: f64,
    /// The noise level of the network's input state.
    pub level: NoiseLevel,
    /// (x_0, ε) from the state and the prediction.
    pub inverse: Inverse,
    /// The clamp of x_0; infinite for none.
    pub clip: f64,
    /// Guidance scale; 1 needs no unconditional evaluation.
    pub guidance: f64,
    /// Whether the base is the saved state instead of the current one.
    pub base_is_saved: bool,
    /// Weight of the base in the next state.
    pub next_base: f64,
    /// Weight of x_0 in the next state.
    pub next_x0: f64,
    /// Weight of ε in the next state.
    pub next_eps: f64,
    /// Weight of the saved combination in the next state, if it is used.
    pub next_saved: Option<f64>,
    /// Standard deviation of the fresh noise in the next state; 0 draws none.
    pub next_noise: f64,
    /// Whether the current state is saved.
    pub saves_state: bool,
    /// The combination `(weight of x_0, weight of ε)` to save after the saved one was used.
    pub saves: Option<(f64, f64)>,
}

/// A [`Stage`] in the device's layout: 64 bytes, all f32 except for the flags.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct StageCoefficients {
    /// The time input of the network.
    pub time_input: f32,
    /// Guidance scale.
    pub guidance: f32,
    /// Weight of the state in x_0.
    pub x0_x: f32,
    /// Weight of the prediction in x_0.
    pub x0_pred: f32,
    /// Weight of the state in ε.
    pub eps_x: f32,
    /// Weight of the prediction in ε.
    pub eps_pred: f32,
    /// Weight in ε of the clamp's change of x_0.
    pub eps_clip: f32,
    /// The clamp of x_0; infinite for none.
    pub clip: f32,
    /// Weight of the base in the next state.
    pub next_base: f32,
    /// Weight of x_0 in the next state.
    pub next_x0: f32,
    /// Weight of ε in the next state.
    pub next_eps: f32,
    /// Weight of the saved combination in the next state.
    pub next_saved: f32,
    /// Standard deviation of the fresh noise in the next state.
    pub next_noise: f32,
    /// Weight of x_0 in the combination to save.
    pub save_x0: f32,
    /// Weight of ε in the combination to save.
    pub save_eps: f32,
    /// The bits below.
    pub flags: u32,
}

impl StageCoefficients {
    /// The base is the saved state.
    pub const BASE_IS_SAVED: u32 = 1;
    /// The saved combination is read.
    pub const USES_SAVED: u32 = 2;
    /// Fresh noise is drawn.
    pub const NEEDS_NOISE: u32 = 4;
    /// The state is saved.
    pub const SAVES_STATE: u32 = 8;
    /// A combination is saved.
    pub const SAVES: u32 = 16;
}

impl Stage {
    /// A stage of sampling step `step`, evaluated at `time`, with all weights zero: a sampler of your own fills them in. Of
    /// `sampling` it takes the clamp.
    ///
    /// # Errors
    /// [`Error::Config`] if the prediction has no (x_0, ε) at that time.
    pub fn new(
        noise: &NoiseSchedule,
        prediction: Prediction,
        sampling: &SamplingConfig,
        step: usize,
        time: f64,
    ) -> Result<Self> {
        let level = noise.level(time);
        let inverse = level.invert(prediction).ok_or_else(|| {
            let message = format!("{prediction:?} cannot be predicted from pure noise (time {time})");
            Error::config("diffusion.prediction", message, "predict x0, v or flow")
        })?;
        Ok(Self {
            step,
            time,
            time_input: noise.time_input(time),
            level,
            inverse,
            clip: if sampling.clip_x0 { PIXEL_BOUND } else { f64::INFINITY },
            guidance: 1.0,
            base_is_saved: false,
            next_base: 0.0,
            next_x0: 0.0,
            next_eps: 0.0,
            next_saved: None,
            next_noise: 0.0,
            saves_state: false,
            saves: None,
        })
    }

    /// ε's share of a change of x_0 at a fixed state.
    fn eps_clip(&self) -> f64 {
        -self.level.alpha / self.level.sigma
    }

    /// The stage in the device's layout.
    pub fn coefficients(&self) -> StageCoefficients {
        type C = StageCoefficients;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let (save_x0, save_eps) = self.saves.unwrap_or_default();
        StageCoefficients {
            time_input: self.time_input as f32,
            guidance: self.guidance as f32,
            x0_x: self.inverse.x0_x as f32,
            x0_pred: self.inverse.x0_pred as f32,
            eps_x: self.inverse.eps_x as f32,
            eps_pred: self.inverse.eps_pred as f32,
            eps_clip: self.eps_clip() as f32,
            clip: self.clip as f32,
            next_base: self.next_base as f32,
            next_x0: self.next_x0 as f32,
            next_eps: self.next_eps as f32,
            next_saved: self.next_saved.unwrap_or_default() as f32,
            next_noise: self.next_noise as f32,
            save_x0: save_x0 as f32,
            save_eps: save_eps as f32,
            flags: flag(self.base_is_saved, C::BASE_IS_SAVED)
                | flag(self.next_saved.is_some(), C::USES_SAVED)
                | flag(self.next_noise != 0.0, C::NEEDS_NOISE)
                | flag(self.saves_state, C::SAVES_STATE)
                | flag(self.saves.is_some(), C::SAVES),
        }
    }

    /// Whether the network is also evaluated without the label.
    pub fn is_guided(&self) -> bool {
        self.guidance != 1.0
    }
}

/// The stages of a sampler.
#[derive(Clone, Debug)]
pub struct Plan {
    stages: Vec<Stage>,
    steps: usize,
}

impl Plan {
    /// The plan of a configuration on its times ([`SamplingConfig::times`]), DDPM with [`Variance::Posterior`].
    ///
    /// # Errors
    /// [`Error::Config`] for values refused by [`SamplingConfig::validate`].
    pub fn new(noise: &NoiseSchedule, prediction: Prediction, sampling: &SamplingConfig) -> Result<Self> {
        sampling.validate(noise.num_steps())?;
        let times = sampling.times(noise)?.times;
        Self::with_times(noise, prediction, sampling, Variance::default(), &times)
    }

    /// The plan on the given descending times, one per step (ignoring the times of `sampling`), ending at the clean image. Skipped
    /// timesteps make larger steps (Nichol & Dhariwal 2021, section 4).
    ///
    /// # Errors
    /// [`Error::Config`] if there are no times, if they do not descend, or if the schedule or the prediction has no (x_0, ε) at
    /// one of them.
    pub fn with_times(
        noise: &NoiseSchedule,
        prediction: Prediction,
        sampling: &SamplingConfig,
        variance: Variance,
        times: &[f64],
    ) -> Result<Self> {
        check_times(noise, times)?;
        let mut stages = Vec::with_capacity(2 * times.len());
        for (step, &time) in times.iter().enumerate() {
            let mut stage = Stage::new(noise, prediction, sampling, step, time)?;
            let progress = step as f64 / (times.len() - 1).max(1) as f64;
            stage.guidance = sampling.guidance_schedule.at(sampling.guidance, progress);
            let next_time = times.get(step + 1).copied();
            let next = next_time.map_or(NoiseLevel::CLEAN, |time| noise.level(time));
            match sampling.sampler {
                SamplerKind::Ddpm => {
                    ancestral(&mut stage, next, 1.0);
                    if variance == Variance::Forward && next_time.is_some() {
                        let forward = stage.level.alpha / next.alpha;
                        stage.next_noise = (stage.level.sigma.powi(2) - (forward * next.sigma).powi(2)).sqrt();
                    }
                }
                SamplerKind::Ddim => ancestral(&mut stage, next, sampling.eta),
                SamplerKind::Heun => {
                    ancestral(&mut stage, next, 0.0);
                    let ratio = stage.level.noise_to_signal() / next.noise_to_signal();
                    let correctable = noise.is_continuous() || ratio <= HEUN_MAX_SIGMA_RATIO;
                    if let Some(next_time) = next_time.filter(|_| correctable) {
                        let mut corrector = Stage::new(noise, prediction, sampling, step, next_time)?;
                        corrector.guidance = stage.guidance;
                        let corrector = heun(&mut stage, corrector, noise.is_continuous());
                        stages.push(std::mem::replace(&mut stage, corrector));
                    }
                }
                SamplerKind::Dpmpp2m => {
                    ancestral(&mut stage, next, 0.0);
                    if next_time.is_some() {
                        if let Some(previous) = stages.last() {
                            multistep(&mut stage, previous.level, next);
                        }
                        stage.saves = Some((1.0, 0.0));
                    }
                }
            }
            // Exact for a temperature of 1.
            stage.next_noise *= sampling.temperature;
            stages.push(stage);
        }
        Ok(Self { stages, steps: times.len() })
    }

    /// A sampler of your own: its stages in order, the first at the noisiest time (`tools/examples/custom_sampler.rs`).
    pub fn from_stages(stages: Vec<Stage>) -> Self {
        Self { steps: stages.last().map_or(0, |stage| stage.step + 1), stages }
    }

    /// The stages in order.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The number of sampling steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Whether any stage reads or writes `saved_state` or `saved`.
    pub fn needs_saved_buffers(&self) -> bool {
        self.stages.iter().any(|stage| stage.saves_state || stage.saves.is_some())
    }

    /// Whether any stage reads or writes `saved_state`.
    pub fn needs_saved_state(&self) -> bool {
        self.stages.iter().any(|stage| stage.saves_state)
    }

    /// Whether any stage also evaluates the network without the label.
    pub fn is_guided(&self) -> bool {
        self.stages.iter().any(Stage::is_guided)
    }

    /// The stages in the device's layout.
    pub fn coefficients(&self) -> Vec<StageCoefficients> {
        self.stages.iter().map(Stage::coefficients).collect()
    }

    /// Runs the plan in f64 on the host: the reference for every device.
    ///
    /// `x` holds the start (standard normal noise, times the temperature) and then the image. `model(x, time_input, conditional,
    /// pred)` writes the network's output, and is also called with `conditional = false` if a stage is guided. `noise(stage, z)`
    /// writes the standard normal noise of a stage, by its index in [`Plan::stages`].
    pub fn run_host(
        &self,
        x: &mut [f64],
        mut model: impl FnMut(&[f64], f64, bool, &mut [f64]),
        mut noise: impl FnMut(usize, &mut [f64]),
    ) {
        let zeros = || vec![0.0; x.len()];
        let (mut pred, mut uncond, mut z, mut saved_state, mut saved) = (zeros(), zeros(), zeros(), zeros(), zeros());
        for (index, stage) in self.stages.iter().enumerate() {
            model(x, stage.time_input, true, &mut pred);
            if stage.is_guided() {
                model(x, stage.time_input, false, &mut uncond);
                for (pred, uncond) in pred.iter_mut().zip(&uncond) {
                    *pred = stage.guidance * *pred + (1.0 - stage.guidance) * uncond;
                }
            }
            if stage.next_noise != 0.0 {
                noise(index, &mut z);
            }
            let (inverse, eps_clip) = (stage.inverse, stage.eps_clip());
            for (i, x) in x.iter_mut().enumerate() {
                let raw = inverse.x0_x * *x + inverse.x0_pred * pred[i];
                let x0 = raw.clamp(-stage.clip, stage.clip);
                let eps = inverse.eps_x * *x + inverse.eps_pred * pred[i] + eps_clip * (x0 - raw);
                let base = if stage.base_is_saved { saved_state[i] } else { *x };
                let mut next = stage.next_base * base + stage.next_x0 * x0 + stage.next_eps * eps;
                if let Some(weight) = stage.next_saved {
                    next += weight * saved[i];
                }
                if stage.next_noise != 0.0 {
                    next += stage.next_noise * z[i];
                }
                if stage.saves_state {
                    saved_state[i] = *x;
                }
                if let Some((of_x0, of_eps)) = stage.saves {
                    saved[i] = of_x0 * x0 + of_eps * eps;
                }
                *x = next;
            }
        }
    }
}

/// Refuses invalid times.
fn check_times(noise: &NoiseSchedule, times: &[f64]) -> Result<()> {
    let last = if noise.is_continuous() {
        "0…1".to_owned()
    } else {
        format!("whole numbers in 0…{}", noise.num_steps() - 1)
    };
    let advice = || format!("give falling times, {last}");
    if times.is_empty() {
        return Err(Error::config("sampling timesteps", "the list is empty", advice()));
    }
    if let Some(time) = times.iter().find(|&&time| !noise.has(time) || noise.level(time).sigma == 0.0) {
        return Err(Error::config("sampling timesteps", format!("{time} is not a noise level"), advice()));
    }
    if let Some(pair) = times.windows(2).find(|pair| pair[0] <= pair[1]) {
        return Err(Error::config("sampling timesteps", format!("{} is followed by {}", pair[0], pair[1]), advice()));
    }
    Ok(())
}

/// Song et al. 2020, "Denoising Diffusion Implicit Models", equation (12), for any (a, s): η = 0 is DDIM, 1 is DDPM.
///
/// x_0/a + σ·ε is a process with growing noise, so its posterior depends only on (a, s): with ρ = σ'/σ the added noise has
/// variance s'²·(1 - ρ²), which is β̃ if a² + s² = 1.
fn ancestral(stage: &mut Stage, next: NoiseLevel, eta: f64) {
    let rho = (next.sigma * stage.level.alpha) / (next.alpha * stage.level.sigma);
    let fresh = eta * (1.0 - rho * rho).sqrt();
    stage.next_x0 = next.alpha;
    stage.next_eps = next.sigma * (1.0 - fresh * fresh).sqrt();
    stage.next_noise = next.sigma * fresh;
}

/// Heun's corrector for `predictor`, a step to the corrector's level (Karras et al. 2022, "Elucidating the Design Space of
/// Diffusion-Based Generative Models", algorithm 1): repeats the step with the mean of both ends' derivatives.
///
/// The equation is solved in σ for x/a, whose derivative is ε, or under flow in t for x, whose derivative is ε - x_0.
fn heun(predictor: &mut Stage, mut corrector: Stage, flow: bool) -> Stage {
    let (from, to) = (predictor.level, corrector.level);
    let (base, half, derivative) = if flow {
        (1.0, 0.5 * (to.sigma - from.sigma), (-1.0, 1.0))
    } else {
        (to.alpha / from.alpha, 0.5 * (to.sigma - to.alpha * from.noise_to_signal()), (0.0, 1.0))
    };
    predictor.saves_state = true;
    predictor.saves = Some(derivative);
    corrector.base_is_saved = true;
    corrector.next_base = base;
    corrector.next_x0 = half * derivative.0;
    corrector.next_eps = half * derivative.1;
    corrector.next_saved = Some(half);
    corrector
}

/// DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
/// algorithm 2): the exponential integrator in λ = ln(a/s), with x_0 extrapolated over the step from its last two values.
///
/// `stage` is the first-order step of the method, which is DDIM's at η = 0, and the saved combination is the x_0 of the previous
/// step, which began at `previous`. With h = λ' - λ and h₀ = λ - λ_previous, (1 - e^-h)/2 · h/h₀ of the difference of the two is
/// added. As in diffusers, the first step and the last, to λ = ∞, are of first order. Flow uses the same steps: the equation is
/// the same in (a, s), and from pure noise, λ = -∞, nothing can be extrapolated (h/h₀ = 0).
fn multistep(stage: &mut Stage, previous: NoiseLevel, next: NoiseLevel) {
    let (before, sigma, after) = (previous.noise_to_signal(), stage.level.noise_to_signal(), next.noise_to_signal());
    let slope = 0.5 * (1.0 - after / sigma) * (sigma / after).ln() / (before / sigma).ln();
    if slope > 0.0 {
        stage.next_x0 = next.alpha * (1.0 + slope);
        stage.next_saved = Some(-next.alpha * slope);
    }
}

#[cfg(test)]
mod tests;
