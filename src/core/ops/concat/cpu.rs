//! Concatenation on the CPU: rows in parallel.

use super::Part;
use crate::ops::host::{Float, parallel, vector};
use crate::tape::Destination;
use crate::tensor::Tensor;

pub(super) fn forward<T: Float>(sizes: Part, x: &Tensor, y: &Tensor) {
    let Part { part, width, column, .. } = sizes;
    let x = x.host::<T>();
    parallel::for_rows(y.host_mut::<T>(), width, |row, y| {
        y[column..][..part].copy_from_slice(&x[row * part..][..part]);
    });
}

pub(super) fn backward<T: Float>(sizes: Part, dy: &Tensor, dx: &Destination) {
    let Part { part, width, column, .. } = sizes;
    let (dy, mode) = (dy.host::<T>(), dx.mode);
    parallel::for_rows(dx.host_mut::<T>(), part, |row, dx| {
        vector::map(dx, &dy[row * width + column..][..part], mode, |dy| dy);
    });
}
