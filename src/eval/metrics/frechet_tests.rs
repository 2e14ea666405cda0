//! Known answers at the width of InceptionV3.

use super::*;

const WIDTH: usize = 2048;

fn diagonal(values: impl Fn(usize) -> f64) -> Vec<f64> {
    (0..WIDTH * WIDTH).map(|at| if at / WIDTH == at % WIDTH { values(at / WIDTH) } else { 0.0 }).collect()
}

/// A reflection I − 2 u uᵀ with a unit u: its columns are an orthonormal basis.
fn rotated(values: impl Fn(usize) -> f64) -> Vec<f64> {
    let raw: Vec<f64> = (0..WIDTH).map(|i| ((i * 7919 % 1009) as f64 / 1009.0) - 0.4).collect();
    let norm = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    let u: Vec<f64> = raw.iter().map(|x| x / norm).collect();
    // H D H = D − 2 u (D u)ᵀ − 2 (D u) uᵀ + 4 (uᵀ D u) u uᵀ.
    let du: Vec<f64> = (0..WIDTH).map(|i| values(i) * u[i]).collect();
    let udu: f64 = u.iter().zip(&du).map(|(a, b)| a * b).sum();
    (0..WIDTH * WIDTH)
        .map(|at| {
            let (i, j) = (at / WIDTH, at % WIDTH);
            let own = if i == j { values(i) } else { 0.0 };
            own - 2.0 * (u[i] * du[j] + du[i] * u[j]) + 4.0 * udu * u[i] * u[j]
        })
        .collect()
}

fn check(name: &str, one: (f64, &[f64]), two: (f64, &[f64]), expected: f64) {
    let of = |(mean, covariance): (f64, &[f64])| Gaussian::of_moments(vec![mean; WIDTH], covariance).unwrap();
    let (a, b) = (of(one), of(two));
    let difference = (one.0 - two.0).powi(2) * WIDTH as f64;
    let scale = a.trace() + b.trace() + difference;
    let found = a.distance(&b).unwrap();
    assert!(found >= 0.0 && (found - expected).abs() < 1e-6 * scale, "{name}: {found}, not {expected} (scale {scale})");
}

/// Σ (√a − √b)² plus the means' distance, for commuting covariances.
fn expected(a: impl Fn(usize) -> f64, b: impl Fn(usize) -> f64, difference: f64) -> f64 {
    (0..WIDTH).map(|i| (a(i).sqrt() - b(i).sqrt()).powi(2)).sum::<f64>() + difference * difference * WIDTH as f64
}

#[test]
fn diagonal_and_scaled() {
    let a = |i: usize| 1.0 / (1.0 + i as f64);
    let b = |i: usize| 0.5 + (i % 7) as f64;
    check("diagonal", (0.1, &diagonal(a)), (0.3, &diagonal(b)), expected(a, b, 0.2));
    let (large, small) = (|i: usize| 1e6 * a(i), |i: usize| 1e-6 * b(i));
    check("scales", (0.0, &diagonal(large)), (0.0, &diagonal(small)), expected(large, small, 0.0));
}

#[test]
fn commuting_singular_and_nearly_equal() {
    let a = |i: usize| if i < 100 { 1.0 + i as f64 / 50.0 } else { 0.0 };
    let b = |i: usize| if i.is_multiple_of(2) { 0.3 } else { 0.0 };
    let one = rotated(a);
    check("rank 100", (0.0, &one), (0.0, &rotated(b)), expected(a, b, 0.0));
    check("equal", (0.0, &one), (0.0, &one), 0.0);
    let near = |i: usize| a(i) * (1.0 + 1e-10);
    check("nearly equal", (1.0, &one), (1.0 + 1e-9, &rotated(near)), expected(a, near, 1e-9));
}

/// Features of fewer images than dimensions: the factor of the features equals that of their covariance.
#[test]
fn few_images_are_their_covariance() {
    let (count, width) = (40, 64);
    let values = |seed: u64| {
        let mut values = vec![0.0f32; count * width];
        let philox = crate::rng::Philox::new(seed);
        crate::ops::host::normal::fill_normal(&mut values, philox, 0, 0, crate::rng::Purpose::Probe);
        values
    };
    let (a, b) = (values(1), values(2));
    let features = [&a, &b].map(|values| Features::new(values, width).unwrap());
    let direct = features.each_ref().map(|features| Gaussian::of_features(features).unwrap());
    let by_moments = features.each_ref().map(|features| {
        let (mean, covariance) = moments(features).unwrap();
        Gaussian::of_moments(mean, &covariance).unwrap()
    });
    let (one, two) = (direct[0].distance(&direct[1]).unwrap(), by_moments[0].distance(&by_moments[1]).unwrap());
    let mixed = direct[0].distance(&by_moments[1]).unwrap();
    assert!((one / two - 1.0).abs() < 1e-6 && (one / mixed - 1.0).abs() < 1e-6, "{one} {two} {mixed}");
    let single = Features::new(&a[..width], width).unwrap();
    assert!(Gaussian::of_features(&single).unwrap_err().to_string().contains("1 image has"));
}

#[test]
fn what_is_no_covariance_is_refused() {
    let of = |covariance: &[f64]| Gaussian::of_moments(vec![0.0; 2], covariance).map(|_| ()).unwrap_err().to_string();
    assert!(of(&[1.0, 0.5, -0.5, 1.0]).contains("not symmetric"));
    assert!(of(&[1.0, 2.0, 2.0, 1.0]).contains("eigenvalue"));
    assert!(of(&[1.0, f64::NAN, 0.0, 1.0]).contains("finite"));
    assert!(Gaussian::of_moments(vec![0.0; 3], &[1.0; 4]).is_err());
    assert!(Gaussian::of_moments(vec![0.0; 2], &[0.0; 4]).unwrap().trace() == 0.0);
}
