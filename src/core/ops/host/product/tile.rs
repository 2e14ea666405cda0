//! The product's inner loop: a tile of the result in registers.
//!
//! With 32 registers a tile is 8 rows by 3 vectors: 24 sums, 3 vectors of `b` and a broadcast element of `a`. That is 11 loads for
//! 24 multiply-adds; taller and narrower tiles (14 by 2) measured slower. With 16 registers it is 6 rows by 2 vectors. Rows of `a`
//! are read where they lie, so that nothing need be packed where the summed dimension is contiguous.

use pulp::NullaryFnOnce;

use super::factor::{Factor, Unit};
use super::matrices::BLOCK;
use super::registers::MatrixRegisters;

/// Rows and vectors of a tile, at most.
pub(super) const fn largest<T: Factor, U: Unit<T>>() -> (usize, usize) {
    match U::REGISTERS {
        _ if has_matrices::<T, U>() => (BLOCK, 2),
        32.. => (8, 3),
        _ => (6, 2),
    }
}

/// Whether tiles are blocks of matrix registers.
pub(super) const fn has_matrices<T: Factor, U: Unit<T>>() -> bool {
    <U::Matrices as MatrixRegisters>::EXIST
}

/// Rows of the next tile where `left` are left: the largest, then powers of two; of matrix registers any number.
pub(super) const fn next_rows<T: Factor, U: Unit<T>>(left: usize) -> usize {
    match left {
        left if left >= largest::<T, U>().0 => largest::<T, U>().0,
        left if has_matrices::<T, U>() => left,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Vectors of the next tile where `left` are left: four are two and two, which keep the multipliers busier than three and one.
pub(super) const fn next_vectors<T: Factor, U: Unit<T>>(left: usize) -> usize {
    match left {
        4 => 2,
        left if left < largest::<T, U>().1 => left,
        _ => largest::<T, U>().1,
    }
}

/// Where a tile's rows of `a` are.
#[derive(Clone, Copy)]
pub(super) enum Rows<T: Factor> {
    /// Row i begins at the pointer plus i times the stride, in elements; its steps are neighbours, each whole.
    InPlace(*const T, usize),
    /// `[depth][rows]` of the largest tile, with anything in the rows that the tile has not.
    Packed(*const T::Step),
    /// By taps, each `[rows of the largest tile]`: where a row's steps of the tap begin. So many taps, of equally many steps.
    Taps(*const *const T, usize),
}

/// One tile: `out = a · b`, or `out += a · b`, over `depth` steps.
pub(super) struct Tile<T: Factor, U> {
    pub unit: U,
    /// Rows ([`next_rows`], or any number where they are packed) and columns, of [`next_vectors`] vectors; the last may be a part of one.
    pub size: (usize, usize),
    pub depth: usize,
    pub a: Rows<T>,
    /// Each vector is `[depth][lanes]`, `depth * lanes` apart.
    pub b: *const T::Step,
    pub out: *mut T::Float,
    /// Between the rows and between the columns of `out`.
    pub strides: (usize, usize),
    pub read: bool,
}

impl<T: Factor, U: Unit<T>> Tile<T, U> {
    /// Computes it.
    ///
    /// # Safety
    /// All that the fields name lies in live memory; the elements of `out` are this call's alone.
    #[inline(always)]
    pub unsafe fn run(self) {
        self.unit.vectorize(self);
    }
}

impl<T: Factor, U: Unit<T>> NullaryFnOnce for Tile<T, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // SAFETY: as `run`'s caller promises.
        unsafe {
            match self.size.1.div_ceil(U::lanes()) {
                3 if largest::<T, U>().1 == 3 => self.with_vectors::<3>(),
                2 => self.with_vectors::<2>(),
                _ => self.with_vectors::<1>(),
            }
        }
    }
}

impl<T: Factor, U: Unit<T>> Tile<T, U> {
    #[inline(always)]
    unsafe fn with_vectors<const V: usize>(self) {
        // SAFETY: as `run`'s caller promises.
        unsafe {
            match (self.a, self.size.0) {
                (Rows::InPlace(a, stride), 8) if largest::<T, U>().0 == 8 => self.in_place::<8, V>(a, stride),
                (Rows::InPlace(a, stride), 6) if largest::<T, U>().0 == 6 => self.in_place::<6, V>(a, stride),
                (Rows::InPlace(a, stride), 4) => self.in_place::<4, V>(a, stride),
                (Rows::InPlace(a, stride), 2) => self.in_place::<2, V>(a, stride),
                (Rows::InPlace(a, stride), _) => self.in_place::<1, V>(a, stride),
                (Rows::Taps(..), _) if T::PER_STEP == 1 => unreachable!("images of {}", T::DTYPE),
                (Rows::Taps(table, taps), 8) if largest::<T, U>().0 == 8 => self.by_taps::<8, V>(table, taps),
                (Rows::Taps(table, taps), 6) if largest::<T, U>().0 == 6 => self.by_taps::<6, V>(table, taps),
                (Rows::Taps(table, taps), 4) => self.by_taps::<4, V>(table, taps),
                (Rows::Taps(table, taps), 2) => self.by_taps::<2, V>(table, taps),
                (Rows::Taps(table, taps), _) => self.by_taps::<1, V>(table, taps),
                (Rows::Packed(a), _) if largest::<T, U>().0 == 8 => self.packed::<8, V>(a),
                (Rows::Packed(a), _) => self.packed::<6, V>(a),
            }
        }
    }

    #[inline(always)]
    unsafe fn in_place<const R: usize, const V: usize>(self, a: *const T, row_stride: usize) {
        // One pointer per row: else the compiler finds each row's place anew, with additions that cost as much as the loads.
        let mut rows = [a.cast(); R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = opaque(a.wrapping_add(i * row_stride)).cast();
        }
        // SAFETY: as `run`'s caller promises.
        unsafe { self.compute::<R, V, 1>(rows) };
    }

    /// The rows beyond the tile's are computed and dropped.
    #[inline(always)]
    unsafe fn packed<const R: usize, const V: usize>(self, a: *const T::Step) {
        let mut rows = [a; R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = a.wrapping_add(i);
        }
        // SAFETY: as `run`'s caller promises.
        unsafe {
            match R {
                8 => self.compute::<R, V, 8>(rows),
                _ => self.compute::<R, V, 6>(rows),
            }
        }
    }

    #[inline(always)]
    unsafe fn by_taps<const R: usize, const V: usize>(self, table: *const *const T, taps: usize) {
        let (steps, pitch) = (self.depth / taps, self.depth * U::lanes());
        // SAFETY: as `run`'s caller promises.
        unsafe {
            let mut sums = [[self.unit.zero(); V]; R];
            for tap in 0..taps {
                let mut rows = [self.b; R];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = opaque(*table.add(tap * largest::<T, U>().0 + i)).cast();
                }
                accumulate::<T, U, R, V, 1>(
                    self.unit,
                    &mut sums,
                    &rows,
                    self.b.add(tap * steps * U::lanes()),
                    steps,
                    pitch,
                );
            }
            self.store(&sums);
        }
    }

    /// `R` rows by `V` vectors; the steps of a row are `STEP` apart.
    #[inline(always)]
    unsafe fn compute<const R: usize, const V: usize, const STEP: usize>(self, rows: [*const T::Step; R]) {
        let Self { unit, depth, b, .. } = self;
        // SAFETY: as `run`'s caller promises.
        unsafe {
            let mut sums = [[unit.zero(); V]; R];
            accumulate::<T, U, R, V, STEP>(unit, &mut sums, &rows, b, depth, depth * U::lanes());
            self.store(&sums);
        }
    }

    #[inline(always)]
    unsafe fn store<const R: usize, const V: usize>(&self, sums: &[[U::Sums; V]; R]) {
        let &Self { unit, size: (rows, cols), out, strides: (row_stride, col_stride), read, .. } = self;
        let lanes = U::lanes();
        // SAFETY: as `run`'s caller promises.
        unsafe {
            if rows == R && cols == V * lanes && col_stride == 1 {
                for (i, sums) in sums.iter().enumerate() {
                    for (v, &sum) in sums.iter().enumerate() {
                        let to = out.add(i * row_stride + v * lanes).cast::<U::Sums>();
                        let sum = if read { unit.add(to.read_unaligned(), sum) } else { sum };
                        to.write_unaligned(sum);
                    }
                }
                return;
            }
            // A copy: indexed at run time, the sums themselves would have to live in memory all along.
            let mut copy = [[unit.zero(); V]; R];
            for (to, from) in copy.iter_mut().zip(sums) {
                *to = *from;
            }
            let sums = copy.as_ptr().cast::<T::Float>();
            for i in 0..rows {
                for j in 0..cols {
                    let to = out.add(i * row_stride + j * col_stride);
                    let value = *sums.add(i * V * lanes + j);
                    *to = if read { *to + value } else { value };
                }
            }
        }
    }
}

/// `steps` steps of the sum. The steps of a row are `STEP` apart, the vectors at `b` `pitch`.
#[inline(always)]
unsafe fn accumulate<T: Factor, U: Unit<T>, const R: usize, const V: usize, const STEP: usize>(
    unit: U,
    sums: &mut [[U::Sums; V]; R],
    rows: &[*const T::Step; R],
    mut b: *const T::Step,
    steps: usize,
    pitch: usize,
) {
    let lanes = U::lanes();
    let mut at = 0;
    // SAFETY: as `run`'s caller promises.
    unsafe {
        // Unrolled by hand: the counting would cost 5 %.
        while at + 4 <= steps {
            add_step::<T, U, R, V>(unit, sums, rows, at * STEP, b, pitch);
            add_step::<T, U, R, V>(unit, sums, rows, (at + 1) * STEP, b.add(lanes), pitch);
            add_step::<T, U, R, V>(unit, sums, rows, (at + 2) * STEP, b.add(2 * lanes), pitch);
            add_step::<T, U, R, V>(unit, sums, rows, (at + 3) * STEP, b.add(3 * lanes), pitch);
            at += 4;
            b = b.add(4 * lanes);
        }
        while at < steps {
            add_step::<T, U, R, V>(unit, sums, rows, at * STEP, b, pitch);
            at += 1;
            b = b.add(lanes);
        }
    }
}

/// One step of the sum: step `at` of each row by the `V` vectors at `b`, `pitch` apart.
#[inline(always)]
unsafe fn add_step<T: Factor, U: Unit<T>, const R: usize, const V: usize>(
    unit: U,
    sums: &mut [[U::Sums; V]; R],
    rows: &[*const T::Step; R],
    at: usize,
    b: *const T::Step,
    pitch: usize,
) {
    // SAFETY: as `run`'s caller promises.
    unsafe {
        let mut vectors = [unit.load(b); V];
        for (v, vector) in vectors.iter_mut().enumerate().skip(1) {
            *vector = unit.load(b.add(v * pitch));
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            // Pairs of bf16 that lie in place are aligned as bf16.
            let x = unit.splat(row.add(at).read_unaligned());
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = unit.multiply_add(x, vector, *sum);
            }
        }
    }
}

/// The pointer, in a register of its own.
#[inline(always)]
fn opaque<T>(mut pointer: *const T) -> *const T {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[allow(clippy::pointers_in_nomem_asm_block)] // the pointer itself passes, nothing that it points to
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
    }
    pointer
}
