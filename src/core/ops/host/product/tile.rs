//! The product's inner loop: a tile of the result in registers.
//!
//! With 32 registers a tile is 8 rows by 3 vectors: 24 sums, 3 vectors of `b` and a broadcast element of `a`. That is 11 loads for
//! 24 multiply-adds; taller and narrower tiles (14 by 2) measured slower. With 16 registers it is 6 rows by 2 vectors. Rows of `a`
//! are read where they lie, so that nothing need be packed where the summed dimension is contiguous.

use pulp::{NullaryFnOnce, Simd};

use crate::ops::host::float::Float;

/// Rows and vectors of a tile, at most.
pub(super) const fn largest<S: Simd>() -> (usize, usize) {
    if S::REGISTER_COUNT >= 32 { (8, 3) } else { (6, 2) }
}

/// Rows of the next tile where `left` are left: the largest, then powers of two.
pub(super) const fn next_rows<S: Simd>(left: usize) -> usize {
    match left {
        left if left >= largest::<S>().0 => largest::<S>().0,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Vectors of the next tile where `left` are left: four are two and two, which keep the multipliers busier than three and one.
pub(super) const fn next_vectors<S: Simd>(left: usize) -> usize {
    match left {
        4 => 2,
        left if left < largest::<S>().1 => left,
        _ => largest::<S>().1,
    }
}

/// Where a tile's rows of `a` are.
#[derive(Clone, Copy)]
pub(super) enum Rows<T> {
    /// Row i begins at the pointer plus i times the stride; its steps are neighbours.
    InPlace(*const T, usize),
    /// `[depth][rows]` of the largest tile, with anything in the rows that the tile has not.
    Packed(*const T),
}

/// One tile: `out = a · b`, or `out += a · b`, over `depth` steps.
pub(super) struct Tile<T, S> {
    pub simd: S,
    /// Rows ([`next_rows`], or any number where they are packed) and columns, of [`next_vectors`] vectors; the last may be a part of one.
    pub size: (usize, usize),
    pub depth: usize,
    pub a: Rows<T>,
    /// Each vector is `[depth][lanes]`, `depth * lanes` apart.
    pub b: *const T,
    pub out: *mut T,
    /// Between the rows and between the columns of `out`.
    pub strides: (usize, usize),
    pub read: bool,
}

impl<T: Float, S: Simd> Tile<T, S> {
    /// Computes it.
    ///
    /// # Safety
    /// All that the fields name lies in live memory; the elements of `out` are this call's alone.
    #[inline(always)]
    pub unsafe fn run(self) {
        self.simd.vectorize(self);
    }
}

impl<T: Float, S: Simd> NullaryFnOnce for Tile<T, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // SAFETY: as `run`'s caller promises.
        unsafe {
            match self.size.1.div_ceil(T::lanes::<S>()) {
                3 if largest::<S>().1 == 3 => self.with_vectors::<3>(),
                2 => self.with_vectors::<2>(),
                _ => self.with_vectors::<1>(),
            }
        }
    }
}

impl<T: Float, S: Simd> Tile<T, S> {
    #[inline(always)]
    unsafe fn with_vectors<const V: usize>(self) {
        // SAFETY: as `run`'s caller promises.
        unsafe {
            match (self.a, self.size.0) {
                (Rows::InPlace(a, stride), 8) if largest::<S>().0 == 8 => self.compute::<8, V, false>(a, stride),
                (Rows::InPlace(a, stride), 6) if largest::<S>().0 == 6 => self.compute::<6, V, false>(a, stride),
                (Rows::InPlace(a, stride), 4) => self.compute::<4, V, false>(a, stride),
                (Rows::InPlace(a, stride), 2) => self.compute::<2, V, false>(a, stride),
                (Rows::InPlace(a, stride), _) => self.compute::<1, V, false>(a, stride),
                (Rows::Packed(a), _) if largest::<S>().0 == 8 => self.compute::<8, V, true>(a, 1),
                (Rows::Packed(a), _) => self.compute::<6, V, true>(a, 1),
            }
        }
    }

    /// `R` rows by `V` vectors. The rows beyond the tile's, where `a` is packed, are computed and dropped.
    #[inline(always)]
    unsafe fn compute<const R: usize, const V: usize, const PACKED: bool>(self, a: *const T, row_stride: usize) {
        let Self { simd, depth, mut b, .. } = self;
        let lanes = T::lanes::<S>();
        let step = if PACKED { R } else { 1 };
        // SAFETY: as `run`'s caller promises.
        unsafe {
            // One pointer per row: else the compiler finds each row's place anew, with additions that cost as much as the loads.
            let mut rows = [a; R];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = if PACKED { a.wrapping_add(i) } else { opaque(a.wrapping_add(i * row_stride)) };
            }
            let mut sums = [[T::splat(simd, T::ZERO); V]; R];
            let mut at = 0;
            // Unrolled by hand: the counting would cost 5 %.
            while at + 4 <= depth {
                add_step::<T, S, R, V>(simd, &mut sums, &rows, at * step, b, depth * lanes);
                add_step::<T, S, R, V>(simd, &mut sums, &rows, (at + 1) * step, b.add(lanes), depth * lanes);
                add_step::<T, S, R, V>(simd, &mut sums, &rows, (at + 2) * step, b.add(2 * lanes), depth * lanes);
                add_step::<T, S, R, V>(simd, &mut sums, &rows, (at + 3) * step, b.add(3 * lanes), depth * lanes);
                at += 4;
                b = b.add(4 * lanes);
            }
            while at < depth {
                add_step::<T, S, R, V>(simd, &mut sums, &rows, at * step, b, depth * lanes);
                at += 1;
                b = b.add(lanes);
            }
            self.store(&sums);
        }
    }

    #[inline(always)]
    unsafe fn store<const R: usize, const V: usize>(&self, sums: &[[T::Vector<S>; V]; R]) {
        let &Self { simd, size: (rows, cols), out, strides: (row_stride, col_stride), read, .. } = self;
        let lanes = T::lanes::<S>();
        // SAFETY: as `run`'s caller promises.
        unsafe {
            if rows == R && cols == V * lanes && col_stride == 1 {
                for (i, sums) in sums.iter().enumerate() {
                    for (v, &sum) in sums.iter().enumerate() {
                        let to = out.add(i * row_stride + v * lanes).cast::<T::Vector<S>>();
                        let sum = if read { T::vector_add(simd, to.read_unaligned(), sum) } else { sum };
                        to.write_unaligned(sum);
                    }
                }
                return;
            }
            // A copy: indexed at run time, the sums themselves would have to live in memory all along.
            let mut copy = [[T::splat(simd, T::ZERO); V]; R];
            for (to, from) in copy.iter_mut().zip(sums) {
                *to = *from;
            }
            let sums = copy.as_ptr().cast::<T>();
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

/// One step of the sum: element `at` of each row by the `V` vectors at `b`, `pitch` apart.
#[inline(always)]
unsafe fn add_step<T: Float, S: Simd, const R: usize, const V: usize>(
    simd: S,
    sums: &mut [[T::Vector<S>; V]; R],
    rows: &[*const T; R],
    at: usize,
    b: *const T,
    pitch: usize,
) {
    // SAFETY: as `run`'s caller promises.
    unsafe {
        let mut vectors = [T::splat(simd, T::ZERO); V];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = b.add(v * pitch).cast::<T::Vector<S>>().read_unaligned();
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = T::splat(simd, *row.add(at));
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = T::vector_mul_add(simd, x, vector, *sum);
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
