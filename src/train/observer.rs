//! Observers: everything that a run does besides stepping.

use super::Run;
use crate::config::Every;
use crate::error::Result;

/// A position in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Optimizer steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
}

impl Place {
    /// Whether something with this interval is due here.
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

    /// Passes over the training images, including the fraction of the current one.
    pub fn epochs(self) -> f64 {
        self.step as f64 / self.steps_per_epoch as f64
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last step is done.
    Finished,
    /// Stopped by request: it must be left in a state from which it can resume.
    Stopped,
}

/// An action of a run between its steps: logs, pictures, validation and checkpoints are observers. Add your own with
/// [`train_observed`](super::train_observed).
///
/// After each step the loop asks which observers are due. If any is, it waits for the device, reads the metrics of all steps so
/// far, and lets each due observer act, in the order in which they were added. Their time does not count as training time.
///
/// Whether an observer acts depends only on the [`Place`], never on measured values or the clock: several processes that train one
/// model reach the same decision without communication, and a resumed run acts as it would have.
pub trait Observer: Send {
    /// Called before the first step of this session.
    ///
    /// # Errors
    /// Any error that prevents the run.
    fn begin(&mut self, run: &mut Run) -> Result<()> {
        let _ = run;
        Ok(())
    }

    /// Whether it acts here.
    fn is_due(&self, place: Place) -> bool;

    /// Acts after a step.
    ///
    /// # Errors
    /// Any error that must end the run.
    fn act(&mut self, run: &mut Run) -> Result<()>;

    /// Called at the end of this session.
    ///
    /// # Errors
    /// Any error that prevents a clean end.
    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        let _ = (run, ending);
        Ok(())
    }
}
