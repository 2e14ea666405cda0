//! Evaluation during training, in a build without the feature `metrics`: a run that asks for it is refused.

use crate::config::{Config, Every, TrainingConfig};
use crate::error::{Error, Result};
use crate::eval::Extractor;
use crate::train::{Observer, Place, Run, Trainer};

pub(super) struct Evaluate;

impl Evaluate {
    pub fn new(_: &TrainingConfig) -> Self {
        Self
    }
}

impl Observer for Evaluate {
    fn is_due(&self, _: Place) -> bool {
        false
    }

    fn act(&mut self, _: &mut Run) -> Result<()> {
        Ok(())
    }
}

fn refused() -> Error {
    let message = "this build has no metrics of samples";
    Error::config("training.evaluate_every", message, "set it to never, or build with the feature `metrics`")
}

pub(in crate::train) fn network(_: &Trainer) -> Result<Extractor> {
    Err(refused())
}

/// # Errors
/// [`Error::Config`] for a run that evaluates.
pub(in crate::train) fn network_bytes(config: &Config) -> Result<usize> {
    if config.training.evaluate_every == Every::Never { Ok(0) } else { Err(refused()) }
}

/// # Errors
/// [`Error::Config`] for a run that evaluates.
pub(in crate::train) fn find_extractor(config: &mut Config) -> Result<()> {
    network_bytes(config).map(|_| ())
}
