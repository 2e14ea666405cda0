//! Networks with their weights on a device, of any kind.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Digest, ModelFile, ModelInfo, Storage, Weights, write_model};
use crate::config::Config;
use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::models::{self, Classifier, Network};
use crate::nn::Parameters;
use crate::tensor::{Context, DType};

/// A network of kind `N` with its weights on a device: `Network` for any, `Rc<dyn Denoiser>` for diffusion models, `Rc<dyn
/// Classifier>` for classifiers.
pub struct Loaded<N> {
    /// The network.
    pub network: N,
    /// Its weights.
    pub parameters: Rc<Parameters>,
    /// The metadata of the file.
    pub info: ModelInfo,
    /// Its source: its file, or the name of a pretrained model.
    pub path: PathBuf,
    /// The identity of that file.
    pub digest: Digest,
}

/// A classifier with its weights on a device.
pub type ClassifierModel = Loaded<Rc<dyn Classifier>>;

/// A kind of network that a model file can be loaded as.
pub trait FromNetwork: Sized {
    /// The network, if it is of this kind; else the message and the advice for the user who gave its file. `kind` is the
    /// architecture's name.
    fn from_network(network: Network, kind: &str) -> Result<Self, (String, &'static str)>;
}

impl FromNetwork for Network {
    fn from_network(network: Network, _: &str) -> Result<Self, (String, &'static str)> {
        Ok(network)
    }
}

impl FromNetwork for Rc<dyn Denoiser> {
    fn from_network(network: Network, kind: &str) -> Result<Self, (String, &'static str)> {
        match network {
            Network::Denoiser(model) => Ok(model),
            Network::Classifier(_) => {
                let message = format!("it is a classifier ({kind}), which cannot draw");
                Err((message, "give a diffusion model; `engine classify` takes classifiers"))
            }
        }
    }
}

impl FromNetwork for Rc<dyn Classifier> {
    fn from_network(network: Network, kind: &str) -> Result<Self, (String, &'static str)> {
        match network {
            Network::Classifier(network) => Ok(network),
            Network::Denoiser(_) => {
                let message = format!("it is a diffusion model ({kind}), not a classifier");
                Err((message, "train one with `train(preset = resnet18-cifar10)`"))
            }
        }
    }
}

/// The error for a file at `path` with another kind of network.
pub(super) fn refused(path: &Path, (message, advice): (String, &'static str)) -> Error {
    Error::file(path, message, advice)
}

impl<N: FromNetwork> Loaded<N> {
    /// Opens and loads a file as [`ModelFile::open`]; from a checkpoint, the moving average.
    ///
    /// # Errors
    /// Those of [`ModelFile::open`] and [`ModelFile::load`].
    pub fn load(path: impl AsRef<Path>, context: &Context, precision: DType) -> Result<Self> {
        Self::load_weights(path, context, precision, None)
    }

    /// As [`Loaded::load`], with a choice of the weights: a checkpoint holds both, a model file one kind.
    ///
    /// # Errors
    /// As [`Loaded::load`], and [`Error::File`] if the file does not hold the chosen weights.
    pub fn load_weights(
        path: impl AsRef<Path>,
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
    ) -> Result<Self> {
        ModelFile::open(path)?.load(context, precision, weights)
    }

    /// The metadata of a file. To load it as well, open it once, as a [`ModelFile`].
    ///
    /// # Errors
    /// Those of [`ModelFile::open`].
    pub fn inspect(path: impl AsRef<Path>) -> Result<ModelInfo> {
        ModelFile::open(path).map(|file| file.info().clone())
    }

    /// A new, untrained network with weights initialized from `seed`: for tests, and to start from.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration without a valid network, or one of another kind.
    pub fn untrained(config: &Config, context: &Context, precision: DType, seed: u64) -> Result<Self> {
        let (network, builder) = models::network(&config.model)?;
        let network = N::from_network(network, config.model.kind())
            .map_err(|(message, advice)| Error::config("model.kind", message, advice))?;
        let parameters = Parameters::new(context, builder, precision)?;
        parameters.initialise(seed)?;
        let info = ModelInfo { config: config.clone(), weights: "raw".into(), step: 0, epoch: 0, classes: Vec::new() };
        let (path, digest) = (PathBuf::new(), Digest::default());
        Ok(Self { network, parameters: Rc::new(parameters), info, path, digest })
    }
}

impl Loaded<Network> {
    /// Converts it to a network of one kind.
    ///
    /// # Errors
    /// [`Error::File`] for a network of another kind.
    pub fn into_kind<N: FromNetwork>(self) -> Result<Loaded<N>> {
        let Self { network, parameters, info, path, digest } = self;
        let network = N::from_network(network, info.config.model.kind()).map_err(|why| refused(&path, why))?;
        Ok(Loaded { network, parameters, info, path, digest })
    }
}

impl<N> Loaded<N> {
    /// The context of the weights.
    pub fn context(&self) -> &Context {
        self.parameters.master().context()
    }

    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        self.info.config.model.image_shape()
    }

    /// As [`ModelInfo::class_names`].
    pub fn class_names(&self) -> Vec<String> {
        self.info.class_names()
    }

    /// As [`ModelInfo::class_label`].
    ///
    /// # Errors
    /// As [`ModelInfo::class_label`].
    pub fn class_label(&self, text: &str) -> Result<usize> {
        self.info.class_label(text)
    }

    /// As [`ModelInfo::default_label`].
    ///
    /// # Errors
    /// As [`ModelInfo::default_label`].
    pub fn default_label(&self) -> Result<usize> {
        self.info.default_label()
    }

    /// Writes the model file with f32 weights.
    ///
    /// # Errors
    /// [`Error::Io`]; an existing file at `path` is then unchanged.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_as(path, Storage::F32)
    }

    /// Writes the model file with weights rounded to `storage`.
    ///
    /// # Errors
    /// As [`write_arrays`](super::write_arrays).
    pub fn save_as(&self, path: impl AsRef<Path>, storage: Storage) -> Result<()> {
        write_model(path.as_ref(), &self.info, self.parameters.specs(), &self.parameters.download()?, storage)
    }
}
