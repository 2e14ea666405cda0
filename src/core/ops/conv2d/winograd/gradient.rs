//! The weight gradient by Winograd's tiles: N² products over tiles of MxM where the definition has 9 M².
//!
//! With the [forward](super)'s matrices, dg = Gᵀ [Σ over tiles of (A dy Aᵀ) ⊙ (Bᵀ d B)] G: at each of the N² positions
//! a matrix product of the transformed dy and x̂ over all tiles of the batch.
//!
//! A row of positions needs two to four of a window's rows, so a task takes such a row of positions and shares no arithmetic
//! with the others. It goes through the tiles by chunks that stay in the cache. An element is the sum over chunks, in order,
//! of one chain each over the chunk's tiles, then the sums that Gᵀ orders: fixed by the shapes alone.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::axis::{OTHERS, Terms, across, gather, tile_terms, widen, window, window_terms};
use super::{BLOCK, Images, Sizes, Tiles};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, Held, held};
use crate::tape::Accumulate;

/// Tiles in a chunk; enough that loading and storing the sums costs little.
const CHUNK_TILES: usize = 128;

/// dw `[Cout, 3, 3, Cin]` from dy `[B, H, W, Cout]` and x `[B, h, w, Cin]`.
pub(in super::super) fn weight_gradient<E: Held<Float = f32>>(
    sizes: &Sizes,
    side: usize,
    dw: &mut [f32],
    (dy, x): (&[E], &[E]),
    mode: Accumulate,
) {
    assert_eq!(dw.len(), sizes.cout * sizes.depth());
    assert_eq!(dy.len(), sizes.batch * sizes.out_pixels() * sizes.cout);
    assert_eq!(x.len(), sizes.batch * sizes.source[0] * sizes.source[1] * sizes.cin);
    assert!(sizes.cin.is_multiple_of(BLOCK) && sizes.cout.is_multiple_of(BLOCK));
    match side {
        4 => f32::dispatch(Gradient::<_, 4, 6> { sizes, dw, dy, x, mode }),
        _ => f32::dispatch(Gradient::<_, 2, 4> { sizes, dw, dy, x, mode }),
    }
}

struct Gradient<'a, E, const M: usize, const N: usize> {
    sizes: &'a Sizes,
    dw: &'a mut [f32],
    dy: &'a [E],
    x: &'a [E],
    mode: Accumulate,
}

/// Output channels of a register tile: accumulators, two vectors of x̂ and a broadcast fit the registers.
const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
}

/// Into how many groups the output channels go, so that `rows` rows of positions by groups are shared evenly by threads, but not into
/// many: each transforms the images anew.
fn groups(rows: usize, threads: usize, blocks: usize) -> usize {
    let is_even = |&groups: &usize| (rows * groups).is_multiple_of(threads);
    (1..=threads).find(is_even).unwrap_or(threads).min(threads.div_ceil(2)).min(blocks)
}

impl<E: Held<Float = f32>, const M: usize, const N: usize> WithSimd for Gradient<'_, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(N == M + 2 && (M == 2 || M == 4)) };
        let Self { sizes, dw, dy, x, mode } = self;
        let Sizes { batch, source, size, cin, cout, .. } = *sizes;
        let panel = 2 * S::F32_LANES;
        let padded = cin.next_multiple_of(panel);
        let tiles = Tiles::<M>::new(size);
        let total = batch * tiles.per_image();
        let chunk = CHUNK_TILES.min(total);
        // A task: a row of positions and some blocks of output channels.
        let blocks = cout / BLOCK;
        let groups = groups(N, parallel::threads(), blocks);
        f32::with_scratch(N * N * cout * padded, |sums| {
            let shared = Shared::new(sums);
            let work = |task: usize| {
                let (row, group) = (task % N, task / N);
                let blocks = (group * blocks / groups, (group + 1) * blocks / groups);
                let outputs = (blocks.1 - blocks.0) * BLOCK;
                f32::with_scratch(N * chunk * (padded + outputs) + cin.max(cout), |scratch| {
                    let (images, rest) = scratch.split_at_mut(N * chunk * padded);
                    let (gradients, zeros) = rest.split_at_mut(N * chunk * outputs);
                    zeros.fill(0.0);
                    // Here, not further out: only what is inlined into this call is compiled for `S`.
                    simd.vectorize(Row::<S, E, M, N> {
                        simd,
                        cout,
                        tiles,
                        row,
                        blocks,
                        chunk,
                        total,
                        padded,
                        x: Images { values: x, source, size, channels: cin },
                        dy: Images { values: dy, source: size, size, channels: cout },
                        // As many of E, or more.
                        zeros: bytemuck::cast_slice(zeros),
                        images: images.as_mut_ptr(),
                        gradients: gradients.as_mut_ptr(),
                        to: shared.get(),
                    });
                });
            };
            parallel::for_each(N * groups, parallel::GRAIN, work);
            let sums = &*sums;
            parallel::for_rows(dw, 9 * cin, |o, dw| {
                let finish = Finish::<S, N> { simd, sums: &sums[o * padded..], position: cout * padded, cin, dw, mode };
                simd.vectorize(finish);
            });
        });
    }
}

/// A row of positions, over all tiles.
struct Row<'a, S, E, const M: usize, const N: usize> {
    simd: S,
    cout: usize,
    tiles: Tiles<M>,
    row: usize,
    /// Blocks of output channels.
    blocks: (usize, usize),
    chunk: usize,
    /// Tiles of the batch.
    total: usize,
    /// Input channels in whole panels.
    padded: usize,
    x: Images<'a, E>,
    dy: Images<'a, E>,
    /// The pixel that is read outside images: its channels.
    zeros: &'a [E],
    /// `[position][panel][tile][panel's channels]`.
    images: *mut f32,
    /// `[position][block][tile][block's channels]`.
    gradients: *mut f32,
    /// [position][output channel][input channel].
    to: *mut f32,
}

impl<S: Simd, E: Held<Float = f32>, const M: usize, const N: usize> NullaryFnOnce for Row<'_, S, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, cout, row, blocks, chunk, total, padded, .. } = self;
        let panel = 2 * S::F32_LANES;
        let outputs = (blocks.1 - blocks.0) * BLOCK;
        for first in (0..total).step_by(chunk) {
            let count = chunk.min(total - first);
            for tile in 0..count {
                // SAFETY: the tile's place in the chunk.
                unsafe {
                    self.transform_image(first + tile, self.images.add(tile * panel));
                    self.transform_gradient(first + tile, self.gradients.add(tile * BLOCK));
                }
            }
            for column in 0..N {
                for j in 0..padded / panel {
                    for o in (0..outputs).step_by(tile_rows::<S>()) {
                        let output = blocks.0 * BLOCK + o;
                        // SAFETY: the chunk's values of this panel and of these output channels, and the sums' place, which this task
                        // alone writes.
                        unsafe {
                            let a = column * chunk * outputs + o / BLOCK * BLOCK * chunk + o % BLOCK;
                            let b = (column * padded + j * panel) * chunk;
                            let position = N * row + column;
                            self::sum::<S>(
                                simd,
                                count,
                                self.gradients.add(a),
                                self.images.add(b),
                                self.to.add((position * cout + output) * padded + j * panel),
                                padded,
                                first > 0,
                            );
                        }
                    }
                }
            }
        }
    }
}

impl<S: Simd, E: Held<Float = f32>, const M: usize, const N: usize> Row<'_, S, E, M, N> {
    /// This row of Bᵀ d B of a tile.
    ///
    /// # Safety
    /// `to` is the tile's place in the first panel of the first position.
    #[inline(always)]
    unsafe fn transform_image(&self, tile: usize, to: *mut f32) {
        let Self { simd, tiles, chunk, padded, x, .. } = *self;
        let (number, top, left) = tiles.place(tile);
        let terms = window_terms::<M>(self.row);
        // The window begins one row and one column before the tile.
        let rows = Rows::<E, N>::of(&terms, x, number, [top, left], self.zeros.as_ptr());
        let panel = 2 * S::F32_LANES;
        for channel in (0..padded).step_by(S::F32_LANES) {
            // SAFETY: every pointer is to `channels` elements: of a pixel of an image of the batch, or zeros. The rest as the caller
            // promises.
            unsafe {
                let zero = [simd.splat_f32s(0.0); N];
                let d = if channel < x.channels { rows.sum(simd, &terms, channel) } else { zero };
                let place = channel / panel * panel * chunk + channel % panel;
                for (column, &value) in window(simd, d).iter().enumerate() {
                    held::store::<f32, S>(to.add(column * chunk * padded + place), value);
                }
            }
        }
    }

    /// This row of A dy Aᵀ of a tile.
    ///
    /// # Safety
    /// `to` is the tile's place in the first block of the first position.
    #[inline(always)]
    unsafe fn transform_gradient(&self, tile: usize, to: *mut f32) {
        let Self { simd, tiles, chunk, blocks, dy, .. } = *self;
        let (number, top, left) = tiles.place(tile);
        let terms = tile_terms::<M>(self.row);
        // The image begins one row and one column after what `pixel` counts from.
        let rows = Rows::<E, M>::of(&terms, dy, number, [top + 1, left + 1], self.zeros.as_ptr());
        let outputs = (blocks.1 - blocks.0) * BLOCK;
        for channel in (0..outputs).step_by(S::F32_LANES) {
            // SAFETY: every pointer is to `cout` elements: of a pixel of an image of the batch, or zeros. The rest as the caller
            // promises.
            unsafe {
                let values: [_; N] = widen(simd, rows.sum(simd, &terms, blocks.0 * BLOCK + channel));
                let place = channel / BLOCK * BLOCK * chunk + channel % BLOCK;
                for (column, &value) in values.iter().enumerate() {
                    held::store::<f32, S>(to.add(column * chunk * outputs + place), value);
                }
            }
        }
    }
}

/// The pixels, L a row, of the rows that make up a row of positions.
struct Rows<E, const L: usize> {
    plain: [*const E; L],
    others: [[*const E; L]; OTHERS],
}

impl<E: Held<Float = f32>, const L: usize> Rows<E, L> {
    #[inline(always)]
    fn of(terms: &Terms, images: Images<E>, number: usize, [top, left]: [usize; 2], zeros: *const E) -> Self {
        let mut rows = Self { plain: [zeros; L], others: [[zeros; L]; OTHERS] };
        for column in 0..L {
            if let Some(row) = terms.plain {
                rows.plain[column] = images.pixel(number, top + row, left + column, zeros);
            }
            for (&(row, _), to) in terms.others.iter().zip(&mut rows.others) {
                to[column] = images.pixel(number, top + row, left + column, zeros);
            }
        }
        rows
    }

    /// The sum of the rows, times their factors, at a vector of channels.
    ///
    /// # Safety
    /// Those channels are readable.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, simd: S, terms: &Terms, channel: usize) -> [S::f32s; L] {
        let mut sums = [simd.splat_f32s(0.0); L];
        // SAFETY: as the caller promises.
        unsafe {
            for (sum, pixel) in sums.iter_mut().zip(&self.plain) {
                *sum = held::load::<E, S>(pixel.add(channel));
            }
            for (&(_, factor), row) in terms.others.iter().zip(&self.others) {
                let factor = simd.splat_f32s(factor);
                for (sum, pixel) in sums.iter_mut().zip(row) {
                    *sum = simd.mul_add_f32s(factor, held::load::<E, S>(pixel.add(channel)), *sum);
                }
            }
        }
        sums
    }
}

/// A few output channels by two vectors of input channels, over a chunk's tiles.
///
/// # Safety
/// `a` holds `[tile][block]`, of which the first channels are taken, `b` `[tile][panel]`, and the rows at `to` may be written, and
/// read with `add`.
#[inline(always)]
unsafe fn sum<S: Simd>(simd: S, tiles: usize, a: *const f32, b: *const f32, to: *mut f32, to_row: usize, add: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        match tile_rows::<S>() {
            8 => sum_rows::<S, 8>(simd, tiles, a, b, to, to_row, add),
            _ => sum_rows::<S, 4>(simd, tiles, a, b, to, to_row, add),
        }
    }
}

#[inline(always)]
unsafe fn sum_rows<S: Simd, const P: usize>(
    simd: S,
    tiles: usize,
    mut a: *const f32,
    mut b: *const f32,
    to: *mut f32,
    to_row: usize,
    add: bool,
) {
    let lanes = S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); 2]; P];
    // SAFETY: as the caller of `sum` promises.
    unsafe {
        for _ in 0..tiles {
            let b0 = b.cast::<S::f32s>().read_unaligned();
            let b1 = b.add(lanes).cast::<S::f32s>().read_unaligned();
            for (p, [s0, s1]) in sums.iter_mut().enumerate() {
                let d = simd.splat_f32s(*a.add(p));
                *s0 = simd.mul_add_f32s(d, b0, *s0);
                *s1 = simd.mul_add_f32s(d, b1, *s1);
            }
            a = a.add(BLOCK);
            b = b.add(2 * lanes);
        }
        for (p, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let to = to.add(p * to_row + v * lanes).cast::<S::f32s>();
                let sum = if add { simd.add_f32s(to.read_unaligned(), sum) } else { sum };
                to.write_unaligned(sum);
            }
        }
    }
}

/// Gᵀ u G for one output channel.
struct Finish<'a, S, const N: usize> {
    simd: S,
    /// The channel's sums at the first position.
    sums: &'a [f32],
    /// Elements between positions.
    position: usize,
    cin: usize,
    dw: &'a mut [f32],
    mode: Accumulate,
}

impl<S: Simd, const N: usize> NullaryFnOnce for Finish<'_, S, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, sums, position, cin, dw, mode } = self;
        let lanes = S::F32_LANES;
        assert!(sums.len() >= (N * N - 1) * position + cin && dw.len() == 9 * cin && cin.is_multiple_of(lanes));
        for channel in (0..cin).step_by(lanes) {
            // SAFETY: within both slices, as was just checked.
            unsafe {
                let mut columns = [[simd.splat_f32s(0.0); 3]; N];
                for (c, column) in columns.iter_mut().enumerate() {
                    let mut u = [simd.splat_f32s(0.0); N];
                    for (r, u) in u.iter_mut().enumerate() {
                        *u = held::load::<f32, S>(sums.as_ptr().add((N * r + c) * position + channel));
                    }
                    *column = gather(simd, u);
                }
                for ky in 0..3 {
                    let taps = gather(simd, across(&columns, ky));
                    for (kx, &tap) in taps.iter().enumerate() {
                        let to = dw.as_mut_ptr().add((3 * ky + kx) * cin + channel);
                        let tap = match mode {
                            Accumulate::Write => tap,
                            Accumulate::Add => simd.add_f32s(held::load::<f32, S>(to), tap),
                        };
                        held::store::<f32, S>(to, tap);
                    }
                }
            }
        }
    }
}
