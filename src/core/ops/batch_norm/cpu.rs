//! Batch normalisation on the CPU: chunks of rows in parallel, vectorised over the channels.
//!
//! A chunk's sums run down its rows, for as many channels at a time as stay in registers; the chunks are joined in order. So they
//! depend on the shape alone, never on threads. The statistics of a chunk are taken about its first row (a mean far from zero
//! costs no digits) and joined as Chan, Golub and LeVeque (1983) do.

use super::{Call, Gradients, Layout, Running, Statistics};
use crate::ops::host::parallel::{self, GRAIN};
use crate::ops::host::{Float, Held, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Channels whose sums stay in registers: going forwards, backwards, and of what is left over.
const FORWARD: usize = 32;
const BACKWARD: usize = 16;
const NARROW: usize = 4;

/// `f(rows of the chunk, partial)` for each chunk `[2, C]` of `partial`, in parallel.
fn for_chunks<T: Float>(layout: Layout, partial: &mut [T], f: impl Fn(std::ops::Range<usize>, &mut [T]) + Send + Sync) {
    let mut slots: Vec<_> = partial.chunks_exact_mut(2 * layout.channels).enumerate().collect();
    parallel::for_slots(&mut slots, layout.rows * layout.channels, |(chunk, partial)| {
        let first = *chunk * layout.chunk_rows;
        f(first..layout.rows.min(first + layout.chunk_rows), partial);
    });
}

/// Means of channels from `first` on and sums of squares about them, W at a time: the first channel left.
#[inline(always)]
fn mean_stripes<const W: usize, T: Float, E: Held<Float = T>>(
    x: &[E],
    channels: usize,
    first: usize,
    partial: &mut [T],
) -> usize {
    let (means, squares) = partial.split_at_mut(channels);
    let count = T::from_f64((x.len() / channels) as f64);
    let mut at = first;
    while at + W <= channels {
        let (mut shift, mut sum, mut square) = ([T::ZERO; W], [T::ZERO; W], [T::ZERO; W]);
        (0..W).for_each(|j| shift[j] = x[at + j].get());
        for row in x.chunks_exact(channels) {
            if let Some(row) = row[at..].first_chunk::<W>() {
                for j in 0..W {
                    let d = row[j].get() - shift[j];
                    sum[j] += d;
                    square[j] = d.mul_add(d, square[j]);
                }
            }
        }
        for j in 0..W {
            let mean = sum[j] / count;
            means[at + j] = shift[j] + mean;
            squares[at + j] = (-mean).mul_add(sum[j], square[j]).larger(T::ZERO);
        }
        at += W;
    }
    at
}

/// mean and rstd of a call; the batch's with `partial` as scratch, moving the running ones on.
pub(super) fn statistics<E: Held>(call: &Call, running: &Running, partial: Option<&Tensor>) {
    statistics_of::<E::Float, E>(call, running, partial);
}

fn statistics_of<T: Float, E: Held<Float = T>>(call: &Call, running: &Running, partial: Option<&Tensor>) {
    let (mean, rstd, epsilon) = (call.mean.host_mut::<T>(), call.rstd.host_mut::<T>(), T::from_f32(call.norm.epsilon));
    let Some(partial) = partial.map(Tensor::host_mut::<T>) else {
        mean.copy_from_slice(running.mean.host());
        let variance = running.variance.host::<T>();
        rstd.iter_mut().zip(variance).for_each(|(rstd, &variance)| *rstd = T::ONE / (variance + epsilon).sqrt());
        return;
    };
    let (layout, x) = (call.layout, call.x.host::<E>());
    let channels = layout.channels;
    for_chunks(layout, partial, |rows, partial| {
        let x = &x[rows.start * channels..rows.end * channels];
        vector::dispatch(
            #[inline(always)]
            || {
                let at = mean_stripes::<FORWARD, T, E>(x, channels, 0, partial);
                let at = mean_stripes::<NARROW, T, E>(x, channels, at, partial);
                mean_stripes::<1, T, E>(x, channels, at, partial);
            },
        );
    });
    let count = |chunk: usize| {
        let rows = layout.chunk_rows.min(layout.rows - chunk * layout.chunk_rows);
        T::from_f64(rows as f64)
    };
    let rows = T::from_f64(layout.rows as f64);
    let (origin, _) = partial.split_at(channels);
    mean.fill(T::ZERO);
    // The sums of squares about the common mean, until they become rstd.
    rstd.fill(T::ZERO);
    vector::dispatch(
        #[inline(always)]
        || {
            for (chunk, partial) in partial.chunks_exact(2 * channels).enumerate() {
                let count = count(chunk);
                for c in 0..channels {
                    mean[c] = count.mul_add(partial[c] - origin[c], mean[c]);
                }
            }
            for c in 0..channels {
                mean[c] = origin[c] + mean[c] / rows;
            }
            for (chunk, partial) in partial.chunks_exact(2 * channels).enumerate() {
                let (count, (means, squares)) = (count(chunk), partial.split_at(channels));
                for c in 0..channels {
                    let d = means[c] - mean[c];
                    rstd[c] += (count * d).mul_add(d, squares[c]);
                }
            }
        },
    );
    let (running_mean, running_variance) = (running.mean.host_mut::<T>(), running.variance.host_mut::<T>());
    let momentum = T::from_f32(call.norm.momentum);
    for c in 0..channels {
        let squares = rstd[c];
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_variance[c] += momentum * (squares / (rows - T::ONE) - running_variance[c]);
        rstd[c] = T::ONE / (squares / rows + epsilon).sqrt();
    }
}

/// Per channel v = gain · (x − mean) + bias.
struct Affine<'a, T> {
    mean: &'a [T],
    gain: &'a [T],
    bias: &'a [T],
}

impl<T: Float> Affine<'_, T> {
    /// A row of y; the residual is read with `RESIDUAL` alone.
    ///
    /// A loop over indices into slices of one length, here and below: closures are not always inlined, and what is not
    /// is compiled for the plainest machine.
    #[inline(always)]
    fn row<const RESIDUAL: bool, E: Held<Float = T>>(&self, y: &mut [E], x: &[E], residual: &[E], relu: bool) {
        let channels = y.len();
        let (mean, gain, bias) = (&self.mean[..channels], &self.gain[..channels], &self.bias[..channels]);
        let (x, residual) = (&x[..channels], &residual[..channels]);
        for c in 0..channels {
            let mut v = gain[c].mul_add(x[c].get() - mean[c], bias[c]);
            if RESIDUAL {
                v += residual[c].get();
            }
            y[c] = E::of(if relu && v <= T::ZERO { T::ZERO } else { v });
        }
    }
}

/// Calls `f` with the affine of the call and two rows of scratch.
fn with_affine<T: Float>(call: &Call, f: impl FnOnce(Affine<T>, &mut [T], &mut [T])) {
    let channels = call.layout.channels;
    let (weight, rstd) = (call.weight.host::<T>(), call.rstd.host::<T>());
    T::with_scratch(3 * channels, |scratch| {
        let (gain, rest) = scratch.split_at_mut(channels);
        let (first, second) = rest.split_at_mut(channels);
        gain.iter_mut().zip(weight).zip(rstd).for_each(|((gain, &weight), &rstd)| *gain = weight * rstd);
        f(Affine { mean: call.mean.host(), gain, bias: call.bias.host() }, first, second);
    });
}

/// Rows of a task that only maps.
fn rows_per_task(channels: usize) -> usize {
    (GRAIN / 2).div_ceil(channels).max(1)
}

pub(super) fn apply<E: Held>(call: &Call, y: &Tensor, residual: Option<&Tensor>) {
    let (channels, relu, x) = (call.layout.channels, call.norm.relu, call.x.host::<E>());
    let residual = residual.map(Tensor::host::<E>);
    with_affine::<E::Float>(call, |affine, _, _| {
        let Affine { mean, gain, bias } = affine;
        parallel::for_row_blocks(y.host_mut::<E>(), channels, rows_per_task(channels), |first, y| {
            let within = first * channels..first * channels + y.len();
            let x = &x[within.clone()];
            let residual = residual.map(|residual| &residual[within]);
            let affine = Affine { mean, gain, bias };
            vector::dispatch(
                #[inline(always)]
                || {
                    for (row, (y, x)) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate() {
                        match residual {
                            Some(residual) => affine.row::<true, E>(y, x, &residual[row * channels..], relu),
                            None => affine.row::<false, E>(y, x, x, relu),
                        }
                    }
                },
            );
        });
    });
}

/// Where the ReLU's mask comes from.
const NONE: u8 = 0;
const FROM_X: u8 = 1;
const FROM_Y: u8 = 2;

/// dz, given dy, x and y (which is read for [`FROM_Y`] alone), x − mean as `d`.
#[inline(always)]
fn masked<const MASK: u8, T: Float>(dy: T, d: T, y: T, gain: T, bias: T) -> T {
    let off = match MASK {
        FROM_X => gain.mul_add(d, bias) <= T::ZERO,
        FROM_Y => y <= T::ZERO,
        _ => false,
    };
    if off { T::ZERO } else { dy }
}

/// The tensors that a backward reads; `y` is `dy` where nobody asks for it.
struct View<'a, T, E> {
    channels: usize,
    affine: Affine<'a, T>,
    dy: &'a [E],
    x: &'a [E],
    y: &'a [E],
}

impl<T: Float, E: Held<Float = T>> View<'_, T, E> {
    /// Σ dz and Σ dz · (x − mean) of channels from `first` on, W at a time: the first channel left.
    #[inline(always)]
    fn sum_stripes<const MASK: u8, const W: usize>(
        &self,
        rows: std::ops::Range<usize>,
        first: usize,
        partial: &mut [T],
    ) -> usize {
        let channels = self.channels;
        let (plain, with_n) = partial.split_at_mut(channels);
        let mut at = first;
        while at + W <= channels {
            let (mut mean, mut gain, mut bias) = ([T::ZERO; W], [T::ZERO; W], [T::ZERO; W]);
            mean.copy_from_slice(&self.affine.mean[at..at + W]);
            gain.copy_from_slice(&self.affine.gain[at..at + W]);
            bias.copy_from_slice(&self.affine.bias[at..at + W]);
            let (mut sum, mut sum_n) = ([T::ZERO; W], [T::ZERO; W]);
            for row in rows.clone() {
                let here = row * channels + at;
                let pieces = (
                    self.dy[here..].first_chunk::<W>(),
                    self.x[here..].first_chunk::<W>(),
                    self.y[here..].first_chunk::<W>(),
                );
                if let (Some(dy), Some(x), Some(y)) = pieces {
                    for j in 0..W {
                        let d = x[j].get() - mean[j];
                        let dz = masked::<MASK, T>(dy[j].get(), d, y[j].get(), gain[j], bias[j]);
                        sum[j] += dz;
                        sum_n[j] = dz.mul_add(d, sum_n[j]);
                    }
                }
            }
            plain[at..at + W].copy_from_slice(&sum);
            with_n[at..at + W].copy_from_slice(&sum_n);
            at += W;
        }
        at
    }

    fn chunk_sums<const MASK: u8>(&self, layout: Layout, partial: &mut [T]) {
        for_chunks(layout, partial, |rows, partial| {
            vector::dispatch(
                #[inline(always)]
                || {
                    let at = self.sum_stripes::<MASK, BACKWARD>(rows.clone(), 0, partial);
                    let at = self.sum_stripes::<MASK, NARROW>(rows.clone(), at, partial);
                    self.sum_stripes::<MASK, 1>(rows, at, partial);
                },
            );
        });
    }

    /// dx = gain · (dz − plain − (x − mean) · slope) and dresidual = dz.
    fn inputs<const MASK: u8>(
        &self,
        plain: &[T],
        slope: &[T],
        dx: Option<(&mut [E], Accumulate)>,
        dresidual: Option<(&mut [E], Accumulate)>,
    ) {
        let channels = self.channels;
        let task = rows_per_task(channels) * channels;
        let (mut dx, x_mode) = dx.map_or((None, Accumulate::Write), |(to, mode)| (Some(to.chunks_mut(task)), mode));
        let (mut dr, r_mode) =
            dresidual.map_or((None, Accumulate::Write), |(to, mode)| (Some(to.chunks_mut(task)), mode));
        let mut slots: Vec<_> = (0..self.dy.len().div_ceil(task))
            .map(|i| (i * task, dx.as_mut().and_then(Iterator::next), dr.as_mut().and_then(Iterator::next)))
            .collect();
        parallel::for_slots(&mut slots, self.dy.len(), |(first, dx, dresidual)| {
            let end = self.dy.len().min(*first + task);
            vector::dispatch(
                #[inline(always)]
                || {
                    for at in (*first..end).step_by(channels) {
                        let here = at - *first..at - *first + channels;
                        if let Some(dx) = dx {
                            let dx = &mut dx[here.clone()];
                            match x_mode {
                                Accumulate::Write => self.input_row::<MASK, false>(at, plain, slope, dx),
                                Accumulate::Add => self.input_row::<MASK, true>(at, plain, slope, dx),
                            }
                        }
                        if let Some(dresidual) = dresidual {
                            let dresidual = &mut dresidual[here];
                            match r_mode {
                                Accumulate::Write => self.residual_row::<MASK, false>(at, dresidual),
                                Accumulate::Add => self.residual_row::<MASK, true>(at, dresidual),
                            }
                        }
                    }
                },
            );
        });
    }

    /// dx of the row that begins at `at`.
    #[inline(always)]
    fn input_row<const MASK: u8, const ADD: bool>(&self, at: usize, plain: &[T], slope: &[T], dx: &mut [E]) {
        let (channels, Affine { mean, gain, bias }) = (dx.len(), &self.affine);
        let (mean, gain, bias) = (&mean[..channels], &gain[..channels], &bias[..channels]);
        let (plain, slope) = (&plain[..channels], &slope[..channels]);
        let (dy, x, y) = (&self.dy[at..][..channels], &self.x[at..][..channels], &self.y[at..][..channels]);
        for c in 0..channels {
            let d = x[c].get() - mean[c];
            let dz = masked::<MASK, T>(dy[c].get(), d, y[c].get(), gain[c], bias[c]);
            let value = gain[c] * ((-d).mul_add(slope[c], dz) - plain[c]);
            dx[c] = E::of(if ADD { dx[c].get() + value } else { value });
        }
    }

    /// dresidual of the row that begins at `at`.
    #[inline(always)]
    fn residual_row<const MASK: u8, const ADD: bool>(&self, at: usize, dresidual: &mut [E]) {
        let (channels, Affine { mean, gain, bias }) = (dresidual.len(), &self.affine);
        let (mean, gain, bias) = (&mean[..channels], &gain[..channels], &bias[..channels]);
        let (dy, x, y) = (&self.dy[at..][..channels], &self.x[at..][..channels], &self.y[at..][..channels]);
        for c in 0..channels {
            let dz = masked::<MASK, T>(dy[c].get(), x[c].get() - mean[c], y[c].get(), gain[c], bias[c]);
            dresidual[c] = E::of(if ADD { dresidual[c].get() + dz } else { dz });
        }
    }
}

fn give<T: Float>(to: Option<&Destination>, values: &[T]) {
    if let Some(to) = to {
        vector::map(to.host_mut::<T>(), values, to.mode, |x| x);
    }
}

fn backward_masked<const MASK: u8, T: Float, E: Held<Float = T>>(call: &Call, dy: &Tensor, gradients: &Gradients) {
    let (layout, dy) = (call.layout, dy.host::<E>());
    let y = call.y.as_ref().map_or(dy, Tensor::host::<E>);
    with_affine::<T>(call, |affine, plain, slope| {
        let view = View { channels: layout.channels, affine, dy, x: call.x.host(), y };
        plain.fill(T::ZERO);
        slope.fill(T::ZERO);
        if let Some([partial, _]) = &gradients.sums {
            let partial = partial.host_mut::<T>();
            view.chunk_sums::<MASK>(layout, partial);
            for partial in partial.chunks_exact(2 * layout.channels) {
                let (a, b) = partial.split_at(layout.channels);
                vector::axpy(plain, T::ONE, a);
                vector::axpy(slope, T::ONE, b);
            }
            let rstd = call.rstd.host::<T>();
            slope.iter_mut().zip(rstd).for_each(|(sum, &rstd)| *sum *= rstd);
            give(gradients.dweight.as_ref(), slope);
            give(gradients.dbias.as_ref(), plain);
            let inverse = T::ONE / T::from_f64(layout.rows as f64);
            slope.iter_mut().zip(rstd).for_each(|(slope, &rstd)| *slope *= rstd * inverse);
            plain.iter_mut().for_each(|plain| *plain *= inverse);
        }
        if call.norm.statistics == Statistics::Running {
            plain.fill(T::ZERO);
            slope.fill(T::ZERO);
        }
        let dx = gradients.dx.as_ref().map(|to| (to.host_mut::<E>(), to.mode));
        let dresidual = gradients.dresidual.as_ref().map(|to| (to.host_mut::<E>(), to.mode));
        if dx.is_some() || dresidual.is_some() {
            view.inputs::<MASK>(plain, slope, dx, dresidual);
        }
    });
}

pub(super) fn backward<E: Held>(call: &Call, dy: &Tensor, gradients: &Gradients) {
    match (call.norm.relu, &call.y) {
        (false, _) => backward_masked::<NONE, E::Float, E>(call, dy, gradients),
        (true, None) => backward_masked::<FROM_X, E::Float, E>(call, dy, gradients),
        (true, Some(_)) => backward_masked::<FROM_Y, E::Float, E>(call, dy, gradients),
    }
}
