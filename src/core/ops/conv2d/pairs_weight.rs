//! The weight gradient of a convolution of bf16 by matrix registers: dw = Σ over pixels of dy · x̂, shifted by the tap.
//!
//! Pixels lie on a grid whose rows have room for the shifts, so that a tap is an offset and the sum over an image one run of steps, with
//! zeros of dy where the grid has no pixel of it. A step is a pair of neighbours along a row; x̂ is packed twice, from even
//! and from odd pixels on, so that a shift by one column is a whole number of steps too. With stride 2 there are four grids of x̂, by the
//! parity of its row and column, zeros before the image counted.
//!
//! Images go by in chunks of some thousand pixels; a chunk's sum is a block, its images the segments of `product/matrices.rs`. Blocks are
//! added in order: fixed by the shapes alone.

use half::bf16;
use pulp::NullaryFnOnce;

use super::Sizes;
use crate::device::instructions::instruction_set;
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::product::matrices::{BLOCK, Chunks, Left, LeftRows, Right, SIDE, Target};
use crate::ops::host::product::{Factor, MatrixRegisters, Unit, WithUnit};
use crate::ops::host::{Float, pack};
use crate::tape::Accumulate;

/// Pixels of the grid in a chunk, about: enough that adding up the blocks costs little.
const CHUNK_PIXELS: usize = 1024;

/// Whether there are registers for matrices.
pub(super) fn fits() -> bool {
    instruction_set().tiles.is_some()
}

/// dw `[Cout, ky, kx, Cin]` from dy `[B, Ho, Wo, Cout]` and x `[B, h, w, Cin]`.
pub(super) fn weight_gradient(sizes: &Sizes, dw: &mut [f32], dy: &[bf16], x: &[bf16], mode: Accumulate) {
    assert_eq!(dw.len(), sizes.cout * sizes.depth());
    assert_eq!(dy.len(), sizes.batch * sizes.out_pixels() * sizes.cout);
    assert_eq!(x.len(), sizes.batch * sizes.source[0] * sizes.source[1] * sizes.cin);
    if dy.is_empty() {
        if mode == Accumulate::Write {
            dw.fill(0.0);
        }
        return;
    }
    bf16::with_unit(Gradient { sizes, grid: Grid::new(sizes), dw: Shared::new(dw), dy, x, mode });
}

/// Where pixels lie, and how much memory they take.
#[derive(Clone, Copy)]
struct Grid {
    /// Images in a chunk.
    images: usize,
    /// Pixels between rows, even.
    pitch: usize,
    /// Steps of an image, in whole chunks of the registers.
    steps: usize,
    /// The ways in which x̂ is packed, a bit each, of twice as many as there are grids.
    ways: u32,
    /// Pairs of x̂ in a vector: all that a shift by the last tap reaches.
    pairs: usize,
    /// Vectors of input channels.
    vectors: usize,
    /// Blocks of 16 output channels.
    sides: usize,
}

impl Grid {
    fn new(sizes: &Sizes) -> Self {
        let [height, width] = sizes.out;
        let pitch = (width + (sizes.kernel[1] - 1) / sizes.stride).next_multiple_of(2);
        let chunks = Chunks::new(1, height * pitch / 2);
        let steps = chunks.count * chunks.chunk;
        Self {
            images: (CHUNK_PIXELS / (height * pitch)).clamp(1, sizes.batch),
            pitch,
            steps,
            ways: (0..sizes.taps()).fold(0, |ways, tap| ways | 1 << Self::shift(sizes, pitch, tap).0),
            pairs: steps + Self::shift(sizes, pitch, sizes.taps() - 1).1,
            vectors: sizes.cin.div_ceil(SIDE),
            sides: sizes.cout.div_ceil(SIDE),
        }
    }

    /// A tap's way of packing, and its shift in steps.
    fn shift(sizes: &Sizes, pitch: usize, tap: usize) -> (usize, usize) {
        let ((row, column), stride) = (sizes.tap(tap), sizes.stride);
        let plane = row % stride * stride + column % stride;
        let (row, column) = (row / stride, column / stride);
        (2 * plane + column % 2, (row * pitch + column) / 2)
    }

    /// How many ways there are.
    fn ways(&self) -> usize {
        self.ways.count_ones() as usize
    }

    /// Which of them a way is.
    fn place_of(&self, way: usize) -> usize {
        (self.ways & ((1 << way) - 1)).count_ones() as usize
    }

    /// Words of an image's packed x̂: `[way][vector][pairs][16]`.
    fn x_words(&self) -> usize {
        self.ways() * self.vectors * self.pairs * SIDE
    }

    /// Words of an image's packed dy: `[channel][steps]`.
    fn dy_words(&self) -> usize {
        self.sides * SIDE * self.steps
    }
}

struct Gradient<'a> {
    sizes: &'a Sizes,
    grid: Grid,
    dw: Shared<f32>,
    dy: &'a [bf16],
    x: &'a [bf16],
    mode: Accumulate,
}

/// One task, compiled for a unit.
struct Task<'a, 'b, U> {
    unit: U,
    work: &'a Gradient<'b>,
    x: *mut u32,
    dy: *mut u32,
    /// The chunk's first image, and how many there are.
    images: (usize, usize),
    what: What,
}

enum What {
    /// A vector of x̂: image of the chunk, way of packing, vector.
    PackX([usize; 3]),
    /// Sixteen channels of dy: image of the chunk, block of channels.
    PackDy([usize; 2]),
    /// 32 output channels of a tap.
    Multiply([usize; 2]),
}

impl WithUnit<bf16> for Gradient<'_> {
    fn run<U: Unit<bf16>>(self, unit: U) {
        let (Grid { images, vectors, sides, .. }, batch) = (self.grid, self.sizes.batch);
        let (x_words, dy_words, ways) = (self.grid.x_words(), self.grid.dy_words(), self.grid.ways());
        let all: Vec<usize> = (0..32).filter(|way| self.grid.ways >> way & 1 == 1).collect();
        let blocks = self.sizes.cout.div_ceil(BLOCK);
        f32::with_scratch(images * (x_words + dy_words), |scratch| {
            let (x, dy) = scratch.split_at_mut(images * x_words);
            let (x, dy): (Shared<u32>, Shared<u32>) =
                (Shared::new(bytemuck::cast_slice_mut(x)), Shared::new(bytemuck::cast_slice_mut(dy)));
            let here = |chunk: usize| (chunk * images, images.min(batch - chunk * images));
            let count = |phase: usize| match phase % 2 {
                0 => here(phase / 2).1 * (ways * vectors + sides),
                _ => blocks * self.sizes.taps(),
            };
            let work = |phase: usize, task: usize| {
                let images = here(phase / 2);
                let (image, part) = (task % images.1, task / images.1);
                let what = match phase % 2 {
                    0 if part < sides => What::PackDy([image, part]),
                    0 => What::PackX([image, all[(part - sides) % ways], (part - sides) / ways]),
                    _ => What::Multiply([task / self.sizes.taps(), task % self.sizes.taps()]),
                };
                unit.vectorize(Task { unit, work: &self, x: x.get(), dy: dy.get(), images, what });
            };
            parallel::for_phases(parallel::threads(), 2 * batch.div_ceil(images), count, work);
        });
    }
}

impl<U: Unit<bf16>> NullaryFnOnce for Task<'_, '_, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Grid { pairs, vectors, steps, .. } = self.work.grid;
        // SAFETY: each task of a phase has its own part of the scratch or of dw, all within their lengths.
        unsafe {
            match self.what {
                What::PackX([image, way, vector]) => {
                    let grid = self.work.grid;
                    let place = ((image * grid.ways() + grid.place_of(way)) * vectors + vector) * pairs * SIDE;
                    self.pack_x(std::slice::from_raw_parts_mut(self.x.add(place), pairs * SIDE), image, way, vector);
                }
                What::PackDy([image, side]) => {
                    let place = image * self.work.grid.dy_words() + side * SIDE * steps;
                    self.pack_dy(self.dy.add(place), image, side);
                }
                What::Multiply([block, tap]) => self.multiply(block, tap),
            }
        }
    }
}

impl<U: Unit<bf16>> Task<'_, '_, U> {
    #[inline(always)]
    fn pack_x(&self, to: &mut [u32], image: usize, way: usize, vector: usize) {
        let &Sizes { source, size, cin, pad, stride, .. } = self.work.sizes;
        let (parity, plane) = (way % 2, [way / 2 / stride, way / 2 % stride]);
        let (pitch, first) = (self.work.grid.pitch, vector * SIDE);
        let lanes = (cin - first).min(SIDE);
        let image = &self.work.x[(self.images.0 + image) * source[0] * source[1] * cin..];
        let along = |axis: usize, at: usize| {
            let at = (at * stride + plane[axis]).checked_sub(pad[axis]).filter(|&at| at < size[axis])?;
            Some(if source[axis] == size[axis] { at } else { at * source[axis] / size[axis] })
        };
        let pixel = |row: Option<usize>, column: usize| -> [bf16; SIDE] {
            let mut lying = [bf16::ZERO; SIDE];
            if let (Some(y), Some(x)) = (row, along(1, column)) {
                load(&mut lying, &image[(y * source[1] + x) * cin + first..][..lanes]);
            }
            lying
        };
        for (row, to) in to.chunks_mut(pitch / 2 * SIDE).enumerate() {
            let y = along(0, row);
            for (at, to) in to.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
                // The second of a row's last odd pair is beyond the pitch: dy is zero there.
                *to = paired(&pixel(y, 2 * at + parity), &pixel(y, 2 * at + parity + 1));
            }
        }
    }

    /// # Safety
    /// `to` has room for 16 channels.
    #[inline(always)]
    unsafe fn pack_dy(&self, to: *mut u32, image: usize, side: usize) {
        let &Sizes { out: [height, width], cout, .. } = self.work.sizes;
        let (Grid { pitch, steps, .. }, first) = (self.work.grid, side * SIDE);
        let lanes = (cout - first).min(SIDE);
        let image = &self.work.dy[(self.images.0 + image) * height * width * cout..];
        let pixel = |row: usize, column: usize| -> [bf16; SIDE] {
            let mut lying = [bf16::ZERO; SIDE];
            if row < height && column < width {
                load(&mut lying, &image[(row * width + column) * cout + first..][..lanes]);
            }
            lying
        };
        f32::with_scratch(steps * SIDE, |scratch| {
            let across: &mut [u32] = bytemuck::cast_slice_mut(scratch);
            for (step, to) in across.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
                let (row, column) = (2 * step / pitch, 2 * step % pitch);
                *to = paired(&pixel(row, column), &pixel(row, column + 1));
            }
            // SAFETY: steps of 16 lanes, to 16 rows of them.
            unsafe {
                let from = across.as_ptr().cast::<f32>();
                pack::lanes(to.cast(), steps, from, (steps, SIDE), (SIDE, 1), U::REGISTERS == 32);
            }
        });
    }

    /// # Safety
    /// The chunk is packed, and these elements of dw are this call's alone.
    #[inline(always)]
    unsafe fn multiply(&self, block: usize, tap: usize) {
        let (sizes, grid) = (self.work.sizes, self.work.grid);
        let (way, shift) = Grid::shift(sizes, grid.pitch, tap);
        let (segments, channel) = (self.images.1, block * BLOCK);
        let rows = (sizes.cout - channel).min(BLOCK);
        let chunks = Chunks::new(segments, segments * grid.steps);
        let (registers, vector) = (self.unit.matrices(), grid.pairs * SIDE);
        let left = Left::Rows {
            from: self.dy.wrapping_add(channel * grid.steps).cast_const().cast(),
            stride: 4 * grid.steps,
            segment: 4 * grid.dy_words(),
        };
        let right = Right {
            from: self.x.wrapping_add(grid.place_of(way) * grid.vectors * vector + shift * SIDE),
            step: SIDE,
            vector,
            segment: grid.x_words(),
        };
        let target = Target {
            to: self.work.dw.get().wrapping_add(channel * sizes.depth() + tap * sizes.cin),
            strides: (sizes.depth(), 1),
            add: self.work.mode == Accumulate::Add || self.images.0 > 0,
        };
        f32::with_scratch(chunks.panel(), |panel| {
            // SAFETY: as the caller promises. Nothing foreign runs before the registers are closed.
            unsafe {
                let left = LeftRows::gather(chunks, rows, left, panel.as_mut_ptr().cast(), U::REGISTERS == 32);
                registers.open(chunks.chunk);
                left.multiply(registers, right, sizes.cin, target);
                registers.close();
            }
        });
    }
}

/// Copies a pixel's channels: sixteen are one move.
#[inline(always)]
fn load(to: &mut [bf16; SIDE], from: &[bf16]) {
    match <&[bf16; SIDE]>::try_from(from) {
        Ok(from) => *to = *from,
        Err(_) => to[..from.len()].copy_from_slice(from),
    }
}

/// Two pixels as pairs by channel.
#[inline(always)]
fn paired(first: &[bf16; SIDE], second: &[bf16; SIDE]) -> [u32; SIDE] {
    let mut pairs = [0; SIDE];
    for ((pair, first), second) in pairs.iter_mut().zip(first).zip(second) {
        *pair = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host::Held;
    use crate::ops::host::parallel::with_threads;
    use crate::ops::host::product::{Model, SixteenPairs, WithMatrices};

    /// Numbers whose products and sums are exact.
    fn values(len: usize, salt: usize) -> Vec<bf16> {
        (0..len).map(|i| bf16::of(((i * 7919 + salt) % 31) as f32 - 15.0)).collect()
    }

    fn definition(sizes: &Sizes, dw: &mut [f32], dy: &[bf16], x: &[bf16]) {
        let Sizes { source, size, out, cin, cout, pad, stride, .. } = *sizes;
        for (pixel, dy) in dy.chunks_exact(cout).enumerate() {
            let (image, y, column) = (pixel / sizes.out_pixels(), pixel / out[1] % out[0], pixel % out[1]);
            for tap in 0..sizes.taps() {
                let (ky, kx) = sizes.tap(tap);
                let at = |window: usize, tap: usize, axis: usize| (window * stride + tap).checked_sub(pad[axis]);
                let (Some(y), Some(column)) = (at(y, ky, 0), at(column, kx, 1)) else {
                    continue;
                };
                if y >= size[0] || column >= size[1] {
                    continue;
                }
                let (y, column) = (y * source[0] / size[0], column * source[1] / size[1]);
                let x = &x[((image * source[0] + y) * source[1] + column) * cin..][..cin];
                for (o, dy) in dy.iter().enumerate() {
                    for (i, x) in x.iter().enumerate() {
                        dw[(o * sizes.taps() + tap) * cin + i] += dy.get() * x.get();
                    }
                }
            }
        }
    }

    #[test]
    fn every_geometry_gives_the_definition_with_any_number_of_threads() {
        for (batch, source, size, [cin, cout], kernel, pad, stride) in [
            (1, 1, 1, [1, 1], 1, 0, 1),
            (3, 8, 8, [16, 32], 3, 1, 1),
            (5, 7, 7, [20, 33], 3, 1, 1),
            (2, 33, 33, [48, 5], 3, 1, 1),
            (40, 4, 4, [3, 17], 5, 2, 1),
            (2, 5, 10, [34, 16], 3, 1, 1),
            (1, 9, 9, [17, 50], 3, 0, 1),
            (3, 16, 16, [16, 32], 3, 1, 2),
            (2, 9, 9, [5, 20], 3, 0, 2),
            (2, 7, 7, [18, 3], 5, 2, 2),
            (2, 6, 6, [4, 4], 1, 0, 2),
        ] {
            let sizes = Sizes {
                batch,
                source: [source; 2],
                size: [size; 2],
                // Rows without zeros behind them.
                out: [(size + pad - kernel) / stride + 1, size.div_ceil(stride)],
                cin,
                cout,
                kernel: [kernel; 2],
                stride,
                pad: [pad; 2],
            };
            let dy = values(batch * sizes.out_pixels() * cout, 3);
            let x = values(batch * source * source * cin, 5);
            let mut expected = vec![7.0; cout * sizes.depth()];
            definition(&sizes, &mut expected, &dy, &x);
            for threads in [1, 2, 3] {
                let mut dw = vec![7.0; cout * sizes.depth()];
                let (grid, out) = (Grid::new(&sizes), Shared::new(&mut dw));
                let work = Gradient { sizes: &sizes, grid, dw: out, dy: &dy, x: &x, mode: Accumulate::Add };
                with_threads(threads, || work.run(WithMatrices(SixteenPairs, Model)));
                assert!(dw == expected, "{sizes:?} {threads} threads");
            }
        }
    }
}
