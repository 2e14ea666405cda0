//! Concatenation on accelerators: a thread per 16 bytes.

use super::Part;
use crate::device::launches::{ConcatBwd, ConcatFwd};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

fn config<T>(sizes: Part) -> LaunchConfig {
    LaunchConfig::elements(sizes.rows * sizes.part.div_ceil(16 / size_of::<T>()), THREADS)
}

pub(super) fn forward<T: Stored>(accelerator: &dyn Accelerator, sizes: Part, x: &Tensor, y: &Tensor) -> Result<()> {
    ConcatFwd::<T> {
        y: y.slice_mut(),
        x: x.slice(),
        rows: sizes.rows as u32,
        part: sizes.part as u32,
        width: sizes.width as u32,
        column: sizes.column as u32,
    }
    .launch(accelerator, config::<T>(sizes))
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Part,
    dy: &Tensor,
    dx: &Destination,
) -> Result<()> {
    ConcatBwd::<T> {
        dx: dx.slice_mut(),
        dy: dy.slice(),
        rows: sizes.rows as u32,
        part: sizes.part as u32,
        width: sizes.width as u32,
        column: sizes.column as u32,
        accumulate: dx.mode.flag(),
    }
    .launch(accelerator, config::<T>(sizes))
}
