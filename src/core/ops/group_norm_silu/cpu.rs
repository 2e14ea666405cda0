//! Group norm on the CPU: a sample stays in the second-level cache for all of its passes.
//!
//! Sums run down the pixels, channel by channel and vectorised over them: within chunks of [`CHUNK`] pixels, then over the chunks
//! in order, then over a group's channels in order. So they depend on the sample's shape alone, not on threads, nor on the batch.

use super::{Call, Gradients, Sizes};
use crate::ops::host::activation::{silu, silu_derivative};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Pixels that are summed by themselves.
const CHUNK: usize = 64;
/// Channels whose sums stay in registers, in a pass that only sums.
const WIDE: usize = 64;
/// Channels at once where there is more to do.
const NARROW: usize = 16;

/// A call's tensors as slices.
struct View<'a, T> {
    sizes: Sizes,
    sources: [&'a [T]; 2],
    weight: &'a [T],
    bias: &'a [T],
    matrix: Option<&'a [T]>,
}

impl<'a, T: Float> View<'a, T> {
    fn new(call: &'a Call) -> Self {
        Self {
            sizes: call.sizes,
            sources: [call.x.host(), call.skip.as_ref().map_or(&[], Tensor::host)],
            weight: call.weight.host(),
            bias: call.bias.host(),
            matrix: call.scale_shift.as_ref().map(Tensor::host),
        }
    }

    /// A sample of each source: its rows, their width and its first channel in the concatenation. Without skip, only one.
    fn sample(&self, b: usize) -> impl Iterator<Item = (&'a [T], usize, usize)> + use<'a, T> {
        let (sources, sizes) = (self.sources, self.sizes);
        [0, sizes.sources[0]].into_iter().enumerate().filter(move |&(s, _)| sizes.sources[s] > 0).map(
            move |(s, first)| {
                let (cols, len) = (sizes.sources[s], sizes.pixels * sizes.sources[s]);
                (&sources[s][b * len..][..len], cols, first)
            },
        )
    }

    /// v = a · x + b: the norm, its weight and bias, scale and shift in one multiply-add per channel.
    fn fold(&self, sample: usize, mean: &[T], rstd: &[T], a: &mut [T], b: &mut [T]) {
        let (channels, width) = (self.sizes.channels(), self.sizes.width());
        for c in 0..channels {
            let (mean, rstd) = (mean[c / width], rstd[c / width]);
            a[c] = rstd * self.weight[c];
            b[c] = (-mean).mul_add(a[c], self.bias[c]);
            if let Some(matrix) = self.matrix {
                let row = &matrix[sample * 2 * channels..][..2 * channels];
                let scale = T::ONE + row[c];
                a[c] *= scale;
                b[c] = b[c].mul_add(scale, row[channels + c]);
            }
        }
    }
}

/// A matrix row by row, `cols` elements each.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    values: &'a [T],
    cols: usize,
}

/// Spreads one value per group over the groups' channels.
fn spread<T: Float>(channels: &mut [T], width: usize, value: impl Fn(usize) -> T) {
    channels.chunks_exact_mut(width).enumerate().for_each(|(group, channels)| channels.fill(value(group)));
}

/// sums\[j\] = Σ f(x\[row, j\], about\[j\]) down the rows of `x`, for W columns at a time from `first` on: the first column left.
#[inline(always)]
fn sum_stripes<const W: usize, T: Float>(
    Rows { values: x, cols }: Rows<T>,
    first: usize,
    about: &[T],
    sums: &mut [T],
    f: impl Fn(T, T, T) -> T,
) -> usize {
    let mut at = first;
    while at + W <= cols {
        let (mut total, mut center) = ([T::ZERO; W], [T::ZERO; W]);
        center.copy_from_slice(&about[at..at + W]);
        for row in x.chunks_exact(cols) {
            if let Some(row) = row[at..].first_chunk::<W>() {
                for j in 0..W {
                    total[j] = f(total[j], row[j], center[j]);
                }
            }
        }
        sums[at..at + W].copy_from_slice(&total);
        at += W;
    }
    at
}

/// sums\[j\] = Σ f(x\[row, j\], about\[j\]), chunk by chunk, the chunks in parallel where `work` is large.
fn sums_by_column<T: Float>(
    Rows { values: x, cols }: Rows<T>,
    about: &[T],
    sums: &mut [T],
    work: usize,
    f: impl Fn(T, T, T) -> T + Send + Sync,
) {
    let chunks = x.len().div_ceil(CHUNK * cols);
    T::with_scratch(chunks * cols, |partial| {
        let mut slots: Vec<_> = x.chunks(CHUNK * cols).zip(partial.chunks_exact_mut(cols)).collect();
        parallel::for_slots(&mut slots, work, |(x, sums)| {
            let x = Rows { values: x, cols };
            vector::dispatch(
                #[inline(always)]
                || {
                    let at = sum_stripes::<WIDE, T>(x, 0, about, sums, &f);
                    let at = sum_stripes::<NARROW, T>(x, at, about, sums, &f);
                    sum_stripes::<1, T>(x, at, about, sums, &f);
                },
            );
        });
        sums.fill(T::ZERO);
        for partial in partial.chunks_exact(cols) {
            sums.iter_mut().zip(partial).for_each(|(sum, &part)| *sum += part);
        }
    });
}

/// The unit of parallel work: samples if there are many, else chunks of each.
fn work(sizes: Sizes) -> (usize, usize) {
    let all = sizes.samples * sizes.pixels * sizes.channels();
    if sizes.samples >= 2 * parallel::threads() { (all, 0) } else { (0, all / sizes.samples) }
}

/// Per group the mean over its pixels and channels of f(x, about\[channel\]).
fn mean_by_group<T: Float>(
    view: &View<T>,
    sample: usize,
    work: usize,
    about: &[T],
    sums: &mut [T],
    means: &mut [T],
    f: impl Fn(T, T, T) -> T + Send + Sync,
) {
    let width = view.sizes.width();
    let inverse = T::ONE / T::from_f64((view.sizes.pixels * width) as f64);
    for (x, cols, first) in view.sample(sample) {
        sums_by_column(Rows { values: x, cols }, &about[first..][..cols], &mut sums[first..][..cols], work, &f);
    }
    for (mean, sums) in means.iter_mut().zip(sums.chunks_exact(width)) {
        *mean = sums.iter().fold(T::ZERO, |sum, &s| sum + s) * inverse;
    }
}

pub(super) fn forward<T: Float>(call: &Call, y: &Tensor, _partial: Option<&Tensor>) {
    let view = View::<T>::new(call);
    let sizes = call.sizes;
    let (channels, width, groups) = (sizes.channels(), sizes.width(), sizes.norm.groups);
    let epsilon = T::from_f64(sizes.norm.epsilon as f64);
    let (mean, rstd) = (call.mean.host_mut::<T>(), call.rstd.host_mut::<T>());
    let statistics = mean.chunks_exact_mut(groups).zip(rstd.chunks_exact_mut(groups));
    let all = y.host_mut::<T>();
    let y = all.chunks_exact_mut(sizes.pixels * channels);
    let mut samples: Vec<_> = y.zip(statistics).enumerate().collect();
    let (outer, inner) = work(sizes);
    parallel::for_slots(&mut samples, outer, |(sample, (y, (mean, rstd)))| {
        T::with_scratch(2 * channels, |scratch| {
            let (a, b) = scratch.split_at_mut(channels);
            // First the mean, then the squares about it: E[x²] − E[x]² would cancel.
            mean_by_group(&view, *sample, inner, a, b, mean, |sum, x, _| sum + x);
            spread(a, width, |group| mean[group]);
            mean_by_group(&view, *sample, inner, a, b, rstd, |sum, x, mean| (x - mean).mul_add(x - mean, sum));
            rstd.iter_mut().for_each(|r| *r = T::ONE / (*r + epsilon).sqrt());
            view.fold(*sample, mean, rstd, a, b);
            for (x, cols, first) in view.sample(*sample) {
                let (a, b) = (&a[first..][..cols], &b[first..][..cols]);
                let mut chunks: Vec<_> = x.chunks(CHUNK * cols).zip(y.chunks_mut(CHUNK * channels)).collect();
                parallel::for_slots(&mut chunks, inner, |(x, y)| {
                    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(channels)) {
                        let y = &mut y[first..][..cols];
                        if sizes.norm.silu {
                            affine(x, a, b, y, silu);
                        } else {
                            affine(x, a, b, y, |v| v);
                        }
                    }
                });
            }
        });
    });
    if let Some((mask, control)) = &call.dropout {
        mask.apply(control, sizes.pixels * channels, None, all, false);
    }
}

/// y = f(a · x + b).
fn affine<T: Float>(x: &[T], a: &[T], b: &[T], y: &mut [T], f: impl Fn(T) -> T) {
    vector::dispatch(
        #[inline(always)]
        || {
            let (x, x_rest) = x.as_chunks::<NARROW>();
            let (a, a_rest) = a.as_chunks::<NARROW>();
            let (b, b_rest) = b.as_chunks::<NARROW>();
            let (y, y_rest) = y.as_chunks_mut::<NARROW>();
            for (((x, a), b), y) in x.iter().zip(a).zip(b).zip(y) {
                for j in 0..NARROW {
                    y[j] = f(x[j].mul_add(a[j], b[j]));
                }
            }
            for (((x, a), b), y) in x_rest.iter().zip(a_rest).zip(b_rest).zip(y_rest) {
                *y = f(x.mul_add(*a, *b));
            }
        },
    );
}

/// A sample's gradients of one source: written in place, or added, or not wanted.
struct Way<'a, T> {
    to: Option<&'a mut [T]>,
    add: bool,
}

/// Samples of a source's gradient, as many as there are, wanted or not.
fn ways<'a, T: Float>(destination: &'a Option<Destination>, samples: usize) -> Vec<Way<'a, T>> {
    match destination {
        Some(to) => {
            let add = to.mode == Accumulate::Add;
            let rows = to.host_mut::<T>().chunks_exact_mut(to.len() / samples);
            rows.map(|row| Way { to: Some(row), add }).collect()
        }
        None => (0..samples).map(|_| Way { to: None, add: false }).collect(),
    }
}

/// Per-channel coefficients of one source's part of a sample.
struct Channels<'a, T> {
    a: &'a [T],
    b: &'a [T],
    mean: &'a [T],
}

/// By channel Σ dv and Σ dv · (x − mean) over pixels.
struct Sums<'a, T> {
    plain: &'a mut [T],
    with_x: &'a mut [T],
}

/// dv = dy · f′(a · x + b) for W columns at a time, into `dv`; its sums down the rows, and those of dv · (x − mean).
#[inline(always)]
fn gradient_stripes<const W: usize, T: Float>(
    Rows { values: x, cols }: Rows<T>,
    dy: Rows<T>,
    first: usize,
    of: &Channels<T>,
    dv: &mut [T],
    sums_of_dv: &mut Sums<T>,
    slope: impl Fn(T) -> T,
) -> usize {
    let mut at = first;
    while at + W <= cols {
        let (mut a, mut b, mut mean) = ([T::ZERO; W], [T::ZERO; W], [T::ZERO; W]);
        a.copy_from_slice(&of.a[at..at + W]);
        b.copy_from_slice(&of.b[at..at + W]);
        mean.copy_from_slice(&of.mean[at..at + W]);
        let (mut sums, mut products) = ([T::ZERO; W], [T::ZERO; W]);
        for ((x, dy), dv) in x.chunks_exact(cols).zip(dy.values.chunks(dy.cols)).zip(dv.chunks_exact_mut(cols)) {
            let (x, dy, dv) =
                (x[at..].first_chunk::<W>(), dy[at..].first_chunk::<W>(), dv[at..].first_chunk_mut::<W>());
            if let (Some(x), Some(dy), Some(dv)) = (x, dy, dv) {
                for j in 0..W {
                    let value = dy[j] * slope(x[j].mul_add(a[j], b[j]));
                    sums[j] += value;
                    products[j] = value.mul_add(x[j] - mean[j], products[j]);
                    dv[j] = value;
                }
            }
        }
        (0..W).for_each(|j| sums_of_dv.plain[at + j] += sums[j]);
        (0..W).for_each(|j| sums_of_dv.with_x[at + j] += products[j]);
        at += W;
    }
    at
}

/// dv, and added to `sums` its sums and those of dv · (x − mean), chunk by chunk. `dy` begins at the source's first channel.
fn pre_activation<T: Float>(
    Rows { values: x, cols }: Rows<T>,
    Rows { values: dy, cols: channels }: Rows<T>,
    of: &Channels<T>,
    dv: &mut [T],
    sums: &mut Sums<T>,
    silu: bool,
) {
    for ((x, dy), dv) in x.chunks(CHUNK * cols).zip(dy.chunks(CHUNK * channels)).zip(dv.chunks_mut(CHUNK * cols)) {
        vector::dispatch(
            #[inline(always)]
            || {
                let (x, dy) = (Rows { values: x, cols }, Rows { values: dy, cols: channels });
                if silu {
                    let at = gradient_stripes::<NARROW, T>(x, dy, 0, of, dv, sums, silu_derivative);
                    gradient_stripes::<1, T>(x, dy, at, of, dv, sums, silu_derivative);
                } else {
                    let at = gradient_stripes::<NARROW, T>(x, dy, 0, of, dv, sums, |_| T::ONE);
                    gradient_stripes::<1, T>(x, dy, at, of, dv, sums, |_| T::ONE);
                }
            },
        );
    }
}

/// dx = a · dv + (x − mean) · slope + constant, `dv` being `dx` itself (None) or scratch.
fn input_gradient<T: Float>(
    Rows { values: x, cols }: Rows<T>,
    of: &Channels<T>,
    slope: &[T],
    constant: &[T],
    dv: Option<&[T]>,
    dx: &mut [T],
) {
    let rows = x.chunks_exact(cols).zip(dx.chunks_exact_mut(cols)).enumerate();
    for (row, (x, dx)) in rows {
        vector::dispatch(
            #[inline(always)]
            || {
                let coefficients = of.a.iter().zip(of.mean).zip(slope.iter().zip(constant));
                match dv {
                    None => {
                        for ((dx, &x), ((&a, &mean), (&s, &c))) in dx.iter_mut().zip(x).zip(coefficients) {
                            *dx = a.mul_add(*dx, (x - mean).mul_add(s, c));
                        }
                    }
                    Some(dv) => {
                        let dv = &dv[row * cols..][..cols];
                        let sources = x.iter().zip(dv).zip(coefficients);
                        for (dx, ((&x, &dv), ((&a, &mean), (&s, &c)))) in dx.iter_mut().zip(sources) {
                            *dx += a.mul_add(dv, (x - mean).mul_add(s, c));
                        }
                    }
                }
            },
        );
    }
}

/// With dv = dy · f′(v) and k = weight · (1 + scale): dn = k · dv, and over a group of N elements
/// dx = rstd · (dn − Σ dn / N − n · Σ (dn · n) / N).
///
/// dv is kept where dx will be, or in scratch where dx is added to something.
pub(super) fn backward<T: Float>(call: &Call, dy: &Tensor, gradients: &Gradients) {
    let dy = dy.host::<T>();
    let Some((mask, control)) = &call.dropout else { return backward_of(call, dy, gradients) };
    T::with_scratch(dy.len(), |kept| {
        mask.apply(control, dy.len() / call.sizes.samples, Some(dy), kept, false);
        backward_of(call, kept, gradients);
    });
}

/// Without dropout.
fn backward_of<T: Float>(call: &Call, dy: &[T], gradients: &Gradients) {
    let view = View::<T>::new(call);
    let sizes = call.sizes;
    let (channels, width, groups) = (sizes.channels(), sizes.width(), sizes.norm.groups);
    let (mean, rstd) = (call.mean.host::<T>(), call.rstd.host::<T>());
    let inverse = T::ONE / T::from_f64((sizes.pixels * width) as f64);
    let sums = gradients.sums.host_mut::<T>().chunks_exact_mut(2 * channels);
    let ways = ways(&gradients.dx, sizes.samples).into_iter().zip(ways(&gradients.dskip, sizes.samples));
    let mut samples: Vec<_> = ways.map(|(x, skip)| [x, skip]).zip(sums).enumerate().collect();
    let (all, _) = work(sizes);
    parallel::for_slots(&mut samples, all, |(sample, (ways, sums))| {
        let (mean, rstd) = (&mean[*sample * groups..][..groups], &rstd[*sample * groups..][..groups]);
        let dy = &dy[*sample * sizes.pixels * channels..][..sizes.pixels * channels];
        let in_place = |way: &Way<T>| way.to.is_some() && !way.add;
        let scratch: usize = (ways.iter().zip(sizes.sources))
            .map(|(way, cols)| if in_place(way) { 0 } else { sizes.pixels * cols })
            .sum();
        T::with_scratch(5 * channels + scratch, |scratch| {
            let (a, scratch) = scratch.split_at_mut(channels);
            let (b, scratch) = scratch.split_at_mut(channels);
            let (center, scratch) = scratch.split_at_mut(channels);
            let (slope, scratch) = scratch.split_at_mut(channels);
            let (constant, mut scratch) = scratch.split_at_mut(channels);
            view.fold(*sample, mean, rstd, a, b);
            spread(center, width, |group| mean[group]);
            let (plain, with_n) = sums.split_at_mut(channels);
            plain.fill(T::ZERO);
            with_n.fill(T::ZERO);
            let mut kept: [Option<&mut [T]>; 2] = [None, None];
            for (s, (x, cols, first)) in view.sample(*sample).enumerate() {
                let columns = first..first + cols;
                let of = Channels { a: &a[columns.clone()], b: &b[columns.clone()], mean: &center[columns.clone()] };
                let mut sums = Sums { plain: &mut plain[columns.clone()], with_x: &mut with_n[columns] };
                let rows = Rows { values: x, cols };
                let dy = Rows { values: &dy[first..], cols: channels };
                if in_place(&ways[s])
                    && let Some(dx) = &mut ways[s].to
                {
                    pre_activation(rows, dy, &of, dx, &mut sums, sizes.norm.silu);
                } else {
                    let (dv, rest) = std::mem::take(&mut scratch).split_at_mut(x.len());
                    scratch = rest;
                    pre_activation(rows, dy, &of, dv, &mut sums, sizes.norm.silu);
                    kept[s] = Some(dv);
                }
            }
            for (group, sums) in with_n.chunks_exact_mut(width).enumerate() {
                sums.iter_mut().for_each(|s| *s *= rstd[group]);
            }
            for group in 0..groups {
                let (mut dn, mut dn_n) = (T::ZERO, T::ZERO);
                for c in group * width..(group + 1) * width {
                    // a = rstd · k, and rstd is wanted in front of both means.
                    dn = a[c].mul_add(plain[c], dn);
                    dn_n = a[c].mul_add(with_n[c], dn_n);
                }
                constant[group * width..][..width].fill(-dn * inverse);
                slope[group * width..][..width].fill(-dn_n * inverse * rstd[group]);
            }
            for (s, (x, cols, first)) in view.sample(*sample).enumerate() {
                let columns = first..first + cols;
                let of = Channels { a: &a[columns.clone()], b: &b[columns.clone()], mean: &center[columns.clone()] };
                if let Some(dx) = &mut ways[s].to {
                    let dv = kept[s].as_deref();
                    input_gradient(Rows { values: x, cols }, &of, &slope[columns.clone()], &constant[columns], dv, dx);
                }
            }
        });
    });
    parameters(&view, gradients);
}

/// The gradients that are sums over pixels: scale and shift by sample, weight and bias over the samples in order.
fn parameters<T: Float>(view: &View<T>, gradients: &Gradients) {
    let channels = view.sizes.channels();
    let sums = gradients.sums.host::<T>().chunks_exact(2 * channels);
    if let Some(destination) = &gradients.dscale_shift {
        for (to, sums) in destination.host_mut::<T>().chunks_exact_mut(2 * channels).zip(sums.clone()) {
            if destination.mode == Accumulate::Write {
                to.fill(T::ZERO);
            }
            let (dscale, dshift) = to.split_at_mut(channels);
            for c in 0..channels {
                dscale[c] += view.weight[c].mul_add(sums[channels + c], view.bias[c] * sums[c]);
                dshift[c] += sums[c];
            }
        }
    }
    for (destination, first) in [(&gradients.dweight, channels), (&gradients.dbias, 0)] {
        let Some(destination) = destination else { continue };
        let to = destination.host_mut::<T>();
        if destination.mode == Accumulate::Write {
            to.fill(T::ZERO);
        }
        for (sample, sums) in sums.clone().enumerate() {
            let scale = view.matrix.map(|matrix| &matrix[sample * 2 * channels..][..channels]);
            for (c, to) in to.iter_mut().enumerate() {
                let scale = scale.map_or(T::ONE, |scale| T::ONE + scale[c]);
                *to = scale.mul_add(sums[first + c], *to);
            }
        }
    }
}
