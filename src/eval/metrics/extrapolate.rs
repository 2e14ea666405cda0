//! The Fréchet distance for infinitely many samples (Chong and Forsyth 2020, *Effectively Unbiased FID and Inception Score*).

use super::{Features, Gaussian, subset};
use crate::error::{Error, Result};
use crate::words::counted;

/// Number of sizes in the fit.
pub const SIZES: usize = 15;
/// The smallest of them, if there are enough samples.
const LEAST: usize = 5000;

/// A line d(N) = limit + slope / N.
#[derive(Clone, Debug, PartialEq)]
pub struct Extrapolation {
    /// The distance at N = ∞.
    pub limit: f64,
    /// The slope: the bias at N is slope / N.
    pub slope: f64,
    /// The standard error of the limit, from the line's residuals.
    pub error: f64,
    /// The sizes, with the distance at each.
    pub points: Vec<(usize, f64)>,
}

/// The Fréchet distance from `reference` of [`SIZES`] subsets of `generated`, from 5,000 images (or half, if there are fewer than
/// 10,000) to all, drawn without replacement by `seed` and extrapolated in 1/N by least squares. `progress(done, of)` counts
/// sizes.
///
/// # Errors
/// [`Error::Config`] for fewer than 32 images; those of [`Gaussian`].
pub fn extrapolated(
    generated: Features,
    reference: &Gaussian,
    seed: u64,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Extrapolation> {
    let count = generated.count();
    if count < 2 * (SIZES + 1) {
        let message = format!("{} for {SIZES} sizes of the extrapolation", counted(count, "image"));
        return Err(Error::config("num_samples", message, "give 32 images or more; 10,000 is usual"));
    }
    let least = if count >= 2 * LEAST { LEAST } else { count / 2 };
    let mut points = Vec::with_capacity(SIZES);
    for i in 0..SIZES {
        let size = least + (count - least) * i / (SIZES - 1);
        let rows = subset(count, size, seed, i as u32);
        points.push((size, Gaussian::of_features(&generated.part(&rows))?.distance(reference)?));
        progress(i + 1, SIZES)?;
    }
    let (limit, slope, error) = line(&points);
    Ok(Extrapolation { limit, slope, error, points })
}

/// Intercept, slope and the intercept's standard error of y over 1/x.
fn line(points: &[(usize, f64)]) -> (f64, f64, f64) {
    let n = points.len() as f64;
    let inverse = |&(size, _): &(usize, f64)| 1.0 / size as f64;
    let mean_x = points.iter().map(inverse).sum::<f64>() / n;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / n;
    let squares: f64 = points.iter().map(|point| (inverse(point) - mean_x).powi(2)).sum();
    let products: f64 = points.iter().map(|point| (inverse(point) - mean_x) * (point.1 - mean_y)).sum();
    let slope = products / squares;
    let limit = mean_y - slope * mean_x;
    let residuals: f64 = points.iter().map(|point| (point.1 - limit - slope * inverse(point)).powi(2)).sum();
    (limit, slope, (residuals / (n - 2.0) * (1.0 / n + mean_x * mean_x / squares)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found() {
        let points: Vec<(usize, f64)> = (1..=SIZES).map(|i| (100 * i, 3.0 + 50.0 / (100 * i) as f64)).collect();
        let (limit, slope, error) = line(&points);
        assert!((limit - 3.0).abs() < 1e-12 && (slope - 50.0).abs() < 1e-9 && error < 1e-12);
    }

    /// For equal distributions the distance is all bias: it falls as 1/N, and the limit is nearer to zero than any of the points.
    #[test]
    fn equal_distributions_have_a_limit_near_zero() {
        let normal = |seed: u64, count: usize| {
            let mut values = vec![0.0f32; count * 8];
            let philox = crate::rng::Philox::new(seed);
            crate::ops::host::normal::fill_normal(&mut values, philox, 0, 0, crate::rng::Purpose::Probe);
            values
        };
        let (a, b) = (normal(1, 2000), normal(2, 40_000));
        let reference = Gaussian::of_features(&Features::new(&b, 8).unwrap()).unwrap();
        let found = extrapolated(Features::new(&a, 8).unwrap(), &reference, 5, |_, _| Ok(())).unwrap();
        assert_eq!((found.points.len(), found.points[0].0, found.points[14].0), (15, 1000, 2000));
        assert!(found.slope > 0.0 && found.limit.abs() < 0.5 * found.points[14].1, "{found:?}");
        assert!(extrapolated(Features::new(&a[..8 * 20], 8).unwrap(), &reference, 5, |_, _| Ok(())).is_err());
    }
}
