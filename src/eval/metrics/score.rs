//! The Inception Score (Salimans et al. 2016, *Improved Techniques for Training GANs*).

use super::{Features, numpy_shuffle};
use crate::error::{Error, Result};
use crate::rng::Permutation;
use crate::words::counted;

/// The usual number of splits.
pub const SPLITS: usize = 10;

/// Order of the images, which are often sorted by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// As given.
    None,
    /// By a seed.
    Seeded(u64),
    /// As torch-fidelity: NumPy's `RandomState(2020).permutation`, for the same digits.
    TorchFidelity,
}

/// exp of the mean over images of KL(p(y | x) ‖ p(y)) on each of `splits` parts, where p(y) is the part's mean and p the softmax
/// of `logits` `[count, classes]`. The images are shuffled first.
/// Returns the mean over the splits and their standard deviation (over the number of splits, as NumPy's `std`).
///
/// # Errors
/// [`Error::Config`] for fewer images than splits.
pub fn inception_score(logits: &Features, splits: usize, shuffle: Shuffle) -> Result<(f64, f64)> {
    let count = logits.count();
    if splits == 0 || count < splits {
        let message = format!("{} for {} of the Inception Score", counted(count, "image"), counted(splits, "split"));
        return Err(Error::config("num_samples", message, "give more images; 5,000 or more is usual"));
    }
    let order: Vec<usize> = match shuffle {
        Shuffle::None => (0..count).collect(),
        Shuffle::Seeded(seed) => {
            let order = Permutation::new(count as u32, seed, 0);
            (0..count as u32).map(|place| order.apply(place) as usize).collect()
        }
        Shuffle::TorchFidelity => numpy_shuffle::permutation(2020, count),
    };
    let place = |i: usize| order[i];
    let scores: Vec<f64> = (0..splits)
        .map(|split| split_score(logits, (split * count / splits..(split + 1) * count / splits).map(place)))
        .collect();
    let mean = scores.iter().sum::<f64>() / splits as f64;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / splits as f64;
    Ok((mean, variance.sqrt()))
}

fn split_score(logits: &Features, rows: impl Iterator<Item = usize>) -> f64 {
    let mut mean = vec![0.0; logits.width()];
    let (mut count, mut negative_entropy) = (0.0, 0.0);
    for row in rows {
        let logits = logits.row(row);
        let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let shifted = |&logit: &f32| f64::from(logit) - f64::from(largest);
        let log_sum = logits.iter().map(|logit| shifted(logit).exp()).sum::<f64>().ln();
        for (mean, logit) in mean.iter_mut().zip(logits) {
            let log_p = shifted(logit) - log_sum;
            let p = log_p.exp();
            *mean += p;
            negative_entropy += p * log_p;
        }
        count += 1.0;
    }
    // Σ p (log p − log q) over images is Σ p log p minus count · Σ q log q.
    let entropy: f64 = mean.iter().map(|sum| sum / count).filter(|&q| q > 0.0).map(|q| q * q.ln()).sum();
    (negative_entropy / count - entropy).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_and_even_is_the_number_of_classes_and_unsure_is_one() {
        let sure: Vec<f32> = (0..40).flat_map(|i| (0..4).map(move |c| if c == i % 4 { 100.0 } else { 0.0 })).collect();
        let (mean, deviation) = inception_score(&Features::new(&sure, 4).unwrap(), 10, Shuffle::None).unwrap();
        assert!((mean - 4.0).abs() < 1e-9 && deviation < 1e-9, "{mean} {deviation}");
        let unsure = vec![3.0; 160];
        let (mean, _) = inception_score(&Features::new(&unsure, 4).unwrap(), 10, Shuffle::Seeded(1)).unwrap();
        assert!((mean - 1.0).abs() < 1e-12, "{mean}");
        assert!(inception_score(&Features::new(&unsure[..36], 4).unwrap(), 10, Shuffle::None).is_err());
    }

    #[test]
    fn sorted_classes_need_the_shuffle() {
        let sorted: Vec<f32> =
            (0..400).flat_map(|i| (0..4).map(move |c| if c == i / 100 { 9.0 } else { 0.0 })).collect();
        let logits = Features::new(&sorted, 4).unwrap();
        let score = |shuffle| inception_score(&logits, 10, shuffle).unwrap().0;
        assert!(
            score(Shuffle::None) < 1.5 && score(Shuffle::Seeded(2020)) > 3.0 && score(Shuffle::TorchFidelity) > 3.0
        );
    }
}
