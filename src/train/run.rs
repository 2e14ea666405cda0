//! A run from its first step, or from a checkpoint, to its last picture.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::metrics::{LossTerms, Metrics};
use super::tensorboard::Events;
use super::{
    DataSizes, Event, Memory, Progress, RunFolder, Start, Summary, TrainRequest, Trainer, TrainingLine, ValidationLine,
    backbone, checkpoint_config, fingerprint, folder, learning_rate, list_checkpoints, pictures, predictions,
};
use crate::config::{Config, Every, LrSchedule};
use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::ops::host::parallel::{install, set_threads};
use crate::picture::{LossCurve, Timing, loss_curve, write_png};
use crate::tensor::Device;

/// How long metrics may stay on an accelerator: reading them waits for it.
const DRAIN: Duration = Duration::from_millis(250);

/// Trains as `request` says and tells `observer` what happens; prints nothing.
///
/// Everything lies in the run folder: see [`RunFolder`]. A run that ended anywhere, however it ended, goes on with
/// [`TrainRequest::resume`] and comes to the same weights, bit for bit.
///
/// # Errors
/// What a bad configuration, data set, device or folder causes, before the folder is made;
/// [`Error::Interrupted`] after a checkpoint where `request.stop` was set; and while it runs what the device or the disk
/// reports. What was saved before stays.
pub fn train(request: TrainRequest, observer: &mut (dyn FnMut(&Event) + Send)) -> Result<Summary> {
    set_threads(None)?;
    install(|| Run::begin(request, observer)?.run())
}

/// A run under way.
struct Run<'a> {
    trainer: Trainer,
    folder: RunFolder,
    progress: Progress,
    metrics: Metrics,
    events: Events,
    observer: &'a mut (dyn FnMut(&Event) + Send),
    stop: Arc<AtomicBool>,
    title: String,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    clock: Instant,
    drained: Instant,
    gradient_norm: f64,
}

impl<'a> Run<'a> {
    fn begin(request: TrainRequest, observer: &'a mut (dyn FnMut(&Event) + Send)) -> Result<Self> {
        match (&request.resume, &request.config) {
            (Some(root), _) => Self::resume(&request, &root.clone(), observer),
            (None, Some(config)) => Self::new(&request, config.clone(), observer),
            (None, None) => {
                Err(Error::config("configuration", "there is none", "make the request with TrainRequest::new"))
            }
        }
    }

    fn new(request: &TrainRequest, mut config: Config, observer: &'a mut (dyn FnMut(&Event) + Send)) -> Result<Self> {
        if let Some(out) = &request.out {
            folder::refuse_taken(out)?;
        }
        set_length(request, &mut config)?;
        config.validate()?;
        let pretrained = backbone::find(&mut config)?;
        let dataset = request.find_data(&mut config)?;
        let (trainer, start) = prepare(request, &config, &dataset, observer)?;
        if let Some(pretrained) = &pretrained {
            trainer.set_backbone(pretrained)?;
        }
        let folder = RunFolder::create(request.out.as_deref(), &request.name)?;
        folder.write_config(&config)?;
        let progress =
            Progress { classes: dataset.class_names().to_vec(), data: fingerprint(&dataset), ..Progress::default() };
        Self::started(request, trainer, folder, progress, start, observer)
    }

    fn resume(request: &TrainRequest, root: &Path, observer: &'a mut (dyn FnMut(&Event) + Send)) -> Result<Self> {
        let folder = RunFolder::resume(root)?;
        let checkpoints = list_checkpoints(&folder.checkpoints())?;
        // The newest checkpoint that can be read, and its configuration.
        let mut newest = None;
        let mut damage = None;
        for (_, path) in &checkpoints {
            match checkpoint_config(path) {
                Ok(config) => {
                    newest = Some((path, config));
                    break;
                }
                Err(error) => {
                    observer(&Event::Warning(format!("this checkpoint is passed over: {error}")));
                    damage.get_or_insert(error);
                }
            }
        }
        if let (None, Some(error)) = (&newest, damage) {
            let message = format!("none of its {} checkpoints can be read ({error})", checkpoints.len());
            return Err(Error::file(root, message, "begin a new run; its model.safetensors may still be sound"));
        }
        let path = folder.config();
        let mut config = match (Config::from_file(&path), &newest) {
            (Ok(config), _) => config,
            // Whoever deletes config.yaml has lost nothing: each checkpoint has it too.
            (Err(Error::Io { .. }), Some((_, config))) => config.clone(),
            (Err(error), _) => return Err(error),
        };
        if let Some((_, then)) = &newest {
            let mut then = then.clone();
            (then.training.num_steps, then.training.num_epochs) =
                (config.training.num_steps, config.training.num_epochs);
            if then != config {
                return Err(Error::config(
                    path.display().to_string(),
                    "it was changed since the run began, so the run cannot go on as it would have",
                    "undo the change, or begin a new run with --config",
                ));
            }
        }
        let before = config.training.clone();
        set_length(request, &mut config)?;
        if config.training != before && before.lr_schedule != LrSchedule::Constant {
            return Err(Error::config(
                "training.lr_schedule",
                "the learning rate of this run depends on its length, so the length cannot change any more",
                "leave --steps and --epochs out, or begin a new run",
            ));
        }
        config.validate()?;
        let mut found = config.clone();
        let dataset = request.find_data(&mut found)?;
        let (mut trainer, mut start) = prepare(request, &config, &dataset, observer)?;
        let data = fingerprint(&dataset);
        let progress = match newest {
            Some((path, _)) => trainer.load_checkpoint(path)?,
            None => {
                observer(&Event::Warning("there is no checkpoint yet: the run begins at its first step".into()));
                Progress { classes: dataset.class_names().to_vec(), data: data.clone(), ..Progress::default() }
            }
        };
        if progress.data != data {
            let message = format!("the run was begun on {}, and this is {data}", progress.data);
            return Err(Error::config("--data", message, "name the data set that the run was begun on"));
        }
        start.from = trainer.step_count();
        if start.from > start.steps {
            let message = format!("the run is {} steps long already", start.from);
            return Err(Error::config("--steps", message, "give more, or leave it out"));
        }
        if config.training != before {
            folder.write_config(&config)?;
        }
        Self::started(request, trainer, folder, progress, start, observer)
    }

    fn started(
        request: &TrainRequest,
        trainer: Trainer,
        folder: RunFolder,
        progress: Progress,
        mut start: Start,
        observer: &'a mut (dyn FnMut(&Event) + Send),
    ) -> Result<Self> {
        let step = trainer.step_count();
        let metrics = Metrics::open(&folder.metrics(), step)?;
        let events = Events::open(folder.root(), step)?;
        start.folder = folder.root().to_path_buf();
        // Of the configuration alone, so that a run that goes on draws the same pictures.
        let title = format!("{} on {}", start.config.model.kind(), start.config.data.name);
        observer(&Event::Start(Box::new(start)));
        let now = Instant::now();
        Ok(Self {
            trainer,
            folder,
            progress,
            metrics,
            events,
            observer,
            stop: request.stop.clone(),
            title,
            saved: (step > 0).then_some(step),
            clock: now,
            drained: now,
            gradient_norm: 0.0,
        })
    }

    fn run(mut self) -> Result<Summary> {
        let total = self.trainer.total_steps();
        let immediate = matches!(self.trainer.context().device(), Device::Cpu);
        // A picture that an interruption prevented.
        let from = self.trainer.step_count();
        let sample = self.is_due(self.trainer.config().training.sample_every) && from < total;
        if sample && !self.folder.sample(&format!("step-{from}")).exists() {
            self.draw_samples()?;
        }
        self.clock = Instant::now();
        while self.trainer.step_count() < total {
            if self.stop.load(Ordering::Relaxed) {
                return Err(self.interrupted()?);
            }
            self.trainer.train_step()?;
            let step = self.trainer.step_count();
            let t = &self.trainer.config().training;
            let log = step.is_multiple_of(t.log_every) || step == total;
            let epoch = step.is_multiple_of(self.trainer.steps_per_epoch());
            let (validate, sample) = (self.is_due(t.validate_every), self.is_due(t.sample_every) && step < total);
            let histograms = self.is_due(t.histograms_every);
            let save = step.is_multiple_of(t.checkpoint_every) || self.is_milestone(step);
            let pause = validate || sample || histograms || save;
            let late = self.trainer.must_drain() || immediate || self.drained.elapsed() > DRAIN;
            if log || epoch || pause || late {
                self.drain()?;
            }
            self.lap(true);
            if log {
                self.log()?;
            }
            if epoch {
                let tally = std::mem::take(&mut self.progress.epoch);
                let epoch = step / self.trainer.steps_per_epoch();
                (self.observer)(&Event::Epoch { epoch, loss: tally.mean(), seconds: tally.seconds });
            }
            if validate {
                self.validate()?;
            }
            if sample {
                self.draw_samples()?;
            }
            if histograms {
                self.draw_histograms()?;
            }
            if save {
                self.save()?;
            }
            if pause {
                self.lap(false);
            }
        }
        self.finish()
    }

    /// The end of a run. A run that goes on after its last step only does this, again: it comes to the same files.
    fn finish(mut self) -> Result<Summary> {
        let step = self.trainer.step_count();
        let validated = self.metrics.validation.last().is_some_and(|(last, _)| *last == step);
        if self.trainer.config().training.validate_every != Every::Never && !validated {
            self.validate()?;
        }
        self.save()?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(self.interrupted()?);
        }
        self.draw_samples()?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(self.interrupted()?);
        }
        Ok(Summary {
            folder: self.folder.root().to_path_buf(),
            model: self.folder.model(),
            samples: self.folder.sample("final"),
            steps: step,
            loss: self.metrics.training.last().map(|(_, loss)| *loss),
            validation_loss: self.metrics.validation.last().map(|(_, loss)| *loss),
            validation_accuracy: self.metrics.accuracy,
            seconds: self.progress.seconds,
        })
    }

    fn is_due(&self, every: Every) -> bool {
        every.is_due(self.trainer.step_count(), self.trainer.steps_per_epoch())
    }

    /// Whether `step` ends an epoch whose checkpoint is kept for good.
    fn is_milestone(&self, step: u64) -> bool {
        let steps = self.trainer.steps_per_epoch();
        step > 0
            && step.is_multiple_of(steps)
            && self.trainer.config().training.milestone_epochs.contains(&(step / steps))
    }

    /// Adds the time since the last call to the training's, if it was that.
    fn lap(&mut self, training: bool) {
        let seconds = std::mem::replace(&mut self.clock, Instant::now()).elapsed().as_secs_f64();
        if training {
            self.progress.seconds += seconds;
            self.progress.line.seconds += seconds;
            self.progress.epoch.seconds += seconds;
        }
    }

    /// Reads the losses of the steps since the last call, and refuses to go on with one that is no number.
    fn drain(&mut self) -> Result<()> {
        for metrics in self.trainer.drain_metrics()? {
            if !(metrics.loss.is_finite() && metrics.gradient_norm.is_finite()) {
                let rate = self.trainer.config().training.learning_rate;
                let kept = match self.saved {
                    Some(step) => format!("the checkpoint of step {step} is untouched"),
                    None => "nothing had been saved yet".into(),
                };
                return Err(Error::config(
                    format!("step {}", metrics.step),
                    format!(
                        "training diverged: loss {}, gradient norm {}; {kept}",
                        metrics.loss, metrics.gradient_norm
                    ),
                    format!(
                        "begin a new run with a lower training.learning_rate (it was {rate}), a longer \
                         training.warmup_steps or training.gradient_clip=1"
                    ),
                ));
            }
            self.gradient_norm = metrics.gradient_norm;
            for tally in [&mut self.progress.line, &mut self.progress.epoch] {
                tally.add(&metrics);
            }
            (self.observer)(&Event::Step { step: metrics.step, loss: metrics.loss });
        }
        self.drained = Instant::now();
        Ok(())
    }

    fn log(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let tally = std::mem::take(&mut self.progress.line);
        let images = tally.steps as f64 * self.trainer.images_per_step() as f64;
        let classifier = self.trainer.config().model.is_classifier();
        let means: Vec<f64> = tally.terms.iter().map(|sum| sum / tally.steps.max(1) as f64).collect();
        let names = self.trainer.loss_terms();
        let line = TrainingLine {
            step,
            epoch: self.epochs(),
            loss: tally.mean(),
            gradient_norm: self.gradient_norm,
            learning_rate: learning_rate(&self.trainer.config().training, step, self.trainer.total_steps()),
            images_per_second: images / tally.seconds.max(1e-9),
            seconds: self.progress.seconds,
            accuracy: if classifier { means.first().copied() } else { None },
            terms: if classifier { LossTerms::default() } else { LossTerms { names, means } },
        };
        let scalars = [
            ("train/loss", line.loss),
            ("train/gradient_norm", line.gradient_norm),
            ("train/learning_rate", line.learning_rate),
            ("train/images_per_second", line.images_per_second),
        ];
        let accuracy = line.accuracy.map(|accuracy| ("train/accuracy", accuracy));
        let mut scalars = scalars.iter().chain(&accuracy);
        let mut logged = scalars.try_for_each(|(tag, value)| self.events.scalar(tag, step, *value));
        for (name, mean) in line.terms.iter() {
            logged = logged.and_then(|()| self.events.scalar(&format!("train/loss/{name}"), step, mean));
        }
        logged.and_then(|()| self.metrics.log(&line)).map_err(|error| self.unsaved(error))?;
        (self.observer)(&Event::Logged(line));
        Ok(())
    }

    /// Passes over the training images, to four places.
    fn epochs(&self) -> f64 {
        let epochs = self.trainer.step_count() as f64 / self.trainer.steps_per_epoch() as f64;
        (epochs * 1e4).round() / 1e4
    }

    fn validate(&mut self) -> Result<()> {
        (self.observer)(&Event::Busy("validates"));
        let Some(found) = self.trainer.validate()? else { return Ok(()) };
        let (step, validation_loss) = (self.trainer.step_count(), found.loss);
        let line = ValidationLine { step, epoch: self.epochs(), validation_loss, validation_accuracy: found.accuracy };
        let best = self.progress.best.is_none_or(|(lowest, _)| validation_loss < lowest);
        if best {
            self.progress.best = Some((validation_loss, step));
            let path = self.folder.best();
            self.trainer.save_model(&path, &self.progress.classes).map_err(|error| self.unsaved(error))?;
        }
        let mut logged = self.events.scalar("validation/loss", step, validation_loss);
        if let Some(accuracy) = found.accuracy {
            logged = logged.and_then(|()| self.events.scalar("validation/accuracy", step, accuracy));
        }
        logged.and_then(|()| self.metrics.log_validation(&line)).map_err(|error| self.unsaved(error))?;
        (self.observer)(&Event::Validated { line, best });
        Ok(())
    }

    /// Checkpoint and model, then what need not be kept any more is removed.
    fn save(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let path = self.folder.checkpoint(step);
        if self.saved != Some(step) || !path.exists() {
            let synced = self.metrics.sync().and_then(|()| self.events.sync());
            let written = synced.and_then(|()| self.trainer.save_checkpoint(&path, &self.progress));
            written.map_err(|error| self.unsaved(error))?;
            self.saved = Some(step);
        }
        let model = self.folder.model();
        self.trainer.save_model(&model, &self.progress.classes).map_err(|error| self.unsaved(error))?;
        let best = self.progress.best.map(|(_, step)| step);
        self.folder.prune(self.trainer.config().training.keep_checkpoints, |step| {
            Some(step) == best || self.is_milestone(step)
        })?;
        (self.observer)(&Event::Wrote(path));
        Ok(())
    }

    /// What the disk refused, with what is safe and how to go on.
    fn unsaved(&self, error: Error) -> Error {
        let Error::Io { path, doing, source } = error else { return error };
        let kept = match self.saved {
            Some(step) => format!("all up to step {step} is saved"),
            None => "nothing had been saved yet".into(),
        };
        let message = format!("cannot {doing}: {source}; {kept}");
        let mend = format!("free some space, then run `engine train --resume {}`", self.folder.root().display());
        Error::file(path, message, mend)
    }

    /// Saves, and says how to go on.
    fn interrupted(&mut self) -> Result<Error> {
        self.save()?;
        self.draw_curve()?;
        let step = self.trainer.step_count();
        let folder = self.folder.root().display();
        Ok(Error::Interrupted { message: format!("step {step} is saved; go on with `engine train --resume {folder}`") })
    }

    /// The sheets of samples and of their denoising, and the loss curve that belongs to them.
    fn draw_samples(&mut self) -> Result<()> {
        self.draw_curve()?;
        (self.observer)(&Event::Busy("draws samples"));
        let step = self.trainer.step_count();
        if self.trainer.config().model.is_classifier() {
            return self.draw_predictions();
        }
        let last = step == self.trainer.total_steps();
        let names = match last {
            true => ["final".to_string(), "timesteps".to_string()],
            false => [format!("step-{step}"), format!("step-{step}-denoising")],
        };
        let stop = self.stop.clone();
        let titles = ["samples", "denoising"].map(|what| self.heading(what));
        let go_on = || !stop.load(Ordering::Relaxed);
        let Some(sheets) = pictures::sheets(&self.trainer, &self.progress.classes, titles, go_on)? else {
            return Ok(());
        };
        let [samples, denoising] = names.map(|name| self.folder.sample(&name));
        // The samples last and the event before its picture: a sheet of samples that is there is not drawn again.
        for (tag, path, sheet) in [("denoising", denoising, &sheets.denoising), ("samples", samples, &sheets.samples)] {
            self.events.image(tag, step, sheet).map_err(|error| self.unsaved(error))?;
            write_png(&path, sheet, &self.words())?;
            (self.observer)(&Event::Wrote(path));
        }
        Ok(())
    }

    /// Held-out images with what a classifier takes them for.
    fn draw_predictions(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let title = format!("{}: predictions after step {step} (in brackets what it is)", self.title);
        if let Some(sheet) = predictions::sheet(&self.trainer, &self.progress.classes, title)? {
            self.events.image("predictions", step, &sheet).map_err(|error| self.unsaved(error))?;
            let path = self.folder.sample("final");
            write_png(&path, &sheet, &self.words())?;
            (self.observer)(&Event::Wrote(path));
        }
        Ok(())
    }

    /// The weights of each tensor, for TensorBoard.
    fn draw_histograms(&mut self) -> Result<()> {
        let step = self.trainer.step_count();
        let parameters = self.trainer.parameters().clone();
        let flat = parameters.download()?;
        for spec in parameters.specs() {
            let values = &flat[spec.offset..][..spec.shape.len()];
            let tag = format!("weights/{}", spec.name);
            self.events.histogram(&tag, step, values).map_err(|error| self.unsaved(error))?;
        }
        Ok(())
    }

    fn draw_curve(&mut self) -> Result<()> {
        let epochs = self.trainer.step_count() as f64 / self.trainer.steps_per_epoch() as f64;
        let total_seconds = self.progress.seconds;
        let seconds_per_epoch = (epochs > 0.0).then(|| total_seconds / epochs);
        loss_curve(
            self.folder.plot("loss"),
            &LossCurve {
                title: &self.title,
                training: &self.metrics.training,
                validation: &self.metrics.validation,
                steps_per_epoch: Some(self.trainer.steps_per_epoch() as f64),
                timing: (total_seconds > 0.0).then_some(Timing { seconds_per_epoch, total_seconds }),
            },
        )
    }

    fn heading(&self, what: &str) -> String {
        let sampling = &self.trainer.config().sampling;
        let (step, sampler, steps) = (self.trainer.step_count(), sampling.sampler, sampling.num_steps);
        format!(
            "{}: {what} after step {step} ({sampler}, {steps} steps, guidance {})",
            self.title,
            sampling.describe_guidance()
        )
    }

    /// What travels inside a picture.
    fn words(&self) -> [(&'static str, &'static str); 1] {
        [("Software", concat!("engine ", env!("CARGO_PKG_VERSION")))]
    }
}

/// Applies a request's own length.
fn set_length(request: &TrainRequest, config: &mut Config) -> Result<()> {
    let training = &mut config.training;
    match (request.steps, request.epochs) {
        (Some(steps), None) => (training.num_steps, training.num_epochs) = (Some(steps), None),
        (None, Some(epochs)) => (training.num_steps, training.num_epochs) = (None, Some(epochs)),
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Err(Error::config("--epochs", "the length is given in steps already", "give one of the two"));
        }
    }
    Ok(())
}

/// Opens the device, plans the run, tells whether it fits, and builds the trainer.
fn prepare(
    request: &TrainRequest,
    config: &Config,
    dataset: &Dataset,
    observer: &mut (dyn FnMut(&Event) + Send),
) -> Result<(Trainer, Start)> {
    let chosen = request.device.open()?;
    let device = chosen.accelerator.map_or(Device::Cpu, Device::Accelerator);
    let sizes =
        DataSizes { training: dataset.split_len(Split::Train), validation: dataset.split_len(Split::Validation) };
    let plan = Trainer::plan(config, sizes)?;
    let memory = Memory::of(&plan, &device);
    match (memory.check(&chosen.note, config.training.batch_size), &device) {
        (Ok(()), _) => {}
        // The operating system may still find room, by swapping.
        (Err(error), Device::Cpu) => observer(&Event::Warning(error.to_string())),
        (Err(error), _) => return Err(error),
    }
    let start = Start {
        name: request.name.clone(),
        folder: Default::default(),
        config: config.clone(),
        parameters: plan.parameters().count(),
        data: format!(
            "{}: {} training and {} validation images {}x{}x{}, {} classes",
            dataset.path().map_or_else(|| format!("{} (built in)", dataset.name()), |path| path.display().to_string()),
            sizes.training,
            sizes.validation,
            dataset.height(),
            dataset.width(),
            dataset.channels(),
            dataset.class_names().len()
        ),
        device: chosen.note,
        memory,
        steps: plan.total_steps(),
        steps_per_epoch: plan.steps_per_epoch(),
        from: 0,
    };
    drop(plan);
    Ok((Trainer::new(config, dataset, device)?, start))
}
