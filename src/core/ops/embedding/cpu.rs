//! Embedding on the CPU.

use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn forward<T: Float>(table: &Tensor, indices: &Tensor, y: &Tensor) {
    let width = table.shape().last();
    let (table, indices) = (table.host::<T>(), indices.host::<i32>());
    parallel::for_rows(y.host_mut::<T>(), width, |b, y| {
        match table.get(indices[b].max(0) as usize * width..).and_then(|rest| rest.get(..width)) {
            Some(row) if indices[b] >= 0 => y.copy_from_slice(row),
            _ => y.fill(T::ZERO),
        }
    });
}

pub(super) fn backward<T: Float>(dy: &Tensor, indices: &Tensor, dtable: &Destination) {
    let width = dy.shape().last();
    let (dy, indices) = (dy.host::<T>(), indices.host::<i32>());
    let mode = dtable.mode;
    parallel::for_rows(dtable.host_mut::<T>(), width, |v, row| {
        if mode == Accumulate::Write {
            row.fill(T::ZERO);
        }
        for (dy, _) in dy.chunks_exact(width).zip(indices).filter(|&(_, &index)| index == v as i32) {
            vector::axpy(row, T::ONE, dy);
        }
    });
}
