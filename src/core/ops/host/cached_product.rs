//! Small products, such as those of attention, whose operands are hot in the cache: no packing, a tile of the result in registers.
//!
//! Every element is one chain of fused multiply-adds in ascending order, from zero; with `add` the chain's sum is added to
//! what is there. So no bit depends on the other rows, on the vector width or on the threads. In bf16 a step of the chain is a pair
//! ([`Factor`]); where there are registers for matrices, a chunk of pairs, as `product/matrices.rs` says.

use pulp::NullaryFnOnce;

use super::Float;
use super::product::matrices::{BLOCK, Chunks, Left, LeftRows, Right, Target};
use super::product::{Factor, MatrixRegisters, Unit};

/// Columns of a [`Product`] come in multiples of this, on every machine.
pub(crate) const PAD: usize = 16;

/// `c[i, j] = Σ_p a[i, p] · b[p, j]`, or `+=`, through pointers: row `i` of `a` begins at `a + i · a_row`, its steps are
/// `a_step` apart; rows of `b` and `c` are `b_row` and `c_row` apart, their lanes are neighbours. Either the steps of a row of `a` are
/// neighbours, or its rows are, up to the next multiple of [`PAD`].
pub(crate) struct Product<T: Factor, U> {
    pub unit: U,
    /// Rows of `a` and `c`, columns of `b` and `c` (a multiple of [`PAD`]), steps of the sums.
    pub sizes: (usize, usize, usize),
    pub a: *const T::Step,
    pub a_row: usize,
    pub a_step: usize,
    pub b: *const T::Step,
    pub b_row: usize,
    pub c: *mut T::Float,
    pub c_row: usize,
    pub add: bool,
}

impl<T: Factor, U: Unit<T>> Product<T, U> {
    /// Computes it, compiled for `U`.
    ///
    /// # Safety
    /// All elements named above lie in live memory, those of `c` are this call's alone and not among those of `a` and `b`.
    #[inline(always)]
    pub unsafe fn run(self) {
        debug_assert_eq!(self.sizes.1 % PAD, 0);
        self.unit.vectorize(self);
    }
}

impl<T: Factor, U: Unit<T>> NullaryFnOnce for Product<T, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        if <U::Matrices as MatrixRegisters>::EXIST {
            // SAFETY: as `run`'s caller promises; units that have the registers have pairs of bf16 and sums in f32.
            return unsafe { self.matrices() };
        }
        let vectors = self.sizes.1 / U::lanes();
        let mut j = 0;
        while j < vectors {
            let left = vectors - j;
            // Four are two and two: pairs keep the multipliers busier than three and one.
            let width = if left == 4 { 2 } else { left.min(3) };
            // SAFETY: the columns exist; the rest is what `run`'s caller promises.
            unsafe {
                match width {
                    3 => self.columns::<3>(j),
                    2 => self.columns::<2>(j),
                    _ => self.columns::<1>(j),
                }
            }
            j += width;
        }
    }
}

impl<T: Factor, U: Unit<T>> Product<T, U> {
    /// All of it, by matrix registers.
    #[inline(always)]
    unsafe fn matrices(&self) {
        let &Self { unit, sizes: (rows, columns, steps), a, a_row, a_step, b, b_row, c, c_row, add } = self;
        let (registers, chunks) = (unit.matrices(), Chunks::new(1, steps));
        let avx512 = U::REGISTERS == 32;
        f32::with_scratch(chunks.panel(), |panel| {
            // SAFETY: as `run`'s caller promises. Nothing foreign runs before the registers are closed.
            unsafe {
                for first in (0..rows).step_by(BLOCK) {
                    let from = a.add(first * a_row);
                    let left = match a_step {
                        1 => Left::Rows { from: from.cast(), stride: a_row * size_of::<T::Step>(), segment: 0 },
                        pitch => Left::Turned(from.cast(), pitch),
                    };
                    let panel = panel.as_mut_ptr().cast();
                    let left = LeftRows::gather(chunks, (rows - first).min(BLOCK), left, panel, avx512);
                    let right = Right { from: b.cast(), step: b_row, vector: U::lanes(), segment: 0 };
                    let target = Target { to: c.add(first * c_row).cast(), strides: (c_row, 1), add };
                    registers.open(chunks.chunk);
                    left.multiply(registers, right, columns, target);
                    registers.close();
                }
            }
        });
    }

    /// `V` vectors of columns from vector `j` on, all rows.
    #[inline(always)]
    unsafe fn columns<const V: usize>(&self, j: usize) {
        let mut row = 0;
        while row < self.sizes.0 {
            let left = self.sizes.0 - row;
            // SAFETY: as `run`'s.
            row += unsafe {
                match left {
                    8.. if U::REGISTERS >= 32 => self.tile::<8, V>(row, j),
                    4.. => self.tile::<4, V>(row, j),
                    2.. => self.tile::<2, V>(row, j),
                    _ => self.tile::<1, V>(row, j),
                }
            };
        }
    }

    /// `R` rows by `V` vectors; returns `R`.
    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(&self, row: usize, j: usize) -> usize {
        let (unit, lanes) = (self.unit, U::lanes());
        let mut sums = [[unit.zero(); V]; R];
        // SAFETY: as `run`'s.
        unsafe {
            let mut a = self.a.add(row * self.a_row);
            let mut b = self.b.add(j * lanes);
            for _ in 0..self.sizes.2 {
                let mut columns = [unit.load(b); V];
                for (v, column) in columns.iter_mut().enumerate().skip(1) {
                    *column = unit.load(b.add(v * lanes));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    // Pairs that lie in place are aligned as bf16.
                    let x = unit.splat(a.add(i * self.a_row).read_unaligned());
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = unit.multiply_add(x, column, *sum);
                    }
                }
                a = a.wrapping_add(self.a_step);
                b = b.wrapping_add(self.b_row);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    let to = self.c.add((row + i) * self.c_row + (j + v) * lanes).cast::<U::Sums>();
                    let sum = if self.add { unit.add(to.read_unaligned(), sum) } else { sum };
                    to.write_unaligned(sum);
                }
            }
        }
        R
    }
}
