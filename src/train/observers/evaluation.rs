//! Evaluates a metric of samples during training: selects the best model, and stops early when there is no improvement.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{BestBy, Config, Every, Rule, SampleMetric, TrainingConfig};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::eval::evaluation::{Asking, FeatureSet, Measured, MetricKind, Reference, measure};
use crate::eval::{Better, Extractor, Gallery};
use crate::picture::Image;
use crate::tensor::Context;
use crate::train::follow::Sampling;
use crate::train::{Ending, EvaluationLine, Event, Observer, Place, Run, Trainer};

/// Told before the features of the reference, which may take long.
const EXTRACTS: &str =
    "extracts features of the training images for evaluations; training.evaluate_reference takes fewer";
const EXTRACTOR: &str = "training.evaluate_extractor";
/// Pictures whose features are extracted together.
const BATCH: usize = 32;

pub(super) struct Evaluate {
    every: Every,
    metric: SampleMetric,
    samples: usize,
    images: Option<usize>,
    keeps_best: bool,
    patience: Option<u64>,
    /// Features of the training images, available from the start of a session.
    reference: Option<Reference>,
    /// Their name, number and hash.
    reference_of: Value,
}

impl Evaluate {
    pub fn new(training: &TrainingConfig) -> Self {
        Self {
            every: training.evaluate_every,
            metric: training.evaluate_metric,
            samples: training.evaluate_samples,
            images: training.evaluate_reference,
            keeps_best: training.best_by == BestBy::Metric,
            patience: training.patience,
            reference: None,
            reference_of: Value::Null,
        }
    }

    /// Opens the network each time, because it would take memory from training in between. Processes share the pictures.
    fn extractor(&self, run: &Run) -> Result<Extractor> {
        Ok(network(run.trainer())?.shared_with(run.trainer().team(), 0))
    }

    /// Features of the training images, cached on disk for later runs.
    fn reference(&mut self, run: &mut Run) -> Result<Reference> {
        run.report(&Event::Busy(EXTRACTS));
        let Some(dataset) = run.trainer().dataset() else {
            return Err(Error::shape("evaluation", "a run without a data set"));
        };
        let gallery = Gallery::of_set(dataset.clone(), Split::Train, self.images)?;
        let (of, mut extractor) = (gallery.identity()?, self.extractor(run)?);
        self.reference_of = json!({ "name": gallery.name, "images": gallery.len(), "sha256": of["sha256"] });
        let mut go_on = |_, _| stopped(run);
        let set = FeatureSet::extracted(&gallery, &of, gallery.len(), &mut extractor, run.cache(), &mut go_on)?;
        Ok(Reference::Pictures(Box::new(set)))
    }

    /// None if the run must stop.
    fn found(&mut self, run: &mut Run) -> Result<Option<(Measured, Option<Rule>, Value)>> {
        let mut extractor = self.extractor(run)?;
        run.report(&Event::Busy("draws samples and evaluates them"));
        let Some(set) = drawn(run, &mut extractor, self.samples)? else { return Ok(None) };
        let (kind, key) = kind(self.metric);
        let config = run.trainer().config();
        let (seed, sampling) = (config.training.seed, &config.sampling);
        let settings = json!({
            "seed": seed, "sampler": sampling.sampler, "sampling_steps": sampling.num_steps, "guidance": sampling.guidance,
            "extractor": extractor.identity(), "reference": self.reference_of,
        });
        let (distance, rule) = (extractor.distance_name(), extractor.rule());
        let asking = Asking { metrics: &[kind], distance, draws: 0, seed, rule, classes: None };
        let (found, _) = measure(&set, self.reference.as_ref(), &asking, &mut |_, _, _| Ok(()))?;
        let found = found.into_iter().find(|measured| measured.key == key);
        found
            .map(|found| Some((found, extractor.rule(), settings)))
            .ok_or_else(|| Error::shape("evaluation", format!("no {key} was measured")))
    }

    fn is_exhausted(&self, run: &Run) -> bool {
        self.patience.is_some_and(|patience| run.progress.evaluations.worse >= patience)
    }
}

impl Observer for Evaluate {
    /// Repeats an evaluation that was interrupted, and ends a run again that had stopped early.
    fn begin(&mut self, run: &mut Run) -> Result<()> {
        if self.every == Every::Never {
            return Ok(());
        }
        if self.is_exhausted(run) {
            run.end_here();
            return Ok(());
        }
        self.reference = Some(self.reference(run)?);
        let place = run.place();
        if self.is_due(place) && !is_done(run) { self.act(run) } else { Ok(()) }
    }

    fn is_due(&self, place: Place) -> bool {
        place.is_due(self.every)
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        let Some((found, rule, settings)) = self.found(run)? else { return Ok(()) };
        let (step, epoch, value) = (run.place().step, run.epochs(), found.value);
        let evaluations = &mut run.progress.evaluations;
        let best = match (evaluations.best, found.better) {
            (None, _) => true,
            (Some((best, _)), Better::Lower) => value < best,
            (Some((best, _)), Better::Higher) => value > best,
        };
        if best {
            (evaluations.best, evaluations.worse) = (Some((value, step)), 0);
        } else {
            evaluations.worse += 1;
        }
        if best && self.keeps_best {
            run.save_model(&run.folder().best())?;
        }
        let line = EvaluationLine { step, epoch, metric: found.name, value, samples: self.samples, rule, settings };
        run.journal(|journal| journal.evaluation(&line))?;
        let last = self.is_exhausted(run);
        if last {
            run.end_here();
        }
        run.report(&Event::Evaluated { line, best, last });
        Ok(())
    }

    fn end(&mut self, run: &mut Run, ending: Ending) -> Result<()> {
        match ending {
            Ending::Finished if self.every != Every::Never && !is_done(run) => self.act(run),
            _ => Ok(()),
        }
    }
}

/// The network for the features.
pub(in crate::train) fn network(trainer: &Trainer) -> Result<Extractor> {
    let training = &trainer.config().training;
    let path = Extractor::find(Path::new(&training.evaluate_extractor), EXTRACTOR)?;
    Extractor::open(&Context::new(trainer.context().device().clone()), &path, training.evaluate_rule, BATCH)
}

/// Whether the current step's evaluation is in the log.
fn is_done(run: &Run) -> bool {
    run.curves().evaluation.last().is_some_and(|(last, _)| *last == run.place().step)
}

fn stopped(run: &Run) -> Result<()> {
    match run.is_stopping() {
        true => Err(Error::Interrupted { message: "the features that were extracted are kept".into() }),
        false => Ok(()),
    }
}

/// Features of the first `count` images of the run's seed, the classes in turn, as `engine eval` draws them. None if the run must
/// stop.
fn drawn(run: &Run, extractor: &mut Extractor, count: usize) -> Result<Option<FeatureSet>> {
    let trainer = run.trainer();
    let [height, width, channels] = trainer.config().model.image_shape();
    let mut sampling = Sampling::new(trainer, count)?;
    let (mut at, mut waiting, mut stopping) = (0, Vec::new(), false);
    let set = FeatureSet::held(extractor, |most| {
        while waiting.len() < most && at < count {
            stopping |= run.is_stopping();
            if stopping {
                return Ok(Vec::new());
            }
            let now = sampling.batch(trainer).min(count - at);
            let values = sampling.round(trainer, at, now)?;
            at += now;
            for image in values.chunks(height * width * channels) {
                waiting.push(Image::from_signed(width, height, channels, image)?);
            }
        }
        Ok(waiting.drain(..most.min(waiting.len())).collect())
    })?;
    Ok((!stopping).then_some(set))
}

/// The metric to compute, and its key in the result.
fn kind(metric: SampleMetric) -> (MetricKind, &'static str) {
    match metric {
        SampleMetric::Fid => (MetricKind::Fid, "fid_score"),
        SampleMetric::Kid => (MetricKind::Kid, "kid_mean"),
        SampleMetric::Is => (MetricKind::Is, "inception_score_mean"),
        SampleMetric::Precision => (MetricKind::PrecisionRecall, "precision"),
        SampleMetric::Recall => (MetricKind::PrecisionRecall, "recall"),
        SampleMetric::Density => (MetricKind::DensityCoverage, "density"),
        SampleMetric::Coverage => (MetricKind::DensityCoverage, "coverage"),
    }
}

/// Device bytes of the network during an evaluation; 0 for a run without evaluations.
///
/// # Errors
/// As [`find_extractor`]; those of opening a classifier.
pub(in crate::train) fn network_bytes(config: &Config) -> Result<usize> {
    match config.training.evaluate_every {
        Every::Never => Ok(0),
        _ => Extractor::bytes_of(Path::new(&config.training.evaluate_extractor), EXTRACTOR, BATCH),
    }
}

/// Makes the path of the network's file in the configuration absolute, if the run evaluates.
///
/// # Errors
/// [`Error::Config`] for a missing file.
pub(in crate::train) fn find_extractor(config: &mut Config) -> Result<()> {
    if config.training.evaluate_every == Every::Never {
        return Ok(());
    }
    let path = Extractor::find(Path::new(&config.training.evaluate_extractor), EXTRACTOR)?;
    let path = std::path::absolute(&path).map_err(Error::io(&path, "find"))?;
    config.training.evaluate_extractor = path
        .into_os_string()
        .into_string()
        .map_err(|path| Error::config(EXTRACTOR, format!("{} is not UTF-8", path.display()), "rename the file"))?;
    Ok(())
}
