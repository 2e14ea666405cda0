//! The convolution on the CPU.

use super::{Added, Sizes, Sums};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{Element, Tensor};

/// Parts into which a weight gradient's sum over the images is cut: by shapes alone, so that the threads change no bit.
pub(super) fn weight_parts(sizes: Sizes) -> usize {
    sizes.batch.clamp(1, 4)
}

/// Row (or column) of x̂ that tap `k` of window `i` meets.
fn tap(sizes: &Sizes, axis: usize, i: usize, k: usize) -> Option<usize> {
    let at = (i * sizes.stride + k).checked_sub(sizes.pad).filter(|&at| at < sizes.size[axis])?;
    Some(at * sizes.source[axis] / sizes.size[axis])
}

/// Calls `f(output pixel, tap, source pixel)` for all that meet the image.
fn for_taps(sizes: &Sizes, mut f: impl FnMut(usize, usize, usize)) {
    for i in 0..sizes.out[0] {
        for j in 0..sizes.out[1] {
            for ky in 0..sizes.kernel {
                for kx in 0..sizes.kernel {
                    if let (Some(y), Some(x)) = (tap(sizes, 0, i, ky), tap(sizes, 1, j, kx)) {
                        f(i * sizes.out[1] + j, ky * sizes.kernel + kx, y * sizes.source[1] + x);
                    }
                }
            }
        }
    }
}

pub(super) fn forward<T: Float + Element>(sizes: Sizes, x: &Tensor, weight: &Tensor, added: Added, y: &Tensor) {
    let (x, weight) = (x.host::<T>(), weight.host::<T>());
    let bias = added.bias.map(Tensor::host::<T>);
    let channel_add = added.channel_add.map(Tensor::host::<T>);
    let residual = added.residual.map(Tensor::host::<T>);
    let Sizes { cin, cout, .. } = sizes;
    let image = sizes.source[0] * sizes.source[1] * cin;
    parallel::for_rows(y.host_mut::<T>(), sizes.out_pixels() * cout, |b, y| {
        y.fill(T::ZERO);
        let x = &x[b * image..][..image];
        for_taps(&sizes, |to, tap, from| {
            let (y, x) = (&mut y[to * cout..][..cout], &x[from * cin..][..cin]);
            for (o, y) in y.iter_mut().enumerate() {
                *y += vector::dot(x, &weight[o * sizes.depth() + tap * cin..][..cin]);
            }
        });
        for (pixel, y) in y.chunks_exact_mut(cout).enumerate() {
            for (o, y) in y.iter_mut().enumerate() {
                *y += bias.map_or(T::ZERO, |v| v[o]) + channel_add.map_or(T::ZERO, |v| v[b * cout + o]);
                *y += residual.map_or(T::ZERO, |v| v[(b * sizes.out_pixels() + pixel) * cout + o]);
            }
        }
    });
}

pub(super) fn sums_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, partial: &Tensor, to: Sums) {
    let (dy, image) = (dy.host::<T>(), sizes.out_pixels() * sizes.cout);
    parallel::for_rows(partial.host_mut::<T>(), sizes.cout, |b, sums| {
        vector::column_sums(sums, &dy[b * image..][..image], Accumulate::Write);
    });
    if let Some(to) = to.channel_add {
        vector::map(to.tensor.host_mut(), partial.host::<T>(), to.mode, |sum| sum);
    }
    if let Some(to) = to.bias {
        vector::column_sums(to.tensor.host_mut::<T>(), partial.host::<T>(), to.mode);
    }
}

pub(super) fn input_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    let (dy, weight) = (dy.host::<T>(), weight.host::<T>());
    let Sizes { cin, cout, .. } = sizes;
    let image = sizes.out_pixels() * cout;
    let write = dx.mode == Accumulate::Write;
    parallel::for_rows(dx.tensor.host_mut::<T>(), sizes.source[0] * sizes.source[1] * cin, |b, dx| {
        if write {
            dx.fill(T::ZERO);
        }
        let dy = &dy[b * image..][..image];
        for_taps(&sizes, |to, tap, from| {
            for (o, &dy) in dy[to * cout..][..cout].iter().enumerate() {
                vector::axpy(&mut dx[from * cin..][..cin], dy, &weight[o * sizes.depth() + tap * cin..][..cin]);
            }
        });
    });
}

pub(super) fn weight_backward<T: Float + Element>(
    sizes: Sizes,
    dy: &Tensor,
    x: &Tensor,
    partial: &Tensor,
    dw: &Destination,
) {
    let (dy, x) = (dy.host::<T>(), x.host::<T>());
    let Sizes { cin, cout, .. } = sizes;
    let (out, source) = (sizes.out_pixels() * cout, sizes.source[0] * sizes.source[1] * cin);
    let images = sizes.batch.div_ceil(weight_parts(sizes));
    parallel::for_rows(partial.host_mut::<T>(), cout * sizes.depth(), |part, dw| {
        dw.fill(T::ZERO);
        for b in part * images..sizes.batch.min((part + 1) * images) {
            let (dy, x) = (&dy[b * out..][..out], &x[b * source..][..source]);
            for_taps(&sizes, |to, tap, from| {
                for (o, &dy) in dy[to * cout..][..cout].iter().enumerate() {
                    vector::axpy(&mut dw[o * sizes.depth() + tap * cin..][..cin], dy, &x[from * cin..][..cin]);
                }
            });
        }
    });
    vector::column_sums(dw.tensor.host_mut::<T>(), partial.host::<T>(), dw.mode);
}
