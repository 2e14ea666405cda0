//! One file per model.

mod classifier;
mod config;
mod custom;
pub mod dit;
pub mod efficientnet;
mod folded;
pub mod inception;
mod limits;
pub mod linear_transformer;
mod normalisation;
pub mod resnet;
pub mod resnet_dit;
pub mod unet;

pub use classifier::Classifier;
pub use config::{Architecture, Interface, ModelConfig};
pub use custom::CustomConfig;

use std::rc::Rc;

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::nn::Builder;
use crate::tape::Var;

/// A network, by its purpose.
#[derive(Clone)]
pub enum Network {
    /// A denoiser.
    Denoiser(Rc<dyn Denoiser>),
    /// A classifier.
    Classifier(Rc<dyn Classifier>),
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

/// The network of a configuration and its declared parameters.
///
/// # Errors
/// [`Error::Config`] for inconsistent sizes, and for a network whose code is not part of the engine.
pub fn network(config: &ModelConfig) -> Result<(Network, Builder)> {
    let mut builder = Builder::default();
    let network = config.architecture().network(&mut builder)?;
    Ok((network, builder))
}

/// As [`network`], for a denoiser.
///
/// # Errors
/// As [`network`], and [`Error::Config`] for a classifier.
pub fn build(config: &ModelConfig) -> Result<(Rc<dyn Denoiser>, Builder)> {
    match network(config)? {
        (Network::Denoiser(model), builder) => Ok((model, builder)),
        (Network::Classifier(_), _) => {
            let message = format!("{} is a classifier: it does not denoise, so it cannot draw", config.kind());
            Err(Error::config("model.kind", message, "give a diffusion model"))
        }
    }
}

/// Refuses `images` that are not `[B, H, W, C]` with the `shape` `[H, W, C]` of a `model`.
fn check_images(model: &'static str, images: &Var, shape: [usize; 3]) -> Result<()> {
    match images.sizes() {
        [_, rest @ ..] if *rest == shape => Ok(()),
        _ => Err(Error::shape(model, format!("images {} for a model of {shape:?}", images.shape()))),
    }
}
