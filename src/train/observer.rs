//! Observers: all that a run does besides stepping.

use super::Run;
use crate::config::Every;
use crate::error::Result;

/// A place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Optimizer steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
}

impl Place {
    /// Whether something that happens so often happens here.
    pub fn is_due(self, every: Every) -> bool {
        every.is_due(self.step, self.steps_per_epoch)
    }

    /// Whether the last step is done.
    pub fn is_last(self) -> bool {
        self.step == self.steps
    }

    /// The number, from 1, of the epoch that ends here, if one does.
    pub fn epoch_ended(self) -> Option<u64> {
        (self.step > 0 && self.step.is_multiple_of(self.steps_per_epoch)).then(|| self.step / self.steps_per_epoch)
    }

    /// Passes over the training images done, with the fraction of the present one.
    pub fn epochs(self) -> f64 {
        self.step as f64 / self.steps_per_epoch as f64
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its last step is done. A run that goes on after that only ends, again.
    Finished,
    /// Somebody stopped it: it is to be left so that it can go on.
    Stopped,
}

/// Something that a run does between its steps: logs, pictures, validation, checkpoints are observers, and whoever trains can
/// add their own with [`train_observed`](super::train_observed).
///
/// The loop steps, and asks after each step who is due. Where anyone is, it waits for the device, reads the metrics of all
/// steps so far, and lets each that is due act, one after the other, in the order in which they were added. The time that
/// they take is no time of training.
///
/// Whether an observer acts depends on the [`Place`] alone, never on what was measured or on the clock: several processes that
/// train one model together come to the same answer without a word, and a run that goes on does as it would have.
pub trait Observer: Send {
    /// Before the first step of this sitting.
    ///
    /// # Errors
    /// Whatever prevents the run.
    fn begin(&mut self, run: &mut Run) -> Result<()> {
        let _ = run;
        Ok(())
    }

    /// Whether it acts here.
    fn is_due(&self, place: Place) -> bool;

    /// Acts.
    ///
    /// # Errors
    /// Whatever makes the run end here.
    fn act(&mut self, run: &mut Run) -> Result<()>;

    /// At the end of this sitting.
    ///
    /// # Errors
    /// Whatever prevents a good end.
    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        let _ = (run, ending);
        Ok(())
    }
}
