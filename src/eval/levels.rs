//! Noise levels common to several models.

use crate::diffusion::{NoiseLevel, NoiseSchedule};
use crate::error::{Error, Result};

/// Levels beyond this log-SNR, on either side, are left out: 2 ln 99, less than 1 % or more than 99 % noise on a flow's scale.
/// There is almost no noise to predict, or almost no image.
const LIMIT: f64 = 9.190_239_700_269_47;

/// Noise levels given by the logarithm of their signal-to-noise ratio ln(a²/s²), with each model's diffusion times for them.
///
/// This makes models with 50 timesteps, 1000 timesteps or continuous time comparable: x_t = a·x_0 + s·ε is equally hard to denoise
/// for all of them at the same a²/s², whatever the time is called.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonLevels {
    /// ln(a²/s²) of each level, descending: the noisiest last.
    pub log_snr: Vec<f64>,
    /// For each schedule its time at each level: the nearest timestep, or the exact time if time is continuous.
    pub times: Vec<Vec<f64>>,
    /// For each schedule the log-SNR at these times.
    pub actual: Vec<Vec<f64>>,
}

impl CommonLevels {
    /// Up to `count` levels in the range that all `schedules` cover.
    ///
    /// They lie in the middles of equal parts of that range, moved to the nearest timesteps of the coarsest schedule, so that the
    /// finer ones come near them. If it has fewer than `count`, that many remain. The order of the schedules does not matter.
    ///
    /// ```
    /// use engine::diffusion::{DiffusionConfig, NoiseSchedule};
    /// use engine::eval::CommonLevels;
    ///
    /// let few = DiffusionConfig { num_steps: 50, beta_start: 0.002, beta_end: 0.4, ..DiffusionConfig::default() };
    /// let schedules = [NoiseSchedule::new(&DiffusionConfig::default())?, NoiseSchedule::new(&few)?];
    /// let levels = CommonLevels::new(&schedules, 4)?;
    /// assert_eq!(levels.actual[1], levels.log_snr);
    /// assert!(levels.actual[0].iter().zip(&levels.log_snr).all(|(own, common)| (own - common).abs() < 0.02));
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] for a count outside 1…1000, and for schedules without a common level.
    pub fn new(schedules: &[NoiseSchedule], count: usize) -> Result<Self> {
        if !(1..=1000).contains(&count) {
            return Err(Error::config("levels", format!("{count} noise levels"), "give 1 to 1000"));
        }
        let scales: Vec<Scale> = schedules.iter().map(Scale::of).collect();
        let (high, low) = scales.iter().map(Scale::range).fold((LIMIT, -LIMIT), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        let nothing = || {
            let ranges = scales.iter().map(|scale| {
                let (high, low) = scale.range();
                format!("{low:.2} to {high:.2}")
            });
            let message = format!("the models have no noise level in common: their log-SNR go from {}", {
                ranges.collect::<Vec<_>>().join(", from ")
            });
            Error::config("compare", message, "compare models whose noise schedules overlap")
        };
        if high < low {
            return Err(nothing());
        }
        let part = (high - low) / count as f64;
        let mut log_snr: Vec<f64> = (0..count).map(|number| high - (number as f64 + 0.5) * part).collect();
        let coarsest = scales.iter().filter_map(Scale::timesteps).min_by(|a, b| {
            let orders = a.iter().zip(*b).map(|(a, b)| a.total_cmp(b));
            a.len().cmp(&b.len()).then_with(|| orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then))
        });
        if let Some(coarsest) = coarsest {
            let inside: Vec<f64> = coarsest.iter().copied().filter(|own| (low..=high).contains(own)).collect();
            if inside.is_empty() {
                return Err(nothing());
            }
            log_snr.iter_mut().for_each(|level| *level = inside[nearest(&inside, *level)]);
            log_snr.dedup();
        }
        let (times, actual) = scales.iter().map(|scale| scale.find(&log_snr)).unzip();
        Ok(Self { log_snr, times, actual })
    }

    /// The number of levels.
    pub fn len(&self) -> usize {
        self.log_snr.len()
    }

    /// Always false: [`CommonLevels::new`] returns at least one level.
    pub fn is_empty(&self) -> bool {
        self.log_snr.is_empty()
    }
}

/// The log-SNR of a schedule's times.
enum Scale {
    /// One for each timestep, descending.
    Timesteps(Vec<f64>),
    Flow,
}

impl Scale {
    fn of(schedule: &NoiseSchedule) -> Self {
        if schedule.is_continuous() {
            return Self::Flow;
        }
        Self::Timesteps((0..schedule.num_steps()).map(|t| log_snr(schedule.level(t as f64))).collect())
    }

    fn timesteps(&self) -> Option<&Vec<f64>> {
        match self {
            Self::Timesteps(levels) => Some(levels),
            Self::Flow => None,
        }
    }

    /// The highest and the lowest log-SNR.
    fn range(&self) -> (f64, f64) {
        match self {
            Self::Timesteps(levels) => (levels[0], levels[levels.len() - 1]),
            Self::Flow => (LIMIT, -LIMIT),
        }
    }

    /// The times nearest to the given log-SNR values, and their own log-SNR.
    fn find(&self, wanted: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let find = |wanted: &f64| match self {
            Self::Timesteps(levels) => {
                let timestep = nearest(levels, *wanted);
                (timestep as f64, levels[timestep])
            }
            // (1 - t)/t = e^(wanted/2).
            Self::Flow => (1.0 / (1.0 + (wanted / 2.0).exp()), *wanted),
        };
        wanted.iter().map(find).unzip()
    }
}

/// ln(a²/s²).
fn log_snr(level: NoiseLevel) -> f64 {
    2.0 * (level.alpha / level.sigma).ln()
}

/// The index of the value nearest to `wanted` in a non-empty list; the first of equally near ones.
fn nearest(values: &[f64], wanted: f64) -> usize {
    let distance = |place: usize| (values[place] - wanted).abs();
    (1..values.len()).fold(0, |best, place| if distance(place) < distance(best) { place } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{DiffusionConfig, Prediction, Schedule};

    fn linear(num_steps: usize, scale: f64) -> NoiseSchedule {
        let (beta_start, beta_end) = (1e-4 * scale, 0.02 * scale);
        NoiseSchedule::new(&DiffusionConfig { num_steps, beta_start, beta_end, ..DiffusionConfig::default() }).unwrap()
    }

    fn other(schedule: Schedule, prediction: Prediction) -> NoiseSchedule {
        NoiseSchedule::new(&DiffusionConfig { schedule, prediction, ..DiffusionConfig::default() }).unwrap()
    }

    #[test]
    fn fifty_steps_a_thousand_and_a_flow_meet_at_the_same_signal_to_noise() {
        let flow = other(Schedule::Flow, Prediction::Flow);
        let schedules = [linear(1000, 1.0), linear(50, 20.0), flow, other(Schedule::Cosine, Prediction::V)];
        let levels = CommonLevels::new(&schedules, 8).unwrap();
        assert_eq!((levels.len(), levels.times.len(), levels.is_empty()), (8, 4, false));
        assert!(levels.log_snr.windows(2).all(|pair| pair[0] > pair[1]), "{:?}", levels.log_snr);
        // They span the range of the coarse one, which begins at ln((1 − 0.002)/0.002) = 6.21 and ends below the limit.
        assert!(levels.log_snr[0] > 4.0 && levels.log_snr[7] < -7.0, "{:?}", levels.log_snr);
        // The coarse one and continuous time match exactly, the fine ones nearly.
        assert_eq!((&levels.actual[1], &levels.actual[2]), (&levels.log_snr, &levels.log_snr));
        for (model, schedule) in schedules.iter().enumerate() {
            for (level, common) in levels.log_snr.iter().enumerate() {
                let (time, own) = (levels.times[model][level], levels.actual[model][level]);
                let at = schedule.level(time);
                assert!((own - at.snr().ln()).abs() < 1e-9, "the log-SNR of time {time} is correct");
                assert!((own - common).abs() < 0.1, "model {model}, level {level}: {own}, not {common}");
                // No neighbour is nearer.
                for next in [time - 1.0, time + 1.0].into_iter().filter(|next| model != 2 && schedule.has(*next)) {
                    assert!((schedule.level(next).snr().ln() - common).abs() >= (own - common).abs());
                }
            }
        }
        // A flow's t of log-SNR L is 1/(1 + e^(L/2)).
        let t = levels.times[2][3];
        assert!((2.0 * ((1.0 - t) / t).ln() - levels.log_snr[3]).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_models_does_not_matter() {
        let cosine = NoiseSchedule::new(&DiffusionConfig {
            schedule: Schedule::Cosine,
            num_steps: 50,
            ..DiffusionConfig::default()
        });
        let (a, b) = (linear(50, 20.0), cosine.unwrap());
        let one = CommonLevels::new(&[a.clone(), b.clone()], 10).unwrap();
        let two = CommonLevels::new(&[b, a], 10).unwrap();
        assert_eq!(one.log_snr, two.log_snr);
        assert_eq!((&one.times[0], &one.times[1]), (&two.times[1], &two.times[0]));
    }

    #[test]
    fn of_equal_schedules_all_is_exact_and_the_ends_are_left_out() {
        let levels = CommonLevels::new(&[linear(1000, 1.0), linear(1000, 1.0)], 4).unwrap();
        assert_eq!((&levels.actual[0], &levels.times[0]), (&levels.log_snr, &levels.times[1]));
        // Middles of four parts of ±9.19.
        for (level, expected) in levels.log_snr.iter().zip([6.89, 2.30, -2.30, -6.89]) {
            assert!((level - expected).abs() < 0.15, "{:?}", levels.log_snr);
        }
        let flows = [other(Schedule::Flow, Prediction::Flow), other(Schedule::Flow, Prediction::X0)];
        let levels = CommonLevels::new(&flows, 1).unwrap();
        assert!((levels.times[0][0] - 0.5).abs() < 1e-12 && levels.log_snr[0].abs() < 1e-12);
    }

    #[test]
    fn a_coarse_schedule_has_no_more_levels_than_it_has() {
        let levels = CommonLevels::new(&[linear(50, 20.0), linear(1000, 1.0)], 400).unwrap();
        assert!((40..=50).contains(&levels.len()), "{}", levels.len());
        assert!(levels.times[0].windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn what_is_not_common_is_refused() {
        for count in [0, 1001] {
            let message = CommonLevels::new(&[linear(1000, 1.0)], count).unwrap_err().to_string();
            assert!(message.starts_with("levels: ") && message.contains(&count.to_string()), "{message}");
        }
        // One that never gets noisy, and one that is noisy from the start.
        let config = |beta_start, beta_end| DiffusionConfig {
            num_steps: 10,
            beta_start,
            beta_end,
            ..DiffusionConfig::default()
        };
        let schedules = [config(1e-3, 2e-3), config(0.5, 0.6)].map(|config| NoiseSchedule::new(&config).unwrap());
        let message = CommonLevels::new(&schedules, 4).unwrap_err().to_string();
        assert!(message.contains("no noise level in common: their log-SNR go from ") && !message.contains('\n'));
    }
}
