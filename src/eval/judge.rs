//! Classification with a model of either kind.

use std::path::Path;

use serde_json::{Value, json};

use super::{Classification, Classifier, Confusion, ErrorSpec, Images, NetworkClassifier, check_labels};
use crate::error::Result;
use crate::model_file::{ClassifierModel, Digest, Loaded, ModelInfo};
use crate::models::Network;
use crate::pipeline::Model;

/// A model that classifies: by its denoising errors, or because it was trained as a classifier.
pub enum Judge {
    /// A diffusion model.
    Diffusion(Model),
    /// A classifier.
    Network(ClassifierModel),
}

/// How a diffusion model is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Levels, draws, seed.
    pub spec: ErrorSpec,
    /// The noise levels' diffusion times.
    pub times: Vec<f64>,
    /// The levels' weights.
    pub weights: Vec<f64>,
}

/// A judge that is ready to classify into some classes.
pub struct PlannedJudge {
    asks: Asks,
    labels: Vec<usize>,
}

enum Asks {
    Diffusion(Box<Classifier>, ErrorSpec),
    Network(Box<NetworkClassifier>),
}

impl Judge {
    /// A model of the kind in its file.
    ///
    /// # Errors
    /// As [`Loaded::into_kind`].
    pub fn new(loaded: Loaded<Network>) -> Result<Self> {
        match loaded.network {
            Network::Denoiser(_) => loaded.into_kind().map(Self::Diffusion),
            Network::Classifier(_) => loaded.into_kind().map(Self::Network),
        }
    }

    /// Its file's metadata.
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Diffusion(model) => &model.info,
            Self::Network(model) => &model.info,
        }
    }

    /// Its source.
    pub fn path(&self) -> &Path {
        match self {
            Self::Diffusion(model) => &model.path,
            Self::Network(model) => &model.path,
        }
    }

    /// The name of activations' precision, as [`Parameters::precision_name`](crate::nn::Parameters::precision_name).
    pub fn precision_name(&self) -> &'static str {
        match self {
            Self::Diffusion(model) => model.parameters.precision_name(),
            Self::Network(model) => model.parameters.precision_name(),
        }
    }

    /// The classes of its file.
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Diffusion(model) => &model.digest,
            Self::Network(model) => &model.digest,
        }
    }

    /// Plans the classification into `labels`. A classifier uses only the batch of `spec`, because it takes no noise.
    ///
    /// # Errors
    /// Those of [`Classifier::new`], and of [`check_labels`] and [`NetworkClassifier::new`].
    pub fn plan(&self, labels: &[usize], spec: ErrorSpec) -> Result<PlannedJudge> {
        let asks = match self {
            Self::Diffusion(model) => Asks::Diffusion(Box::new(Classifier::new(model, labels, spec)?), spec),
            Self::Network(model) => {
                check_labels(labels, &model.class_names())?;
                let (network, parameters) = (model.network.clone(), model.parameters.clone());
                Asks::Network(Box::new(NetworkClassifier::new(model.context(), network, parameters, spec.batch)?))
            }
        };
        Ok(PlannedJudge { asks, labels: labels.to_vec() })
    }
}

impl PlannedJudge {
    /// How a diffusion model is evaluated; None for a classifier.
    pub fn asked(&self) -> Option<Asked> {
        match &self.asks {
            Asks::Diffusion(classifier, spec) => {
                Some(Asked { spec: *spec, times: classifier.times(), weights: classifier.weights().to_vec() })
            }
            Asks::Network(_) => None,
        }
    }

    /// Classifies images `[N, H, W, C]` in [-1, 1] among the labels; `progress(done, total)` counts batches.
    ///
    /// # Errors
    /// Those of [`Classifier::classify`] and [`NetworkClassifier::classify`].
    pub fn classify(&mut self, images: &[f32], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Classification>> {
        match &mut self.asks {
            Asks::Diffusion(classifier, _) => classifier.classify(images, progress),
            Asks::Network(classifier) => {
                let found = classifier.classify(images, progress)?;
                Ok(found.iter().map(|found| found.among(&self.labels)).collect())
            }
        }
    }
}

/// The results for some images.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdicts {
    /// The names of the classes.
    pub classes: Vec<String>,
    /// The images.
    pub images: Images,
    /// The prediction for each.
    pub found: Vec<Classification>,
    /// How a diffusion model was evaluated.
    pub asked: Option<Asked>,
    /// The confusion matrix, if the true classes are known.
    pub confusion: Option<Confusion>,
}

impl Verdicts {
    /// Counts the results `found`.
    pub fn new(classes: Vec<String>, images: Images, found: Vec<Classification>, asked: Option<Asked>) -> Self {
        let confusion = images.truth.as_ref().map(|truth| {
            let mut confusion = Confusion::new(classes.len());
            truth.iter().zip(&found).for_each(|(truth, found)| confusion.add(*truth, found.prediction));
            confusion
        });
        Self { classes, images, found, asked, confusion }
    }

    /// All results, for a file. Values that vary between runs, such as times, are not included.
    pub fn json(&self, judge: &Judge) -> Value {
        let (classes, given, asked) = (&self.classes, &self.images, self.asked.as_ref());
        let images: Vec<_> = (given.names.iter().zip(&self.found).enumerate())
            .map(|(k, (name, found))| {
                json!({
                    "image": name,
                    "label": given.truth.as_ref().map(|truth| &classes[truth[k]]),
                    "prediction": classes[found.prediction],
                    "probabilities": found.probabilities,
                    // For a classifier: its negated logits.
                    "errors": asked.map(|_| &found.errors),
                    "logits": asked.is_none().then(|| found.errors.iter().map(|error| -error).collect::<Vec<f64>>()),
                })
            })
            .collect();
        let confusion = self.confusion.as_ref();
        json!({
            "accuracy": confusion.map(Confusion::accuracy),
            "interval": confusion.map(Confusion::interval),
            "mean_class_accuracy": confusion.map(Confusion::mean_class_accuracy),
            "confusion": confusion.map(Confusion::counts),
            "classes": classes,
            "settings": {
                "model": judge.path().display().to_string(),
                "model_sha256": judge.digest().sha256,
                "weights": judge.info().weights,
                "step": judge.info().step,
                "data": given.data.as_ref().map(|(name, _)| name),
                "split": given.data.as_ref().map(|(_, split)| split),
                "count": given.names.len(),
                "levels": asked.map(|asked| asked.spec.levels),
                "draws": asked.map(|asked| asked.spec.draws),
                "seed": asked.map(|asked| asked.spec.seed),
                "times": asked.map(|asked| &asked.times),
                "level_weights": asked.map(|asked| &asked.weights),
            },
            "images": images,
        })
    }
}
