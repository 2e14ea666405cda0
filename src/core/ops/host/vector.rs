//! Loops over slices, compiled for AVX-512, AVX2 and plain scalar code and chosen at run time.
//!
//! [`dispatch`] compiles what is inlined into it for each instruction set. The loops here are plain Rust: a new elementwise
//! function is a closure over [`Float`]'s methods given to [`map`], [`map2`] or [`map3`], nothing else.
//!
//! **Order of sums.** A sum over a slice runs over 32 virtual lanes: lane `l` takes elements `l`, `l + 32`, `l + 64`, … in that
//! order, starting from zero; then lane `l` adds lane `l + 16` for `l < 16`, then `l + 8`, `l + 4`, `l + 2`, `l + 1`. The bits
//! depend on the values and their number alone. [`column_sums`] adds rows in ascending order within blocks of 64 rows, then
//! the blocks in ascending order.

use super::float::{Float, Held};
use super::parallel::{self, GRAIN};
use crate::tape::Accumulate;

pub use crate::device::instructions::dispatch;

/// Virtual lanes of a sum.
const LANES: usize = 32;
/// Rows in one block of a column sum.
const BLOCK_ROWS: usize = 64;
/// Columns that a column sum handles at a time.
const BLOCK_COLS: usize = 64;
/// Elements per task of a parallel elementwise loop.
const TASK: usize = GRAIN / 2;

// AVX-512 needs pulp's feature `x86-v4`: without it this does not compile.
#[cfg(target_arch = "x86_64")]
const _: fn() -> bool = pulp::x86::V4::is_available;

/// Asks for elements that will soon be read, as far as there are that many: for rows too far apart for the hardware to guess.
#[inline(always)]
pub(crate) fn prefetch<T>(from: &[T], start: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if start < from.len() {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let run = &from[start..(start + len).min(from.len())];
        for line in run.chunks((64 / size_of::<T>()).max(1)) {
            // SAFETY: SSE is part of x86-64, and the address is that of a live element.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, start, len);
}

/// `dst[i] = f(src[i])`, or `+=`. Elements of one that is held in bf16 are widened, or rounded once.
///
/// # Panics
/// Where the lengths differ; so do the functions below.
#[inline]
pub fn map<T: Float, D: Held<Float = T>, A: Held<Float = T>>(
    dst: &mut [D],
    src: &[A],
    mode: Accumulate,
    f: impl Fn(T) -> T,
) {
    assert_eq!(dst.len(), src.len(), "map: lengths differ");
    dispatch(
        #[inline(always)]
        || match mode {
            Accumulate::Write => dst.iter_mut().zip(src).for_each(|(dst, &x)| *dst = D::of(f(x.get()))),
            Accumulate::Add => dst.iter_mut().zip(src).for_each(|(dst, &x)| *dst = D::of(dst.get() + f(x.get()))),
        },
    );
}

/// `dst[i] = f(dst[i])`.
#[inline]
pub fn map_in_place<T: Float>(dst: &mut [T], f: impl Fn(T) -> T) {
    dispatch(
        #[inline(always)]
        || dst.iter_mut().for_each(|x| *x = f(*x)),
    );
}

/// `dst[i] = f(a[i], b[i])`, or `+=`.
#[inline]
pub fn map2<T: Float, D: Held<Float = T>, A: Held<Float = T>, B: Held<Float = T>>(
    dst: &mut [D],
    a: &[A],
    b: &[B],
    mode: Accumulate,
    f: impl Fn(T, T) -> T,
) {
    assert!(dst.len() == a.len() && a.len() == b.len(), "map2: lengths differ");
    dispatch(
        #[inline(always)]
        || {
            let sources = a.iter().zip(b);
            match mode {
                Accumulate::Write => {
                    dst.iter_mut().zip(sources).for_each(|(dst, (a, b))| *dst = D::of(f(a.get(), b.get())));
                }
                Accumulate::Add => {
                    dst.iter_mut().zip(sources).for_each(|(dst, (a, b))| *dst = D::of(dst.get() + f(a.get(), b.get())));
                }
            }
        },
    );
}

/// `dst[i] = f(a[i], b[i], c[i])`, or `+=`.
#[inline]
pub fn map3<E: Held>(
    dst: &mut [E],
    a: &[E],
    b: &[E],
    c: &[E],
    mode: Accumulate,
    f: impl Fn(E::Float, E::Float, E::Float) -> E::Float,
) {
    assert!(dst.len() == a.len() && a.len() == b.len() && b.len() == c.len(), "map3: lengths differ");
    dispatch(
        #[inline(always)]
        || {
            let sources = a.iter().zip(b).zip(c);
            let f = |a: &E, b: &E, c: &E| f(a.get(), b.get(), c.get());
            match mode {
                Accumulate::Write => {
                    dst.iter_mut().zip(sources).for_each(|(dst, ((a, b), c))| *dst = E::of(f(a, b, c)))
                }
                Accumulate::Add => {
                    dst.iter_mut().zip(sources).for_each(|(dst, ((a, b), c))| *dst = E::of(dst.get() + f(a, b, c)));
                }
            }
        },
    );
}

/// [`map`] on all threads.
pub fn par_map<E: Held>(dst: &mut [E], src: &[E], mode: Accumulate, f: impl Fn(E::Float) -> E::Float + Send + Sync) {
    assert_eq!(dst.len(), src.len(), "par_map: lengths differ");
    parallel::for_row_blocks(dst, 1, TASK, |i, dst| map(dst, &src[i..][..dst.len()], mode, &f));
}

/// [`map2`] on all threads.
pub fn par_map2<E: Held>(
    dst: &mut [E],
    a: &[E],
    b: &[E],
    mode: Accumulate,
    f: impl Fn(E::Float, E::Float) -> E::Float + Send + Sync,
) {
    assert!(dst.len() == a.len() && a.len() == b.len(), "par_map2: lengths differ");
    parallel::for_row_blocks(dst, 1, TASK, |i, dst| {
        map2(dst, &a[i..][..dst.len()], &b[i..][..dst.len()], mode, &f);
    });
}

/// [`map3`] on all threads.
pub fn par_map3<E: Held>(
    dst: &mut [E],
    a: &[E],
    b: &[E],
    c: &[E],
    mode: Accumulate,
    f: impl Fn(E::Float, E::Float, E::Float) -> E::Float + Send + Sync,
) {
    assert!(dst.len() == a.len() && a.len() == b.len() && b.len() == c.len(), "par_map3: lengths differ");
    parallel::for_row_blocks(dst, 1, TASK, |i, dst| {
        let n = dst.len();
        map3(dst, &a[i..][..n], &b[i..][..n], &c[i..][..n], mode, &f);
    });
}

/// Folds the lanes' values in the documented order; their number is a power of two.
#[inline(always)]
pub(crate) fn fold<T: Float, const N: usize>(mut lanes: [T; N], join: impl Fn(T, T) -> T) -> T {
    let mut width = N / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = join(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// One pass over a slice with 32 lanes.
#[inline(always)]
fn reduce<T: Float>(a: &[T], start: T, step: impl Fn(T, T) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();
    for chunk in whole {
        for l in 0..LANES {
            lanes[l] = step(lanes[l], chunk[l]);
        }
    }
    // A copy: indexed up to a length known at run time, the lanes would have to live in memory all along.
    let mut tail = lanes;
    for (lane, &x) in tail.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
    fold(tail, join)
}

/// One pass over two slices with 32 lanes.
#[inline(always)]
fn reduce2<T: Float>(a: &[T], b: &[T], step: impl Fn(T, T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        for l in 0..LANES {
            lanes[l] = step(lanes[l], a[l], b[l]);
        }
    }
    let mut tail = lanes;
    for (lane, (&a, &b)) in tail.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane = step(*lane, a, b);
    }
    fold(tail, |a, b| a + b)
}

/// Σ a\[i\], in the documented order.
#[inline]
pub fn sum<T: Float>(a: &[T]) -> T {
    sum_by(a, |x| x)
}

/// Σ f(a\[i\]), in the documented order.
#[inline]
pub fn sum_by<T: Float>(a: &[T], f: impl Fn(T) -> T) -> T {
    dispatch(
        #[inline(always)]
        || reduce(a, T::ZERO, |sum, x| sum + f(x), |a, b| a + b),
    )
}

/// Σ a\[i\]², fused, in the documented order.
#[inline]
pub fn sum_of_squares<T: Float>(a: &[T]) -> T {
    dispatch(
        #[inline(always)]
        || reduce(a, T::ZERO, |sum, x| x.mul_add(x, sum), |a, b| a + b),
    )
}

/// Σ (a\[i\] - mean)², fused, in the documented order.
#[inline]
pub fn sum_of_squares_about<T: Float>(a: &[T], mean: T) -> T {
    dispatch(
        #[inline(always)]
        || reduce(a, T::ZERO, |sum, x| (x - mean).mul_add(x - mean, sum), |a, b| a + b),
    )
}

/// Σ a\[i\] b\[i\], fused, in the documented order.
///
/// # Panics
/// Where the lengths differ.
#[inline]
pub fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    dispatch(
        #[inline(always)]
        || reduce2(a, b, |sum, a, b| a.mul_add(b, sum)),
    )
}

/// Σ f(a\[i\], b\[i\]), in the documented order.
///
/// # Panics
/// Where the lengths differ.
#[inline]
pub fn sum_by2<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    assert_eq!(a.len(), b.len(), "sum_by2: lengths differ");
    dispatch(
        #[inline(always)]
        || reduce2(a, b, |sum, a, b| sum + f(a, b)),
    )
}

/// The largest value; -∞ of none. NaN is passed over.
#[inline]
pub fn max<T: Float>(a: &[T]) -> T {
    dispatch(
        #[inline(always)]
        || reduce(a, T::NEG_INFINITY, |most, x| x.larger(most), |a, b| b.larger(a)),
    )
}

/// `dst[i] += alpha * x[i]`, fused.
#[inline]
pub fn axpy<T: Float, A: Held<Float = T>>(dst: &mut [T], alpha: T, x: &[A]) {
    assert_eq!(dst.len(), x.len(), "axpy: lengths differ");
    dispatch(
        #[inline(always)]
        || dst.iter_mut().zip(x).for_each(|(dst, &x)| *dst = alpha.mul_add(x.get(), *dst)),
    );
}

/// `dst[i] *= alpha`.
#[inline]
pub fn scale<T: Float>(dst: &mut [T], alpha: T) {
    map_in_place(dst, |x| x * alpha);
}

/// `dst[j] = Σᵢ src[i, j]` or `+=`: a bias's gradient. `src` is `[rows, dst.len()]`.
///
/// # Panics
/// Where `src` is not whole rows.
pub fn column_sums<T: Float, A: Held<Float = T>>(dst: &mut [T], src: &[A], mode: Accumulate) {
    let cols = dst.len();
    if cols == 0 {
        return;
    }
    assert!(src.len().is_multiple_of(cols), "column sums: {} elements are no rows of {cols}", src.len());
    // Parallel over columns, never over rows.
    let run = |first: usize, dst: &mut [T]| {
        let width = dst.len();
        dispatch(
            #[inline(always)]
            || {
                let mut total = [T::ZERO; BLOCK_COLS];
                for rows in src.chunks(BLOCK_ROWS * cols) {
                    let mut sums = [T::ZERO; BLOCK_COLS];
                    for row in rows.chunks_exact(cols).map(|row| &row[first..][..width]) {
                        match row.first_chunk::<BLOCK_COLS>() {
                            Some(row) => (0..BLOCK_COLS).for_each(|j| sums[j] += row[j].get()),
                            None => sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x.get()),
                        }
                    }
                    total.iter_mut().zip(&sums).for_each(|(total, &sum)| *total += sum);
                }
                match mode {
                    Accumulate::Write => dst.copy_from_slice(&total[..width]),
                    Accumulate::Add => dst.iter_mut().zip(&total).for_each(|(dst, &total)| *dst += total),
                }
            },
        );
    };
    let mut blocks: Vec<_> = dst.chunks_mut(BLOCK_COLS).enumerate().map(|(i, block)| (i * BLOCK_COLS, block)).collect();
    parallel::for_slots(&mut blocks, src.len(), |(first, block)| run(*first, block));
}

#[cfg(test)]
#[path = "vector_tests.rs"]
mod tests;
