//! Pooling on accelerators: a thread per 16 bytes.

use super::Sizes;
use crate::device::launches::{PoolBwdAverage, PoolBwdMax, PoolBwdMean, PoolFwdAverage, PoolFwdMax, PoolFwdMean};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 128;

/// Threads of a block that sums over an image's pixels, and the pieces of channels that it takes.
const SUMMING: u32 = 256;
const PIECES: usize = 32;

fn pieces<T>(channels: usize) -> usize {
    channels.div_ceil(16 / size_of::<T>())
}

pub(super) fn max<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    x: &Tensor,
    y: &Tensor,
    winners: &Tensor,
) -> Result<()> {
    let threads = sizes.batch * sizes.rows * sizes.cols * pieces::<T>(sizes.channels);
    PoolFwdMax::<T> {
        y: y.slice_mut(),
        winners: winners.slice_mut(),
        x: x.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.window.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.padding as u32,
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn max_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    winners: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let threads = sizes.batch * sizes.height * sizes.width * pieces::<T>(sizes.channels);
    PoolBwdMax::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        winners: winners.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.window.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.padding as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn mean<T: Stored>(accelerator: &dyn Accelerator, sizes: Sizes, x: &Tensor, y: &Tensor) -> Result<()> {
    let threads = sizes.batch * sizes.rows * sizes.cols * pieces::<T>(sizes.channels);
    PoolFwdMean::<T> {
        y: y.slice_mut(),
        x: x.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.window.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.padding as u32,
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn mean_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let threads = sizes.batch * sizes.height * sizes.width * pieces::<T>(sizes.channels);
    PoolBwdMean::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.window.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.padding as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn average<T: Stored>(accelerator: &dyn Accelerator, pixels: usize, x: &Tensor, y: &Tensor) -> Result<()> {
    let (batch, channels) = (y.shape().rows(), y.shape().last());
    let tiles = pieces::<T>(channels).div_ceil(PIECES);
    let config = LaunchConfig::grid([batch, tiles], SUMMING);
    PoolFwdAverage::<T> { y: y.slice_mut(), x: x.slice(), pixels: pixels as u32, channels: channels as u32 }
        .launch(accelerator, config)
}

pub(super) fn average_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    pixels: usize,
    dy: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let (batch, channels) = (dy.shape().rows(), dy.shape().last());
    PoolBwdAverage::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        batch: batch as u32,
        pixels: pixels as u32,
        channels: channels as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(batch * pixels * pieces::<T>(channels), THREADS))
}
