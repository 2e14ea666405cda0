//! The linear layer on accelerators: the launches.

use super::{BiasSum, Call, Operands, Sizes};
use crate::device::launches::{
    LinearBwdActivation, LinearBwdBias, LinearBwdInputEightBf16, LinearBwdInputLarge, LinearBwdInputSmall,
    LinearBwdInputWideBf16, LinearBwdWeightEightBf16, LinearBwdWeightLarge, LinearBwdWeightSmall,
    LinearBwdWeightWideBf16, LinearFwdEightBf16, LinearFwdLarge, LinearFwdSmall, LinearFwdWideBf16,
};
use crate::device::{Accelerator, LaunchConfig, SliceMut};
use crate::error::Result;
use crate::ops::tile::{SumSplit, Tile, Tiles, launch_tile};
use crate::ops::{Stored, optional, optional_mut, wanted};
use crate::tape::Destination;
use crate::tensor::{DType, Element, Tensor};

/// How the weight's gradient is cut.
fn split<T: Element>(Sizes { m, n, k }: Sizes) -> SumSplit {
    SumSplit::of::<T>(Tiles::All, n.is_multiple_of(8) && k.is_multiple_of(8), m, [n, k])
}

/// Into how many parts, for operands of that dtype. Where there are several, the kernels below write them, and [`sum_parts`]
/// adds them up.
///
/// [`sum_parts`]: crate::tape::sum_parts
pub(super) fn splits(sizes: Sizes, dtype: DType) -> usize {
    match dtype {
        DType::BF16 => split::<half::bf16>(sizes).count,
        _ => split::<f32>(sizes).count,
    }
}

/// The tile of a product with this result, whose sum runs over `depth`.
fn tile<T: Element>([rows, cols]: [usize; 2], depth: usize, aligned: bool) -> Tile {
    Tile::of::<T>(Tiles::All, aligned && cols.is_multiple_of(8) && depth.is_multiple_of(8), [rows, cols])
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    operands: &Operands,
    y: &Tensor,
) -> Result<()> {
    let Sizes { m, n, k } = call.sizes;
    if m * n == 0 {
        return Ok(());
    }
    let Operands { x, weight, bias, residual, .. } = operands;
    let others = [Some(*x), Some(*weight), *bias, *residual, call.z.as_ref(), Some(y)];
    let tile = tile::<T>([m, n], k, others.into_iter().flatten().all(Tensor::is_aligned));
    launch_tile!(tile, LinearFwdWideBf16, LinearFwdLarge, LinearFwdEightBf16, LinearFwdSmall, T, accelerator, tile.config::<T>([m, n], 1), {
        y: y.slice_mut(),
        z: optional_mut(call.z.as_ref()),
        x: operands.x.slice(),
        weight: operands.weight.slice(),
        bias: optional(operands.bias),
        residual: optional(operands.residual),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        activation: call.activation.code(),
    })
}

/// The bias's gradient is summed with the weight's.
pub(super) fn activation_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    _bias: Option<&BiasSum>,
) -> Result<()> {
    let (len, Some(z)) = (dy.len(), &call.z) else { return Ok(()) };
    if len == 0 {
        return Ok(());
    }
    LinearBwdActivation::<T> { dz: z.slice_mut(), dy: dy.slice(), len: len as u64, activation: call.activation.code() }
        .launch(accelerator, LaunchConfig::elements(len.div_ceil(16 / size_of::<T>()), 256))
}

pub(super) fn bias_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    partial: Option<&Tensor>,
    dz: &Tensor,
    db: &Destination,
) -> Result<()> {
    let (n, split) = (sizes.n, split::<T>(sizes).anywhere());
    LinearBwdBias::<T> {
        db: partial.map_or_else(|| db.slice_mut(), Tensor::slice_mut),
        dz: dz.slice(),
        m: sizes.m as u32,
        n: n as u32,
        rows_per_split: split.rows as u32,
        accumulate: if partial.is_some() { 0 } else { db.mode.flag() },
    }
    .launch(accelerator, split.config::<T>([n, 1]))
}

pub(super) fn input_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dz: &Tensor,
    weight: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let Sizes { m, n, k } = sizes;
    if m * k == 0 {
        return Ok(());
    }
    let tile = tile::<T>([m, k], n, dz.is_aligned() && weight.is_aligned() && dx.is_aligned());
    let config = tile.config::<T>([m, k], 1);
    launch_tile!(tile, LinearBwdInputWideBf16, LinearBwdInputLarge, LinearBwdInputEightBf16, LinearBwdInputSmall, T, accelerator, config, {
        dx: dx.slice_mut(),
        dz: dz.slice(),
        weight: weight.slice(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: dx.flag(),
    })
}

pub(super) fn weight_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    partial: Option<&Tensor>,
    dz: &Tensor,
    x: &Tensor,
    dw: &Destination,
    db: Option<&Destination>,
) -> Result<()> {
    let Sizes { m, n, k } = sizes;
    if n * k == 0 {
        return Ok(());
    }
    let mut split = split::<T>(sizes);
    if !(dz.is_aligned() && x.is_aligned() && dw.is_aligned()) {
        split = split.anywhere();
    }
    let config = split.config::<T>([n, k]);
    let ((db_at, accumulate_bias), bias_len) = (wanted(db), db.map_or(0, Destination::len));
    let (dw_at, db_at, split_len, accumulate, accumulate_db) = match partial {
        Some(partial) => (partial.slice_mut(), SliceMut::none(), n * k + bias_len, 0, 0),
        None => (dw.slice_mut(), db_at, 0, dw.mode.flag(), accumulate_bias),
    };
    launch_tile!(split.tile, LinearBwdWeightWideBf16, LinearBwdWeightLarge, LinearBwdWeightEightBf16, LinearBwdWeightSmall, T, accelerator, config, {
        dw: dw_at,
        db: db_at,
        dz: dz.slice(),
        x: x.slice(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        rows_per_split: split.rows as u32,
        split_len: split_len as u32,
        accumulate: accumulate,
        accumulate_bias: accumulate_db,
    })
}
