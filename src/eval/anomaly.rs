//! Rates how unlike the training data an image is: a model denoises best what it was trained on (Graham et al. 2023, "Denoising
//! Diffusion Models for Out-of-Distribution Detection").

use serde_json::{Value, json};

use super::{DenoisingErrors, ErrorSpec, Images};
use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::model_file::ModelInfo;
use crate::pipeline::Model;
use crate::words::counted;

/// Smaller errors are rounding noise.
const LEAST_ERROR: f64 = 1e-12;

/// The score of an image relative to a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// How many standard deviations of the reference the logarithm of the error lies above its mean, averaged over the noise
    /// levels: about 0 for images like the reference, more for unusual ones.
    pub score: f64,
    /// The share of the reference's images that score lower, in [0, 1].
    pub percentile: f64,
}

/// The errors of reference images: means and deviations of their logarithms at each level.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    mean: Vec<f64>,
    deviation: Vec<f64>,
    /// The reference images' own scores, ascending.
    scores: Vec<f64>,
}

impl Reference {
    /// From [`DenoisingErrors::measure`](super::DenoisingErrors::measure)'s result.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 images, which have no deviation.
    pub fn new(errors: &[Vec<f64>]) -> Result<Self> {
        let count = errors.len();
        if count < 2 {
            let message = format!("{} to compare with", counted(count, "image"));
            return Err(Error::config("reference_count", message, "give 2 or more; 256 is usual"));
        }
        let levels = errors[0].len();
        let log = |level: usize| errors.iter().map(move |errors| errors[level].max(LEAST_ERROR).ln());
        let mean: Vec<f64> = (0..levels).map(|level| log(level).sum::<f64>() / count as f64).collect();
        let deviation = (0..levels)
            .map(|level| {
                let squares: f64 = log(level).map(|x| (x - mean[level]).powi(2)).sum();
                // Identical images have none.
                (squares / (count - 1) as f64).sqrt().max(1e-6)
            })
            .collect();
        let mut reference = Self { mean, deviation, scores: Vec::new() };
        let mut scores: Vec<f64> = errors.iter().map(|errors| reference.score(errors).score).collect();
        scores.sort_by(f64::total_cmp);
        reference.scores = scores;
        Ok(reference)
    }

    /// The score of an image with these errors, one at each of the reference's levels.
    pub fn score(&self, errors: &[f64]) -> Score {
        let levels = errors.iter().zip(&self.mean).zip(&self.deviation);
        let sum: f64 = levels.map(|((error, mean), sd)| (error.max(LEAST_ERROR).ln() - mean) / sd).sum();
        let score = sum / self.mean.len() as f64;
        let below = self.scores.partition_point(|other| *other < score);
        Score { score, percentile: below as f64 / self.scores.len().max(1) as f64 }
    }
}

/// The scores of some images relative to a data set's training images.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The names of the images.
    pub names: Vec<String>,
    /// The score of each.
    pub scores: Vec<Score>,
    /// The errors of each, one at each of `times`.
    pub errors: Vec<Vec<f64>>,
    /// The noise levels' diffusion times.
    pub times: Vec<f64>,
    /// Number of reference images.
    pub reference: usize,
}

impl Scores {
    /// Measures `given` and `reference` images under `label`; `progress(done, total)` counts evaluations of the network, for each
    /// of the two separately.
    ///
    /// # Errors
    /// Those of [`DenoisingErrors`] and [`Reference::new`].
    pub fn measure(
        model: &Model,
        spec: ErrorSpec,
        label: usize,
        (given, reference): (Images, &Images),
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self> {
        let mut measure = DenoisingErrors::new(model, spec)?;
        let mut errors =
            |images: &Images| measure.measure(&images.values, &vec![label; images.names.len()], &mut progress);
        let normal = Reference::new(&errors(reference)?)?;
        let errors = errors(&given)?;
        let scores = errors.iter().map(|errors| normal.score(errors)).collect();
        Ok(Self { names: given.names, scores, errors, times: measure.times(), reference: reference.names.len() })
    }

    /// The indices of the images, highest score first.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_by(|a, b| self.scores[*b].score.total_cmp(&self.scores[*a].score));
        order
    }

    /// The mean of the scores.
    pub fn mean(&self) -> f64 {
        self.scores.iter().map(|score| score.score).sum::<f64>() / self.scores.len() as f64
    }

    /// The images, for a file.
    pub fn json(&self) -> Vec<Value> {
        let images = self.names.iter().zip(&self.scores).zip(&self.errors);
        let told = |((name, score), errors): ((&String, &Score), &Vec<f64>)| {
            json!({
                "image": name,
                "score": score.score,
                "percentile": score.percentile,
                "errors": errors,
            })
        };
        images.map(told).collect()
    }
}

/// A data set, split as for the model's training. A set without the trained classes was chosen on purpose: it is used unchanged.
///
/// # Errors
/// Those of [`Dataset::arranged`].
pub fn as_trained(set: Dataset, info: &ModelInfo) -> Result<Dataset> {
    let data = &info.config.data;
    match data.classes.iter().all(|class| set.class_label(class).is_ok()) {
        true => set.arranged(&data.classes, data.validation_fraction, data.split_seed),
        false => Ok(set),
    }
}

/// The split of a data set to score: the held-out images, if there are any.
pub fn scored_split(set: &Dataset) -> Split {
    if set.split_len(Split::Validation) > 0 { Split::Validation } else { Split::Train }
}
