//! Layer norm on accelerators: launch configurations from sizes, and the launches.

use super::{Call, Gradients, ROWS_PER_PART, Sizes};
use crate::device::launches::{
    LayerNormBwdColumns, LayerNormBwdInput, LayerNormBwdNarrow, LayerNormBwdWide, LayerNormFwdNarrow, LayerNormFwdWide,
    LayerNormFwdWidest,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, optional_mut, wanted};
use crate::tensor::Tensor;

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows that a block takes at once, one by each warp.
const WARPS: usize = 8;
/// Warps that a large GPU holds at once, about; with more rows a warp takes several, and what they share stays in registers.
const WARPS_AT_ONCE: usize = 4096;

/// Who a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A warp that holds up to 512 columns in registers.
    Narrow,
    /// A warp that holds up to 1024.
    Wide,
    /// A block.
    Widest,
}

impl Form {
    fn of(sizes: Sizes) -> Self {
        match sizes.cols {
            0..=512 => Form::Narrow,
            513..=1024 => Form::Wide,
            _ => Form::Widest,
        }
    }
}

impl Sizes {
    /// Rows of a warp in the forward.
    fn rows_per_warp(&self) -> usize {
        (self.rows / WARPS_AT_ONCE).clamp(1, 16)
    }

    fn forward_config(&self) -> LaunchConfig {
        let rows_per_block = if Form::of(*self) == Form::Widest { 1 } else { WARPS * self.rows_per_warp() };
        LaunchConfig::linear(self.rows.div_ceil(rows_per_block) as u32, THREADS)
    }

    /// Rows of a block in the backward: a sample's where it has a scale and shift of its own.
    fn rows_per_part(&self) -> usize {
        if self.modulation_stride > 0 { self.rows_per_sample } else { ROWS_PER_PART }
    }

    fn backward_parts(&self) -> usize {
        self.rows.div_ceil(self.rows_per_part().max(1))
    }
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let sizes = call.sizes;
    /// The forms take the same arguments, but for how rows are shared out.
    macro_rules! launch {
        ($form:ident { $($field:ident: $value:expr),* }) => {
            $form::<T> {
                y: y.slice_mut(),
                mean: call.mean.slice_mut(),
                rstd: call.rstd.slice_mut(),
                x: call.x.slice(),
                gamma: optional(call.weight.as_ref()),
                beta: optional(bias),
                modulation: optional(call.matrix.as_ref()),
                $($field: $value,)*
                cols: sizes.cols as u32,
                rows_per_sample: sizes.rows_per_sample as u32,
                modulation_stride: sizes.modulation_stride as u32,
                shift_column: sizes.shift_column as u32,
                scale_column: sizes.scale_column as u32,
                eps: sizes.epsilon,
            }
            .launch(accelerator, sizes.forward_config())
        };
    }
    let (rows, rows_per_warp) = (sizes.rows as u32, sizes.rows_per_warp() as u32);
    match Form::of(sizes) {
        Form::Narrow => launch!(LayerNormFwdNarrow { rows: rows, rows_per_warp: rows_per_warp }),
        Form::Wide => launch!(LayerNormFwdWide { rows: rows, rows_per_warp: rows_per_warp }),
        Form::Widest => launch!(LayerNormFwdWidest {}),
    }
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    to: &Gradients,
) -> Result<()> {
    let sizes = call.sizes;
    if sizes.rows == 0 || sizes.cols == 0 {
        return Ok(());
    }
    match Form::of(sizes) {
        Form::Widest => backward_by_block::<T>(accelerator, call, dy, to),
        form => backward_by_warp::<T>(accelerator, call, dy, to, form),
    }
}

/// All sums in one pass over `dy` and `x`.
fn backward_by_warp<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    to: &Gradients,
    form: Form,
) -> Result<()> {
    let sizes = call.sizes;
    let config = LaunchConfig::linear(sizes.backward_parts() as u32, THREADS);
    let ((dx, accumulate), (dmodulation, accumulate_modulation)) = (wanted(to.x.as_ref()), wanted(to.matrix.as_ref()));
    macro_rules! launch {
        ($form:ident) => {
            $form::<T> {
                dx,
                partial: optional_mut(to.affine.as_ref().map(|affine| &affine.partial)),
                dmodulation,
                dy: dy.slice(),
                x: call.x.slice(),
                mean: call.mean.slice(),
                rstd: call.rstd.slice(),
                gamma: optional(call.weight.as_ref()),
                modulation: optional(call.matrix.as_ref()),
                rows: sizes.rows as u32,
                cols: sizes.cols as u32,
                rows_per_part: sizes.rows_per_part() as u32,
                modulation_stride: sizes.modulation_stride as u32,
                shift_column: sizes.shift_column as u32,
                scale_column: sizes.scale_column as u32,
                accumulate,
                accumulate_modulation,
            }
            .launch(accelerator, config)
        };
    }
    match form {
        Form::Narrow => launch!(LayerNormBwdNarrow),
        _ => launch!(LayerNormBwdWide),
    }
}

/// By rows, then by columns.
fn backward_by_block<T: Stored>(accelerator: &dyn Accelerator, call: &Call, dy: &Tensor, to: &Gradients) -> Result<()> {
    let sizes = call.sizes;
    if let Some(dx) = &to.x {
        LayerNormBwdInput::<T> {
            dx: dx.slice_mut(),
            dy: dy.slice(),
            x: call.x.slice(),
            mean: call.mean.slice(),
            rstd: call.rstd.slice(),
            gamma: optional(call.weight.as_ref()),
            modulation: optional(call.matrix.as_ref()),
            cols: sizes.cols as u32,
            rows_per_sample: sizes.rows_per_sample as u32,
            modulation_stride: sizes.modulation_stride as u32,
            scale_column: sizes.scale_column as u32,
            accumulate: dx.mode.flag(),
        }
        .launch(accelerator, LaunchConfig::linear(sizes.rows as u32, THREADS))?;
    }
    if to.affine.is_none() && to.matrix.is_none() {
        return Ok(());
    }
    let (dmodulation, accumulate) = wanted(to.matrix.as_ref());
    LayerNormBwdColumns::<T> {
        partial: optional_mut(to.affine.as_ref().map(|affine| &affine.partial)),
        dmodulation,
        dy: dy.slice(),
        x: call.x.slice(),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_part: sizes.rows_per_part() as u32,
        modulation_stride: sizes.modulation_stride as u32,
        shift_column: sizes.shift_column as u32,
        scale_column: sizes.scale_column as u32,
        accumulate,
    }
    .launch(accelerator, LaunchConfig::grid([sizes.backward_parts(), sizes.cols.div_ceil(THREADS as usize)], THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_has_a_thread() {
        for (samples, rows_per_sample, cols) in [(1, 1, 1), (256, 65, 384), (7, 1, 129), (2, 9, 1024), (3, 1, 2000)] {
            for modulation_stride in [0, 6 * cols] {
                let rows = samples * rows_per_sample;
                let (shift_column, scale_column, epsilon) = (0, 0, 1e-5);
                let sizes =
                    Sizes { rows, cols, rows_per_sample, modulation_stride, shift_column, scale_column, epsilon };
                let config = sizes.forward_config();
                let of_block = if cols > 1024 { 1 } else { WARPS * sizes.rows_per_warp() };
                assert!(
                    config.grid[0] as usize * of_block >= rows && config.grid[0] as usize * of_block < rows + of_block
                );
                let parts = if modulation_stride > 0 { samples } else { sizes.parts() };
                assert_eq!(sizes.backward_parts(), parts, "the parts that scratch has room for");
                assert!(Form::of(sizes) == Form::Widest || cols <= 1024);
            }
        }
    }
}
