//! Noise levels: the amounts of image and noise in a noisy image, and the conversion of predictions.
//!
//! Everything here is x_t = α·x_0 + σ·ε with ε standard normal. A [`NoiseLevel`] is one such pair (α, σ); a [`NoiseSchedule`] gives the
//! level of each diffusion time. Predictions are linear in (x_0, ε), so converting one into another takes two multiplications,
//! with the same algebra for every schedule. It is computed in f64 and rounded once, to the device's f32 tables.

use super::{DiffusionConfig, Prediction, Schedule};
use crate::Result;

/// Time input scale of continuous flow: t in (0, 1) times this, as if there were 1000 timesteps.
pub const FLOW_TIME_SCALE: f64 = 1000.0;

/// One noise level of x_t = α·x_0 + σ·ε.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// The weight α of the clean image x_0.
    pub alpha: f64,
    /// The weight σ of the noise ε.
    pub sigma: f64,
}

/// The conversion of (x_t, prediction) into (x_0, ε): x_0 = `x0_x`·x_t + `x0_pred`·prediction, ε = `eps_x`·x_t +
/// `eps_pred`·prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inverse {
    /// Weight of x_t in x_0.
    pub x0_x: f64,
    /// Weight of the prediction in x_0.
    pub x0_pred: f64,
    /// Weight of x_t in ε.
    pub eps_x: f64,
    /// Weight of the prediction in ε.
    pub eps_pred: f64,
}

impl NoiseLevel {
    /// The end of sampling: the clean image.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };

    /// The signal-to-noise ratio α²/σ².
    pub fn snr(self) -> f64 {
        (self.alpha / self.sigma).powi(2)
    }

    /// The ratio σ/α, the σ of Karras et al. 2022: x_t/α = x_0 + (σ/α)·ε; infinite for α = 0.
    pub fn noise_to_signal(self) -> f64 {
        self.sigma / self.alpha
    }

    /// The training target of a network with `prediction`, as weights (of x_0, of ε).
    ///
    /// ε: (0, 1); x_0: (1, 0); v: (-σ, α) (Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion
    /// Models"); flow: (-1, 1).
    pub fn target(self, prediction: Prediction) -> (f64, f64) {
        match prediction {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::X0 => (1.0, 0.0),
            Prediction::V => (-self.sigma, self.alpha),
            Prediction::Flow => (-1.0, 1.0),
        }
    }

    /// (x_0, ε) from x_t and a prediction, or `None` if the prediction does not determine one of them: ε for a = 0, x_0 for s = 0.
    pub fn invert(self, prediction: Prediction) -> Option<Inverse> {
        let (c_x, c_n) = self.target(prediction);
        let determinant = self.alpha * c_n - self.sigma * c_x;
        (determinant != 0.0).then(|| Inverse {
            x0_x: c_n / determinant,
            x0_pred: -self.sigma / determinant,
            eps_x: -c_x / determinant,
            eps_pred: self.alpha / determinant,
        })
    }
}

/// The noise level of each diffusion time.
///
/// Under `linear` and `cosine` a time is a timestep, a whole number in 0…T - 1, and a² + s² = 1. Under `flow` it is any t in [0,
/// 1], with a = 1 - t and s = t.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    num_steps: usize,
    /// One level per timestep; `None` if time is continuous.
    levels: Option<Vec<NoiseLevel>>,
}

impl NoiseSchedule {
    /// The schedule of a configuration.
    ///
    /// # Errors
    /// [`crate::Error::Config`] as [`DiffusionConfig::validate`].
    pub fn new(config: &DiffusionConfig) -> Result<Self> {
        config.validate()?;
        let num_steps = config.num_steps;
        let levels = match config.schedule {
            Schedule::Linear => Some(levels(linear_betas(num_steps, config.beta_start, config.beta_end))),
            Schedule::Cosine => Some(levels(cosine_betas(num_steps))),
            Schedule::Flow => None,
        };
        Ok(Self { num_steps, levels })
    }

    /// T: the number of timesteps, and the largest number of sampling steps.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// Whether time is continuous (`flow`) rather than a timestep.
    pub fn is_continuous(&self) -> bool {
        self.levels.is_none()
    }

    /// The level at a time.
    ///
    /// # Panics
    /// If `time` is not a timestep in 0…T - 1, or under `flow` not in [0, 1].
    pub fn level(&self, time: f64) -> NoiseLevel {
        assert!(self.has(time), "no noise level at time {time} of {}", self.num_steps);
        match &self.levels {
            Some(levels) => levels[time as usize],
            None => NoiseLevel { alpha: 1.0 - time, sigma: time },
        }
    }

    /// Whether [`NoiseSchedule::level`] is defined at `time`.
    pub fn has(&self, time: f64) -> bool {
        match self.levels {
            Some(_) => time >= 0.0 && time < self.num_steps as f64 && time.fract() == 0.0,
            None => (0.0..=1.0).contains(&time),
        }
    }

    /// The time input of a network: the timestep itself, or under `flow` 1000·t.
    pub fn time_input(&self, time: f64) -> f64 {
        if self.is_continuous() { FLOW_TIME_SCALE * time } else { time }
    }

    /// The tables a\[T\] and s\[T\] for a device, rounded once from f64; `None` under `flow`, whose levels are computed from t.
    pub fn tables(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.levels.as_ref().map(|levels| levels.iter().map(|level| (level.alpha as f32, level.sigma as f32)).unzip())
    }

    /// The default times of a sampler with `steps` steps, descending: timesteps round(T·k/n) - 1, k = n…1 (halves up), and under
    /// `flow` k/n. `steps` is clamped to 1…T.
    ///
    /// This is the "trailing" spacing of Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed": it
    /// starts at the noisiest level, the only one at which the network was trained on pure noise, for any number of steps.
    /// ("Leading" starts below it, where pure noise is too noisy for the level; "linspace" wastes its last step on the almost
    /// noise-free timestep 0.)
    pub fn times(&self, steps: usize) -> Vec<f64> {
        let (t, n) = (self.num_steps as u64, steps.clamp(1, self.num_steps) as u64);
        let time = |k: u64| match self.levels {
            Some(_) => ((2 * t * k + n) / (2 * n) - 1) as f64,
            None => k as f64 / n as f64,
        };
        (1..=n).rev().map(time).collect()
    }
}

/// β from `start` to `end` in equal steps, including both (Ho et al. 2020).
fn linear_betas(num_steps: usize, start: f64, end: f64) -> Vec<f64> {
    let last = (num_steps - 1) as f64;
    (0..num_steps).map(|t| start + (end - start) * (t as f64 / last)).collect()
}

/// β of ᾱ(u) = cos²((u + 0.008)/1.008 · π/2), at most 0.999 (Nichol & Dhariwal 2021).
fn cosine_betas(num_steps: usize) -> Vec<f64> {
    let alpha_bar =
        |t: usize| ((t as f64 / num_steps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (0..num_steps).map(|t| (1.0 - alpha_bar(t + 1) / alpha_bar(t)).min(0.999)).collect()
}

/// Levels with a² = ᾱ_t = Π (1 - β) and s² = 1 - ᾱ_t.
fn levels(betas: Vec<f64>) -> Vec<NoiseLevel> {
    let mut alpha_bar = 1.0;
    betas
        .into_iter()
        .map(|beta| {
            alpha_bar *= 1.0 - beta;
            NoiseLevel { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREDICTIONS: [Prediction; 4] = [Prediction::Epsilon, Prediction::X0, Prediction::V, Prediction::Flow];

    fn schedule(schedule: Schedule) -> NoiseSchedule {
        let prediction = if schedule == Schedule::Flow { Prediction::Flow } else { Prediction::Epsilon };
        NoiseSchedule::new(&DiffusionConfig { schedule, prediction, ..DiffusionConfig::default() }).unwrap()
    }

    #[test]
    fn variance_is_preserved_and_the_end_is_noise() {
        for kind in [Schedule::Linear, Schedule::Cosine] {
            let noise = schedule(kind);
            let levels: Vec<_> = (0..1000).map(|t| noise.level(f64::from(t))).collect();
            assert!(levels.iter().all(|level| (level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-15));
            assert!(levels.windows(2).all(|pair| pair[0].alpha > pair[1].alpha));
            assert!(levels[0].sigma < 0.011 && levels[999].alpha < 0.0064, "{:?} {:?}", levels[0], levels[999]);
            let (a, s) = noise.tables().unwrap();
            assert_eq!((a[500], s[500], a.len()), (levels[500].alpha as f32, levels[500].sigma as f32, 1000));
        }
        assert!(schedule(Schedule::Flow).tables().is_none());
        assert_eq!(schedule(Schedule::Flow).time_input(0.25), 250.0);
    }

    #[test]
    fn a_prediction_gives_back_image_and_noise() {
        for level in [
            NoiseLevel { alpha: 0.6, sigma: 0.8 },
            NoiseLevel { alpha: 0.25, sigma: 0.75 },
            NoiseLevel { alpha: 0.003, sigma: 0.999 },
        ] {
            for prediction in PREDICTIONS {
                let (x0, eps) = (0.3, -1.7);
                let (c_x, c_n) = level.target(prediction);
                let (x, pred) = (level.alpha * x0 + level.sigma * eps, c_x * x0 + c_n * eps);
                let inverse = level.invert(prediction).unwrap();
                assert!((inverse.x0_x * x + inverse.x0_pred * pred - x0).abs() < 1e-12);
                assert!((inverse.eps_x * x + inverse.eps_pred * pred - eps).abs() < 1e-12);
            }
        }
        let pure_noise = NoiseLevel { alpha: 0.0, sigma: 1.0 };
        assert!(pure_noise.invert(Prediction::Epsilon).is_none());
        assert!(pure_noise.invert(Prediction::Flow).is_some());
    }

    #[test]
    fn times_begin_at_the_noisiest_level_and_never_repeat() {
        let linear = schedule(Schedule::Linear);
        assert_eq!(linear.times(10)[..3], [999.0, 899.0, 799.0]);
        assert_eq!(linear.times(10)[9], 99.0);
        assert_eq!(linear.times(1), [999.0]);
        for steps in 1..=1000 {
            let times = linear.times(steps);
            assert!(times.len() == steps && times[0] == 999.0 && linear.has(times[steps - 1]));
            assert!(times.windows(2).all(|pair| pair[0] > pair[1]), "{steps} steps");
        }
        assert_eq!(schedule(Schedule::Flow).times(4), [1.0, 0.75, 0.5, 0.25]);
    }
}
