//! The kernel distance KID (Bińkowski et al. 2018, *Demystifying MMD GANs*).

use faer::Mat;

use super::{Features, subset};
use crate::error::{Error, Result};

/// Number of subsets.
pub const SUBSETS: usize = 100;
/// Most images of a subset.
pub const SUBSET_SIZE: usize = 1000;

/// A kernel distance over subsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// The mean over the subsets.
    pub mean: f64,
    /// Their standard deviation (over N, as NumPy's `std`).
    pub deviation: f64,
    /// The standard error of the mean as an estimate from all samples: the deviation times √(m / (n − m)), the factor by which
    /// subsets of m out of n vary more. If a subset takes every image of the smaller set, the subsets show nothing about that set:
    /// then it is the jackknife error of one subset (Efron and Stein 1981). Infinite for fewer than 3 images.
    pub error: f64,
    /// Images of a subset.
    pub subset_size: usize,
    /// Number of subsets: 1 if a subset takes everything.
    pub subsets: usize,
}

/// The unbiased squared maximum mean discrepancy with the kernel (x · y / width + 1)³, over `subsets` subsets of `size` images
/// each (or of all, if there are fewer), drawn without replacement by `seed`.
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
        let place = if reference.count() < 2 { "reference" } else { "num_samples" };
        let images = if fewest == 1 { "1 image".to_string() } else { format!("{fewest} images") };
        let message = format!("{images} for {subsets} subsets");
        return Err(Error::config(place, message, "give 2 images or more; 10,000 is usual"));
    }
    // Subsets that take everything are all equal.
    let whole = size == generated.count() && size == reference.count();
    let subsets = if whole { 1 } else { subsets };
    let pairs = |draw: usize| {
        let pick = |features: &Features, side: u32| {
            let rows = subset(features.count(), size, seed, 2 * draw as u32 + side);
            gathered(features, &rows)
        };
        Pairs::new(&pick(generated, 0), &pick(reference, 1))
    };
    let values: Vec<f64> = (0..subsets).map(|draw| pairs(draw).discrepancy()).collect();
    let mean = values.iter().sum::<f64>() / subsets as f64;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / subsets as f64).sqrt();
    let error = match fewest > size {
        true => deviation * (size as f64 / (fewest - size) as f64).sqrt(),
        false => pairs(0).jackknife(),
    };
    Ok(KernelDistance { mean, deviation, error, subset_size: size, subsets })
}

/// Some rows as the columns of a matrix.
fn gathered(features: &Features, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(features.width(), rows.len(), |i, j| f64::from(features.row(rows[j])[i]))
}

/// Sums of the kernel over pairs of m images `x` and m images `y`.
struct Pairs {
    /// For each `x`: the sum over the other `x`.
    within_x: Vec<f64>,
    within_y: Vec<f64>,
    /// For each `x`: the sum over all `y`, and vice versa.
    across_x: Vec<f64>,
    across_y: Vec<f64>,
}

impl Pairs {
    /// For images in columns, with equal width and number.
    fn new(x: &Mat<f64>, y: &Mat<f64>) -> Self {
        let (within_x, _) = kernel_sums(x, x, false);
        let (within_y, _) = kernel_sums(y, y, false);
        let (across_y, across_x) = kernel_sums(x, y, true);
        Self { within_x, within_y, across_x, across_y }
    }

    /// The sums over pairs of different images in each set over m (m − 1), minus twice the cross sum over m².
    fn discrepancy(&self) -> f64 {
        let count = self.within_x.len() as f64;
        let [x, y, across] = [&self.within_x, &self.within_y, &self.across_y].map(|sums| sums.iter().sum::<f64>());
        (x + y) / (count * (count - 1.0)) - 2.0 * across / (count * count)
    }

    /// The standard error of the discrepancy by leaving out each image of either set in turn; infinite for fewer than 3.
    fn jackknife(&self) -> f64 {
        let m = self.within_x.len() as f64;
        if m < 3.0 {
            return f64::INFINITY;
        }
        let across: f64 = self.across_x.iter().sum();
        let variance = |within: &[f64], across_of: &[f64]| -> f64 {
            let sum: f64 = within.iter().sum();
            // The other set's own sum is the same in all of them.
            let left: Vec<f64> = within
                .iter()
                .zip(across_of)
                .map(|(own, cross)| {
                    (sum - 2.0 * own) / ((m - 1.0) * (m - 2.0)) - 2.0 * (across - cross) / ((m - 1.0) * m)
                })
                .collect();
            let mean = left.iter().sum::<f64>() / m;
            left.iter().map(|value| (value - mean).powi(2)).sum::<f64>() * (m - 1.0) / m
        };
        (variance(&self.within_x, &self.across_x) + variance(&self.within_y, &self.across_y)).sqrt()
    }
}

/// The kernel's sums over the columns of `a` for each column of `b`, and vice versa; with or without the diagonal.
fn kernel_sums(a: &Mat<f64>, b: &Mat<f64>, diagonal: bool) -> (Vec<f64>, Vec<f64>) {
    let (width, product) = (a.nrows() as f64, a.transpose() * b);
    let (mut of_b, mut of_a) = (vec![0.0; b.ncols()], vec![0.0; a.ncols()]);
    for (column, of_b) in of_b.iter_mut().enumerate() {
        for (row, (&dot, of_a)) in product.col_as_slice(column).iter().zip(&mut of_a).enumerate() {
            if diagonal || row != column {
                let kernel = (dot / width + 1.0).powi(3);
                *of_b += kernel;
                *of_a += kernel;
            }
        }
    }
    (of_b, of_a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host::normal::normal4;

    #[test]
    fn by_hand() {
        // One feature, x = {0, 1}, y = {2, 3}: k(0, 1) = 1, k(2, 3) = 7³ = 343; across 1, 1, 3³ = 27 and 4³ = 64.
        let (x, y) = ([0.0, 1.0], [2.0, 3.0]);
        let (x, y) = (Features::new(&x, 1).unwrap(), Features::new(&y, 1).unwrap());
        let found = kernel_distance(&x, &y, SUBSETS, SUBSET_SIZE, 0).unwrap();
        assert_eq!(found.mean, (2.0 + 686.0) / 2.0 - 2.0 * 93.0 / 4.0);
        assert_eq!((found.deviation, found.error, found.subset_size), (0.0, f64::INFINITY, 2));
    }

    /// The jackknife error equals that of leaving out each image by hand, and is a fair estimate of the variation over sets.
    #[test]
    fn sets_that_are_no_larger_than_a_subset_have_the_jackknifes_error() {
        let rows = |seed: u32, count: u32| -> Vec<f32> {
            let philox = crate::rng::Philox::new(u64::from(seed));
            (0..count).flat_map(|item| normal4(philox.bits4(0, item, 0, crate::rng::Purpose::Probe))).collect()
        };
        let distance = |x: &[f32], y: &[f32]| {
            let (x, y) = (Features::new(x, 4).unwrap(), Features::new(y, 4).unwrap());
            kernel_distance(&x, &y, SUBSETS, SUBSET_SIZE, 0).unwrap()
        };
        let (x, y) = (rows(1, 9), rows(2, 9));
        let pairs = |x: &[f32], y: &[f32]| {
            let kernel = |a: &[f32], b: &[f32]| {
                (a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / 4.0 + 1.0).powi(3)
            };
            let mean = |a: &[f32], b: &[f32], within: bool| {
                let (a, b): (Vec<_>, Vec<_>) = (a.chunks(4).collect(), b.chunks(4).collect());
                let sum: f64 = (0..a.len())
                    .flat_map(|i| (0..b.len()).map(move |j| (i, j)))
                    .filter(|(i, j)| !within || i != j)
                    .map(|(i, j)| kernel(a[i], b[j]))
                    .sum();
                sum / (a.len() * (b.len() - usize::from(within))) as f64
            };
            mean(x, x, true) + mean(y, y, true) - 2.0 * mean(x, y, false)
        };
        let left = |set: &[f32], at: usize| [&set[..4 * at], &set[4 * at + 4..]].concat();
        let variance = |values: Vec<f64>| {
            let mean = values.iter().sum::<f64>() / 9.0;
            values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() * 8.0 / 9.0
        };
        let by_hand = variance((0..9).map(|at| pairs(&left(&x, at), &y)).collect())
            + variance((0..9).map(|at| pairs(&x, &left(&y, at))).collect());
        let found = distance(&x, &y);
        assert!((found.error - by_hand.sqrt()).abs() < 1e-9 * found.error, "{found:?} {}", by_hand.sqrt());
        assert!((found.mean - pairs(&x, &y)).abs() < 1e-9);

        let found: Vec<_> = (0..60).map(|set| distance(&rows(2 * set + 10, 50), &rows(2 * set + 11, 50))).collect();
        let mean = found.iter().map(|found| found.mean).sum::<f64>() / 60.0;
        let spread = (found.iter().map(|found| (found.mean - mean).powi(2)).sum::<f64>() / 59.0).sqrt();
        let error = found.iter().map(|found| found.error).sum::<f64>() / 60.0;
        assert!((0.6..1.7).contains(&(error / spread)), "{error} for {spread}");
    }

    #[test]
    fn subsets_have_an_error_and_sets_their_least_size() {
        let values: Vec<f32> = (0..400).map(|i| ((i * 7919) % 401) as f32 / 401.0).collect();
        let (x, y) = (Features::new(&values[..200], 4).unwrap(), Features::new(&values[200..], 4).unwrap());
        let found = kernel_distance(&x, &y, 20, 25, 3).unwrap();
        assert!(found.deviation > 0.0 && (found.error - found.deviation).abs() < 1e-12, "{found:?}");
        assert_eq!(kernel_distance(&x, &y, 20, 25, 3).unwrap(), found);
        let one = Features::new(&values[..4], 4).unwrap();
        assert!(kernel_distance(&one, &y, 20, 25, 3).unwrap_err().to_string().contains("1 image for"));
        assert!(kernel_distance(&Features::new(&values, 8).unwrap(), &y, 20, 25, 3).is_err());
    }
}
