//! The blocks: parallel branches with concatenated channels.

use crate::error::Result;
use crate::nn::{Builder, Init, ParamId, ParameterKind, Scope};
use crate::ops::concat::concat;
use crate::ops::conv2d::{Geometry, conv2d};
use crate::ops::elementwise::relu;
use crate::ops::pool::{Window, max_pool, mean_pool};
use crate::tape::Var;

/// A convolution with bias, then ReLU.
pub(super) struct Conv {
    weight: ParamId,
    bias: ParamId,
    geometry: Geometry,
}

impl Conv {
    /// Stride 1, centred window.
    pub(super) fn new(builder: &mut Builder, name: &str, from: usize, to: usize, kernel: [usize; 2]) -> Self {
        let [height, width] = kernel;
        let deviation = (2.0 / (height * width * from) as f64).sqrt();
        let weight = [to, height, width, from];
        Self {
            weight: builder.add(
                format!("{name}.weight"),
                weight,
                ParameterKind::Matrix,
                Init::Normal(deviation as f32),
            ),
            bias: builder.add(format!("{name}.bias"), [to], ParameterKind::Vector, Init::Constant(0.0)),
            geometry: Geometry::centred(kernel),
        }
    }

    /// As `new`, with windows that stay within the image.
    pub(super) fn within(self, stride: usize) -> Self {
        Self { geometry: Geometry::within(stride), ..self }
    }

    pub(super) fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        relu(s, &conv2d(s, x, &s[self.weight], Some(&s[self.bias]), self.geometry, None, None)?)
    }
}

/// The reduction of a 3x3 pool.
#[derive(Clone, Copy)]
pub(super) enum Pool {
    /// The mean of the pixels inside the image.
    Mean,
    Max,
}

impl Pool {
    /// A pool that keeps the image's size.
    fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let window = Window { kernel: 3, stride: 1, padding: 1 };
        match self {
            Self::Mean => mean_pool(s, x, window),
            Self::Max => max_pool(s, x, window),
        }
    }
}

/// A branch of a block, whose channels are concatenated.
enum Branch {
    /// Consecutive convolutions.
    Chain(Vec<Conv>),
    /// Consecutive convolutions; the last two read the same input and are concatenated.
    Forked(Vec<Conv>, [Conv; 2]),
    /// A pool that keeps the size, then a convolution.
    Pooled(Pool, Conv),
    /// The maximum over windows of stride 2 that stay within the image.
    Halved,
}

pub(super) struct Block {
    branches: Vec<Branch>,
}

impl Block {
    /// 35x35.
    pub(super) fn a(builder: &mut Builder, name: &str, from: usize, pooled: usize) -> Self {
        let mut conv = |part: &str, from, to, kernel| Conv::new(builder, &format!("{name}.{part}"), from, to, kernel);
        Self {
            branches: vec![
                Branch::Chain(vec![conv("branch1x1", from, 64, [1, 1])]),
                Branch::Chain(vec![conv("branch5x5_1", from, 48, [1, 1]), conv("branch5x5_2", 48, 64, [5, 5])]),
                Branch::Chain(vec![
                    conv("branch3x3dbl_1", from, 64, [1, 1]),
                    conv("branch3x3dbl_2", 64, 96, [3, 3]),
                    conv("branch3x3dbl_3", 96, 96, [3, 3]),
                ]),
                Branch::Pooled(Pool::Mean, conv("branch_pool", from, pooled, [1, 1])),
            ],
        }
    }

    /// 35x35 to 17x17.
    pub(super) fn b(builder: &mut Builder, name: &str, from: usize) -> Self {
        let mut conv = |part: &str, from, to, kernel| Conv::new(builder, &format!("{name}.{part}"), from, to, kernel);
        Self {
            branches: vec![
                Branch::Chain(vec![conv("branch3x3", from, 384, [3, 3]).within(2)]),
                Branch::Chain(vec![
                    conv("branch3x3dbl_1", from, 64, [1, 1]),
                    conv("branch3x3dbl_2", 64, 96, [3, 3]),
                    conv("branch3x3dbl_3", 96, 96, [3, 3]).within(2),
                ]),
                Branch::Halved,
            ],
        }
    }

    /// 17x17, with windows of 1x7 and 7x1 of `inner` channels.
    pub(super) fn c(builder: &mut Builder, name: &str, inner: usize) -> Self {
        let mut conv = |part: &str, from, to, kernel| Conv::new(builder, &format!("{name}.{part}"), from, to, kernel);
        let (row, column) = ([1, 7], [7, 1]);
        Self {
            branches: vec![
                Branch::Chain(vec![conv("branch1x1", 768, 192, [1, 1])]),
                Branch::Chain(vec![
                    conv("branch7x7_1", 768, inner, [1, 1]),
                    conv("branch7x7_2", inner, inner, row),
                    conv("branch7x7_3", inner, 192, column),
                ]),
                Branch::Chain(vec![
                    conv("branch7x7dbl_1", 768, inner, [1, 1]),
                    conv("branch7x7dbl_2", inner, inner, column),
                    conv("branch7x7dbl_3", inner, inner, row),
                    conv("branch7x7dbl_4", inner, inner, column),
                    conv("branch7x7dbl_5", inner, 192, row),
                ]),
                Branch::Pooled(Pool::Mean, conv("branch_pool", 768, 192, [1, 1])),
            ],
        }
    }

    /// 17x17 to 8x8.
    pub(super) fn d(builder: &mut Builder, name: &str) -> Self {
        let mut conv = |part: &str, from, to, kernel| Conv::new(builder, &format!("{name}.{part}"), from, to, kernel);
        Self {
            branches: vec![
                Branch::Chain(vec![
                    conv("branch3x3_1", 768, 192, [1, 1]),
                    conv("branch3x3_2", 192, 320, [3, 3]).within(2),
                ]),
                Branch::Chain(vec![
                    conv("branch7x7x3_1", 768, 192, [1, 1]),
                    conv("branch7x7x3_2", 192, 192, [1, 7]),
                    conv("branch7x7x3_3", 192, 192, [7, 1]),
                    conv("branch7x7x3_4", 192, 192, [3, 3]).within(2),
                ]),
                Branch::Halved,
            ],
        }
    }

    /// 8x8.
    pub(super) fn e(builder: &mut Builder, name: &str, from: usize, pool: Pool) -> Self {
        let mut conv = |part: &str, from, to, kernel| Conv::new(builder, &format!("{name}.{part}"), from, to, kernel);
        Self {
            branches: vec![
                Branch::Chain(vec![conv("branch1x1", from, 320, [1, 1])]),
                Branch::Forked(
                    vec![conv("branch3x3_1", from, 384, [1, 1])],
                    [conv("branch3x3_2a", 384, 384, [1, 3]), conv("branch3x3_2b", 384, 384, [3, 1])],
                ),
                Branch::Forked(
                    vec![conv("branch3x3dbl_1", from, 448, [1, 1]), conv("branch3x3dbl_2", 448, 384, [3, 3])],
                    [conv("branch3x3dbl_3a", 384, 384, [1, 3]), conv("branch3x3dbl_3b", 384, 384, [3, 1])],
                ),
                Branch::Pooled(pool, conv("branch_pool", from, 192, [1, 1])),
            ],
        }
    }

    pub(super) fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        let chain = |convs: &[Conv]| convs.iter().try_fold(x.clone(), |x, conv| conv.forward(s, &x));
        let mut parts = Vec::with_capacity(6);
        for branch in &self.branches {
            match branch {
                Branch::Chain(convs) => parts.push(chain(convs)?),
                Branch::Forked(convs, ends) => {
                    let x = chain(convs)?;
                    for end in ends {
                        parts.push(end.forward(s, &x)?);
                    }
                }
                Branch::Pooled(pool, conv) => parts.push(conv.forward(s, &pool.forward(s, x)?)?),
                Branch::Halved => parts.push(max_pool(s, x, Window { kernel: 3, stride: 2, padding: 0 })?),
            }
        }
        concat(s, &parts.iter().collect::<Vec<_>>())
    }
}
