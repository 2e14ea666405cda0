//! Elementary functions as our own polynomials, so that no bit depends on the system's libm.
//!
//! Each function is branch-free (selections instead of jumps) with every fused multiply-add written out. The compiler
//! neither reorders nor contracts floating-point operations, so the vector code that it makes of a loop over one of these
//! has the scalar function's bits, whatever the vector width. Without fused multiply-add in hardware they are slow, and
//! still the same.
//!
//! Reductions and the `f32` polynomials are those of Cephes (Moshier, 1984-1992); the `f64` ones are Taylor series taken
//! far enough: `f64` is the oracle and its speed does not matter.
//!
//! Errors, tested below: `f32` about 2 ulp, `f64` about 1e-15 relative (sine and cosine: absolute).

/// `f32` functions.
pub mod f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, ties to even, and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;

    /// 2ⁿ for -126 <= n <= 127.
    #[inline(always)]
    fn pow2(n: i32) -> f32 {
        f32::from_bits((n.wrapping_add(127) as u32) << 23)
    }

    /// eˣ: overflows to ∞ above 88.7, is subnormal below -87.3 and 0 below -104.
    #[inline(always)]
    pub fn exp(x: f32) -> f32 {
        // Selections that let NaN pass.
        let x = if x > 89.0 { 89.0 } else { x };
        let x = if x < -105.0 { -105.0 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let i = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let r = n.mul_add(-0.693_359_4, x);
        let r = n.mul_add(2.121_944_4e-4, r);
        let p = 1.987_569_1e-4_f32;
        let p = p.mul_add(r, 1.398_2e-3);
        let p = p.mul_add(r, 8.333_452e-3);
        let p = p.mul_add(r, 4.166_579_6e-2);
        let p = p.mul_add(r, 1.666_666_5e-1);
        let p = p.mul_add(r, 0.5);
        let y = p.mul_add(r * r, r) + 1.0;
        // In two steps, so that the ends of the range come out right.
        let half = i >> 1;
        y * pow2(half) * pow2(i.wrapping_sub(half))
    }

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    pub fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + exp(-x))
    }

    /// The hyperbolic tangent.
    #[inline(always)]
    pub fn tanh(x: f32) -> f32 {
        let a = x.abs();
        let z = x * x;
        let p = -5.704_988_7e-3_f32;
        let p = p.mul_add(z, 2.063_909e-2);
        let p = p.mul_add(z, -5.373_971_6e-2);
        let p = p.mul_add(z, 1.333_144_2e-1);
        let p = p.mul_add(z, -3.333_328e-1);
        let small = (p * z).mul_add(x, x);
        let large = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
        if a < 0.625 { small } else { large }
    }

    /// The natural logarithm: -∞ at 0, NaN below, subnormals included.
    #[inline(always)]
    pub fn ln(x: f32) -> f32 {
        let tiny = x < f32::MIN_POSITIVE;
        let scaled = if tiny { x * 33_554_432.0 } else { x };
        // The mantissa in [√½, √2): subtract √½'s bits, and what is left of the exponent is the power of two.
        let bits = scaled.to_bits() as i32;
        let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
        let m = f32::from_bits(bits.wrapping_sub(e << 23) as u32);
        let e = e as f32 - if tiny { 25.0 } else { 0.0 };
        let f = m - 1.0;
        let z = f * f;
        let p = 7.037_683_6e-2_f32;
        let p = p.mul_add(f, -1.151_461e-1);
        let p = p.mul_add(f, 1.167_699_9e-1);
        let p = p.mul_add(f, -1.242_014_1e-1);
        let p = p.mul_add(f, 1.424_932_3e-1);
        let p = p.mul_add(f, -1.666_805_8e-1);
        let p = p.mul_add(f, 2.000_071_5e-1);
        let p = p.mul_add(f, -2.499_999_4e-1);
        let p = p.mul_add(f, 3.333_333e-1);
        let y = e.mul_add(-2.121_944_4e-4, f * z * p);
        let y = z.mul_add(-0.5, y);
        let y = e.mul_add(0.693_359_4, f + y);
        let y = if x == f32::INFINITY { x } else { y };
        let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
        if x >= 0.0 { y } else { f32::NAN }
    }

    /// Quadrant and remainder in [-π/4, π/4] of `x` radians, π/2 in three parts.
    #[inline(always)]
    fn quadrant(x: f32) -> (i32, f32) {
        let shifted = x.mul_add(std::f32::consts::FRAC_2_PI, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-std::f32::consts::FRAC_PI_2, x);
        let r = n.mul_add(4.371_139e-8, r);
        let r = n.mul_add(1.715_124_5e-15, r);
        (shifted.to_bits() as i32, r)
    }

    /// Sine and cosine of the `quadrant`'s start plus `r`, |r| <= π/4.
    #[inline(always)]
    fn in_quadrant(quadrant: i32, r: f32) -> (f32, f32) {
        let z = r * r;
        let p = -1.951_529_6e-4_f32;
        let p = p.mul_add(z, 8.332_161e-3);
        let p = p.mul_add(z, -1.666_665_5e-1);
        let s = (p * z).mul_add(r, r);
        let q = 2.443_315_7e-5_f32;
        let q = q.mul_add(z, -1.388_731_6e-3);
        let q = q.mul_add(z, 4.166_664_6e-2);
        let c = (q * z).mul_add(z, z.mul_add(-0.5, 1.0));
        let (sin, cos) = if quadrant & 1 == 0 { (s, c) } else { (c, s) };
        let sin_sign = ((quadrant & 2) as u32) << 30;
        let cos_sign = ((quadrant.wrapping_add(1) & 2) as u32) << 30;
        (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
    }

    /// Sine and cosine of `x` radians, |x| up to about 10⁵.
    #[inline(always)]
    pub fn sin_cos(x: f32) -> (f32, f32) {
        let (n, r) = quadrant(x);
        in_quadrant(n, r)
    }

    /// Sine and cosine of 2πu, |u| up to about 10⁶. The reduction is exact.
    #[inline(always)]
    pub fn sin_cos_turns(u: f32) -> (f32, f32) {
        let quarters = u * 4.0;
        let shifted = quarters + ROUND;
        let r = (quarters - (shifted - ROUND)) * std::f32::consts::FRAC_PI_2;
        in_quadrant(shifted.to_bits() as i32, r)
    }

    /// The sine of `x` radians, |x| up to about 10⁵.
    #[inline(always)]
    pub fn sin(x: f32) -> f32 {
        sin_cos(x).0
    }

    /// The cosine of `x` radians, |x| up to about 10⁵.
    #[inline(always)]
    pub fn cos(x: f32) -> f32 {
        sin_cos(x).1
    }
}

/// `f64` functions.
pub mod f64 {
    /// 1.5 * 2^52, as in the `f32` functions.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2_HI: f64 = 0.693_145_751_953_125;
    const LN2_LO: f64 = 1.428_606_820_309_417_3e-6;

    /// 2ⁿ for -1022 <= n <= 1023.
    #[inline(always)]
    fn pow2(n: i64) -> f64 {
        f64::from_bits((n.wrapping_add(1023) as u64) << 52)
    }

    /// eˣ.
    #[inline(always)]
    pub fn exp(x: f64) -> f64 {
        let x = if x > 710.0 { 710.0 } else { x };
        let x = if x < -746.0 { -746.0 } else { x };
        let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let i = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
        let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
        let mut p: f64 = 1.0 / 6_227_020_800.0; // 1/13!
        let mut k = 12;
        let reciprocals = [
            0.5,
            1.0 / 6.0,
            1.0 / 24.0,
            1.0 / 120.0,
            1.0 / 720.0,
            1.0 / 5040.0,
            1.0 / 40_320.0,
            1.0 / 362_880.0,
            1.0 / 3_628_800.0,
            1.0 / 39_916_800.0,
            1.0 / 479_001_600.0,
        ];
        while k >= 2 {
            p = p.mul_add(r, reciprocals[k - 2]);
            k -= 1;
        }
        let y = p.mul_add(r * r, r) + 1.0;
        let half = i >> 1;
        y * pow2(half) * pow2(i.wrapping_sub(half))
    }

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    pub fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + exp(-x))
    }

    /// The hyperbolic tangent.
    #[inline(always)]
    pub fn tanh(x: f64) -> f64 {
        let a = x.abs();
        let z = x * x;
        let p = -9.643_991_794_250_523e-1_f64;
        let p = p.mul_add(z, -9.928_772_310_019_186e1);
        let p = p.mul_add(z, -1.614_687_684_417_084_5e3);
        let q = z + 1.128_116_784_916_329_3e2;
        let q = q.mul_add(z, 2.235_488_390_601_004_5e3);
        let q = q.mul_add(z, 4.844_063_053_251_255e3);
        let small = (z * (p / q)).mul_add(x, x);
        let large = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
        if a < 0.625 { small } else { large }
    }

    /// The natural logarithm: -∞ at 0, NaN below.
    #[inline(always)]
    pub fn ln(x: f64) -> f64 {
        let tiny = x < f64::MIN_POSITIVE;
        let scaled = if tiny { x * 18_014_398_509_481_984.0 } else { x };
        let bits = scaled.to_bits() as i64;
        let e = bits.wrapping_sub(0x3fe6_a09e_667f_3bcd) >> 52;
        let m = f64::from_bits(bits.wrapping_sub(e << 52) as u64);
        let e = e as f64 - if tiny { 54.0 } else { 0.0 };
        // ln m = 2 artanh s, |s| <= 0.172.
        let f = m - 1.0;
        let s = f / (2.0 + f);
        let z = s * s;
        let mut p = 1.0 / 25.0;
        let mut k = 23.0;
        while k >= 3.0 {
            p = f64::mul_add(p, z, 1.0 / k);
            k -= 2.0;
        }
        // f - s (f - 2 z p) keeps the leading term exact.
        let y = e.mul_add(LN2_HI, f - (s * (z * p).mul_add(-2.0, f) - e * LN2_LO));
        let y = if x == f64::INFINITY { x } else { y };
        let y = if x == 0.0 { f64::NEG_INFINITY } else { y };
        if x >= 0.0 { y } else { f64::NAN }
    }

    /// Sine and cosine of `x` radians, |x| up to about 10⁹.
    #[inline(always)]
    pub fn sin_cos(x: f64) -> (f64, f64) {
        let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-std::f64::consts::FRAC_PI_2, x);
        let r = n.mul_add(-6.123_233_995_736_766e-17, r);
        let r = n.mul_add(1.497_384_904_859_183_3e-33, r);
        let z = r * r;
        // Horner's form of the Taylor series, terms up to r^21 and r^20.
        let (mut s, mut c) = (1.0, 1.0);
        let mut k = 20.0;
        while k >= 2.0 {
            s = f64::mul_add(s, -z / (k * (k + 1.0)), 1.0);
            c = f64::mul_add(c, -z / ((k - 1.0) * k), 1.0);
            k -= 2.0;
        }
        let s = s * r;
        let quadrant = shifted.to_bits();
        let (sin, cos) = if quadrant & 1 == 0 { (s, c) } else { (c, s) };
        let sin_sign = (quadrant & 2) << 62;
        let cos_sign = (quadrant.wrapping_add(1) & 2) << 62;
        (f64::from_bits(sin.to_bits() ^ sin_sign), f64::from_bits(cos.to_bits() ^ cos_sign))
    }

    /// The sine of `x` radians, |x| up to about 10⁹.
    #[inline(always)]
    pub fn sin(x: f64) -> f64 {
        sin_cos(x).0
    }

    /// The cosine of `x` radians, |x| up to about 10⁹.
    #[inline(always)]
    pub fn cos(x: f64) -> f64 {
        sin_cos(x).1
    }
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
