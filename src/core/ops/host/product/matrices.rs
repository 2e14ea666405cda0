//! Products of pairs of bf16 by matrix registers ([`MatrixRegisters`]).
//!
//! A block of the result is up to 32 rows by 32 columns: two by two registers of sums, for each chunk of the sum two of the left side
//! and two of the right, 4 KiB that are loaded for four products. The right side lies packed as for vectors, a vector's steps one after
//! the other. The left side is read where it lies, if 16 rows are equally far apart, as those of a matrix and, once they are copied
//! into [`Planes`], most windows of an image are; else from a panel in scratch memory, `[segment][row][steps]`.
//!
//! **Order of summation.** A sum goes by segments (a convolution's taps, images of a weight's gradient, else one), each by chunks of up to
//! 16 pairs, as equal as can be: [`Chunks`]. What happens in a chunk is [`MatrixRegisters`]'s; chunks are added in ascending order, from zero
//! or, where a product is added to what is there in f32, from that.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::registers::MatrixRegisters;
pub(crate) use super::registers::SIDE;
use super::windows::Planes;
use crate::ops::host::pack;

/// Bytes of a block's left side that stay in the first cache while the columns pass: a longer sum is cut, and its parts added up in memory.
const LEFT_BYTES: usize = 40 << 10;

/// Rows, and columns, of a block.
pub(crate) const BLOCK: usize = 2 * SIDE;

/// How the steps of a sum go through the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    pub segments: usize,
    /// Steps of a segment.
    pub steps: usize,
    /// Steps of a chunk; a segment's last may have fewer.
    pub chunk: usize,
    /// Chunks of a segment.
    pub count: usize,
}

impl Chunks {
    pub fn new(segments: usize, depth: usize) -> Self {
        let steps = depth / segments;
        let count = steps.div_ceil(SIDE);
        Self { segments, steps, chunk: steps.div_ceil(count.max(1)).max(1), count }
    }

    /// Steps of a segment with the last chunk filled up.
    pub fn padded(&self) -> usize {
        self.count * self.chunk
    }

    /// Words of scratch memory that a panel needs.
    pub fn panel(&self) -> usize {
        self.segments * BLOCK * self.padded()
    }
}

/// Blocks of 32 rows, and of 32 columns, that a task of a product takes of all of these, where each packs its own of both sides: those with
/// which so many threads end first. The right side is packed in so many ways for so many products of a block.
pub(crate) fn task_blocks(
    (rows, columns): (usize, usize),
    (products, ways): (usize, usize),
    threads: usize,
) -> (usize, usize) {
    // Cycles for 32 steps, measured: of a product of 32 by 32, of packing 32 of the right side in one way, and 32 of the left.
    const PRODUCT: usize = 85;
    const PACK_RIGHT: usize = 130;
    const PACK_LEFT: usize = 290;
    let cost = |&(row, column): &(usize, usize)| {
        let rounds = (rows.div_ceil(row) * columns.div_ceil(column)).div_ceil(threads);
        rounds * (row * column * products * PRODUCT + column * ways * PACK_RIGHT + row * PACK_LEFT)
    };
    let all = (1..=rows).flat_map(|row| (1..=columns).map(move |column| (row, column)));
    all.min_by_key(cost).unwrap_or((1, 1))
}

/// Up to 32 rows of the left side.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row i begins at the pointer plus i times the stride, its segments so far apart, all in bytes.
    Rows { from: *const u8, stride: usize, segment: usize },
    /// The same, of one segment, filled up with zeros to whole sixteens of rows and whole chunks.
    Filled { from: *const u8, stride: usize },
    /// Windows from this one on; a segment is a tap.
    Windows(&'a Planes, usize),
    /// `[step][32]` and more, of one segment: steps are so many words apart. Rows up to the next multiple of 16 are readable.
    Turned(*const u32, usize),
}

/// The right side: vectors of 16 columns.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub from: *const u32,
    /// Words between the steps of a vector.
    pub step: usize,
    /// Words between vectors.
    pub vector: usize,
    /// Words between segments.
    pub segment: usize,
}

impl Right {
    /// From a column on, of a vector's first.
    pub fn beginning_at(self, column: usize) -> Self {
        Self { from: self.at(column / SIDE, 0, 0), ..self }
    }

    /// From a vector, and a segment's step, on.
    fn at(self, vector: usize, segment: usize, step: usize) -> *const u32 {
        self.from.wrapping_add(vector * self.vector + segment * self.segment + step * self.step)
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub to: *mut f32,
    /// Between rows, and between columns.
    pub strides: (usize, usize),
    /// Whether what is there is added to.
    pub add: bool,
}

/// Sixteen rows of the left side, of one segment.
#[derive(Clone, Copy)]
struct SixteenRows {
    from: *const u8,
    /// Bytes between rows.
    stride: usize,
}

/// Up to 32 rows of the left side, as the registers load them.
pub(crate) struct LeftRows {
    chunks: Chunks,
    rows: usize,
    /// By segments.
    segments: Vec<[SixteenRows; 2]>,
    /// What it takes of a cache, about: windows overlap.
    bytes: usize,
}

impl LeftRows {
    /// Finds them, or copies them into the panel.
    ///
    /// # Safety
    /// All that `left` names is readable; the panel has [`Chunks::panel`] words, which stay as they are while the result is used.
    #[inline(always)]
    pub unsafe fn gather(chunks: Chunks, rows: usize, left: Left, panel: *mut u32, avx512: bool) -> Self {
        let nowhere = SixteenRows { from: std::ptr::null(), stride: 0 };
        let mut segments = vec![[nowhere; 2]; chunks.segments];
        for half in [0, 1] {
            // SAFETY: as the caller promises.
            unsafe {
                SixteenRows::gather(chunks, (half * SIDE, rows), left, panel, avx512, |segment, part| {
                    segments[segment][half] = part;
                });
            }
        }
        let bytes = rows * chunks.segments * chunks.steps * size_of::<u32>();
        let bytes = if let Left::Windows(..) = left { bytes / 3 } else { bytes };
        Self { chunks, rows, segments, bytes }
    }

    /// The rows by so many columns of the right side.
    ///
    /// # Safety
    /// The registers are open for this chunk; the right side is readable, and the elements of the target are this call's alone.
    #[inline(always)]
    pub unsafe fn multiply<M: MatrixRegisters>(&self, registers: M, right: Right, columns: usize, target: Target) {
        for (part, chunks) in self.parts().enumerate() {
            let target = Target { add: target.add || part > 0, ..target };
            // SAFETY: as the caller promises.
            unsafe { self.multiply_part(registers, right, columns, target, chunks) };
        }
    }

    /// The chunks, all segments' counted, in parts of which the left side stays in the first cache.
    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.chunks.segments * self.chunks.count;
        let parts = (self.bytes / LEFT_BYTES + 1).min(all.max(1));
        (0..parts).map(move |part| part * all / parts..(part + 1) * all / parts)
    }

    /// [`multiply`](Self::multiply) of one of the [`parts`](Self::parts).
    ///
    /// # Safety
    /// As for `multiply`.
    #[inline(always)]
    pub unsafe fn multiply_part<M: MatrixRegisters>(
        &self,
        registers: M,
        right: Right,
        columns: usize,
        target: Target,
        chunks: Range<usize>,
    ) {
        let Target { strides: (row_stride, col_stride), add, .. } = target;
        for first in (0..columns).step_by(BLOCK) {
            let count = (columns - first).min(BLOCK);
            let right = right.beginning_at(first);
            let out = target.to.wrapping_add(first * col_stride);
            let whole = self.rows.is_multiple_of(SIDE) && count.is_multiple_of(SIDE) && col_stride == 1;
            // Cleared only to be read: that costs as much as a few products.
            let mut buffer = MaybeUninit::<[f32; BLOCK * BLOCK]>::uninit();
            if add && !whole {
                buffer.write([0.0; BLOCK * BLOCK]);
            }
            let buffer = buffer.as_mut_ptr().cast::<f32>();
            let (to, stride) = if whole { (out, row_stride) } else { (buffer, BLOCK) };
            let outside = Part { to: out, strides: (row_stride, col_stride), size: (self.rows, count) };
            // SAFETY: as the caller promises; the buffer has room for a whole block.
            unsafe {
                if add && !whole {
                    outside.copy(
                        |there, at| *buffer.add(at) = *there,
                        |there, at, len| {
                            std::ptr::copy_nonoverlapping(there, buffer.add(at), len);
                        },
                    );
                }
                match (self.rows.div_ceil(SIDE), count.div_ceil(SIDE)) {
                    (1, 1) => self.block::<M, 1, 1>(registers, right, (to, stride, add), chunks.clone()),
                    (1, _) => self.block::<M, 1, 2>(registers, right, (to, stride, add), chunks.clone()),
                    (_, 1) => self.block::<M, 2, 1>(registers, right, (to, stride, add), chunks.clone()),
                    _ => self.block::<M, 2, 2>(registers, right, (to, stride, add), chunks.clone()),
                }
                if !whole {
                    // The registers' sums, of whole sixteens of rows and columns, were stored there.
                    outside.copy(
                        |there, at| *there = *buffer.add(at),
                        |there, at, len| {
                            std::ptr::copy_nonoverlapping(buffer.add(at), there, len);
                        },
                    );
                }
            }
        }
    }

    /// `R` by `V` registers of sums, added to `out` or stored there.
    #[inline(always)]
    unsafe fn block<M: MatrixRegisters, const R: usize, const V: usize>(
        &self,
        registers: M,
        right: Right,
        (out, row_stride, add): (*mut f32, usize, bool),
        chunks: Range<usize>,
    ) {
        let Chunks { steps, chunk, .. } = self.chunks;
        let to = |i: usize, v: usize| out.wrapping_add(i * SIDE * row_stride + v * SIDE).cast::<u8>();
        // SAFETY: as `multiply`'s caller promises.
        unsafe {
            if add {
                registers.load::<0>(to(0, 0), 4 * row_stride);
                if V == 2 {
                    registers.load::<1>(to(0, 1), 4 * row_stride);
                }
                if R == 2 {
                    registers.load::<2>(to(1, 0), 4 * row_stride);
                }
                if R == 2 && V == 2 {
                    registers.load::<3>(to(1, 1), 4 * row_stride);
                }
            } else {
                registers.zero::<0>();
                registers.zero::<1>();
                registers.zero::<2>();
                registers.zero::<3>();
            }
            let count = self.chunks.count.max(1);
            for (segment, &rows) in
                self.segments.iter().enumerate().take(chunks.end.div_ceil(count)).skip(chunks.start / count)
            {
                let (first, end) = (chunks.start.max(segment * count), chunks.end.min((segment + 1) * count));
                let at = (first - segment * count) * chunk;
                let mut left = rows.map(|rows| rows.from.wrapping_add(4 * at));
                let strides = rows.map(|rows| rows.stride);
                let mut columns: [_; V] = std::array::from_fn(|v| right.at(v, segment, at));
                let has_tail = end == (segment + 1) * count && steps % chunk > 0;
                for _ in first..end - usize::from(has_tail) {
                    multiply_chunk::<M, R, V>(registers, (left, strides), (columns, right.step));
                    left = left.map(|from| from.wrapping_add(4 * chunk));
                    columns = columns.map(|from| from.wrapping_add(chunk * right.step));
                }
                if has_tail {
                    // Filled up with zeros: what follows it in memory is another's.
                    let mut tails = [[0; SIDE * SIDE]; V];
                    for (tail, from) in tails.iter_mut().zip(columns) {
                        for (step, tail) in tail.chunks_exact_mut(SIDE).take(steps % chunk).enumerate() {
                            std::ptr::copy_nonoverlapping(from.add(step * right.step), tail.as_mut_ptr(), SIDE);
                        }
                    }
                    let columns = std::array::from_fn(|v| tails[v].as_ptr());
                    multiply_chunk::<M, R, V>(registers, (left, strides), (columns, SIDE));
                }
            }
            registers.store::<0>(to(0, 0), 4 * row_stride);
            if V == 2 {
                registers.store::<1>(to(0, 1), 4 * row_stride);
            }
            if R == 2 {
                registers.store::<2>(to(1, 0), 4 * row_stride);
            }
            if R == 2 && V == 2 {
                registers.store::<3>(to(1, 1), 4 * row_stride);
            }
        }
    }
}

/// `R` by `V` registers of sums += a chunk of the left side, its halves' strides in bytes, · a chunk of the right side's vectors, with so many
/// words from step to step.
///
/// # Safety
/// The registers are open for this chunk; both sides are readable.
#[inline(always)]
unsafe fn multiply_chunk<M: MatrixRegisters, const R: usize, const V: usize>(
    registers: M,
    (left, strides): ([*const u8; 2], [usize; 2]),
    (columns, step): ([*const u32; V], usize),
) {
    // SAFETY: as the caller promises.
    unsafe {
        registers.load::<6>(columns[0].cast(), 4 * step);
        registers.load::<4>(left[0], strides[0]);
        registers.multiply_add::<0, 4, 6>();
        if R == 2 {
            registers.load::<5>(left[1], strides[1]);
            registers.multiply_add::<2, 5, 6>();
        }
        if V == 2 {
            registers.load::<7>(columns[V - 1].cast(), 4 * step);
            registers.multiply_add::<1, 4, 7>();
        }
        if R == 2 && V == 2 {
            registers.multiply_add::<3, 5, 7>();
        }
    }
}

/// Some rows and columns of what a product is put to.
struct Part {
    to: *mut f32,
    strides: (usize, usize),
    size: (usize, usize),
}

impl Part {
    /// Copies them from or to a buffer with rows of [`BLOCK`]: `one(there, at)` an element, `many(there, at, length)` neighbours.
    #[inline(always)]
    fn copy(&self, one: impl Fn(*mut f32, usize), many: impl Fn(*mut f32, usize, usize)) {
        for i in 0..self.size.0 {
            let row = self.to.wrapping_add(i * self.strides.0);
            if self.strides.1 == 1 {
                many(row, i * BLOCK, self.size.1);
                continue;
            }
            (0..self.size.1).for_each(|j| one(row.wrapping_add(j * self.strides.1), i * BLOCK + j));
        }
    }
}

impl SixteenRows {
    /// The rows from `first` on, of which there are `rows` in all, of each segment.
    ///
    /// # Safety
    /// As for [`LeftRows::gather`].
    #[inline(always)]
    unsafe fn gather(
        chunks: Chunks,
        (first, rows): (usize, usize),
        left: Left,
        panel: *mut u32,
        avx512: bool,
        mut found: impl FnMut(usize, Self),
    ) {
        let (steps, padded, here) = (chunks.steps, chunks.padded(), rows.saturating_sub(first).min(SIDE));
        let copy = |segment: usize| {
            let to = panel.wrapping_add((segment * BLOCK + first) * padded);
            (to, Self { from: to.cast_const().cast(), stride: 4 * padded })
        };
        // Where row 0 of a segment begins; the others, and whether they are equally far apart.
        let mut offsets = [0; SIDE];
        let (begin, stride) = match left {
            _ if here == 0 => (std::ptr::null(), None),
            Left::Rows { from, stride, .. } | Left::Filled { from, stride } => {
                offsets = std::array::from_fn(|i| i * stride);
                (from.wrapping_add(first * stride), Some(stride))
            }
            Left::Windows(planes, at) => {
                let stride = planes.find(at + first, &mut offsets[..here]);
                (planes.first(), stride)
            }
            Left::Turned(from, _) => (from.wrapping_add(first).cast(), None),
        };
        let is_filled = matches!(left, Left::Filled { .. });
        let in_place = stride.filter(|_| is_filled || (here == SIDE && steps == padded));
        for segment in 0..chunks.segments {
            let (to, copy) = copy(segment);
            if here == 0 {
                found(segment, copy);
                continue;
            }
            let from = match left {
                Left::Rows { segment: pitch, .. } => begin.wrapping_add(segment * pitch),
                Left::Windows(planes, _) => begin.wrapping_add(planes.tap(segment)),
                Left::Filled { .. } | Left::Turned(..) => begin,
            };
            if let Some(stride) = in_place {
                found(segment, Self { from: from.wrapping_add(offsets[0]), stride });
                continue;
            }
            // SAFETY: as the caller promises.
            unsafe {
                fill_up(to, if let Left::Turned(..) = left { SIDE } else { here }, (steps, padded));
                if let Left::Turned(_, pitch) = left {
                    pack::lanes::<f32>(to.cast(), padded, from.cast(), (steps, pitch), (SIDE, 1), avx512);
                } else {
                    for (i, &offset) in offsets.iter().enumerate().take(here) {
                        let row = from.add(offset);
                        std::ptr::copy_nonoverlapping(row, to.add(i * padded).cast(), 4 * steps);
                    }
                    to.add(here * padded).write_bytes(0, (SIDE - here) * padded);
                }
            }
            found(segment, copy);
        }
    }
}

/// Zeros after the steps of some rows.
///
/// # Safety
/// The rows may be written.
#[inline(always)]
unsafe fn fill_up(to: *mut u32, rows: usize, (steps, padded): (usize, usize)) {
    for i in 0..rows {
        // SAFETY: as the caller promises.
        unsafe { to.add(i * padded + steps).write_bytes(0, padded - steps) };
    }
}
