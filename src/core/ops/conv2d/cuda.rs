//! The convolution on accelerators: parts and scales from sizes, and the launches.

use super::thin::{self, Sides, Split};
use super::{OP, Operands, Sizes, Sums};
use crate::device::launches::{
    Conv2dBwdChannel, Conv2dBwdColumns, Conv2dBwdInputEightBf16, Conv2dBwdInputEightTf32, Conv2dBwdInputLarge,
    Conv2dBwdInputLargeTf32, Conv2dBwdInputSmall, Conv2dBwdInputSmallTf32, Conv2dBwdInputTallBf16,
    Conv2dBwdInputTallTf32, Conv2dBwdWeightEightBf16, Conv2dBwdWeightEightTf32, Conv2dBwdWeightLarge,
    Conv2dBwdWeightLargeTf32, Conv2dBwdWeightSmall, Conv2dBwdWeightSmallTf32, Conv2dFwdEightBf16, Conv2dFwdEightTf32,
    Conv2dFwdLarge, Conv2dFwdLargeTf32, Conv2dFwdSmall, Conv2dFwdSmallTf32, Conv2dFwdTallBf16, Conv2dFwdTallTf32,
};
use crate::device::{Accelerator, LaunchConfig, SliceMut};
use crate::error::{Error, Result};
use crate::ops::tile::{Arithmetic, SumSplit, Tile, Tiles, launch_tile};
use crate::ops::{Stored, optional, wanted};
use crate::tape::{Destination, SumOrder};
use crate::tensor::{Context, DType, Tensor};

/// Pixels whose sums are one block's, before the blocks' are added.
const ROWS_PER_PART: usize = 256;
/// Heights and widths below this one are resized exactly.
const MAX_SIZE: usize = 1 << 16;

/// Rows of scratch [B * parts, Cout] that an image's column sums take.
pub(super) fn parts(sizes: Sizes) -> usize {
    sizes.out_pixels().div_ceil(ROWS_PER_PART).max(1)
}

/// Whether pixels of both sides are whole pieces of 16 bytes.
fn whole(arithmetic: Arithmetic, sizes: Sizes) -> bool {
    [sizes.cin, sizes.cout].iter().all(|size| size.is_multiple_of(arithmetic.piece()))
}

/// How the weight's gradient is cut.
fn split(arithmetic: Arithmetic, sizes: Sizes) -> SumSplit {
    let result = [sizes.cout, sizes.depth()];
    let pixels = sizes.batch * sizes.out_pixels();
    SumSplit::of(arithmetic, Tiles::LargeAndSmall, whole(arithmetic, sizes), pixels, result)
}

/// Into how many parts, for operands of that dtype.
pub(super) fn splits(context: &Context, sizes: Sizes, dtype: DType) -> usize {
    if let Some(thin) = Split::of(sizes) {
        return thin.splits;
    }
    split(Arithmetic::of(context, dtype), sizes).count
}

/// In which order the parts are added up.
pub(super) fn order(sizes: Sizes) -> SumOrder {
    if Split::of(sizes).is_some() { SumOrder::Across } else { SumOrder::One }
}

/// The tile of a product with this result.
fn tile(arithmetic: Arithmetic, sizes: Sizes, result: [usize; 2], aligned: bool) -> Tile {
    Tile::of(arithmetic, Tiles::TallToo, aligned && whole(arithmetic, sizes), result)
}

/// `source / size` times 2^32, rounded up: what the kernels find a pixel's source with.
fn scale(sizes: Sizes, axis: usize) -> u64 {
    ((sizes.source[axis] as u64) << 32).div_ceil(sizes.size[axis] as u64)
}

fn check(accelerator: &dyn Accelerator, sizes: Sizes) -> Result<()> {
    match sizes.source.iter().chain(&sizes.size).find(|&&size| size >= MAX_SIZE) {
        None => Ok(()),
        Some(size) => {
            let reason = format!("an image of {size} rows or columns; the kernels take up to {}", MAX_SIZE - 1);
            Err(Error::Unsupported { op: OP, device: accelerator.name(), reason })
        }
    }
}

/// Whether the input's gradient of a stride of 2 is that of four images of half the size, each under a part of the taps.
fn by_parity(arithmetic: Arithmetic, sizes: Sizes) -> bool {
    let even = sizes.size.iter().all(|size| size.is_multiple_of(2)) && sizes.kernel.iter().all(|&taps| taps > 1);
    sizes.stride == 2
        && sizes.source == sizes.size
        && even
        && sizes.kernel.iter().product::<usize>() <= 32
        && arithmetic.on_tensor_cores()
        && whole(arithmetic, sizes)
}

/// [`launch_tile`] with the sizes that all of the products' kernels take.
macro_rules! launch_product {
    ($tile:tt, $T:ident, $kernels:tt, $accelerator:expr, $config:expr, $sizes:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        launch_tile!($tile, $T, $kernels, $accelerator, $config, {
            source_height: $sizes.source[0] as u32,
            source_width: $sizes.source[1] as u32,
            height: $sizes.size[0] as u32,
            width: $sizes.size[1] as u32,
            out_height: $sizes.out[0] as u32,
            out_width: $sizes.out[1] as u32,
            cin: $sizes.cin as u32,
            cout: $sizes.cout as u32,
            kernel_height: $sizes.kernel[0] as u32,
            kernel_width: $sizes.kernel[1] as u32,
            stride: $sizes.stride as u32,
            pad_height: $sizes.pad[0] as u32,
            pad_width: $sizes.pad[1] as u32,
            $($field: $value),*
        })
    };
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    operands: &Operands,
    y: &Tensor,
) -> Result<()> {
    check(accelerator, sizes)?;
    let pixels = sizes.batch * sizes.out_pixels();
    let result = [pixels, sizes.cout];
    let Operands { x, weight, bias, channel_add, residual, .. } = operands;
    if let (Some(sides), None, None) = (Sides::of(sizes).filter(|sides| !sides.flipped), channel_add, residual) {
        return thin::product::<T>(accelerator, (sizes, sides), y.slice_mut(), 0, [*x, *weight], *bias);
    }
    let others = [Some(*x), Some(*weight), *bias, *channel_add, *residual, Some(y)];
    let arithmetic = Arithmetic::of(y.context(), T::DTYPE);
    let tile = tile(arithmetic, sizes, result, others.into_iter().flatten().all(Tensor::is_aligned));
    launch_product!((arithmetic, tile), T, {
        large: [Conv2dFwdLarge, Conv2dFwdLargeTf32],
        tall: [Conv2dFwdTallBf16, Conv2dFwdTallTf32],
        eight: [Conv2dFwdEightBf16, Conv2dFwdEightTf32],
        small: [Conv2dFwdSmall, Conv2dFwdSmallTf32]
    }, accelerator, tile.config(arithmetic, result, 1), sizes, {
        y: y.slice_mut(),
        x: operands.x.slice(),
        weight: operands.weight.slice(),
        bias: optional(operands.bias),
        channel_add: optional(operands.channel_add),
        residual: optional(operands.residual),
        pixels: pixels as u32,
        row_scale: scale(sizes, 0),
        col_scale: scale(sizes, 1),
    })
}

pub(super) fn input_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    weight: &Tensor,
    dx: &Destination,
) -> Result<()> {
    check(accelerator, sizes)?;
    let pixels = sizes.batch * sizes.source[0] * sizes.source[1];
    let result = [pixels, sizes.cin];
    if let Some(sides) = Sides::of(sizes).filter(|sides| sides.flipped) {
        let (to, accumulate) = (dx.slice_mut(), dx.mode.flag());
        return thin::product::<T>(accelerator, (sizes, sides), to, accumulate, [dy, weight], None);
    }
    let aligned = dy.is_aligned() && weight.is_aligned() && dx.is_aligned();
    let arithmetic = Arithmetic::of(dy.context(), T::DTYPE);
    let tile = tile(arithmetic, sizes, result, aligned);
    let config = match aligned && by_parity(arithmetic, sizes) {
        true => tile.config(arithmetic, [pixels / 4, sizes.cin], 4),
        false => tile.config(arithmetic, result, 1),
    };
    launch_product!((arithmetic, tile), T, {
        large: [Conv2dBwdInputLarge, Conv2dBwdInputLargeTf32],
        tall: [Conv2dBwdInputTallBf16, Conv2dBwdInputTallTf32],
        eight: [Conv2dBwdInputEightBf16, Conv2dBwdInputEightTf32],
        small: [Conv2dBwdInputSmall, Conv2dBwdInputSmallTf32]
    }, accelerator, config, sizes, {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        weight: weight.slice(),
        pixels: pixels as u32,
        accumulate: dx.mode.flag(),
    })
}

/// Whether the kernels of the weight's gradient sum dy too.
pub(super) fn sums_with_weight(sizes: Sizes) -> bool {
    Split::of(sizes).is_none()
}

pub(super) fn weight_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    partial: Option<&Tensor>,
    dy: &Tensor,
    x: &Tensor,
    [dw, db]: [Option<&Destination>; 2],
) -> Result<()> {
    check(accelerator, sizes)?;
    let Some(dw) = dw else { return Ok(()) };
    if let (Some(split), Some(partial)) = (Split::of(sizes), partial) {
        return thin::weight_backward::<T>(accelerator, (sizes, split), partial, [dy, x]);
    }
    let arithmetic = Arithmetic::of(dy.context(), T::DTYPE);
    let (mut split, result) = (split(arithmetic, sizes), [sizes.cout, sizes.depth()]);
    if !(dy.is_aligned() && x.is_aligned() && dw.is_aligned()) {
        split = split.anywhere();
    }
    let config = split.config(arithmetic, result);
    let (len, bias_len) = (dw.len(), db.map_or(0, Destination::len));
    let (db_at, accumulate_bias) = wanted(db);
    let (dw_at, db_at, split_len, accumulate, accumulate_bias) = match partial {
        Some(partial) => (partial.slice_mut(), SliceMut::none(), len + bias_len, 0, 0),
        None => (dw.slice_mut(), db_at, 0, dw.mode.flag(), accumulate_bias),
    };
    launch_product!((arithmetic, split.tile), T, {
        large: [Conv2dBwdWeightLarge, Conv2dBwdWeightLargeTf32],
        eight: [Conv2dBwdWeightEightBf16, Conv2dBwdWeightEightTf32],
        small: [Conv2dBwdWeightSmall, Conv2dBwdWeightSmallTf32]
    }, accelerator, config, sizes, {
        dw: dw_at,
        db: db_at,
        dy: dy.slice(),
        x: x.slice(),
        pixels: (sizes.batch * sizes.out_pixels()) as u32,
        row_scale: scale(sizes, 0),
        col_scale: scale(sizes, 1),
        rows_per_split: split.rows as u32,
        split_len: split_len as u32,
        accumulate: accumulate,
        accumulate_bias: accumulate_bias,
    })
}

pub(super) fn sums_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    partial: &Tensor,
    to: &Sums,
) -> Result<()> {
    let (cols, parts) = (sizes.cout, parts(sizes));
    let columns = 32 * 16 / size_of::<T>();
    Conv2dBwdColumns::<T> {
        partial: partial.slice_mut(),
        dy: dy.slice(),
        image: sizes.out_pixels() as u32,
        cols: cols as u32,
        parts: parts as u32,
        rows_per_part: ROWS_PER_PART as u32,
    }
    .launch(accelerator, LaunchConfig::grid([sizes.batch * parts, cols.div_ceil(columns)], 256))?;
    if let Some(to) = &to.channel_add {
        Conv2dBwdChannel::<T> {
            to: to.slice_mut(),
            partial: partial.slice(),
            batch: sizes.batch as u32,
            cols: cols as u32,
            parts: parts as u32,
            accumulate: to.mode.flag(),
        }
        .launch(accelerator, LaunchConfig::elements(sizes.batch * cols, 256))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels' way to a pixel's source is the definition's, everywhere.
    #[test]
    fn sources_are_exact() {
        for (source, size) in
            [(1, 1), (3, 7), (4, 7), (7, 4), (32, 32), (16, 32), (1000, 1023), (65535, 65534), (1, 65535)]
        {
            let sizes = Sizes {
                batch: 1,
                source: [source; 2],
                size: [size; 2],
                out: [size; 2],
                cin: 1,
                cout: 1,
                kernel: [3, 3],
                stride: 1,
                pad: [1, 1],
            };
            for i in 0..size {
                assert_eq!((i as u64 * scale(sizes, 0)) >> 32, (i * source / size) as u64, "{i} of {source} to {size}");
            }
        }
    }
}
