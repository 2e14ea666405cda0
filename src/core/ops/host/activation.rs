//! The activations, as scalar functions for [`vector::map`](super::vector::map) and its kin.

use super::float::Float;

/// √(2/π), the tanh form's slope at 0.
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
/// The tanh form's cubic term.
const CUBIC: f64 = 0.044_715;

/// GELU in the tanh form (Hendrycks and Gimpel 2016): x/2 (1 + tanh u) = x σ(2u), u = √(2/π) (x + 0.044715 x³).
#[inline(always)]
pub fn gelu<T: Float>(x: T) -> T {
    let two_u = T::from_f64(2.0 * SQRT_2_OVER_PI) * x * (T::from_f64(CUBIC) * x).mul_add(x, T::ONE);
    x * two_u.sigmoid()
}

/// The larger of `x` and -87, where e⁻ˣ is still finite.
#[inline(always)]
fn bounded<T: Float>(x: T) -> T {
    let least = T::from_f64(-87.0);
    if x < least { least } else { x }
}

/// σ(x) and σ(x) (1 - σ(x)), the latter without the cancellation in 1 - σ.
#[inline(always)]
fn sigmoid_and_slope<T: Float>(x: T) -> (T, T) {
    let e = (-bounded(x)).exp();
    let s = T::ONE / (T::ONE + e);
    (s, e * s * s)
}

/// The derivative of [`gelu`]: σ(2u) + x σ(2u) (1 - σ(2u)) 2u′.
#[inline(always)]
pub fn gelu_derivative<T: Float>(x: T) -> T {
    let slope = T::from_f64(2.0 * SQRT_2_OVER_PI);
    let (s, ds) = sigmoid_and_slope(slope * x * (T::from_f64(CUBIC) * x).mul_add(x, T::ONE));
    // Further out ds is 0 to rounding, and x² might overflow against it.
    let x = if x > T::from_f64(20.0) { T::from_f64(20.0) } else { x };
    let x = if x < T::from_f64(-20.0) { T::from_f64(-20.0) } else { x };
    let two_du = slope * (T::from_f64(3.0 * CUBIC) * x).mul_add(x, T::ONE);
    (x * ds).mul_add(two_du, s)
}

/// SiLU, or swish (Elfwing et al. 2017): x σ(x).
#[inline(always)]
pub fn silu<T: Float>(x: T) -> T {
    x * x.sigmoid()
}

/// The derivative of [`silu`]: σ + x σ (1 - σ).
#[inline(always)]
pub fn silu_derivative<T: Float>(x: T) -> T {
    let (s, ds) = sigmoid_and_slope(x);
    bounded(x).mul_add(ds, s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_derivatives() {
        for i in -400..=400 {
            let x = f64::from(i) / 40.0;
            let u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
            let exact = [0.5 * x * (1.0 + u.tanh()), x / (1.0 + (-x).exp())];
            for (f, exact) in [gelu::<f64>(x), silu(x)].into_iter().zip(exact) {
                assert!((f - exact).abs() < 1e-14, "{x}: {f} not {exact}");
            }
            for (f, exact) in [gelu(x as f32), silu(x as f32)].into_iter().zip(exact) {
                assert!((f64::from(f) - exact).abs() <= 2e-6 * exact.abs().max(1e-2), "{x}: {f} not {exact}");
            }
            let step = 1e-5;
            let slopes = [
                (gelu_derivative(x), gelu_derivative(x as f32), gelu(x + step) - gelu(x - step)),
                (silu_derivative(x), silu_derivative(x as f32), silu(x + step) - silu(x - step)),
            ];
            for (double, single, difference) in slopes {
                assert!((double - difference / (2.0 * step)).abs() < 1e-9, "{x}: {double}");
                assert!((f64::from(single) - double).abs() < 1e-6, "{x}: {single} not {double}");
            }
        }
        for x in [-1e30_f32, -1e4, 1e4, 1e30] {
            let positive = if x > 0.0 { 1.0 } else { 0.0 };
            for (f, slope) in [(gelu(x), gelu_derivative(x)), (silu(x), silu_derivative(x))] {
                assert!(f == x * positive && (slope - positive).abs() < 1e-30, "{x}: {f} {slope}");
            }
        }
    }
}
