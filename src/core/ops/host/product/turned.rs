//! Products by matrix registers whose sum runs down the columns of both sides, such as a weight's gradient: both are packed.
//!
//! A task has some rows by some columns of the result, and packs what it needs of both sides by itself: what another core has packed would
//! come slower than it is packed. The sum goes by pieces of which the right side stays in the second cache; from piece to piece it goes
//! on from what is in the result, so that the order of summation is that of `matrices.rs` whatever the pieces and tasks.

use pulp::NullaryFnOnce;

use super::blocks::column_strips;
use super::factor::{Factor, Unit};
use super::matrices::{BLOCK, Chunks, Left, LeftRows, Right, SIDE, Target, task_blocks};
use super::registers::MatrixRegisters;
use super::{Matrix, depth_blocks};
use crate::ops::host::float::Float;
use crate::ops::host::parallel::{self, Shared};
use crate::tape::Accumulate;

/// Bytes of a piece of the right side.
const RIGHT_BYTES: usize = 1 << 19;
/// Rows of the left side that are packed at a time: long runs of memory, which the prefetchers follow.
const ROWS: usize = 8 * BLOCK;

/// `out = a · b`, or `+=`, with the strides of `out`.
pub(super) struct Turned<'a, T: Factor, U> {
    pub unit: U,
    pub a: Matrix<'a, T>,
    pub b: Matrix<'a, T>,
    pub out: Shared<f32>,
    pub strides: (usize, usize),
    pub mode: Accumulate,
}

/// Some rows by some columns.
struct Task<'a, 'b, T: Factor, U> {
    of: &'a Turned<'b, T, U>,
    rows: (usize, usize),
    columns: (usize, usize),
}

impl<T: Factor, U: Unit<T>> Turned<'_, T, U> {
    pub fn run(&self, threads: usize) {
        let (m, n) = (self.a.rows, self.b.cols);
        let blocks = (m.div_ceil(BLOCK), n.div_ceil(BLOCK));
        let (rows, columns) = task_blocks(blocks, (1, 1), threads);
        let (down, across) = (blocks.0.div_ceil(rows), blocks.1.div_ceil(columns));
        let part = |nth: usize, size: usize, all: usize| (nth * size * BLOCK, ((nth + 1) * size * BLOCK).min(all));
        parallel::for_each(down * across, if threads == 1 { 0 } else { usize::MAX }, |task| {
            let (rows, columns) = (part(task / across, rows, m), part(task % across, columns, n));
            // Here, not further out: only what is inlined into this call is compiled for `U`.
            self.unit.vectorize(Task { of: self, rows, columns });
        });
    }
}

impl<T: Factor, U: Unit<T>> NullaryFnOnce for Task<'_, '_, T, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (of, width) = (self.of, (self.columns.1 - self.columns.0).next_multiple_of(BLOCK));
        let whole = of.a.cols.div_ceil(T::PER_STEP);
        let (blocks, depth) = depth_blocks::<T>(whole);
        for first in (0..blocks).map(|block| block * depth) {
            let all = Chunks::new(1, depth.min(whole - first));
            let most = (RIGHT_BYTES / (width * size_of::<T::Step>() * all.chunk)).max(1);
            let pieces = all.count.div_ceil(most).max(1);
            for piece in 0..pieces {
                let (begin, end) = (piece * all.count / pieces, (piece + 1) * all.count / pieces);
                let steps = (end * all.chunk).min(all.steps) - begin * all.chunk;
                let chunks = Chunks { segments: 1, steps, chunk: all.chunk, count: end - begin };
                let add = of.mode == Accumulate::Add || first > 0 || begin > 0;
                self.piece(chunks, first + begin * all.chunk, add, width);
            }
        }
    }
}

impl<T: Factor, U: Unit<T>> Task<'_, '_, T, U> {
    /// The sum over the chunks' steps, from step `p0` on.
    #[inline(always)]
    fn piece(&self, chunks: Chunks, p0: usize, add: bool, width: usize) {
        let Turned { unit, a, b, out, strides, .. } = self.of;
        let (registers, steps, avx512) = (unit.matrices(), chunks.steps, U::REGISTERS == 32);
        // An odd number of cache lines, which spreads rows over the cache.
        let pitch = (chunks.padded().div_ceil(SIDE) | 1) * SIDE;
        let columns = self.columns.1 - self.columns.0;
        let right = column_strips(*b, (self.columns.0, columns), SIDE);
        T::Float::with_scratch(width * steps + ROWS * pitch, |scratch| {
            let (to, rows_to) = scratch.split_at_mut(width * steps);
            let (to, rows_to) = (to.as_mut_ptr().cast::<T::Step>(), rows_to.as_mut_ptr().cast::<T::Step>());
            // SAFETY: the views' extents were checked; the scratch has room for both sides; these elements of the result are this task's
            // alone. Nothing foreign runs before the registers are closed.
            unsafe {
                right.pack(to, (p0, steps), avx512);
                for first in (self.rows.0..self.rows.1).step_by(ROWS) {
                    let count = (self.rows.1 - first).min(ROWS);
                    let left = column_strips(a.t(), (first, count), BLOCK);
                    left.pack_rows(rows_to, (p0, steps), pitch, 0..count.div_ceil(BLOCK), 0..steps, avx512);
                    for row in (0..count).step_by(BLOCK) {
                        let from = rows_to.add(row * pitch).cast_const().cast();
                        let left = Left::Filled { from, stride: pitch * size_of::<T::Step>() };
                        let left =
                            LeftRows::gather(chunks, (count - row).min(BLOCK), left, std::ptr::null_mut(), avx512);
                        let right =
                            Right { from: to.cast_const().cast(), step: SIDE, vector: steps * SIDE, segment: 0 };
                        let to = out.get().add((first + row) * strides.0 + self.columns.0 * strides.1);
                        registers.open(chunks.chunk);
                        left.multiply(registers, right, columns, Target { to, strides: *strides, add });
                        registers.close();
                    }
                }
            }
        });
    }
}
