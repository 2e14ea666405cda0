//! InceptionV3 as used by FID: the graph of 2015-12-05 (Szegedy et al. 2016, *Rethinking the Inception Architecture*), not torchvision's.
//!
//! Images are `[B, 299, 299, 3]` in about [-1, 1]; the evaluation's rule resizes and scales them. C is a convolution without bias,
//! batch norm (ε 1e-3, with running statistics, folded into the convolution's weight and bias) and ReLU:
//!
//! ```text
//! x = C3/2 C3 C3p  maxpool  C1 C3  maxpool                 the stem, 35x35x192
//! Mixed_5b 5c 5d   [C1 | C5 C1 | C3 C3 C1 | C1 mean]       35x35
//! Mixed_6a         [C3/2 | C3/2 C3 C1 | max/2]             17x17x768
//! Mixed_6b … 6e    [C1 | C71 C17 C1 | C17 C71 C17 C71 C1 | C1 mean]
//! Mixed_7a         [C3/2 C1 | C3/2 C71 C17 C1 | max/2]     8x8x1280
//! Mixed_7b 7c      [C1 | (C13, C31) C1 | (C13, C31) C3 C1 | C1 pool]   8x8x2048
//! features = mean over pixels [2048],  logits = fc(features) [1008]
//! ```
//!
//! It differs from torchvision's `inception_v3` in three places that change every number: the mean pools of 5b to 7b exclude
//! padding, 7c's pool is a *max* pool (as in the original, intended or not), and there are 1008 logits.
//!
//! Names are those of the file that pytorch-fid and torch-fidelity download (`Mixed_5b.branch5x5_2.conv.weight`); [`InceptionWeights`]
//! reads it.

mod blocks;
mod weights;

pub use weights::InceptionWeights;
pub(crate) use weights::declared;

use blocks::{Block, Conv, Pool};

use crate::error::Result;
use crate::models::check_images;
use crate::nn::{Builder, Init, ParamId, ParameterKind, Scope};
use crate::ops::elementwise::cast;
use crate::ops::linear::{Activation, linear};
use crate::ops::pool::{Window, global_average_pool, max_pool};
use crate::tape::Var;
use crate::tensor::DType;

/// Height and width of the images.
pub const SIZE: usize = 299;
/// The first digits of SHA-256 of the published file, which its name ends in.
pub const PUBLISHED: &str = "6726825d";
/// Number of features of an image.
pub const FEATURES: usize = 2048;
/// Number of logits: 1000 classes of ImageNet and eight unused ones.
pub const CLASSES: usize = 1008;

/// The network, for inference.
pub struct Inception {
    /// The layers before the first pool, and before the second.
    stem: [Vec<Conv>; 2],
    blocks: Vec<Block>,
    weight: ParamId,
    bias: ParamId,
}

impl Inception {
    /// Declares the network's parameters: `NAME.weight` `[out, ky, kx, in]` and `NAME.bias` of each convolution, `fc.weight`, `fc.bias`.
    pub fn new(builder: &mut Builder) -> Self {
        let mut conv = |name: &str, from, to, kernel| Conv::new(builder, name, from, to, kernel);
        let stem = [
            vec![
                conv("Conv2d_1a_3x3", 3, 32, [3, 3]).within(2),
                conv("Conv2d_2a_3x3", 32, 32, [3, 3]).within(1),
                conv("Conv2d_2b_3x3", 32, 64, [3, 3]),
            ],
            vec![conv("Conv2d_3b_1x1", 64, 80, [1, 1]), conv("Conv2d_4a_3x3", 80, 192, [3, 3]).within(1)],
        ];
        let blocks = vec![
            Block::a(builder, "Mixed_5b", 192, 32),
            Block::a(builder, "Mixed_5c", 256, 64),
            Block::a(builder, "Mixed_5d", 288, 64),
            Block::b(builder, "Mixed_6a", 288),
            Block::c(builder, "Mixed_6b", 128),
            Block::c(builder, "Mixed_6c", 160),
            Block::c(builder, "Mixed_6d", 160),
            Block::c(builder, "Mixed_6e", 192),
            Block::d(builder, "Mixed_7a"),
            Block::e(builder, "Mixed_7b", 1280, Pool::Mean),
            Block::e(builder, "Mixed_7c", 2048, Pool::Max),
        ];
        let init = Init::xavier(FEATURES, CLASSES);
        let weight = builder.add("fc.weight", [CLASSES, FEATURES], ParameterKind::Matrix, init);
        let bias = builder.add("fc.bias", [CLASSES], ParameterKind::Vector, Init::Constant(0.0));
        Self { stem, blocks, weight, bias }
    }

    /// Features `[B, 2048]`, f32, of `images` `[B, 299, 299, 3]`, f32. Row b depends only on image b, to the bit.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for images of another size.
    pub fn features(&self, s: &Scope, images: &Var) -> Result<Var> {
        check_images("inception", images, [SIZE, SIZE, 3])?;
        let mut x = cast(s, images, s.precision())?;
        for convs in &self.stem {
            for conv in convs {
                x = conv.forward(s, &x)?;
            }
            x = max_pool(s, &x, Window { kernel: 3, stride: 2, padding: 0 })?;
        }
        for block in &self.blocks {
            x = block.forward(s, &x)?;
        }
        cast(s, &global_average_pool(s, &x)?, DType::F32)
    }

    /// Logits `[B, 1008]`, f32, of [`Inception::features`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for features of another width.
    pub fn logits(&self, s: &Scope, features: &Var) -> Result<Var> {
        self.product(s, features, Some(self.bias))
    }

    /// The logits without the bias, as for the Inception Score: its published numbers come from a graph without it.
    ///
    /// # Errors
    /// As [`Inception::logits`].
    pub fn logits_without_bias(&self, s: &Scope, features: &Var) -> Result<Var> {
        self.product(s, features, None)
    }

    fn product(&self, s: &Scope, features: &Var, bias: Option<ParamId>) -> Result<Var> {
        let features = cast(s, features, s.precision())?;
        let bias = bias.map(|bias| &s[bias]);
        cast(s, &linear(s, &features, &s[self.weight], bias, Activation::None, None)?, DType::F32)
    }
}
