//! Winograd's convolution F(MxM, 3x3), M = 2 or 4: 16 multiplications for 36, or 36 for 144 (Lavin and Gray 2016, arXiv 1509.09308).
//!
//! The result is cut into tiles of MxM pixels. A tile reads NxN pixels d of the image, N = M + 2; with g the 3x3 taps it is
//!
//! Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,
//!
//! where ⊙ goes by the N² *positions* of NxN values, and at each position the sum over channels is a matrix product over tiles
//! ([`axis`] has the matrices). The data gradient is the same with the taps mirrored and the channels' roles exchanged. Arithmetic is in
//! `f32` also where images are held in bf16, which are widened where they are read and rounded once where they are written: two
//! `bf16` products for one of `f32`, as AVX-512 has them, are not worth four times as many. In `f64` the definition is summed as it
//! stands, and so stays an oracle.
//!
//! Tiles of 4 have larger weights, N² / 9 times the taps, and err more, by far less than bf16 rounds but enough to take a deep network in
//! `f32` past 1e-5 of its values: the caller chooses the side M of the tiles.
//!
//! Everything is vectors of neighbouring channels. A task transforms the images under some tiles, then for each panel of
//! output channels multiplies at all positions and transforms back while that is in the cache. An element of the result is
//! one chain over the channels per position and then the sums that Aᵀ orders: no bit depends on the cut into tasks, the threads
//! or the other images.

mod axis;
mod gradient;
mod taps;

use pulp::{NullaryFnOnce, Simd, WithSimd};

use self::axis::{across, pixels, window};
use self::taps::{Kernel, Transform};
use super::direct::Output;
use super::{Sizes, sum_counted};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, Held, held};

pub(super) use self::gradient::weight_gradient;

/// Channels come in blocks of these: a vector of the widest kind.
const BLOCK: usize = 16;

/// Values of a task's transformed images and of a panel's products, about: they stay in the L2 cache, and the weights pass by once for
/// all of them.
const TASK_VALUES: usize = 160 << 10;

/// Tiles of 2 in a task, about.
const TASK_TILES: usize = 64;

/// Tiles of 4 in an image, from which on they are worth their larger weights.
const ENOUGH_TILES: usize = 16;

/// Channels whose weights stay in the L1 cache while a task's tiles pass over them.
const DEPTH: usize = 256;

/// Elements between one position's values and the next's, beyond these: so that positions do not share a cache set.
const SKEW: usize = 16;

/// Whether a convolution is one of 3x3 taps that keeps the image's size, with channels in whole blocks.
pub(super) fn fits(sizes: &Sizes) -> bool {
    let Sizes { size, out, kernel, stride, pad, cin, cout, .. } = *sizes;
    kernel == [3, 3] && stride == 1 && pad == [1, 1] && out == size && cin % BLOCK == 0 && cout % BLOCK == 0
}

/// Whether its images have tiles of 4 enough for their larger weights, which multiply less than tiles of 2.
pub(super) fn fits_large(sizes: &Sizes) -> bool {
    let tiles = |side: usize| sizes.size[0].div_ceil(side) * sizes.size[1].div_ceil(side);
    fits(sizes) && 36 * tiles(4) < 16 * tiles(2) && tiles(4) >= ENOUGH_TILES
}

/// Where tiles of MxM pixels lie in images.
#[derive(Clone, Copy)]
struct Tiles<const M: usize> {
    /// Height and width of the images that the tiles cover.
    size: [usize; 2],
    /// Rows and columns of tiles in an image.
    count: [usize; 2],
}

impl<const M: usize> Tiles<M> {
    fn new(size: [usize; 2]) -> Self {
        Self { size, count: size.map(|n| n.div_ceil(M)) }
    }

    /// Tiles of an image.
    fn per_image(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// The image of a tile, and the row and column of its first pixel.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (row, column) = (tile / self.count[1], tile % self.count[1]);
        (row / self.count[0], M * (row % self.count[0]), M * column)
    }
}

/// Images `[batch, source, channels]`, which are resized to `size` by nearest neighbour, with zeros outside.
#[derive(Clone, Copy)]
struct Images<'a, E> {
    values: &'a [E],
    source: [usize; 2],
    size: [usize; 2],
    channels: usize,
}

impl<E> Images<'_, E> {
    /// The channels of the pixel that lies `row` rows below and `column` columns right of the one above and left of image `number`'s first,
    /// or `zeros`.
    #[inline(always)]
    fn pixel(&self, number: usize, row: usize, column: usize, zeros: *const E) -> *const E {
        let [height, width] = self.size;
        if row < 1 || row > height || column < 1 || column > width {
            return zeros;
        }
        let (mut row, mut column) = (row - 1, column - 1);
        if self.source != self.size {
            (row, column) = (row * self.source[0] / height, column * self.source[1] / width);
        }
        let place = ((number * self.source[0] + row) * self.source[1] + column) * self.channels;
        debug_assert!(place + self.channels <= self.values.len());
        self.values.as_ptr().wrapping_add(place)
    }
}

/// y from x; `output` says where it goes. `transformed` is the weight as [`transform`] left it, where that was done before.
pub(super) fn forward<E: Held<Float = f32>>(
    sizes: &Sizes,
    side: usize,
    x: &[E],
    weight: &[f32],
    transformed: Option<&[f32]>,
    output: Output<E>,
) {
    let images = Images { values: x, source: sizes.source, size: sizes.size, channels: sizes.cin };
    run(side, Run { batch: sizes.batch, images, kernel: Kernel::forward(sizes, weight), transformed, output });
}

/// Elements of a transformed weight: the same on every machine.
pub(super) fn transformed_len(sizes: &Sizes, side: usize) -> usize {
    (side + 2).pow(2) * sizes.cin * sizes.cout.next_multiple_of(2 * BLOCK)
}

/// The weight's transform, for [`forward`].
pub(super) fn transform(sizes: &Sizes, side: usize, weight: &[f32], transformed: &mut [f32]) {
    let kernel = Kernel::forward(sizes, weight);
    match side {
        4 => f32::dispatch(Transform::<6> { kernel, to: transformed }),
        _ => f32::dispatch(Transform::<4> { kernel, to: transformed }),
    }
}

/// dx from dy; `output` says where it goes, and whether each pixel of it is the sum of the four that were copied from it.
pub(super) fn input_gradient<E: Held<Float = f32>>(
    sizes: &Sizes,
    side: usize,
    dy: &[E],
    weight: &[f32],
    output: Output<E>,
) {
    let images = Images { values: dy, source: sizes.size, size: sizes.size, channels: sizes.cout };
    let kernel = Kernel::input_gradient(sizes, weight);
    run(side, Run { batch: sizes.batch, images, kernel, transformed: None, output });
}

fn run<E: Held<Float = f32>>(side: usize, run: Run<E>) {
    match side {
        4 => f32::dispatch(Tiled::<_, 4, 6>(run)),
        _ => f32::dispatch(Tiled::<_, 2, 4>(run)),
    }
}

struct Run<'a, E: Held> {
    batch: usize,
    images: Images<'a, E>,
    kernel: Kernel<'a>,
    transformed: Option<&'a [f32]>,
    output: Output<'a, E>,
}

/// [`Run`] by tiles of MxM.
struct Tiled<'a, E: Held, const M: usize, const N: usize>(Run<'a, E>);

impl<E: Held<Float = f32>, const M: usize, const N: usize> WithSimd for Tiled<'_, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(N == M + 2 && (M == 2 || M == 4)) };
        let Run { batch, images: from, kernel, transformed, output } = self.0;
        let Kernel { channels, cout, .. } = kernel;
        let Output { data, bias, channel_add, residual, add, fold } = output;
        let (panel, tiles) = (2 * S::F32_LANES, Tiles::<M>::new(from.size));
        let panels = cout.div_ceil(panel);
        let pixels = |[height, width]: [usize; 2]| batch * height * width;
        let out = fold.unwrap_or(tiles.size);
        assert!(fold.is_none_or(|to| tiles.size == to.map(|side| 2 * side)), "an image that is not twice as large");
        assert!(fold.is_none() || (bias.is_none() && channel_add.is_none()), "terms of a folded result");
        assert!(from.values.len() == pixels(from.source) * channels && data.len() == pixels(out) * cout, "other sizes");
        assert!(channels.is_multiple_of(BLOCK) && cout.is_multiple_of(BLOCK));
        assert!(
            residual.is_none_or(|residual| residual.len() == data.len()) && bias.is_none_or(|bias| bias.len() == cout)
        );
        assert!(channel_add.is_none_or(|add| add.len() == batch * cout));

        let needed = panels * N * N * channels * panel;
        f32::with_scratch(if transformed.is_some() { 0 } else { needed }, |scratch| {
            let transformed = match transformed {
                Some(transformed) => transformed,
                None => {
                    kernel.transform::<S, N>(simd, scratch);
                    &*scratch
                }
            };
            // Of narrower panels there may be fewer than there is room for.
            let room = N * N * channels * cout.next_multiple_of(2 * BLOCK);
            assert!((needed..=room).contains(&transformed.len()), "a transformed weight of another size");

            let total = batch * tiles.per_image();
            let threads = parallel::threads();
            let many = (TASK_VALUES / (N * N * (channels + panel))).max(piece_tiles::<S>());
            let most = if M == 2 { TASK_TILES } else { many };
            let tasks = total.div_ceil(most).next_multiple_of(threads).min(total);
            let out = Shared::new(data);
            let work = |task: usize| {
                let range = (task * total / tasks, (task + 1) * total / tasks);
                let count = range.1 - range.0;
                let (image, product) = (count * channels + SKEW, count * panel + SKEW);
                f32::with_scratch(N * N * (image + product) + channels, |scratch| {
                    let (images, rest) = scratch.split_at_mut(N * N * image);
                    let (products, zeros) = rest.split_at_mut(N * N * product);
                    zeros.fill(0.0);
                    // Here, not further out: only what is inlined into this call is compiled for `S`.
                    simd.vectorize(Task::<S, E, M, N> {
                        simd,
                        tiles,
                        range,
                        channels,
                        cout,
                        from,
                        // As many of E, or more.
                        zeros: bytemuck::cast_slice(zeros),
                        images,
                        image,
                        products,
                        product,
                        transformed,
                        bias,
                        channel_add,
                        plus: match residual {
                            Some(residual) => residual.as_ptr(),
                            None if add => out.get().cast_const(),
                            None => std::ptr::null(),
                        },
                        to: out.get(),
                        is_folded: fold.is_some(),
                    });
                });
            };
            parallel::for_each(tasks, parallel::GRAIN, work);
        });
    }
}

/// Tiles of a register tile, at most: accumulators, two vectors of the weight and a broadcast fit the registers.
const fn piece_tiles<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Some tiles.
struct Task<'a, S, E, const M: usize, const N: usize> {
    simd: S,
    tiles: Tiles<M>,
    range: (usize, usize),
    channels: usize,
    cout: usize,
    from: Images<'a, E>,
    /// The pixel that is read outside images: its channels.
    zeros: &'a [E],
    /// Bᵀ d B: `[position][piece][block][tile of the piece][channel of the block]`.
    images: &'a mut [f32],
    image: usize,
    /// A panel's products: `[position][tile][panel]`.
    products: &'a mut [f32],
    product: usize,
    transformed: &'a [f32],
    bias: Option<&'a [f32]>,
    channel_add: Option<&'a [E]>,
    /// The term added to the result, in its layout; null for none.
    plus: *const E,
    to: *mut E,
    /// Whether a pixel of the result is the sum of four neighbours.
    is_folded: bool,
}

impl<S: Simd, E: Held<Float = f32>, const M: usize, const N: usize> NullaryFnOnce for Task<'_, S, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, range, channels, cout, image, product, .. } = self;
        let count = range.1 - range.0;
        let pieces = count.div_ceil(piece_tiles::<S>());
        let piece = |number: usize| (number * count / pieces, (number + 1) * count / pieces);
        for number in 0..pieces {
            let (first, last) = piece(number);
            for tile in first..last {
                // SAFETY: the tile's place in its piece.
                unsafe {
                    let to = self.images.as_mut_ptr().add(first * channels + (tile - first) * BLOCK);
                    self.transform(range.0 + tile, to, (last - first) * BLOCK);
                }
            }
        }
        let panel = 2 * S::F32_LANES;
        let depths = channels.div_ceil(DEPTH);
        let blocks = channels / BLOCK;
        for j in 0..cout.div_ceil(panel) {
            for position in 0..N * N {
                let weight = &self.transformed[(j * N * N + position) * channels * panel..][..channels * panel];
                for depth in 0..depths {
                    let (from, to) = (depth * blocks / depths, (depth + 1) * blocks / depths);
                    for number in 0..pieces {
                        let (first, last) = piece(number);
                        // SAFETY: the piece's blocks, the weight's channels from there on, and the piece's products.
                        unsafe {
                            let walk = Walk {
                                simd,
                                blocks: to - from,
                                a: self
                                    .images
                                    .as_ptr()
                                    .add(position * image + first * channels + from * BLOCK * (last - first)),
                                b: weight.as_ptr().add(from * BLOCK * panel),
                                to: self.products.as_mut_ptr().add(position * product + first * panel),
                                add: depth > 0,
                            };
                            walk.piece(last - first);
                        }
                    }
                }
            }
            for tile in 0..count {
                // SAFETY: the tile's products, and its pixels, which this task alone writes.
                unsafe { self.finish(j, range.0 + tile, self.products.as_ptr().add(tile * panel)) };
            }
        }
    }
}

impl<S: Simd, E: Held<Float = f32>, const M: usize, const N: usize> Task<'_, S, E, M, N> {
    /// Bᵀ d B of a tile: block k of channels at position p goes to `to + p * self.image + k * block`.
    ///
    /// # Safety
    /// Those places may be written.
    #[inline(always)]
    unsafe fn transform(&self, tile: usize, to: *mut f32, block: usize) {
        let Self { simd, tiles, channels, from, image, .. } = *self;
        let (number, top, left) = tiles.place(tile);
        let mut d = [[self.zeros.as_ptr(); N]; N];
        // The window begins one row and one column before the tile.
        for (row, d) in d.iter_mut().enumerate() {
            for (column, d) in d.iter_mut().enumerate() {
                *d = from.pixel(number, top + row, left + column, self.zeros.as_ptr());
            }
        }
        for (k, first) in (0..channels).step_by(BLOCK).enumerate() {
            for lane in (0..BLOCK).step_by(S::F32_LANES) {
                // SAFETY: every pointer is to `channels` elements: of a pixel of an image of the batch, or zeros. The rest as the
                // caller promises.
                unsafe {
                    let mut columns = [[simd.splat_f32s(0.0); N]; N];
                    for (c, column) in columns.iter_mut().enumerate() {
                        for (value, d) in column.iter_mut().zip(&d) {
                            *value = held::load::<E, S>(d[c].add(first + lane));
                        }
                        *column = window(simd, *column);
                    }
                    for row in 0..N {
                        let values = window(simd, across(&columns, row));
                        for (column, &value) in values.iter().enumerate() {
                            held::store::<f32, S>(to.add((N * row + column) * image + k * block + lane), value);
                        }
                    }
                }
            }
        }
    }

    /// Aᵀ m A of a tile and panel `j`, with what is added, into the result. Position p of m is at `from + p * self.product`.
    ///
    /// # Safety
    /// Those are readable, and the tile's pixels in the result may be written.
    #[inline(always)]
    unsafe fn finish(&self, j: usize, tile: usize, from: *const f32) {
        let Self { simd, tiles, cout, product, .. } = *self;
        let lanes = S::F32_LANES;
        let (number, top, left) = tiles.place(tile);
        for vector in 0..2 {
            let channel = (2 * j + vector) * lanes;
            if channel >= cout {
                break;
            }
            // SAFETY: a vector of channels within the result's, whose number is whole vectors; the rest as the caller
            // promises.
            unsafe {
                let mut start = simd.splat_f32s(0.0);
                if let Some(bias) = self.bias {
                    start = held::load::<f32, S>(bias[channel..][..lanes].as_ptr());
                }
                if let Some(more) = self.channel_add {
                    let more = held::load::<E, S>(more[number * cout + channel..][..lanes].as_ptr());
                    start = simd.add_f32s(start, more);
                }
                let mut columns = [[simd.splat_f32s(0.0); M]; N];
                for (c, column) in columns.iter_mut().enumerate() {
                    let mut m = [simd.splat_f32s(0.0); N];
                    for (r, m) in m.iter_mut().enumerate() {
                        *m = held::load::<f32, S>(from.add((N * r + c) * product + vector * lanes));
                    }
                    *column = pixels(simd, m);
                }
                if self.is_folded {
                    for row in (0..M).step_by(2) {
                        let upper: [_; M] = pixels(simd, across(&columns, row));
                        let lower: [_; M] = pixels(simd, across(&columns, row + 1));
                        for column in (0..M).step_by(2) {
                            let upper = simd.add_f32s(upper[column], upper[column + 1]);
                            let sum = simd.add_f32s(upper, simd.add_f32s(lower[column], lower[column + 1]));
                            self.put(number, [(top + row) / 2, (left + column) / 2], channel, sum);
                        }
                    }
                    continue;
                }
                for row in 0..M {
                    let values: [_; M] = pixels(simd, across(&columns, row));
                    for (column, &value) in values.iter().enumerate() {
                        self.put(number, [top + row, left + column], channel, simd.add_f32s(value, start));
                    }
                }
            }
        }
    }

    /// Writes a vector of a pixel of image `number`, where the image has that pixel.
    ///
    /// # Safety
    /// It may be written.
    #[inline(always)]
    unsafe fn put(&self, number: usize, [row, column]: [usize; 2], channel: usize, mut value: S::f32s) {
        let [height, width] = if self.is_folded { self.tiles.size.map(|side| side / 2) } else { self.tiles.size };
        if row >= height || column >= width {
            return;
        }
        let place = ((number * height + row) * width + column) * self.cout + channel;
        // SAFETY: as the caller promises; what is added has the result's layout.
        unsafe {
            if !self.plus.is_null() {
                value = self.simd.add_f32s(value, held::load::<E, S>(self.plus.add(place)));
            }
            held::store::<E, S>(self.to.add(place), value);
        }
    }
}

/// A piece's way through some blocks of channels at one position.
struct Walk<S> {
    simd: S,
    blocks: usize,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
    add: bool,
}

impl<S: Simd> Walk<S> {
    /// # Safety
    /// `a` holds `[block][tile][channel]`, `b` `[channel][panel]`, and `[tile][panel]` at `to` may be written, and read with `add`.
    #[inline(always)]
    unsafe fn piece(self, tiles: usize) {
        // SAFETY: as the caller promises.
        unsafe { sum_counted!(self, tiles) }
    }

    #[inline(always)]
    unsafe fn sum<const P: usize>(self) {
        if P > piece_tiles::<S>() {
            return;
        }
        let Self { simd, blocks, mut a, mut b, to, add } = self;
        let lanes = S::F32_LANES;
        // SAFETY: as the caller of `piece` promises.
        unsafe {
            let to = to.cast::<[[S::f32s; 2]; P]>();
            let mut sums = if add { to.read_unaligned() } else { [[simd.splat_f32s(0.0); 2]; P] };
            for _ in 0..blocks {
                for channel in 0..BLOCK {
                    let b0 = b.cast::<S::f32s>().read_unaligned();
                    let b1 = b.add(lanes).cast::<S::f32s>().read_unaligned();
                    for (p, [s0, s1]) in sums.iter_mut().enumerate() {
                        let x = simd.splat_f32s(*a.add(p * BLOCK + channel));
                        *s0 = simd.mul_add_f32s(x, b0, *s0);
                        *s1 = simd.mul_add_f32s(x, b1, *s1);
                    }
                    b = b.add(2 * lanes);
                }
                a = a.add(P * BLOCK);
            }
            to.write_unaligned(sums);
        }
    }
}

#[cfg(test)]
mod tests;
