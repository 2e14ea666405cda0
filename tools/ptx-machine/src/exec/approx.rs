//! Functions that the ISA allows an error, and rounding in directions that the processor does not take.

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A subnormal as the zero of its sign.
#[inline(always)]
pub fn flushed(x: f32) -> f32 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0 { f32::from_bits(bits & 0x8000_0000) } else { x }
}

/// Within [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturated(x: f32) -> f32 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// `value` + `rest` as f32, `rest` being less than half a unit in the last place of `value`.
#[inline(always)]
pub fn rounded(value: f64, rest: f64, mode: Rounding) -> f32 {
    let near = value as f32;
    if value.is_infinite() || value.is_nan() {
        return near;
    }
    let back = f64::from(near);
    let above = back > value || (back == value && rest < 0.0);
    let below = back < value || (back == value && rest > 0.0);
    match mode {
        Rounding::Nearest => near,
        Rounding::Down if above => near.next_down(),
        Rounding::Up if below => near.next_up(),
        Rounding::Zero if above && near > 0.0 => near.next_down(),
        Rounding::Zero if below && near < 0.0 => near.next_up(),
        // Zero itself may be what a tiny value of the other sign was rounded to.
        _ => near,
    }
}

/// a b + c, rounded in a direction: the product is exact in f64, the sum's error is known.
#[inline(always)]
pub fn fma_directed(a: f32, b: f32, c: f32, mode: Rounding) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // Knuth's TwoSum: sum + rest is product + c exactly.
    let part = sum - product;
    let rest = (product - (sum - part)) + (c - part);
    rounded(sum, rest, mode)
}

/// 2^x to 2e-9, subnormal results included.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let clamped = f64::from(x).clamp(-200.0, 200.0);
    let whole = (clamped + MAGIC) - MAGIC;
    let t = (clamped - whole) * std::f64::consts::LN_2;
    // Taylor to the eighth power: |t| <= 0.347.
    let mut p = 1.0 / 40320.0;
    for c in [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * t + c;
    }
    // The whole part's low bits are those of the sum with the magic number.
    let exponent = (clamped + MAGIC).to_bits() << 52;
    let scale = f64::from_bits(exponent.wrapping_add(1023 << 52));
    let y = (p * scale) as f32;
    if x.is_nan() { f32::NAN } else { y }
}

/// f32 to bf16, to nearest even; NaN to the canonical one.
#[inline(always)]
pub fn bf16_from(x: f32) -> u16 {
    let bits = x.to_bits();
    let near = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fff } else { near }
}

/// f32 to bf16, towards zero.
#[inline(always)]
pub fn bf16_towards_zero(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { (x.to_bits() >> 16) as u16 }
}

/// f32 to TF32, as a word: to nearest, ties away from zero; of what is not finite the lower bits are cut off, as ptxas 13 does it.
#[inline(always)]
pub fn tf32_from(x: f32) -> u32 {
    let half = if x.is_finite() { 0x1000 } else { 0 };
    x.to_bits().wrapping_add(half) & !0x1fff
}

#[inline(always)]
pub fn bf16_to(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// f16 to f32, exactly.
#[inline(always)]
pub fn f16_to(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let magnitude = u32::from(x & 0x7fff);
    let value = if magnitude >= 0x7c00 {
        f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13)
    } else {
        // The exponent's bias differs by 112; the product also gives subnormals their value.
        f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)
    };
    f32::from_bits(value.to_bits() | sign)
}

/// f32 to f16, to nearest even; NaN to the canonical one.
#[inline(always)]
pub fn f16_from(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = x.abs();
    if x.is_nan() {
        return 0x7fff;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    // Adding a power of two whose last place is f16's rounds to it.
    let exponent = (magnitude.to_bits() >> 23).max(113);
    let magic = f32::from_bits((exponent + 13) << 23);
    let near = (magnitude + magic) - magic;
    let bits = near.to_bits();
    let value = if near < f32::from_bits(113 << 23) {
        (near * f32::from_bits((127 + 24) << 23)) as u32
    } else {
        (bits >> 13) - (112 << 10)
    };
    sign | value as u16
}
