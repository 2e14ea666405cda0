//! Matrix products.
//!
//! `dst = a · b`, by blocks packed in the order in which the inner loop reads them (Goto and van de Geijn 2008), with an inner
//! loop that keeps a tile of the result in registers.
//!
//! **Order of summation.** Element `(i, j)` is the sum of `a[i, p] * b[p, j]` over `p`, cut into [`depth_blocks`] blocks by the
//! length of the sum alone. Within a block it is one chain of fused multiply-adds in ascending `p` from zero; blocks are
//! then added in ascending order, to what is there with [`Accumulate::Add`]. So the bits depend neither on the other rows and
//! columns, nor on the number of threads, nor on the vector width. That is why this is not the `gemm` crate: there they
//! depend on the number of rows and on the processor.

use super::float::Float;
use super::pack;
use super::parallel::{self, Shared};
use crate::tape::Accumulate;
use pulp::{Arch, Simd, WithSimd};

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

/// The elements that a view spans.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    last.and_then(|(r, c)| r.checked_add(c)?.checked_add(1)).expect("the view's extent overflows")
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
        let needed = span(rows, cols, row_stride, col_stride);
        assert!(needed <= data.len(), "a {rows} x {cols} view needs {needed} elements, not {}", data.len());
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
        let needed = span(rows, cols, row_stride, col_stride);
        assert!(needed <= data.len(), "a {rows} x {cols} view needs {needed} elements, not {}", data.len());
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

/// The longest block of the summed dimension.
const DEPTH: usize = 512;
/// Columns that are packed at a time, a bound on the scratch.
const COLUMNS: usize = 4096;
/// The widest panel that there is; all panels divide it, and it divides [`COLUMNS`].
const PANEL: usize = 32;
/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 19;
/// Rows in one task, at most.
const TASK_ROWS: usize = 56;

/// Number and length of the blocks into which a sum over `k` is cut: nearly equal, at most 512 long.
pub fn depth_blocks(k: usize) -> (usize, usize) {
    let count = k.div_ceil(DEPTH).max(1);
    (count, k.div_ceil(count))
}

/// `dst = a · b` or `dst += a · b`: `[m, k] · [k, n]`. The order of summation is the [module](self)'s.
///
/// # Panics
/// Where the shapes do not fit.
pub fn matmul<T: Float>(dst: MatrixMut<'_, T>, a: Matrix<'_, T>, b: Matrix<'_, T>, mode: Accumulate) {
    matmul_then(dst, a, b, mode, |_, _, _| ());
}

/// [`matmul`], then `then(row, first_column, values)` on each piece of a finished row while it is still in the cache, in no
/// particular order: a bias or an activation.
///
/// # Panics
/// Where the shapes do not fit, or `dst`'s columns are not neighbours.
pub fn matmul_then<T: Float>(
    dst: MatrixMut<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    mode: Accumulate,
    then: impl Fn(usize, usize, &mut [T]) + Send + Sync,
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
    Arch::new().dispatch(Product { dst, a, b: Right::Plain(b), mode, then });
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
pub fn packed_len(n: usize, k: usize) -> usize {
    n.next_multiple_of(PANEL) * k
}

/// Packs a linear layer's weight `w` `[n, k]` into `packed` (of [`packed_len`]) as [`linear_forward`] reads it, once for many calls.
///
/// # Panics
/// Where the lengths do not fit.
pub fn pack_weight<T: Float>(packed: &mut [T], w: &[T], (n, k): (usize, usize)) {
    assert!(w.len() == n * k && packed.len() == packed_len(n, k), "pack weight: lengths do not fit {n} {k}");
    Arch::new().dispatch(Pack { packed, b: Matrix::new(w, n, k).t() });
}

/// A linear layer: `y = x · wᵀ + bias`, then `activation` on each value's row pieces. `x` `[m, k]`, `w` `[n, k]`, `bias` `[n]`, `y` `[m, n]`.
/// `activation(row, first_column, values)` sees the values with the bias added. Who packed the weight changes no bit.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_forward<T: Float>(
    y: &mut [T],
    x: &[T],
    w: Weight<T>,
    bias: Option<&[T]>,
    (m, n, k): (usize, usize, usize),
    activation: impl Fn(usize, usize, &mut [T]) + Send + Sync,
) {
    let fits = match w {
        Weight::Rows(w) => w.len() == n * k,
        Weight::Packed(w) => w.len() == packed_len(n, k),
    };
    assert!(y.len() == m * n && x.len() == m * k && fits, "linear forward: lengths do not fit {m} {n} {k}");
    assert!(bias.is_none_or(|bias| bias.len() == n), "linear forward: the bias needs {n} values");
    if m == 0 || n == 0 {
        return;
    }
    Arch::new().dispatch(Product {
        dst: MatrixMut::new(y, m, n),
        a: Matrix::new(x, m, k),
        b: match w {
            Weight::Rows(w) => Right::Plain(Matrix::new(w, n, k).t()),
            Weight::Packed(w) => Right::Packed(w),
        },
        mode: Accumulate::Write,
        then: |row: usize, first: usize, values: &mut [T]| {
            if let Some(bias) = bias {
                values.iter_mut().zip(&bias[first..]).for_each(|(value, &bias)| *value += bias);
            }
            activation(row, first, values);
        },
    });
}

/// A linear layer's input gradient: `dx = dy · w` or `dx += dy · w`. `dy` `[m, n]`, `w` `[n, k]`, `dx` `[m, k]`.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_backward_input<T: Float>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    (m, n, k): (usize, usize, usize),
    mode: Accumulate,
) {
    matmul(MatrixMut::new(dx, m, k), Matrix::new(dy, m, n), Matrix::new(w, n, k), mode);
}

/// A linear layer's weight gradient: `dw = dyᵀ · x` or `dw += dyᵀ · x`. `dy` `[m, n]`, `x` `[m, k]`, `dw` `[n, k]`.
///
/// # Panics
/// Where the lengths do not fit.
pub fn linear_backward_weight<T: Float>(
    dw: &mut [T],
    dy: &[T],
    x: &[T],
    (m, n, k): (usize, usize, usize),
    mode: Accumulate,
) {
    matmul(MatrixMut::new(dw, n, k), Matrix::new(dy, m, n).t(), Matrix::new(x, m, k), mode);
}

/// A product's right side.
#[derive(Clone, Copy)]
enum Right<'a, T> {
    Plain(Matrix<'a, T>),
    /// By up to 4096 columns, by blocks of the sum, by panels: `[step][panel's columns]`.
    Packed(&'a [T]),
}

struct Product<'a, T, F> {
    dst: MatrixMut<'a, T>,
    a: Matrix<'a, T>,
    b: Right<'a, T>,
    mode: Accumulate,
    then: F,
}

/// Columns of a panel, and whether AVX-512's transpose packs it.
#[inline(always)]
fn panel_kind<T: Float, S: Simd>() -> (usize, bool) {
    let lanes = T::lanes::<S>();
    (2 * lanes, S::REGISTER_COUNT == 32 && lanes * size_of::<T>() == 64)
}

/// Rows of a register tile, at most: accumulators, two vectors of `b` and a broadcast fit the registers.
const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Rows of the next sliver where `left` are left: the largest tile, then powers of two.
#[inline(always)]
fn sliver_rows<S: Simd>(left: usize) -> usize {
    match left {
        left if left >= tile_rows::<S>() => tile_rows::<S>(),
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

impl<T: Float, F: Fn(usize, usize, &mut [T]) + Send + Sync> WithSimd for Product<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dst, a, b, mode, then } = self;
        let (m, n, k) = (dst.rows, dst.cols, a.cols);
        let (row_stride, col_stride) = (dst.row_stride, dst.col_stride);
        let out = Shared::new(dst.data);
        let (panel, avx512) = panel_kind::<T, S>();
        let serial = m * n * k.max(1) <= SERIAL;
        let threads = if serial { 1 } else { parallel::threads() };
        let (blocks, depth) = depth_blocks(k);

        for first_col in (0..n).step_by(COLUMNS) {
            let cols = (n - first_col).min(COLUMNS);
            let panels = cols.div_ceil(panel);
            // Tasks are blocks of rows by groups of panels. Any cut gives the same bits; this one aims at 4 per thread.
            let tile = tile_rows::<S>();
            let wanted_rows = if threads == 1 { TASK_ROWS } else { m.div_ceil(4 * threads) };
            let rows_per_task = wanted_rows.div_ceil(tile).max(2).min(TASK_ROWS / tile) * tile;
            let row_tasks = m.div_ceil(rows_per_task);
            let groups = if threads == 1 { 1 } else { (4 * threads).div_ceil(row_tasks).min(panels) };
            let panels_per_task = panels.div_ceil(groups);
            let groups = panels.div_ceil(panels_per_task);

            let room = if let Right::Plain(_) = b { panels * panel * depth } else { 0 };
            T::with_scratch(room, |scratch| {
                for block in 0..blocks {
                    let p0 = block * depth;
                    let depth = depth.min(k - p0);
                    let packed_b = match b {
                        Right::Packed(packed) => &packed[first_col * k + panels * panel * p0..],
                        Right::Plain(b) => {
                            pack_panels(scratch, b, (first_col, cols), (p0, depth), (panel, avx512), threads);
                            &*scratch
                        }
                    };
                    let packed_b = &packed_b[..panels * panel * depth];
                    let work = |task: usize| {
                        let (i, j) = (task / groups, task % groups);
                        let rows = (i * rows_per_task, ((i + 1) * rows_per_task).min(m));
                        T::with_scratch((rows.1 - rows.0) * depth, |packed_a| {
                            // Here, not further out: only what is inlined into this call is compiled for `S`.
                            simd.vectorize(Task {
                                simd,
                                a,
                                packed_a,
                                packed_b: packed_b.as_ptr(),
                                out: out.get(),
                                strides: (row_stride, col_stride),
                                rows,
                                panels: (j * panels_per_task, ((j + 1) * panels_per_task).min(panels)),
                                columns: (first_col, first_col + cols),
                                depth: (p0, depth),
                                read: mode == Accumulate::Add || block > 0,
                                last: block + 1 == blocks,
                                then: &then,
                            });
                        });
                    };
                    if threads == 1 {
                        (0..row_tasks * groups).for_each(work);
                    } else {
                        parallel::for_each(row_tasks * groups, parallel::GRAIN, work);
                    }
                }
            });
        }
    }
}

/// Packs the panels of `cols` columns from `first_col` on, over `depth` steps of the sum from `p0` on, into `to`: panel by
/// panel, each `[depth][panel]`.
fn pack_panels<T: Float>(
    to: &mut [T],
    b: Matrix<T>,
    (first_col, cols): (usize, usize),
    (p0, depth): (usize, usize),
    (panel, avx512): (usize, bool),
    threads: usize,
) {
    let panels = cols.div_ceil(panel);
    assert!(to.len() >= panels * panel * depth && first_col + cols <= b.cols && p0 + depth <= b.rows);
    let to = Shared::new(to);
    let pack_panel = |j: usize| {
        let col = first_col + j * panel;
        let from = p0 * b.row_stride + col * b.col_stride;
        // SAFETY: the columns col.. (at most `panel`, within `cols`) and the rows p0..p0 + depth lie in `b`, whose extent was
        // checked; panel j has its own place.
        unsafe {
            pack::strip(
                to.get().add(j * panel * depth),
                panel,
                b.data.as_ptr().wrapping_add(from),
                ((cols - j * panel).min(panel), b.col_stride),
                (depth, b.row_stride),
                avx512,
            );
        }
    };
    if threads == 1 {
        (0..panels).for_each(pack_panel);
    } else {
        parallel::for_each(panels, panels * panel * depth, pack_panel);
    }
}

/// The whole of a right side, packed.
struct Pack<'a, T> {
    packed: &'a mut [T],
    b: Matrix<'a, T>,
}

impl<T: Float> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { packed, b } = self;
        let (n, k) = (b.cols, b.rows);
        let (panel, avx512) = panel_kind::<T, S>();
        let (blocks, depth) = depth_blocks(k);
        for first_col in (0..n).step_by(COLUMNS) {
            let cols = (n - first_col).min(COLUMNS);
            for p0 in (0..blocks).map(|block| block * depth) {
                let to = &mut packed[first_col * k + cols.next_multiple_of(panel) * p0..];
                let steps = (p0, depth.min(k - p0));
                pack_panels(to, b, (first_col, cols), steps, (panel, avx512), parallel::threads());
            }
        }
    }
}

/// One task of a product: some rows by some panels, over one block of the sum.
struct Task<'a, T, S, F> {
    simd: S,
    a: Matrix<'a, T>,
    packed_a: &'a mut [T],
    packed_b: *const T,
    out: *mut T,
    strides: (usize, usize),
    rows: (usize, usize),
    panels: (usize, usize),
    columns: (usize, usize),
    depth: (usize, usize),
    read: bool,
    last: bool,
    then: &'a F,
}

impl<T: Float, S: Simd, F: Fn(usize, usize, &mut [T])> pulp::NullaryFnOnce for Task<'_, T, S, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, a, packed_a, packed_b, out, strides, rows, panels, columns, depth: (p0, depth), read, .. } =
            self;
        let (panel, avx512) = panel_kind::<T, S>();
        let mut row = rows.0;
        while row < rows.1 {
            let count = sliver_rows::<S>(rows.1 - row);
            let from = row * a.row_stride + p0 * a.col_stride;
            // SAFETY: rows row..row + count and columns p0..p0 + depth lie in `a`, whose extent was checked; the slivers lie one
            // after the other in the scratch.
            unsafe {
                pack::strip(
                    packed_a.as_mut_ptr().add((row - rows.0) * depth),
                    count,
                    a.data.as_ptr().wrapping_add(from),
                    (count, a.row_stride),
                    (depth, a.col_stride),
                    avx512,
                );
            }
            row += count;
        }
        for j in panels.0..panels.1 {
            let col = columns.0 + j * panel;
            let cols = (columns.1 - col).min(panel);
            let mut row = rows.0;
            while row < rows.1 {
                let count = sliver_rows::<S>(rows.1 - row);
                // SAFETY: the sliver, the panel and the tile at (row, col) of `count` rows and `cols` columns are in bounds.
                unsafe {
                    let sliver = packed_a.as_ptr().add((row - rows.0) * depth);
                    let b = packed_b.add(j * panel * depth);
                    let to = out.add(row * strides.0 + col * strides.1);
                    match count {
                        14 => tile::<T, S, 14>(simd, depth, sliver, b, to, strides, cols, read),
                        8 => tile::<T, S, 8>(simd, depth, sliver, b, to, strides, cols, read),
                        6 => tile::<T, S, 6>(simd, depth, sliver, b, to, strides, cols, read),
                        4 => tile::<T, S, 4>(simd, depth, sliver, b, to, strides, cols, read),
                        2 => tile::<T, S, 2>(simd, depth, sliver, b, to, strides, cols, read),
                        _ => tile::<T, S, 1>(simd, depth, sliver, b, to, strides, cols, read),
                    }
                }
                row += count;
            }
        }
        if self.last && (strides.1 == 1 || columns.1 == 1) {
            let col = columns.0 + panels.0 * panel;
            let cols = (columns.0 + panels.1 * panel).min(columns.1) - col;
            for row in rows.0..rows.1 {
                // SAFETY: this task alone writes these elements of the row, and they are neighbours.
                let values = unsafe { std::slice::from_raw_parts_mut(out.add(row * strides.0 + col), cols) };
                (self.then)(row, col, values);
            }
        }
    }
}

/// `ROWS` rows by two vectors of the result, over `depth` packed steps; the first `cols` columns are stored.
///
/// # Safety
/// `a` is `[depth][ROWS]`, `b` is `[depth][2 * lanes]`, and `ROWS` x `cols` elements at `out` may be written (and read with `read`).
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<T: Float, S: Simd, const ROWS: usize>(
    simd: S,
    depth: usize,
    mut a: *const T,
    mut b: *const T,
    out: *mut T,
    (row_stride, col_stride): (usize, usize),
    cols: usize,
    read: bool,
) {
    let lanes = T::lanes::<S>();
    let mut sums = [[T::splat(simd, T::ZERO); 2]; ROWS];
    // SAFETY: as the caller promises.
    unsafe {
        for _ in 0..depth {
            let b0 = b.cast::<T::Vector<S>>().read_unaligned();
            let b1 = b.add(lanes).cast::<T::Vector<S>>().read_unaligned();
            for (i, [s0, s1]) in sums.iter_mut().enumerate() {
                let x = T::splat(simd, *a.add(i));
                *s0 = T::vector_mul_add(simd, x, b0, *s0);
                *s1 = T::vector_mul_add(simd, x, b1, *s1);
            }
            a = a.add(ROWS);
            b = b.add(2 * lanes);
        }
        if cols == 2 * lanes && col_stride == 1 {
            for (i, &[mut s0, mut s1]) in sums.iter().enumerate() {
                let to0 = out.add(i * row_stride).cast::<T::Vector<S>>();
                let to1 = out.add(i * row_stride + lanes).cast::<T::Vector<S>>();
                if read {
                    s0 = T::vector_add(simd, to0.read_unaligned(), s0);
                    s1 = T::vector_add(simd, to1.read_unaligned(), s1);
                }
                to0.write_unaligned(s0);
                to1.write_unaligned(s1);
            }
        } else {
            // A copy: indexed at run time, the sums themselves would have to live in memory all along.
            let mut copy = [[T::splat(simd, T::ZERO); 2]; ROWS];
            for (to, from) in copy.iter_mut().zip(&sums) {
                *to = *from;
            }
            let sums = copy.as_ptr().cast::<T>();
            for i in 0..ROWS {
                for j in 0..cols {
                    let to = out.add(i * row_stride + j * col_stride);
                    let value = *sums.add(i * 2 * lanes + j);
                    *to = if read { *to + value } else { value };
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
