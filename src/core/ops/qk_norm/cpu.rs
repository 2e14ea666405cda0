//! Head norm on the CPU: rows in blocks, each compiled as a whole for the processor's vectors.

use super::{Call, Gradients, ROWS_PER_PART, Sizes};
use crate::ops::host::held::{read, room, write};
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tape::Accumulate;
use crate::tensor::Tensor;

/// Virtual lanes of a sum over a head.
const LANES: usize = 16;

/// Σ f(a, b) over 16 virtual lanes, which are then added pairwise.
#[inline(always)]
fn sum<T: Float>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        for l in 0..LANES {
            lanes[l] = a[l].mul_add(b[l], lanes[l]);
        }
    }
    // A copy: indexed up to a length known at run time, the lanes would have to live in memory all along.
    let mut tail = lanes;
    for (lane, (&a, &b)) in tail.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane = a.mul_add(b, *lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            tail[l] += tail[l + width];
        }
        width /= 2;
    }
    tail[0]
}

/// A head's weight.
fn weight_of<'a, T>(sizes: Sizes, head: usize, q_weight: &'a [T], k_weight: &'a [T]) -> &'a [T] {
    if head < sizes.heads { q_weight } else { k_weight }
}

pub(super) fn forward<E: Held>(call: &Call, y: &Tensor) {
    let sizes = call.sizes;
    let (dim, normed, width) = (sizes.dim, sizes.normed(), sizes.slices() * sizes.dim);
    let (x, q_weight, k_weight) = (call.x.host::<E>(), call.q_weight.host(), call.k_weight.host());
    let (inverse, epsilon) = (E::Float::ONE / E::Float::from_f64(dim as f64), E::Float::from_f32(sizes.epsilon));
    parallel::for_rows2((y.host_mut::<E>(), width), (call.rstd.host_mut::<E::Float>(), normed), |row, y, rstd| {
        let x = &x[row * width..][..width];
        E::Float::with_scratch(2 * room::<E>(width), |scratch| {
            let (of_x, of_y) = scratch.split_at_mut(room::<E>(width));
            let x = read(x, of_x);
            write(y, false, of_y, |y| {
                vector::dispatch(
                    #[inline(always)]
                    || {
                        let heads = y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(rstd);
                        for (head, ((y, x), rstd)) in heads.enumerate() {
                            let r = E::Float::ONE / (sum(x, x) * inverse + epsilon).sqrt();
                            *rstd = r;
                            let weight = weight_of(sizes, head, q_weight, k_weight);
                            y.iter_mut().zip(x).zip(weight).for_each(|((y, &x), &w)| *y = x * r * w);
                        }
                        y[normed * dim..].copy_from_slice(&x[normed * dim..]);
                    },
                );
            });
        });
    });
}

/// With n = x · rstd and g = dy · weight: dx = rstd · (g − n · mean(g · n)) and dweight = Σ dy · n, first within parts of fixed size,
/// then over the parts in order.
pub(super) fn backward<E: Held>(call: &Call, dy: &Tensor, gradients: &Gradients, partial: &Tensor) {
    let sizes = call.sizes;
    let (dim, width) = (sizes.dim, sizes.slices() * sizes.dim);
    let (dy, x, rstd) = (dy.host::<E>(), call.x.host::<E>(), call.rstd.host());
    let weights: [&[E::Float]; 2] = [call.q_weight.host(), call.k_weight.host()];
    let Gradients { dx, dq_weight, dk_weight } = gradients;
    let add = dx.mode == Accumulate::Add;
    let partial = partial.host_mut::<E::Float>();
    let (rows, sums) = ((dx.host_mut::<E>(), width), (&mut *partial, 2 * dim));
    parallel::for_row_blocks_with_sums(rows, sums, ROWS_PER_PART, |first, dx, sums| {
        E::Float::with_scratch(2 * dim + 3 * room::<E>(width), |scratch| {
            let (own, scratch) = scratch.split_at_mut(2 * dim);
            let (of_dy, scratch) = scratch.split_at_mut(room::<E>(width));
            let (of_x, of_dx) = scratch.split_at_mut(room::<E>(width));
            for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
                let at = (first + i) * width;
                let (dy, x) = (read(&dy[at..][..width], of_dy), read(&x[at..][..width], of_x));
                let rstd = &rstd[(first + i) * sizes.normed()..][..sizes.normed()];
                write(dx, add, of_dx, |dx| backward_row(sizes, weights, (dx, add), (dy, x, rstd), sums, own));
            }
        });
    });
    for (which, destination) in [dq_weight, dk_weight].into_iter().enumerate() {
        let Some(destination) = destination else { continue };
        let (total, mode) = (destination.host_mut::<E::Float>(), destination.mode);
        for (c, total) in total.iter_mut().enumerate() {
            let mut sum = E::Float::ZERO;
            for part in partial.chunks_exact(2 * dim) {
                sum += part[which * dim + c];
            }
            *total = if mode == Accumulate::Add { *total + sum } else { sum };
        }
    }
}

/// A row of dx, put or added, and what it adds to the part's sums of dq_weight and dk_weight.
fn backward_row<T: Float>(
    sizes: Sizes,
    [q_weight, k_weight]: [&[T]; 2],
    (dx, add): (&mut [T], bool),
    (dy, x, rstd): (&[T], &[T], &[T]),
    sums: &mut [T],
    scratch: &mut [T],
) {
    let (dim, normed) = (sizes.dim, sizes.normed());
    let inverse = T::ONE / T::from_f64(dim as f64);
    let ((dq, dk), (g, n)) = (sums.split_at_mut(dim), scratch.split_at_mut(dim));
    vector::dispatch(
        #[inline(always)]
        || {
            let heads = dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim).zip(x.chunks_exact(dim)));
            for (head, ((dx, (dy, x)), &r)) in heads.zip(rstd).enumerate() {
                let weight = weight_of(sizes, head, q_weight, k_weight);
                let dw = if head < sizes.heads { &mut *dq } else { &mut *dk };
                n.iter_mut().zip(x).for_each(|(n, &x)| *n = x * r);
                g.iter_mut().zip(dy).zip(weight).for_each(|((g, &dy), &w)| *g = dy * w);
                dw.iter_mut().zip(dy).zip(&*n).for_each(|((dw, &dy), &n)| *dw = dy.mul_add(n, *dw));
                let mean = sum(g, n) * inverse;
                let terms = dx.iter_mut().zip(&*g).zip(&*n);
                if add {
                    terms.for_each(|((dx, &g), &n)| *dx += r * n.mul_add(-mean, g));
                } else {
                    terms.for_each(|((dx, &g), &n)| *dx = r * n.mul_add(-mean, g));
                }
            }
            let values = dx[normed * dim..].iter_mut().zip(&dy[normed * dim..]);
            if add {
                values.for_each(|(dx, &dy)| *dx += dy);
            } else {
                values.for_each(|(dx, &dy)| *dx = dy);
            }
        },
    );
}
