//! Sampling flags, once for all commands that sample.

use clap::Args;

use crate::diffusion::Profile;
use crate::error::{Error, Result};
use crate::pipeline::{Changes, Recipe};

/// Help of `--sampler`.
pub(super) const SAMPLER: &str = "ddpm, ddim, heun or dpmpp2m (DPM-Solver++)";
/// Help of `--steps`.
pub(super) const STEPS: &str = "Denoising steps";
/// Help of `--guidance`.
pub(super) const GUIDANCE: &str = "Classifier-free guidance: 1 is none, higher values follow the class more strictly";

/// The sampler's main settings.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SamplerOptions {
    #[arg(long, value_name = "SAMPLER", help = format!("{SAMPLER} [default: the model's]"))]
    pub sampler: Option<String>,
    #[arg(long, value_name = "N", help = format!("{STEPS} [default: the model's]"))]
    pub steps: Option<usize>,
    #[arg(long, value_name = "SCALE", help = format!("{GUIDANCE} [default: the model's]"))]
    pub guidance: Option<f64>,
}

impl SamplerOptions {
    /// The settings that were given.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown sampler.
    pub fn changes(&self) -> Result<Changes> {
        let sampler = self.sampler.as_deref().map(str::parse).transpose()?;
        Ok(Changes { sampler, steps: self.steps, guidance: self.guidance, ..Changes::default() })
    }
}

/// How a model samples.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SamplingOptions {
    #[command(flatten)]
    pub sampler: SamplerOptions,
    /// Steps by name: fast (20), standard (50) or high (100)
    #[arg(long, value_enum, conflicts_with = "steps")]
    pub profile: Option<Profile>,
    /// The share of DDPM's noise in a DDIM step: 0 to 1
    #[arg(long, value_name = "ETA")]
    pub eta: Option<f64>,
    /// Scale of all noise: 1 is as in training, less gives smoother and less varied images
    #[arg(long, value_name = "SCALE")]
    pub temperature: Option<f64>,
    /// Guidance over the steps: constant, adaptive (little, then all, then more), or a list of scales such as 1,2,3
    #[arg(long, value_name = "COURSE")]
    pub guidance_schedule: Option<String>,
}

impl SamplingOptions {
    /// The settings that were given.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown sampler or guidance schedule.
    pub fn changes(&self) -> Result<Changes> {
        let changes = self.sampler.changes()?;
        Ok(Changes {
            steps: self.profile.map(Profile::steps).or(changes.steps),
            eta: self.eta,
            temperature: self.temperature,
            guidance_schedule: self.guidance_schedule.as_deref().map(str::parse).transpose()?,
            ..changes
        })
    }

    /// Takes missing settings from the recipe of a picture.
    pub fn fill_up(&mut self, like: &Recipe) {
        self.sampler.sampler.get_or_insert_with(|| like.sampler.to_string());
        self.eta.get_or_insert(like.eta);
        self.temperature.get_or_insert(like.temperature);
        if self.sampler.guidance.is_none() {
            self.guidance_schedule.get_or_insert_with(|| like.guidance_schedule.to_string());
        }
        self.sampler.guidance.get_or_insert(like.guidance);
    }
}

/// The timesteps of a sampler. `--timesteps` lists what `--steps`, `--profile` and `--schedule` describe.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TimestepOptions {
    /// Spacing of the steps over the noise levels: uniform, quadratic or logarithmic (more steps at low noise)
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// The timesteps one by one, as in 999,750,500,250,0; repeats and values outside the model's noise levels are dropped
    #[arg(
        long,
        value_name = "T,T,…",
        allow_hyphen_values = true,
        conflicts_with_all = ["steps", "profile", "schedule"]
    )]
    pub timesteps: Option<String>,
}

impl TimestepOptions {
    /// `changes` with the timesteps that were given.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown schedule, and for text that is not a list of timesteps.
    pub fn added_to(&self, changes: Changes) -> Result<Changes> {
        let schedule = self.schedule.as_deref().map(str::parse).transpose()?;
        let timesteps = self.timesteps.as_deref().map(timesteps).transpose()?;
        Ok(Changes { schedule, timesteps, ..changes })
    }
}

/// The list of `--timesteps`; it may be empty.
fn timesteps(text: &str) -> Result<Vec<i64>> {
    let parts = text.split([',', ' ']).map(str::trim).filter(|part| !part.is_empty());
    let number = |part: &str| {
        part.parse().map_err(|_| {
            let short: String = part.chars().take(40).collect();
            let message = format!("`{}` is not a timestep", short.escape_debug());
            Error::config("--timesteps", message, "list whole numbers, as in 999,750,500,250,0")
        })
    };
    parts.map(number).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::diffusion::SamplerKind;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        sampling: SamplingOptions,
        #[command(flatten)]
        timesteps: TimestepOptions,
    }

    fn changes(line: &str) -> Result<Changes, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let changes = cli.sampling.changes().and_then(|changes| cli.timesteps.added_to(changes));
        changes.map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_changes_and_nothing_else() {
        let given = changes("x --sampler heun --profile fast --eta 0.5 --guidance 2 --schedule quadratic").unwrap();
        assert_eq!((given.sampler, given.steps, given.eta), (Some(SamplerKind::Heun), Some(20), Some(0.5)));
        assert!(given.schedule.is_some() && given.guidance == Some(2.0) && given.temperature.is_none());
        assert_eq!(changes("x --timesteps 9,-1").unwrap().timesteps, Some(vec![9, -1]));
        assert_eq!(changes("x --steps 7").unwrap().steps, Some(7));
        let none = changes("x").unwrap();
        assert!(none.sampler.is_none() && none.steps.is_none() && none.guidance_schedule.is_none());
    }

    #[test]
    fn faults_name_the_flag_and_steps_are_given_once() {
        for (line, part) in [
            ("x --timesteps 9,a", "--timesteps: `a` is not a timestep"),
            ("x --sampler euler", "sampler: no sampler"),
            ("x --guidance-schedule a", "guidance schedule: "),
            ("x --steps 2 --profile fast", "cannot be used with"),
            ("x --timesteps 1 --steps 2", "cannot be used with"),
            ("x --timesteps 1 --profile fast", "cannot be used with"),
            ("x --schedule uniform --timesteps 1", "cannot be used with"),
        ] {
            let fault = changes(line).unwrap_err();
            assert!(fault.contains(part), "{line}: {fault}");
        }
    }
}
