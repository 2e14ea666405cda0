//! Head norm on accelerators: launch configurations from sizes, and the launches.

use super::{Call, Gradients, OP, ROWS_PER_PART, Sizes};
use crate::device::launches::{QkNormBwdFinal, QkNormBwdPartial, QkNormFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::{Stored, wanted};
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// Slices that a block does at a time.
const TEAMS: usize = 32;
/// The largest head dimension that the kernels' registers are laid out for.
const MAX_DIM: usize = 128;

fn by_slice(sizes: Sizes) -> LaunchConfig {
    LaunchConfig::linear((sizes.rows * sizes.slices()).div_ceil(TEAMS) as u32, THREADS)
}

fn by_part(sizes: Sizes) -> LaunchConfig {
    LaunchConfig::linear(sizes.parts() as u32, THREADS)
}

fn by_column(sizes: Sizes) -> LaunchConfig {
    LaunchConfig::linear((2 * sizes.dim).div_ceil(32) as u32, THREADS)
}

pub(super) fn forward<T: Stored>(accelerator: &dyn Accelerator, call: &Call, y: &Tensor) -> Result<()> {
    let sizes = call.sizes;
    if sizes.dim > MAX_DIM {
        let reason = format!("heads of {} columns; the kernels take up to {MAX_DIM}: use more heads", sizes.dim);
        return Err(Error::Unsupported { op: OP, device: accelerator.name(), reason });
    }
    QkNormFwd::<T> {
        y: y.slice_mut(),
        rstd: call.rstd.slice_mut(),
        x: call.x.slice(),
        q_weight: call.q_weight.slice(),
        k_weight: call.k_weight.slice(),
        rows: sizes.rows as u32,
        heads: sizes.heads as u32,
        kv_heads: sizes.kv_heads as u32,
        d: sizes.dim as u32,
        eps: sizes.epsilon,
    }
    .launch(accelerator, by_slice(sizes))
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
    partial: &Tensor,
) -> Result<()> {
    let sizes = call.sizes;
    QkNormBwdPartial::<T> {
        dx: gradients.dx.slice_mut(),
        partial: partial.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        rstd: call.rstd.slice(),
        q_weight: call.q_weight.slice(),
        k_weight: call.k_weight.slice(),
        rows: sizes.rows as u32,
        heads: sizes.heads as u32,
        kv_heads: sizes.kv_heads as u32,
        d: sizes.dim as u32,
        rows_per_part: ROWS_PER_PART as u32,
        accumulate: gradients.dx.mode.flag(),
    }
    .launch(accelerator, by_part(sizes))?;
    if gradients.dq_weight.is_none() && gradients.dk_weight.is_none() {
        return Ok(());
    }
    let (dq_weight, accumulate_q) = wanted(gradients.dq_weight.as_ref());
    let (dk_weight, accumulate_k) = wanted(gradients.dk_weight.as_ref());
    QkNormBwdFinal {
        dq_weight,
        dk_weight,
        partial: partial.slice(),
        parts: sizes.parts() as u32,
        d: sizes.dim as u32,
        accumulate_q,
        accumulate_k,
    }
    .launch(accelerator, by_column(sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slice_and_column_has_a_team() {
        for (rows, heads, kv_heads, dim) in [(1, 1, 1, 1), (130, 8, 2, 48), (7, 3, 3, 128)] {
            let sizes = Sizes { rows, heads, kv_heads, dim, epsilon: 1e-6 };
            assert!(by_slice(sizes).grid[0] as usize * TEAMS >= rows * (heads + 2 * kv_heads));
            assert!(by_part(sizes).grid[0] as usize * ROWS_PER_PART >= rows);
            assert!(by_column(sizes).grid[0] as usize * 32 >= 2 * dim);
        }
    }
}
