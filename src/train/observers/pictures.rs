//! The pictures of a run: sheets of samples or predictions, and the loss curve.

use crate::config::Every;
use crate::error::Result;
use crate::models::Network;
#[cfg(feature = "plots")]
use crate::picture::{LossCurve, Timing, loss_curve};
use crate::train::{Ending, Event, Observer, Place, Run, pictures, predictions};
use crate::words::counted;

pub(super) struct Pictures {
    pub every: Every,
}

impl Observer for Pictures {
    /// Draws a picture that an interruption prevented.
    fn begin(&mut self, run: &mut Run) -> Result<()> {
        let place = run.place();
        let drawn = run.folder().sample(&format!("step-{}", place.step)).exists();
        if self.is_due(place) && !drawn { self.act(run) } else { Ok(()) }
    }

    fn is_due(&self, place: Place) -> bool {
        place.is_due(self.every) && place.step < place.steps
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        draw_curve(run)?;
        let Some(network) = run.trainer().network() else { return Ok(()) };
        run.report(&Event::Busy("draws samples"));
        match network {
            Network::Denoiser(_) => draw_samples(run),
            Network::Classifier(_) => draw_predictions(run),
        }
    }

    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        match ending {
            Ending::Finished if !run.is_stopping() => self.act(run),
            _ => draw_curve(run),
        }
    }
}

/// The sheets of samples and of denoising stages.
fn draw_samples(run: &mut Run) -> Result<()> {
    let place = run.place();
    let names = match place.is_last() {
        true => ["final".to_string(), "timesteps".to_string()],
        false => [format!("step-{}", place.step), format!("step-{}-denoising", place.step)],
    };
    let titles = ["samples", "denoising"].map(|what| heading(run, what));
    let go_on = || !run.is_stopping();
    let Some(sheets) = pictures::sheets(run.trainer(), &run.progress.classes, titles, go_on)? else {
        return Ok(());
    };
    let [samples, denoising] = names.map(|name| run.folder().sample(&name));
    // The samples last: an existing sheet of samples is not drawn again.
    run.picture("denoising", denoising, &sheets.denoising)?;
    run.picture("samples", samples, &sheets.samples)
}

/// Held-out images with their predicted classes.
fn draw_predictions(run: &mut Run) -> Result<()> {
    let step = run.place().step;
    let title = format!("{}: predictions after step {step} (true class in brackets)", run.title());
    match predictions::sheet(run.trainer(), &run.progress.classes, title)? {
        Some(sheet) => run.picture("predictions", run.folder().sample("final"), &sheet),
        None => Ok(()),
    }
}

/// Without the feature `plots` there is no loss curve.
#[cfg(not(feature = "plots"))]
fn draw_curve(_: &Run) -> Result<()> {
    Ok(())
}

#[cfg(feature = "plots")]
fn draw_curve(run: &Run) -> Result<()> {
    let epochs = run.place().epochs();
    let (total_seconds, curves) = (run.progress.seconds, run.curves());
    let seconds_per_epoch = (epochs > 0.0).then(|| total_seconds / epochs);
    loss_curve(
        run.folder().plot("loss"),
        &LossCurve {
            title: run.title(),
            training: &curves.training,
            validation: &curves.validation,
            metric: curves.metric.as_deref().map(|name| (name, curves.evaluation.as_slice())),
            steps_per_epoch: Some(run.place().steps_per_epoch as f64),
            timing: (total_seconds > 0.0).then_some(Timing { seconds_per_epoch, total_seconds }),
        },
    )
}

fn heading(run: &Run, what: &str) -> String {
    let sampling = &run.trainer().config().sampling;
    let (step, sampler, steps) = (run.place().step, sampling.sampler, sampling.num_steps);
    let guidance = sampling.describe_guidance();
    let steps = counted(steps, "step");
    format!("{}: {what} after step {step} ({sampler}, {steps}, guidance {guidance})", run.title())
}
