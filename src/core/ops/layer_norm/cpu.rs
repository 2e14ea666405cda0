//! Layer norm on the CPU: a row at a time, sums in the fixed order of [`vector`].

use super::{AffineSums, Call, Gradients, ROWS_PER_PART, Sizes};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// A call's tensors as slices.
struct View<'a, T> {
    sizes: Sizes,
    x: &'a [T],
    mean: &'a [T],
    rstd: &'a [T],
    weight: Option<&'a [T]>,
    matrix: Option<&'a [T]>,
}

impl<'a, T: Float> View<'a, T> {
    fn new(call: &'a Call) -> Self {
        Self {
            sizes: call.sizes,
            x: call.x.host(),
            mean: call.mean.host(),
            rstd: call.rstd.host(),
            weight: call.weight.as_ref().map(Tensor::host),
            matrix: call.matrix.as_ref().map(Tensor::host),
        }
    }

    fn row<'b>(&self, values: &'b [T], row: usize) -> &'b [T] {
        &values[row * self.sizes.cols..][..self.sizes.cols]
    }

    fn modulation(&self, matrix: &'a [T], row: usize, column: usize) -> &'a [T] {
        let sizes = self.sizes;
        &matrix[row / sizes.rows_per_sample * sizes.modulation_stride + column..][..sizes.cols]
    }

    /// Multiplies a row by its weight or by 1 + scale.
    fn scale(&self, row: usize, values: &mut [T]) {
        match (self.weight, self.matrix) {
            (Some(weight), _) => {
                vector::dispatch(
                    #[inline(always)]
                    || values.iter_mut().zip(weight).for_each(|(v, &w)| *v *= w),
                );
            }
            (None, Some(matrix)) => {
                let scale = self.modulation(matrix, row, self.sizes.scale_column);
                vector::dispatch(
                    #[inline(always)]
                    || values.iter_mut().zip(scale).for_each(|(v, &s)| *v = s.mul_add(*v, *v)),
                );
            }
            (None, None) => {}
        }
    }
}

pub(super) fn forward<T: Float>(call: &Call, bias: Option<&Tensor>, y: &Tensor) {
    let sizes = call.sizes;
    let x = call.x.host::<T>();
    let inverse = T::ONE / T::from_f64(sizes.cols as f64);
    let epsilon = T::from_f64(sizes.epsilon as f64);
    parallel::for_rows2((call.mean.host_mut::<T>(), 1), (call.rstd.host_mut::<T>(), 1), |row, mean, rstd| {
        let x = &x[row * sizes.cols..][..sizes.cols];
        mean[0] = vector::sum(x) * inverse;
        rstd[0] = T::ONE / (vector::sum_of_squares_about(x, mean[0]) * inverse + epsilon).sqrt();
    });
    let view = View::<T>::new(call);
    let bias = bias.map(Tensor::host::<T>);
    parallel::for_rows(y.host_mut::<T>(), sizes.cols, |row, y| {
        let (x, mean, rstd) = (view.row(view.x, row), view.mean[row], view.rstd[row]);
        vector::dispatch(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * rstd),
        );
        view.scale(row, y);
        let shift = bias.or(view.matrix.map(|matrix| view.modulation(matrix, row, sizes.shift_column)));
        if let Some(shift) = shift {
            vector::dispatch(
                #[inline(always)]
                || y.iter_mut().zip(shift).for_each(|(y, &s)| *y += s),
            );
        }
    });
}

pub(super) fn backward<T: Float>(call: &Call, dy: &Tensor, to: &Gradients) {
    if let Some(dx) = &to.x {
        backward_input::<T>(call, dy, dx);
    }
    if let Some(AffineSums { weight, bias, partial }) = &to.affine {
        backward_affine::<T>(call, dy, partial, weight, bias);
    }
    if let Some(dm) = &to.matrix {
        backward_modulation::<T>(call, dy, dm);
    }
}

/// With g = dy · scale: dx = rstd · (g − mean(g) − n · mean(g · n)).
fn backward_input<T: Float>(call: &Call, dy: &Tensor, dx: &Destination) {
    let view = View::<T>::new(call);
    let dy = dy.host::<T>();
    let cols = call.sizes.cols;
    let inverse = T::ONE / T::from_f64(cols as f64);
    let add = dx.mode == Accumulate::Add;
    parallel::for_rows(dx.host_mut::<T>(), cols, |row, dx| {
        let (x, mean, rstd) = (view.row(view.x, row), view.mean[row], view.rstd[row]);
        T::with_scratch(2 * cols, |scratch| {
            let (g, n) = scratch.split_at_mut(cols);
            g.copy_from_slice(view.row(dy, row));
            view.scale(row, g);
            vector::dispatch(
                #[inline(always)]
                || n.iter_mut().zip(x).for_each(|(n, &x)| *n = (x - mean) * rstd),
            );
            let mean_g = vector::sum(g) * inverse;
            let mean_gn = vector::dot(g, n) * inverse;
            vector::dispatch(
                #[inline(always)]
                || {
                    for ((dx, &g), &n) in dx.iter_mut().zip(&*g).zip(&*n) {
                        let value = (g - mean_g - n * mean_gn) * rstd;
                        *dx = if add { *dx + value } else { value };
                    }
                },
            );
        });
    });
}

/// dweight = Σ dy · n and dbias = Σ dy over rows: first within parts of fixed size, then over the parts in order.
fn backward_affine<T: Float>(call: &Call, dy: &Tensor, partial: &Tensor, dw: &Destination, db: &Destination) {
    let view = View::<T>::new(call);
    let dy = dy.host::<T>();
    let (rows, cols, parts) = (call.sizes.rows, call.sizes.cols, call.sizes.parts());
    let (weights, biases) = partial.host_mut::<T>().split_at_mut(parts * cols);
    parallel::for_rows2((weights, cols), (biases, cols), |part, weight, bias| {
        weight.fill(T::ZERO);
        bias.fill(T::ZERO);
        for row in part * ROWS_PER_PART..rows.min((part + 1) * ROWS_PER_PART) {
            let (x, dy, mean, rstd) = (view.row(view.x, row), view.row(dy, row), view.mean[row], view.rstd[row]);
            vector::dispatch(
                #[inline(always)]
                || {
                    for (((w, b), &dy), &x) in weight.iter_mut().zip(bias.iter_mut()).zip(dy).zip(x) {
                        *w = dy.mul_add((x - mean) * rstd, *w);
                        *b += dy;
                    }
                },
            );
        }
    });
    for (destination, partial) in [(dw, &*weights), (db, &*biases)] {
        let sum = destination.host_mut::<T>();
        if destination.mode == Accumulate::Write {
            sum.fill(T::ZERO);
        }
        for part in partial.chunks_exact(cols) {
            vector::dispatch(
                #[inline(always)]
                || sum.iter_mut().zip(part).for_each(|(s, &p)| *s += p),
            );
        }
    }
}

/// dshift = Σ dy and dscale = Σ dy · n over a sample's rows, added into their columns.
fn backward_modulation<T: Float>(call: &Call, dy: &Tensor, dm: &Destination) {
    let view = View::<T>::new(call);
    let dy = dy.host::<T>();
    let sizes = call.sizes;
    parallel::for_rows(dm.host_mut::<T>(), sizes.modulation_stride, |sample, dm| {
        for row in sample * sizes.rows_per_sample..(sample + 1) * sizes.rows_per_sample {
            let (x, dy, mean, rstd) = (view.row(view.x, row), view.row(dy, row), view.mean[row], view.rstd[row]);
            let shift = &mut dm[sizes.shift_column..][..sizes.cols];
            vector::dispatch(
                #[inline(always)]
                || shift.iter_mut().zip(dy).for_each(|(s, &dy)| *s += dy),
            );
            let scale = &mut dm[sizes.scale_column..][..sizes.cols];
            vector::dispatch(
                #[inline(always)]
                || {
                    for ((s, &dy), &x) in scale.iter_mut().zip(dy).zip(x) {
                        *s = dy.mul_add((x - mean) * rstd, *s);
                    }
                },
            );
        }
    });
}
