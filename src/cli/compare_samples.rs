//! `engine compare --metrics`: FID and others of samples of each model, from the same reference.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::{Value, json};

use super::compare::CompareCommand;
use super::features::{Work, check_classes, data_set, network};
use super::machine::Machine;
use crate::cluster::Alone;
use crate::data::Split;
use crate::diffusion::SamplingConfig;
use crate::error::{Error, Result};
use crate::eval::evaluation::{Classes, Drawn, Measured, MetricKind, Reference, class_places, due_to_number};
use crate::eval::{Extractor, Gallery, Metric};
use crate::model_file::ModelFile;
use crate::pipeline::Model;
use crate::words::counted;

/// Samples below which a Fréchet distance is mostly bias.
const USUAL: usize = 10_000;

/// The extractor, reference and options for metrics of samples.
pub(super) struct SampleTask {
    extractor: RefCell<Extractor>,
    reference: Reference,
    /// The reference's name, number of images and hash.
    of: Value,
    work: Work,
}

impl SampleTask {
    /// The network, and its features of the data set's training images.
    pub fn new(asked: &CompareCommand, machine: &Machine) -> Result<Self> {
        let features = &asked.features;
        let cache = features.cache.clone().unwrap_or_else(|| asked.folder.data_dir.join("evaluation"));
        let work = Work { cache, quiet: asked.quiet, team: Arc::new(Alone::default()) };
        let mut extractor = features.extractor(machine)?;
        if asked.metrics.contains(&MetricKind::Accuracy) {
            for path in &asked.models {
                let classes = ModelFile::open(path)?.info().classes.clone();
                check_classes(&classes, &extractor, "--extractor")?;
            }
        }
        let model = asked.models.first().map(|path| path.as_path());
        let Some(set) = data_set(asked.data.as_deref(), model, &asked.folder.data_dir, asked.quiet)? else {
            return Err(Error::config("--data", "a metric needs a reference", "give a data set"));
        };
        let gallery = Gallery::of_set(set, Split::Train, features.reference_count)?;
        let of = gallery.identity()?;
        let set = work.features(&gallery, &of, gallery.len(), &mut extractor, "reference")?;
        let of = json!({ "name": gallery.name, "images": gallery.len(), "sha256": of["sha256"] });
        Ok(Self { extractor: RefCell::new(extractor), reference: Reference::Pictures(Box::new(set)), of, work })
    }

    /// The metrics of a model's samples.
    pub fn measured(&self, asked: &CompareCommand, model: &Model, sampling: &SamplingConfig) -> Result<Vec<Measured>> {
        let Drawn { gallery, of, .. } =
            self.work.drawn(model, sampling, asked.seed, (asked.num_samples, asked.batch), 0)?;
        let mut extractor = self.extractor.borrow_mut();
        let set = self.work.features(&gallery, &of, asked.num_samples, &mut extractor, "features")?;
        let mut asking = asked.features.asking(&asked.metrics, &extractor, asked.seed);
        let names = extractor.class_names();
        if let Ok(places) = class_places(&gallery.class_names, names) {
            let place = |index| gallery.label(index).and_then(|label| places.get(label).copied());
            let truth = (0..asked.num_samples).map(place).collect();
            asking.classes = Some(Classes { truth, names: names.to_vec(), logits: set.logits()? });
        }
        Ok(self.work.measured(&set, Some(&self.reference), &asking)?.0)
    }

    /// The number of samples of each model, extractor and reference.
    pub fn to_json(&self, count: usize) -> Value {
        json!({ "num_samples": count, "extractor": self.extractor.borrow().identity(), "reference": self.of })
    }

    /// Notes: how the metrics were computed, and a warning if there are few samples.
    pub fn notes(&self, count: usize, metrics: &[Vec<Measured>]) -> Vec<String> {
        let (name, images) = (self.of["name"].as_str().unwrap_or_default(), &self.of["images"]);
        let (network, samples) = (network(&self.extractor.borrow()), counted(count, "sample"));
        let mut notes =
            vec![format!("metrics of {samples} of each model, from {images} images of {name}, by {network}")];
        let distance = metrics.first().and_then(|all| all.iter().find(|measured| measured.key == "fid_score"));
        if let Some(distance) = distance.filter(|_| count < USUAL) {
            let (name, bias) = (&distance.name, due_to_number(distance));
            notes.push(format!("{count} samples are few for {name}{bias}: compare it only with others of {count}"));
        }
        notes
    }
}

/// Each metric over the models.
pub(super) fn joined(models: &[Vec<Measured>]) -> Vec<Metric> {
    let Some(first) = models.first() else { return Vec::new() };
    (first.iter().enumerate())
        .map(|(place, metric)| {
            let of = |told: &dyn Fn(&Measured) -> f64| models.iter().map(|all| told(&all[place])).collect::<Vec<f64>>();
            let known = models.iter().all(|all| all[place].error.is_some());
            let errors = known.then(|| of(&|measured| measured.error.unwrap_or_default()));
            Metric::of_values(metric.name.clone(), "", metric.better, of(&|measured| measured.value), errors)
        })
        .collect()
}
