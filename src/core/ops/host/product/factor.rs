//! What a product multiplies, and the instructions that multiply it.
//!
//! A product's sum advances by steps: an element of `f32` and `f64`, a *pair* of neighbours along the sum in `bf16`. A step of a
//! pair adds the product of its second elements, then that of its first, each rounded once to f32: the order of `vdpbf16ps`, which
//! also takes denormals for zero. Without that instruction pairs are widened in registers and multiplied in f32, denormals
//! included: other bits only where a value is below 1.2e-38. Registers for matrices have an order of their own ([`MatrixRegisters`]).

use std::marker::PhantomData;

use bytemuck::Pod;
use half::bf16;
use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::registers::{MatrixRegisters, Model, NoRegisters};
use crate::device::instructions::{self, TileSet, VectorSet, instruction_set};
use crate::ops::host::float::{Float, Held};
use crate::ops::host::pack;

/// An element type of products. Sums are of [`Held::Float`].
pub trait Factor: Held {
    /// What a lane takes at a step of the sum: an element, or a pair, the first in the low half.
    type Step: Pod + Send + Sync;
    /// Elements of a step.
    const PER_STEP: usize;
    /// The longest block of a sum, in steps. A tile's rows of it fit the first cache.
    const LONGEST: usize;

    /// Runs `work` with the best multipliers of the instruction set in force.
    fn with_unit<W: WithUnit<Self>>(work: W);

    /// One strip of steps, of so many lanes and elements along the sum, each with its stride: element `(lane, p)` is at
    /// `src + lane * lane_stride + p * step_stride`, step `s` of a lane goes to `dst[s * width + lane]`. Lanes from `lanes` to `width`, and
    /// the second half of an odd last pair, are zero.
    ///
    /// # Safety
    /// All elements for `lane < lanes`, `p < elements` are readable, and `dst` is valid for writing every step of `width` lanes.
    unsafe fn strip(
        dst: *mut Self::Step,
        width: usize,
        src: *const Self,
        lanes_and_stride: (usize, usize),
        elements_and_stride: (usize, usize),
        avx512: bool,
    );

    /// A row of sums becomes steps, rounded to the type, in the same memory from its start on; 16 values at a time.
    fn pack_row(row: &mut [Self::Float]);

    /// `to[lane]` is the step of the lane's values in two rows; zero where there is no second.
    fn pack_rows(to: &mut [Self::Step], first: &[Self::Float], second: Option<&[Self::Float]>);

    /// One step of `lanes` neighbours, of which `elements` exist, `step_stride` apart.
    ///
    /// # Safety
    /// As for [`Factor::strip`].
    unsafe fn neighbours(dst: *mut Self::Step, src: *const Self, lanes: usize, elements: usize, step_stride: usize);
}

/// Vector instructions that multiply factors and add up their products.
pub trait Unit<T: Factor>: Copy + Send + Sync {
    /// A vector of steps.
    type Steps: Copy;
    /// A vector of sums.
    type Sums: Copy;
    /// Vector registers.
    const REGISTERS: usize;
    /// Registers for matrices, of units that have them: products of large matrices go through those.
    type Matrices: MatrixRegisters;
    /// Those of the calling thread.
    fn matrices(self) -> Self::Matrices;
    /// Lanes of a vector.
    fn lanes() -> usize;
    /// Sums of zero.
    fn zero(self) -> Self::Sums;
    /// The step in every lane.
    fn splat(self, step: T::Step) -> Self::Steps;
    /// A vector of neighbours.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(self, from: *const T::Step) -> Self::Steps;
    /// `sum` plus the products of the steps, in the type's order.
    fn multiply_add(self, a: Self::Steps, b: Self::Steps, sum: Self::Sums) -> Self::Sums;
    /// The sum by lane.
    fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Runs `op`, compiled for these instructions with what is inlined into it.
    fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output;
}

/// Work for a [`Unit`].
pub trait WithUnit<T: Factor> {
    /// Runs it.
    fn run<U: Unit<T>>(self, unit: U);
}

/// The vectors of an instruction set, whose elements are multiplied as they are.
#[derive(Clone, Copy)]
pub struct Vectors<S>(pub S);

impl<S: Simd, T: Float> Unit<T> for Vectors<S> {
    type Steps = T::Vector<S>;
    type Sums = T::Vector<S>;
    const REGISTERS: usize = S::REGISTER_COUNT;
    type Matrices = NoRegisters;

    #[inline(always)]
    fn matrices(self) -> NoRegisters {
        NoRegisters
    }
    #[inline(always)]
    fn lanes() -> usize {
        T::lanes::<S>()
    }
    #[inline(always)]
    fn zero(self) -> Self::Sums {
        T::splat(self.0, T::ZERO)
    }
    #[inline(always)]
    fn splat(self, step: T) -> Self::Steps {
        T::splat(self.0, step)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const T) -> Self::Steps {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<Self::Steps>().read_unaligned() }
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Steps, b: Self::Steps, sum: Self::Sums) -> Self::Sums {
        T::vector_mul_add(self.0, a, b, sum)
    }
    #[inline(always)]
    fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
        T::vector_add(self.0, a, b)
    }
    #[inline(always)]
    fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output {
        self.0.vectorize(op)
    }
}

/// Pairs of bf16 that are widened in registers: for processors without an instruction for them.
#[derive(Clone, Copy)]
pub struct WidenedPairs<S>(pub S);

impl<S: Simd> Unit<bf16> for WidenedPairs<S> {
    /// The first and the second of each pair.
    type Steps = [S::f32s; 2];
    type Sums = S::f32s;
    const REGISTERS: usize = S::REGISTER_COUNT;
    type Matrices = NoRegisters;

    #[inline(always)]
    fn matrices(self) -> NoRegisters {
        NoRegisters
    }
    #[inline(always)]
    fn lanes() -> usize {
        S::F32_LANES
    }
    #[inline(always)]
    fn zero(self) -> Self::Sums {
        self.0.splat_f32s(0.0)
    }
    #[inline(always)]
    fn splat(self, step: u32) -> Self::Steps {
        let (first, second) = (f32::from_bits(step << 16), f32::from_bits(step & 0xffff_0000));
        [self.0.splat_f32s(first), self.0.splat_f32s(second)]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> Self::Steps {
        let simd = self.0;
        // SAFETY: as the caller promises.
        let pairs = unsafe { from.cast::<S::u32s>().read_unaligned() };
        let first = simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16));
        let second = simd.and_u32s(pairs, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Steps, b: Self::Steps, sum: Self::Sums) -> Self::Sums {
        self.0.mul_add_f32s(a[0], b[0], self.0.mul_add_f32s(a[1], b[1], sum))
    }
    #[inline(always)]
    fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
        self.0.add_f32s(a, b)
    }
    #[inline(always)]
    fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output {
        self.0.vectorize(op)
    }
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::*;

    use half::bf16;
    use pulp::NullaryFnOnce;

    use super::{NoRegisters, Unit};
    use crate::device::instructions::PairProducts;

    // What stands in `run` and is inlined into it has these instructions; a `PairProducts` proves that the processor has them.
    impl Unit<bf16> for PairProducts {
        type Steps = __m512bh;
        type Sums = __m512;
        const REGISTERS: usize = 32;
        type Matrices = NoRegisters;

        #[inline(always)]
        fn matrices(self) -> NoRegisters {
            NoRegisters
        }
        #[inline(always)]
        fn lanes() -> usize {
            16
        }
        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: the processor has the instruction.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        fn splat(self, step: u32) -> __m512bh {
            // SAFETY: the processor has the instruction; both are 64 bytes of any bits.
            unsafe { std::mem::transmute(_mm512_set1_epi32(step.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn load(self, from: *const u32) -> __m512bh {
            // SAFETY: as the caller promises, and as above.
            unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
        }
        #[inline(always)]
        fn multiply_add(self, a: __m512bh, b: __m512bh, sum: __m512) -> __m512 {
            // SAFETY: the processor has the instruction.
            unsafe { _mm512_dpbf16_ps(sum, a, b) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the processor has the instruction.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output {
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,bmi2")]
            fn run<Op: NullaryFnOnce>(op: Op) -> Op::Output {
                op.call()
            }
            // SAFETY: the processor has these instructions.
            unsafe { run(op) }
        }
    }
}

/// Widened pairs by sixteen on every processor: what stands beside the [`Model`], whose packing it shares.
#[derive(Clone, Copy)]
pub struct SixteenPairs;

impl Unit<bf16> for SixteenPairs {
    type Steps = [u32; 16];
    type Sums = [f32; 16];
    const REGISTERS: usize = 16;
    type Matrices = NoRegisters;

    #[inline(always)]
    fn matrices(self) -> NoRegisters {
        NoRegisters
    }
    #[inline(always)]
    fn lanes() -> usize {
        16
    }
    #[inline(always)]
    fn zero(self) -> [f32; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    fn splat(self, step: u32) -> [u32; 16] {
        [step; 16]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> [u32; 16] {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[u32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    fn multiply_add(self, a: [u32; 16], b: [u32; 16], sum: [f32; 16]) -> [f32; 16] {
        let product = |high: u32, lane: usize, sum: f32| {
            let [a, b] =
                [a[lane], b[lane]].map(|pair| f32::from_bits(if high == 1 { pair & 0xffff_0000 } else { pair << 16 }));
            a.mul_add(b, sum)
        };
        std::array::from_fn(|lane| product(0, lane, product(1, lane, sum[lane])))
    }
    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output {
        instructions::dispatch(
            #[inline(always)]
            || op.call(),
        )
    }
}

/// A unit of pairs with registers for matrices beside its vectors of sixteen.
#[derive(Clone, Copy)]
pub struct WithMatrices<U, M>(pub U, pub M);

impl<U: Unit<bf16>, M: MatrixRegisters> Unit<bf16> for WithMatrices<U, M> {
    type Steps = U::Steps;
    type Sums = U::Sums;
    const REGISTERS: usize = U::REGISTERS;
    type Matrices = M;

    #[inline(always)]
    fn matrices(self) -> M {
        self.1
    }
    #[inline(always)]
    fn lanes() -> usize {
        U::lanes()
    }
    #[inline(always)]
    fn zero(self) -> U::Sums {
        self.0.zero()
    }
    #[inline(always)]
    fn splat(self, step: u32) -> U::Steps {
        self.0.splat(step)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> U::Steps {
        // SAFETY: as the caller promises.
        unsafe { self.0.load(from) }
    }
    #[inline(always)]
    fn multiply_add(self, a: U::Steps, b: U::Steps, sum: U::Sums) -> U::Sums {
        self.0.multiply_add(a, b, sum)
    }
    #[inline(always)]
    fn add(self, a: U::Sums, b: U::Sums) -> U::Sums {
        self.0.add(a, b)
    }
    #[inline(always)]
    fn vectorize<Op: NullaryFnOnce>(self, op: Op) -> Op::Output {
        self.0.vectorize(op)
    }
}

impl<T: Float> Factor for T {
    type Step = Self;
    const PER_STEP: usize = 1;
    const LONGEST: usize = 512;

    fn with_unit<W: WithUnit<Self>>(work: W) {
        Self::dispatch(OfVectors::<W, T>(work, PhantomData));
    }

    #[inline(always)]
    unsafe fn strip(
        dst: *mut Self,
        width: usize,
        src: *const Self,
        lanes: (usize, usize),
        steps: (usize, usize),
        avx512: bool,
    ) {
        // SAFETY: as the caller promises.
        unsafe { pack::strip(dst, width, src, lanes, steps, avx512) };
    }

    #[inline(always)]
    fn pack_row(_row: &mut [Self]) {}

    #[inline(always)]
    fn pack_rows(to: &mut [Self], first: &[Self], _second: Option<&[Self]>) {
        to.copy_from_slice(first);
    }

    #[inline(always)]
    unsafe fn neighbours(dst: *mut Self, src: *const Self, lanes: usize, _elements: usize, _step_stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { pack::copy(src, dst, lanes) };
    }
}

/// Work with the vectors of whatever set is dispatched.
struct OfVectors<W, T>(W, PhantomData<T>);

impl<T: Float, W: WithUnit<T>> WithSimd for OfVectors<W, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run(Vectors(simd));
    }
}

/// Work with widened pairs.
struct OfPairs<W>(W);

impl<W: WithUnit<bf16>> WithSimd for OfPairs<W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run(WidenedPairs(simd));
    }
}

/// Two values as a pair, rounded.
#[inline(always)]
fn pair_of(first: f32, second: f32) -> u32 {
    u32::from(bf16::of(first).to_bits()) | u32::from(bf16::of(second).to_bits()) << 16
}

impl Factor for bf16 {
    type Step = u32;
    const PER_STEP: usize = 2;
    // Products are fast, so that adding a block's sums to those before costs more than a strip that hardly fits: a weight's gradient over
    // 2080 tokens is one block.
    const LONGEST: usize = 1056;

    fn with_unit<W: WithUnit<Self>>(work: W) {
        let set = instruction_set();
        match (set.tiles, set.vectors) {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Some(TileSet::Amx(pairs, tiles)), _) => work.run(WithMatrices(pairs, tiles)),
            (Some(TileSet::Model), _) => work.run(WithMatrices(SixteenPairs, Model)),
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx512Bf16(_, pairs)) => work.run(pairs),
            (None, _) => f32::dispatch(OfPairs(work)),
        }
    }

    #[inline(always)]
    unsafe fn strip(
        dst: *mut u32,
        width: usize,
        src: *const Self,
        (lanes, lane_stride): (usize, usize),
        (elements, step_stride): (usize, usize),
        avx512: bool,
    ) {
        let steps = elements.div_ceil(2);
        // SAFETY: every access is at lane < lanes and p < elements, as the caller promises.
        unsafe {
            if lanes < width {
                std::ptr::write_bytes(dst, 0, steps * width);
            }
            let mut first = 0;
            if step_stride == 1 && lane_stride.is_multiple_of(2) && lane_stride > 2 {
                // Pairs lie in memory as they are packed: 32 bits to be moved, like an f32.
                first = elements / 2;
                pack::lanes::<f32>(dst.cast(), width, src.cast(), (lanes, lane_stride / 2), (first, 1), avx512);
            }
            for step in first..steps {
                let (to, from) = (dst.add(step * width), src.add(2 * step * step_stride));
                let elements = (elements - 2 * step).min(2);
                if lane_stride == 1 {
                    Self::neighbours(to, from, lanes, elements, step_stride);
                    continue;
                }
                for lane in 0..lanes {
                    let from = from.add(lane * lane_stride);
                    let second = if elements == 2 { (*from.add(step_stride)).to_bits() } else { 0 };
                    *to.add(lane) = u32::from((*from).to_bits()) | u32::from(second) << 16;
                }
            }
        }
    }

    #[inline(always)]
    fn pack_row(row: &mut [f32]) {
        assert!(row.len().is_multiple_of(16), "a row of {} values", row.len());
        for at in (0..row.len()).step_by(16) {
            // A copy: the steps take the place of values that were read before.
            let mut values = [0.0; 16];
            values.copy_from_slice(&row[at..at + 16]);
            // On little-endian machines pairs are neighbours.
            let halves = values.map(|value| bf16::of(value).to_bits().to_le());
            row[at / 2..][..8].copy_from_slice(&bytemuck::cast::<[u16; 16], [f32; 8]>(halves));
        }
    }

    #[inline(always)]
    fn pack_rows(to: &mut [u32], first: &[f32], second: Option<&[f32]>) {
        match second {
            Some(second) => {
                to.iter_mut().zip(first).zip(second).for_each(|((to, &first), &second)| *to = pair_of(first, second));
            }
            None => to.iter_mut().zip(first).for_each(|(to, &first)| *to = pair_of(first, 0.0)),
        }
    }

    #[inline(always)]
    unsafe fn neighbours(dst: *mut u32, src: *const Self, lanes: usize, elements: usize, step_stride: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let to = std::slice::from_raw_parts_mut(dst, lanes);
            let first = std::slice::from_raw_parts(src, lanes);
            if elements < 2 {
                to.iter_mut().zip(first).for_each(|(to, first)| *to = u32::from(first.to_bits()));
                return;
            }
            let second = std::slice::from_raw_parts(src.add(step_stride), lanes);
            for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
                *to = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
            }
        }
    }
}
