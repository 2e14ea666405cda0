//! Classification with a diffusion model (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"; Clark &
//! Jaini 2023, "Text-to-Image Diffusion Models are Zero-Shot Classifiers").

use super::{DenoisingErrors, ErrorSpec};
use crate::diffusion::NoiseLevel;
use crate::error::{Error, Result};
use crate::pipeline::Model;

/// Classifies images by a model's denoising errors: the model denoises an image best under its own class (Li et al. 2023, "Your
/// Diffusion Model is Secretly a Zero-Shot Classifier").
///
/// For an image x_0 and a class c the model denoises x_t = a·x_0 + s·ε under c, at several noise levels t and draws of ε, the same
/// for every class. With the predicted noise ε̂ (converted from predictions of x_0, v and velocity):
///
/// ```text
/// E(c) = Σ_t w_t · mean over draws of ‖ε̂(x_t, t, c) − ε‖² / Σ_t w_t,   w_t = 1 / (1 + a²/s²)
/// p(c | x_0) = exp(−E(c)) / Σ_c' exp(−E(c'))
/// ```
///
/// This is equation 6 of Li et al. with a uniform prior over classes, except for the weights: theirs are 1. The error of ε is
/// a²/s², the signal-to-noise ratio, times that of x_0. With weights of 1 the levels with hardly any noise dominate, where all
/// classes denoise alike, especially under a flow's schedule, which has many of them. The weights turn it into the error of ε
/// where noise dominates and that of x_0 where the image does: the error of v (Salimans & Ho 2022), whatever the model predicts.
/// The class with the lowest error wins.
///
/// ```
/// use engine::config::Config;
/// use engine::eval::{Classifier, ErrorSpec};
/// use engine::pipeline::Model;
/// use engine::tensor::{Context, DType};
///
/// # let mut config = Config::preset("quickstart")?;
/// # for set in ["model.depth=1", "model.hidden_dim=32"] {
/// #     config.set(set)?;
/// # }
/// # let model = Model::untrained(&config, &Context::cpu(), DType::F32, 0)?;
/// let mut classifier = Classifier::new(&model, &[3, 5], ErrorSpec { levels: 2, batch: 4, ..ErrorSpec::default() })?;
/// let image = vec![0.5; 32 * 32 * 3];
/// let found = &classifier.classify(&image, |_, _| ())?[0];
/// // A model that has learned nothing cannot tell: its output is zero under every class.
/// assert_eq!((found.probabilities.as_slice(), found.prediction), ([0.5, 0.5].as_slice(), 0));
/// # Ok::<(), engine::Error>(())
/// ```
pub struct Classifier {
    errors: DenoisingErrors,
    labels: Vec<usize>,
    /// The weight of each level; they sum to 1.
    weights: Vec<f64>,
    /// Values of an image.
    len: usize,
}

/// The result of a [`Classifier`] for an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The expected squared error E of each class, in the order of the classifier's labels; for a [`NetworkClassifier`] the
    /// negative logit.
    ///
    /// [`NetworkClassifier`]: super::NetworkClassifier
    pub errors: Vec<f64>,
    /// The probability of each class.
    pub probabilities: Vec<f64>,
    /// The index of the most likely class among the classifier's labels; the first of equal ones.
    pub prediction: usize,
}

impl Classifier {
    /// A classifier over `labels` of `model`.
    ///
    /// # Errors
    /// [`Error::Config`] for a model without classes, fewer than two labels, and a label that is not a class of the model (such as
    /// the null label) or is repeated; those of [`DenoisingErrors::new`].
    pub fn new(model: &Model, labels: &[usize], spec: ErrorSpec) -> Result<Self> {
        let classes = model.info.config.model.num_classes();
        if classes == 0 {
            let message = "the model was trained without classes, so it cannot tell them apart";
            return Err(Error::config("model", message, "give a model that was trained with classes"));
        }
        check_labels(labels, &model.class_names())?;
        let errors = DenoisingErrors::new(model, spec)?;
        let weights: Vec<f64> = errors.levels().into_iter().map(level_weight).collect();
        let sum: f64 = weights.iter().sum();
        let weights = weights.iter().map(|weight| weight / sum).collect();
        Ok(Self { errors, labels: labels.to_vec(), weights, len: model.image_shape().iter().product() })
    }

    /// The noise levels' diffusion times, ascending.
    pub fn times(&self) -> Vec<f64> {
        self.errors.times()
    }

    /// The weights w_t / Σ w_t of the noise levels.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Classifies images `[N, H, W, C]` in [-1, 1]; `progress(done, total)` counts batches of evaluations.
    ///
    /// The result for an image does not depend on other images, the batch or threads. Its noise is drawn from the seed and its own
    /// values.
    ///
    /// # Errors
    /// Those of [`DenoisingErrors::compare`].
    pub fn classify(&mut self, images: &[f32], progress: impl FnMut(usize, usize)) -> Result<Vec<Classification>> {
        let errors = self.errors.compare(images, &self.labels, progress)?;
        let expected = |levels: &Vec<f64>| -> f64 {
            let mean: f64 = levels.iter().zip(&self.weights).map(|(error, weight)| error * weight).sum();
            mean * self.len as f64
        };
        Ok(errors.iter().map(|image| Classification::of(image.iter().map(expected).collect())).collect())
    }
}

/// Checks for at least two distinct labels, each the index of one of the classes `names`.
///
/// # Errors
/// [`Error::Config`] with the first invalid one.
pub fn check_labels(labels: &[usize], names: &[String]) -> Result<()> {
    if labels.len() < 2 {
        let message = format!("{} class: there is nothing to classify", labels.len());
        return Err(Error::config("classes", message, "give two or more, of a model that has as many"));
    }
    for (k, label) in labels.iter().enumerate() {
        let message = match names.get(*label) {
            None => format!("label {label} of a model of {} classes", names.len()),
            Some(name) if labels[..k].contains(label) => format!("{name} is given twice"),
            Some(_) => continue,
        };
        return Err(Error::config("classes", message, "give each of the model's classes at most once"));
    }
    Ok(())
}

impl Classification {
    /// The result restricted to some of the classes, in this order.
    ///
    /// # Panics
    /// If one of `labels` is not one of the classes.
    pub fn among(&self, labels: &[usize]) -> Self {
        Self::of(labels.iter().map(|&label| self.errors[label]).collect())
    }

    /// From the errors of each class: the softmax of their negatives.
    pub(super) fn of(errors: Vec<f64>) -> Self {
        let least = |best: usize, k: usize| if errors[k] < errors[best] { k } else { best };
        let prediction = (1..errors.len()).fold(0, least);
        let shares: Vec<f64> = errors.iter().map(|error| (errors[prediction] - error).exp()).collect();
        let sum: f64 = shares.iter().sum();
        Self { probabilities: shares.iter().map(|share| share / sum).collect(), prediction, errors }
    }
}

/// The weight of a level's error of ε: 1 / (1 + SNR) = s² / (a² + s²).
fn level_weight(level: NoiseLevel) -> f64 {
    let (signal, noise) = (level.alpha * level.alpha, level.sigma * level.sigma);
    noise / (signal + noise)
}

/// The confusion matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// An empty matrix of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![vec![0; classes]; classes] }
    }

    /// Counts an image.
    ///
    /// # Panics
    /// If an argument is not below the number of classes.
    pub fn add(&mut self, truth: usize, prediction: usize) {
        self.counts[truth][prediction] += 1;
    }

    /// Number of images of class i predicted as class j, at `[i][j]`.
    pub fn counts(&self) -> &[Vec<usize>] {
        &self.counts
    }

    /// Number of images.
    pub fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// Number of correct predictions.
    pub fn correct(&self) -> usize {
        (0..self.counts.len()).map(|class| self.counts[class][class]).sum()
    }

    /// The accuracy; 0 without images.
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.total().max(1) as f64
    }

    /// The accuracy for one class; None if it has no images.
    pub fn class_accuracy(&self, class: usize) -> Option<f64> {
        let total: usize = self.counts[class].iter().sum();
        (total > 0).then(|| self.counts[class][class] as f64 / total as f64)
    }

    /// The mean of the per-class accuracies over classes with images: rare classes count as much as common ones.
    pub fn mean_class_accuracy(&self) -> f64 {
        let accuracies: Vec<f64> = (0..self.counts.len()).filter_map(|class| self.class_accuracy(class)).collect();
        accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64
    }

    /// The 95 % interval of the accuracy; see [`wilson_interval`].
    pub fn interval(&self) -> [f64; 2] {
        wilson_interval(self.correct(), self.total())
    }
}

/// The 95 % score interval of a probability after `successes` in `trials` (Wilson 1927, "Probable Inference, the Law of
/// Succession, and Statistical Inference"): \[0, 1\] for no trials.
///
/// ```
/// let [low, high] = engine::eval::wilson_interval(8, 10);
/// assert!((low - 0.4902).abs() < 5e-5 && (high - 0.9433).abs() < 5e-5);
/// ```
pub fn wilson_interval(successes: usize, trials: usize) -> [f64; 2] {
    /// The 97.5 % quantile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if trials == 0 {
        return [0.0, 1.0];
    }
    let n = trials as f64;
    let p = successes as f64 / n;
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let [low, high] = [centre - half, centre + half].map(|bound| bound / (1.0 + Z * Z / n));
    // Exact at the ends, where rounding would leave a probability's range or just miss its end.
    [if successes == 0 { 0.0 } else { low }, if successes == trials { 1.0 } else { high }]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known values, and the definition of the bounds: |p̂ − p| = z·√(p (1 − p) / n).
    #[test]
    fn intervals_are_the_known_ones() {
        for (successes, trials, low, high) in [
            (0i32, 10i32, 0.0, 0.277_532_8),
            (10, 10, 0.722_467_2, 1.0),
            (5, 10, 0.236_593_1, 0.763_406_9),
            (1, 1, 0.206_549_3, 1.0),
            (1100, 2000, 0.528_121_6, 0.571_686_7),
        ] {
            let [a, b] = wilson_interval(successes as usize, trials as usize);
            assert!((a - low).abs() < 1e-6 && (b - high).abs() < 1e-6, "{successes} of {trials}: {a} {b}");
            let share = f64::from(successes) / f64::from(trials);
            for bound in [a, b] {
                let deviation = 1.959_963_984_540_054 * (bound * (1.0 - bound) / f64::from(trials)).sqrt();
                assert!(((share - bound).abs() - deviation).abs() < 1e-7, "{successes} of {trials}: {bound}");
            }
        }
        assert_eq!(wilson_interval(0, 0), [0.0, 1.0]);
        assert_eq!((wilson_interval(0, 7)[0], wilson_interval(7, 7)[1]), (0.0, 1.0));
    }

    #[test]
    fn probabilities_are_a_softmax_that_never_overflows() {
        let found = Classification::of(vec![1e6, 2.0, 2.0 + 3f64.ln()]);
        assert_eq!(found.prediction, 1);
        assert!((found.probabilities[1] - 0.75).abs() < 1e-12 && (found.probabilities[2] - 0.25).abs() < 1e-12);
        assert_eq!(found.probabilities[0], 0.0);
        // Of equal errors the first.
        assert_eq!(Classification::of(vec![4.0; 3]).prediction, 0);
    }

    #[test]
    fn weights_pass_from_the_error_of_the_image_to_that_of_the_noise() {
        let weight = |snr: f64| {
            level_weight(NoiseLevel { alpha: (snr / (1.0 + snr)).sqrt(), sigma: (1.0 / (1.0 + snr)).sqrt() })
        };
        for (snr, expected) in [(1.0, 0.5), (1e6, 1e-6), (1e-6, 1.0)] {
            assert!((weight(snr) / expected - 1.0).abs() < 1e-5);
        }
        // The level's scale does not matter: a flow's levels are not variance-preserving.
        assert!((level_weight(NoiseLevel { alpha: 0.2, sigma: 0.4 }) - 0.8).abs() < 1e-12);
    }

    #[test]
    fn a_confusion_counts_per_class() {
        let mut confusion = Confusion::new(3);
        for (truth, prediction) in [(0, 0), (0, 0), (0, 1), (0, 0), (1, 1), (1, 0)] {
            confusion.add(truth, prediction);
        }
        assert_eq!((confusion.total(), confusion.correct()), (6, 4));
        assert_eq!(confusion.counts(), [[3, 1, 0], [1, 1, 0], [0, 0, 0]].map(Vec::from));
        assert_eq!([0, 1, 2].map(|class| confusion.class_accuracy(class)), [Some(0.75), Some(0.5), None]);
        assert!((confusion.mean_class_accuracy() - 0.625).abs() < 1e-12);
        assert_eq!(confusion.interval(), wilson_interval(4, 6));
    }
}
