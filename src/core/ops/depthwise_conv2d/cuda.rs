//! Depthwise convolution on accelerators: a thread per 16 bytes; the weight's gradient in parts.

use super::{Sizes, To};
use crate::device::launches::{DepthwiseConv2dBwdInput, DepthwiseConv2dBwdWeight, DepthwiseConv2dFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional};
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 128;
/// Parts that a weight's gradient is cut into, at most: enough blocks for a large GPU.
const PARTS: usize = 256;

fn pieces<T>(channels: usize) -> usize {
    channels.div_ceil(16 / size_of::<T>())
}

fn rows_per_part(sizes: Sizes) -> usize {
    (sizes.batch * sizes.rows).div_ceil(PARTS)
}

/// Rows of scratch for the weight's gradient.
pub(super) fn parts(sizes: Sizes) -> usize {
    (sizes.batch * sizes.rows).div_ceil(rows_per_part(sizes))
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let threads = sizes.batch * sizes.rows * sizes.cols * pieces::<T>(sizes.channels);
    DepthwiseConv2dFwd::<T> {
        y: y.slice_mut(),
        x: x.slice(),
        w: weight.slice(),
        bias: optional(bias),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.pad_before as u32,
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn input_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    weight: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let threads = sizes.batch * sizes.height * sizes.width * pieces::<T>(sizes.channels);
    DepthwiseConv2dBwdInput::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        w: weight.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.pad_before as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements(threads, THREADS))
}

pub(super) fn weight_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dy: &Tensor,
    x: &Tensor,
    partial: &Tensor,
    _to: &To,
) -> Result<()> {
    let blocks = sizes.channels.div_ceil(THREADS as usize);
    DepthwiseConv2dBwdWeight::<T> {
        partial: partial.slice_mut(),
        dy: dy.slice(),
        x: x.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        kernel: sizes.kernel as u32,
        stride: sizes.window.stride as u32,
        padding: sizes.window.pad_before as u32,
        rows_per_part: rows_per_part(sizes) as u32,
    }
    .launch(accelerator, LaunchConfig::grid([parts(sizes), blocks], THREADS))
}
