//! The feature part of a residual network: stem and layers.

use super::config::{ResnetConfig, Stem};
use crate::error::{Error, Result};
use crate::models::normalisation::Normalisation;
use crate::nn::{BatchNorm, Builder, Conv2d, Init, RunningStatistics, Scope};
use crate::ops::conv2d::Geometry;
use crate::ops::elementwise::cast;
use crate::ops::pool::{Window, max_pool};
use crate::tape::Var;

/// Mean and deviation of ImageNet's red, green and blue, for values in [0, 1].
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// For grey: the means of the three.
const GREY: (f64, f64) = (0.449, 0.226);

/// Normalizes images in [-1, 1] with ImageNet's mean and deviation, channel by channel.
fn normalisation(builder: &mut Builder, channels: usize) -> Normalisation {
    let (mean, deviation) = match channels {
        1 => (vec![GREY.0], vec![GREY.1]),
        _ => (IMAGENET.0.to_vec(), IMAGENET.1.to_vec()),
    };
    // For values in [-1, 1], which are 2 · values in [0, 1] − 1.
    let mean = mean.iter().map(|mean| 2.0 * mean - 1.0).collect();
    Normalisation::new(builder, mean, deviation.iter().map(|deviation| 4.0 * deviation * deviation).collect())
}

/// A convolution with torchvision's initialization (He et al. 2015): normal, deviation √(2 / fan_out).
fn conv(builder: &mut Builder, name: &str, channels: usize, out: usize, kernel: usize) -> Conv2d {
    let deviation = (2.0 / (kernel * kernel * out) as f64).sqrt();
    Conv2d::without_bias(builder, name, channels, out, kernel, Init::Normal(deviation as f32))
}

/// Two 3x3 convolutions, the first with the block's stride.
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    downsample: Option<(Conv2d, BatchNorm)>,
}

impl BasicBlock {
    fn new(
        builder: &mut Builder,
        name: &str,
        channels: usize,
        out: usize,
        stride: usize,
        moving: RunningStatistics,
    ) -> Self {
        let part = |part: &str| format!("{name}.{part}");
        let strided = |kernel| Geometry::same(kernel).strided(stride);
        Self {
            conv1: conv(builder, &part("conv1"), channels, out, 3).geometry(strided(3)),
            bn1: BatchNorm::new(builder, &part("bn1"), out, moving),
            conv2: conv(builder, &part("conv2"), out, out, 3),
            bn2: BatchNorm::new(builder, &part("bn2"), out, moving),
            downsample: (stride > 1 || channels != out).then(|| {
                let projection = conv(builder, &part("downsample.0"), channels, out, 1).geometry(strided(1));
                (projection, BatchNorm::new(builder, &part("downsample.1"), out, moving))
            }),
        }
    }

    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let mut h = self.conv1.forward(s, x)?;
        h = self.bn1.relu().forward(s, &h)?;
        h = self.conv2.forward(s, &h)?;
        let shortcut = match &self.downsample {
            Some((projection, norm)) => norm.forward(s, &projection.forward(s, x)?)?,
            None => x.clone(),
        };
        self.bn2.relu().residual(&shortcut).forward(s, &h)
    }
}

/// A residual network up to one of its layers.
pub struct Backbone {
    channels: usize,
    normalisation: Normalisation,
    conv1: Conv2d,
    bn1: BatchNorm,
    max_pool: Option<Window>,
    layers: Vec<Vec<BasicBlock>>,
}

impl Backbone {
    /// Declares stem and first `layers` layers of the network of `config`, with `prefix` before each name. With [`RunningStatistics::Freeze`]
    /// its batch norms use their running statistics in training too.
    pub fn new(
        builder: &mut Builder,
        prefix: &str,
        config: &ResnetConfig,
        layers: usize,
        moving: RunningStatistics,
    ) -> Self {
        let (first, colours) = (config.widths[0], config.image_channels);
        let (geometry, kernel, max_pool) = match config.stem {
            Stem::Small => (Geometry::same(3), 3, None),
            Stem::Imagenet => {
                let window = Window { kernel: 3, stride: 2, padding: 1 };
                (Geometry::same(7).strided(2), 7, Some(window))
            }
        };
        let normalisation = normalisation(builder, colours);
        let conv1 = conv(builder, &format!("{prefix}conv1"), colours, first, kernel).geometry(geometry);
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
        Self { channels: colours, normalisation, conv1, bn1, max_pool, layers }
    }

    /// Images `[B, H, W, C]` in [-1, 1], f32, to features `[B, h, w, width]` in the dtype of activations.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another rank or number of channels.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        self.up_to(s, images, self.layers.len())
    }

    /// As [`Backbone::forward`], with only the first `layers` layers, at most all.
    pub(super) fn up_to(&self, s: &Scope, images: &Var, layers: usize) -> Result<Var> {
        if images.sizes().len() != 4 || images.shape().last() != self.channels {
            let found = format!("images {}; they are [B, H, W, {}]", images.shape(), self.channels);
            return Err(Error::shape("resnet", found));
        }
        let mut x = self.normalisation.forward(s, images)?;
        x = cast(s, &x, s.precision())?;
        x = self.conv1.forward(s, &x)?;
        x = self.bn1.relu().forward(s, &x)?;
        if let Some(window) = self.max_pool {
            x = max_pool(s, &x, window)?;
        }
        for block in self.layers[..layers].iter().flatten() {
            x = block.forward(s, &x)?;
        }
        Ok(x)
    }
}
