//! The elementwise family on accelerators: 16 bytes a thread.

use super::{Function, Gate, GateBackward};
use crate::device::launches::{
    ElementwiseAdd, ElementwiseGateBwd, ElementwiseGateFwd, ElementwiseGeluBwd, ElementwiseGeluFwd,
    ElementwiseRelu6Bwd, ElementwiseRelu6Fwd, ElementwiseReluBwd, ElementwiseReluFwd, ElementwiseScale,
    ElementwiseSiluBwd, ElementwiseSiluFwd,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, wanted};
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

/// Elements of a 16-byte access.
fn wide<T>() -> usize {
    16 / size_of::<T>()
}

/// A thread per `elements`; None where there is nothing to do.
fn by_piece(len: usize, elements: usize) -> Option<LaunchConfig> {
    (len > 0).then(|| LaunchConfig::elements(len.div_ceil(elements), THREADS))
}

pub(super) fn unary<T: Stored>(
    accelerator: &dyn Accelerator,
    function: Function,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let Some(config) = by_piece(x.len(), wide::<T>()) else { return Ok(()) };
    let (y, x, len) = (y.slice_mut(), x.slice(), x.len() as u64);
    match function {
        Function::Gelu => ElementwiseGeluFwd::<T> { y, x, len }.launch(accelerator, config),
        Function::Silu => ElementwiseSiluFwd::<T> { y, x, len }.launch(accelerator, config),
        Function::Relu => ElementwiseReluFwd::<T> { y, x, len }.launch(accelerator, config),
        Function::Relu6 => ElementwiseRelu6Fwd::<T> { y, x, len }.launch(accelerator, config),
    }
}

pub(super) fn unary_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    function: Function,
    x: &Tensor,
    dy: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let Some(config) = by_piece(x.len(), wide::<T>()) else { return Ok(()) };
    let (accumulate, len) = (dx.mode.flag(), x.len() as u64);
    let (dx, dy, x) = (dx.slice_mut(), dy.slice(), x.slice());
    match function {
        Function::Gelu => ElementwiseGeluBwd::<T> { dx, dy, x, len, accumulate }.launch(accelerator, config),
        Function::Silu => ElementwiseSiluBwd::<T> { dx, dy, x, len, accumulate }.launch(accelerator, config),
        Function::Relu => ElementwiseReluBwd::<T> { dx, dy, x, len, accumulate }.launch(accelerator, config),
        Function::Relu6 => ElementwiseRelu6Bwd::<T> { dx, dy, x, len, accumulate }.launch(accelerator, config),
    }
}

pub(super) fn add<T: Stored>(accelerator: &dyn Accelerator, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<()> {
    let Some(config) = by_piece(y.len(), wide::<T>()) else { return Ok(()) };
    ElementwiseAdd::<T> { y: y.slice_mut(), a: a.slice(), b: b.slice(), len: y.len() as u64 }
        .launch(accelerator, config)
}

pub(super) fn scale<T: Stored>(accelerator: &dyn Accelerator, to: &Destination, x: &Tensor, factor: f32) -> Result<()> {
    let Some(config) = by_piece(x.len(), wide::<T>()) else { return Ok(()) };
    ElementwiseScale::<T> { y: to.slice_mut(), x: x.slice(), factor, len: x.len() as u64, accumulate: to.mode.flag() }
        .launch(accelerator, config)
}

pub(super) fn gate<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Gate,
    x: &Tensor,
    y: &Tensor,
    modulation: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let pieces = sizes.rows * sizes.cols.div_ceil(wide::<T>());
    let Some(config) = by_piece(pieces, 1) else { return Ok(()) };
    ElementwiseGateFwd::<T> {
        out: out.slice_mut(),
        x: x.slice(),
        y: y.slice(),
        modulation: modulation.slice(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_sample: sizes.rows_per_sample as u32,
        modulation_stride: sizes.stride as u32,
        column: sizes.column as u32,
    }
    .launch(accelerator, config)
}

/// A thread per 16 bytes of columns, in as few whole warps as hold them, at most 128 threads.
fn by_column<T>(sizes: Gate) -> LaunchConfig {
    let pieces = sizes.cols.div_ceil(wide::<T>());
    let threads = pieces.next_multiple_of(32).min(128);
    LaunchConfig::grid([sizes.rows / sizes.rows_per_sample, pieces.div_ceil(threads)], threads as u32)
}

pub(super) fn gate_backward<T: Stored>(accelerator: &dyn Accelerator, call: &GateBackward) -> Result<()> {
    let sizes = call.sizes;
    if sizes.rows * sizes.cols == 0 {
        return Ok(());
    }
    let (dy, accumulate) = wanted(call.dy.as_ref());
    ElementwiseGateBwd::<T> {
        dy,
        dmodulation: wanted(call.dm.as_ref()).0,
        dout: call.dout.slice(),
        y: optional(call.y),
        modulation: call.matrix.slice(),
        cols: sizes.cols as u32,
        rows_per_sample: sizes.rows_per_sample as u32,
        modulation_stride: sizes.stride as u32,
        column: sizes.column as u32,
        accumulate,
    }
    .launch(accelerator, by_column::<T>(sizes))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_element_has_a_thread() {
        assert_eq!(by_piece(0, 4), None);
        for len in [1, 1023, 1024, 1025] {
            let config = by_piece(len, 4).unwrap();
            assert!((config.grid[0] * config.block[0]) as usize * 4 >= len);
        }
        for cols in [1, 33, 384, 5000] {
            let sizes = Gate { rows: 6, cols, rows_per_sample: 2, stride: cols, column: 0 };
            let config = by_column::<bf16>(sizes);
            assert_eq!(config.grid[0], 3);
            assert!((config.grid[1] * config.block[0]) as usize * 8 >= cols);
        }
    }
}
