//! Comparison of models on the same images and noise, drawn from the same seeds.

use std::time::Instant;

use super::{Better, CommonLevels, Metric};
use crate::error::{Error, Result};
use crate::pipeline::{Model, SampleRequest};

/// Evaluations of the network before [`draw_timed`]'s clock starts: on an accelerator the first loads kernels and the second is
/// captured.
pub const WARM_UP: usize = 3;

/// The results of several models on the same images with the same noise.
///
/// ```
/// use engine::diffusion::{DiffusionConfig, NoiseSchedule};
/// use engine::eval::{CommonLevels, Comparison};
///
/// let noise = NoiseSchedule::new(&DiffusionConfig::default())?;
/// let levels = CommonLevels::new(&[noise.clone(), noise], 2)?;
/// // Errors of two models on three images at two levels, as `DenoisingErrors::measure_independent` gives them.
/// let errors = vec![
///     vec![vec![0.5, 0.2], vec![0.7, 0.1], vec![0.6, 0.2]],
///     vec![vec![0.9, 0.1], vec![1.1, 0.1], vec![1.0, 0.2]],
/// ];
/// let comparison = Comparison::new(vec!["small".into(), "tiny".into()], levels, errors)?;
/// let verdict = &comparison.verdicts()[0];
/// assert!(verdict.starts_with("small is better than tiny by 0.183 ± 0.017 (95 % interval 0.112 … 0.255)"), "{verdict}");
/// assert!(verdict.contains("the other way round at log-SNR -4.6"), "{verdict}");
/// # Ok::<(), engine::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    names: Vec<String>,
    levels: CommonLevels,
    /// By model, image and level.
    errors: Vec<Vec<Vec<f64>>>,
    metrics: Vec<Metric>,
}

impl Comparison {
    /// The name of the metric that every comparison has: the mean squared error of the predicted noise, averaged over the common
    /// levels with equal weights and over the images.
    pub const ERROR: &str = "mean ε-error";

    /// The comparison of models called `names` by their errors: for each model and image, the mean squared error of ε at each level.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer than two models or images, or lists of different lengths.
    pub fn new(names: Vec<String>, levels: CommonLevels, errors: Vec<Vec<Vec<f64>>>) -> Result<Self> {
        let images = errors.first().map_or(0, Vec::len);
        let whole = |errors: &Vec<Vec<f64>>| {
            errors.len() == images && errors.iter().all(|image| image.len() == levels.len() && !image.is_empty())
        };
        if names.len() < 2 || images < 2 || names.len() != errors.len() || !errors.iter().all(whole) {
            let message = format!("{} names, errors of {} models and {images} images", names.len(), errors.len());
            return Err(Error::shape("comparison", message));
        }
        let mean = |levels: &Vec<f64>| levels.iter().sum::<f64>() / levels.len() as f64;
        let means = errors.iter().map(|errors| errors.iter().map(mean).collect()).collect();
        let metrics = vec![Metric::of_images(Self::ERROR, "", Better::Lower, means)];
        Ok(Self { names, levels, errors, metrics })
    }

    /// The names of the models.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The noise levels.
    pub fn levels(&self) -> &CommonLevels {
        &self.levels
    }

    /// Number of images behind the errors.
    pub fn images(&self) -> usize {
        self.errors[0].len()
    }

    /// The error at one level.
    ///
    /// # Panics
    /// If there is no such level.
    pub fn at_level(&self, level: usize) -> Metric {
        let name = format!("ε-error at log-SNR {:.2}", self.levels.log_snr[level]);
        let items = self.errors.iter().map(|errors| errors.iter().map(|image| image[level]).collect()).collect();
        Metric::of_images(name, "", Better::Lower, items)
    }

    /// All metrics, the mean error first.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The mean error over the levels.
    pub fn error(&self) -> &Metric {
        &self.metrics[0]
    }

    /// Adds another metric of the models.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values differs from the number of models.
    pub fn add(&mut self, metric: Metric) -> Result<()> {
        let errors = metric.standard_errors.as_ref().map_or(metric.values.len(), Vec::len);
        if [metric.values.len(), errors] != [self.names.len(); 2] {
            let message = format!("{} values of {} for {} models", metric.values.len(), metric.name, self.names.len());
            return Err(Error::shape("comparison", message));
        }
        self.metrics.push(metric);
        Ok(())
    }

    /// One line for each metric with known uncertainty: see [`Metric::verdict`]. The line of the mean error lists the levels at
    /// which the difference is reversed.
    pub fn verdicts(&self) -> Vec<String> {
        let levels: Vec<Metric> = (0..self.levels.len()).map(|level| self.at_level(level)).collect();
        let against = |best: usize, other: usize| {
            let overall = self.error().margin(best, other).map_or(0.0, |margin| margin.mean);
            let opposite =
                |level: &usize| levels[*level].margin(best, other).is_some_and(|margin| margin.mean * overall < 0.0);
            let opposed: Vec<String> =
                (0..levels.len()).filter(opposite).map(|level| format!("{:.1}", self.levels.log_snr[level])).collect();
            if opposed.is_empty() {
                String::new()
            } else {
                format!(", the other way round at log-SNR {}", opposed.join(", "))
            }
        };
        let verdict = |(place, metric): (usize, &Metric)| {
            metric.verdict(&self.names, |best, other| if place == 0 { against(best, other) } else { String::new() })
        };
        self.metrics.iter().enumerate().filter_map(verdict).collect()
    }
}

/// Images, and their timing.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// `[H, W, C]` each, in about [-1, 1].
    pub images: Vec<Vec<f32>>,
    /// Wall-clock seconds per image in batches of `batch`, from noise to image.
    pub seconds_per_image: f64,
    /// Images per batch.
    pub batch: usize,
    /// Number of timed batches.
    pub batches: usize,
}

/// Draws the images of a request, as [`Model::sample`] does, and times it.
///
/// The clock starts after planning and [`WARM_UP`] evaluations of the network, and stops when the last image is on the host. A
/// partial batch takes as long as a full one and counts as one. `progress(done, total)` counts evaluations.
///
/// # Errors
/// As [`Model::sample`].
pub fn draw_timed(model: &Model, request: &SampleRequest, mut progress: impl FnMut(usize, usize)) -> Result<Drawn> {
    let mut sampler = model.sampler_for(request)?;
    let (batch, stages) = (sampler.batch(), sampler.stages());
    let labels: Vec<i32> = request.labels.iter().map(|&label| label as i32).collect();
    let batches = labels.len().div_ceil(batch);
    sampler.begin(request.first, &labels[..batch.min(labels.len())])?;
    (0..WARM_UP.min(stages)).try_for_each(|stage| sampler.advance(stage))?;
    // Waits until everything is done.
    sampler.state()?;
    let started = Instant::now();
    let mut images = Vec::with_capacity(labels.len());
    for (number, labels) in labels.chunks(batch).enumerate() {
        let drawn = sampler.run(request.first + (number * batch) as u32, labels, |stage, _| {
            progress(number * stages + stage + 1, batches * stages);
            Ok(())
        })?;
        images.extend(drawn.chunks_exact(drawn.len() / labels.len()).map(<[f32]>::to_vec));
    }
    let seconds_per_image = started.elapsed().as_secs_f64() / (batches * batch) as f64;
    Ok(Drawn { images, seconds_per_image, batch, batches })
}
