//! The observers that every run has.

mod checkpoints;
mod histograms;
mod log;
mod pictures;
mod validation;

use super::Observer;
use crate::config::TrainingConfig;

/// Those of a configuration, in the order in which they act: a checkpoint holds what the log and validation found before it,
/// and comes before pictures, which take long.
pub(super) fn standard(training: &TrainingConfig) -> Vec<Box<dyn Observer>> {
    vec![
        Box::new(log::Log { every: training.log_every }),
        Box::new(validation::Validate { every: training.validate_every }),
        Box::new(histograms::Histograms { every: training.histograms_every }),
        Box::new(checkpoints::Checkpoints::new(training)),
        Box::new(pictures::Pictures { every: training.sample_every }),
    ]
}
