//! The convolution's weight gradient: for each tap a product dyᵀ · x̂ over the pixels where both exist.
//!
//! Channels last is what it needs: for a pixel, a few neighbouring output channels of dy are the scalars and two vectors of
//! x̂'s input channels the row, so nothing is packed unless x is resized or its channels do not fill whole vectors. Pixels
//! go by in chunks that stay in the cache while all tiles of the gradient pass over them.
//!
//! An element is the sum over chunks, in order, of one chain each over the chunk's images, rows and columns in ascending
//! order: fixed by the shapes alone.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::{Sizes, sum_counted};
use crate::ops::host::Float;
use crate::ops::host::parallel::{self, Shared};
use crate::tape::Accumulate;

/// Pixels in a chunk, about; enough that loading and storing the sums costs little.
const CHUNK_PIXELS: usize = 256;

/// dw `[Cout, ky, kx, Cin]` from dy `[B, Ho, Wo, Cout]` and x `[B, h, w, Cin]`.
pub(super) fn weight_gradient<T: Float>(sizes: &Sizes, dw: &mut [T], dy: &[T], x: &[T], mode: Accumulate) {
    assert_eq!(dw.len(), sizes.cout * sizes.depth());
    assert_eq!(dy.len(), sizes.batch * sizes.out_pixels() * sizes.cout);
    assert_eq!(x.len(), sizes.batch * sizes.source[0] * sizes.source[1] * sizes.cin);
    T::dispatch(Gradient { sizes, dw, dy, x, mode });
}

struct Gradient<'a, T> {
    sizes: &'a Sizes,
    dw: &'a mut [T],
    dy: &'a [T],
    x: &'a [T],
    mode: Accumulate,
}

/// Output channels of one tile, at most.
const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// The windows along one axis that a tap takes to the image, and where the first one meets it.
fn reach(sizes: &Sizes, axis: usize, k: usize) -> (usize, usize, usize) {
    let first = sizes.pad[axis].saturating_sub(k).div_ceil(sizes.stride);
    // i * stride + k - pad < size
    let last = (sizes.size[axis] + sizes.pad[axis]).saturating_sub(k).div_ceil(sizes.stride).min(sizes.out[axis]);
    (first.min(last), last, (first * sizes.stride + k).saturating_sub(sizes.pad[axis]))
}

/// Some pixels: whole images, or rows `rows` of one.
#[derive(Clone, Copy)]
struct Chunk {
    images: (usize, usize),
    rows: (usize, usize),
}

fn chunks(sizes: &Sizes) -> Vec<Chunk> {
    let [height, width] = sizes.out;
    let images = (CHUNK_PIXELS / (height * width)).max(1);
    let rows = if images > 1 { height } else { (CHUNK_PIXELS / width).clamp(1, height) };
    let mut chunks = Vec::new();
    for first in (0..sizes.batch).step_by(images) {
        for row in (0..height).step_by(rows) {
            chunks.push(Chunk {
                images: (first, (first + images).min(sizes.batch)),
                rows: (row, (row + rows).min(height)),
            });
        }
    }
    chunks
}

impl<T: Float> WithSimd for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sizes, dw, dy, x, mode } = self;
        let Sizes { cin, cout, .. } = *sizes;
        let panel = 2 * T::lanes::<S>();
        let panels = cin.div_ceil(panel);
        let tiles = cout.div_ceil(tile_rows::<S>());
        let chunks = chunks(sizes);
        // x̂ with rows of whole vectors where x itself has none.
        let copies = cin % panel != 0 || sizes.source != sizes.size;
        let pitch = panels * panel;
        let hat = if copies { sizes.size[0] * sizes.size[1] * pitch } else { 0 };

        T::with_scratch(sizes.batch * hat, |hats| {
            if copies {
                parallel::for_rows(hats, hat, |b, hat| {
                    let [h, w] = sizes.source;
                    let image = &x[b * h * w * cin..][..h * w * cin];
                    for (at, pixel) in hat.chunks_exact_mut(pitch).enumerate() {
                        let (i, j) = (at / sizes.size[1] * h / sizes.size[0], at % sizes.size[1] * w / sizes.size[1]);
                        pixel[..cin].copy_from_slice(&image[(i * w + j) * cin..][..cin]);
                        pixel[cin..].fill(T::ZERO);
                    }
                });
            }
            let x = if copies { &*hats } else { x };
            // Tiles of the gradient, by output channels first: a task then reads a part of dy only.
            let units = tiles * sizes.taps();
            let threads = parallel::threads();
            let groups = if threads == 1 { 1 } else { (2 * threads).min(units) };
            let to = Shared::new(dw);
            let work = |group: usize| {
                // Here, not further out: only what is inlined into this call is compiled for `S`.
                simd.vectorize(Group {
                    simd,
                    sizes,
                    chunks: &chunks,
                    units: (group * units / groups, (group + 1) * units / groups),
                    tiles,
                    to: to.get(),
                    dy,
                    x,
                    pitch,
                    add: mode == Accumulate::Add,
                });
            };
            parallel::for_each(groups, parallel::GRAIN, work);
        });
    }
}

/// Some tiles of the gradient, over all pixels.
struct Group<'a, T, S> {
    simd: S,
    sizes: &'a Sizes,
    chunks: &'a [Chunk],
    units: (usize, usize),
    tiles: usize,
    to: *mut T,
    dy: &'a [T],
    x: &'a [T],
    /// Elements between pixels of `x`.
    pitch: usize,
    add: bool,
}

impl<T: Float, S: Simd> NullaryFnOnce for Group<'_, T, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, sizes, chunks, units, tiles, to, dy, x, pitch, add } = self;
        let Sizes { cin, cout, stride, .. } = *sizes;
        let (panel, depth, taps) = (2 * T::lanes::<S>(), sizes.depth(), sizes.taps());
        let ([_, out_width], [height, width]) = (sizes.out, sizes.size);
        for (number, chunk) in chunks.iter().enumerate() {
            let images = chunk.images.1 - chunk.images.0;
            for unit in units.0..units.1 {
                let (tile, tap) = (unit / taps, unit % taps);
                let (o0, o1) = (tile * cout / tiles, (tile + 1) * cout / tiles);
                let (ky, kx) = sizes.tap(tap);
                let (top, bottom, source_top) = reach(sizes, 0, ky);
                let (left, right, source_left) = reach(sizes, 1, kx);
                let (first, last) = (top.max(chunk.rows.0), bottom.min(chunk.rows.1));
                let (rows, columns) = (last.saturating_sub(first), right - left);
                let images = if rows * columns == 0 { 0 } else { images };
                let source_row = source_top + first.saturating_sub(top) * stride;
                let out_place = (chunk.images.0 * sizes.out[0] + first) * out_width + left;
                let source_place = (chunk.images.0 * height + source_row) * width + source_left;
                for channel in (0..cin).step_by(panel) {
                    // SAFETY: with no images nothing is read; else the rows and columns are those of both images, whose lengths
                    // were checked, and the tile lies in dw, which this task alone writes there.
                    unsafe {
                        let (a, b) = match images {
                            0 => (dy.as_ptr(), x.as_ptr()),
                            _ => {
                                (dy.as_ptr().add(out_place * cout + o0), x.as_ptr().add(source_place * pitch + channel))
                            }
                        };
                        let walk = Walk {
                            simd,
                            count: [images, rows, columns],
                            a,
                            a_steps: [sizes.out_pixels() * cout, out_width * cout, cout],
                            b,
                            b_steps: [height * width * pitch, stride * width * pitch, stride * pitch],
                            to: to.add(o0 * depth + tap * cin + channel),
                            to_row: depth,
                            columns: panel.min(cin - channel),
                            add: add || number > 0,
                        };
                        walk.tile(o1 - o0);
                    }
                }
            }
        }
    }
}

/// One tile's way over a chunk's pixels.
#[derive(Clone, Copy)]
struct Walk<T, S> {
    simd: S,
    /// Images, rows, columns.
    count: [usize; 3],
    a: *const T,
    a_steps: [usize; 3],
    b: *const T,
    b_steps: [usize; 3],
    to: *mut T,
    to_row: usize,
    columns: usize,
    add: bool,
}

impl<T: Float, S: Simd> Walk<T, S> {
    /// # Safety
    /// The pixels are readable and the tile may be read and written.
    #[inline(always)]
    unsafe fn tile(self, rows: usize) {
        // SAFETY: as the caller promises.
        unsafe { sum_counted!(self, rows) }
    }

    /// `P` output channels by two vectors of input channels.
    #[inline(always)]
    unsafe fn sum<const P: usize>(self) {
        if P > tile_rows::<S>() {
            return;
        }
        let Self { simd, count, a_steps, b_steps, .. } = self;
        let lanes = T::lanes::<S>();
        let zero = T::splat(simd, T::ZERO);
        let mut sums = [[zero; 2]; P];
        // SAFETY: as the caller of `tile` promises.
        unsafe {
            for image in 0..count[0] {
                for row in 0..count[1] {
                    let mut a = self.a.add(image * a_steps[0] + row * a_steps[1]);
                    let mut b = self.b.add(image * b_steps[0] + row * b_steps[1]);
                    for _ in 0..count[2] {
                        let b0 = b.cast::<T::Vector<S>>().read_unaligned();
                        let b1 = b.add(lanes).cast::<T::Vector<S>>().read_unaligned();
                        for (p, [s0, s1]) in sums.iter_mut().enumerate() {
                            let d = T::splat(simd, *a.add(p));
                            *s0 = T::vector_mul_add(simd, d, b0, *s0);
                            *s1 = T::vector_mul_add(simd, d, b1, *s1);
                        }
                        // The last step leaves the array; nothing is read there.
                        a = a.wrapping_add(a_steps[2]);
                        b = b.wrapping_add(b_steps[2]);
                    }
                }
            }
            if self.columns == 2 * lanes {
                for (p, &[mut s0, mut s1]) in sums.iter().enumerate() {
                    let to0 = self.to.add(p * self.to_row).cast::<T::Vector<S>>();
                    let to1 = self.to.add(p * self.to_row + lanes).cast::<T::Vector<S>>();
                    if self.add {
                        s0 = T::vector_add(simd, to0.read_unaligned(), s0);
                        s1 = T::vector_add(simd, to1.read_unaligned(), s1);
                    }
                    to0.write_unaligned(s0);
                    to1.write_unaligned(s1);
                }
            } else {
                // A copy: indexed at run time, the sums themselves would have to live in memory all along.
                let copy = sums;
                let values = copy.as_ptr().cast::<T>();
                for p in 0..P {
                    for c in 0..self.columns {
                        let to = self.to.add(p * self.to_row + c);
                        let value = *values.add(p * 2 * lanes + c);
                        *to = if self.add { *to + value } else { value };
                    }
                }
            }
        }
    }
}
