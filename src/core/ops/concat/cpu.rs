//! Concatenation on the CPU: rows in parallel.

use super::Part;
use crate::ops::host::{Held, parallel, vector};
use crate::tape::Destination;
use crate::tensor::Tensor;

pub(super) fn forward<E: Held>(sizes: Part, x: &Tensor, y: &Tensor) {
    let Part { part, width, column, .. } = sizes;
    let x = x.host::<E>();
    parallel::for_rows(y.host_mut::<E>(), width, |row, y| {
        y[column..][..part].copy_from_slice(&x[row * part..][..part]);
    });
}

pub(super) fn backward<E: Held>(sizes: Part, dy: &Tensor, dx: &Destination) {
    let Part { part, width, column, .. } = sizes;
    let (dy, mode) = (dy.host::<E>(), dx.mode);
    parallel::for_rows(dx.host_mut::<E>(), part, |row, dx| {
        vector::map(dx, &dy[row * width + column..][..part], mode, |dy| dy);
    });
}
