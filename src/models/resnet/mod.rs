//! Residual networks (He et al. 2016, *Deep Residual Learning for Image Recognition*) with torchvision's names and numerics.
//!
//! Images come in [-1, 1] and are brought to what torchvision's weights expect: (pixel / 255 − mean) / deviation by
//! ImageNet's constants; grey images by those of grey. Then, with BN a batch norm:
//!
//! ```text
//! x = ReLU(BN(conv(x)))                                    the stem; ImageNet's ends in a max-pool
//! x = ReLU(BN(conv(ReLU(BN(conv(x))))) + x)                each block, x by a 1x1 convolution and BN where its shape changes
//! y = fc(mean of all pixels of x)
//! ```
//!
//! Names are torchvision's `conv1.weight`, `bn1.running_mean`, `layer2.0.downsample.0.weight` and so on; convolutions' weights are
//! stored `[out, k, k, in]`, where torchvision has `[out, in, k, k]`: [`torchvision`] brings them over.

mod config;
pub mod torchvision;

pub use config::{ResnetConfig, Stem};

use crate::error::{Error, Result};
use crate::nn::{BatchNorm, Builder, ConstantId, Conv2d, Init, Linear, Moving, Scope};
use crate::ops::batch_norm::{self, batch_norm};
use crate::ops::conv2d::Geometry;
use crate::ops::elementwise::cast;
use crate::ops::linear::Activation;
use crate::ops::pool::{Window, global_average_pool, max_pool};
use crate::tape::Var;
use crate::tensor::DType;

/// Mean and deviation of ImageNet's red, green and blue, of values in [0, 1].
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// Of grey: the means of the three.
const GREY: (f64, f64) = (0.449, 0.226);

/// Images in [-1, 1] to ImageNet's mean and deviation, channel by channel.
struct Normalisation {
    mean: ConstantId,
    variance: ConstantId,
    one: ConstantId,
    zero: ConstantId,
}

impl Normalisation {
    fn new(builder: &mut Builder, channels: usize) -> Self {
        let (mean, deviation) = match channels {
            1 => (vec![GREY.0], vec![GREY.1]),
            _ => (IMAGENET.0.to_vec(), IMAGENET.1.to_vec()),
        };
        // Of values in [-1, 1], which are 2 · values in [0, 1] − 1.
        let mean = mean.iter().map(|mean| 2.0 * mean - 1.0).collect();
        let variance = deviation.iter().map(|deviation| 4.0 * deviation * deviation).collect();
        Self {
            mean: builder.constant([channels], mean),
            variance: builder.constant([channels], variance),
            one: builder.constant([channels], vec![1.0; channels]),
            zero: builder.constant([channels], vec![0.0; channels]),
        }
    }

    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let tensor = |id: ConstantId| s[id].tensor().clone();
        let running = batch_norm::Running { mean: tensor(self.mean), variance: tensor(self.variance) };
        let norm = batch_norm::BatchNorm {
            statistics: batch_norm::Statistics::Running,
            epsilon: 0.0,
            ..batch_norm::BatchNorm::default()
        };
        batch_norm(s, x, None, &s[self.one], &s[self.zero], &running, norm)
    }
}

/// Two 3x3 convolutions, the first of them with the block's stride.
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    downsample: Option<(Conv2d, BatchNorm)>,
    stride: usize,
}

impl BasicBlock {
    fn new(builder: &mut Builder, name: &str, channels: usize, out: usize, stride: usize, moving: Moving) -> Self {
        let part = |part: &str| format!("{name}.{part}");
        Self {
            conv1: conv(builder, &part("conv1"), channels, out, 3),
            bn1: BatchNorm::new(builder, &part("bn1"), out, moving),
            conv2: conv(builder, &part("conv2"), out, out, 3),
            bn2: BatchNorm::new(builder, &part("bn2"), out, moving),
            downsample: (stride > 1 || channels != out).then(|| {
                let projection = conv(builder, &part("downsample.0"), channels, out, 1);
                (projection, BatchNorm::new(builder, &part("downsample.1"), out, moving))
            }),
            stride,
        }
    }

    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let strided = |pad_before| Geometry { stride: self.stride, pad_before, resize: None };
        let mut h = self.conv1.forward(s, x, strided(1), None, None)?;
        h = self.bn1.forward(s, &h, None, true)?;
        h = self.conv2.forward(s, &h, Geometry::same(3), None, None)?;
        let residual = match &self.downsample {
            Some((projection, norm)) => {
                let projected = projection.forward(s, x, strided(0), None, None)?;
                norm.forward(s, &projected, None, false)?
            }
            None => x.clone(),
        };
        self.bn2.forward(s, &h, Some(&residual), true)
    }
}

/// He et al. 2015, as torchvision draws them: normal, deviation √(2 / fan_out).
fn conv(builder: &mut Builder, name: &str, channels: usize, out: usize, kernel: usize) -> Conv2d {
    let deviation = (2.0 / (kernel * kernel * out) as f64).sqrt();
    Conv2d::without_bias(builder, name, channels, out, kernel, Init::Normal(deviation as f32))
}

/// A residual network up to one of its layers: what makes features of images.
pub struct Backbone {
    channels: usize,
    normalisation: Normalisation,
    stem: Stem,
    conv1: Conv2d,
    bn1: BatchNorm,
    layers: Vec<Vec<BasicBlock>>,
}

impl Backbone {
    /// Declares stem and first `layers` layers of the network of `config`, each name behind `prefix`. With [`Moving::Never`] its
    /// batch norms go by their running statistics in training too.
    pub fn new(builder: &mut Builder, prefix: &str, config: &ResnetConfig, layers: usize, moving: Moving) -> Self {
        let (first, kernel) = (config.widths[0], if config.stem == Stem::Imagenet { 7 } else { 3 });
        let normalisation = Normalisation::new(builder, config.image_channels);
        let conv1 = conv(builder, &format!("{prefix}conv1"), config.image_channels, first, kernel);
        let bn1 = BatchNorm::new(builder, &format!("{prefix}bn1"), first, moving);
        let mut channels = first;
        let layers = (0..layers).map(|layer| {
            let (out, blocks) = (config.widths[layer], config.blocks[layer]);
            let block = |number: usize| {
                let stride = if layer > 0 && number == 0 { 2 } else { 1 };
                let name = format!("{prefix}layer{}.{number}", layer + 1);
                BasicBlock::new(builder, &name, std::mem::replace(&mut channels, out), out, stride, moving)
            };
            (0..blocks).map(block).collect()
        });
        let layers = layers.collect();
        Self { channels: config.image_channels, normalisation, stem: config.stem, conv1, bn1, layers }
    }

    /// Images `[B, H, W, C]` in [-1, 1], f32, to features `[B, h, w, width]` in the dtype of activations.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another rank or number of channels.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        self.up_to(s, images, self.layers.len())
    }

    fn up_to(&self, s: &Scope, images: &Var, layers: usize) -> Result<Var> {
        if images.sizes().len() != 4 || images.shape().last() != self.channels {
            let found = format!("images {}; they are [B, H, W, {}]", images.shape(), self.channels);
            return Err(Error::shape("resnet", found));
        }
        let x = self.normalisation.forward(s, images)?;
        let x = cast(s, &x, s.precision())?;
        let geometry = match self.stem {
            Stem::Small => Geometry::same(3),
            Stem::Imagenet => Geometry { stride: 2, pad_before: 3, resize: None },
        };
        let mut x = self.conv1.forward(s, &x, geometry, None, None)?;
        x = self.bn1.forward(s, &x, None, true)?;
        if self.stem == Stem::Imagenet {
            x = max_pool(s, &x, Window { kernel: 3, stride: 2, padding: 1 })?;
        }
        for block in self.layers[..layers].iter().flatten() {
            x = block.forward(s, &x)?;
        }
        Ok(x)
    }
}

/// A residual network that tells classes apart.
pub struct Resnet {
    config: ResnetConfig,
    backbone: Backbone,
    fc: Linear,
}

impl Resnet {
    /// Declares the network's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit together.
    pub fn new(builder: &mut Builder, config: &ResnetConfig) -> Result<Self> {
        config.validate()?;
        let layers = config.blocks.len();
        let backbone = Backbone::new(builder, "", config, layers, Moving::InTraining);
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
        [self.config.image_size, self.config.image_size, self.config.image_channels]
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

    /// Logits `[B, num_classes]`, f32, of images `[B, H, W, C]` in [-1, 1], f32. In a training step batch norms go by the batch and
    /// move their running statistics; else row b of the result depends on image b alone.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another size.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        let shape = self.image_shape();
        if images.sizes().len() != 4 || images.sizes()[1..] != shape {
            return Err(Error::shape("resnet", format!("images {} for a model of {shape:?}", images.shape())));
        }
        let features = self.backbone.forward(s, images)?;
        let pooled = global_average_pool(s, &features)?;
        let logits = self.fc.forward(s, &pooled, Activation::None, None)?;
        cast(s, &logits, DType::F32)
    }
}
