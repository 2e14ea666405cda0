//! Matrix products.
//!
//! `dst = a · b`, by blocks that fit the caches (Goto and van de Geijn 2008; `blocks.rs`), with an inner loop that keeps a
//! tile of the result in registers (`tile.rs`).
//!
//! **Order of summation.** Element `(i, j)` is the sum of `a[i, p] * b[p, j]` over `p`, cut into [`depth_blocks`] blocks by the
//! length of the sum alone. Within a block it is one chain of fused multiply-adds in ascending `p` from zero; blocks are
//! then added in ascending order, to what is there with [`Accumulate::Add`]. So the bits depend neither on the other rows and
//! columns, nor on the number of threads, nor on the vector width. That is why this is not the `gemm` crate: there they
//! depend on the number of rows and on the processor.
//!
//! In bf16 the sum is of f32 and advances by pairs ([`Factor`]). A result in f32 is cut into blocks as above, of pairs; a result
//! in bf16 is one block, rounded at its end. Where there are registers for matrices, a block's order is that of `matrices.rs`: other
//! bits than without them, and as independent of all else.

mod blocks;
mod factor;
pub(crate) mod matrices;
mod peak;
mod registers;
mod tile;
mod turned;
mod windows;

use std::marker::PhantomData;

use half::bf16;

use super::float::Held;
use crate::tape::Accumulate;
use blocks::{Left, Pack, Product, Right};
pub use factor::{Factor, Unit, Vectors, WidenedPairs, WithUnit};
pub use peak::{Peak, peak};
pub use registers::MatrixRegisters;
pub(crate) use windows::{Windows, taps};
#[cfg(test)]
pub(crate) use {factor::SixteenPairs, factor::WithMatrices, registers::Model};

/// A matrix seen through strides, in elements.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A matrix to be written, seen through strides, in elements.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Refuses a view that spans more than `len` elements.
fn check_extent(len: usize, (rows, cols): (usize, usize), (row_stride, col_stride): (usize, usize)) {
    if rows == 0 || cols == 0 {
        return;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    let needed = last.and_then(|(r, c)| r.checked_add(c)?.checked_add(1)).expect("the view's extent overflows");
    assert!(needed <= len, "a {rows} x {cols} view needs {needed} elements, not {len}");
}

impl<'a, T> Matrix<'a, T> {
    /// `data` as `[rows, cols]`, row by row.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// Element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    ///
    /// # Panics
    /// Where `data` is too short for that.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), (rows, cols), (row_stride, col_stride));
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// `data` as `[rows, cols]`, row by row.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// Element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    ///
    /// # Panics
    /// Where `data` is too short for that, or two elements would share a place.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), (rows, cols), (row_stride, col_stride));
        let by_rows = (rows <= 1 || row_stride >= cols * col_stride) && (cols <= 1 || col_stride >= 1);
        let by_cols = (cols <= 1 || col_stride >= rows * row_stride) && (rows <= 1 || row_stride >= 1);
        assert!(by_rows || by_cols, "elements of a {rows} x {cols} view ({row_stride}, {col_stride}) overlap");
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// Number and length of the blocks into which a sum of so many steps of T is cut: nearly equal, at most [`Factor::LONGEST`] steps.
pub fn depth_blocks<T: Factor>(steps: usize) -> (usize, usize) {
    let count = steps.div_ceil(T::LONGEST).max(1);
    (count, steps.div_ceil(count))
}

/// `dst = a · b` or `dst += a · b`: `[m, k] · [k, n]`. The order of summation is the [module](self)'s. The result is of the factors'
/// type, or of that of their sums.
///
/// # Panics
/// Where the shapes do not fit.
pub fn matmul<T: Factor, D: Held<Float = T::Float>>(
    dst: MatrixMut<'_, D>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    mode: Accumulate,
) {
    matmul_then(dst, a, b, mode, |_, _, _| ());
}

/// [`matmul`], then `then(row, first_column, values)` on each piece of a finished row while it is still in the cache, in no
/// particular order: a bias or an activation.
///
/// # Panics
/// Where the shapes do not fit, or `dst`'s columns are not neighbours.
pub fn matmul_then<T: Factor, D: Held<Float = T::Float>>(
    dst: MatrixMut<'_, D>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    mode: Accumulate,
    then: impl Fn(usize, usize, &mut [T::Float]) + Send + Sync,
) {
    assert!(
        dst.rows == a.rows && dst.cols == b.cols && a.cols == b.rows,
        "[{}, {}] cannot hold [{}, {}] · [{}, {}]",
        dst.rows,
        dst.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
    let touches_rows = size_of_val(&then) > 0;
    assert!(!touches_rows || dst.col_stride == 1 || dst.cols <= 1, "a follow-up needs rows without gaps");
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    T::with_unit(Product { dst, a: Left::Matrix(a), b: Right::Plain(b), mode, then });
}

/// A linear layer's weight, `[n, k]`.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a, T> {
    /// Row by row.
    Rows(&'a [T]),
    /// As [`pack_weight`] packed it on this machine.
    Packed(&'a [T]),
}

/// Elements that [`pack_weight`] needs for a weight `[n, k]`: the same on every machine.
pub fn packed_len<T: Factor>(n: usize, k: usize) -> usize {
    n.next_multiple_of(blocks::LANES) * k.next_multiple_of(T::PER_STEP)
}

/// Packs a linear layer's weight `w` `[n, k]` into `packed` (of [`packed_len`], aligned to 4 bytes) as [`linear_forward`] reads it, once
/// for many calls.
///
/// # Panics
/// Where the lengths do not fit.
pub fn pack_weight<T: Factor>(packed: &mut [T], w: &[T], (n, k): (usize, usize)) {
    assert!(w.len() == n * k && packed.len() == packed_len::<T>(n, k), "pack weight: lengths do not fit {n} {k}");
    let packed = bytemuck::cast_slice_mut(packed);
    T::with_unit(Pack { packed, b: Matrix::new(w, n, k).t(), result: PhantomData::<T> });
}

/// A linear layer: `y = x · wᵀ + bias`, then `activation` on each value's row pieces. `x` `[m, k]`, `w` `[n, k]`, `bias` `[n]`, `y` `[m, n]`.
/// `activation(row, first_column, values)` sees the values with the bias added, before they are rounded to T. Who packed the weight
/// changes no bit.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_forward<T: Factor>(
    y: &mut [T],
    x: &[T],
    w: Weight<T>,
    bias: Option<&[T::Float]>,
    (m, n, k): (usize, usize, usize),
    activation: impl Fn(usize, usize, &mut [T::Float]) + Send + Sync,
) {
    let fits = match w {
        Weight::Rows(w) => w.len() == n * k,
        Weight::Packed(w) => w.len() == packed_len::<T>(n, k),
    };
    assert!(y.len() == m * n && x.len() == m * k && fits, "linear forward: lengths do not fit {m} {n} {k}");
    assert!(bias.is_none_or(|bias| bias.len() == n), "linear forward: the bias needs {n} values");
    if m == 0 || n == 0 {
        return;
    }
    T::with_unit(Product {
        dst: MatrixMut::new(y, m, n),
        a: Left::Matrix(Matrix::new(x, m, k)),
        b: match w {
            Weight::Rows(w) => Right::Plain(Matrix::new(w, n, k).t()),
            Weight::Packed(w) => Right::Packed(bytemuck::cast_slice(w)),
        },
        mode: Accumulate::Write,
        then: |row: usize, first: usize, values: &mut [T::Float]| {
            if let Some(bias) = bias {
                values.iter_mut().zip(&bias[first..]).for_each(|(value, &bias)| *value += bias);
            }
            activation(row, first, values);
        },
    });
}

/// A convolution as a product: `y` `[rows, n]` = windows · `w`, or `+=`, then `then` as for [`matmul_then`]; rounded once. `w` is `[k, n]`
/// with k by taps, then channels, or of [`pack_weight`].
///
/// # Panics
/// Where the lengths do not fit, or channels are not whole pairs.
pub(crate) fn convolve(
    y: &mut [bf16],
    windows: Windows<bf16>,
    w: Kernel,
    n: usize,
    mode: Accumulate,
    then: impl Fn(usize, usize, &mut [f32]) + Send + Sync,
) {
    windows.check();
    let (m, k) = (windows.rows(), windows.taps.len() * windows.channels);
    assert!(windows.channels.is_multiple_of(2), "{} channels are not whole pairs", windows.channels);
    let b = match w {
        Kernel::Plain(w) => {
            assert!(w.rows == k && w.cols == n, "a kernel [{}, {}] where [{k}, {n}] is needed", w.rows, w.cols);
            Right::Plain(w)
        }
        Kernel::Packed(packed) => {
            assert_eq!(packed.len(), packed_len::<bf16>(n, k), "a packed kernel of another size");
            Right::Packed(bytemuck::cast_slice(packed))
        }
    };
    // A window that is a pixel is a row as it lies.
    let is_matrix =
        windows.taps == [[0, 0]] && windows.stride == 1 && [windows.size, windows.out] == [windows.source; 2];
    let a = if is_matrix { Left::Matrix(Matrix::new(windows.images, m, k)) } else { Left::Windows(windows) };
    if m > 0 && n > 0 {
        bf16::with_unit(Product { dst: MatrixMut::new(y, m, n), a, b, mode, then });
    }
}

/// The right side of [`convolve`].
#[derive(Clone, Copy)]
pub(crate) enum Kernel<'a> {
    Plain(Matrix<'a, bf16>),
    Packed(&'a [bf16]),
}

/// A linear layer's input gradient: `dx = dy · w` or `dx += dy · w`. `dy` `[m, n]`, `w` `[n, k]`, `dx` `[m, k]`.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_backward_input<T: Factor>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    (m, n, k): (usize, usize, usize),
    mode: Accumulate,
) {
    matmul(MatrixMut::new(dx, m, k), Matrix::new(dy, m, n), Matrix::new(w, n, k), mode);
}

/// A linear layer's weight gradient: `dw = dyᵀ · x` or `dw += dyᵀ · x`. `dy` `[m, n]`, `x` `[m, k]`, `dw` `[n, k]`, of the type of
/// the sums.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_backward_weight<T: Factor>(
    dw: &mut [T::Float],
    dy: &[T],
    x: &[T],
    (m, n, k): (usize, usize, usize),
    mode: Accumulate,
) {
    matmul(MatrixMut::new(dw, n, k), Matrix::new(dy, m, n).t(), Matrix::new(x, m, k), mode);
}

#[cfg(test)]
mod tests;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod trap;
