//! Winograd's convolution F(2x2, 3x3): 16 multiplications where the definition has 36 (Lavin and Gray 2016).
//!
//! The result is cut into tiles of 2x2 pixels. A tile reads 4x4 pixels d of the image; with g the 3x3 taps it is
//!
//! Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,
//!
//! where ⊙ goes by the 16 *positions* of 4x4 values, and at each position the sum over channels is a matrix product over tiles.
//! Bᵀ = (1 0 −1 0; 0 1 1 0; 0 −1 1 0; 0 1 0 −1), G = (1 0 0; ½ ½ ½; ½ −½ ½; 0 0 1), Aᵀ = (1 1 1 0; 0 1 −1 −1): sums and halves only,
//! so the rounding error stays that of a convolution (larger tiles would multiply less, and err more). The data gradient is
//! the same with the taps mirrored and the channels' roles exchanged. Only `f32` comes here: in `f64` the definition is summed
//! as it stands, and so stays an oracle.
//!
//! Everything is vectors of neighbouring channels. A task transforms the images under some tiles, then for each panel of
//! output channels multiplies at all positions and transforms back while that is in the cache. An element of the result is
//! one chain over the channels per position and then the sums that Aᵀ orders: no bit depends on the cut into tasks, the threads
//! or the other images.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::direct::Output;
use super::{Sizes, sum_counted};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, pack};

/// Channels come in blocks of these: a vector of the widest kind.
pub(super) const BLOCK: usize = 16;

/// Products behind a tile.
pub(super) const POSITIONS: usize = 16;

/// Tiles in a task, about: what they become stays in the L2 cache, and the weights pass by once for all of them.
const TASK_TILES: usize = 64;

/// Channels whose weights stay in the L1 cache while a task's tiles pass over them.
const DEPTH: usize = 256;

/// Elements between one position's values and the next's, beyond these: so that the 16 do not share a cache set.
const SKEW: usize = 16;

/// Whether a convolution is one of 3x3 taps that keeps the image's size, with channels in whole blocks.
pub(super) fn fits(sizes: &Sizes) -> bool {
    let Sizes { size, out, kernel, stride, pad, cin, cout, .. } = *sizes;
    kernel == [3, 3] && stride == 1 && pad == [1, 1] && out == size && cin % BLOCK == 0 && cout % BLOCK == 0
}

/// Where tiles lie in images.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Height and width of the images that the tiles cover.
    pub size: [usize; 2],
    /// Rows and columns of tiles in an image.
    pub count: [usize; 2],
}

impl Tiles {
    pub fn new(size: [usize; 2]) -> Self {
        Self { size, count: size.map(|n| n.div_ceil(2)) }
    }

    /// Tiles of an image.
    pub fn per_image(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// The image of a tile, and the row and column of its first pixel.
    #[inline(always)]
    pub fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (row, column) = (tile / self.count[1], tile % self.count[1]);
        (row / self.count[0], 2 * (row % self.count[0]), 2 * column)
    }
}

/// y from x; `output` says where it goes. `transformed` is the weight as [`transform`] left it, where that was done before.
pub(super) fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], transformed: Option<&[f32]>, output: Output<f32>) {
    f32::dispatch(Run { transformed, ..Run::forward(sizes, x, weight, output) });
}

/// Elements of a transformed weight: the same on every machine.
pub(super) fn transformed_len(sizes: &Sizes) -> usize {
    POSITIONS * sizes.cin * sizes.cout.next_multiple_of(2 * BLOCK)
}

/// The weight's transform, for [`forward`].
pub(super) fn transform(sizes: &Sizes, weight: &[f32], transformed: &mut [f32]) {
    f32::dispatch(Transform { kernel: Kernel::forward(sizes, weight), to: transformed });
}

/// dx from dy; `output` says where it goes.
pub(super) fn input_gradient(sizes: &Sizes, dy: &[f32], weight: &[f32], output: Output<f32>) {
    f32::dispatch(Run::input_gradient(sizes, dy, weight, output));
}

// Small functions, always inlined, and loops rather than closures and `map`: what is not inlined into a vectorized call would
// not be compiled for its instructions.

/// A vector at `from`.
///
/// # Safety
/// It is readable.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: as the caller promises.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

/// Writes a vector to `to`.
///
/// # Safety
/// It may be written.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(to: *mut f32, value: S::f32s) {
    // SAFETY: as the caller promises.
    unsafe { to.cast::<S::f32s>().write_unaligned(value) }
}

/// Row `row` of a matrix given by columns.
#[inline(always)]
pub(super) fn across<V: Copy, const N: usize, const M: usize>(columns: &[[V; N]; M], row: usize) -> [V; M] {
    let mut values = [columns[0][row]; M];
    for (value, column) in values.iter_mut().zip(columns) {
        *value = column[row];
    }
    values
}

/// Bᵀ along one axis.
#[inline(always)]
pub(super) fn window<S: Simd>(simd: S, d: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(d[0], d[2]), simd.add_f32s(d[1], d[2]), simd.sub_f32s(d[2], d[1]), simd.sub_f32s(d[1], d[3])]
}

/// Aᵀ along one axis.
#[inline(always)]
fn pair<S: Simd>(simd: S, m: [S::f32s; 4]) -> [S::f32s; 2] {
    [simd.add_f32s(simd.add_f32s(m[0], m[1]), m[2]), simd.sub_f32s(simd.sub_f32s(m[1], m[2]), m[3])]
}

/// G along one axis.
#[inline(always)]
fn spread<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; 4] {
    let half = simd.splat_f32s(0.5);
    let (outer, inner) = (simd.mul_f32s(half, simd.add_f32s(g[0], g[2])), simd.mul_f32s(half, g[1]));
    [g[0], simd.add_f32s(outer, inner), simd.sub_f32s(outer, inner), g[2]]
}

/// A weight as one of the two ways goes through it.
#[derive(Clone, Copy)]
struct Kernel<'a> {
    /// Channels of the input.
    channels: usize,
    /// Channels of the result.
    cout: usize,
    weight: &'a [f32],
    /// Elements of the weight between output channels, and between input channels.
    strides: (usize, usize),
    /// Where each tap begins in the weight.
    taps: [usize; 9],
}

impl<'a> Kernel<'a> {
    fn forward(sizes: &Sizes, weight: &'a [f32]) -> Self {
        let Sizes { cin, cout, .. } = *sizes;
        let taps = std::array::from_fn(|tap| tap * cin);
        Self { channels: cin, cout, weight, strides: (9 * cin, 1), taps }
    }

    fn input_gradient(sizes: &Sizes, weight: &'a [f32]) -> Self {
        let Sizes { cin, cout, .. } = *sizes;
        let taps = std::array::from_fn(|tap| (8 - tap) * cin);
        Self { channels: cout, cout: cin, weight, strides: (1, 9 * cin), taps }
    }

    /// The transform, in the order in which it is read: `[panel][position][channel][panel's channels]`.
    #[inline(always)]
    fn transform<S: Simd>(self, simd: S, to: &mut [f32]) {
        let Self { channels, cout, weight, strides, taps } = self;
        let panel = 2 * S::F32_LANES;
        let (panels, blocks) = (cout.div_ceil(panel), channels / BLOCK);
        assert!(weight.len() == 9 * channels * cout && to.len() >= panels * POSITIONS * channels * panel);
        let to = Shared::new(to);
        let transform = |task: usize| {
            let (j, block) = (task / blocks, task % blocks);
            simd.vectorize(Taps {
                simd,
                weight,
                strides,
                places: taps.map(|tap| tap + j * panel * strides.0 + block * BLOCK * strides.1),
                lanes: panel.min(cout - j * panel),
                // SAFETY: a panel's place, from this block's first channel on.
                to: unsafe { to.get().add((j * POSITIONS * channels + block * BLOCK) * panel) },
                position: channels * panel,
            });
        };
        parallel::for_each(panels * blocks, panels * POSITIONS * channels * panel, transform);
    }
}

/// A weight's transform by itself.
struct Transform<'a> {
    kernel: Kernel<'a>,
    to: &'a mut [f32],
}

impl WithSimd for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.kernel.transform(simd, self.to);
    }
}

struct Run<'a> {
    batch: usize,
    tiles: Tiles,
    input: &'a [f32],
    kernel: Kernel<'a>,
    transformed: Option<&'a [f32]>,
    output: Output<'a, f32>,
}

impl<'a> Run<'a> {
    fn forward(sizes: &Sizes, x: &'a [f32], weight: &'a [f32], output: Output<'a, f32>) -> Self {
        Self::new(sizes, x, Kernel::forward(sizes, weight), output)
    }

    fn input_gradient(sizes: &Sizes, dy: &'a [f32], weight: &'a [f32], output: Output<'a, f32>) -> Self {
        Self::new(sizes, dy, Kernel::input_gradient(sizes, weight), output)
    }

    fn new(sizes: &Sizes, input: &'a [f32], kernel: Kernel<'a>, output: Output<'a, f32>) -> Self {
        Self { batch: sizes.batch, tiles: Tiles::new(sizes.size), input, kernel, transformed: None, output }
    }
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { batch, tiles, input, kernel, transformed, output } = self;
        let Kernel { channels, cout, .. } = kernel;
        let Output { data, bias, channel_add, residual, add, fold: _ } = output;
        let panel = 2 * S::F32_LANES;
        let panels = cout.div_ceil(panel);
        let pixels = batch * tiles.size[0] * tiles.size[1];
        assert!(input.len() == pixels * channels && data.len() == pixels * cout, "images of other sizes");
        assert!(channels.is_multiple_of(BLOCK) && cout.is_multiple_of(BLOCK));
        assert!(
            residual.is_none_or(|residual| residual.len() == data.len()) && bias.is_none_or(|bias| bias.len() == cout)
        );
        assert!(channel_add.is_none_or(|add| add.len() == batch * cout));

        let needed = panels * POSITIONS * channels * panel;
        f32::with_scratch(if transformed.is_some() { 0 } else { needed }, |scratch| {
            let transformed = match transformed {
                Some(transformed) => transformed,
                None => {
                    kernel.transform(simd, scratch);
                    &*scratch
                }
            };
            assert!(transformed.len() >= needed, "a transformed weight of another size");

            let total = batch * tiles.per_image();
            let threads = parallel::threads();
            let tasks = total.div_ceil(TASK_TILES).next_multiple_of(threads).min(total);
            let out = Shared::new(data);
            let work = |task: usize| {
                let range = (task * total / tasks, (task + 1) * total / tasks);
                let count = range.1 - range.0;
                let (image, product) = (count * channels + SKEW, count * panel + SKEW);
                f32::with_scratch(POSITIONS * (image + product) + channels, |scratch| {
                    let (images, rest) = scratch.split_at_mut(POSITIONS * image);
                    let (products, zeros) = rest.split_at_mut(POSITIONS * product);
                    zeros.fill(0.0);
                    // Here, not further out: only what is inlined into this call is compiled for `S`.
                    simd.vectorize(Task {
                        simd,
                        tiles,
                        range,
                        channels,
                        cout,
                        input,
                        zeros,
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
                    });
                });
            };
            parallel::for_each(tasks, parallel::GRAIN, work);
        });
    }
}

/// G g Gᵀ for a panel of output channels and a block of input channels.
struct Taps<'a, S> {
    simd: S,
    weight: &'a [f32],
    /// Elements between output channels, and between input channels.
    strides: (usize, usize),
    /// Where each tap begins.
    places: [usize; 9],
    /// Output channels that there are.
    lanes: usize,
    to: *mut f32,
    /// Elements between positions.
    position: usize,
}

impl<S: Simd> NullaryFnOnce for Taps<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, weight, strides, places, lanes, to, position } = self;
        let width = S::F32_LANES;
        let panel = 2 * width;
        let avx512 = S::REGISTER_COUNT == 32 && width == 16;
        // 16 lanes, 2 vectors: the largest panel there is.
        let mut packed = [0f32; 9 * BLOCK * 32];
        for (tap, &place) in places.iter().enumerate() {
            assert!(place + (lanes - 1) * strides.0 + (BLOCK - 1) * strides.1 < weight.len());
            // SAFETY: the source was just checked, and each tap has its own place.
            unsafe {
                let to = packed.as_mut_ptr().add(tap * BLOCK * panel);
                let from = weight.as_ptr().add(place);
                pack::strip(to, panel, from, (lanes, strides.0), (BLOCK, strides.1), avx512);
            }
        }
        for at in (0..BLOCK * panel).step_by(width) {
            // SAFETY: within the array's taps; and within the channels of this block at each position of the result.
            unsafe {
                let from = packed.as_ptr().add(at);
                let mut columns = [[simd.splat_f32s(0.0); 4]; 3];
                for (kx, column) in columns.iter_mut().enumerate() {
                    let from = from.add(kx * BLOCK * panel);
                    let step = 3 * BLOCK * panel;
                    *column = spread(simd, [load::<S>(from), load::<S>(from.add(step)), load::<S>(from.add(2 * step))]);
                }
                for row in 0..4 {
                    let values = spread(simd, across(&columns, row));
                    for (column, &value) in values.iter().enumerate() {
                        store::<S>(to.add((4 * row + column) * position + at), value);
                    }
                }
            }
        }
    }
}

/// Tiles of a register tile, at most: accumulators, two vectors of the weight and a broadcast fit the registers.
const fn piece_tiles<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Some tiles.
struct Task<'a, S> {
    simd: S,
    tiles: Tiles,
    range: (usize, usize),
    channels: usize,
    cout: usize,
    input: &'a [f32],
    /// The pixel that is read outside images: its channels.
    zeros: &'a [f32],
    /// Bᵀ d B: `[position][piece][block][tile of the piece][channel of the block]`.
    images: &'a mut [f32],
    image: usize,
    /// A panel's products: `[position][tile][panel]`.
    products: &'a mut [f32],
    product: usize,
    transformed: &'a [f32],
    bias: Option<&'a [f32]>,
    channel_add: Option<&'a [f32]>,
    /// The term added to the result, in its layout; null for none.
    plus: *const f32,
    to: *mut f32,
}

impl<S: Simd> NullaryFnOnce for Task<'_, S> {
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
            for position in 0..POSITIONS {
                let weight = &self.transformed[(j * POSITIONS + position) * channels * panel..][..channels * panel];
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

impl<S: Simd> Task<'_, S> {
    /// Bᵀ d B of a tile: block k of channels at position p goes to `to + p * self.image + k * block`.
    ///
    /// # Safety
    /// Those places may be written.
    #[inline(always)]
    unsafe fn transform(&self, tile: usize, to: *mut f32, block: usize) {
        let Self { simd, tiles, channels, input, image, .. } = *self;
        let [height, width] = tiles.size;
        let (number, top, left) = tiles.place(tile);
        let mut pixels = [self.zeros.as_ptr(); 16];
        // The window begins one row and one column before the tile.
        for row in 0..4 {
            for column in 0..4 {
                let (row_at, column_at) = (top + row, left + column);
                if row_at >= 1 && row_at <= height && column_at >= 1 && column_at <= width {
                    let place = ((number * height + row_at - 1) * width + column_at - 1) * channels;
                    debug_assert!(place + channels <= input.len());
                    pixels[4 * row + column] = input.as_ptr().wrapping_add(place);
                }
            }
        }
        for (k, first) in (0..channels).step_by(BLOCK).enumerate() {
            for lane in (0..BLOCK).step_by(S::F32_LANES) {
                // SAFETY: every pointer is to `channels` elements: of a pixel of an image of the batch, or zeros. The rest as the
                // caller promises.
                unsafe {
                    let mut columns = [[simd.splat_f32s(0.0); 4]; 4];
                    for (c, column) in columns.iter_mut().enumerate() {
                        let mut d = [simd.splat_f32s(0.0); 4];
                        for (r, d) in d.iter_mut().enumerate() {
                            *d = load::<S>(pixels[4 * r + c].add(first + lane));
                        }
                        *column = window(simd, d);
                    }
                    for row in 0..4 {
                        let values = window(simd, across(&columns, row));
                        for (column, &value) in values.iter().enumerate() {
                            store::<S>(to.add((4 * row + column) * image + k * block + lane), value);
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
        let [height, width] = tiles.size;
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
                    start = load::<S>(bias[channel..][..lanes].as_ptr());
                }
                if let Some(more) = self.channel_add {
                    start = simd.add_f32s(start, load::<S>(more[number * cout + channel..][..lanes].as_ptr()));
                }
                let mut columns = [[simd.splat_f32s(0.0); 2]; 4];
                for (c, column) in columns.iter_mut().enumerate() {
                    let mut m = [simd.splat_f32s(0.0); 4];
                    for (r, m) in m.iter_mut().enumerate() {
                        *m = load::<S>(from.add((4 * r + c) * product + vector * lanes));
                    }
                    *column = pair(simd, m);
                }
                for row in 0..2 {
                    let values = pair(simd, across(&columns, row));
                    for (column, &value) in values.iter().enumerate() {
                        if top + row >= height || left + column >= width {
                            continue;
                        }
                        let place = ((number * height + top + row) * width + left + column) * cout + channel;
                        let mut value = simd.add_f32s(value, start);
                        if !self.plus.is_null() {
                            value = simd.add_f32s(value, load::<S>(self.plus.add(place)));
                        }
                        store::<S>(self.to.add(place), value);
                    }
                }
            }
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
#[path = "winograd_tests.rs"]
mod tests;
