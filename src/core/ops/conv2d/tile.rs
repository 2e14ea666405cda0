//! The inner loops of the direct convolution: tiles of the result that stay in registers while the sum goes by.

use pulp::{NullaryFnOnce, Simd};

use super::direct::Direct;
use crate::ops::host::Float;

/// Rows of one tile, at most.
const TALLEST: usize = 4;

/// Outputs of one tile, at most: accumulators, two vectors of the weight and a broadcast fit the registers.
const fn tile_pixels<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Some rows of one image's result.
pub(super) struct Task<'a, T, S, F> {
    pub simd: S,
    pub direct: &'a Direct,
    pub copied: &'a [T],
    pub packed: &'a [T],
    /// Rows of every class.
    pub rows: (usize, usize),
    /// A panel's sums between blocks: `[rows, columns, panel]`.
    pub sums: *mut T,
    pub to: *mut T,
    /// The term added to the result, in its layout; null for none.
    pub plus: *const T,
    pub start: F,
}

impl<T: Float, S: Simd, F: Fn(usize, &mut [T])> NullaryFnOnce for Task<'_, T, S, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, direct, copied, packed, rows, sums, to, plus, start } = self;
        let (channels, cout, spread) = (direct.rows.channels, direct.cout, direct.spread);
        let panel = 2 * T::lanes::<S>();
        let panels = cout.div_ceil(panel);
        let most = tile_pixels::<S>();
        let mut weights = packed;
        // 16 lanes of f32, 2 vectors: the largest panel there is.
        let mut first_values = [T::ZERO; 32];
        for class in &direct.classes {
            let [count_rows, count_columns] = class.count;
            let last = rows.1.min(count_rows);
            let whole = class.steps(class.block(), direct.rows.width);
            let partial = class.steps(channels % class.block(), direct.rows.width);
            let heights = tile_heights(last.saturating_sub(rows.0), count_columns, most);
            for j in 0..panels {
                let (b, rest) = weights.split_at(class.taps.len() * channels * panel);
                weights = rest;
                let columns = panel.min(cout - j * panel);
                first_values.fill(T::ZERO);
                start(j, &mut first_values[..columns]);
                for channel in (0..channels).step_by(class.block()) {
                    let block = class.block().min(channels - channel);
                    let steps = if block == class.block() { &whole } else { &partial };
                    let mut row = rows.0;
                    for &tall in &heights {
                        let tiles = count_columns.div_ceil(most / tall);
                        for tile in 0..tiles {
                            let (x0, x1) = (tile * count_columns / tiles, (tile + 1) * count_columns / tiles);
                            let place =
                                ((class.first[0] + row * spread) * direct.out[1] + class.first[1] + x0 * spread) * cout
                                    + j * panel;
                            let at = (row - rows.0) * direct.row_step * direct.rows.pitch()
                                + channel * direct.rows.width
                                + x0;
                            // SAFETY: the rows of this task were copied with all that their taps reach, and the tile's outputs
                            // lie in the image, which this task alone writes.
                            unsafe {
                                let walk = Walk {
                                    simd,
                                    steps,
                                    a: copied.as_ptr().add(at),
                                    a_row: direct.row_step * direct.rows.pitch(),
                                    b: b.as_ptr().add(class.taps.len() * channel * panel),
                                    start: (channel == 0).then_some(first_values.as_ptr()),
                                    sums: sums.add(((row - rows.0) * count_columns + tall * x0) * panel),
                                    finish: channel + block == channels,
                                    to: to.add(place),
                                    plus: if plus.is_null() { plus } else { plus.add(place) },
                                    to_row: spread * direct.out[1] * cout,
                                    to_pixel: spread * cout,
                                    columns,
                                };
                                walk.tile(tall, x1 - x0);
                            }
                        }
                        row += tall;
                    }
                }
            }
        }
    }
}

/// Rows of the tiles that cover `rows` rows of `columns` outputs, from the top: as few tiles of at most `most` pixels as can be,
/// because a small one has too few sums under way to keep the arithmetic busy.
fn tile_heights(rows: usize, columns: usize, most: usize) -> Vec<usize> {
    // Tiles for the last i rows, and the height of the first of them.
    let mut best = vec![(0, 0)];
    for i in 1..=rows {
        let choice = (1..=TALLEST.min(i)).map(|tall| (best[i - tall].0 + columns.div_ceil(most / tall), tall)).min();
        best.extend(choice);
    }
    let mut heights = Vec::new();
    let mut left = rows;
    while left > 0 {
        heights.push(best[left].1);
        left -= best[left].1;
    }
    heights
}

/// One tile's way through the steps of a block.
#[derive(Clone, Copy)]
struct Walk<'a, T, S> {
    simd: S,
    /// See `Class::steps`.
    steps: &'a [usize],
    a: *const T,
    a_row: usize,
    b: *const T,
    /// The two vectors that all sums start from; None where they wait in `sums`.
    start: Option<*const T>,
    sums: *mut T,
    /// Whether this is the last block: the sums go to the result.
    finish: bool,
    to: *mut T,
    plus: *const T,
    to_row: usize,
    to_pixel: usize,
    columns: usize,
}

macro_rules! tiles {
    ($walk:expr, $tall:expr, $wide:expr; $(($r:literal, $p:literal)),*) => {
        match ($tall, $wide) {
            $(($r, $p) => $walk.sum::<$r, $p>(),)*
            _ => unreachable!("a tile of {} x {}", $tall, $wide),
        }
    };
}

impl<T: Float, S: Simd> Walk<'_, T, S> {
    /// # Safety
    /// All that the taps reach from `a` is readable, and the tile's outputs may be written.
    #[inline(always)]
    unsafe fn tile(self, tall: usize, wide: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            tiles!(self, tall, wide;
                (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (1, 10), (1, 11), (1, 12), (1, 13),
                (1, 14), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (2, 7), (3, 1), (3, 2), (3, 3), (3, 4), (4, 1), (4, 2),
                (4, 3));
        }
    }

    /// `R` rows by `P` pixels by two vectors.
    #[inline(always)]
    unsafe fn sum<const R: usize, const P: usize>(self) {
        if R * P > tile_pixels::<S>() {
            return;
        }
        let Self { simd, to_row, to_pixel, .. } = self;
        let lanes = T::lanes::<S>();
        // SAFETY: as the caller of `tile` promises.
        unsafe {
            let waiting = self.sums.cast::<[[[T::Vector<S>; 2]; P]; R]>();
            let mut sums = match self.start {
                Some(start) => {
                    let first = [start, start.add(lanes)].map(|at| at.cast::<T::Vector<S>>().read_unaligned());
                    [[first; P]; R]
                }
                None => waiting.read_unaligned(),
            };
            let mut b = self.b;
            for &step in self.steps {
                let a = self.a.add(step);
                let b0 = b.cast::<T::Vector<S>>().read_unaligned();
                let b1 = b.add(lanes).cast::<T::Vector<S>>().read_unaligned();
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = a.add(r * self.a_row);
                    for (p, [s0, s1]) in sums.iter_mut().enumerate() {
                        let x = T::splat(simd, *a.add(p));
                        *s0 = T::vector_mul_add(simd, x, b0, *s0);
                        *s1 = T::vector_mul_add(simd, x, b1, *s1);
                    }
                }
                b = b.add(2 * lanes);
            }
            if !self.finish {
                waiting.write_unaligned(sums);
            } else if self.columns == 2 * lanes {
                for (r, sums) in sums.iter().enumerate() {
                    for (p, &[mut s0, mut s1]) in sums.iter().enumerate() {
                        let place = r * to_row + p * to_pixel;
                        if !self.plus.is_null() {
                            let plus = self.plus.add(place);
                            s0 = T::vector_add(simd, s0, plus.cast::<T::Vector<S>>().read_unaligned());
                            s1 = T::vector_add(simd, s1, plus.add(lanes).cast::<T::Vector<S>>().read_unaligned());
                        }
                        let to = self.to.add(place);
                        to.cast::<T::Vector<S>>().write_unaligned(s0);
                        to.add(lanes).cast::<T::Vector<S>>().write_unaligned(s1);
                    }
                }
            } else {
                // A copy: indexed at run time, the sums themselves would have to live in memory all along.
                let copy = sums;
                let values = copy.as_ptr().cast::<T>();
                for (r, p) in (0..R * P).map(|i| (i / P, i % P)) {
                    for o in 0..self.columns {
                        let place = r * to_row + p * to_pixel + o;
                        let value = *values.add((r * P + p) * 2 * lanes + o);
                        let plus = if self.plus.is_null() { T::ZERO } else { *self.plus.add(place) };
                        *self.to.add(place) = value + plus;
                    }
                }
            }
        }
    }
}
