//! Layer norm on the CPU: a row at a time, sums in the fixed order of [`vector`].

use super::{AffineSums, Call, Gradients, ROWS_PER_PART, Sizes};
use crate::ops::host::held::{self, read, room, write};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, Held, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Rows of a task.
const BLOCK_ROWS: usize = 16;

/// A call's tensors as slices.
struct View<'a, E: Held> {
    sizes: Sizes,
    x: &'a [E],
    mean: &'a [E::Float],
    rstd: &'a [E::Float],
    weight: Option<&'a [E::Float]>,
    matrix: Option<&'a [E]>,
}

impl<'a, E: Held> View<'a, E> {
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

    fn row<'b>(&self, values: &'b [E], row: usize) -> &'b [E] {
        &values[row * self.sizes.cols..][..self.sizes.cols]
    }

    fn modulation(&self, matrix: &'a [E], row: usize, column: usize) -> &'a [E] {
        let sizes = self.sizes;
        &matrix[row / sizes.rows_per_sample * sizes.modulation_stride + column..][..sizes.cols]
    }

    /// Multiplies a row by its weight or by 1 + scale.
    fn scale(&self, row: usize, values: &mut [E::Float]) {
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
                    || values.iter_mut().zip(scale).for_each(|(v, &s)| *v = s.get().mul_add(*v, *v)),
                );
            }
            (None, None) => {}
        }
    }
}

pub(super) fn forward<E: Held>(call: &Call, bias: Option<&Tensor>, y: &Tensor) {
    let (sizes, cols) = (call.sizes, call.sizes.cols);
    let (mean, rstd) = (Shared::new(call.mean.host_mut::<E::Float>()), Shared::new(call.rstd.host_mut::<E::Float>()));
    let inverse = E::Float::ONE / Float::from_f64(cols as f64);
    let epsilon = E::Float::from_f64(sizes.epsilon as f64);
    let view = View::<E>::new(call);
    let bias = bias.map(Tensor::host::<E::Float>);
    parallel::for_row_blocks(y.host_mut::<E>(), cols, BLOCK_ROWS, |first, rows| {
        E::Float::with_scratch(2 * room::<E>(cols), |scratch| {
            let (x_room, y_room) = scratch.split_at_mut(room::<E>(cols));
            for (row, y) in (first..).zip(rows.chunks_exact_mut(cols)) {
                let x = read(view.row(view.x, row), x_room);
                let center = vector::sum(x) * inverse;
                let scale = E::Float::ONE / (vector::sum_of_squares_about(x, center) * inverse + epsilon).sqrt();
                // SAFETY: the statistics of a row are its task's alone.
                unsafe { (*mean.get().add(row), *rstd.get().add(row)) = (center, scale) };
                write(y, false, y_room, |y| {
                    vector::dispatch(
                        #[inline(always)]
                        || y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - center) * scale),
                    );
                    view.scale(row, y);
                    match (bias, view.matrix) {
                        (Some(bias), _) => vector::map(y, bias, Accumulate::Add, |shift| shift),
                        (None, Some(matrix)) => {
                            let shift = view.modulation(matrix, row, sizes.shift_column);
                            vector::map(y, shift, Accumulate::Add, |shift| shift);
                        }
                        (None, None) => {}
                    }
                });
            }
        });
    });
}

pub(super) fn backward<E: Held>(call: &Call, dy: &Tensor, to: &Gradients) {
    if let Some(dx) = &to.x {
        backward_input::<E>(call, dy, dx);
    }
    if let Some(AffineSums { weight, bias, partial }) = &to.affine {
        backward_affine::<E>(call, dy, partial, weight, bias);
    }
    if let Some(dm) = &to.matrix {
        backward_modulation::<E>(call, dy, dm);
    }
}

/// With g = dy · scale: dx = rstd · (g − mean(g) − n · mean(g · n)).
fn backward_input<E: Held>(call: &Call, dy: &Tensor, dx: &Destination) {
    let view = View::<E>::new(call);
    let dy = dy.host::<E>();
    let cols = call.sizes.cols;
    let inverse = E::Float::ONE / Float::from_f64(cols as f64);
    let add = dx.mode == Accumulate::Add;
    parallel::for_row_blocks(dx.host_mut::<E>(), cols, BLOCK_ROWS, |first, rows| {
        E::Float::with_scratch(2 * cols + room::<E>(cols), |scratch| {
            let (g, scratch) = scratch.split_at_mut(cols);
            let (n, dx_room) = scratch.split_at_mut(cols);
            for (row, dx) in (first..).zip(rows.chunks_exact_mut(cols)) {
                let (x, mean, rstd) = (view.row(view.x, row), view.mean[row], view.rstd[row]);
                held::widen(g, view.row(dy, row));
                view.scale(row, g);
                vector::dispatch(
                    #[inline(always)]
                    || n.iter_mut().zip(x).for_each(|(n, &x)| *n = (x.get() - mean) * rstd),
                );
                let mean_g = vector::sum(g) * inverse;
                let mean_gn = vector::dot(g, n) * inverse;
                write(dx, add, dx_room, |dx| {
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
            }
        });
    });
}

/// dweight = Σ dy · n and dbias = Σ dy over rows: first within parts of fixed size, then over the parts in order.
fn backward_affine<E: Held>(call: &Call, dy: &Tensor, partial: &Tensor, dw: &Destination, db: &Destination) {
    let view = View::<E>::new(call);
    let dy = dy.host::<E>();
    let (rows, cols, parts) = (call.sizes.rows, call.sizes.cols, call.sizes.parts());
    let (weights, biases) = partial.host_mut::<E::Float>().split_at_mut(parts * cols);
    parallel::for_rows2((weights, cols), (biases, cols), |part, weight, bias| {
        weight.fill(Float::ZERO);
        bias.fill(Float::ZERO);
        for row in part * ROWS_PER_PART..rows.min((part + 1) * ROWS_PER_PART) {
            let (x, dy, mean, rstd) = (view.row(view.x, row), view.row(dy, row), view.mean[row], view.rstd[row]);
            vector::dispatch(
                #[inline(always)]
                || {
                    for (((w, b), &dy), &x) in weight.iter_mut().zip(bias.iter_mut()).zip(dy).zip(x) {
                        *w = dy.get().mul_add((x.get() - mean) * rstd, *w);
                        *b += dy.get();
                    }
                },
            );
        }
    });
    for (destination, partial) in [(dw, &*weights), (db, &*biases)] {
        let sum = destination.host_mut::<E::Float>();
        if destination.mode == Accumulate::Write {
            sum.fill(Float::ZERO);
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
fn backward_modulation<E: Held>(call: &Call, dy: &Tensor, dm: &Destination) {
    let view = View::<E>::new(call);
    let dy = dy.host::<E>();
    let (sizes, cols) = (call.sizes, call.sizes.cols);
    parallel::for_rows(dm.host_mut::<E>(), sizes.modulation_stride, |sample, dm| {
        let rows = || sample * sizes.rows_per_sample..(sample + 1) * sizes.rows_per_sample;
        held::write_alone(&mut dm[sizes.shift_column..][..cols], true, |shift| {
            rows().for_each(|row| vector::map(shift, view.row(dy, row), Accumulate::Add, |dy| dy));
        });
        held::write_alone(&mut dm[sizes.scale_column..][..cols], true, |scale| {
            for row in rows() {
                let (x, dy, mean, rstd) = (view.row(view.x, row), view.row(dy, row), view.mean[row], view.rstd[row]);
                vector::dispatch(
                    #[inline(always)]
                    || {
                        for ((s, &dy), &x) in scale.iter_mut().zip(dy).zip(x) {
                            *s = dy.get().mul_add((x.get() - mean) * rstd, *s);
                        }
                    },
                );
            }
        });
    });
}
