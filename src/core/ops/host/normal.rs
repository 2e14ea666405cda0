//! Gaussian numbers from Philox bits.

use super::vector::dispatch;
use super::{Float, math};
use crate::rng::{Philox, Purpose, uniform};

/// Philox calls that [`fill_normal`] makes side by side.
const WIDTH: usize = 16;

/// Four standard normal numbers of 128 random bits (Box and Muller 1958).
///
/// With `u = uniform(bits)`: `r = sqrt(-2 ln u0)`, then `r cos 2πu1` and `r sin 2πu1`; the same of `u2` and `u3`. The largest
/// magnitude is √(48 ln 2) = 5.77. Kernels compute the same from the same bits, within rounding.
#[inline(always)]
pub fn normal4(bits: [u32; 4]) -> [f32; 4] {
    let [u0, u1, u2, u3] = bits.map(uniform);
    let (r0, r1) = ((-2.0 * math::f32::ln(u0)).sqrt(), (-2.0 * math::f32::ln(u2)).sqrt());
    let ((sin0, cos0), (sin1, cos1)) = (math::f32::sin_cos_turns(u1), math::f32::sin_cos_turns(u3));
    [r0 * cos0, r0 * sin0, r1 * cos1, r1 * sin1]
}

/// Fills `dst` with the standard normal numbers of `(item, step, purpose)`, from element 0 on: element `e` is number `e % 4` of
/// [`normal4`] of the Philox call for block `e / 4`. `item` is the example's or the sample's own index.
pub fn fill_normal(dst: &mut [f32], philox: Philox, item: u32, step: u32, purpose: Purpose) {
    dispatch(
        #[inline(always)]
        || {
            for (chunk, first) in dst.chunks_mut(4 * WIDTH).zip((0u32..).step_by(WIDTH)) {
                let mut columns = [[0.0; WIDTH]; 4];
                #[allow(clippy::needless_range_loop)] // lanes of four columns at once: this form vectorises
                for l in 0..WIDTH {
                    let numbers = normal4(philox.bits4(first.wrapping_add(l as u32), item, step, purpose));
                    (0..4).for_each(|i| columns[i][l] = numbers[i]);
                }
                if let Some(whole) = chunk.as_chunks_mut::<{ 4 * WIDTH }>().0.first_mut() {
                    (0..4 * WIDTH).for_each(|e| whole[e] = columns[e % 4][e / 4]);
                } else {
                    chunk.iter_mut().enumerate().for_each(|(e, x)| *x = columns[e % 4][e / 4]);
                }
            }
        },
    );
}

/// [`fill_normal`] in `f32`; in `f64` the same formula of the same uniform numbers: the oracle.
pub fn fill_normal_as<T: Float + bytemuck::Pod>(dst: &mut [T], philox: Philox, item: u32, step: u32, purpose: Purpose) {
    if size_of::<T>() == size_of::<f32>() {
        return fill_normal(bytemuck::cast_slice_mut(dst), philox, item, step, purpose);
    }
    for (chunk, block) in dst.chunks_mut(4).zip(0u32..) {
        let u = philox.uniform4(block, item, step, purpose).map(T::from_f32);
        for (pair, u) in chunk.chunks_mut(2).zip(u.chunks_exact(2)) {
            let radius = (T::from_f64(-2.0) * u[0].ln()).sqrt();
            let angle = T::from_f64(std::f64::consts::TAU) * u[1];
            pair.iter_mut().zip([angle.cos(), angle.sin()]).for_each(|(x, turn)| *x = radius * turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_those_of_their_own_philox_call() {
        let philox = Philox::new(0x1234_5678_9abc_def0);
        for len in [0, 1, 3, 63, 64, 65, 3072, 3075] {
            let mut dst = vec![f32::NAN; len];
            fill_normal(&mut dst, philox, 7, 9, Purpose::Noise);
            for (e, x) in dst.iter().enumerate() {
                let bits = std::hint::black_box(philox.bits4((e / 4) as u32, 7, 9, Purpose::Noise));
                assert_eq!(x.to_bits(), std::hint::black_box(normal4(bits))[e % 4].to_bits(), "element {e} of {len}");
            }
        }
    }

    #[test]
    fn numbers_agree_with_the_formula_in_f64() {
        let philox = Philox::new(1);
        let extremes = [[0, 0, u32::MAX, u32::MAX], [u32::MAX, 0, 0, u32::MAX], [511, 1 << 31, 512, 1 << 30]];
        for bits in (0..10_000).map(|i| philox.bits4(i, 0, 0, Purpose::Probe)).chain(extremes) {
            let u = bits.map(|b| f64::from(uniform(b)));
            for (pair, numbers) in normal4(bits).chunks(2).enumerate() {
                let r = (-2.0 * u[2 * pair].ln()).sqrt();
                let angle = std::f64::consts::TAU * u[2 * pair + 1];
                for (ours, exact) in numbers.iter().zip([r * angle.cos(), r * angle.sin()]) {
                    assert!((f64::from(*ours) - exact).abs() <= 1e-6, "{bits:x?}: {ours} not {exact}");
                }
            }
        }
    }

    #[test]
    fn the_oracle_is_the_same_noise() {
        let (mut single, mut double) = ([0.0f32; 1023], [0.0f64; 1023]);
        fill_normal_as(&mut single, Philox::new(5), 1, 2, Purpose::Noise);
        fill_normal_as(&mut double, Philox::new(5), 1, 2, Purpose::Noise);
        assert!(single.iter().zip(&double).all(|(&s, d)| (f64::from(s) - d).abs() < 2e-6));
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let mut x = vec![0.0; 1 << 20];
        fill_normal(&mut x, Philox::new(3), 0, 0, Purpose::Noise);
        let moment = |p: i32| x.iter().map(|&x| f64::from(x).powi(p)).sum::<f64>() / x.len() as f64;
        for (p, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)] {
            // Five standard errors: the variance of x^p is at most E x^2p.
            let spread = [1.0, 3.0, 15.0, 105.0, 945.0, 10395.0][p as usize - 1];
            let error = (moment(p) - expected).abs();
            assert!(error < 5.0 * f64::sqrt(spread / x.len() as f64), "moment {p} is off by {error}");
        }
    }
}
