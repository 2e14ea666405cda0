//! The product by blocks: what is packed, and how the work is cut into tasks.
//!
//! The right side is packed by vectors: `[vector][step][lanes]`, block of the sum by block. The left side is read in place where
//! its steps are neighbours (a layer's forward pass and its input's gradient), else it is packed too, by the rows of a tile
//! (a weight's gradient). Each block of the sum has two phases, packing and multiplying, and the phases of all blocks
//! are one parallel run ([`parallel::for_phases`]).

use pulp::{Simd, WithSimd};

use super::tile::{self, Rows, Tile};
use super::{Matrix, MatrixMut, depth_blocks};
use crate::ops::host::float::Float;
use crate::ops::host::pack::Strips;
use crate::ops::host::parallel::{self, Shared};
use crate::tape::Accumulate;

/// The longest block of the summed dimension: a tile's rows of it fit the first cache.
pub(super) const DEPTH: usize = 512;
/// Lanes of the widest vector that there is, of any dtype; all others divide it.
pub(super) const LANES: usize = 16;
/// Columns that are packed at a time, and rows where those are packed: a bound on the scratch.
const PACKED: usize = 4096;
/// Bytes of the packed right side that a run of tasks reads again and again: they stay in the second cache.
const GROUP_BYTES: usize = 1 << 20;
/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 19;
/// Rows in one task, at most: some 50 µs of work.
const TASK_ROWS: usize = 32;

/// A product's right side.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, T> {
    Plain(Matrix<'a, T>),
    /// By up to 4096 columns, by blocks of the sum, by vectors: `[step][lanes]`.
    Packed(&'a [T]),
}

pub(super) struct Product<'a, T, F> {
    pub dst: MatrixMut<'a, T>,
    pub a: Matrix<'a, T>,
    pub b: Right<'a, T>,
    pub mode: Accumulate,
    pub then: F,
}

/// Whether AVX-512's transpose packs.
#[inline(always)]
fn avx512<T: Float, S: Simd>() -> bool {
    S::REGISTER_COUNT == 32 && T::lanes::<S>() * size_of::<T>() == 64
}

/// The columns `first..first + count` of `b`, as strips of `width`.
fn column_strips<T>(b: Matrix<T>, (first, count): (usize, usize), width: usize) -> Strips<T> {
    let from = b.data.as_ptr().wrapping_add(first * b.col_stride);
    Strips { from, lanes: count, lane_stride: b.col_stride, step_stride: b.row_stride, width }
}

impl<T: Float, F: Fn(usize, usize, &mut [T]) + Send + Sync> WithSimd for Product<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dst, a, b, mode, then } = self;
        let (m, n, k) = (dst.rows, dst.cols, a.cols);
        let in_place = a.col_stride == 1 || k <= 1;
        let strides = (dst.row_stride, dst.col_stride);
        let out = Shared::new(dst.data);
        let serial = m * n * k.max(1) <= SERIAL;
        let threads = if serial { 1 } else { parallel::threads() };
        let most_rows = if in_place { m } else { PACKED };
        for first_col in (0..n).step_by(PACKED) {
            for first_row in (0..m).step_by(most_rows) {
                let part = Part {
                    simd,
                    a,
                    b,
                    out,
                    strides,
                    rows: (first_row, (first_row + most_rows).min(m)),
                    cols: (first_col, (first_col + PACKED).min(n)),
                    in_place,
                    mode,
                    then: &then,
                };
                part.run(threads);
            }
        }
    }
}

/// Some rows by some columns of a product, the whole sum.
struct Part<'a, T, S, F> {
    simd: S,
    a: Matrix<'a, T>,
    b: Right<'a, T>,
    out: Shared<T>,
    strides: (usize, usize),
    rows: (usize, usize),
    cols: (usize, usize),
    in_place: bool,
    mode: Accumulate,
    then: &'a F,
}

impl<T: Float, S: Simd, F: Fn(usize, usize, &mut [T]) + Send + Sync> Part<'_, T, S, F> {
    #[inline(always)]
    fn run(&self, threads: usize) {
        let lanes = T::lanes::<S>();
        let (tile_rows, tile_vectors) = tile::largest::<S>();
        let (m, n) = (self.rows.1 - self.rows.0, self.cols.1 - self.cols.0);
        let (blocks, depth) = depth_blocks(self.a.cols);
        let vectors = n.div_ceil(lanes);

        // Tasks are groups of vectors by blocks of rows, the rows of one group after the other. Any cut gives the same bits.
        let group = (GROUP_BYTES / (depth.max(1) * lanes * size_of::<T>())).max(tile_vectors);
        let row_share = m.div_ceil(if threads == 1 { 1 } else { 8 * threads });
        // Whole tiles: packed rows come in strips of a tile's.
        let task_rows = row_share.div_ceil(tile_rows).min(TASK_ROWS / tile_rows) * tile_rows;
        let row_tasks = m.div_ceil(task_rows);
        let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(row_tasks) };
        let groups = vectors.div_ceil(group).max(wanted);
        let group = vectors.div_ceil(groups).next_multiple_of(tile_vectors);
        let groups = vectors.div_ceil(group);

        let b_strips = match self.b {
            Right::Plain(b) => Some(column_strips(b, (self.cols.0, n), lanes)),
            Right::Packed(_) => None,
        };
        let a_strips = (!self.in_place).then(|| column_strips(self.a.t(), (self.rows.0, m), tile_rows));
        let b_room = b_strips.as_ref().map_or(0, |strips| strips.len(depth));
        let a_room = a_strips.as_ref().map_or(0, |strips| strips.len(depth));
        let tasks = |strips: &Option<Strips<T>>, depth: usize| strips.as_ref().map_or(0, |strips| strips.tasks(depth));

        T::with_scratch(b_room + a_room, |scratch| {
            let scratch = Shared::new(scratch);
            let steps = |block: usize| (block * depth, depth.min(self.a.cols - block * depth));
            let count = |phase: usize| {
                let (block, packs) = (phase / 2, phase.is_multiple_of(2));
                let (_, depth) = steps(block);
                if packs { tasks(&b_strips, depth) + tasks(&a_strips, depth) } else { groups * row_tasks }
            };
            let work = |phase: usize, task: usize| {
                let (block, packs) = (phase / 2, phase.is_multiple_of(2));
                let (p0, depth) = steps(block);
                if packs {
                    let b_tasks = tasks(&b_strips, depth);
                    let (strips, task, to) =
                        if task < b_tasks { (&b_strips, task, 0) } else { (&a_strips, task - b_tasks, b_room) };
                    if let Some(strips) = strips {
                        // SAFETY: the view's extent was checked; each side has its own place in the scratch.
                        unsafe { strips.pack_task(scratch.get().add(to), (p0, depth), task, avx512::<T, S>()) };
                    }
                    return;
                }
                let packed_b = match self.b {
                    // Memory before these columns: the earlier columns' whole sums, then these columns' earlier blocks.
                    Right::Packed(packed) => {
                        let before = self.cols.0 * self.a.cols + vectors * lanes * p0;
                        packed[before..][..vectors * lanes * depth].as_ptr()
                    }
                    Right::Plain(_) => scratch.get().cast_const(),
                };
                let (i, j) = (task % row_tasks, task / row_tasks);
                let columns = (j * group * lanes, ((j + 1) * group * lanes).min(n));
                // Here, not further out: only what is inlined into this call is compiled for `S`.
                self.simd.vectorize(Task {
                    part: self,
                    packed_a: scratch.get().cast_const().wrapping_add(b_room),
                    packed_b,
                    rows: (i * task_rows, ((i + 1) * task_rows).min(m)),
                    columns,
                    steps: (p0, depth),
                    read: self.mode == Accumulate::Add || block > 0,
                    last: block + 1 == blocks,
                });
            };
            parallel::for_phases(threads, 2 * blocks, count, work);
        });
    }
}

/// One task of a product: some rows by some columns, both counted from the part's first, over one block of the sum.
struct Task<'a, 'b, T, S, F> {
    part: &'a Part<'b, T, S, F>,
    packed_a: *const T,
    packed_b: *const T,
    rows: (usize, usize),
    columns: (usize, usize),
    steps: (usize, usize),
    read: bool,
    last: bool,
}

impl<T: Float, S: Simd, F: Fn(usize, usize, &mut [T])> pulp::NullaryFnOnce for Task<'_, '_, T, S, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { part, packed_a, packed_b, rows, columns, steps: (p0, depth), read, last } = self;
        let Part { simd, a, out, strides, .. } = *part;
        let lanes = T::lanes::<S>();
        let mut row = rows.0;
        while row < rows.1 {
            let (left, top) = (rows.1 - row, part.rows.0 + row);
            let (count, a_rows) = if part.in_place {
                let from = top * a.row_stride + p0 * a.col_stride;
                (tile::next_rows::<S>(left), Rows::InPlace(a.data.as_ptr().wrapping_add(from), a.row_stride))
            } else {
                (left.min(tile::largest::<S>().0), Rows::Packed(packed_a.wrapping_add(row * depth)))
            };
            let mut column = columns.0;
            while column < columns.1 {
                let left = columns.1 - column;
                let cols = left.min(tile::next_vectors::<S>(left.div_ceil(lanes)) * lanes);
                // SAFETY: the rows, the vectors and the tile lie in the views, whose extents were checked, and the tile
                // is this task's alone.
                unsafe {
                    let tile = Tile {
                        simd,
                        size: (count, cols),
                        depth,
                        a: a_rows,
                        b: packed_b.add(column * depth),
                        out: out.get().add(top * strides.0 + (part.cols.0 + column) * strides.1),
                        strides,
                        read,
                    };
                    tile.run();
                }
                column += cols;
            }
            if last && (strides.1 == 1 || part.cols.1 == 1) {
                let first = part.cols.0 + columns.0;
                for row in top..top + count {
                    // SAFETY: this task alone writes these elements of the row, and they are neighbours.
                    let values = unsafe { out.row(row * strides.0 + first, columns.1 - columns.0) };
                    (part.then)(row, first, values);
                }
            }
            row += count;
        }
    }
}

/// The whole of a right side, packed.
pub(super) struct Pack<'a, T> {
    pub packed: &'a mut [T],
    pub b: Matrix<'a, T>,
}

impl<T: Float> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { packed, b } = self;
        let (n, k) = (b.cols, b.rows);
        let (blocks, depth) = depth_blocks(k);
        let out = Shared::new(packed);
        for first_col in (0..n).step_by(PACKED) {
            let strips = column_strips(b, (first_col, (n - first_col).min(PACKED)), T::lanes::<S>());
            for p0 in (0..blocks).map(|block| block * depth) {
                let depth = depth.min(k - p0);
                let place = first_col * k + strips.len(p0);
                parallel::for_each(strips.tasks(depth), strips.len(depth), |task| {
                    // SAFETY: the view's extent was checked, and the place is within the packed length.
                    unsafe { strips.pack_task(out.get().add(place), (p0, depth), task, avx512::<T, S>()) };
                });
            }
        }
    }
}
