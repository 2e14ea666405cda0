//! Features of pictures: options and progress, shared by `engine eval` and `engine compare`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::Value;

use super::bar::{Bar, shown};
use super::machine::Machine;
use super::train_data::is_data_set;
use crate::cluster::Collective;
use crate::config::DataConfig;
use crate::data::{Colour, Dataset, ImportOptions, ResolveOptions, import_once, resolve};
use crate::diffusion::SamplingConfig;
use crate::error::{Error, Result};
use crate::eval::evaluation::{
    Asking, Drawn, Draws, FeatureSet, Measured, MetricKind, Nearest, Reference, class_places, drawn, measure,
};
use crate::eval::{Extractor, Gallery, Rule, data_of, metrics};
use crate::model_file::{ModelFile, ModelInfo};
use crate::models::inception::InceptionWeights;
use crate::pipeline::{Model, even_batch};
use crate::tensor::{Context, DType};

/// The extractor and its options.
#[derive(Clone, Debug, Args)]
pub(super) struct FeatureOptions {
    /// The tool whose resize, scaling and moments to use
    #[arg(long, value_enum, default_value_t)]
    pub rule: Rule,
    /// InceptionV3's file [default: weights/pt_inception-2015-12-05-6726825d.pth, written by `engine fetch inception`]
    #[arg(long, value_name = "FILE")]
    pub inception: Option<PathBuf>,
    /// Another network for the features; the distance is named after it: a classifier trained with the engine, efficientnet-lite0
    /// (`engine fetch efficientnet-lite0`) or its .pth
    #[arg(long, value_name = "FILE|RUN|NAME", conflicts_with = "inception")]
    pub extractor: Option<PathBuf>,
    /// Pictures whose features are extracted together
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub feature_batch: usize,
    /// Number of reference images [default: all]
    #[arg(long, value_name = "N")]
    pub reference_count: Option<usize>,
    /// Number of sample halves for standard errors; 0: none
    #[arg(long, value_name = "N", default_value_t = metrics::DRAWS)]
    pub draws: usize,
    /// The cache folder for samples and features [default: the folder `evaluation` of --data-dir]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

impl FeatureOptions {
    /// The network.
    ///
    /// # Errors
    /// Those of [`Extractor::find`] and [`Extractor::open`].
    pub fn extractor(&self, machine: &Machine) -> Result<Extractor> {
        if let Some(path) = &self.extractor {
            return self.opened(machine, path, "extractor");
        }
        let path = match &self.inception {
            Some(path) => path.clone(),
            None => Extractor::find(Path::new("inception"), "inception")?,
        };
        let weights = InceptionWeights::open(path)?;
        Extractor::inception(&Context::new(machine.device.clone()), &weights, self.rule, self.feature_batch, DType::F32)
    }

    /// The network given as `field`.
    ///
    /// # Errors
    /// As [`FeatureOptions::extractor`].
    pub fn opened(&self, machine: &Machine, given: &Path, field: &str) -> Result<Extractor> {
        let path = Extractor::find(given, field)?;
        Extractor::open(&Context::new(machine.device.clone()), &path, self.rule, self.feature_batch)
    }

    /// The requested features, without classes.
    pub fn asking<'a>(&self, metrics: &'a [MetricKind], extractor: &Extractor, seed: u64) -> Asking<'a> {
        let (distance, rule) = (extractor.distance_name(), extractor.rule());
        Asking { metrics, distance, draws: self.draws, seed, rule, classes: None }
    }
}

/// Refuses to count the classes of samples by a classifier that does not know them.
///
/// # Errors
/// [`Error::Config`] at `option`.
pub(super) fn check_classes(of_samples: &[String], classifier: &Extractor, option: &str) -> Result<()> {
    let refused = |why| {
        let message = format!("class accuracy needs a classifier of the samples' classes: {why}");
        Error::config(option, message, "give another classifier, or leave accuracy out of --metrics")
    };
    class_places(of_samples, classifier.class_names()).map(|_| ()).map_err(refused)
}

/// The network as text: its name, the first digits of its hash, the rule.
pub(super) fn network(extractor: &Extractor) -> String {
    let rule = extractor.rule().map(|rule| format!(", rule {}", rule.name())).unwrap_or_default();
    format!("{} ({}…{rule})", extractor.name(), &extractor.hash()[..extractor.hash().len().min(8)])
}

/// The metrics of real held-out images for comparison: those of `kinds` for which there are enough images.
pub(super) fn of_floor(kinds: &[MetricKind], count: usize) -> Vec<MetricKind> {
    let has = |kind: &MetricKind| match kind {
        MetricKind::Fid | MetricKind::Kid => count >= 2,
        MetricKind::Is => count >= metrics::SPLITS,
        MetricKind::FidInfinity => count > 2 * metrics::SIZES + 1,
        MetricKind::Accuracy => false,
        _ => count > metrics::COVERAGE_NEIGHBOURS,
    };
    kinds.iter().copied().filter(has).collect()
}

/// The cache folder, and whether to report progress.
pub(super) struct Work {
    pub cache: PathBuf,
    pub quiet: bool,
    /// The source of samples.
    pub team: Arc<dyn Collective>,
}

impl Work {
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    fn bar(&self, what: &str, unit: &str) -> Bar {
        let bar = Bar::of(unit, self.quiet);
        bar.begin(what);
        bar
    }

    /// Features of the first pictures of a gallery. Without a terminal long work is told every half minute.
    pub fn features(
        &self,
        gallery: &Gallery,
        of: &Value,
        count: usize,
        extractor: &mut Extractor,
        what: &str,
    ) -> Result<FeatureSet> {
        let bar = self.bar(what, "pictures");
        // Measured from the end of the first batch, which includes the preparation.
        let (mut first, mut told) = (None, Instant::now());
        let set = FeatureSet::extracted(gallery, of, count, extractor, &self.cache, &mut |done, all| {
            first.get_or_insert_with(|| (done, Instant::now()));
            bar.at(done, all);
            if bar.is_hidden() && told.elapsed().as_secs() >= 30 {
                told = Instant::now();
                self.note(&format!("{what}: {done} of {all} pictures"));
            }
            Ok(())
        });
        drop(bar);
        if let Some((from, started)) = first.filter(|(from, _)| *from < count) {
            let seconds = started.elapsed().as_secs_f64().max(1e-9);
            self.note(&format!("{what}: {:.1} pictures a second", (count - from) as f64 / seconds));
        }
        let set = set?;
        set.notes.iter().for_each(|note| self.note(&format!("note: {note}")));
        Ok(set)
    }

    /// Samples of a model, for the job of this index if other processes draw too.
    pub fn drawn(
        &self,
        model: &Model,
        sampling: &SamplingConfig,
        seed: u64,
        (count, batch): (usize, Option<usize>),
        job: usize,
    ) -> Result<Drawn> {
        let each = count.div_ceil(self.team.ranks());
        let batch = batch.unwrap_or_else(|| even_batch(model.context().device(), each));
        let bar = self.bar("samples", "images");
        let (draws, team) = (Draws { model, sampling, seed, batch }, (self.team.as_ref(), job));
        let drawn = drawn(draws, count, &self.cache, team, &mut |done, all| {
            bar.at(done, all);
            Ok(())
        });
        drop(bar);
        drawn
    }

    /// Metrics of features.
    pub fn measured(
        &self,
        set: &FeatureSet,
        reference: Option<&Reference>,
        asking: &Asking,
    ) -> Result<(Vec<Measured>, Option<Nearest>)> {
        let bar = self.bar("metrics", "steps");
        let found = measure(set, reference, asking, &mut |name, done, of| {
            bar.say(format!("{name} "));
            bar.at(done, of);
            Ok(())
        });
        drop(bar);
        found
    }
}

/// The data set with this name, unchanged; else the model's, split as for its training; None without both.
///
/// # Errors
/// Those of the model's file and of [`data_of`].
pub(super) fn data_set(
    name: Option<&str>,
    model: Option<&Path>,
    data_dir: &Path,
    quiet: bool,
) -> Result<Option<Dataset>> {
    let info = model.map(|path| ModelFile::open(path).map(|file| file.info().clone())).transpose()?;
    if let Some(name) = name {
        let usual = DataConfig::default();
        let config = info.as_ref().map_or(&usual, |info| &info.config.data);
        let (shapes_seed, shapes_count) = (config.shapes_seed, config.shapes_count);
        let path = Path::new(name);
        if path.exists() && (path.is_dir() || !is_data_set(path)) {
            return imported(path, info.as_ref(), data_dir, quiet).map(Some);
        }
        let options = ResolveOptions { data_dir, shapes_seed, shapes_count, progress: shown(quiet), trains: false };
        return resolve(name, Path::new(name).exists().then_some(name), &options).map(Some);
    }
    let Some(info) = info else { return Ok(None) };
    let config = &info.config.data;
    let set = data_of(&info, None, "data", data_dir, &shown(quiet))?;
    set.arranged(&config.classes, config.validation_fraction, config.split_seed).map(Some)
}

/// Pictures as a data set, imported once as for training: in the size and the colours of the model, if there is one.
fn imported(path: &Path, info: Option<&ModelInfo>, data_dir: &Path, quiet: bool) -> Result<Dataset> {
    let mut options = ImportOptions { progress: shown(quiet), ..ImportOptions::default() };
    if let Some(model) = info.map(|info| &info.config.model) {
        options.resize = Some(model.image_size());
        options.color = Some(if model.image_channels() == 1 { Colour::Grey } else { Colour::Rgb });
    }
    let file = match import_once(path, &options, data_dir) {
        // Arrays and published sets have their own size.
        Err(Error::Config { place, .. }) if place == "resize" => {
            import_once(path, &ImportOptions { resize: None, ..options }, data_dir)
        }
        imported => imported,
    }?
    .0;
    if !quiet {
        eprintln!("{} as {}", path.display(), file.display());
    }
    Dataset::open(file)
}
