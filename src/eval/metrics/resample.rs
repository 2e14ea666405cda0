//! Uncertainty from halves of the samples, drawn without replacement.

use crate::error::Result;
use crate::rng::Permutation;

/// Number of halves.
pub const DRAWS: usize = 10;

/// `size` of `count` distinct indices: draw number `draw` of `seed`.
///
/// # Panics
/// For a size beyond `count`.
pub fn subset(count: usize, size: usize, seed: u64, draw: u32) -> Vec<usize> {
    assert!(size <= count, "{size} of {count}");
    let order = Permutation::new(count as u32, seed, draw);
    let mut places: Vec<usize> = (0..size as u32).map(|i| order.apply(i) as usize).collect();
    // For sequential memory access.
    places.sort_unstable();
    places
}

/// A metric and its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value of all samples.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// The bias due to the number of samples, assuming a term proportional to 1/N: the value of half the samples minus that of
    /// all.
    pub bias: f64,
}

/// The metric `value` with its uncertainty from [`DRAWS`] halves: `of` gets a draw and computes the metric from half of each set.
///
/// Halves without replacement are the delete-d jackknife with d = N/2 (Shao and Wu 1989), whose factor (N − d)/d is 1: the standard
/// error is the standard deviation of the halves. A bias of b/N appears as 2b/N in a half, so the difference of the means is b/N.
///
/// # Errors
/// Those of `of`.
pub fn halves(value: f64, mut of: impl FnMut(u32) -> Result<f64>) -> Result<Estimate> {
    let values: Vec<f64> = (0..DRAWS as u32).map(&mut of).collect::<Result<_>>()?;
    Ok(Estimate::of_halves(value, &values))
}

impl Estimate {
    /// From the metric `value` of all samples, and its values for two or more halves.
    pub fn of_halves(value: f64, halves: &[f64]) -> Self {
        let count = halves.len() as f64;
        let mean = halves.iter().sum::<f64>() / count;
        let squares: f64 = halves.iter().map(|x| (x - mean).powi(2)).sum();
        Self { value, error: (squares / (count - 1.0)).sqrt(), bias: mean - value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_has_nothing_twice() {
        let mut seen = subset(100, 60, 7, 3);
        seen.dedup();
        assert_eq!((seen.len(), seen.iter().all(|&i| i < 100)), (60, true));
        assert_ne!(seen, subset(100, 60, 7, 4));
        assert_eq!(subset(5, 5, 0, 0), [0, 1, 2, 3, 4]);
    }

    /// The standard error of a mean is σ/√N, whatever the draws.
    #[test]
    fn the_error_of_a_mean_is_its_standard_error() {
        let values: Vec<f64> = (0..4000).map(|i| f64::from((i * 7919 % 4001) as u32) / 4001.0).collect();
        let mean = |places: &[usize]| places.iter().map(|&i| values[i]).sum::<f64>() / places.len() as f64;
        let all = mean(&(0..4000).collect::<Vec<_>>());
        let errors: Vec<f64> =
            (0..40).map(|seed| halves(all, |draw| Ok(mean(&subset(4000, 2000, seed, draw)))).unwrap().error).collect();
        let error = errors.iter().sum::<f64>() / 40.0;
        let expected = (1.0f64 / 12.0).sqrt() / 4000f64.sqrt();
        assert!((error / expected - 1.0).abs() < 0.15, "{error} {expected}");
    }
}
