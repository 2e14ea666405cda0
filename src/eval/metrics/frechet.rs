//! The Fréchet distance of two normal distributions (Dowson and Landau 1982), as used by FID (Heusel et al. 2017).
//!
//! ```text
//! d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½
//! ```
//!
//! With Fᵢ Fᵢᵀ = Σᵢ, the last trace is the sum of the singular values of F₁ᵀ F₂ (its nuclear norm): the eigenvalues of Σ₁ Σ₂ are
//! those of (F₁ᵀ F₂)(F₁ᵀ F₂)ᵀ. It is real and non-negative despite rounding, whereas a matrix square root of the non-symmetric Σ₁
//! Σ₂ can become complex. Singular values are exact to ε times the largest; via the squared product they would only be exact to
//! √ε.
//!
//! F is the matrix of centred features if there are fewer of them than dimensions; else it is the Cholesky factor of Σ with
//! diagonal pivoting, which for a singular Σ ends at its rank (Higham 2002, Accuracy and Stability of Numerical Algorithms, 10.3)
//! and takes a tenth of the time of eigenvectors. If F Fᵀ differs from Σ by more than rounding, Σ is not a covariance, or only
//! almost one: then F = U Λ^½ from the symmetric eigen-decomposition Σ = U Λ Uᵀ, and Λ shows which it is. A singular Σ needs no ε
//! on its diagonal.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, Side, Spec};

use super::Features;
use crate::error::{Error, Result};

/// Rows added to a covariance at once.
const BLOCK: usize = 1024;

/// A normal distribution: its mean, and a factor of its covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: Vec<f64>,
    /// tr Σ.
    trace: f64,
    /// F `[width, r]`, F Fᵀ = Σ.
    factor: Mat<f64>,
}

impl Gaussian {
    /// From features: mean and unbiased covariance (the sum of squares over N − 1, as NumPy's `cov`).
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 images, which have no covariance.
    pub fn of_features(features: &Features) -> Result<Self> {
        let (count, width) = (features.count(), features.width());
        if count < 2 {
            let images = if count == 1 { "1 image has".to_string() } else { format!("{count} images have") };
            let message = format!("{images} no covariance");
            return Err(Error::config("num_samples", message, "give 2 images or more; 10,000 is usual"));
        }
        if count > width {
            let (mean, covariance) = moments(features)?;
            return Self::of_moments(mean, &covariance);
        }
        let mean = features.mean();
        let mut factor = features.columns(0..count, &mean);
        let scale = 1.0 / ((count - 1) as f64).sqrt();
        let mut trace = 0.0;
        for column in 0..count {
            for x in factor.col_as_slice_mut(column) {
                *x *= scale;
                trace += *x * *x;
            }
        }
        Ok(Self { mean, trace, factor })
    }

    /// From a mean `[width]` and a covariance `[width, width]`, row-major, whose upper triangle is not read.
    ///
    /// # Errors
    /// [`Error::Shape`] for mismatched sizes; [`Error::Config`] for values that are not finite, and for a matrix that is not a
    /// covariance: with an eigenvalue below −1e-6 of the largest, or not symmetric.
    pub fn of_moments(mean: Vec<f64>, covariance: &[f64]) -> Result<Self> {
        let width = mean.len();
        if covariance.len() != width * width || width == 0 {
            let message = format!("a mean of {width} and a covariance of {} values", covariance.len());
            return Err(Error::shape("statistics", message));
        }
        let wrong = |message: String| Err(Error::config("statistics", message, "give the moments of features"));
        if mean.iter().chain(covariance).any(|x| !x.is_finite()) {
            return wrong("a value is not finite".into());
        }
        let trace: f64 = (0..width).map(|i| covariance[i * width + i]).sum();
        let largest = covariance.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        let crossed = (0..width).flat_map(|i| (0..i).map(move |j| (i, j)));
        let apart = crossed.map(|(i, j)| (covariance[i * width + j] - covariance[j * width + i]).abs());
        if apart.fold(0.0, f64::max) > 1e-6 * largest {
            return wrong("the covariance is not symmetric".into());
        }
        let matrix = Mat::from_fn(width, width, |i, j| covariance[i.max(j) * width + i.min(j)]);
        if let Some(factor) = cholesky(&matrix) {
            return Ok(Self { mean, trace, factor });
        }
        let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|error| {
            Error::config("statistics", format!("no eigenvalues: {error:?}"), "give the moments of features")
        })?;
        let values = eigen.S().column_vector();
        let (least, most) = (values[0], values[width - 1].max(0.0));
        if least < -1e-6 * most.max(f64::MIN_POSITIVE) {
            return wrong(format!("the covariance has an eigenvalue of {least:.3e} beside one of {most:.3e}"));
        }
        // Ascending: the eigenvalues that rounding left at zero or below come first, and are not part of the factor.
        let first = (0..width).take_while(|&i| values[i] <= 0.0).count();
        let vectors = eigen.U();
        let factor = Mat::from_fn(width, width - first, |i, j| vectors[(i, first + j)] * values[first + j].sqrt());
        Ok(Self { mean, trace, factor })
    }

    /// The mean.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The sum of the variances, tr Σ.
    pub fn trace(&self) -> f64 {
        self.trace
    }

    /// The squared Fréchet distance; never negative.
    ///
    /// # Errors
    /// [`Error::Shape`] for distributions of different widths.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        if self.mean.len() != other.mean.len() {
            let message = format!("{} features beside {}", self.mean.len(), other.mean.len());
            return Err(Error::shape("Fréchet distance", message));
        }
        let means: f64 = self.mean.iter().zip(&other.mean).map(|(a, b)| (a - b) * (a - b)).sum();
        let product = self.factor.transpose() * &other.factor;
        let root: f64 = match product.nrows().min(product.ncols()) {
            0 => 0.0,
            _ => {
                let values = product.singular_values().map_err(|error| {
                    Error::config(
                        "statistics",
                        format!("no singular values: {error:?}"),
                        "give the moments of features",
                    )
                })?;
                // Smallest first, so that none is lost in a large sum.
                values.iter().rev().sum()
            }
        };
        Ok((means + self.trace + other.trace - 2.0 * root).max(0.0))
    }
}

/// F `[width, rank]` of a symmetric `[width, width]` matrix with F Fᵀ equal to it up to rounding; none if there is no such F.
fn cholesky(matrix: &Mat<f64>) -> Option<Mat<f64>> {
    let width = matrix.nrows();
    let largest = (0..width).map(|i| matrix[(i, i)]).fold(0.0, f64::max);
    if largest == 0.0 {
        return None;
    }
    let (par, mut lower) = (faer::get_global_parallelism(), matrix.clone());
    let (mut order, mut places) = (vec![0usize; width], vec![0usize; width]);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<usize, f64>(width, par, Spec::default()));
    let stack = MemStack::new(&mut memory);
    let (info, _) = cholesky_in_place(lower.as_mut(), &mut order, &mut places, par, stack, Spec::default()).ok()?;
    for (place, &row) in order.iter().enumerate() {
        places[row] = place;
    }
    let factor = Mat::from_fn(width, info.rank, |i, j| if places[i] >= j { lower[(places[i], j)] } else { 0.0 });
    let mut rest = matrix.clone();
    let whole = BlockStructure::Rectangular;
    triangular::matmul(
        &mut rest,
        BlockStructure::TriangularLower,
        Accum::Add,
        &factor,
        whole,
        factor.transpose(),
        whole,
        -1.0,
        par,
    );
    // Pivots end below width · ε of the largest; each of the steps may have rounded by ε.
    let bound = 4.0 * width as f64 * f64::EPSILON * largest;
    let exact = (0..width).all(|j| (j..width).all(|i| rest[(i, j)].abs() <= bound));
    exact.then_some(factor)
}

/// The mean `[width]` and the unbiased covariance `[width, width]` of features.
///
/// # Errors
/// [`Error::Config`] for fewer than 2 images.
pub(crate) fn moments(features: &Features) -> Result<(Vec<f64>, Vec<f64>)> {
    let (count, width) = (features.count(), features.width());
    if count < 2 {
        let images = if count == 1 { "1 image has".to_string() } else { format!("{count} images have") };
        let message = format!("{images} no covariance");
        return Err(Error::config("num_samples", message, "give 2 images or more; 10,000 is usual"));
    }
    let mean = features.mean();
    let mut sums = Mat::<f64>::zeros(width, width);
    for first in (0..count).step_by(BLOCK) {
        let columns = features.columns(first..(first + BLOCK).min(count), &mean);
        triangular::matmul(
            &mut sums,
            BlockStructure::TriangularLower,
            Accum::Add,
            &columns,
            BlockStructure::Rectangular,
            columns.transpose(),
            BlockStructure::Rectangular,
            1.0,
            faer::get_global_parallelism(),
        );
    }
    let scale = 1.0 / (count - 1) as f64;
    let element = |at: usize| sums[((at / width).max(at % width), (at / width).min(at % width))] * scale;
    Ok((mean, (0..width * width).map(element).collect()))
}

#[cfg(test)]
#[path = "frechet_tests.rs"]
mod tests;
