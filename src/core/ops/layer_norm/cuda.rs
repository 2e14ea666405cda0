//! Layer norm on accelerators: launch configurations from sizes, and the launches.

use super::{Call, ROWS_PER_PART, Sizes};
use crate::device::launches::{
    LayerNormBwdAffineFinal, LayerNormBwdAffinePartial, LayerNormBwdInput, LayerNormBwdModulation, LayerNormFwd,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional};
use crate::tape::Destination;
use crate::tensor::Tensor;

/// Threads of a block.
const THREADS: u32 = 256;
/// Widest row that a warp takes; beyond, a block does (`WARP_COLS` in the kernel).
const WARP_COLS: usize = 1024;
/// Columns of a block that sums the parts.
const FINAL_COLS: usize = 32;

/// A warp per row, or a block where rows are wide.
fn by_row(sizes: Sizes) -> LaunchConfig {
    let rows_per_block = if sizes.cols <= WARP_COLS { THREADS as usize / 32 } else { 1 };
    LaunchConfig::linear(sizes.rows.div_ceil(rows_per_block) as u32, THREADS)
}

/// A thread per column, for each of `groups` groups of rows.
fn by_column(sizes: Sizes, groups: usize) -> LaunchConfig {
    LaunchConfig::grid([groups, sizes.cols.div_ceil(THREADS as usize)], THREADS)
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let sizes = call.sizes;
    LayerNormFwd::<T> {
        y: y.slice_mut(),
        mean: call.mean.slice_mut(),
        rstd: call.rstd.slice_mut(),
        x: call.x.slice(),
        gamma: optional(call.weight.as_ref()),
        beta: optional(bias),
        modulation: optional(call.matrix.as_ref()),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_sample: sizes.rows_per_sample as u32,
        modulation_stride: sizes.modulation_stride as u32,
        shift_column: sizes.shift_column as u32,
        scale_column: sizes.scale_column as u32,
        eps: sizes.epsilon,
    }
    .launch(accelerator, by_row(sizes))
}

pub(super) fn backward_input<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let sizes = call.sizes;
    LayerNormBwdInput::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        gamma: optional(call.weight.as_ref()),
        modulation: optional(call.matrix.as_ref()),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_sample: sizes.rows_per_sample as u32,
        modulation_stride: sizes.modulation_stride as u32,
        scale_column: sizes.scale_column as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, by_row(sizes))
}

pub(super) fn backward_affine<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    partial: &Tensor,
    dw: &Destination,
    db: &Destination,
) -> Result<()> {
    let sizes = call.sizes;
    LayerNormBwdAffinePartial::<T> {
        partial: partial.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_part: ROWS_PER_PART as u32,
    }
    .launch(accelerator, by_column(sizes, sizes.parts()))?;
    LayerNormBwdAffineFinal {
        dgamma: dw.slice_mut(),
        dbeta: db.slice_mut(),
        partial: partial.slice(),
        parts: sizes.parts() as u32,
        cols: sizes.cols as u32,
        accumulate: dw.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::linear(sizes.cols.div_ceil(FINAL_COLS) as u32, THREADS))
}

pub(super) fn backward_modulation<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    dm: &Destination,
) -> Result<()> {
    let sizes = call.sizes;
    LayerNormBwdModulation::<T> {
        dmodulation: dm.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        cols: sizes.cols as u32,
        rows_per_sample: sizes.rows_per_sample as u32,
        modulation_stride: sizes.modulation_stride as u32,
        shift_column: sizes.shift_column as u32,
        scale_column: sizes.scale_column as u32,
        accumulate: dm.mode.flag(),
    }
    .launch(accelerator, by_column(sizes, sizes.samples()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_has_a_thread() {
        for (rows, cols) in [(1, 1), (130, 384), (7, 129), (3, 2000)] {
            let sizes = Sizes {
                rows,
                cols,
                rows_per_sample: rows,
                modulation_stride: 0,
                shift_column: 0,
                scale_column: 0,
                epsilon: 1e-5,
            };
            let config = by_row(sizes);
            let rows_per_block = if cols > WARP_COLS { 1 } else { config.block[0] as usize / 32 };
            assert!(config.grid[0] as usize * rows_per_block >= rows);
            let config = by_column(sizes, 3);
            assert!((config.grid[1] * config.block[0]) as usize >= cols);
            assert_eq!(config.grid[0], 3);
        }
    }
}
