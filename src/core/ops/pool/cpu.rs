//! Pooling on the CPU: pixels in parallel, vectorised over the channels.

use super::{Sizes, Window};
use crate::ops::host::held::write_alone;
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Where a window's side begins and ends within `length` pixels: pixels of the image, and the first's number in the window.
fn within(window: usize, sizes: Sizes, length: usize) -> (std::ops::Range<usize>, usize) {
    let start = window * sizes.window.stride;
    let first = sizes.window.padding.saturating_sub(start);
    let from = start + first - sizes.window.padding;
    (from..length.min(start + sizes.window.kernel - sizes.window.padding), first)
}

pub(super) fn max<E: Held>(sizes: Sizes, x: &Tensor, y: &Tensor, winners: &Tensor) {
    let Sizes { height, width, channels, rows, cols, .. } = sizes;
    let x = x.host::<E>();
    let outputs = ((y.host_mut::<E>(), channels), (winners.host_mut::<u8>(), channels));
    parallel::for_rows2(outputs.0, outputs.1, |pixel, y, winners| {
        let (image, row, col) = (pixel / (rows * cols), pixel / cols % rows, pixel % cols);
        let ((vertical, ky), (horizontal, kx)) = (within(row, sizes, height), within(col, sizes, width));
        let mut first = true;
        vector::dispatch(
            #[inline(always)]
            || {
                for (iy, ky) in vertical.clone().zip(ky..) {
                    for (ix, kx) in horizontal.clone().zip(kx..) {
                        let x = &x[((image * height + iy) * width + ix) * channels..][..channels];
                        let number = (ky * sizes.window.kernel + kx) as u8;
                        if std::mem::take(&mut first) {
                            y.copy_from_slice(x);
                            winners.fill(number);
                            continue;
                        }
                        for ((y, winner), &x) in y.iter_mut().zip(winners.iter_mut()).zip(x) {
                            // A NaN wins and stays.
                            let (value, most) = (x.get(), y.get());
                            #[allow(clippy::eq_op, reason = "NaN is what differs from itself")]
                            let wins = value > most || value != value;
                            *y = if wins { x } else { *y };
                            *winner = if wins { number } else { *winner };
                        }
                    }
                }
            },
        );
    });
}

pub(super) fn mean<E: Held>(sizes: Sizes, x: &Tensor, y: &Tensor) {
    let Sizes { height, width, channels, rows, cols, .. } = sizes;
    let x = x.host::<E>();
    parallel::for_rows(y.host_mut::<E>(), channels, |pixel, y| {
        let (image, row, col) = (pixel / (rows * cols), pixel / cols % rows, pixel % cols);
        let ((vertical, _), (horizontal, _)) = (within(row, sizes, height), within(col, sizes, width));
        let inverse = E::Float::ONE / E::Float::from_f64((vertical.len() * horizontal.len()) as f64);
        write_alone(y, false, |y| {
            y.fill(Float::ZERO);
            vector::dispatch(
                #[inline(always)]
                || {
                    for iy in vertical.clone() {
                        for ix in horizontal.clone() {
                            let x = &x[((image * height + iy) * width + ix) * channels..][..channels];
                            y.iter_mut().zip(x).for_each(|(y, &x)| *y += x.get());
                        }
                    }
                    y.iter_mut().for_each(|y| *y *= inverse);
                },
            );
        });
    });
}

pub(super) fn mean_backward<E: Held>(sizes: Sizes, dy: &Tensor, dx: &Destination) {
    let Sizes { height, width, channels, rows, cols, window, .. } = sizes;
    let (dy, mode) = (dy.host::<E>(), dx.mode);
    parallel::for_rows(dx.host_mut::<E>(), channels, |pixel, to| {
        let (image, row, col) = (pixel / (height * width), pixel / width % height, pixel % width);
        write_alone(to, mode == Accumulate::Add, |to| {
            if mode == Accumulate::Write {
                to.fill(Float::ZERO);
            }
            for oy in holding(window, row, rows) {
                let tall = within(oy, sizes, height).0.len();
                for ox in holding(window, col, cols) {
                    let count = tall * within(ox, sizes, width).0.len();
                    let from = ((image * rows + oy) * cols + ox) * channels;
                    let share = E::Float::ONE / E::Float::from_f64(count as f64);
                    vector::axpy(to, share, &dy[from..][..channels]);
                }
            }
        });
    });
}

/// The windows that hold a pixel: from the first that ends behind it to the last that begins no later.
fn holding(window: Window, at: usize, windows: usize) -> std::ops::Range<usize> {
    let at = at + window.padding;
    let first = if at < window.kernel { 0 } else { (at - window.kernel) / window.stride + 1 };
    first..windows.min(at / window.stride + 1)
}

pub(super) fn max_backward<E: Held>(sizes: Sizes, dy: &Tensor, winners: &Tensor, dx: &Destination) {
    let Sizes { height, width, channels, rows, cols, window, .. } = sizes;
    let (dy, winners) = (dy.host::<E>(), winners.host::<u8>());
    let mode = dx.mode;
    parallel::for_rows(dx.host_mut::<E>(), channels, |pixel, to| {
        let (image, row, col) = (pixel / (height * width), pixel / width % height, pixel % width);
        write_alone(to, mode == Accumulate::Add, |to| {
            if mode == Accumulate::Write {
                to.fill(Float::ZERO);
            }
            vector::dispatch(
                #[inline(always)]
                || {
                    for oy in holding(window, row, rows) {
                        for ox in holding(window, col, cols) {
                            let ky = row + window.padding - oy * window.stride;
                            let kx = col + window.padding - ox * window.stride;
                            let number = (ky * window.kernel + kx) as u8;
                            let from = ((image * rows + oy) * cols + ox) * channels;
                            let (dy, winners) = (&dy[from..][..channels], &winners[from..][..channels]);
                            for ((to, &dy), &winner) in to.iter_mut().zip(dy).zip(winners) {
                                *to += if winner == number { dy.get() } else { Float::ZERO };
                            }
                        }
                    }
                },
            );
        });
    });
}

pub(super) fn average<E: Held>(pixels: usize, x: &Tensor, y: &Tensor) {
    let (x, channels) = (x.host::<E>(), y.shape().last());
    let inverse = E::Float::ONE / E::Float::from_f64(pixels as f64);
    let mut images: Vec<_> =
        y.host_mut::<E>().chunks_exact_mut(channels).zip(x.chunks_exact(pixels * channels)).collect();
    parallel::for_slots(&mut images, x.len(), |(y, x)| {
        write_alone(y, false, |y| {
            y.fill(Float::ZERO);
            vector::dispatch(
                #[inline(always)]
                || {
                    for x in x.chunks_exact(channels) {
                        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x.get());
                    }
                    y.iter_mut().for_each(|y| *y *= inverse);
                },
            );
        });
    });
}

pub(super) fn average_backward<E: Held>(pixels: usize, dy: &Tensor, dx: &Destination) {
    let (dy, channels) = (dy.host::<E>(), dy.shape().last());
    let inverse = E::Float::ONE / E::Float::from_f64(pixels as f64);
    let mode = dx.mode;
    parallel::for_rows(dx.host_mut::<E>(), channels, |row, to| {
        vector::map(to, &dy[row / pixels * channels..][..channels], mode, |dy| dy * inverse);
    });
}
