//! Products of pairs of bf16 by matrix registers ([`MatrixRegisters`]).
//!
//! A block of the result is up to 32 rows by 32 columns: two by two registers of sums, for each chunk of the sum two of the left side
//! and two of the right, 4 KiB that are loaded for four products. The right side lies packed as for vectors, a vector's steps one after
//! the other. The left side is read where it lies, if 16 rows are equally far apart, as those of a matrix and most windows of an image
//! are; else from a panel in scratch memory, `[segment][row][steps]`.
//!
//! **Order of summation.** A sum goes by segments (a convolution's taps, images of a weight's gradient, else one), each by chunks of up to
//! 16 pairs, as equal as can be: [`Chunks`]. What happens in a chunk is [`MatrixRegisters`]'s; chunks are added in ascending order, from zero.

use std::mem::MaybeUninit;

use super::registers::MatrixRegisters;
pub(crate) use super::registers::SIDE;
use crate::ops::host::pack;

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
    fn padded(&self) -> usize {
        self.count * self.chunk
    }

    /// Words of scratch memory that a panel needs.
    pub fn panel(&self) -> usize {
        self.segments * BLOCK * self.padded()
    }
}

/// Up to 32 rows of the left side.
#[derive(Clone, Copy)]
pub(crate) enum Left {
    /// Row i begins at the pointer plus i times the stride, its segments so far apart, all in bytes.
    Rows { from: *const u8, stride: usize, segment: usize },
    /// Where each row's segments begin: `[segment][32]`.
    Taps(*const *const u8),
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
    parts: Vec<[SixteenRows; 2]>,
}

impl LeftRows {
    /// Finds them, or copies them into the panel.
    ///
    /// # Safety
    /// All that `left` names is readable; the panel has [`Chunks::panel`] words, which stay as they are while the result is used.
    #[inline(always)]
    pub unsafe fn gather(chunks: Chunks, rows: usize, left: Left, panel: *mut u32, avx512: bool) -> Self {
        let mut parts = Vec::with_capacity(chunks.segments);
        for segment in 0..chunks.segments {
            let half = |half: usize| {
                let to = panel.wrapping_add((segment * BLOCK + half * SIDE) * chunks.padded());
                // SAFETY: as the caller promises.
                unsafe { SixteenRows::gather(chunks, (segment, half * SIDE, rows), left, to, avx512) }
            };
            parts.push([half(0), half(1)]);
        }
        Self { chunks, rows, parts }
    }

    /// The rows by so many columns of the right side.
    ///
    /// # Safety
    /// The registers are open for this chunk; the right side is readable, and the elements of the target are this call's alone.
    #[inline(always)]
    pub unsafe fn multiply<M: MatrixRegisters>(&self, registers: M, right: Right, columns: usize, target: Target) {
        let Target { strides: (row_stride, col_stride), add, .. } = target;
        for first in (0..columns).step_by(BLOCK) {
            let count = (columns - first).min(BLOCK);
            let right = Right { from: right.at(first / SIDE, 0, 0), ..right };
            let out = target.to.wrapping_add(first * col_stride);
            let whole = self.rows.is_multiple_of(SIDE) && count.is_multiple_of(SIDE) && col_stride == 1 && !add;
            // Not cleared: that would cost as much as a few products.
            let mut buffer = MaybeUninit::<[f32; BLOCK * BLOCK]>::uninit();
            let buffer = buffer.as_mut_ptr().cast::<f32>();
            let (to, stride) = if whole { (out, row_stride) } else { (buffer, BLOCK) };
            // SAFETY: as the caller promises; the buffer has room for a whole block.
            unsafe {
                match (self.rows.div_ceil(SIDE), count.div_ceil(SIDE)) {
                    (1, 1) => self.block::<M, 1, 1>(registers, right, to, stride),
                    (1, _) => self.block::<M, 1, 2>(registers, right, to, stride),
                    (_, 1) => self.block::<M, 2, 1>(registers, right, to, stride),
                    _ => self.block::<M, 2, 2>(registers, right, to, stride),
                }
                if whole {
                    continue;
                }
                for i in 0..self.rows {
                    for j in 0..count {
                        let to = out.add(i * row_stride + j * col_stride);
                        // The registers' sums, of whole sixteens of rows and columns, were stored there.
                        let value = *buffer.add(i * BLOCK + j);
                        *to = if add { *to + value } else { value };
                    }
                }
            }
        }
    }

    /// `R` by `V` registers of sums, stored to `out`.
    #[inline(always)]
    unsafe fn block<M: MatrixRegisters, const R: usize, const V: usize>(
        &self,
        registers: M,
        right: Right,
        out: *mut f32,
        row_stride: usize,
    ) {
        let Chunks { steps, chunk, count, .. } = self.chunks;
        // The last chunk of the right side, filled up with zeros: what follows it in memory is another's.
        let mut tails = MaybeUninit::<[[u32; SIDE * SIDE]; V]>::uninit();
        if steps % chunk > 0 {
            tails.write([[0; SIDE * SIDE]; V]);
        }
        // SAFETY: as `multiply`'s caller promises.
        unsafe {
            registers.zero::<0>();
            registers.zero::<1>();
            registers.zero::<2>();
            registers.zero::<3>();
            for (segment, part) in self.parts.iter().enumerate() {
                for at in (0..count).map(|i| i * chunk) {
                    let mut columns = [(right.from, 4 * right.step); V];
                    for (v, column) in columns.iter_mut().enumerate() {
                        column.0 = right.at(v, segment, at);
                        if steps - at < chunk {
                            // There is one, so that zeros were written.
                            let tail = tails.as_mut_ptr().cast::<u32>().add(v * SIDE * SIDE);
                            for step in 0..steps - at {
                                let to = tail.add(step * SIDE);
                                std::ptr::copy_nonoverlapping(column.0.add(step * right.step), to, SIDE);
                            }
                            *column = (tail.cast_const(), 4 * SIDE);
                        }
                    }
                    let left = |half: usize| part[half].from.add(4 * at);
                    registers.load::<6>(columns[0].0.cast(), columns[0].1);
                    registers.load::<4>(left(0), part[0].stride);
                    registers.multiply_add::<0, 4, 6>();
                    if R == 2 {
                        registers.load::<5>(left(1), part[1].stride);
                        registers.multiply_add::<2, 5, 6>();
                    }
                    if V == 2 {
                        registers.load::<7>(columns[V - 1].0.cast(), columns[V - 1].1);
                        registers.multiply_add::<1, 4, 7>();
                    }
                    if R == 2 && V == 2 {
                        registers.multiply_add::<3, 5, 7>();
                    }
                }
            }
            let to = |i: usize, v: usize| out.add(i * SIDE * row_stride + v * SIDE).cast();
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

impl SixteenRows {
    /// The rows of a segment from `first` on, of which there are `rows` in all.
    ///
    /// # Safety
    /// As for [`LeftRows::gather`].
    #[inline(always)]
    unsafe fn gather(
        chunks: Chunks,
        (segment, first, rows): (usize, usize, usize),
        left: Left,
        panel: *mut u32,
        avx512: bool,
    ) -> Self {
        let (steps, padded, here) = (chunks.steps, chunks.padded(), rows.saturating_sub(first).min(SIDE));
        let copy = Self { from: panel.cast_const().cast(), stride: 4 * padded };
        if here == 0 {
            return copy;
        }
        // SAFETY: as the caller promises.
        unsafe {
            let row = |i: usize| match left {
                Left::Rows { from, stride, segment: pitch } => from.add(segment * pitch + (first + i) * stride),
                Left::Taps(table) => *table.add(segment * BLOCK + first + i),
                Left::Turned(..) => unreachable!("turned rows have no place of their own"),
            };
            if let Left::Turned(from, pitch) = left {
                fill_up(panel, SIDE, (steps, padded));
                pack::lanes::<f32>(panel.cast(), padded, from.add(first).cast(), (steps, pitch), (SIDE, 1), avx512);
                return copy;
            }
            if here == SIDE
                && steps == padded
                && let Some(stride) = equal_stride(row)
            {
                return Self { from: row(0), stride };
            }
            fill_up(panel, here, (steps, padded));
            for i in 0..here {
                std::ptr::copy_nonoverlapping(row(i), panel.add(i * padded).cast(), 4 * steps);
            }
            panel.add(here * padded).write_bytes(0, (SIDE - here) * padded);
            copy
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

/// Bytes between sixteen rows that are equally far apart, upwards.
#[inline(always)]
fn equal_stride(row: impl Fn(usize) -> *const u8) -> Option<usize> {
    let (first, stride) = (row(0).addr(), row(1).addr().checked_sub(row(0).addr())?);
    (2..SIDE).all(|i| row(i).addr().checked_sub(first) == Some(i * stride)).then_some(stride)
}
