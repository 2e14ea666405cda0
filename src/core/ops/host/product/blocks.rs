//! The product by blocks: what is packed, and how the work is cut into tasks.
//!
//! The right side is packed by vectors: `[vector][step][lanes]`, block of the sum by block. The left side is read in place where
//! its steps are neighbours (a layer's forward pass and its input's gradient), else it is packed too, by the rows of a tile
//! (a weight's gradient; where there are registers for matrices `turned.rs` has it). Each block of the sum has two phases, packing
//! and multiplying, and the phases of all blocks are one parallel run ([`parallel::for_phases`]).
//!
//! A result of fewer bits than the sums, bf16, is rounded once: its sum is one block, and a tile's rows stay in a buffer until the
//! follow-up has seen them.

use pulp::NullaryFnOnce;

use super::factor::{Factor, Unit, WithUnit};
use super::matrices::{self, BLOCK, Chunks, LeftRows, Target};
use super::registers::MatrixRegisters;
use super::tile::{self, Rows, Tile};
use super::turned::Turned;
use super::windows::{Layout, Planes, Windows};
use super::{Matrix, MatrixMut, depth_blocks};
use crate::ops::host::float::{Float, Held};
use crate::ops::host::pack::Strips;
use crate::ops::host::parallel::{self, Shared};
use crate::tape::Accumulate;

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
/// The same of windows that are copied for registers for matrices: what surrounds a task's part of an image is copied with it.
const TASK_WINDOWS: usize = 256;
/// Bytes of a task's copies, about: they and a group of the right side stay in the second cache.
const PLANES_BYTES: usize = 1 << 19;
/// Columns of a block of rows by registers for matrices that are followed up and rounded at a time. Measured: with fewer, sums stay in
/// the first cache, but products and rounding take turns more often.
const PIECE: usize = 768;

/// A product's left side.
#[derive(Clone, Copy)]
pub(super) enum Left<'a, T> {
    Matrix(Matrix<'a, T>),
    /// Of factors whose result is rounded: the sum is one block.
    Windows(Windows<'a, T>),
}

impl<T: Factor> Left<'_, T> {
    /// Elements of a row.
    fn elements(&self) -> usize {
        match self {
            Self::Matrix(a) => a.cols,
            Self::Windows(windows) => windows.taps.len() * windows.channels,
        }
    }

    /// Parts of a row that begin anywhere, of equally many elements.
    fn segments(&self) -> usize {
        match self {
            Self::Matrix(_) => 1,
            Self::Windows(windows) => windows.taps.len(),
        }
    }

    /// Whether rows are read where they lie.
    fn is_in_place(&self) -> bool {
        match self {
            Self::Matrix(a) => (a.col_stride == 1 || a.cols <= 1) && a.cols.is_multiple_of(T::PER_STEP),
            Self::Windows(_) => true,
        }
    }
}

/// A product's right side.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, T: Factor> {
    Plain(Matrix<'a, T>),
    /// By up to 4096 columns, by blocks of the sum, by vectors: `[step][lanes]`.
    Packed(&'a [T::Step]),
}

/// A product of factors T, whose result is of D: the type of the sums, or one that they are rounded to.
pub(super) struct Product<'a, T: Factor, D, F> {
    pub dst: MatrixMut<'a, D>,
    pub a: Left<'a, T>,
    pub b: Right<'a, T>,
    pub mode: Accumulate,
    pub then: F,
}

/// Whether AVX-512's transpose packs.
#[inline(always)]
fn avx512<T: Factor, U: Unit<T>>() -> bool {
    U::REGISTERS == 32 && U::lanes() * size_of::<T::Step>() == 64
}

/// Whether sums of T are rounded to D.
const fn rounds<T: Held, D>() -> bool {
    size_of::<D>() < size_of::<T::Float>()
}

/// Number and steps of the blocks of a sum over `k` elements of T with a result of D.
fn blocks<T: Factor, D>(k: usize) -> (usize, usize) {
    let steps = k.div_ceil(T::PER_STEP);
    if rounds::<T, D>() { (1, steps) } else { depth_blocks::<T>(steps) }
}

/// The columns `first..first + count` of `b`, as strips of `width`.
pub(super) fn column_strips<T: Factor>(b: Matrix<T>, (first, count): (usize, usize), width: usize) -> Strips<T> {
    let from = b.data.as_ptr().wrapping_add(first * b.col_stride);
    Strips { from, lanes: count, lane_stride: b.col_stride, elements: b.rows, step_stride: b.row_stride, width }
}

impl<T, D, F> WithUnit<T> for Product<'_, T, D, F>
where
    T: Factor,
    D: Held<Float = T::Float>,
    F: Fn(usize, usize, &mut [T::Float]) + Send + Sync,
{
    fn run<U: Unit<T>>(self, unit: U) {
        let Self { dst, a, b, mode, then } = self;
        let (m, n, k) = (dst.rows, dst.cols, a.elements());
        let in_place = a.is_in_place();
        let strides = (dst.row_stride, dst.col_stride);
        let out = Shared::new(dst.data);
        let serial = m * n * k.max(1) <= SERIAL;
        let threads = if serial { 1 } else { parallel::threads() };
        if let (true, false, Left::Matrix(a), Right::Plain(b)) = (tile::has_matrices::<T, U>(), in_place, a, b)
            && !rounds::<T, D>()
            && size_of_val(&then) == 0
        {
            // The types are the same: registers for matrices sum in f32.
            let out = Shared::of(out.get().cast());
            return Turned { unit, a, b, out, strides, mode }.run(threads);
        }
        let most_rows = if in_place { m } else { PACKED };
        for first_col in (0..n).step_by(PACKED) {
            for first_row in (0..m).step_by(most_rows) {
                let part = Part {
                    unit,
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

/// How a part's work is cut: blocks of rows, and groups of vectors.
struct Cut {
    task_rows: usize,
    row_tasks: usize,
    group: usize,
    groups: usize,
}

/// A block of the sum: its first step and how many, whether it is added to what is there, and whether it is the last.
struct Block {
    steps: (usize, usize),
    read: bool,
    last: bool,
}

/// Some rows by some columns of a product, the whole sum.
struct Part<'a, T: Factor, D, U, F> {
    unit: U,
    a: Left<'a, T>,
    b: Right<'a, T>,
    out: Shared<D>,
    strides: (usize, usize),
    rows: (usize, usize),
    cols: (usize, usize),
    in_place: bool,
    mode: Accumulate,
    then: &'a F,
}

impl<T, D, U, F> Part<'_, T, D, U, F>
where
    T: Factor,
    D: Held<Float = T::Float>,
    U: Unit<T>,
    F: Fn(usize, usize, &mut [T::Float]) + Send + Sync,
{
    /// Tasks: groups of vectors by blocks of rows, the rows of one group after the other. Any cut gives the same bits.
    fn cut(&self, threads: usize, depth: usize) -> Cut {
        let lanes = U::lanes();
        let (tile_rows, tile_vectors) = tile::largest::<T, U>();
        let (m, n) = (self.rows.1 - self.rows.0, self.cols.1 - self.cols.0);
        let vectors = n.div_ceil(lanes);
        let group = (GROUP_BYTES / (depth.max(1) * lanes * size_of::<T::Step>())).max(tile_vectors);
        let most = match self.a {
            Left::Windows(windows) if tile::has_matrices::<T, U>() => {
                let row = windows.taps.len().min(9) * windows.channels * size_of::<T>() / 2;
                (PLANES_BYTES / row.max(1)).clamp(BLOCK, TASK_WINDOWS)
            }
            _ => TASK_ROWS,
        };
        let row_share = m.div_ceil(if threads == 1 { 1 } else { 8 * threads });
        // Whole tiles: packed rows come in strips of a tile's.
        let task_rows = row_share.div_ceil(tile_rows).min(most / tile_rows) * tile_rows;
        let row_tasks = m.div_ceil(task_rows);
        let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(row_tasks) };
        let groups = vectors.div_ceil(group).max(wanted);
        let group = vectors.div_ceil(groups).next_multiple_of(tile_vectors);
        Cut { task_rows, row_tasks, group, groups: vectors.div_ceil(group) }
    }

    fn run(&self, threads: usize) {
        let lanes = U::lanes();
        let tile_rows = tile::largest::<T, U>().0;
        let (m, n) = (self.rows.1 - self.rows.0, self.cols.1 - self.cols.0);
        let (blocks, depth) = blocks::<T, D>(self.a.elements());
        let whole = self.a.elements().div_ceil(T::PER_STEP);
        let cut = self.cut(threads, depth);

        let b_strips = match self.b {
            Right::Plain(b) => Some(column_strips(b, (self.cols.0, n), lanes)),
            Right::Packed(_) => None,
        };
        let a_strips = match self.a {
            Left::Matrix(a) if !self.in_place => Some(column_strips(a.t(), (self.rows.0, m), tile_rows)),
            _ => None,
        };
        // Rows for matrix registers are filled up to whole chunks.
        let filled = |depth: usize| if tile::has_matrices::<T, U>() { Chunks::new(1, depth).padded() } else { depth };
        let b_room = b_strips.as_ref().map_or(0, |strips| strips.len(depth));
        let a_room = a_strips.as_ref().map_or(0, |strips| strips.len(filled(depth)));
        let tasks = |strips: &Option<Strips<T>>, depth: usize| strips.as_ref().map_or(0, |strips| strips.tasks(depth));
        let layout = match &self.a {
            Left::Windows(windows) if tile::has_matrices::<T, U>() => Some(Layout::new(windows)),
            _ => None,
        };

        T::Float::with_scratch(b_room + a_room, |scratch| {
            // Steps are of the floats' size.
            let scratch: Shared<T::Step> = Shared::new(bytemuck::cast_slice_mut(scratch));
            let steps = |block: usize| (block * depth, depth.min(whole - block * depth));
            let count = |phase: usize| {
                let (block, packs) = (phase / 2, phase.is_multiple_of(2));
                let (_, depth) = steps(block);
                if packs { tasks(&b_strips, depth) + tasks(&a_strips, depth) } else { cut.groups * cut.row_tasks }
            };
            let work = |phase: usize, task: usize| {
                let (block, packs) = (phase / 2, phase.is_multiple_of(2));
                let (p0, depth) = steps(block);
                if packs {
                    let b_tasks = tasks(&b_strips, depth);
                    let is_left = task >= b_tasks;
                    let (strips, task, to) =
                        if is_left { (&a_strips, task - b_tasks, b_room) } else { (&b_strips, task, 0) };
                    if let Some(strips) = strips {
                        // Here, not further out: only what is inlined into this call is compiled for `U`.
                        self.unit.vectorize(
                            #[inline(always)]
                            // SAFETY: the view's extent was checked; each side has its own place in the scratch.
                            || unsafe {
                                let to = scratch.get().add(to);
                                if tile::has_matrices::<T, U>() && is_left {
                                    strips.pack_rows_task(to, (p0, depth), filled(depth), task, avx512::<T, U>());
                                } else {
                                    strips.pack_task(to, (p0, depth), task, avx512::<T, U>());
                                }
                            },
                        );
                    }
                    return;
                }
                let packed = (scratch.get().cast_const().wrapping_add(b_room), scratch.get().cast_const());
                let whole = Block {
                    steps: (p0, depth),
                    read: self.mode == Accumulate::Add || block > 0,
                    last: block + 1 == blocks,
                };
                self.multiply(&cut, layout.as_ref(), &whole, packed, task);
            };
            parallel::for_phases(threads, 2 * blocks, count, work);
        });
    }

    /// One task of multiplying, of a block's packed sides.
    fn multiply(
        &self,
        &Cut { task_rows, row_tasks, group, .. }: &Cut,
        layout: Option<&Layout>,
        &Block { steps: (p0, depth), read, last }: &Block,
        (packed_a, packed_b): (*const T::Step, *const T::Step),
        task: usize,
    ) {
        let (lanes, tile_rows) = (U::lanes(), tile::largest::<T, U>().0);
        let (m, n) = (self.rows.1 - self.rows.0, self.cols.1 - self.cols.0);
        let packed_b = match self.b {
            // Memory before these columns: the earlier columns' whole sums, then these columns' earlier blocks.
            Right::Packed(packed) => {
                let (whole, width) = (self.a.elements().div_ceil(T::PER_STEP), n.next_multiple_of(lanes));
                packed[self.cols.0 * whole + width * p0..][..width * depth].as_ptr()
            }
            Right::Plain(_) => packed_b,
        };
        let (i, j) = (task % row_tasks, task / row_tasks);
        let columns = (j * group * lanes, ((j + 1) * group * lanes).min(n));
        let rows = (i * task_rows, ((i + 1) * task_rows).min(m));
        let piece = if tile::has_matrices::<T, U>() { PIECE } else { usize::MAX };
        let buffer = if rounds::<T, D>() { tile_rows * piece.min(columns.1 - columns.0) } else { 0 };
        let chunks = Chunks::new(self.a.segments(), depth);
        let panel = if tile::has_matrices::<T, U>() { chunks.panel() } else { 0 };
        let planes = match (self.a, layout) {
            (Left::Windows(windows), Some(layout)) => {
                let seen = (self.rows.0 + rows.0, self.rows.0 + rows.1);
                (layout.pixels(&windows, seen) * windows.channels).div_ceil(size_of::<T::Float>() / size_of::<T>())
            }
            _ => 0,
        };
        T::Float::with_scratch(planes + buffer + panel, |scratch| {
            let (planes, rest) = scratch.split_at_mut(planes);
            let (buffer, panel) = rest.split_at_mut(buffer);
            // Here, not further out: only what is inlined into this call is compiled for `U`.
            self.unit.vectorize(Task {
                part: self,
                packed_a,
                packed_b,
                rows,
                columns,
                steps: (p0, depth),
                read,
                last,
                buffer,
                chunks,
                panel,
                layout,
                planes,
            });
        });
    }
}

/// One task of a product: some rows by some columns, both counted from the part's first, over one block of the sum.
struct Task<'a, 'b, T: Factor, D, U, F> {
    part: &'a Part<'b, T, D, U, F>,
    packed_a: *const T::Step,
    packed_b: *const T::Step,
    rows: (usize, usize),
    columns: (usize, usize),
    steps: (usize, usize),
    read: bool,
    last: bool,
    /// Where the result is rounded: a tile's rows of these columns, or of a piece of them.
    buffer: &'a mut [T::Float],
    /// For matrix registers.
    chunks: Chunks,
    panel: &'a mut [T::Float],
    layout: Option<&'a Layout>,
    planes: &'a mut [T::Float],
}

impl<T, D, U, F> NullaryFnOnce for Task<'_, '_, T, D, U, F>
where
    T: Factor,
    D: Held<Float = T::Float>,
    U: Unit<T>,
    F: Fn(usize, usize, &mut [T::Float]),
{
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        if tile::has_matrices::<T, U>() {
            return self.by_matrices();
        }
        let (part, rows, columns) = (self.part, self.rows, self.columns);
        let (tile_rows, mut table) = (tile::largest::<T, U>().0, Vec::new());
        if let Left::Windows(windows) = part.a {
            table.resize(windows.taps.len() * tile_rows, windows.zeros.as_ptr());
        }
        let mut row = rows.0;
        while row < rows.1 {
            let (left, top) = (rows.1 - row, part.rows.0 + row);
            let (count, a_rows) = match part.a {
                Left::Matrix(a) if part.in_place => {
                    let from = top * a.row_stride + self.steps.0 * T::PER_STEP * a.col_stride;
                    (tile::next_rows::<T, U>(left), Rows::InPlace(a.data.as_ptr().wrapping_add(from), a.row_stride))
                }
                Left::Matrix(_) => (left.min(tile_rows), Rows::Packed(self.packed_a.wrapping_add(row * self.steps.1))),
                Left::Windows(windows) => {
                    let count = tile::next_rows::<T, U>(left);
                    windows.find(top, count, tile_rows, &mut table);
                    (count, Rows::Taps(table.as_ptr(), windows.taps.len()))
                }
            };
            let first = part.cols.0 + columns.0;
            if rounds::<T, D>() {
                let (to, stride) = (self.buffer.as_mut_ptr(), columns.1 - columns.0);
                self.tiles(count, a_rows, to, (stride, 1), false);
                self.round((top, count), (first, stride));
            } else {
                // SAFETY: the rows and columns lie in the view, whose extent was checked.
                let to = unsafe { part.out.get().add(top * part.strides.0 + first * part.strides.1) };
                // The types are the same.
                self.tiles(count, a_rows, to.cast(), part.strides, self.read);
                self.follow(top, count);
            }
            row += count;
        }
    }
}

impl<T, D, U, F> Task<'_, '_, T, D, U, F>
where
    T: Factor,
    D: Held<Float = T::Float>,
    U: Unit<T>,
    F: Fn(usize, usize, &mut [T::Float]),
{
    /// A tile's rows, all columns, to `out`.
    #[inline(always)]
    fn tiles(&mut self, rows: usize, a: Rows<T>, out: *mut T::Float, strides: (usize, usize), read: bool) {
        let (lanes, columns) = (U::lanes(), self.columns);
        let mut column = columns.0;
        while column < columns.1 {
            let left = columns.1 - column;
            let cols = left.min(tile::next_vectors::<T, U>(left.div_ceil(lanes)) * lanes);
            // SAFETY: the rows, the vectors and the tile lie in the views, whose extents were checked, or in the buffer, and
            // the tile is this task's alone.
            unsafe {
                let tile = Tile {
                    unit: self.part.unit,
                    size: (rows, cols),
                    depth: self.steps.1,
                    a,
                    b: self.packed_b.add(column * self.steps.1),
                    out: out.add((column - columns.0) * strides.1),
                    strides,
                    read,
                };
                tile.run();
            }
            column += cols;
        }
    }

    /// All of it by matrix registers, which have pairs of bf16 and sums in f32.
    #[inline(always)]
    fn by_matrices(&mut self) {
        let (part, chunks, columns, depth) = (self.part, self.chunks, self.columns, self.steps.1);
        let (registers, width) = (part.unit.matrices(), columns.1 - columns.0);
        let from = self.packed_b.wrapping_add(columns.0 * depth).cast();
        let (step, segment) = (U::lanes(), chunks.steps * U::lanes());
        let right = matrices::Right { from, step, vector: depth * step, segment };
        let planes = match (part.a, self.layout) {
            (Left::Windows(windows), Some(layout)) => {
                let rows = (part.rows.0 + self.rows.0, part.rows.0 + self.rows.1);
                Some(Planes::copy(layout, &windows, rows, bytemuck::cast_slice_mut(self.planes)))
            }
            _ => None,
        };
        for row in (self.rows.0..self.rows.1).step_by(BLOCK) {
            let (count, top) = ((self.rows.1 - row).min(BLOCK), part.rows.0 + row);
            let left = match (part.a, &planes) {
                (_, Some(planes)) => matrices::Left::Windows(planes, top),
                (Left::Matrix(a), _) if part.in_place => {
                    let from = top * a.row_stride + self.steps.0 * T::PER_STEP * a.col_stride;
                    let stride = a.row_stride * size_of::<T>();
                    matrices::Left::Rows { from: a.data.as_ptr().wrapping_add(from).cast(), stride, segment: 0 }
                }
                _ => {
                    let from = self.packed_a.wrapping_add(row * chunks.padded()).cast();
                    matrices::Left::Filled { from, stride: chunks.padded() * size_of::<T::Step>() }
                }
            };
            let (panel, first) = (self.panel.as_mut_ptr().cast(), part.cols.0 + columns.0);
            // SAFETY: the rows, the vectors and the result lie in the views, whose extents were checked, or in the scratch; the result is
            // this task's alone. What follows up is of this crate and opens no registers.
            unsafe {
                let left = LeftRows::gather(chunks, count, left, panel, avx512::<T, U>());
                registers.open(chunks.chunk);
                if rounds::<T, D>() {
                    for at in (0..width).step_by(PIECE) {
                        let (piece, right) = ((width - at).min(PIECE), right.beginning_at(at));
                        let to = self.buffer.as_mut_ptr().cast();
                        left.multiply(registers, right, piece, Target { to, strides: (piece, 1), add: false });
                        self.round((top, count), (first + at, piece));
                    }
                } else {
                    let to = part.out.get().add(top * part.strides.0 + first * part.strides.1).cast();
                    left.multiply(registers, right, width, Target { to, strides: part.strides, add: self.read });
                    self.follow(top, count);
                }
                registers.close();
            }
        }
    }

    /// Follows up on rows of a result that is of the type of the sums, once it is whole.
    #[inline(always)]
    fn follow(&self, top: usize, count: usize) {
        let (part, first) = (self.part, self.part.cols.0 + self.columns.0);
        if self.last && (part.strides.1 == 1 || part.cols.1 == 1) {
            for row in top..top + count {
                // SAFETY: this task alone writes these elements of the row, which are neighbours, and of this type.
                let values = unsafe {
                    let to = part.out.get().add(row * part.strides.0 + first).cast();
                    std::slice::from_raw_parts_mut(to, self.columns.1 - self.columns.0)
                };
                (part.then)(row, first, values);
            }
        }
    }

    /// Follows up on the rows in the buffer and rounds them, each with what is there added to its sum.
    #[inline(always)]
    fn round(&mut self, (top, count): (usize, usize), (first, width): (usize, usize)) {
        let part = self.part;
        for (row, values) in (top..top + count).zip(self.buffer.chunks_exact_mut(width)) {
            if part.strides.1 != 1 && part.cols.1 > 1 {
                for (j, &value) in values.iter().enumerate() {
                    // SAFETY: this task alone writes this element, which is in the view.
                    let to = unsafe { &mut *part.out.get().add(row * part.strides.0 + (first + j) * part.strides.1) };
                    *to = D::of(if self.read { to.get() + value } else { value });
                }
                continue;
            }
            // SAFETY: this task alone writes these elements of the row, and they are neighbours.
            let to = unsafe { part.out.row(row * part.strides.0 + first, width) };
            if self.read {
                values.iter_mut().zip(&*to).for_each(|(value, to)| *value = to.get() + *value);
            }
            (part.then)(row, first, values);
            to.iter_mut().zip(&*values).for_each(|(to, &value)| *to = D::of(value));
        }
    }
}

/// The whole of a right side, packed for a product whose result is of D.
pub(super) struct Pack<'a, T: Factor, D> {
    pub packed: &'a mut [T::Step],
    pub b: Matrix<'a, T>,
    pub result: std::marker::PhantomData<D>,
}

impl<T: Factor, D: Held<Float = T::Float>> WithUnit<T> for Pack<'_, T, D> {
    fn run<U: Unit<T>>(self, _: U) {
        let Self { packed, b, .. } = self;
        let (n, steps) = (b.cols, b.rows.div_ceil(T::PER_STEP));
        let (blocks, depth) = blocks::<T, D>(b.rows);
        let out = Shared::new(packed);
        for first_col in (0..n).step_by(PACKED) {
            let strips = column_strips(b, (first_col, (n - first_col).min(PACKED)), U::lanes());
            for p0 in (0..blocks).map(|block| block * depth) {
                let depth = depth.min(steps - p0);
                let place = first_col * steps + strips.len(p0);
                parallel::for_each(strips.tasks(depth), strips.len(depth), |task| {
                    // SAFETY: the view's extent was checked, and the place is within the packed length.
                    unsafe { strips.pack_task(out.get().add(place), (p0, depth), task, avx512::<T, U>()) };
                });
            }
        }
    }
}
