//! Residual networks (He et al. 2016, *Deep Residual Learning for Image Recognition*) with torchvision's names and numerics.
//!
//! Images in [-1, 1] are normalized as torchvision's weights expect: (pixel / 255 − mean) / deviation with ImageNet's constants,
//! or their means for grey images. Then, with BN a batch norm:
//!
//! ```text
//! x = ReLU(BN(conv(x)))                                    the stem; ImageNet's ends in a max-pool
//! x = ReLU(BN(conv(ReLU(BN(conv(x))))) + x)                each block, x by a 1x1 convolution and BN where its shape changes
//! y = fc(mean of all pixels of x)
//! ```
//!
//! Names are torchvision's `conv1.weight`, `bn1.running_mean`, `layer2.0.downsample.0.weight` and so on; convolution weights are
//! stored `[out, k, k, in]`, where torchvision has `[out, in, k, k]`: [`torchvision`] converts them.

mod backbone;
mod config;
pub mod torchvision;

pub use backbone::Backbone;
pub use config::{ResnetConfig, Stem};

use crate::error::{Error, Result};
use crate::models::{Architecture, check_images};
use crate::nn::{Builder, Init, Linear, RunningStatistics, Scope};
use crate::ops::elementwise::cast;
use crate::ops::pool::global_average_pool;
use crate::tape::Var;
use crate::tensor::DType;

/// A residual classifier.
pub struct Resnet {
    config: ResnetConfig,
    backbone: Backbone,
    fc: Linear,
}

impl Resnet {
    /// Declares the network's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for inconsistent sizes.
    pub fn new(builder: &mut Builder, config: &ResnetConfig) -> Result<Self> {
        config.validate()?;
        let layers = config.blocks.len();
        let backbone = Backbone::new(builder, "", config, layers, RunningStatistics::Track);
        let width = config.widths[layers - 1];
        let init = Init::Uniform((1.0 / width as f64).sqrt() as f32);
        let fc = Linear::with_init(builder, "fc", width, config.num_classes, init);
        Ok(Self { config: config.clone(), backbone, fc })
    }

    /// The configuration.
    pub fn config(&self) -> &ResnetConfig {
        &self.config
    }

    /// Height, width and channels of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        self.config.interface().image_shape()
    }

    /// The features after the first `layers` layers, as [`Backbone::forward`] gives them.
    ///
    /// # Errors
    /// [`Error::Shape`] for more layers than there are, and as [`Backbone::forward`].
    pub fn features(&self, s: &Scope, images: &Var, layers: usize) -> Result<Var> {
        if layers > self.config.blocks.len() {
            let found = format!("{layers} layers of a network that has {}", self.config.blocks.len());
            return Err(Error::shape("resnet", found));
        }
        self.backbone.up_to(s, images, layers)
    }

    /// Logits `[B, num_classes]`, f32, of images `[B, H, W, C]` in [-1, 1], f32. In a training step batch norms use batch
    /// statistics and update their running statistics; else row b of the result depends only on image b.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another size.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        check_images("resnet", images, self.image_shape())?;
        let [_, logits] = self.pooled(s, images)?;
        Ok(logits)
    }

    /// The features of the images, the last layer averaged over pixels `[B, width]`, and the logits; both f32.
    ///
    /// # Errors
    /// As [`Resnet::forward`].
    pub fn pooled(&self, s: &Scope, images: &Var) -> Result<[Var; 2]> {
        check_images("resnet", images, self.image_shape())?;
        let features = global_average_pool(s, &self.backbone.forward(s, images)?)?;
        let logits = self.fc.forward(s, &features)?;
        Ok([cast(s, &features, DType::F32)?, cast(s, &logits, DType::F32)?])
    }
}
