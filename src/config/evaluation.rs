//! How a run is evaluated as it goes on: values of the `training` section.

use serde::{Deserialize, Serialize};

/// A metric of drawn samples, from training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleMetric {
    /// The Fréchet distance: FID on InceptionV3's features, FD-NAME on others.
    Fid,
    /// The kernel distance.
    Kid,
    /// The Inception Score.
    Is,
    /// The share of samples that lie among training images.
    Precision,
    /// The share of training images that lie among samples.
    Recall,
    /// How crowded the surroundings of training images are.
    Density,
    /// The share of training images that have a sample nearby.
    Coverage,
}

/// Which evaluation tool's treatment of images InceptionV3 sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Rule {
    /// Seitzer's pytorch-fid: half-pixel bilinear without antialias.
    PytorchFid,
    /// torch-fidelity, and the original TensorFlow code: TensorFlow 1's bilinear.
    #[default]
    TorchFidelity,
    /// Parmar's clean-fid: PIL's antialiased bicubic.
    CleanFid,
}

/// What makes a model the best of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// The lowest validation loss.
    ValidationLoss,
    /// The best `training.evaluate_metric`.
    Metric,
}
