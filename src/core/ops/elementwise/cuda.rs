//! The elementwise family on accelerators: 16 bytes a thread.

use super::Function;
use crate::device::launches::{
    ElementwiseAdd, ElementwiseGeluBwd, ElementwiseGeluFwd, ElementwiseRelu6Bwd, ElementwiseRelu6Fwd,
    ElementwiseReluBwd, ElementwiseReluFwd, ElementwiseScale, ElementwiseSiluBwd, ElementwiseSiluFwd,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_a_thread() {
        assert_eq!(by_piece(0, 4), None);
        for len in [1, 1023, 1024, 1025] {
            let config = by_piece(len, 4).unwrap();
            assert!((config.grid[0] * config.block[0]) as usize * 4 >= len);
        }
    }
}
