//! The times of a sampler's steps: spaced by a schedule, or given as a list.

use serde::{Deserialize, Serialize};

use super::{NoiseSchedule, SamplingConfig};
use crate::{Error, Result};

/// The spacing of n steps over T timesteps. Here they are counted from 1 to T as in the papers; timesteps are one less. Each
/// starts at T, the noisiest level. Values below 1 become 1, and repeats are dropped.
///
/// Under `flow` time is continuous: the numbers are divided by T, not rounded, so there are no repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSchedule {
    /// Equal steps, round(T·k/n) for k = 1…n: [`NoiseSchedule::times`].
    #[default]
    Uniform,
    /// ⌊T·k²/n²⌋ for k = 1…n (Song et al. 2020, "Denoising Diffusion Implicit Models", appendix D.2): more steps at low noise.
    Quadratic,
    /// ⌊T^(k/(n - 1))⌋ for k = 0…n - 1, NumPy's `logspace(0, log10(T), n)`: most steps at low noise.
    Logarithmic,
}

impl TimestepSchedule {
    /// Every schedule.
    pub const ALL: [Self; 3] = [Self::Uniform, Self::Quadratic, Self::Logarithmic];

    /// Its name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Quadratic => "quadratic",
            Self::Logarithmic => "logarithmic",
        }
    }
}

impl std::fmt::Display for TimestepSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TimestepSchedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|schedule| schedule.name() == text).ok_or_else(|| {
            let short: String = text.chars().take(60).collect();
            let message = format!("no timestep schedule is called `{}`", short.escape_debug());
            Error::config("sampling.schedule", message, "use uniform, quadratic or logarithmic")
        })
    }
}

/// Named numbers of steps, from quick previews to final pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// 20 steps, for quick previews.
    Fast,
    /// 50 steps.
    Standard,
    /// 100 steps, for final pictures.
    High,
}

impl Profile {
    /// Denoising steps.
    pub fn steps(self) -> usize {
        match self {
            Self::Fast => 20,
            Self::Standard => 50,
            Self::High => 100,
        }
    }
}

/// The times of a sampler's steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// Descending, in the units of [`NoiseSchedule::level`].
    pub times: Vec<f64>,
    /// A note if steps were dropped or changed.
    pub note: Option<String>,
}

impl SamplingConfig {
    /// The times of the steps: those in `timesteps` if given, else `num_steps` of `schedule`.
    ///
    /// From a list, in any order, repeats and values outside 0…T - 1 are dropped; but T, the last step when counting from 1,
    /// becomes T - 1. Under `flow` timestep t is the time (t + 1)/T.
    ///
    /// ```
    /// use engine::diffusion::{DiffusionConfig, NoiseSchedule, SamplingConfig, TimestepSchedule};
    ///
    /// let noise = NoiseSchedule::new(&DiffusionConfig::default())?;
    /// let sampling = SamplingConfig { schedule: TimestepSchedule::Logarithmic, num_steps: 50, ..Default::default() };
    /// let times = sampling.times(&noise)?;
    /// assert_eq!((times.times.len(), times.times[0]), (42, 999.0));
    /// assert_eq!(times.note.as_deref(), Some("50 steps requested, 42 remain after repeats"));
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] for a list with no valid timestep.
    pub fn times(&self, noise: &NoiseSchedule) -> Result<Times> {
        let steps = noise.num_steps();
        if let Some(list) = &self.timesteps {
            let (timesteps, note) = listed(list, steps)?;
            let time = |t: usize| if noise.is_continuous() { (t + 1) as f64 / steps as f64 } else { t as f64 };
            return Ok(Times { times: timesteps.into_iter().map(time).collect(), note });
        }
        let asked = self.num_steps.clamp(1, steps);
        let mut times: Vec<f64> = match self.schedule {
            TimestepSchedule::Uniform => noise.times(asked),
            TimestepSchedule::Quadratic => (1..=asked)
                .rev()
                .map(|k| match noise.is_continuous() {
                    true => (k as f64 / asked as f64).powi(2),
                    // At most a million steps each: far below 2^64.
                    false => (steps as u64 * (k * k) as u64 / (asked * asked) as u64).max(1) as f64 - 1.0,
                })
                .collect(),
            TimestepSchedule::Logarithmic => (0..asked)
                .rev()
                .map(|k| {
                    let exponent = if asked == 1 { 1.0 } else { k as f64 / (asked - 1) as f64 };
                    let share = ((exponent - 1.0) * (steps as f64).ln()).exp();
                    match noise.is_continuous() {
                        true => share,
                        // Whole powers may be computed slightly below the whole number.
                        false => (steps as f64 * share * (1.0 + 1e-12)).floor().max(1.0) - 1.0,
                    }
                })
                .collect(),
        };
        times.dedup();
        let note =
            (times.len() < asked).then(|| format!("{asked} steps requested, {} remain after repeats", times.len()));
        Ok(Times { times, note })
    }
}

/// The timesteps below `steps` in a list, descending, and a note about dropped ones.
pub(super) fn listed(list: &[i64], steps: usize) -> Result<(Vec<usize>, Option<String>)> {
    let advice = || format!("give timesteps in 0…{}", steps - 1);
    let Some(first) = list.first() else {
        return Err(Error::config("sampling.timesteps", "the list is empty", advice()));
    };
    let one_more = list.iter().filter(|&&t| t == steps as i64).count();
    let clipped = |&t: &i64| if t == steps as i64 { t - 1 } else { t };
    let mut kept: Vec<usize> =
        list.iter().map(clipped).filter_map(|t| usize::try_from(t).ok().filter(|t| *t < steps)).collect();
    let outside = list.len() - kept.len();
    if kept.is_empty() {
        let message = format!("none of the {} timesteps ({first}, …) is a noise level of this model", list.len());
        return Err(Error::config("sampling.timesteps", message, advice()));
    }
    kept.sort_unstable_by(|a, b| b.cmp(a));
    kept.dedup();
    let repeats = list.len() - outside - kept.len();
    let mut why = Vec::new();
    if one_more > 0 {
        why.push(format!("{steps} is taken as {}", steps - 1));
    }
    if repeats > 0 {
        why.push(format!("{repeats} repeat{} dropped", if repeats == 1 { " is" } else { "s are" }));
    }
    if outside > 0 {
        why.push(format!("{outside} outside 0…{} {} dropped", steps - 1, if outside == 1 { "is" } else { "are" }));
    }
    let note = (!why.is_empty())
        .then(|| format!("{} timesteps requested, {} remain: {}", list.len(), kept.len(), why.join(", ")));
    Ok((kept, note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{DiffusionConfig, Plan, Prediction, SamplerKind, Schedule};

    fn noise(schedule: Schedule, num_steps: usize) -> NoiseSchedule {
        let prediction = if schedule == Schedule::Flow { Prediction::Flow } else { Prediction::Epsilon };
        NoiseSchedule::new(&DiffusionConfig { schedule, prediction, num_steps, ..DiffusionConfig::default() }).unwrap()
    }

    fn sampling(schedule: TimestepSchedule, num_steps: usize) -> SamplingConfig {
        SamplingConfig { schedule, num_steps, ..SamplingConfig::default() }
    }

    fn list(timesteps: &[i64]) -> SamplingConfig {
        SamplingConfig { timesteps: Some(timesteps.to_vec()), ..SamplingConfig::default() }
    }

    #[test]
    fn every_schedule_falls_from_the_noisiest_level_for_any_number_of_steps() {
        for (levels, kind) in
            [(1000, Schedule::Linear), (50, Schedule::Cosine), (1000, Schedule::Flow), (2, Schedule::Linear)]
        {
            let noise = noise(kind, levels);
            let first = noise.times(1)[0];
            for schedule in TimestepSchedule::ALL {
                for steps in (1..=levels).step_by(if levels > 100 { 7 } else { 1 }) {
                    let Times { times, note } = sampling(schedule, steps).times(&noise).unwrap();
                    assert_eq!(times[0], first, "{schedule}, {steps} of {levels}");
                    assert!(
                        times.windows(2).all(|pair| pair[0] > pair[1]) && times.iter().all(|time| noise.has(*time))
                    );
                    assert_eq!(note.is_some(), times.len() < steps);
                    assert!(note.is_none() || (kind != Schedule::Flow && schedule != TimestepSchedule::Uniform));
                }
            }
        }
    }

    #[test]
    fn schedules_are_the_papers_and_numpys() {
        let linear = noise(Schedule::Linear, 1000);
        let times = |schedule, steps| sampling(schedule, steps).times(&linear).unwrap().times;
        assert_eq!(times(TimestepSchedule::Quadratic, 5), [999.0, 639.0, 359.0, 159.0, 39.0]);
        assert_eq!(times(TimestepSchedule::Logarithmic, 4), [999.0, 99.0, 9.0, 0.0]);
        assert_eq!(times(TimestepSchedule::Logarithmic, 1), [999.0]);
        let quadratic = sampling(TimestepSchedule::Quadratic, 50).times(&linear).unwrap();
        // c·i² is 0.4 for i = 1 and 1.6 for i = 2.
        assert_eq!(quadratic.note.as_deref(), Some("50 steps requested, 49 remain after repeats"));
        assert_eq!(quadratic.times[47..], [2.0, 0.0]);
        let flow = noise(Schedule::Flow, 1000);
        let times = |schedule, steps| sampling(schedule, steps).times(&flow).unwrap().times;
        assert_eq!(times(TimestepSchedule::Quadratic, 4), [1.0, 0.5625, 0.25, 0.0625]);
        let logarithmic = times(TimestepSchedule::Logarithmic, 4);
        for (time, expected) in logarithmic.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((time / expected - 1.0).abs() < 1e-12, "{logarithmic:?}");
        }
    }

    #[test]
    fn a_list_is_sorted_cleaned_and_says_what_it_lost() {
        let linear = noise(Schedule::Linear, 1000);
        let plain = list(&[5, 999, 300]).times(&linear).unwrap();
        assert_eq!(plain, Times { times: vec![999.0, 300.0, 5.0], note: None });
        let messy = list(&[-3, 7, 7, 1000, 2000, 7, 0]).times(&linear).unwrap();
        assert_eq!(messy.times, [999.0, 7.0, 0.0]);
        let note = messy.note.unwrap();
        for part in ["7 timesteps requested, 3 remain", "1000 is taken as 999", "2 repeats are", "2 outside 0…999 are"]
        {
            assert!(note.contains(part), "{note}");
        }
        for (bad, part) in [(&[][..], "the list is empty"), (&[-1, 1001][..], "none of the 2 timesteps (-1, …)")] {
            let message = list(bad).times(&linear).unwrap_err().to_string();
            assert!(message.starts_with("sampling.timesteps: ") && message.contains(part), "{message}");
            assert!(list(bad).validate(1000).is_err());
        }
        assert_eq!(list(&[999, 499, 0]).times(&noise(Schedule::Flow, 1000)).unwrap().times, [1.0, 0.5, 0.001]);
    }

    #[test]
    fn every_sampler_takes_every_schedule() {
        for kind in [Schedule::Linear, Schedule::Cosine, Schedule::Flow] {
            let noise = noise(kind, 1000);
            let prediction = if kind == Schedule::Flow { Prediction::Flow } else { Prediction::Epsilon };
            for sampler in SamplerKind::ALL {
                let of_schedules = TimestepSchedule::ALL.map(|schedule| sampling(schedule, 12));
                for config in of_schedules.into_iter().chain([list(&[999, 800, 20, 3]), list(&[700])]) {
                    let config = SamplingConfig { sampler, ..config };
                    let plan = Plan::new(&noise, prediction, &config).unwrap();
                    assert_eq!(plan.steps(), config.times(&noise).unwrap().times.len());
                    let finite = plan.coefficients().iter().all(|stage| {
                        let weights =
                            [stage.next_base, stage.next_x0, stage.next_eps, stage.next_saved, stage.next_noise];
                        weights.iter().all(|weight| weight.is_finite())
                    });
                    assert!(finite, "{sampler} {kind:?} {config:?}");
                }
            }
        }
    }

    #[test]
    fn names_parse_back() {
        for schedule in TimestepSchedule::ALL {
            assert_eq!(schedule.name().parse::<TimestepSchedule>().unwrap(), schedule);
            assert_eq!(serde_json::to_value(schedule).unwrap(), schedule.name());
        }
        let message = "karras".parse::<TimestepSchedule>().unwrap_err().to_string();
        assert!(message.contains("`karras`") && message.contains("quadratic or logarithmic"), "{message}");
    }
}
