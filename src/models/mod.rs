//! One file per model.

mod config;
pub mod dit;
pub mod linear_transformer;
pub mod resnet;
pub mod resnet_dit;
pub mod unet;

pub use config::ModelConfig;

use std::rc::Rc;

use self::resnet::Resnet;

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::nn::Builder;

/// A network, by what it is for.
#[derive(Clone)]
pub enum Network {
    /// It takes noise away.
    Denoiser(Rc<dyn Denoiser>),
    /// It tells classes apart.
    Classifier(Rc<Resnet>),
}

impl Network {
    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        match self {
            Self::Denoiser(model) => model.image_shape(),
            Self::Classifier(model) => model.image_shape(),
        }
    }
}

/// The network of a configuration and the parameters that it declares.
///
/// # Errors
/// [`Error::Config`] for sizes that do not fit together.
pub fn network(config: &ModelConfig) -> Result<(Network, Builder)> {
    let mut builder = Builder::default();
    let network = match config {
        ModelConfig::Dit(config) => Network::Denoiser(Rc::new(dit::Dit::new(&mut builder, config)?)),
        ModelConfig::Unet(config) => Network::Denoiser(Rc::new(unet::Unet::new(&mut builder, config)?)),
        ModelConfig::LinearTransformer(config) => {
            Network::Denoiser(Rc::new(linear_transformer::LinearTransformer::new(&mut builder, config)?))
        }
        ModelConfig::ResnetDit(config) => Network::Denoiser(Rc::new(resnet_dit::ResnetDit::new(&mut builder, config)?)),
        ModelConfig::Resnet(config) => Network::Classifier(Rc::new(Resnet::new(&mut builder, config)?)),
    };
    Ok((network, builder))
}

/// As [`network`], of a configuration whose network is a denoiser.
///
/// # Errors
/// As [`network`], and [`Error::Config`] for a classifier.
pub fn build(config: &ModelConfig) -> Result<(Rc<dyn Denoiser>, Builder)> {
    match network(config)? {
        (Network::Denoiser(model), builder) => Ok((model, builder)),
        (Network::Classifier(_), _) => {
            let message = format!("{} is a classifier: it takes no noise away and draws nothing", config.kind());
            Err(Error::config("model.kind", message, "name a diffusion model"))
        }
    }
}
