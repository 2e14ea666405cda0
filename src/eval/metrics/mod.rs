//! Metrics of sample sets, as pure functions of features, in `f64` throughout.
//!
//! | metric | function | of |
//! |---|---|---|
//! | Fréchet distance (FID; Heusel et al. 2017) | [`Gaussian::distance`] | means and covariances |
//! | its extrapolation to infinitely many samples (Chong and Forsyth 2020) | [`extrapolated`] | features |
//! | kernel distance (KID; Bińkowski et al. 2018) | [`kernel_distance`] | features |
//! | Inception Score (Salimans et al. 2016) | [`inception_score`] | logits |
//! | precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020), AuthPct (Alaa et al. 2022) | [`Neighbours`] | features |
//!
//! Uncertainties come from subsets without replacement ([`halves`]): the duplicates of a bootstrap would bias the Fréchet distance
//! and all neighbour metrics.

mod extrapolate;
mod features;
mod frechet;
mod kernel;
mod neighbours;
mod numpy_shuffle;
mod resample;
mod score;

pub use extrapolate::{Extrapolation, SIZES, extrapolated};
pub use features::Features;
pub use frechet::Gaussian;
pub(crate) use frechet::moments;
pub use kernel::{KernelDistance, SUBSET_SIZE, SUBSETS, kernel_distance};
pub use neighbours::{COVERAGE_NEIGHBOURS, Neighbours, PRECISION_NEIGHBOURS};
pub use resample::{DRAWS, Estimate, halves, subset};
pub use score::{SPLITS, Shuffle, inception_score};
