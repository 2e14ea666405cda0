//! The scalar types of the CPU ops: `f32` computes, `f64` is the oracle, `bf16` is stored.

use super::{math, scratch};
use crate::device::instructions;
use crate::tensor::{self, Element};
use half::bf16;
use pulp::{Simd, WithSimd};
use std::fmt::Display;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`, with what a generic CPU op needs.
///
/// The functions here are branch-free polynomials (see [`math`]), so a loop over them inside
/// [`vector::dispatch`](super::vector::dispatch) becomes vector code with the same bits as the scalar call.
pub trait Float:
    sealed::Sealed
    + Held<Float = Self>
    + PartialOrd
    + Display
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The distance from 1 to the next larger value.
    const EPS: Self;
    /// -∞, the start of a maximum.
    const NEG_INFINITY: Self;
    /// The dtype's name, for messages.
    const NAME: &'static str;

    /// One vector register's worth of values under the instruction set `S`.
    type Vector<S: Simd>: Copy;

    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens without loss.
    fn to_f64(self) -> f64;
    /// Rounds to this type.
    fn from_f32(x: f32) -> Self;
    /// Rounds to `f32`.
    fn to_f32(self) -> f32;
    /// `self * b + c`, rounded once, on every machine.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// The natural logarithm: -∞ at 0, NaN below.
    fn ln(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// 1 / (1 + e⁻ˣ).
    fn sigmoid(self) -> Self;
    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// The sine of radians, for |x| up to about 10⁵ in `f32` and 10⁹ in `f64`.
    fn sin(self) -> Self;
    /// The cosine of radians, in the same range as [`Float::sin`].
    fn cos(self) -> Self;
    /// The absolute value.
    fn abs(self) -> Self;
    /// The larger one; `other` where `self` is NaN or they compare equal.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;

    /// Runs `op` compiled for the best instruction set here that this type is compiled for. `f64` is not compiled for AVX-512:
    /// an oracle is seldom run, and its copy of every loop is a sixth of the ops' code.
    fn dispatch<Op: WithSimd>(op: Op) -> Op::Output;

    /// Lanes of [`Float::Vector`].
    fn lanes<S: Simd>() -> usize;
    /// All lanes `x`.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// `a * b + c` by lane, rounded once.
    fn vector_mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// `a + b` by lane.
    fn vector_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// Lends `len` values of this thread's scratch (contents unspecified, aligned for any vector) to `f`. Calls may nest, and `f`
    /// may run parallel work: a nested call gets memory of its own.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

/// An element type as it lies in memory, and the type that computes with its values: `f32` and `f64` are their own, `bf16` is
/// computed in `f32`.
pub trait Held: Element + Default {
    /// The type that computes.
    type Float: Float;

    /// The value, without loss.
    fn get(self) -> Self::Float;
    /// The nearest value, ties to even; a NaN stays one.
    fn of(x: Self::Float) -> Self;
}

impl Held for bf16 {
    type Float = f32;

    #[inline(always)]
    fn get(self) -> f32 {
        tensor::widened(self)
    }

    #[inline(always)]
    fn of(x: f32) -> Self {
        tensor::rounded(x)
    }
}

#[inline(always)]
fn dispatch_f64<Op: WithSimd>(op: Op) -> Op::Output {
    instructions::with_narrow_simd(op)
}

#[inline(always)]
fn dispatch_f32<Op: WithSimd>(op: Op) -> Op::Output {
    instructions::with_simd(op)
}

macro_rules! float {
    ($dispatch:ident, $T:ident, $vector:ident, $splat:ident, $mul_add:ident, $add:ident, $lanes:ident) => {
        impl Float for $T {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const EPS: Self = $T::EPSILON;
            const NEG_INFINITY: Self = $T::NEG_INFINITY;
            const NAME: &'static str = stringify!($T);

            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $T
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $T
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $T::mul_add(self, b, c)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                math::$T::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                math::$T::ln(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                math::$T::tanh(self)
            }
            #[inline(always)]
            fn sigmoid(self) -> Self {
                math::$T::sigmoid(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $T::sqrt(self)
            }
            #[inline(always)]
            fn sin(self) -> Self {
                math::$T::sin(self)
            }
            #[inline(always)]
            fn cos(self) -> Self {
                math::$T::cos(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $T::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $T::is_finite(self)
            }

            #[inline(always)]
            fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
                $dispatch(op)
            }
            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S> {
                simd.$splat(x)
            }
            #[inline(always)]
            fn vector_mul_add<S: Simd>(
                simd: S,
                a: Self::Vector<S>,
                b: Self::Vector<S>,
                c: Self::Vector<S>,
            ) -> Self::Vector<S> {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn vector_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
                simd.$add(a, b)
            }

            fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
                scratch::with(len * size_of::<$T>(), |memory| {
                    // SAFETY: the memory is as long, aligned for any number, initialised, and `f`'s alone.
                    f(unsafe { std::slice::from_raw_parts_mut(memory.cast().as_ptr(), len) })
                })
            }
        }
    };
}

macro_rules! held {
    ($T:ident) => {
        impl Held for $T {
            type Float = Self;

            #[inline(always)]
            fn get(self) -> Self {
                self
            }
            #[inline(always)]
            fn of(x: Self) -> Self {
                x
            }
        }
    };
}

held!(f32);
held!(f64);
float!(dispatch_f32, f32, f32s, splat_f32s, mul_add_f32s, add_f32s, F32_LANES);
float!(dispatch_f64, f64, f64s, splat_f64s, mul_add_f64s, add_f64s, F64_LANES);
