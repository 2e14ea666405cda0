//! Batch normalisation on accelerators: launch configurations from the layout, and the launches.

use super::{Call, Gradients, Layout, Running, Statistics, THREADS};
use crate::device::launches::{
    BatchNormBwdInput, BatchNormBwdPartial, BatchNormBwdSums, BatchNormFwdApply, BatchNormFwdPartial,
    BatchNormFwdRunning, BatchNormFwdStatistics,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, wanted};
use crate::tensor::Tensor;

/// Channels of a block that joins chunks, and its threads.
const JOINED: usize = 32;
const JOINING: u32 = 1024;

/// Blocks \[chunk, tile of channels\].
fn by_chunk(layout: Layout) -> LaunchConfig {
    LaunchConfig::grid([layout.chunks, layout.tiles], THREADS as u32)
}

fn by_channel(layout: Layout) -> LaunchConfig {
    LaunchConfig::linear(layout.channels.div_ceil(JOINED) as u32, JOINING)
}

/// `partial` `[chunks, 2, C]`: scratch, for the batch's statistics.
pub(super) fn statistics<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    running: &Running,
    partial: Option<&Tensor>,
) -> Result<()> {
    let layout = call.layout;
    let Some(partial) = partial else {
        return BatchNormFwdRunning {
            mean: call.mean.slice_mut(),
            rstd: call.rstd.slice_mut(),
            running_mean: running.mean.slice(),
            running_variance: running.variance.slice(),
            channels: layout.channels as u32,
            epsilon: call.norm.epsilon,
        }
        .launch(accelerator, LaunchConfig::elements(layout.channels, THREADS as u32));
    };
    BatchNormFwdPartial::<T> {
        partial: partial.slice_mut(),
        x: call.x.slice(),
        rows: layout.rows as u32,
        channels: layout.channels as u32,
        chunk_rows: layout.chunk_rows as u32,
        columns: layout.columns as u32,
    }
    .launch(accelerator, by_chunk(layout))?;
    BatchNormFwdStatistics {
        mean: call.mean.slice_mut(),
        rstd: call.rstd.slice_mut(),
        running_mean: running.mean.slice_mut(),
        running_variance: running.variance.slice_mut(),
        partial: partial.slice(),
        rows: layout.rows as u32,
        channels: layout.channels as u32,
        chunk_rows: layout.chunk_rows as u32,
        chunks: layout.chunks as u32,
        epsilon: call.norm.epsilon,
        momentum: call.norm.momentum,
    }
    .launch(accelerator, by_channel(layout))
}

pub(super) fn apply<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    y: &Tensor,
    residual: Option<&Tensor>,
) -> Result<()> {
    let layout = call.layout;
    BatchNormFwdApply::<T> {
        y: y.slice_mut(),
        x: call.x.slice(),
        residual: optional(residual),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        rows: layout.rows as u32,
        channels: layout.channels as u32,
        chunk_rows: layout.chunk_rows as u32,
        columns: layout.columns as u32,
        relu: call.norm.relu as u32,
    }
    .launch(accelerator, by_chunk(layout))
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
) -> Result<()> {
    let layout = call.layout;
    if let Some([partial, sums]) = &gradients.sums {
        BatchNormBwdPartial::<T> {
            partial: partial.slice_mut(),
            dy: dy.slice(),
            x: call.x.slice(),
            y: optional(call.y.as_ref()),
            mean: call.mean.slice(),
            rstd: call.rstd.slice(),
            weight: call.weight.slice(),
            bias: call.bias.slice(),
            rows: layout.rows as u32,
            channels: layout.channels as u32,
            chunk_rows: layout.chunk_rows as u32,
            columns: layout.columns as u32,
            relu: call.norm.relu as u32,
        }
        .launch(accelerator, by_chunk(layout))?;
        let (dweight, accumulate_weight) = wanted(gradients.dweight.as_ref());
        let (dbias, accumulate_bias) = wanted(gradients.dbias.as_ref());
        BatchNormBwdSums {
            sums: sums.slice_mut(),
            dweight,
            dbias,
            partial: partial.slice(),
            channels: layout.channels as u32,
            chunks: layout.chunks as u32,
            accumulate_weight,
            accumulate_bias,
        }
        .launch(accelerator, by_channel(layout))?;
    }
    if gradients.dx.is_none() && gradients.dresidual.is_none() {
        return Ok(());
    }
    let (dx, accumulate_x) = wanted(gradients.dx.as_ref());
    let (dresidual, accumulate_residual) = wanted(gradients.dresidual.as_ref());
    let sums = gradients.sums.as_ref().filter(|_| call.norm.statistics == Statistics::Batch);
    BatchNormBwdInput::<T> {
        dx,
        dresidual,
        dy: dy.slice(),
        x: call.x.slice(),
        y: optional(call.y.as_ref()),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        sums: optional(sums.map(|[_, sums]| sums)),
        rows: layout.rows as u32,
        channels: layout.channels as u32,
        chunk_rows: layout.chunk_rows as u32,
        columns: layout.columns as u32,
        relu: call.norm.relu as u32,
        accumulate_x,
        accumulate_residual,
    }
    .launch(accelerator, by_chunk(layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn every_element_has_a_thread() {
        for (rows, channels) in [(2, 1), (7, 3), (131_072, 64), (2048, 512), (300, 1030), (5, 100_000)] {
            for dtype in [DType::F32, DType::BF16] {
                let layout = Layout::new(rows, channels, dtype);
                assert!(layout.tiles * layout.columns * (16 / dtype.size()) >= channels);
                assert!(layout.chunks * layout.chunk_rows >= rows && (layout.chunks - 1) * layout.chunk_rows < rows);
                assert!(THREADS.is_multiple_of(layout.columns) && layout.columns <= 32);
            }
        }
        assert_eq!(by_channel(Layout::new(9, 33, DType::F32)).grid, [2, 1, 1]);
    }
}
