//! What one thread reaches with a dtype's instructions: on registers alone, and with factors from the first cache. Against these the
//! shares of whole products are told (`cargo bench -p benches --bench products`).

use std::hint::black_box;
use std::time::Instant;

use pulp::NullaryFnOnce;

use super::factor::{Factor, Unit, WithUnit};
use super::matrices::{BLOCK, Chunks, Left, LeftRows, Right, Target};
use super::registers::MatrixRegisters;
use super::tile::{self, Rows, Tile};
use crate::ops::host::Float;

/// Floating-point operations a second of one thread: a multiplication and an addition are two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// On registers alone.
    pub registers: f64,
    /// With both factors in the first cache.
    pub first_cache: f64,
}

/// Measures it, for some tens of milliseconds.
pub fn peak<T: Factor>() -> Peak {
    let mut peak = Peak::default();
    T::with_unit(Measure(&mut peak));
    peak
}

/// Steps of the sum of a block whose factors fill some 30 KiB.
const STEPS: usize = 112;
/// Blocks in a measurement.
const BLOCKS: usize = 2000;

struct Measure<'a>(&'a mut Peak);

impl<T: Factor> WithUnit<T> for Measure<'_> {
    fn run<U: Unit<T>>(self, unit: U) {
        let (rows, vectors) = tile::largest::<T, U>();
        let operations = (2 * rows * vectors * U::lanes() * STEPS * T::PER_STEP * BLOCKS) as f64;
        let best = |run: &mut dyn FnMut()| {
            let once = |_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64().max(1e-9)
            };
            operations / (0..5).map(once).fold(f64::INFINITY, f64::min)
        };
        self.0.registers = best(&mut || unit.vectorize(Registers::<T, U>::new(unit)));
        let room = (rows + vectors * U::lanes()) * STEPS + rows * vectors * U::lanes();
        T::Float::with_scratch(room, |scratch| {
            bytemuck::cast_slice_mut::<_, u32>(scratch).iter_mut().enumerate().for_each(|(i, word)| *word = bits(i));
            let (a, rest) = scratch.split_at_mut(rows * STEPS);
            let (b, out) = rest.split_at_mut(vectors * U::lanes() * STEPS);
            let (a, b, out) = (a.as_ptr().cast::<T>(), b.as_ptr().cast(), out.as_mut_ptr());
            self.0.first_cache = best(&mut || unit.vectorize(FirstCache { unit, a, b, out }));
        });
    }
}

/// Products of what registers hold.
struct Registers<T: Factor, U> {
    unit: U,
    steps: [T::Step; 16],
}

/// Bits of one step of values of many sizes and both signs: a processor is faster with zeros. As f32, as pairs of bf16 and as f64 they are
/// around 1 in size.
fn bits(i: usize) -> u32 {
    let mixed = (i as u32).wrapping_mul(0x9e37_79b9);
    mixed & 0x80ff_80ff | 0x3f00_3f00
}

impl<T: Factor, U: Unit<T>> Registers<T, U> {
    fn new(unit: U) -> Self {
        let mut words = [0u32; 32];
        words.iter_mut().enumerate().for_each(|(i, word)| *word = bits(i));
        let mut steps = [bytemuck::Zeroable::zeroed(); 16];
        steps.copy_from_slice(&bytemuck::cast_slice(&words)[..16]);
        Self { unit, steps }
    }
}

impl<T: Factor, U: Unit<T>> NullaryFnOnce for Registers<T, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { unit, steps } = self;
        if tile::has_matrices::<T, U>() {
            let registers = unit.matrices();
            // SAFETY: nothing foreign runs before the registers are closed.
            unsafe {
                let rows: [u32; 256] = std::array::from_fn(bits);
                registers.open(16);
                registers.load::<4>(rows.as_ptr().cast(), 64);
                registers.load::<5>(rows.as_ptr().cast(), 64);
                registers.load::<6>(rows.as_ptr().cast(), 64);
                registers.load::<7>(rows.as_ptr().cast(), 64);
                for _ in 0..BLOCKS * STEPS / 16 {
                    registers.multiply_add::<0, 4, 6>();
                    registers.multiply_add::<2, 5, 6>();
                    registers.multiply_add::<1, 4, 7>();
                    registers.multiply_add::<3, 5, 7>();
                }
                registers.close();
            }
            return;
        }
        let (x, y) = (black_box(unit.splat(steps[0])), black_box(unit.splat(steps[1])));
        // As many sums as a tile has: 24, or 12 where there are fewer registers.
        let mut sums = [unit.zero(); 24];
        let (rows, vectors) = tile::largest::<T, U>();
        if rows * vectors == 24 {
            for _ in 0..BLOCKS * STEPS {
                sums.iter_mut().for_each(|sum| *sum = unit.multiply_add(x, y, *sum));
            }
        } else {
            for _ in 0..BLOCKS * STEPS {
                sums[..12].iter_mut().for_each(|sum| *sum = unit.multiply_add(x, y, *sum));
            }
        }
        black_box(sums);
    }
}

/// The same block again and again.
struct FirstCache<T: Factor, U> {
    unit: U,
    a: *const T,
    b: *const T::Step,
    out: *mut T::Float,
}

impl<T: Factor, U: Unit<T>> NullaryFnOnce for FirstCache<T, U> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { unit, a, b, out } = self;
        let ((rows, vectors), lanes) = (tile::largest::<T, U>(), U::lanes());
        let (size, strides) = ((rows, vectors * lanes), (vectors * lanes, 1));
        if tile::has_matrices::<T, U>() {
            let (registers, chunks) = (unit.matrices(), Chunks::new(1, STEPS));
            let left = Left::Rows { from: a.cast(), stride: 4 * STEPS, segment: 0 };
            let right = Right { from: b.cast(), step: lanes, vector: STEPS * lanes, segment: 0 };
            // SAFETY: both sides and the result are there. Whole rows need no panel; nothing foreign runs before the registers are closed.
            unsafe {
                let left = LeftRows::gather(chunks, BLOCK, left, std::ptr::null_mut(), false);
                registers.open(chunks.chunk);
                for _ in 0..BLOCKS {
                    left.multiply(registers, right, size.1, Target { to: out.cast(), strides, add: false });
                }
                registers.close();
            }
            return;
        }
        for _ in 0..BLOCKS {
            let a = Rows::InPlace(a, STEPS * T::PER_STEP);
            // SAFETY: both sides and the result are there.
            unsafe { Tile { unit, size, depth: STEPS, a, b, out, strides, read: false }.run() };
        }
    }
}
