//! Networks read from model files, whatever they are for.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::model_file::open_model;
use super::{ArrayFile, CHECKPOINT_FORMAT, Digest, ModelInfo, Storage, Weights, pretrained, write_model};
use crate::error::{Error, Result};
use crate::models::{self, Network, resnet::Resnet};
use crate::nn::Parameters;
use crate::tensor::{Context, DType};

/// A classifier with its weights on a device.
pub struct ClassifierModel {
    /// The network.
    pub network: Rc<Resnet>,
    /// Its weights.
    pub parameters: Rc<Parameters>,
    /// What the file says.
    pub info: ModelInfo,
    /// Where it came from.
    pub path: PathBuf,
    /// Of the file that it came from.
    pub digest: Digest,
}

impl ClassifierModel {
    /// As [`Model::load`](super::Model::load), of a classifier.
    ///
    /// # Errors
    /// As [`Model::load`](super::Model::load), and [`Error::File`] for a diffusion model.
    pub fn load(path: impl AsRef<Path>, context: &Context, precision: DType) -> Result<Self> {
        let Loaded { network, parameters, info, path, digest } = Loaded::load(path, context, precision, None)?;
        match network {
            Network::Classifier(network) => Ok(Self { network, parameters, info, path, digest }),
            Network::Denoiser(_) => {
                let message = format!("it is a diffusion model ({}), no classifier", info.config.model.kind());
                Err(Error::file(path, message, "train one with `engine train --preset resnet18-cifar10`"))
            }
        }
    }
}

/// A network of either kind with its weights on a device.
pub struct Loaded {
    /// The network.
    pub network: Network,
    /// Its weights.
    pub parameters: Rc<Parameters>,
    /// What the file says.
    pub info: ModelInfo,
    /// Where it came from.
    pub path: PathBuf,
    /// Of the file that it came from.
    pub digest: Digest,
}

impl Loaded {
    /// As [`Model::load_weights`](super::Model::load_weights), whatever the network is for.
    ///
    /// # Errors
    /// As there.
    pub fn load(path: impl AsRef<Path>, context: &Context, precision: DType, weights: Option<Weights>) -> Result<Self> {
        Self::new(open_model(path.as_ref(), pretrained())?, context, precision, weights)
    }

    /// Writes the model file with weights rounded to `storage`.
    ///
    /// # Errors
    /// As [`write_arrays`](super::write_arrays).
    pub fn save_as(&self, path: impl AsRef<Path>, storage: Storage) -> Result<()> {
        write_model(path.as_ref(), &self.info, self.parameters.specs(), &self.parameters.download()?, storage)
    }

    pub(super) fn new(
        (path, file, mut info): (PathBuf, ArrayFile, ModelInfo),
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
    ) -> Result<Self> {
        let prefix = if file.format == CHECKPOINT_FORMAT {
            let weights = weights.unwrap_or(Weights::Ema);
            info.weights = weights.name().into();
            weights.prefix()
        } else if let Some(weights) = weights.filter(|weights| weights.name() != info.weights) {
            let message = format!("it holds the {} weights alone, not the {}", info.weights, weights.name());
            return Err(Error::file(path, message, "name a checkpoint, as in RUN/checkpoints/step-1000.safetensors"));
        } else {
            ""
        };
        // A damaged configuration may describe a network of any size: it is counted before there is room made for it.
        let (_, builder) = models::network(&info.config.model)?;
        let count = Parameters::new(&Context::shape_only(), builder, DType::F32)?.count();
        if count > file.len() / 2 {
            return Err(file.fault(format!("its configuration has {count} parameters, more than its bytes can hold")));
        }
        let (network, builder) = models::network(&info.config.model)?;
        let parameters = Parameters::new(context, builder, precision)?;
        let flat = if prefix.is_empty() {
            file.flat(parameters.specs(), parameters.flat_len(), prefix, true)?
        } else {
            // Of what is not trained a checkpoint has no average.
            let mut flat = file.flat(parameters.specs(), parameters.flat_len(), Weights::Raw.prefix(), false)?;
            let trained = file.flat(&parameters.trained_specs(), parameters.trained_len(), prefix, false)?;
            flat[..trained.len()].copy_from_slice(&trained);
            flat
        };
        parameters.set_flat(&flat)?;
        let digest = file.digest();
        Ok(Self { network, parameters: Rc::new(parameters), info, path, digest })
    }
}
