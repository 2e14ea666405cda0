//! The weight gradient of a convolution of bf16 by matrix registers: dw = Σ over pixels of dy · x̂, shifted by the tap.
//!
//! Pixels lie on a grid whose rows have room for the shifts, so that a tap is an offset and the sum over an image one run of steps, with
//! zeros of dy where the grid has no pixel of it. A step is a pair of neighbours along a row; x̂ is packed twice, from even
//! and from odd pixels on, so that a shift by one column is a whole number of steps too. With stride 2 there are four grids of x̂, by the
//! parity of its row and column, zeros before the image counted.
//!
//! A task has some output channels by some input channels, and packs what it needs of both by itself: what another core has packed would
//! come slower than it is packed. Images go by in chunks that stay in the second cache, the segments of `product/matrices.rs`; a sum goes
//! on from chunk to chunk, so that its bits depend on the shapes alone.

use std::ops::Range;

use half::bf16;
use pulp::NullaryFnOnce;

use super::Sizes;
use crate::device::instructions::instruction_set;
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::product::matrices::{BLOCK, Chunks, Left, LeftRows, Right, SIDE, Target, task_blocks};
use crate::ops::host::product::{Factor, MatrixRegisters, Unit, WithUnit};
use crate::ops::host::{Float, pack};
use crate::tape::Accumulate;

/// Bytes of a task's chunk, about: with the task's part of dw they stay in the second cache.
const CHUNK_BYTES: usize = 3 << 18;

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
    bf16::with_unit(Gradient { sizes, grid: Grid::new(sizes, parallel::threads()), dw: Shared::new(dw), dy, x, mode });
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
    /// Words between the channels of dy: an odd number of cache lines, which spreads them over the cache.
    dy_pitch: usize,
    /// Vectors of input channels in a task.
    vectors: usize,
    /// Blocks of 16 output channels in a task.
    sides: usize,
}

impl Grid {
    fn new(sizes: &Sizes, threads: usize) -> Self {
        let [height, width] = sizes.out;
        let pitch = (width + (sizes.kernel[1] - 1) / sizes.stride).next_multiple_of(2);
        let chunks = Chunks::new(1, height * pitch / 2);
        let steps = chunks.count * chunks.chunk;
        let ways = (0..sizes.taps()).fold(0u32, |ways, tap| ways | 1 << Self::shift(sizes, pitch, tap).0);
        let blocks = (sizes.cout.div_ceil(BLOCK), sizes.cin.div_ceil(BLOCK));
        let (rows, columns) = task_blocks(blocks, (sizes.taps(), ways.count_ones() as usize), threads);
        let mut grid = Self {
            images: 1,
            pitch,
            steps,
            ways,
            pairs: steps + Self::shift(sizes, pitch, sizes.taps() - 1).1,
            dy_pitch: (steps.div_ceil(SIDE) | 1) * SIDE,
            vectors: (2 * columns).min(sizes.cin.div_ceil(SIDE)),
            sides: 2 * rows,
        };
        let bytes = size_of::<u32>() * (grid.x_words() + grid.dy_words());
        grid.images = (CHUNK_BYTES / bytes).clamp(1, sizes.batch);
        grid
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

    /// Words of an image's packed dy: `[channel][dy_pitch]`.
    fn dy_words(&self) -> usize {
        self.sides * SIDE * self.dy_pitch
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
    /// Its vectors of input channels, and its blocks of 16 output channels.
    vectors: Range<usize>,
    sides: Range<usize>,
}

impl WithUnit<bf16> for Gradient<'_> {
    fn run<U: Unit<bf16>>(self, unit: U) {
        let (Grid { images, vectors, sides, .. }, sizes) = (self.grid, self.sizes);
        let (all_vectors, all_sides) = (sizes.cin.div_ceil(SIDE), sizes.cout.div_ceil(SIDE));
        let (across, down) = (all_vectors.div_ceil(vectors), all_sides.div_ceil(sides));
        let room = images * self.grid.x_words();
        parallel::for_each(across * down, self.dy.len() * sizes.depth(), |task| {
            let [vectors, sides] = [(task % across, vectors, all_vectors), (task / across, sides, all_sides)]
                .map(|(part, size, all)| part * size..((part + 1) * size).min(all));
            f32::with_scratch(room + images * self.grid.dy_words(), |scratch| {
                let (x, dy) = scratch.split_at_mut(room);
                let (x, dy) = (x.as_mut_ptr().cast(), dy.as_mut_ptr().cast());
                unit.vectorize(Task { unit, work: &self, x, dy, vectors, sides });
            });
        });
    }
}

impl<U: Unit<bf16>> NullaryFnOnce for Task<'_, '_, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (grid, batch) = (self.work.grid, self.work.sizes.batch);
        for first in (0..batch).step_by(grid.images) {
            let count = grid.images.min(batch - first);
            // SAFETY: the scratch has room for as many images; each task has its own part of dw, within its length.
            unsafe {
                for image in 0..count {
                    self.pack_x(first + image, self.x.add(image * grid.x_words()));
                    for (place, side) in self.sides.clone().enumerate() {
                        let place = image * grid.dy_words() + place * SIDE * grid.dy_pitch;
                        self.pack_dy(self.dy.add(place), first + image, side);
                    }
                }
                for block in self.sides.clone().step_by(2) {
                    self.multiply(block - self.sides.start, count, first == 0);
                }
            }
        }
    }
}

impl<U: Unit<bf16>> Task<'_, '_, U> {
    /// # Safety
    /// There is room for the image.
    #[inline(always)]
    unsafe fn pack_x(&self, image: usize, to: *mut u32) {
        let grid = self.work.grid;
        let pitch = grid.pitch / 2;
        let size = self.work.sizes.source[0] * self.work.sizes.source[1] * self.work.sizes.cin;
        let source = &self.work.x[image * size..][..size];
        for row in 0..grid.pairs.div_ceil(pitch) {
            for (nth, vector) in self.vectors.clone().enumerate() {
                for (place, way) in (0..32).filter(|way| grid.ways >> way & 1 == 1).enumerate() {
                    let at = (place * grid.vectors + nth) * grid.pairs + row * pitch;
                    let len = pitch.min(grid.pairs - row * pitch);
                    // SAFETY: in the image's place.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(at * SIDE).cast(), len) };
                    self.pack_x_row(to, source, (row, vector), way);
                }
            }
        }
    }

    /// A row of pairs of sixteen channels.
    #[inline(always)]
    fn pack_x_row(&self, to: &mut [[u32; SIDE]], image: &[bf16], (row, vector): (usize, usize), way: usize) {
        let &Sizes { source, size, cin, pad, stride, .. } = self.work.sizes;
        let (parity, plane) = (way % 2, [way / 2 / stride, way / 2 % stride]);
        let first = vector * SIDE;
        let lanes = (cin - first).min(SIDE);
        let along = |axis: usize, at: usize| {
            let at = (at * stride + plane[axis]).checked_sub(pad[axis]).filter(|&at| at < size[axis])?;
            Some(if source[axis] == size[axis] { at } else { at * source[axis] / size[axis] })
        };
        let Some(y) = along(0, row) else {
            return to.fill([0; SIDE]);
        };
        let image = &image[y * source[1] * cin..][..source[1] * cin];
        let pixel = |column: usize| -> [bf16; SIDE] {
            let mut lying = [bf16::ZERO; SIDE];
            if let Some(x) = along(1, column) {
                load(&mut lying, &image[x * cin + first..][..lanes]);
            }
            lying
        };
        // Pairs of neighbours, both in the image, of whole vectors.
        let is_plain = stride == 1 && source[1] == size[1] && lanes == SIDE;
        let begin = if is_plain { pad[1].saturating_sub(parity).div_ceil(2).min(to.len()) } else { to.len() };
        let end = ((size[1] + pad[1]).saturating_sub(parity) / 2).clamp(begin, to.len());
        let (before, rest) = to.split_at_mut(begin);
        let (inside, after) = rest.split_at_mut(end - begin);
        for (at, to) in before.iter_mut().enumerate() {
            *to = paired(&pixel(2 * at + parity), &pixel(2 * at + parity + 1));
        }
        if !inside.is_empty() {
            pairs_of(inside, &image[(2 * begin + parity - pad[1]) * cin + first..], cin);
        }
        for (at, to) in after.iter_mut().enumerate() {
            // The second of a row's last odd pair is beyond the pitch: dy is zero there.
            *to = paired(&pixel(2 * (end + at) + parity), &pixel(2 * (end + at) + parity + 1));
        }
    }

    /// # Safety
    /// `to` has room for 16 channels.
    #[inline(always)]
    unsafe fn pack_dy(&self, to: *mut u32, image: usize, side: usize) {
        let &Sizes { out: [height, width], cout, .. } = self.work.sizes;
        let (Grid { pitch, steps, dy_pitch, .. }, first) = (self.work.grid, side * SIDE);
        let lanes = (cout - first).min(SIDE);
        let image = &self.work.dy[image * height * width * cout..];
        let pixel = |row: usize, column: usize| -> [bf16; SIDE] {
            let mut lying = [bf16::ZERO; SIDE];
            if row < height && column < width {
                load(&mut lying, &image[(row * width + column) * cout + first..][..lanes]);
            }
            lying
        };
        let (mut row, mut column) = (0, 0);
        for first_step in (0..steps).step_by(SIDE) {
            let count = (steps - first_step).min(SIDE);
            let mut across = [[0; SIDE]; SIDE];
            for to in &mut across[..count] {
                if row < height && column + 1 < width && lanes == SIDE {
                    pairs_of(std::slice::from_mut(to), &image[(row * width + column) * cout + first..], cout);
                } else {
                    *to = paired(&pixel(row, column), &pixel(row, column + 1));
                }
                column += 2;
                if column == pitch {
                    (row, column) = (row + 1, 0);
                }
            }
            // SAFETY: steps of 16 lanes, to 16 rows of them.
            unsafe {
                let (to, from) = (to.add(first_step).cast::<f32>(), across.as_ptr().cast::<f32>());
                pack::lanes(to, dy_pitch, from, (count, SIDE), (SIDE, 1), U::REGISTERS == 32);
            }
        }
    }

    /// # Safety
    /// The chunk, of so many images, is packed.
    #[inline(always)]
    unsafe fn multiply(&self, side: usize, segments: usize, is_first: bool) {
        let (sizes, grid) = (self.work.sizes, self.work.grid);
        let (channel, column) = ((self.sides.start + side) * SIDE, self.vectors.start * SIDE);
        let columns = (self.vectors.end * SIDE).min(sizes.cin) - column;
        let rows = (sizes.cout - channel).min(BLOCK);
        let chunks = Chunks::new(segments, segments * grid.steps);
        let (registers, vector) = (self.unit.matrices(), grid.pairs * SIDE);
        let left = Left::Rows {
            from: self.dy.wrapping_add(side * SIDE * grid.dy_pitch).cast_const().cast(),
            stride: 4 * grid.dy_pitch,
            segment: 4 * grid.dy_words(),
        };
        let is_new = is_first && self.work.mode == Accumulate::Write;
        f32::with_scratch(chunks.panel(), |panel| {
            // SAFETY: as the caller promises. Nothing foreign runs before the registers are closed.
            unsafe {
                let left = LeftRows::gather(chunks, rows, left, panel.as_mut_ptr().cast(), U::REGISTERS == 32);
                registers.open(chunks.chunk);
                for (part, chunks) in left.parts().enumerate() {
                    for tap in 0..sizes.taps() {
                        let (way, shift) = Grid::shift(sizes, grid.pitch, tap);
                        let from = self.x.wrapping_add(grid.place_of(way) * grid.vectors * vector + shift * SIDE);
                        let right = Right { from, step: SIDE, vector, segment: grid.x_words() };
                        let target = Target {
                            to: self.work.dw.get().wrapping_add(channel * sizes.depth() + tap * sizes.cin + column),
                            strides: (sizes.depth(), 1),
                            add: part > 0 || !is_new,
                        };
                        left.multiply_part(registers, right, columns, target, chunks.clone());
                    }
                }
                registers.close();
            }
        });
    }
}

/// Pairs by channel of neighbouring pixels, `pixel` elements apart: `to[i]` of 2 i and 2 i + 1, their first sixteen channels.
#[inline(always)]
fn pairs_of(to: &mut [[u32; SIDE]], from: &[bf16], pixel: usize) {
    assert!(from.len() >= (2 * to.len() - 1) * pixel + SIDE);
    for (i, to) in to.iter_mut().enumerate() {
        // SAFETY: the last of these was just checked.
        let [first, second] =
            [0, 1].map(|half| unsafe { from.as_ptr().add((2 * i + half) * pixel).cast::<[bf16; SIDE]>().read() });
        *to = paired(&first, &second);
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
                let (grid, out) = (Grid::new(&sizes, threads), Shared::new(&mut dw));
                let work = Gradient { sizes: &sizes, grid, dw: out, dy: &dy, x: &x, mode: Accumulate::Add };
                with_threads(threads, || work.run(WithMatrices(SixteenPairs, Model)));
                assert!(dw == expected, "{sizes:?} {threads} threads");
            }
        }
    }
}
