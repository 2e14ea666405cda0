//! The observers that every run has.

mod checkpoints;
#[cfg(feature = "metrics")]
mod evaluation;
#[cfg(not(feature = "metrics"))]
#[path = "no_evaluation.rs"]
mod evaluation;
mod histograms;
mod log;
mod pictures;
mod validation;

pub(super) use evaluation::{find_extractor, network as evaluation_network, network_bytes};

use super::Observer;
use crate::config::{BestBy, TrainingConfig};

/// The observers of a configuration, in order: a checkpoint includes the results of log, validation and evaluation before it, and
/// comes before pictures, which are slow.
pub(super) fn standard(training: &TrainingConfig) -> Vec<Box<dyn Observer>> {
    vec![
        Box::new(log::Log { every: training.log_every }),
        Box::new(validation::Validate {
            every: training.validate_every,
            keeps_best: training.best_by == BestBy::ValidationLoss,
        }),
        Box::new(histograms::Histograms { every: training.histograms_every }),
        Box::new(evaluation::Evaluate::new(training)),
        Box::new(checkpoints::Checkpoints::new(training)),
        Box::new(pictures::Pictures { every: training.sample_every }),
    ]
}
