//! Group norm on the CPU: a sample stays in the second-level cache for all of its passes.
//!
//! Sums run down the pixels, channel by channel and vectorised over them: within chunks of [`CHUNK`] pixels, then over the chunks
//! in order, then over a group's channels in order. So they depend on the sample's shape alone, not on threads, nor on the batch.

use super::{Call, Gradients, Sizes};
use crate::ops::control::Control;
use crate::ops::host::activation::{silu, silu_derivative};
use crate::ops::host::held::{is_own, room, write};
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Pixels that are summed by themselves.
const CHUNK: usize = 64;
/// Channels whose sums stay in registers, in a pass that only sums.
const WIDE: usize = 64;
/// Channels at once where there is more to do.
const NARROW: usize = 16;

/// A call's tensors as slices.
struct View<'a, E: Held> {
    sizes: Sizes,
    sources: [&'a [E]; 2],
    weight: &'a [E::Float],
    bias: &'a [E::Float],
    matrix: Option<&'a [E]>,
}

impl<'a, E: Held> View<'a, E> {
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
    fn sample(&self, b: usize) -> impl Iterator<Item = (&'a [E], usize, usize)> + use<'a, E> {
        let (sources, sizes) = (self.sources, self.sizes);
        [0, sizes.sources[0]].into_iter().enumerate().filter(move |&(s, _)| sizes.sources[s] > 0).map(
            move |(s, first)| {
                let (cols, len) = (sizes.sources[s], sizes.pixels * sizes.sources[s]);
                (&sources[s][b * len..][..len], cols, first)
            },
        )
    }

    /// v = a · x + b: the norm, its weight and bias, scale and shift in one multiply-add per channel.
    fn fold(&self, sample: usize, mean: &[E::Float], rstd: &[E::Float], a: &mut [E::Float], b: &mut [E::Float]) {
        let (channels, width) = (self.sizes.channels(), self.sizes.width());
        for c in 0..channels {
            let (mean, rstd) = (mean[c / width], rstd[c / width]);
            a[c] = rstd * self.weight[c];
            b[c] = (-mean).mul_add(a[c], self.bias[c]);
            if let Some(matrix) = self.matrix {
                let row = &matrix[sample * 2 * channels..][..2 * channels];
                let scale = E::Float::ONE + row[c].get();
                a[c] *= scale;
                b[c] = b[c].mul_add(scale, row[channels + c].get());
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
fn sum_stripes<const W: usize, T: Float, E: Held<Float = T>>(
    Rows { values: x, cols }: Rows<E>,
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
                    total[j] = f(total[j], row[j].get(), center[j]);
                }
            }
        }
        sums[at..at + W].copy_from_slice(&total);
        at += W;
    }
    at
}

/// sums\[j\] = Σ f(x\[row, j\], about\[j\]), chunk by chunk, the chunks in parallel where `work` is large.
fn sums_by_column<T: Float, E: Held<Float = T>>(
    Rows { values: x, cols }: Rows<E>,
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
                    let at = sum_stripes::<WIDE, T, E>(x, 0, about, sums, &f);
                    let at = sum_stripes::<NARROW, T, E>(x, at, about, sums, &f);
                    sum_stripes::<1, T, E>(x, at, about, sums, &f);
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
fn mean_by_group<T: Float, E: Held<Float = T>>(
    view: &View<E>,
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

pub(super) fn forward<E: Held>(call: &Call, y: &Tensor, _partial: Option<&Tensor>) {
    forward_of::<E::Float, E>(call, y);
}

fn forward_of<T: Float, E: Held<Float = T>>(call: &Call, y: &Tensor) {
    let view = View::<E>::new(call);
    let sizes = call.sizes;
    let (channels, width, groups) = (sizes.channels(), sizes.width(), sizes.norm.groups);
    let epsilon = T::from_f64(sizes.norm.epsilon as f64);
    let (mean, rstd) = (call.mean.host_mut::<T>(), call.rstd.host_mut::<T>());
    let statistics = mean.chunks_exact_mut(groups).zip(rstd.chunks_exact_mut(groups));
    let y = y.host_mut::<E>().chunks_exact_mut(sizes.pixels * channels);
    let dropout = call.dropout.as_ref().map(|(mask, control)| (mask, Control::from_words(control.host())));
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
            match &dropout {
                None => normalise(&view, *sample, (a, b), y, inner),
                Some((mask, control)) => T::with_scratch(room::<E>(y.len()), |scratch| {
                    write(y, false, scratch, |y| {
                        normalise(&view, *sample, (a, b), y, inner);
                        mask.apply_piece::<T, T>(control, *sample, 0, None, y, false);
                    });
                }),
            }
        });
    });
}

/// A sample's y = f(a · x + b), chunk by chunk.
fn normalise<T: Float, E: Held<Float = T>, D: Held<Float = T>>(
    view: &View<E>,
    sample: usize,
    (a, b): (&[T], &[T]),
    y: &mut [D],
    work: usize,
) {
    let (channels, silu_follows) = (view.sizes.channels(), view.sizes.norm.silu);
    for (x, cols, first) in view.sample(sample) {
        let (a, b) = (&a[first..][..cols], &b[first..][..cols]);
        let mut chunks: Vec<_> = x.chunks(CHUNK * cols).zip(y.chunks_mut(CHUNK * channels)).collect();
        parallel::for_slots(&mut chunks, work, |(x, y)| {
            for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(channels)) {
                let y = &mut y[first..][..cols];
                if silu_follows {
                    affine(x, a, b, y, silu);
                } else {
                    affine(x, a, b, y, |v| v);
                }
            }
        });
    }
}

/// y = f(a · x + b).
fn affine<T: Float, E: Held<Float = T>, D: Held<Float = T>>(
    x: &[E],
    a: &[T],
    b: &[T],
    y: &mut [D],
    f: impl Fn(T) -> T,
) {
    vector::dispatch(
        #[inline(always)]
        || {
            let (x, x_rest) = x.as_chunks::<NARROW>();
            let (a, a_rest) = a.as_chunks::<NARROW>();
            let (b, b_rest) = b.as_chunks::<NARROW>();
            let (y, y_rest) = y.as_chunks_mut::<NARROW>();
            for (((x, a), b), y) in x.iter().zip(a).zip(b).zip(y) {
                for j in 0..NARROW {
                    y[j] = D::of(f(x[j].get().mul_add(a[j], b[j])));
                }
            }
            for (((x, a), b), y) in x_rest.iter().zip(a_rest).zip(b_rest).zip(y_rest) {
                *y = D::of(f(x.get().mul_add(*a, *b)));
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
fn ways<'a, E: Held>(destination: &'a Option<Destination>, samples: usize) -> Vec<Way<'a, E>> {
    match destination {
        Some(to) => {
            let add = to.mode == Accumulate::Add;
            let rows = to.host_mut::<E>().chunks_exact_mut(to.len() / samples);
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
fn gradient_stripes<const W: usize, T: Float, E: Held<Float = T>, G: Held<Float = T>>(
    Rows { values: x, cols }: Rows<E>,
    dy: Rows<G>,
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
                    let value = dy[j].get() * slope(x[j].get().mul_add(a[j], b[j]));
                    sums[j] += value;
                    products[j] = value.mul_add(x[j].get() - mean[j], products[j]);
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
fn pre_activation<T: Float, E: Held<Float = T>, G: Held<Float = T>>(
    Rows { values: x, cols }: Rows<E>,
    Rows { values: dy, cols: channels }: Rows<G>,
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
                    let at = gradient_stripes::<NARROW, T, E, G>(x, dy, 0, of, dv, sums, silu_derivative);
                    gradient_stripes::<1, T, E, G>(x, dy, at, of, dv, sums, silu_derivative);
                } else {
                    let at = gradient_stripes::<NARROW, T, E, G>(x, dy, 0, of, dv, sums, |_| T::ONE);
                    gradient_stripes::<1, T, E, G>(x, dy, at, of, dv, sums, |_| T::ONE);
                }
            },
        );
    }
}

/// dx = a · dv + (x − mean) · slope + constant, or `+=`, `dv` being `dx` itself (None) or scratch.
fn input_gradient<T: Float, E: Held<Float = T>>(
    Rows { values: x, cols }: Rows<E>,
    of: &Channels<T>,
    (slope, constant): (&[T], &[T]),
    dv: Option<&[T]>,
    dx: &mut [E],
    add: bool,
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
                            *dx = E::of(a.mul_add(dx.get(), (x.get() - mean).mul_add(s, c)));
                        }
                    }
                    Some(dv) => {
                        let dv = &dv[row * cols..][..cols];
                        let sources = x.iter().zip(dv).zip(coefficients);
                        for (dx, ((&x, &dv), ((&a, &mean), (&s, &c)))) in dx.iter_mut().zip(sources) {
                            let value = a.mul_add(dv, (x.get() - mean).mul_add(s, c));
                            *dx = E::of(if add { dx.get() + value } else { value });
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
/// dv is kept where dx will be, or in scratch where dx is added to something or held in fewer bits.
pub(super) fn backward<E: Held>(call: &Call, dy: &Tensor, gradients: &Gradients) {
    backward_of::<E::Float, E>(call, dy.host(), gradients);
}

fn backward_of<T: Float, E: Held<Float = T>>(call: &Call, dy: &[E], gradients: &Gradients) {
    let view = View::<E>::new(call);
    let sizes = call.sizes;
    let (channels, width, groups) = (sizes.channels(), sizes.width(), sizes.norm.groups);
    let (mean, rstd) = (call.mean.host::<T>(), call.rstd.host::<T>());
    let sums = gradients.sums.host_mut::<T>().chunks_exact_mut(2 * channels);
    let ways = ways::<E>(&gradients.dx, sizes.samples).into_iter().zip(ways(&gradients.dskip, sizes.samples));
    let dropout = call.dropout.as_ref().map(|(mask, control)| (mask, Control::from_words(control.host())));
    let mut samples: Vec<_> = ways.map(|(x, skip)| [x, skip]).zip(sums).enumerate().collect();
    let (all, _) = work(sizes);
    parallel::for_slots(&mut samples, all, |(sample, (ways, sums))| {
        let (mean, rstd) = (&mean[*sample * groups..][..groups], &rstd[*sample * groups..][..groups]);
        let dy = &dy[*sample * sizes.pixels * channels..][..sizes.pixels * channels];
        let in_place = |way: &Way<E>| is_own::<E>() && way.to.is_some() && !way.add;
        let scratch: usize = (ways.iter().zip(sizes.sources))
            .map(|(way, cols)| if in_place(way) { 0 } else { sizes.pixels * cols })
            .sum();
        let masked = if dropout.is_some() { dy.len() } else { 0 };
        T::with_scratch(5 * channels + masked + scratch, |scratch| {
            let (masked, scratch) = scratch.split_at_mut(masked);
            if let Some((mask, control)) = &dropout {
                mask.apply_piece(control, *sample, 0, Some(dy), masked, false);
            }
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
            let in_place_of = [in_place(&ways[0]), in_place(&ways[1])];
            for (s, (x, cols, first)) in view.sample(*sample).enumerate() {
                let columns = first..first + cols;
                let of = Channels { a: &a[columns.clone()], b: &b[columns.clone()], mean: &center[columns.clone()] };
                let mut sums = Sums { plain: &mut plain[columns.clone()], with_x: &mut with_n[columns] };
                let dv = match &mut ways[s].to {
                    Some(dx) if in_place_of[s] => bytemuck::cast_slice_mut(dx),
                    _ => {
                        let (dv, rest) = std::mem::take(&mut scratch).split_at_mut(x.len());
                        scratch = rest;
                        kept[s].insert(dv)
                    }
                };
                let rows = Rows { values: x, cols };
                if dropout.is_some() {
                    let dy = Rows { values: &masked[first..], cols: channels };
                    pre_activation(rows, dy, &of, dv, &mut sums, sizes.norm.silu);
                } else {
                    let dy = Rows { values: &dy[first..], cols: channels };
                    pre_activation(rows, dy, &of, dv, &mut sums, sizes.norm.silu);
                }
            }
            let inverse = T::ONE / T::from_f64((sizes.pixels * width) as f64);
            coefficients(sizes, inverse, a, rstd, (plain, with_n), (slope, constant));
            for (s, (x, cols, first)) in view.sample(*sample).enumerate() {
                let columns = first..first + cols;
                let of = Channels { a: &a[columns.clone()], b: &b[columns.clone()], mean: &center[columns.clone()] };
                let Way { to: Some(dx), add } = &mut ways[s] else { continue };
                let coefficients = (&slope[columns.clone()], &constant[columns]);
                input_gradient(Rows { values: x, cols }, &of, coefficients, kept[s].as_deref(), dx, *add);
            }
        });
    });
    parameters::<T, E>(&view, gradients);
}

/// From the sums of dv and dv · (x − mean) by channel, which become those of dv · n: the slope and constant of dx by channel.
fn coefficients<T: Float>(
    sizes: Sizes,
    inverse: T,
    a: &[T],
    rstd: &[T],
    (plain, with_n): (&[T], &mut [T]),
    (slope, constant): (&mut [T], &mut [T]),
) {
    let width = sizes.width();
    for (group, sums) in with_n.chunks_exact_mut(width).enumerate() {
        sums.iter_mut().for_each(|s| *s *= rstd[group]);
    }
    for (group, &rstd) in rstd.iter().enumerate() {
        let (mut dn, mut dn_n) = (T::ZERO, T::ZERO);
        for c in group * width..(group + 1) * width {
            // a = rstd · k, and rstd is wanted in front of both means.
            dn = a[c].mul_add(plain[c], dn);
            dn_n = a[c].mul_add(with_n[c], dn_n);
        }
        constant[group * width..][..width].fill(-dn * inverse);
        slope[group * width..][..width].fill(-dn_n * inverse * rstd);
    }
}

/// The gradients that are sums over pixels: scale and shift by sample, weight and bias over the samples in order.
fn parameters<T: Float, E: Held<Float = T>>(view: &View<E>, gradients: &Gradients) {
    let channels = view.sizes.channels();
    let sums = gradients.sums.host::<T>().chunks_exact(2 * channels);
    if let Some(destination) = &gradients.dscale_shift {
        for (to, sums) in destination.host_mut::<E>().chunks_exact_mut(2 * channels).zip(sums.clone()) {
            let (dscale, dshift) = to.split_at_mut(channels);
            let put = |to: &mut E, value: T| {
                let before = if destination.mode == Accumulate::Write { T::ZERO } else { to.get() };
                *to = E::of(before + value);
            };
            for c in 0..channels {
                put(&mut dscale[c], view.weight[c].mul_add(sums[channels + c], view.bias[c] * sums[c]));
                put(&mut dshift[c], sums[c]);
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
                let scale = scale.map_or(T::ONE, |scale| T::ONE + scale[c].get());
                *to = scale.mul_add(sums[first + c], *to);
            }
        }
    }
}
