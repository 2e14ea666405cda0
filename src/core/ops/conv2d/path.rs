//! Which way a convolution goes. The one place that chooses, by shapes, dtype and instruction set alone: never by batch, threads or
//! values, so that an image's bits do not depend on its company.
//!
//! | where | pass | taken when | module |
//! |---|---|---|---|
//! | CPU | forward, weight gradient | bf16, no registers for matrices, enough tiles of 4x4; 3x3 as below, resized or not | `winograd`: 36 products for 144 |
//! | CPU | input gradient | the same, either not resized or doubled | `winograd` |
//! | CPU | forward | else: bf16, input channels in pairs | `pairs`: an implicit product of pairs |
//! | CPU | input gradient | else: bf16, not resized or with stride 1 to twice the size, output channels in pairs | `pairs` |
//! | CPU | forward, input gradient | else: 3x3, stride 1, padding 1, not resized, channels in blocks of 16, not f64 | `winograd`: 16 products for 36 |
//! | CPU | forward, input gradient | else: 3x3, stride 1, padding 1, of an image resized to twice its size | `doubled`: 4 taps for 9 |
//! | CPU | forward, input gradient | else | `direct`, its inner loops in `tile` |
//! | CPU | weight gradient | bf16, 1x1, stride 1, not resized | `pairs`: a product of pairs |
//! | CPU | weight gradient | else: bf16, registers for matrices | `pairs_weight`: shifted products of pairs |
//! | CPU | weight gradient | else: 3x3, stride 1, padding 1, channels in blocks of 16, resized or not, not f64 | `winograd` |
//! | CPU | weight gradient | else | `weight`: a product for each tap |
//! | kernels | forward, input gradient | always | `cuda`: an implicit product, of the tile that `Tile::of` takes |
//! | kernels | weight gradient | always | `cuda`: the same, its sum over pixels cut as `SumSplit::of` says |
//!
//! Registers for matrices multiply bf16 faster than tiles of 4x4 save products. In f32 these err more than a deep network's tests grant.
//!
//! In f64 Winograd's ways are closed, so that the oracle sums the definition as it stands. What of bf16 goes no way of its own goes those of f32.

use super::{Sizes, doubled, pairs, pairs_weight, winograd};
use crate::tensor::DType;

/// One of the three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    InputGradient,
    WeightGradient,
}

/// A way on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Products of pairs of bf16: `pairs`.
    Pairs,
    /// The same, shifted: `pairs_weight`. Only weight gradients take it.
    ShiftedPairs,
    /// Tiles of 2x2 or 4x4 pixels, 3x3 taps: `winograd`, with the tiles' side.
    Winograd(usize),
    /// The image is doubled by shared taps: `doubled`. No weight gradient takes it.
    Doubled,
    /// The definition: `direct`, and `weight`.
    Direct,
}

/// The way that the CPU takes.
pub(super) fn path(pass: Pass, sizes: &Sizes, dtype: DType) -> Path {
    let tiled = dtype != DType::F64 && winograd::fits(sizes);
    let brief = dtype == DType::BF16;
    let resized = sizes.source != sizes.size;
    let foldable = pass != Pass::InputGradient || !resized || doubled::fits(sizes);
    match pass {
        _ if brief && !pairs_weight::fits() && winograd::fits_large(sizes) && foldable => Path::Winograd(4),
        Pass::Forward if brief && pairs::fits_forward(sizes) => Path::Pairs,
        Pass::InputGradient if brief && pairs::fits_input_gradient(sizes) => Path::Pairs,
        Pass::WeightGradient if brief && pairs::fits_weight_gradient(sizes) => Path::Pairs,
        Pass::WeightGradient if brief && pairs_weight::fits() => Path::ShiftedPairs,
        Pass::WeightGradient if tiled => Path::Winograd(2),
        Pass::WeightGradient => Path::Direct,
        _ if tiled && !resized => Path::Winograd(2),
        _ if doubled::fits(sizes) => Path::Doubled,
        _ => Path::Direct,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::instructions::instruction_set;

    #[test]
    fn the_table_is_what_is_chosen() {
        use Pass::{Forward, InputGradient, WeightGradient};
        let sizes = |source: usize, size: usize, channels, kernel, stride| Sizes {
            batch: 2,
            source: [source; 2],
            size: [size; 2],
            out: [size.div_ceil(stride); 2],
            cin: channels,
            cout: channels,
            kernel: [kernel; 2],
            stride,
            pad: [kernel / 2; 2],
        };
        let tiles = instruction_set().tiles.is_some();
        let large = if tiles { Path::Pairs } else { Path::Winograd(4) };
        for (sizes, dtype, ways) in [
            (sizes(8, 8, 32, 3, 1), DType::F32, [Path::Winograd(2), Path::Winograd(2)]),
            (sizes(8, 8, 32, 3, 1), DType::F64, [Path::Direct, Path::Direct]),
            (sizes(8, 8, 24, 3, 1), DType::F32, [Path::Direct, Path::Direct]),
            (sizes(8, 8, 32, 3, 2), DType::F32, [Path::Direct, Path::Direct]),
            (sizes(8, 8, 32, 5, 1), DType::F32, [Path::Direct, Path::Direct]),
            (sizes(4, 8, 32, 3, 1), DType::F32, [Path::Doubled, Path::Winograd(2)]),
            (sizes(4, 8, 24, 3, 1), DType::F64, [Path::Doubled, Path::Direct]),
            (sizes(4, 7, 32, 3, 1), DType::F32, [Path::Direct, Path::Winograd(2)]),
            (sizes(8, 8, 32, 3, 1), DType::BF16, [Path::Pairs, Path::Winograd(2)]),
            (sizes(8, 8, 6, 5, 1), DType::BF16, [Path::Pairs, Path::Direct]),
            (sizes(8, 8, 3, 3, 1), DType::BF16, [Path::Direct, Path::Direct]),
            (sizes(8, 8, 32, 3, 2), DType::BF16, [Path::Pairs, Path::Direct]),
            (sizes(4, 8, 32, 3, 1), DType::BF16, [Path::Pairs, Path::Winograd(2)]),
            (sizes(8, 8, 6, 1, 1), DType::BF16, [Path::Pairs, Path::Pairs]),
            (sizes(16, 16, 32, 3, 1), DType::F32, [Path::Winograd(2), Path::Winograd(2)]),
            (sizes(8, 16, 32, 3, 1), DType::F32, [Path::Doubled, Path::Winograd(2)]),
            (sizes(8, 16, 32, 3, 1), DType::F64, [Path::Doubled, Path::Direct]),
            (sizes(16, 16, 32, 3, 1), DType::BF16, [large, Path::Winograd(4)]),
            (sizes(8, 16, 32, 3, 1), DType::BF16, [large, Path::Winograd(4)]),
        ] {
            let [both, weight] = ways;
            assert_eq!([Forward, InputGradient].map(|pass| path(pass, &sizes, dtype)), [both; 2], "{sizes:?} {dtype}");
            let shifted = dtype == DType::BF16 && tiles;
            let weight = if shifted && weight != Path::Pairs { Path::ShiftedPairs } else { weight };
            assert_eq!(path(WeightGradient, &sizes, dtype), weight, "{sizes:?} {dtype}");
        }
    }
}
