//! One file per model.

mod config;
pub mod dit;
pub mod linear_transformer;
pub mod resnet;
pub mod unet;

pub use config::ModelConfig;

use std::rc::Rc;

use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::nn::Builder;

/// The network of a configuration and the parameters that it declares.
///
/// # Errors
/// [`crate::Error::Config`] for sizes that do not fit together.
pub fn build(config: &ModelConfig) -> Result<(Rc<dyn Denoiser>, Builder)> {
    let mut builder = Builder::default();
    let model: Rc<dyn Denoiser> = match config {
        ModelConfig::Dit(config) => Rc::new(dit::Dit::new(&mut builder, config)?),
        ModelConfig::Unet(config) => Rc::new(unet::Unet::new(&mut builder, config)?),
        ModelConfig::LinearTransformer(config) => {
            Rc::new(linear_transformer::LinearTransformer::new(&mut builder, config)?)
        }
    };
    Ok((model, builder))
}
