//! The linear layer on accelerators: the launches.

use super::gate::GateBackward;
use super::{BiasSum, Call, Operands, Sizes};
use crate::device::launches::{
    LinearBwdActivation, LinearBwdBias, LinearBwdBiasTf32, LinearBwdGate, LinearBwdInputEightBf16,
    LinearBwdInputEightTf32, LinearBwdInputLarge, LinearBwdInputLargeTf32, LinearBwdInputSmall,
    LinearBwdInputSmallTf32, LinearBwdInputWideBf16, LinearBwdInputWideTf32, LinearBwdWeightEightBf16,
    LinearBwdWeightEightTf32, LinearBwdWeightLarge, LinearBwdWeightLargeTf32, LinearBwdWeightSmall,
    LinearBwdWeightSmallTf32, LinearBwdWeightWideBf16, LinearBwdWeightWideTf32, LinearFwdEightBf16, LinearFwdEightTf32,
    LinearFwdLarge, LinearFwdLargeTf32, LinearFwdSmall, LinearFwdSmallTf32, LinearFwdWideBf16, LinearFwdWideTf32,
};
use crate::device::{Accelerator, LaunchConfig, SliceMut};
use crate::error::Result;
use crate::ops::tile::{Arithmetic, SumSplit, Tile, Tiles, launch_tile};
use crate::ops::{Stored, optional, optional_mut, wanted};
use crate::tape::Destination;
use crate::tensor::{Context, DType, Tensor};

/// How the weight's gradient is cut.
fn split(arithmetic: Arithmetic, Sizes { m, n, k }: Sizes) -> SumSplit {
    let whole = [n, k].iter().all(|size| size.is_multiple_of(arithmetic.piece()));
    SumSplit::of(arithmetic, Tiles::All, whole, m, [n, k])
}

/// Into how many parts, for operands of that dtype. Where there are several, the kernels below write them, and [`sum_parts`]
/// adds them up.
///
/// [`sum_parts`]: crate::tape::sum_parts
pub(super) fn splits(context: &Context, sizes: Sizes, dtype: DType) -> usize {
    split(Arithmetic::of(context, dtype), sizes).count
}

/// The tile of a product with this result, whose sum runs over `depth`.
fn tile(arithmetic: Arithmetic, [rows, cols]: [usize; 2], depth: usize, aligned: bool) -> Tile {
    let whole = [cols, depth].iter().all(|size| size.is_multiple_of(arithmetic.piece()));
    Tile::of(arithmetic, Tiles::All, aligned && whole, [rows, cols])
}

/// What the kernel finds a row's sample with: 2^64 - 1 over a sample's rows, rounded down.
fn sample_scale(rows_per_sample: usize) -> u64 {
    u64::MAX / rows_per_sample.max(1) as u64
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
    let (gated, gate) = (call.gated.as_ref(), call.gate_sizes());
    let matrix = gated.map(|gated| &gated.matrix);
    let others = [Some(*x), Some(*weight), *bias, *residual, call.z.as_ref(), Some(y), matrix];
    let arithmetic = Arithmetic::of(y.context(), T::DTYPE);
    let aligned = others.into_iter().flatten().all(Tensor::is_aligned)
        && gated.is_none_or(|gated| gated.is_whole(arithmetic.piece()));
    let tile = tile(arithmetic, [m, n], k, aligned);
    launch_tile!((arithmetic, tile), T, {
        wide: [LinearFwdWideBf16, LinearFwdWideTf32],
        large: [LinearFwdLarge, LinearFwdLargeTf32],
        eight: [LinearFwdEightBf16, LinearFwdEightTf32],
        small: [LinearFwdSmall, LinearFwdSmallTf32]
    }, accelerator, tile.config(arithmetic, [m, n], 1), {
        y: y.slice_mut(),
        z: optional_mut(call.z.as_ref()),
        x: operands.x.slice(),
        weight: operands.weight.slice(),
        bias: optional(operands.bias),
        residual: optional(operands.residual),
        modulation: optional(matrix),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        activation: call.activation.code(),
        modulation_stride: gate.stride as u32,
        column: gate.column as u32,
        sample_scale: sample_scale(gate.rows_per_sample),
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

pub(super) fn gate_backward<T: Stored>(accelerator: &dyn Accelerator, call: &GateBackward, dy: &Tensor) -> Result<()> {
    let (Sizes { m, n, .. }, gate) = (call.sizes, call.gate);
    LinearBwdGate::<T> {
        dz: optional_mut(call.dz),
        dmodulation: wanted(call.dmodulation.as_ref()).0,
        dy: dy.slice(),
        z: optional(call.z.as_ref()),
        modulation: call.matrix.slice(),
        n: n as u32,
        rows_per_sample: gate.rows_per_sample as u32,
        modulation_stride: gate.stride as u32,
        column: gate.column as u32,
    }
    .launch(accelerator, by_column::<T>(m / gate.rows_per_sample, n))
}

/// A thread per 16 bytes of a sample's columns, in as few whole warps as hold them, at most 128 threads.
fn by_column<T>(samples: usize, n: usize) -> LaunchConfig {
    let pieces = n.div_ceil(16 / size_of::<T>());
    let threads = pieces.next_multiple_of(32).min(128);
    LaunchConfig::grid([samples, pieces.div_ceil(threads)], threads as u32)
}

pub(super) fn bias_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    partial: Option<&Tensor>,
    dz: &Tensor,
    db: &Destination,
) -> Result<()> {
    let arithmetic = Arithmetic::of(dz.context(), T::DTYPE);
    let (n, split) = (sizes.n, split(arithmetic, sizes).anywhere());
    let config = split.config(arithmetic, [n, 1]);
    let to = partial.map_or_else(|| db.slice_mut(), Tensor::slice_mut);
    let (m, n, rows_per_split) = (sizes.m as u32, n as u32, split.rows as u32);
    let accumulate = if partial.is_some() { 0 } else { db.mode.flag() };
    if arithmetic == Arithmetic::Tf32 {
        return LinearBwdBiasTf32 { db: to, dz: dz.slice(), m, n, rows_per_split, accumulate }
            .launch(accelerator, config);
    }
    LinearBwdBias::<T> { db: to, dz: dz.slice(), m, n, rows_per_split, accumulate }.launch(accelerator, config)
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
    let arithmetic = Arithmetic::of(dz.context(), T::DTYPE);
    let tile = tile(arithmetic, [m, k], n, dz.is_aligned() && weight.is_aligned() && dx.is_aligned());
    launch_tile!((arithmetic, tile), T, {
        wide: [LinearBwdInputWideBf16, LinearBwdInputWideTf32],
        large: [LinearBwdInputLarge, LinearBwdInputLargeTf32],
        eight: [LinearBwdInputEightBf16, LinearBwdInputEightTf32],
        small: [LinearBwdInputSmall, LinearBwdInputSmallTf32]
    }, accelerator, tile.config(arithmetic, [m, k], 1), {
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
    let arithmetic = Arithmetic::of(dz.context(), T::DTYPE);
    let mut split = split(arithmetic, sizes);
    if !(dz.is_aligned() && x.is_aligned() && dw.is_aligned()) {
        split = split.anywhere();
    }
    let ((db_at, accumulate_bias), bias_len) = (wanted(db), db.map_or(0, Destination::len));
    let (dw_at, db_at, split_len, accumulate, accumulate_db) = match partial {
        Some(partial) => (partial.slice_mut(), SliceMut::none(), n * k + bias_len, 0, 0),
        None => (dw.slice_mut(), db_at, 0, dw.mode.flag(), accumulate_bias),
    };
    launch_tile!((arithmetic, split.tile), T, {
        wide: [LinearBwdWeightWideBf16, LinearBwdWeightWideTf32],
        large: [LinearBwdWeightLarge, LinearBwdWeightLargeTf32],
        eight: [LinearBwdWeightEightBf16, LinearBwdWeightEightTf32],
        small: [LinearBwdWeightSmall, LinearBwdWeightSmallTf32]
    }, accelerator, split.config(arithmetic, [n, k]), {
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// The kernel's `sample_of`, in the same operations, is the division.
    #[test]
    fn samples_of_a_gate_are_exact() {
        let sample_of = |row: u32, scale: u64| {
            let next = u64::from(row) + 1;
            let (low, high) = (next * (scale & 0xffff_ffff), next * (scale >> 32));
            ((high + (low >> 32)) >> 32) as usize
        };
        for rows in [1usize, 2, 3, 5, 7, 64, 65, 256, 257, 641, 65535, 65537, (1 << 31) - 1, u32::MAX as usize] {
            let scale = sample_scale(rows);
            for sample in [0, 1, 2, 3, 100, 4095, 65537, u32::MAX as usize / rows] {
                for row in [sample * rows, sample * rows + rows / 2, sample * rows + rows - 1] {
                    let Ok(row) = u32::try_from(row) else { continue };
                    assert_eq!(sample_of(row, scale), row as usize / rows, "row {row} of {rows}");
                }
            }
        }
    }

    #[test]
    fn every_column_of_a_gate_has_a_thread() {
        for n in [1, 33, 384, 5000] {
            let config = by_column::<bf16>(3, n);
            assert_eq!(config.grid[0], 3);
            assert!((config.grid[1] * config.block[0]) as usize * 8 >= n);
        }
    }
}
