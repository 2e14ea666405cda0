//! Extractors by name or by file.

use std::path::{Path, PathBuf};

use super::{Extractor, Rule};
use crate::data::{WEIGHTS, WEIGHTS_DIR};
use crate::error::{Error, Result};
use crate::model_file::{ClassifierModel, ModelFile};
use crate::models::efficientnet::{self, EfficientNetWeights};
use crate::models::inception::{self, InceptionWeights};
use crate::tensor::{Context, DType, Device};
use crate::weights::WeightFile;

/// The published feature extractors, by their names for `engine fetch`.
pub const EXTRACTORS: [&str; 2] = ["inception", "efficientnet-lite0"];

impl Extractor {
    /// The path of the network called `given`: the downloaded file of one of [`EXTRACTORS`], else the path itself. `place` is the
    /// option or key that gave it.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing file, with how to get it.
    pub fn find(given: &Path, place: &str) -> Result<PathBuf> {
        if given.exists() {
            return Ok(given.to_path_buf());
        }
        let published = WEIGHTS
            .iter()
            .filter(|weights| EXTRACTORS.contains(&weights.name))
            .find(|weights| given == Path::new(weights.name));
        let Some(weights) = published else {
            let advice = format!("give a network's file, a run of a classifier, or one of {}", EXTRACTORS.join(", "));
            return Err(Error::config(place, format!("{} is not there", given.display()), advice));
        };
        let path = Path::new(WEIGHTS_DIR).join(weights.file.name);
        if path.exists() {
            return Ok(path);
        }
        let message = format!("{} is not there: {}", path.display(), weights.title);
        let advice = format!("run `engine fetch {}`, or give a network's file or a run of a classifier", weights.name);
        Err(Error::config(place, message, advice))
    }

    /// One of [`EXTRACTORS`] in shape-only mode: planned, nothing allocated.
    ///
    /// # Errors
    /// [`Error::Config`] for another name, or a batch of 0.
    pub fn of_shapes(name: &str, batch: usize, precision: DType) -> Result<Self> {
        let context = Context::shape_only();
        match name {
            "inception" => {
                let (network, parameters) = inception::declared(&context, precision)?;
                Self::of_inception(&context, (network, parameters), "", Rule::default(), batch)
            }
            "efficientnet-lite0" => {
                let (network, parameters) = efficientnet::declared(&context, precision)?;
                Self::of_efficientnet(&context, (network, parameters), "", batch)
            }
            _ => {
                let advice = format!("use one of {}", EXTRACTORS.join(", "));
                Err(Error::config("extractor", format!("no published network is called {name:?}"), advice))
            }
        }
    }

    /// The device bytes of the network called `given`, as [`Extractor::find`] takes it: weights, pictures, features and arena at
    /// `batch` pictures in f32. The file of one of [`EXTRACTORS`] need not exist yet.
    ///
    /// # Errors
    /// Those of [`Extractor::find`] for another file, and of opening a classifier.
    pub fn bytes_of(given: &Path, place: &str, batch: usize) -> Result<usize> {
        if let Some(name) = EXTRACTORS.iter().find(|name| given == Path::new(name)) {
            return Ok(Self::of_shapes(name, batch, DType::F32)?.bytes());
        }
        let path = Self::find(given, place)?;
        if ModelFile::open(&path).is_ok() {
            return Ok(Self::open(&Context::new(Device::Cpu), &path, Rule::default(), batch)?.bytes());
        }
        let is_lite = !path.is_dir() && EfficientNetWeights::fits(&WeightFile::open(&path)?);
        let name = if is_lite { "efficientnet-lite0" } else { "inception" };
        Ok(Self::of_shapes(name, batch, DType::F32)?.bytes())
    }

    /// The network of a file: InceptionV3 of 2015 with `rule`, EfficientNet-lite0, or a classifier trained with the engine (a
    /// model file or a run folder); `batch` pictures at once, in f32.
    ///
    /// # Errors
    /// Those of reading the file; those of [`Extractor::inception`].
    pub fn open(context: &Context, path: &Path, rule: Rule, batch: usize) -> Result<Self> {
        let ours = match ModelFile::open(path) {
            Ok(file) => {
                let model: ClassifierModel = file.load(context, DType::F32, None)?;
                return Self::classifier(&model, batch);
            }
            Err(error) => error,
        };
        let weights = match path.is_dir() {
            true => return Err(ours),
            false => WeightFile::open(path)?,
        };
        if EfficientNetWeights::fits(&weights) {
            return Self::efficientnet(context, &EfficientNetWeights::open(path)?, batch, DType::F32);
        }
        match InceptionWeights::open(path) {
            Ok(weights) => Self::inception(context, &weights, rule, batch, DType::F32),
            // A damaged file of the engine is reported as such.
            Err(_) if path.extension().is_some_and(|ending| ending == "safetensors") => Err(ours),
            Err(error) => Err(error),
        }
    }
}
