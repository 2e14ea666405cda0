//! The kernel distance KID (Bińkowski et al. 2018, *Demystifying MMD GANs*).

use faer::Mat;

use super::{Features, subset};
use crate::error::{Error, Result};

/// Subsets that are drawn.
pub const SUBSETS: usize = 100;
/// Images of a subset, at most.
pub const SUBSET_SIZE: usize = 1000;

/// A kernel distance over subsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// The mean over the subsets.
    pub mean: f64,
    /// Their standard deviation (over N, as NumPy's `std`).
    pub deviation: f64,
    /// The standard error of the mean as an estimate from all samples: the deviation times √(m / (n − m)), by which subsets of m out of
    /// n vary more; infinite where the subsets are the whole.
    pub error: f64,
    /// Images of a subset.
    pub subset_size: usize,
}

/// The unbiased squared maximum mean discrepancy under the kernel (x · y / width + 1)³, over `subsets` subsets of `size` images each (or
/// of all, where there are fewer), drawn without replacement by `seed`.
///
/// # Errors
/// [`Error::Shape`] for features of different widths; [`Error::Config`] for fewer than 2 images.
pub fn kernel_distance(
    generated: &Features,
    reference: &Features,
    subsets: usize,
    size: usize,
    seed: u64,
) -> Result<KernelDistance> {
    if generated.width() != reference.width() {
        let message = format!("{} features beside {}", generated.width(), reference.width());
        return Err(Error::shape("kernel distance", message));
    }
    let fewest = generated.count().min(reference.count());
    let size = size.min(fewest);
    if size < 2 || subsets == 0 {
        let message = format!("{fewest} images for {subsets} subsets");
        return Err(Error::config("--num-samples", message, "give 2 images or more; 10,000 is usual"));
    }
    // The subsets of the whole are all alike.
    let whole = size == generated.count() && size == reference.count();
    let subsets = if whole { 1 } else { subsets };
    let values: Vec<f64> = (0..subsets)
        .map(|draw| {
            let pick = |features: &Features, side: u32| {
                let rows = subset(features.count(), size, seed, 2 * draw as u32 + side);
                gathered(features, &rows)
            };
            discrepancy(&pick(generated, 0), &pick(reference, 1))
        })
        .collect();
    let mean = values.iter().sum::<f64>() / subsets as f64;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / subsets as f64).sqrt();
    let error = if fewest > size { deviation * (size as f64 / (fewest - size) as f64).sqrt() } else { f64::INFINITY };
    Ok(KernelDistance { mean, deviation, error, subset_size: size })
}

/// Some rows as the columns of a matrix.
fn gathered(features: &Features, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(features.width(), rows.len(), |i, j| f64::from(features.row(rows[j])[i]))
}

/// Of two sets of m images, in columns: the sums of the kernel over pairs of different images in each over m (m − 1), less twice the
/// one over pairs across over m².
fn discrepancy(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let (width, count) = (x.nrows() as f64, x.ncols() as f64);
    let sum = |a: &Mat<f64>, b: &Mat<f64>, diagonal: bool| -> f64 {
        let product = a.transpose() * b;
        let mut sum = 0.0;
        for column in 0..product.ncols() {
            for (row, &dot) in product.col_as_slice(column).iter().enumerate() {
                if diagonal || row != column {
                    sum += (dot / width + 1.0).powi(3);
                }
            }
        }
        sum
    };
    (sum(x, x, false) + sum(y, y, false)) / (count * (count - 1.0)) - 2.0 * sum(x, y, true) / (count * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // One feature, x = {0, 1}, y = {2, 3}: k(0, 1) = 1, k(2, 3) = 7³ = 343; across 1, 1, 3³ = 27 and 4³ = 64.
        let (x, y) = ([0.0, 1.0], [2.0, 3.0]);
        let (x, y) = (Features::new(&x, 1).unwrap(), Features::new(&y, 1).unwrap());
        let found = kernel_distance(&x, &y, SUBSETS, SUBSET_SIZE, 0).unwrap();
        assert_eq!(found.mean, (2.0 + 686.0) / 2.0 - 2.0 * 93.0 / 4.0);
        assert_eq!((found.deviation, found.error, found.subset_size), (0.0, f64::INFINITY, 2));
    }

    #[test]
    fn subsets_have_an_error_and_sets_their_least_size() {
        let values: Vec<f32> = (0..400).map(|i| ((i * 7919) % 401) as f32 / 401.0).collect();
        let (x, y) = (Features::new(&values[..200], 4).unwrap(), Features::new(&values[200..], 4).unwrap());
        let found = kernel_distance(&x, &y, 20, 25, 3).unwrap();
        assert!(found.deviation > 0.0 && (found.error - found.deviation).abs() < 1e-12, "{found:?}");
        assert_eq!(kernel_distance(&x, &y, 20, 25, 3).unwrap(), found);
        let one = Features::new(&values[..4], 4).unwrap();
        assert!(kernel_distance(&one, &y, 20, 25, 3).unwrap_err().to_string().contains("1 images"));
        assert!(kernel_distance(&Features::new(&values, 8).unwrap(), &y, 20, 25, 3).is_err());
    }
}
