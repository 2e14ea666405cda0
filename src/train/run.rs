//! The loop of a run, and the state that its observers share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::metrics::Metrics;
use super::observers::standard;
use super::{
    Ending, Event, Observer, Place, RunFolder, RunState, StepMetrics, Summary, TrainRequest, Trainer, ranks, start,
};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::host::parallel::{install, set_threads};
use crate::picture::{Image, write_png};
use crate::tensor::Device;

/// How long metrics may stay on an accelerator: reading them waits for it. The host runs ahead by about this time.
const DRAIN: Duration = Duration::from_millis(250);

/// Trains as `request` says and sends events to `report`; prints nothing.
///
/// Everything is in the run folder: see [`RunFolder`]. A run that ended in any way resumes with [`TrainRequest::resume`] and
/// reaches the same weights, bit for bit; one that is complete is left as it is, after [`Event::Complete`].
///
/// # Errors
/// Those of a bad configuration, data set, device or folder, before the folder is created; [`Error::Interrupted`] after a
/// checkpoint if `request.stop` was set; during the run, those of the device or the disk. Saved files stay intact.
pub fn train(request: TrainRequest, report: &mut (dyn FnMut(&Event) + Send)) -> Result<Summary> {
    train_observed(request, Vec::new(), report)
}

/// As [`train`], with additional `observers`, which act after the standard ones.
///
/// # Errors
/// As [`train`], and those of the observers.
pub fn train_observed(
    request: TrainRequest,
    observers: Vec<Box<dyn Observer>>,
    report: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    set_threads(None)?;
    let outcome = install(|| {
        let mut run = start::begin(&request, report)?;
        if observers.is_empty() && run.is_complete() {
            run.report(&Event::Complete);
            run.trainer.dismiss()?;
            return Ok(run.summary());
        }
        let mut all = standard(&run.trainer.config().training);
        all.extend(observers);
        run.drive(&mut all)
    });
    ranks::leave(ranks::team(&request).as_ref(), &outcome);
    outcome
}

/// The part of ranks other than 0 in a run that rank 0 makes with [`train`] and the same request: they do their share of each step
/// and write nothing. Ends when rank 0's run does.
///
/// # Errors
/// [`Error::Cluster`] on all ranks if their requests do not match, before anything is written, and if one of them is gone; those
/// of the device.
pub fn follow(request: &TrainRequest) -> Result<()> {
    set_threads(None)?;
    let outcome = install(|| start::join(request)?.follow());
    ranks::leave(ranks::team(request).as_ref(), &outcome);
    outcome
}

/// A run in progress, as its observers see it.
pub struct Run<'a> {
    trainer: Trainer,
    folder: RunFolder,
    /// The part of a checkpoint besides the trainer's state.
    pub(super) progress: RunState,
    journal: Journal,
    report: &'a mut (dyn FnMut(&Event) + Send),
    stop: Arc<AtomicBool>,
    /// The folder for features of the training images.
    cache: PathBuf,
    /// The last step, if the run stops early.
    ended: Option<u64>,
    title: String,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    clock: Instant,
    /// Time and step of the last reading of metrics.
    drained: (Instant, u64),
    /// Steps that the device does in [`DRAIN`]: this many are submitted without reading.
    ahead: u64,
    last: Option<StepMetrics>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        request: &TrainRequest,
        trainer: Trainer,
        folder: RunFolder,
        progress: RunState,
        report: &'a mut (dyn FnMut(&Event) + Send),
    ) -> Result<Self> {
        let step = trainer.step_count();
        let (journal, now) = (Journal::open(&folder, step)?, Instant::now());
        // Depends only on the configuration, so that a resumed run draws the same pictures.
        let title = format!("{} on {}", trainer.config().model.kind(), trainer.config().data.name);
        let (stop, saved) = (request.stop.clone(), (step > 0).then_some(step));
        Ok(Self {
            trainer,
            folder,
            progress,
            journal,
            report,
            stop,
            cache: request.data_dir.join("evaluation"),
            ended: None,
            title,
            saved,
            clock: now,
            drained: (now, step),
            ahead: 1,
            last: None,
        })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The trainer, for validation.
    pub fn trainer_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// The run folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// The current position of the run.
    pub fn place(&self) -> Place {
        let trainer = &self.trainer;
        let steps = self.ended.unwrap_or(trainer.total_steps());
        Place { step: trainer.step_count(), steps, steps_per_epoch: trainer.steps_per_epoch() }
    }

    /// Makes the current step the last one: the run finishes as at its full length.
    pub fn end_here(&mut self) {
        self.ended = Some(self.trainer.step_count());
    }

    /// Whether the run has ended before, with everything that comes after its last step: the final sheet is the last file.
    fn is_complete(&self) -> bool {
        let (place, progress) = (self.place(), &self.progress);
        let patience = self.trainer.config().training.patience;
        let ended = place.is_last() || patience.is_some_and(|most| progress.evaluations.worse >= most);
        let files = [self.folder.model(), self.folder.checkpoint(place.step), self.folder.sample("final")];
        place.step > 0 && ended && files.iter().all(|file| file.exists())
    }

    /// Removes the final sheet of an earlier end: a run that goes on is complete only with a new one.
    pub(super) fn reopen(&self) -> Result<()> {
        if self.is_complete() { Ok(()) } else { self.remove_final_sheet() }
    }

    fn remove_final_sheet(&self) -> Result<()> {
        let sheet = self.folder.sample("final");
        match sheet.exists() {
            true => std::fs::remove_file(&sheet).map_err(Error::io(&sheet, "remove")),
            false => Ok(()),
        }
    }

    /// The folder in which features of the training images are kept.
    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The names of the data set's classes.
    pub fn classes(&self) -> &[String] {
        &self.progress.classes
    }

    /// The metrics of the last step that was read in this session.
    pub fn last_metrics(&self) -> Option<&StepMetrics> {
        self.last.as_ref()
    }

    /// Model and data set as text: the title of pictures.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Whether a stop was requested: slow work should end early.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.trainer.team().stop().load(Ordering::Relaxed)
    }

    /// Reports an event.
    pub fn report(&mut self, event: &Event) {
        (self.report)(event);
    }

    /// Writes a number to TensorBoard's file, for the current step.
    ///
    /// # Errors
    /// [`Error::File`] if the write fails.
    pub fn scalar(&mut self, tag: &str, value: f64) -> Result<()> {
        let step = self.trainer.step_count();
        self.journal(|journal| journal.scalar(tag, step, value))
    }

    /// Writes a picture to TensorBoard's file and then, as PNG, to `path`: if the PNG exists, both do.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Io`] if a write fails.
    pub fn picture(&mut self, tag: &str, path: PathBuf, image: &Image) -> Result<()> {
        let step = self.trainer.step_count();
        self.journal(|journal| journal.image(tag, step, image))?;
        write_png(&path, image, &[("Software", concat!("engine ", env!("CARGO_PKG_VERSION")))])?;
        self.report(&Event::Wrote(path));
        Ok(())
    }

    /// Writes to the run's records.
    pub(super) fn journal(&mut self, write: impl FnOnce(&mut Journal) -> Result<()>) -> Result<()> {
        write(&mut self.journal).map_err(|error| self.unsaved(error))
    }

    /// The points of the curves so far.
    pub(super) fn curves(&self) -> &Metrics {
        self.journal.metrics()
    }

    /// Passes over the training images, to four decimals.
    pub(super) fn epochs(&self) -> f64 {
        (self.place().epochs() * 1e4).round() / 1e4
    }

    /// That of the last step.
    pub(super) fn gradient_norm(&self) -> f64 {
        self.last.as_ref().map_or(0.0, |metrics| metrics.gradient_norm)
    }

    /// Writes the current step's checkpoint if it does not exist yet; returns its path.
    pub(super) fn save_checkpoint(&mut self) -> Result<PathBuf> {
        let step = self.trainer.step_count();
        let path = self.folder.checkpoint(step);
        if self.saved != Some(step) || !path.exists() {
            let synced = self.journal.sync();
            let written = synced.and_then(|()| self.trainer.save_checkpoint(&path, &self.progress));
            written.map_err(|error| self.unsaved(error))?;
            self.saved = Some(step);
        }
        Ok(path)
    }

    /// Writes the averaged weights as a model file.
    pub(super) fn save_model(&self, path: &Path) -> Result<()> {
        self.trainer.save_model(path, &self.progress.classes).map_err(|error| self.unsaved(error))
    }

    /// The whole run: steps, each followed by the observers that are due.
    fn drive(mut self, observers: &mut [Box<dyn Observer>]) -> Result<Summary> {
        let outcome = self.steps(observers);
        if matches!(outcome, Ok(_) | Err(Error::Interrupted { .. })) {
            self.trainer.dismiss()?;
        }
        outcome
    }

    fn steps(&mut self, observers: &mut [Box<dyn Observer>]) -> Result<Summary> {
        let immediate = matches!(self.trainer.context().device(), Device::Cpu);
        observers.iter_mut().try_for_each(|observer| observer.begin(self))?;
        self.clock = Instant::now();
        while self.place().step < self.place().steps {
            if self.is_stopping() {
                return Err(self.stopped(observers)?);
            }
            self.trainer.train_step()?;
            let place = self.place();
            if place.is_last() {
                // That of a classifier is drawn during the run too.
                self.remove_final_sheet()?;
            }
            let any = observers.iter().any(|observer| observer.is_due(place));
            let far = place.step - self.drained.1 >= self.ahead;
            if any || immediate || far || self.trainer.must_drain() {
                self.drain()?;
            }
            self.lap(true);
            if any {
                for observer in observers.iter_mut().filter(|observer| observer.is_due(place)) {
                    observer.act(self)?;
                }
                self.lap(false);
            }
        }
        for observer in observers.iter_mut() {
            observer.end(self, Ending::Finished)?;
        }
        if self.is_stopping() {
            return Err(self.interrupted());
        }
        Ok(self.summary())
    }

    /// Leaves the run ready to resume, and reports how.
    fn stopped(&mut self, observers: &mut [Box<dyn Observer>]) -> Result<Error> {
        observers.iter_mut().try_for_each(|observer| observer.end(self, Ending::Stopped))?;
        Ok(self.interrupted())
    }

    fn interrupted(&self) -> Error {
        Error::Interrupted { message: format!("step {} is saved; {}", self.trainer.step_count(), self.way_on()) }
    }

    /// How to resume the run.
    fn way_on(&self) -> String {
        match self.trainer.config().model {
            ModelConfig::Custom(_) => "resume with TrainRequest::resume, in the program that has the network".into(),
            _ => format!("resume with `train(resume = {})`", self.folder.root().display()),
        }
    }

    fn summary(&self) -> Summary {
        let curves = self.curves();
        Summary {
            folder: self.folder.root().to_path_buf(),
            model: self.folder.model(),
            samples: self.folder.sample("final"),
            steps: self.trainer.step_count(),
            loss: curves.training.last().map(|(_, loss)| *loss),
            validation_loss: curves.validation.last().map(|(_, loss)| *loss),
            validation_accuracy: curves.accuracy,
            seconds: self.progress.seconds,
        }
    }

    /// Adds the time since the last call to the training time, if it was training.
    fn lap(&mut self, training: bool) {
        let seconds = std::mem::replace(&mut self.clock, Instant::now()).elapsed().as_secs_f64();
        if training {
            self.progress.seconds += seconds;
            self.progress.line.seconds += seconds;
            self.progress.epoch.seconds += seconds;
        }
    }

    /// Reads the losses of the steps since the last call, and fails if one is not finite.
    fn drain(&mut self) -> Result<()> {
        for metrics in self.trainer.drain_metrics()? {
            if !(metrics.loss.is_finite() && metrics.gradient_norm.is_finite()) {
                return Err(self.diverged(&metrics));
            }
            for tally in [&mut self.progress.line, &mut self.progress.epoch] {
                tally.add(&metrics);
            }
            (self.report)(&Event::Step { step: metrics.step, loss: metrics.loss });
            self.last = Some(metrics);
        }
        self.pace();
        Ok(())
    }

    /// Submitting a step takes the host no time, so the clock does not show the device's progress; the steps since the last
    /// reading, now all done, show how long one takes.
    /// by now, tell how long one takes.
    fn pace(&mut self) {
        let (now, step) = (Instant::now(), self.trainer.step_count());
        let (since, before) = std::mem::replace(&mut self.drained, (now, step));
        let steps = step - before;
        if steps > 0 {
            let each = ((now - since).as_secs_f64() / steps as f64).max(1e-6);
            // At most twice as many as before: the first steps load kernels, and pictures come between steps.
            self.ahead = ((DRAIN.as_secs_f64() / each) as u64).clamp(1, 2 * self.ahead);
        }
    }

    fn diverged(&self, metrics: &StepMetrics) -> Error {
        let rate = self.trainer.config().training.learning_rate;
        let kept = match self.saved {
            Some(step) => format!("the checkpoint of step {step} is untouched"),
            None => "nothing had been saved yet".into(),
        };
        let (loss, norm) = (metrics.loss, metrics.gradient_norm);
        Error::config(
            format!("step {}", metrics.step),
            format!("training diverged: loss {loss}, gradient norm {norm}; {kept}"),
            format!(
                "start a new run with a lower training.learning_rate (it was {rate}), a longer training.warmup_steps or \
                 training.gradient_clip=1"
            ),
        )
    }

    /// A write error, with the saved state and how to resume.
    fn unsaved(&self, error: Error) -> Error {
        let Error::Io { path, doing, source } = error else { return error };
        let kept = match self.saved {
            Some(step) => format!("all up to step {step} is saved"),
            None => "nothing had been saved yet".into(),
        };
        let message = format!("cannot {doing}: {source}; {kept}");
        Error::file(path, message, format!("free some space, then {}", self.way_on()))
    }
}
