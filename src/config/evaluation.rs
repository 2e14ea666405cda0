//! Settings of evaluation during training: values of the `training` section.

use serde::{Deserialize, Serialize};

/// A metric of drawn samples against training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleMetric {
    /// The Fréchet distance: FID on InceptionV3's features, FD-NAME on others.
    Fid,
    /// The kernel distance.
    Kid,
    /// The Inception Score.
    Is,
    /// The share of samples within the manifold of training images.
    Precision,
    /// The share of training images within the manifold of samples.
    Recall,
    /// The density of samples around training images.
    Density,
    /// The share of training images that have a sample nearby.
    Coverage,
}

/// The evaluation tool whose preprocessing InceptionV3 gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Seitzer's pytorch-fid: half-pixel bilinear without antialias.
    PytorchFid,
    /// torch-fidelity, and the original TensorFlow code: TensorFlow 1's bilinear.
    #[default]
    TorchFidelity,
    /// Parmar's clean-fid: PIL's antialiased bicubic.
    CleanFid,
}

/// The criterion for the best model of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// The lowest validation loss.
    ValidationLoss,
    /// The best `training.evaluate_metric`.
    Metric,
}
