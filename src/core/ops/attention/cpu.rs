//! Attention on the CPU: one task per sample and key/value head, whose panels stay in the cache for the whole group.
//!
//! A task takes its group's query heads in order and their rows in blocks, so that the scores stay in the cache too. Blocks
//! are cut by the number of tokens alone. Columns are padded to a multiple of [`PAD`]: with zeros, and scores with -∞.

use half::bf16;
use pulp::NullaryFnOnce;

use super::{Call, Sizes};
use crate::ops::host::cached_product::{PAD, Product};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::product::{Factor, Unit, WithUnit};
use crate::ops::host::vector::fold;
use crate::ops::host::{Float, Held};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{DType, Tensor};

/// Rows of queries whose scores are held at a time, about.
const BLOCK: usize = 96;

/// Padded sizes of a task's scratch.
#[derive(Clone, Copy)]
struct Panels {
    tokens: usize,
    dim: usize,
    /// Rows of a block of queries.
    block: usize,
}

impl Panels {
    fn new(sizes: Sizes) -> Self {
        Self {
            tokens: sizes.tokens.next_multiple_of(PAD),
            dim: sizes.dim.next_multiple_of(PAD),
            block: sizes.tokens.div_ceil(sizes.tokens.div_ceil(BLOCK)),
        }
    }

    /// Elements of a block of scores, row by row in pairs; none where a step is an element.
    fn turned<T: Factor>(&self) -> usize {
        if T::PER_STEP == 1 { 0 } else { self.block.div_ceil(T::PER_STEP) * self.tokens }
    }

    /// Elements of the parts of a backward's scratch but for the last.
    fn backward<T: Factor>(&self, sizes: Sizes) -> [usize; 13] {
        let (columns, copies, block) = (sizes.dim * self.tokens, sizes.tokens * self.dim, self.block * self.dim);
        let lying = if T::PER_STEP == 1 { 0 } else { block };
        let scores = self.block * self.tokens;
        [
            columns,
            columns,
            copies,
            block,
            block,
            lying,
            lying,
            copies,
            copies,
            block,
            scores,
            scores,
            self.turned::<T>(),
        ]
    }
}

/// Whether AVX-512's transpose packs.
fn avx512<T: Factor, U: Unit<T>>() -> bool {
    U::REGISTERS == 32 && U::lanes() * size_of::<T::Step>() == 64
}

/// The steps of `rows` rows of `dim` elements of `from`, `stride` apart, as columns: `[step][width]`, zeros beyond the rows.
#[inline(always)]
fn columns<T: Factor>(
    to: &mut [T::Float],
    width: usize,
    from: &[T],
    stride: usize,
    (rows, dim): (usize, usize),
    avx512: bool,
) {
    assert!(from.len() >= (rows - 1) * stride + dim && to.len() >= dim.div_ceil(T::PER_STEP) * width && rows <= width);
    let to: &mut [T::Step] = bytemuck::cast_slice_mut(to);
    // SAFETY: both were just checked.
    unsafe { T::strip(to.as_mut_ptr(), width, from.as_ptr(), (rows, stride), (dim, 1), avx512) };
}

/// Rows of `dim` elements, `stride` apart, as the right side of a product whose sum runs over them: `[step][width]`. Where a step is an
/// element and `dim` needs no padding they are used as they lie, else copied into `copy`, with zeros beyond `dim`. Returns the first
/// step and the distance of steps.
#[inline(always)]
fn padded<T: Factor>(
    copy: &mut [T::Float],
    from: &[T],
    stride: usize,
    rows: usize,
    (dim, width): (usize, usize),
) -> (*const T::Step, usize) {
    if T::PER_STEP == 1 && dim == width {
        return (from.as_ptr().cast(), stride);
    }
    assert!(from.len() >= (rows - 1) * stride + dim && copy.len() >= rows.div_ceil(T::PER_STEP) * width);
    let to: &mut [T::Step] = bytemuck::cast_slice_mut(copy);
    // SAFETY: both were just checked.
    unsafe { T::strip(to.as_mut_ptr(), width, from.as_ptr(), (dim, 1), (rows, stride), false) };
    (to.as_ptr(), width)
}

/// Rows of `dim` elements, `stride` apart, as the left side of a product whose sum runs along them: as they lie, unless pairs would
/// reach beyond a row. Returns the first step and the distance of rows.
#[inline(always)]
fn lying<T: Factor>(
    copy: &mut [T::Float],
    from: &[T],
    stride: usize,
    rows: usize,
    dim: usize,
) -> (*const T::Step, usize) {
    if dim.is_multiple_of(T::PER_STEP) && stride.is_multiple_of(T::PER_STEP) {
        return (from.as_ptr().cast(), stride / T::PER_STEP);
    }
    let steps = dim.div_ceil(T::PER_STEP);
    let to: &mut [T::Step] = bytemuck::cast_slice_mut(copy);
    for (to, from) in to.chunks_exact_mut(steps).zip(from.chunks(stride)).take(rows) {
        assert!(from.len() >= dim);
        // SAFETY: a lane of `dim` elements, as was just checked, and of as many steps.
        unsafe { T::strip(to.as_mut_ptr(), 1, from.as_ptr(), (1, 1), (dim, 1), false) };
    }
    (to.as_ptr(), steps)
}

/// Rows of values as the left side of a product whose sum runs over the rows: as they lie where a step is an element, else two by two in
/// `copy`. Returns the first step and the number of steps.
#[inline(always)]
fn crossing<T: Factor>(copy: &mut [T::Float], rows: &[T::Float], pitch: usize) -> (*const T::Step, usize) {
    let count = rows.len() / pitch;
    if T::PER_STEP == 1 {
        return (rows.as_ptr().cast(), count);
    }
    let to: &mut [T::Step] = bytemuck::cast_slice_mut(copy);
    for (to, rows) in to.chunks_exact_mut(pitch).zip(rows.chunks(2 * pitch)) {
        let (first, second) = rows.split_at(pitch);
        T::pack_rows(to, first, Some(second).filter(|second| !second.is_empty()));
    }
    (to.as_ptr(), count.div_ceil(2))
}

/// Turns a padded row of scores into weights exp(scale · (score − max)); returns max · scale and their sum.
#[inline(always)]
fn softmax_row<T: Float>(row: &mut [T], scale: T) -> (T, T) {
    let mut most = [T::NEG_INFINITY; PAD];
    for chunk in row.as_chunks::<PAD>().0 {
        for l in 0..PAD {
            most[l] = chunk[l].larger(most[l]);
        }
    }
    let most = fold(most, T::larger) * scale;
    row.iter_mut().for_each(|x| *x = x.mul_add(scale, -most).exp());
    let mut sums = [T::ZERO; PAD];
    for chunk in row.as_chunks::<PAD>().0 {
        for l in 0..PAD {
            sums[l] += chunk[l];
        }
    }
    (most, fold(sums, |a, b| a + b))
}

/// Rounds a declared intermediate.
fn round_row<T: Float>(row: &mut [T]) {
    row.iter_mut().for_each(|x| *x = T::from_f64(bf16::from_f64(x.to_f64()).to_f64()));
}

/// Whether weights (and backward their gradients) are rounded, as bf16 kernels do before products on tensor cores.
fn rounds(call: &Call) -> bool {
    call.qkv.context().rounding() == Some(DType::BF16)
}

/// The first parts of `scratch`, of these lengths, and the rest.
fn split<T, const N: usize>(mut scratch: &mut [T], lengths: [usize; N]) -> ([&mut [T]; N], &mut [T]) {
    let parts = lengths.map(|length| {
        let (part, rest) = std::mem::take(&mut scratch).split_at_mut(length);
        scratch = rest;
        part
    });
    (parts, scratch)
}

/// `to[i]` is the dot product of row i of `a` and `b`: their first `dim` elements, rows `pitch` apart.
#[inline(always)]
fn dot_rows<E: Held>(to: &mut [E::Float], a: &[E], b: &[E], pitch: usize, dim: usize) {
    for (i, to) in to.iter_mut().enumerate() {
        let (a, b) = (&a[i * pitch..][..dim], &b[i * pitch..][..dim]);
        let mut sums = [E::Float::ZERO; PAD];
        for (a, b) in a.chunks(PAD).zip(b.chunks(PAD)) {
            for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                *sum = a.get().mul_add(b.get(), *sum);
            }
        }
        *to = fold(sums, |a, b| a + b);
    }
}

/// Scores become weights P = exp(scale · S − lse), in place, and the weights' gradients those of the scores, P · (dP − delta). Rows
/// have `pitch` elements, of which `tokens` are scores; P is 0 in the rest.
#[inline(always)]
fn weigh<T: Float>(
    (p, ds): (&mut [T], &mut [T]),
    pitch: usize,
    tokens: usize,
    (lse, delta): (&[T], &[T]),
    scale: T,
    round: bool,
) {
    let rows = p.chunks_exact_mut(pitch).zip(ds.chunks_exact_mut(pitch));
    for (((p, ds), &lse), &delta) in rows.zip(lse).zip(delta) {
        p[tokens..].fill(T::NEG_INFINITY);
        for (p, ds) in p.iter_mut().zip(&mut *ds) {
            *p = p.mul_add(scale, -lse).exp();
            *ds = *p * (*ds - delta);
        }
        if round {
            round_row(p);
            round_row(ds);
        }
    }
}

/// `c = a · b`, or `+=`: `(rows, columns, steps)`, the left side with its distances of rows and steps, the others with those of rows.
///
/// # Safety
/// As for [`Product::run`].
#[inline(always)]
unsafe fn multiply<E: Factor, U: Unit<E>>(
    unit: U,
    sizes: (usize, usize, usize),
    (a, a_row, a_step): (*const E::Step, usize, usize),
    (b, b_row): (*const E::Step, usize),
    (c, c_row): (*mut E::Float, usize),
    add: bool,
) {
    // SAFETY: as the caller promises.
    unsafe { Product::<E, U> { unit, sizes, a, a_row, a_step, b, b_row, c, c_row, add }.run() };
}

struct Forward<'a, E: Factor> {
    sizes: Sizes,
    qkv: &'a [E],
    out: Shared<E>,
    lse: Shared<E::Float>,
    sample: usize,
    group: usize,
    /// The query heads to do: of this group.
    heads: std::ops::Range<usize>,
    round: bool,
    scratch: &'a mut [E::Float],
}

impl<E: Factor> WithUnit<E> for Forward<'_, E> {
    fn run<U: Unit<E>>(self, unit: U) {
        unit.vectorize(On { unit, work: self });
    }
}

/// Work, compiled for a unit.
struct On<U, W> {
    unit: U,
    work: W,
}

impl<E: Factor, U: Unit<E>> NullaryFnOnce for On<U, Forward<'_, E>> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let unit = self.unit;
        let Forward { sizes, qkv, out, lse, sample, group, heads, round, scratch } = self.work;
        let (tokens, dim, width) = (sizes.tokens, sizes.dim, sizes.width());
        let panels = Panels::new(sizes);
        let scale = E::Float::ONE / E::Float::from_f64(dim as f64).sqrt();
        let (k_columns, scratch) = scratch.split_at_mut(dim * panels.tokens);
        let (v_copy, scratch) = scratch.split_at_mut(tokens * panels.dim);
        let (q_copy, scratch) = scratch.split_at_mut(panels.block * panels.dim);
        let (scores, result) = scratch.split_at_mut(panels.block * panels.tokens);
        let avx512 = avx512::<E, U>();
        columns(k_columns, panels.tokens, &qkv[sizes.k(sample, group)..], width, (tokens, dim), avx512);
        let (v, v_row) = padded(v_copy, &qkv[sizes.v(sample, group)..], width, tokens, (dim, panels.dim));
        for head in heads {
            let q = &qkv[sizes.q(sample, head)..];
            for first in (0..tokens).step_by(panels.block) {
                let rows = (tokens - first).min(panels.block);
                let (q, q_row) = lying(q_copy, &q[first * width..], width, rows, dim);
                // SAFETY: `rows` rows of q and all of k; the block of scores is scratch.
                unsafe {
                    multiply::<E, U>(
                        unit,
                        (rows, panels.tokens, dim.div_ceil(E::PER_STEP)),
                        (q, q_row, 1),
                        (k_columns.as_ptr().cast(), panels.tokens),
                        (scores.as_mut_ptr(), panels.tokens),
                        false,
                    );
                }
                // SAFETY: this task alone has this head's statistics.
                let lse = unsafe { lse.row((sample * sizes.heads + head) * tokens + first, rows) };
                for ((row, lse), sum) in scores.chunks_exact_mut(panels.tokens).zip(&mut *lse).zip(&mut *result) {
                    row[tokens..].fill(Float::NEG_INFINITY);
                    (*lse, *sum) = softmax_row(row, scale);
                    if round {
                        round_row(row);
                    }
                    E::pack_row(row);
                }
                let (sums, result) = result.split_at_mut(panels.block);
                // SAFETY: `rows` rows of scores and all of v; the result is scratch.
                unsafe {
                    multiply::<E, U>(
                        unit,
                        (rows, panels.dim, tokens.div_ceil(E::PER_STEP)),
                        (scores.as_ptr().cast(), panels.tokens, 1),
                        (v, v_row),
                        (result.as_mut_ptr(), panels.dim),
                        false,
                    );
                }
                for (i, (row, lse)) in result.chunks_exact(panels.dim).zip(&mut *lse).enumerate() {
                    let inverse = E::Float::ONE / sums[i];
                    *lse += sums[i].ln();
                    // SAFETY: this task alone has this head's columns.
                    let out = unsafe { out.row(sizes.out(sample, head) + (first + i) * sizes.heads * dim, dim) };
                    out.iter_mut().zip(row).for_each(|(out, &x)| *out = E::of(x * inverse));
                }
            }
        }
    }
}

pub(super) fn forward<E: Factor>(call: &Call) {
    let sizes = call.sizes;
    let qkv = call.qkv.host::<E>();
    let (out, lse) = (Shared::new(call.out.host_mut::<E>()), Shared::new(call.lse.host_mut::<E::Float>()));
    let round = rounds(call);
    let panels = Panels::new(sizes);
    let len = sizes.dim * panels.tokens
        + sizes.tokens * panels.dim
        + panels.block * panels.tokens
        + panels.block * (2 * panels.dim + 1);
    // Few samples: a task per query head, for the same bits.
    let size = sizes.heads / sizes.kv_heads;
    let parts = if sizes.batch * sizes.kv_heads < 2 * parallel::threads() { size } else { 1 };
    let tasks = sizes.batch * sizes.kv_heads * parts;
    parallel::for_each(tasks, sizes.products(), |task| {
        let (part, slice) = (task % parts, task / parts);
        let (sample, group) = (slice / sizes.kv_heads, slice % sizes.kv_heads);
        let first = group * size + part * (size / parts);
        E::Float::with_scratch(len, |scratch| {
            let heads = first..first + size / parts;
            E::with_unit(Forward { sizes, qkv, out, lse, sample, group, heads, round, scratch });
        });
    });
}

struct Backward<'a, E: Factor> {
    sizes: Sizes,
    qkv: &'a [E],
    out: &'a [E],
    lse: &'a [E::Float],
    dout: &'a [E],
    delta: Shared<E::Float>,
    dqkv: Shared<E>,
    add: bool,
    sample: usize,
    group: usize,
    round: bool,
    scratch: &'a mut [E::Float],
}

impl<E: Factor> Backward<'_, E> {
    /// Puts or adds `scale` times padded rows to `dqkv`, from element `start` on.
    #[inline(always)]
    fn store(&self, start: usize, rows: &[E::Float], width: usize, scale: E::Float) {
        for (i, row) in rows.chunks_exact(width).enumerate() {
            // SAFETY: the task alone has its group's columns of its sample's rows.
            let to = unsafe { self.dqkv.row(start + i * self.sizes.width(), self.sizes.dim) };
            if self.add {
                to.iter_mut().zip(row).for_each(|(to, &x)| *to = E::of(x.mul_add(scale, to.get())));
            } else {
                to.iter_mut().zip(row).for_each(|(to, &x)| *to = E::of(x * scale));
            }
        }
    }
}

impl<E: Factor> WithUnit<E> for Backward<'_, E> {
    fn run<U: Unit<E>>(self, unit: U) {
        unit.vectorize(On { unit, work: self });
    }
}

impl<E: Factor, U: Unit<E>> NullaryFnOnce for On<U, Backward<'_, E>> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (unit, mut work) = (self.unit, self.work);
        work.compute(unit);
    }
}

impl<E: Factor> Backward<'_, E> {
    #[inline(always)]
    fn compute<U: Unit<E>>(&mut self, unit: U) {
        let Sizes { tokens, dim, heads, .. } = self.sizes;
        let (sizes, sample, group, qkv, width) = (self.sizes, self.sample, self.group, self.qkv, self.sizes.width());
        let (panels, out_row) = (Panels::new(sizes), heads * dim);
        let scale = E::Float::ONE / E::Float::from_f64(dim as f64).sqrt();
        let (
            [k_columns, v_columns, k_copy, q_copy, dout_copy, q_lying, dout_lying, dk, dv, dq, p, ds, p_turned],
            ds_turned,
        ) = split(std::mem::take(&mut self.scratch), panels.backward::<E>(sizes));
        let (shape, avx512) = ((tokens, dim), avx512::<E, U>());
        columns(k_columns, panels.tokens, &qkv[sizes.k(sample, group)..], width, shape, avx512);
        columns(v_columns, panels.tokens, &qkv[sizes.v(sample, group)..], width, shape, avx512);
        let (k, k_row) = padded(k_copy, &qkv[sizes.k(sample, group)..], width, tokens, (dim, panels.dim));
        let size = heads / sizes.kv_heads;
        let mut add = false;
        for head in group * size..(group + 1) * size {
            for first in (0..tokens).step_by(panels.block) {
                let rows = (tokens - first).min(panels.block);
                let q_start = sizes.q(sample, head) + first * width;
                let q = &qkv[q_start..];
                let out_start = sizes.out(sample, head) + first * out_row;
                let (out, dout) = (&self.out[out_start..], &self.dout[out_start..]);
                let ((q_a, q_a_row), (dout_a, dout_a_row)) =
                    (lying(q_lying, q, width, rows, dim), lying(dout_lying, dout, out_row, rows, dim));
                // Scores, and the gradients of the weights.
                for (a, a_row, b, c) in
                    [(q_a, q_a_row, &*k_columns, p.as_mut_ptr()), (dout_a, dout_a_row, &*v_columns, ds.as_mut_ptr())]
                {
                    // SAFETY: `rows` rows of a and all of b; c is scratch.
                    unsafe {
                        multiply::<E, U>(
                            unit,
                            (rows, panels.tokens, dim.div_ceil(E::PER_STEP)),
                            (a, a_row, 1),
                            (b.as_ptr().cast(), panels.tokens),
                            (c, panels.tokens),
                            false,
                        );
                    }
                }
                let statistics = (sample * heads + head) * tokens + first;
                let lse = &self.lse[statistics..][..rows];
                // SAFETY: the task alone has this head's statistics.
                let delta = unsafe { self.delta.row(statistics, rows) };
                dot_rows(delta, out, dout, out_row, dim);
                weigh((p, ds), panels.tokens, tokens, (lse, delta), scale, self.round);
                let pitch = panels.tokens;
                let (p_a, steps) = crossing::<E>(p_turned, &p[..rows * pitch], pitch);
                let (ds_a, _) = crossing::<E>(ds_turned, &ds[..rows * pitch], pitch);
                if E::PER_STEP > 1 {
                    ds[..rows * pitch].chunks_exact_mut(pitch).for_each(E::pack_row);
                }
                let (q_b, q_b_row) = padded(q_copy, q, width, rows, (dim, panels.dim));
                let (dout_b, dout_b_row) = padded(dout_copy, dout, out_row, rows, (dim, panels.dim));
                let along = tokens.div_ceil(E::PER_STEP);
                let of_queries =
                    (dq.as_mut_ptr(), rows, along, (ds.as_ptr().cast::<E::Step>(), pitch, 1), (k, k_row), false);
                let of_keys = (dk.as_mut_ptr(), tokens, steps, (ds_a, 1, pitch), (q_b, q_b_row), add);
                let of_values = (dv.as_mut_ptr(), tokens, steps, (p_a, 1, pitch), (dout_b, dout_b_row), add);
                for (c, count, steps, (a, a_row, a_step), (b, b_row), add) in [of_queries, of_keys, of_values] {
                    // SAFETY: a is a block of scratch, by rows or across them, b has `steps` steps; c is scratch.
                    unsafe {
                        multiply::<E, U>(
                            unit,
                            (count, panels.dim, steps),
                            (a, a_row, a_step),
                            (b, b_row),
                            (c, panels.dim),
                            add,
                        );
                    }
                }
                self.store(q_start, &dq[..rows * panels.dim], panels.dim, scale);
                add = true;
            }
        }
        self.store(sizes.k(sample, group), dk, panels.dim, scale);
        self.store(sizes.v(sample, group), dv, panels.dim, Float::ONE);
    }
}

/// `delta` `[B, H, T]` is scratch: Σ out · dout by row.
pub(super) fn backward<E: Factor>(call: &Call, dout: &Tensor, delta: &Tensor, to: &Destination) {
    let sizes = call.sizes;
    let (qkv, out, dout) = (call.qkv.host::<E>(), call.out.host::<E>(), dout.host::<E>());
    let lse = call.lse.host::<E::Float>();
    let dqkv = Shared::new(to.host_mut::<E>());
    let delta = Shared::new(delta.host_mut::<E::Float>());
    let (add, round) = (to.mode == Accumulate::Add, rounds(call));
    let panels = Panels::new(sizes);
    let last = panels.turned::<E>();
    let len = panels.backward::<E>(sizes).iter().sum::<usize>() + last;
    parallel::for_each(sizes.batch * sizes.kv_heads, sizes.products(), |task| {
        let (sample, group) = (task / sizes.kv_heads, task % sizes.kv_heads);
        E::Float::with_scratch(len, |scratch| {
            E::with_unit(Backward { sizes, qkv, out, lse, dout, delta, dqkv, add, sample, group, round, scratch });
        });
    });
}
