//! Requests to a model.

use super::Model;
use crate::diffusion::{NoiseSchedule, SamplerSpec, SamplingConfig};
use crate::error::{Error, Result};
use crate::model_file::ModelInfo;
use crate::tensor::Device;

/// The images to draw; [`Model::request`] fills in the model's own configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// A label for each image: a class, or the null label for an unconditional image. 0 if the model has no classes.
    pub labels: Vec<usize>,
    /// Sampler, steps, guidance.
    pub sampling: SamplingConfig,
    /// Image k of a seed is the same for any batch size, number of threads and number of images.
    pub seed: u64,
    /// The index k of the first image, for [`Model::sample`] and [`Model::sample_each`]; edited images are counted from 0.
    pub first: u32,
    /// Images computed together, above 0.
    pub batch: usize,
}

/// The default batch for `count` images: up to 32 on the CPU, 256 on an accelerator, with all batches of equal size, because the
/// last one is computed in full too.
pub fn even_batch(device: &Device, count: usize) -> usize {
    let most = if matches!(device, Device::Cpu) { 32 } else { 256 };
    count.div_ceil(count.div_ceil(most).max(1))
}

impl Model {
    /// A request for one image of each label with the model's own sampling configuration, seed 0, from image 0 on.
    pub fn request(&self, labels: impl Into<Vec<usize>>) -> SampleRequest {
        let labels = labels.into();
        let batch = labels.len().clamp(1, 32);
        SampleRequest { labels, sampling: self.info.config.sampling.clone(), seed: 0, first: 0, batch }
    }
}

impl SampleRequest {
    /// The sampler's settings, and the model's noise levels; or an error if the model cannot meet the request.
    pub(super) fn spec(&self, info: &ModelInfo) -> Result<(SamplerSpec, NoiseSchedule)> {
        let config = &info.config;
        let (count, null_label) = (self.labels.len(), config.model.null_label());
        if count == 0 || ((u32::MAX - self.first) as usize) < count {
            let message = format!("{count} images from number {} on", self.first);
            return Err(Error::config("count", message, "give 1 to 4294967295"));
        }
        if self.batch == 0 {
            return Err(Error::config("batch", "0 images in a batch", "give 1 or more"));
        }
        // A model without classes takes label 0 for every image.
        let labels = (config.model.num_classes() + usize::from(null_label.is_some())).max(1);
        if let Some(stranger) = self.labels.iter().find(|label| **label >= labels) {
            let message = format!("the model has no label {stranger}");
            return Err(Error::config("class", message, format!("give labels below {labels}")));
        }
        config.diffusion.validate()?;
        let mut sampling = self.sampling.clone();
        if self.labels.iter().all(|&label| Some(label) == null_label) {
            // Guidance contrasts a label with the null label; for the null label itself it only costs time.
            sampling = sampling.unguided();
        }
        let spec = SamplerSpec {
            sampling,
            prediction: config.diffusion.prediction,
            null_label,
            batch: self.batch.min(count),
            seed: self.seed,
        };
        Ok((spec, NoiseSchedule::new(&config.diffusion)?))
    }
}
