//! The weight gradient by Winograd's tiles: 16 products over tiles of 2x2 pixels where the definition has 36.
//!
//! With the [forward](super::winograd)'s matrices, dg = Gᵀ [Σ over tiles of (A dy Aᵀ) ⊙ (Bᵀ d B)] G: at each of the 16 positions
//! a matrix product of the transformed dy and x̂ over all tiles of the batch.
//!
//! A row of four positions needs two of a window's four rows, so a task takes such a row of positions and shares no arithmetic
//! with the others. It goes through the tiles by chunks that stay in the cache. An element is the sum over chunks, in order,
//! of one chain each over the chunk's tiles, then the sums that Gᵀ orders: fixed by the shapes alone.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::Sizes;
use super::winograd::{BLOCK, POSITIONS, Tiles, across, load, store, window};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, Held, held};
use crate::tape::Accumulate;

/// Tiles in a chunk; enough that loading and storing the sums costs little.
const CHUNK_TILES: usize = 128;

/// By row of positions, the rows of a window that it takes: the first, and the second with its sign.
const WINDOW_ROWS: [(usize, usize, f32); 4] = [(0, 2, -1.0), (1, 2, 1.0), (2, 1, -1.0), (1, 3, -1.0)];

/// Those of a tile of dy; 2 is a row of zeros.
const TILE_ROWS: [(usize, usize, f32); 4] = [(0, 2, 1.0), (0, 1, 1.0), (0, 1, -1.0), (2, 1, -1.0)];

/// dw `[Cout, 3, 3, Cin]` from dy `[B, H, W, Cout]` and x `[B, h, w, Cin]`.
pub(super) fn weight_gradient<E: Held<Float = f32>>(
    sizes: &Sizes,
    dw: &mut [f32],
    dy: &[E],
    x: &[E],
    mode: Accumulate,
) {
    assert_eq!(dw.len(), sizes.cout * sizes.depth());
    assert_eq!(dy.len(), sizes.batch * sizes.out_pixels() * sizes.cout);
    assert_eq!(x.len(), sizes.batch * sizes.source[0] * sizes.source[1] * sizes.cin);
    assert!(sizes.cin.is_multiple_of(BLOCK) && sizes.cout.is_multiple_of(BLOCK));
    f32::dispatch(Gradient { sizes, dw, dy, x, mode });
}

struct Gradient<'a, E> {
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

impl<E: Held<Float = f32>> WithSimd for Gradient<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sizes, dw, dy, x, mode } = self;
        let Sizes { batch, cin, cout, .. } = *sizes;
        let panel = 2 * S::F32_LANES;
        let padded = cin.next_multiple_of(panel);
        let tiles = Tiles::new(sizes.size);
        let total = batch * tiles.per_image();
        let chunk = CHUNK_TILES.min(total);
        // A task: a row of positions and some blocks of output channels.
        let blocks = cout / BLOCK;
        let groups = parallel::threads().div_ceil(4).min(blocks);
        f32::with_scratch(POSITIONS * cout * padded, |sums| {
            let shared = Shared::new(sums);
            let work = |task: usize| {
                let (row, group) = (task % 4, task / 4);
                let blocks = (group * blocks / groups, (group + 1) * blocks / groups);
                let outputs = (blocks.1 - blocks.0) * BLOCK;
                f32::with_scratch(4 * chunk * (padded + outputs) + cin.max(cout), |scratch| {
                    let (images, rest) = scratch.split_at_mut(4 * chunk * padded);
                    let (gradients, zeros) = rest.split_at_mut(4 * chunk * outputs);
                    zeros.fill(0.0);
                    // As many of E, or more.
                    let zeros = bytemuck::cast_slice(zeros);
                    // Here, not further out: only what is inlined into this call is compiled for `S`.
                    simd.vectorize(Row {
                        simd,
                        sizes,
                        tiles,
                        row,
                        blocks,
                        chunk,
                        padded,
                        x,
                        dy,
                        zeros,
                        images,
                        gradients,
                        to: shared.get(),
                    });
                });
            };
            parallel::for_each(4 * groups, parallel::GRAIN, work);
            let sums = &*sums;
            parallel::for_rows(dw, 9 * cin, |o, dw| {
                simd.vectorize(Finish { simd, sums: &sums[o * padded..], position: cout * padded, cin, dw, mode });
            });
        });
    }
}

/// A row of positions, over all tiles.
struct Row<'a, S, E> {
    simd: S,
    sizes: &'a Sizes,
    tiles: Tiles,
    row: usize,
    /// Blocks of output channels.
    blocks: (usize, usize),
    chunk: usize,
    /// Input channels in whole panels.
    padded: usize,
    x: &'a [E],
    dy: &'a [E],
    /// The pixel that is read outside images: its channels.
    zeros: &'a [E],
    /// `[position][panel][tile][panel's channels]`.
    images: &'a mut [f32],
    /// `[position][block][tile][block's channels]`.
    gradients: &'a mut [f32],
    /// [position][output channel][input channel].
    to: *mut f32,
}

impl<S: Simd, E: Held<Float = f32>> NullaryFnOnce for Row<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, sizes, row, blocks, chunk, padded, .. } = self;
        let total = sizes.batch * self.tiles.per_image();
        let panel = 2 * S::F32_LANES;
        let outputs = (blocks.1 - blocks.0) * BLOCK;
        for first in (0..total).step_by(chunk) {
            let count = chunk.min(total - first);
            for tile in 0..count {
                // SAFETY: the tile's place in the chunk.
                unsafe {
                    self.transform_image(first + tile, self.images.as_ptr().cast_mut().add(tile * panel));
                    self.transform_gradient(first + tile, self.gradients.as_ptr().cast_mut().add(tile * BLOCK));
                }
            }
            for column in 0..4 {
                for j in 0..padded / panel {
                    for o in (0..outputs).step_by(tile_rows::<S>()) {
                        let output = blocks.0 * BLOCK + o;
                        // SAFETY: the chunk's values of this panel and of these output channels, and the sums' place, which this task
                        // alone writes.
                        unsafe {
                            let a = column * chunk * outputs + o / BLOCK * BLOCK * chunk + o % BLOCK;
                            let b = (column * padded + j * panel) * chunk;
                            let position = 4 * row + column;
                            self::sum::<S>(
                                simd,
                                count,
                                self.gradients.as_ptr().add(a),
                                self.images.as_ptr().add(b),
                                self.to.add((position * sizes.cout + output) * padded + j * panel),
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

impl<S: Simd, E: Held<Float = f32>> Row<'_, S, E> {
    /// This row of Bᵀ d B of a tile.
    ///
    /// # Safety
    /// `to` is the tile's place in the first panel of the first position.
    #[inline(always)]
    unsafe fn transform_image(&self, tile: usize, to: *mut f32) {
        let Self { simd, sizes, tiles, chunk, padded, .. } = *self;
        let Sizes { source, size, cin, .. } = *sizes;
        let (number, top, left) = tiles.place(tile);
        let (p, q, sign) = WINDOW_ROWS[self.row];
        // The window begins one row and one column before the tile.
        let mut pixels = [[self.zeros.as_ptr(); 2]; 4];
        for (row, which) in [(p, 0), (q, 1)] {
            for (column, pixels) in pixels.iter_mut().enumerate() {
                let (row_at, column_at) = (top + row, left + column);
                if row_at >= 1 && row_at <= size[0] && column_at >= 1 && column_at <= size[1] {
                    let (mut row_at, mut column_at) = (row_at - 1, column_at - 1);
                    if source != size {
                        (row_at, column_at) = (row_at * source[0] / size[0], column_at * source[1] / size[1]);
                    }
                    let place = ((number * source[0] + row_at) * source[1] + column_at) * cin;
                    debug_assert!(place + cin <= self.x.len());
                    pixels[which] = self.x.as_ptr().wrapping_add(place);
                }
            }
        }
        let sign = simd.splat_f32s(sign);
        let (lanes, panel) = (S::F32_LANES, 2 * S::F32_LANES);
        for channel in (0..padded).step_by(lanes) {
            // SAFETY: every pointer is to `cin` elements: of a pixel of an image of the batch, or zeros. The rest as the caller
            // promises.
            unsafe {
                let mut d = [simd.splat_f32s(0.0); 4];
                if channel < cin {
                    for (d, pixels) in d.iter_mut().zip(&pixels) {
                        *d = simd.mul_add_f32s(
                            sign,
                            held::load::<E, S>(pixels[1].add(channel)),
                            held::load::<E, S>(pixels[0].add(channel)),
                        );
                    }
                }
                let place = channel / panel * panel * chunk + channel % panel;
                for (column, &value) in window(simd, d).iter().enumerate() {
                    store::<S>(to.add(column * chunk * padded + place), value);
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
        let Self { simd, sizes, tiles, chunk, blocks, .. } = *self;
        let Sizes { size: [height, width], cout, .. } = *sizes;
        let (number, top, left) = tiles.place(tile);
        let (p, q, sign) = TILE_ROWS[self.row];
        let mut pixels = [[self.zeros.as_ptr(); 2]; 2];
        for (row, which) in [(p, 0), (q, 1)] {
            for (column, pixels) in pixels.iter_mut().enumerate() {
                if row < 2 && top + row < height && left + column < width {
                    let place = ((number * height + top + row) * width + left + column) * cout;
                    debug_assert!(place + cout <= self.dy.len());
                    pixels[which] = self.dy.as_ptr().wrapping_add(place);
                }
            }
        }
        let (sign, zero) = (simd.splat_f32s(sign), simd.splat_f32s(0.0));
        let (lanes, outputs) = (S::F32_LANES, (blocks.1 - blocks.0) * BLOCK);
        for channel in (0..outputs).step_by(lanes) {
            // SAFETY: every pointer is to `cout` elements: of a pixel of an image of the batch, or zeros. The rest as the caller
            // promises.
            unsafe {
                let mut d = [zero; 2];
                for (d, pixels) in d.iter_mut().zip(&pixels) {
                    let at = blocks.0 * BLOCK + channel;
                    let (one, other) = (held::load::<E, S>(pixels[0].add(at)), held::load::<E, S>(pixels[1].add(at)));
                    *d = simd.mul_add_f32s(sign, other, one);
                }
                let values = [d[0], simd.add_f32s(d[0], d[1]), simd.sub_f32s(d[0], d[1]), simd.sub_f32s(zero, d[1])];
                let place = channel / BLOCK * BLOCK * chunk + channel % BLOCK;
                for (column, &value) in values.iter().enumerate() {
                    store::<S>(to.add(column * chunk * outputs + place), value);
                }
            }
        }
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
struct Finish<'a, S> {
    simd: S,
    /// The channel's sums at the first position.
    sums: &'a [f32],
    /// Elements between positions.
    position: usize,
    cin: usize,
    dw: &'a mut [f32],
    mode: Accumulate,
}

impl<S: Simd> NullaryFnOnce for Finish<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, sums, position, cin, dw, mode } = self;
        let lanes = S::F32_LANES;
        assert!(sums.len() >= 15 * position + cin && dw.len() == 9 * cin && cin.is_multiple_of(lanes));
        for channel in (0..cin).step_by(lanes) {
            // SAFETY: within both slices, as was just checked.
            unsafe {
                let mut columns = [[simd.splat_f32s(0.0); 3]; 4];
                for (c, column) in columns.iter_mut().enumerate() {
                    let mut u = [simd.splat_f32s(0.0); 4];
                    for (r, u) in u.iter_mut().enumerate() {
                        *u = load::<S>(sums.as_ptr().add((4 * r + c) * position + channel));
                    }
                    *column = gather(simd, u);
                }
                for ky in 0..3 {
                    let taps = gather(simd, across(&columns, ky));
                    for (kx, &tap) in taps.iter().enumerate() {
                        let to = dw.as_mut_ptr().add((3 * ky + kx) * cin + channel);
                        let tap = match mode {
                            Accumulate::Write => tap,
                            Accumulate::Add => simd.add_f32s(load::<S>(to), tap),
                        };
                        store::<S>(to, tap);
                    }
                }
            }
        }
    }
}

/// Gᵀ along one axis.
#[inline(always)]
fn gather<S: Simd>(simd: S, u: [S::f32s; 4]) -> [S::f32s; 3] {
    let half = simd.splat_f32s(0.5);
    let inner = simd.mul_f32s(half, simd.add_f32s(u[1], u[2]));
    [simd.add_f32s(u[0], inner), simd.mul_f32s(half, simd.sub_f32s(u[1], u[2])), simd.add_f32s(inner, u[3])]
}
