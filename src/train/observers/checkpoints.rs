//! Checkpoints, the newest model, and the removal of old checkpoints.

use crate::config::{BestBy, TrainingConfig};
use crate::error::Result;
use crate::train::{Ending, Event, Observer, Place, Run};

pub(super) struct Checkpoints {
    /// Steps between checkpoints.
    every: u64,
    /// Number of newest ones to keep.
    keep: usize,
    /// Epochs whose last checkpoint is kept permanently.
    milestones: Vec<u64>,
    best_by: BestBy,
}

impl Checkpoints {
    pub fn new(training: &TrainingConfig) -> Self {
        Self {
            every: training.checkpoint_every,
            keep: training.keep_checkpoints,
            milestones: training.milestone_epochs.clone(),
            best_by: training.best_by,
        }
    }

    fn is_milestone(&self, place: Place) -> bool {
        place.epoch_ended().is_some_and(|epoch| self.milestones.contains(&epoch))
    }
}

impl Observer for Checkpoints {
    fn is_due(&self, place: Place) -> bool {
        place.step.is_multiple_of(self.every) || self.is_milestone(place)
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        let path = run.save_checkpoint()?;
        run.save_model(&run.folder().model())?;
        let best = match self.best_by {
            BestBy::ValidationLoss => run.progress.best,
            BestBy::Metric => run.progress.evaluations.best,
        };
        let (place, best) = (run.place(), best.map(|(_, step)| step));
        let keeps = |step| Some(step) == best || self.is_milestone(Place { step, ..place });
        run.folder().prune(self.keep, keeps)?;
        run.report(&Event::Wrote(path));
        Ok(())
    }

    fn end(&mut self, run: &mut Run, _: Ending) -> Result<()> {
        self.act(run)
    }
}
