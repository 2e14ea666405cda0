//! The validation loss, and the best model by it.

use crate::config::Every;
use crate::error::Result;
use crate::train::{Ending, Event, Observer, Place, Run, ValidationLine};

pub(super) struct Validate {
    pub every: Every,
    /// Whether the lowest loss selects the best model.
    pub keeps_best: bool,
}

impl Observer for Validate {
    fn is_due(&self, place: Place) -> bool {
        place.is_due(self.every)
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        run.report(&Event::Busy("validates"));
        let Some(found) = run.trainer_mut().validate()? else { return Ok(()) };
        let (step, validation_loss) = (run.place().step, found.loss);
        let line = ValidationLine { step, epoch: run.epochs(), validation_loss, validation_accuracy: found.accuracy };
        let best = run.progress.best.is_none_or(|(lowest, _)| validation_loss < lowest);
        if best {
            run.progress.best = Some((validation_loss, step));
            if self.keeps_best {
                run.save_model(&run.folder().best())?;
            }
        }
        run.journal(|journal| journal.validation(&line))?;
        // Where the best is chosen by a metric, the lowest loss is of no interest.
        run.report(&Event::Validated { line, best: best && self.keeps_best });
        Ok(())
    }

    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        let validated = run.curves().validation.last().is_some_and(|(last, _)| *last == run.place().step);
        match ending {
            Ending::Finished if self.every != Every::Never && !validated => self.act(run),
            _ => Ok(()),
        }
    }
}
