//! Linear attention on the CPU: one task per sample and some neighbouring heads.
//!
//! Tokens are taken in blocks of [`BLOCK`], and the sums over them block after block, so that no bit depends on batch or threads.
//! Columns are padded with zeros to a multiple of [`PAD`].

use pulp::{Simd, WithSimd};

use super::{Call, Sizes};
use crate::ops::host::cached_product::{PAD, Product};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::product::Vectors;
use crate::ops::host::{Float, Held, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Tokens that are worked on at a time.
const BLOCK: usize = 32;
/// Columns of the heads that a task takes, about: runs of 1 KiB in `f32`.
const COLUMNS: usize = 256;
/// Elements of keys and values that stay in the second-level cache until the backward comes to them again, beside what it reads
/// and writes in between.
const KEPT: usize = 1 << 17;

/// 2⁻⁶⁰, which φ does not fall below: the product of two such is a normal number.
const LEAST: f64 = 8.673_617_379_884_035e-19;

/// φ(x) = elu(x) + 1.
#[inline(always)]
fn phi<T: Float>(x: T) -> T {
    let below = x.exp().larger(T::from_f64(LEAST));
    if x > T::ZERO { x + T::ONE } else { below }
}

/// φ′ from φ: φ below 0 and 1 above, and 0 where φ is held.
#[inline(always)]
fn slope<T: Float>(phi: T) -> T {
    let slope = if phi < T::ONE { phi } else { T::ONE };
    if phi > T::from_f64(LEAST) { slope } else { T::ZERO }
}

/// Σ a\[i\] b\[i\] over padded rows: lane by lane, then the lanes in a fixed order.
#[inline(always)]
fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; PAD];
    for (a, b) in a.as_chunks::<PAD>().0.iter().zip(b.as_chunks::<PAD>().0) {
        for l in 0..PAD {
            lanes[l] = a[l].mul_add(b[l], lanes[l]);
        }
    }
    let mut width = PAD / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// sums += Σ rows, row after row.
#[inline(always)]
fn add_rows<T: Float>(sums: &mut [T], rows: &[T]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
    }
}

/// Neighbouring heads of a sample, and the padded row.
///
/// A head's rows lie far apart. Those of its neighbours lie between: together they are runs that the memory is good at.
#[derive(Clone, Copy)]
struct Task {
    sizes: Sizes,
    /// How many heads.
    heads: usize,
    padded: usize,
    /// Where row 0 of the first head's queries, keys and values begins, and that of its output.
    q: usize,
    k: usize,
    v: usize,
    out: usize,
}

/// A block of the tokens: the first one, and how many.
type Block = (usize, usize);

impl Task {
    fn new(sizes: Sizes, group: usize, task: usize) -> Self {
        let groups = sizes.heads.div_ceil(group);
        let (sample, head) = (task / groups, task % groups * group);
        let (q, step) = (sizes.q(sample, head), sizes.heads * sizes.dim);
        Self {
            sizes,
            heads: (sizes.heads - head).min(group),
            padded: sizes.dim.next_multiple_of(PAD),
            q,
            k: q + step,
            v: q + 2 * step,
            out: sizes.out(sample, head),
        }
    }

    /// From row to row of the output.
    fn out_row(self) -> usize {
        self.sizes.heads * self.sizes.dim
    }

    fn blocks(self) -> impl Iterator<Item = Block> {
        let tokens = self.sizes.tokens;
        (0..tokens).step_by(BLOCK).map(move |first| (first, (tokens - first).min(BLOCK)))
    }

    /// A block's rows of all heads, one head after the other, through `f`; `stride` apart, row 0 at `start`.
    #[inline(always)]
    fn load<E: Held>(
        self,
        to: &mut [E::Float],
        from: &[E],
        (start, stride): (usize, usize),
        block: Block,
        f: impl Fn(E::Float) -> E::Float,
    ) {
        let (dim, padded) = (self.sizes.dim, self.padded);
        for row in 0..block.1 {
            let at = start + (block.0 + row) * stride;
            vector::prefetch(from, at + BLOCK * stride, self.heads * dim);
            let from = &from[at..][..self.heads * dim];
            for (head, from) in from.chunks_exact(dim).enumerate() {
                let to = &mut to[(head * BLOCK + row) * padded..][..padded];
                to[..dim].iter_mut().zip(from).for_each(|(to, &x)| *to = f(x.get()));
                to[dim..].fill(E::Float::ZERO);
            }
        }
    }

    /// The counterpart of [`Task::load`]: puts or adds.
    #[inline(always)]
    fn store<E: Held>(
        self,
        to: Shared<E>,
        from: &[E::Float],
        (start, stride): (usize, usize),
        block: Block,
        add: bool,
    ) {
        let (dim, padded) = (self.sizes.dim, self.padded);
        for row in 0..block.1 {
            // SAFETY: this task alone has its heads' columns of its sample's rows.
            let to = unsafe { to.row(start + (block.0 + row) * stride, self.heads * dim) };
            for (head, to) in to.chunks_exact_mut(dim).enumerate() {
                let from = &from[(head * BLOCK + row) * padded..][..dim];
                if add {
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = E::of(to.get() + x));
                } else {
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = E::of(x));
                }
            }
        }
    }
}

/// Heads that a task takes: about `columns` of their columns, fewer where threads would be idle. No bit depends on it.
fn group(sizes: Sizes, columns: usize) -> usize {
    let heads = (columns / sizes.dim).clamp(1, sizes.heads);
    heads.min((sizes.batch * sizes.heads / (2 * parallel::threads())).max(1))
}

/// The left matrix of a product: `rows` of `depth` elements, or transposed, its rows being the steps of the sum.
#[derive(Clone, Copy)]
struct Left<'a, T> {
    values: &'a [T],
    transposed: bool,
    rows: usize,
    depth: usize,
}

impl<'a, T> Left<'a, T> {
    fn rows(values: &'a [T], rows: usize, depth: usize) -> Self {
        Self { values, transposed: false, rows, depth }
    }

    fn transposed(values: &'a [T], rows: usize, depth: usize) -> Self {
        Self { values, transposed: true, rows, depth }
    }
}

/// `c (+)= a b` of padded rows.
#[inline(always)]
fn product<T: Float, S: Simd>(
    simd: S,
    padded: usize,
    Left { values: a, transposed, rows, depth }: Left<T>,
    b: &[T],
    c: &mut [T],
    add: bool,
) {
    let a_rows = if transposed { depth } else { rows };
    assert!(a.len() >= a_rows * padded && b.len() >= depth * padded && c.len() >= rows * padded);
    assert!(padded >= if transposed { rows } else { depth });
    let (a_row, a_step) = if transposed { (1, padded) } else { (padded, 1) };
    // SAFETY: the extents just said; `c` is borrowed alone.
    unsafe {
        Product::<T, _> {
            unit: Vectors(simd),
            sizes: (rows, padded, depth),
            a: a.as_ptr(),
            a_row,
            a_step,
            b: b.as_ptr(),
            b_row: padded,
            c: c.as_mut_ptr(),
            c_row: padded,
            add,
        }
        .run();
    }
}

struct Forward<'a, E: Held> {
    task: Task,
    qkv: &'a [E],
    out: Shared<E>,
    scratch: &'a mut [E::Float],
}

impl<E: Held> WithSimd for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, qkv, out, scratch } = self;
        let Task { sizes, heads, padded, .. } = task;
        let (dim, width, size) = (sizes.dim, sizes.width(), BLOCK * padded);
        let (states, scratch) = scratch.split_at_mut(heads * padded * padded);
        let (sums, scratch) = scratch.split_at_mut(heads * padded);
        let (features, values) = scratch.split_at_mut(heads * size);
        sums.fill(Float::ZERO);
        for block in task.blocks() {
            task.load(features, qkv, (task.k, width), block, phi);
            task.load(values, qkv, (task.v, width), block, |x| x);
            let of_heads = features.chunks_exact(size).zip(values.chunks_exact(size));
            let to_heads = states.chunks_exact_mut(padded * padded).zip(sums.chunks_exact_mut(padded));
            for ((features, values), (state, z)) in of_heads.zip(to_heads).take(heads) {
                add_rows(z, &features[..block.1 * padded]);
                product(simd, padded, Left::transposed(features, dim, block.1), values, state, block.0 > 0);
            }
        }
        for block in task.blocks() {
            task.load(features, qkv, (task.q, width), block, phi);
            let of_heads = features.chunks_exact(size).zip(values.chunks_exact_mut(size));
            let states = states.chunks_exact(padded * padded).zip(sums.chunks_exact(padded));
            for ((features, result), (state, z)) in of_heads.zip(states).take(heads) {
                product(simd, padded, Left::rows(features, block.1, dim), state, result, false);
                let rows = result.chunks_exact_mut(padded).zip(features.chunks_exact(padded));
                for (row, features) in rows.take(block.1) {
                    let inverse = E::Float::ONE / dot(features, z);
                    row.iter_mut().for_each(|x| *x *= inverse);
                }
            }
            task.store(out, values, (task.out, task.out_row()), block, false);
        }
    }
}

pub(super) fn forward<E: Held>(call: &Call, out: &Tensor) {
    let sizes = call.sizes;
    let (qkv, out) = (call.qkv.host::<E>(), Shared::new(out.host_mut::<E>()));
    let (group, padded) = (group(sizes, COLUMNS), sizes.dim.next_multiple_of(PAD));
    let len = group * padded * (padded + 1 + 2 * BLOCK);
    parallel::for_each(sizes.batch * sizes.heads.div_ceil(group), sizes.products(), |task| {
        E::Float::with_scratch(len, |scratch| {
            E::Float::dispatch(Forward { task: Task::new(sizes, group, task), qkv, out, scratch });
        });
    });
}

struct Backward<'a, E: Held> {
    task: Task,
    qkv: &'a [E],
    dout: &'a [E],
    dqkv: Shared<E>,
    add: bool,
    scratch: &'a mut [E::Float],
}

impl<E: Held> WithSimd for Backward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, qkv, dout, dqkv, add, scratch } = self;
        let Task { sizes, heads, padded, .. } = task;
        let (dim, width, size, square) = (sizes.dim, sizes.width(), BLOCK * padded, padded * padded);
        // Per head: S and after it dS, transposed (their rows are columns of values), and dS; z and dz; and a block's φ(q), then
        // φ(q) / n, or φ(k), its values or gradients, and a result.
        let (transposed, scratch) = scratch.split_at_mut(heads * square);
        let (states, scratch) = scratch.split_at_mut(heads * square);
        let (z, scratch) = scratch.split_at_mut(heads * padded);
        let (dz, scratch) = scratch.split_at_mut(heads * padded);
        let (features, scratch) = scratch.split_at_mut(heads * size);
        let (values, results) = scratch.split_at_mut(heads * size);
        z.fill(Float::ZERO);
        dz.fill(Float::ZERO);
        for block in task.blocks() {
            task.load(features, qkv, (task.k, width), block, phi);
            task.load(values, qkv, (task.v, width), block, |x| x);
            for head in 0..heads {
                let (features, values) = (&features[head * size..][..size], &values[head * size..]);
                add_rows(&mut z[head * padded..][..padded], &features[..block.1 * padded]);
                let to = &mut transposed[head * square..];
                product(simd, padded, Left::transposed(values, dim, block.1), features, to, block.0 > 0);
            }
        }
        for block in task.blocks() {
            task.load(features, qkv, (task.q, width), block, phi);
            task.load(values, dout, (task.out, task.out_row()), block, |x| x);
            for head in 0..heads {
                let (features, dout) = (&mut features[head * size..][..size], &values[head * size..][..size]);
                let (z, dz) = (&z[head * padded..][..padded], &mut dz[head * padded..][..padded]);
                let result = &mut results[head * size..][..size];
                product(simd, padded, Left::rows(dout, block.1, dim), &transposed[head * square..], result, false);
                let rows = features.chunks_exact_mut(padded).zip(result.chunks_exact_mut(padded));
                for (features, u) in rows.take(block.1) {
                    let inverse = E::Float::ONE / dot(features, z);
                    let minus_delta = -(dot(features, u) * inverse);
                    for i in 0..padded {
                        let f = features[i];
                        u[i] = minus_delta.mul_add(z[i], u[i]) * inverse * slope(f);
                        features[i] = f * inverse;
                        dz[i] = features[i].mul_add(minus_delta, dz[i]);
                    }
                }
                let to = &mut states[head * square..];
                product(simd, padded, Left::transposed(features, dim, block.1), dout, to, block.0 > 0);
            }
            task.store(dqkv, results, (task.q, width), block, add);
        }
        for (state, transposed) in states.chunks_exact(square).zip(transposed.chunks_exact_mut(square)) {
            for (i, row) in state.chunks_exact(padded).take(dim).enumerate() {
                (0..dim).for_each(|j| transposed[j * padded + i] = row[j]);
            }
        }
        for block in task.blocks() {
            task.load(features, qkv, (task.k, width), block, phi);
            task.load(values, qkv, (task.v, width), block, |x| x);
            for head in 0..heads {
                let (features, values) = (&features[head * size..][..size], &mut values[head * size..][..size]);
                let (dz, result) = (&dz[head * padded..][..padded], &mut results[head * size..][..size]);
                product(simd, padded, Left::rows(values, block.1, dim), &transposed[head * square..], result, false);
                let rows = result.chunks_exact_mut(padded).zip(features.chunks_exact(padded));
                for (row, features) in rows.take(block.1) {
                    for ((x, &dz), &g) in row.iter_mut().zip(dz).zip(features) {
                        *x = (*x + dz) * slope(g);
                    }
                }
                // The values have been used: dv takes their place.
                product(simd, padded, Left::rows(features, block.1, dim), &states[head * square..], values, false);
            }
            task.store(dqkv, results, (task.k, width), block, add);
            task.store(dqkv, values, (task.v, width), block, add);
        }
    }
}

pub(super) fn backward<E: Held>(call: &Call, dout: &Tensor, to: &Destination) {
    let sizes = call.sizes;
    let (qkv, dout) = (call.qkv.host::<E>(), dout.host::<E>());
    let dqkv = Shared::new(to.host_mut::<E>());
    let add = to.mode == Accumulate::Add;
    let columns = COLUMNS.min(KEPT / (2 * sizes.tokens));
    let (group, padded) = (group(sizes, columns), sizes.dim.next_multiple_of(PAD));
    let len = group * padded * (2 * padded + 2 + 3 * BLOCK);
    parallel::for_each(sizes.batch * sizes.heads.div_ceil(group), 2 * sizes.products(), |task| {
        E::Float::with_scratch(len, |scratch| {
            E::Float::dispatch(Backward { task: Task::new(sizes, group, task), qkv, dout, dqkv, add, scratch });
        });
    });
}
