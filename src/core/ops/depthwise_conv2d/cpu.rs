//! Depthwise convolution on the CPU: pixels in parallel, vectorised over the channels.

use std::ops::Range;

use super::{Sizes, To};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Taps of a window along a side that meet the image, and the pixel that the first of them meets.
fn within(at: usize, sizes: Sizes, length: usize) -> (Range<usize>, usize) {
    let start = at * sizes.window.stride;
    let first = sizes.window.pad_before.saturating_sub(start);
    let last = (length + sizes.window.pad_before).saturating_sub(start).min(sizes.kernel);
    (first..last.max(first), start + first - sizes.window.pad_before)
}

pub(super) fn forward<T: Float>(sizes: Sizes, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) {
    let Sizes { height, width, channels, rows, cols, kernel, .. } = sizes;
    let (x, weight, bias) = (x.host::<T>(), weight.host::<T>(), bias.map(Tensor::host::<T>));
    parallel::for_rows(y.host_mut::<T>(), channels, |pixel, y| {
        let (image, row, col) = (pixel / (rows * cols), pixel / cols % rows, pixel % cols);
        let ((vertical, top), (horizontal, left)) = (within(row, sizes, height), within(col, sizes, width));
        match bias {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(T::ZERO),
        }
        vector::dispatch(
            #[inline(always)]
            || {
                for (ky, iy) in vertical.clone().zip(top..) {
                    for (kx, ix) in horizontal.clone().zip(left..) {
                        let x = &x[((image * height + iy) * width + ix) * channels..][..channels];
                        let taps = &weight[(ky * kernel + kx) * channels..][..channels];
                        for ((y, &x), &tap) in y.iter_mut().zip(x).zip(taps) {
                            *y = x.mul_add(tap, *y);
                        }
                    }
                }
            },
        );
    });
}

pub(super) fn input_backward<T: Float>(sizes: Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    let Sizes { height, width, channels, rows, cols, kernel, window, .. } = sizes;
    let (dy, weight, mode) = (dy.host::<T>(), weight.host::<T>(), dx.mode);
    // The output along a side that tap k takes from pixel `at`.
    let output = |at: usize, k: usize, count: usize| {
        let at = (at + window.pad_before).checked_sub(k)?;
        (at.is_multiple_of(window.stride) && at / window.stride < count).then_some(at / window.stride)
    };
    parallel::for_rows(dx.host_mut::<T>(), channels, |pixel, to| {
        let (image, row, col) = (pixel / (height * width), pixel / width % height, pixel % width);
        if mode == Accumulate::Write {
            to.fill(T::ZERO);
        }
        for ky in 0..kernel {
            let Some(oy) = output(row, ky, rows) else { continue };
            for kx in 0..kernel {
                let Some(ox) = output(col, kx, cols) else { continue };
                let dy = &dy[((image * rows + oy) * cols + ox) * channels..][..channels];
                let taps = &weight[(ky * kernel + kx) * channels..][..channels];
                vector::dispatch(
                    #[inline(always)]
                    || {
                        for ((to, &d), &tap) in to.iter_mut().zip(dy).zip(taps) {
                            *to = d.mul_add(tap, *to);
                        }
                    },
                );
            }
        }
    });
}

/// A tap's sums over all pixels, taps in parallel; the bias is one more tap, which meets a one everywhere.
pub(super) fn weight_backward<T: Float>(sizes: Sizes, dy: &Tensor, x: &Tensor, partial: &Tensor, to: &To) {
    let Sizes { batch, height, width, channels, rows, cols, kernel, .. } = sizes;
    let (dy, x) = (dy.host::<T>(), x.host::<T>());
    parallel::for_rows(partial.host_mut::<T>(), channels, |tap, sums| {
        sums.fill(T::ZERO);
        if tap == kernel * kernel {
            vector::column_sums(sums, dy, Accumulate::Write);
            return;
        }
        let (ky, kx) = (tap / kernel, tap % kernel);
        for (image, row) in (0..batch * rows).map(|at| (at / rows, at % rows)) {
            let (vertical, top) = within(row, sizes, height);
            if !vertical.contains(&ky) {
                continue;
            }
            let iy = top + ky - vertical.start;
            for col in 0..cols {
                let (horizontal, left) = within(col, sizes, width);
                if !horizontal.contains(&kx) {
                    continue;
                }
                let ix = left + kx - horizontal.start;
                let dy = &dy[((image * rows + row) * cols + col) * channels..][..channels];
                let x = &x[((image * height + iy) * width + ix) * channels..][..channels];
                vector::dispatch(
                    #[inline(always)]
                    || {
                        for ((sum, &d), &x) in sums.iter_mut().zip(dy).zip(x) {
                            *sum = d.mul_add(x, *sum);
                        }
                    },
                );
            }
        }
    });
    let (taps, ones) = partial.host::<T>().split_at(kernel * kernel * channels);
    for (to, sums) in [(&to.weight, taps), (&to.bias, ones)] {
        if let Some(to) = to {
            vector::map(to.host_mut::<T>(), sums, to.mode, |sum| sum);
        }
    }
}
