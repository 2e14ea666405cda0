//! Log lines, and the ends of epochs.

use crate::error::Result;
use crate::train::metrics::LossTerms;
use crate::train::{Ending, Event, Observer, Place, Run, TrainingLine, learning_rate};

pub(super) struct Log {
    /// Steps between lines.
    pub every: u64,
}

impl Log {
    fn has_line(&self, place: Place) -> bool {
        place.step.is_multiple_of(self.every) || place.is_last()
    }
}

impl Observer for Log {
    fn is_due(&self, place: Place) -> bool {
        self.has_line(place) || place.epoch_ended().is_some()
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        let place = run.place();
        if self.has_line(place) {
            let line = line(run, place);
            run.journal(|journal| journal.training(&line))?;
            run.report(&Event::Logged(line));
        }
        if let Some(epoch) = place.epoch_ended() {
            let tally = std::mem::take(&mut run.progress.epoch);
            run.report(&Event::Epoch { epoch, loss: tally.mean(), seconds: tally.seconds });
        }
        Ok(())
    }

    /// Steps since the last line of a run that stopped early.
    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        if ending == Ending::Finished && run.progress.line.steps > 0 {
            let line = line(run, run.place());
            run.journal(|journal| journal.training(&line))?;
            run.report(&Event::Logged(line));
        }
        Ok(())
    }
}

/// The line for the steps since the last one.
fn line(run: &mut Run, place: Place) -> TrainingLine {
    let tally = std::mem::take(&mut run.progress.line);
    let trainer = run.trainer();
    let images = tally.steps as f64 * trainer.images_per_step() as f64;
    let means: Vec<f64> = tally.terms.iter().map(|sum| sum / tally.steps.max(1) as f64).collect();
    let (names, classifies) = (trainer.loss_terms(), trainer.classifies());
    TrainingLine {
        step: place.step,
        epoch: run.epochs(),
        loss: tally.mean(),
        gradient_norm: run.gradient_norm(),
        learning_rate: learning_rate(&trainer.config().training, place.step, trainer.total_steps()),
        images_per_second: images / tally.seconds.max(1e-9),
        seconds: run.progress.seconds,
        accuracy: if classifies { means.first().copied() } else { None },
        terms: if classifies { LossTerms::default() } else { LossTerms { names, means } },
    }
}
