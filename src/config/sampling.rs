//! Drawing images from a loaded model.

use super::{Model, ModelInfo};
use crate::diffusion::{NoiseSchedule, Sampler, SamplerSpec, SamplingConfig};
use crate::error::{Error, Result};
use crate::names::{find_class, unknown_class};
use crate::tensor::Context;

/// The images to draw; [`Model::request`] fills in what the model's own configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// A label for each image: a class, or the null label for an image of no class in particular. 0 where the model has no
    /// classes.
    pub labels: Vec<usize>,
    /// Sampler, steps, guidance.
    pub sampling: SamplingConfig,
    /// Image k of a seed is the same image whatever the batch, the threads and the number of images.
    pub seed: u64,
    /// The number k of the first image, for [`Model::sample`] and [`Model::sample_each`]; images that are made of given ones
    /// are counted from 0.
    pub first: u32,
    /// Images that are computed together, above 0.
    pub batch: usize,
}

impl ModelInfo {
    /// The names of the classes in the order of their labels; numbers where the file has no names. None where the model
    /// takes no labels.
    pub fn class_names(&self) -> Vec<String> {
        let count = self.config.model.num_classes();
        match self.classes.len() {
            0 => (0..count).map(|label| label.to_string()).collect(),
            named => self.classes[..named.min(count)].to_vec(),
        }
    }

    /// The label of a class given by its name, its number, or as `none` for the null label.
    ///
    /// Upper and lower case are told apart only where the model's names need it.
    ///
    /// # Errors
    /// [`Error::Config`] that names the nearest class and lists all, or says that the model has none.
    pub fn class_label(&self, text: &str) -> Result<usize> {
        let (names, count) = (self.class_names(), self.config.model.num_classes());
        if count == 0 {
            return Err(Error::config("--class", "the model was trained without classes", "leave it out"));
        }
        match (text, self.config.model.null_label()) {
            ("none", Some(null)) if !names.iter().any(|name| name == text) => Ok(null),
            _ => find_class(&names, count, text)
                .ok_or_else(|| unknown_class("--class", "the model", &names, count, text)),
        }
    }
}

impl Model {
    /// Where the weights are.
    pub fn context(&self) -> &Context {
        self.parameters.master().context()
    }

    /// As [`ModelInfo::class_names`].
    pub fn class_names(&self) -> Vec<String> {
        self.info.class_names()
    }

    /// As [`ModelInfo::class_label`].
    ///
    /// # Errors
    /// As there.
    pub fn class_label(&self, text: &str) -> Result<usize> {
        self.info.class_label(text)
    }

    /// A request for one image of each label with the model's own sampling configuration, seed 0, from image 0 on.
    pub fn request(&self, labels: impl Into<Vec<usize>>) -> SampleRequest {
        let labels = labels.into();
        let batch = labels.len().clamp(1, 32);
        SampleRequest { labels, sampling: self.info.config.sampling.clone(), seed: 0, first: 0, batch }
    }

    /// Draws the images of a request: each `[H, W, C]`, in about [-1, 1].
    ///
    /// ```
    /// use engine::config::{Config, Model};
    /// use engine::tensor::{Context, DType};
    ///
    /// # let mut config = Config::preset("quickstart")?;
    /// # for set in ["model.depth=1", "model.hidden_dim=32", "model.conditioning=token"] {
    /// #     config.set(set)?;
    /// # }
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # Model::untrained(&config, &Context::cpu(), DType::F32, 0)?.save(&file)?;
    /// let model = Model::load(&file, &Context::cpu(), DType::F32)?;
    /// let mut request = model.request([3, 3, 7]);
    /// request.sampling.num_steps = 2;
    /// let images = model.sample(&request)?;
    /// assert_eq!((images.len(), images[0].len()), (3, 32 * 32 * 3));
    ///
    /// // Image 0 is the same image by itself.
    /// request.labels.truncate(1);
    /// assert_eq!(model.sample(&request)?[0], images[0]);
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::sample_each`].
    pub fn sample(&self, request: &SampleRequest) -> Result<Vec<Vec<f32>>> {
        let mut images = Vec::with_capacity(request.labels.len());
        self.sample_each(
            request,
            |_, _| Ok(()),
            |_, image| {
                images.push(image.to_vec());
                Ok(())
            },
        )?;
        Ok(images)
    }

    /// Draws the images of a request and hands over each as soon as it is there: `sink(k, image)`, k from 0
    /// (in the request, whatever its first image).
    /// `progress(done, total)` counts evaluations of the network; an error from either ends the drawing.
    ///
    /// # Errors
    /// [`Error::Config`] for no images, a batch of 0, a label that the model does not have, guidance without a null label,
    /// and what [`SamplingConfig::validate`] refuses; what the device reports.
    pub fn sample_each(
        &self,
        request: &SampleRequest,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
        mut sink: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let count = request.labels.len();
        let mut sampler = self.sampler_for(request)?;
        let (batch, stages) = (sampler.batch(), sampler.stages());
        let total = count.div_ceil(batch) * stages;
        for (number, labels) in request.labels.chunks(batch).enumerate() {
            let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
            let first = number * batch;
            let images = sampler
                .run(request.first + first as u32, &labels, |stage, _| progress(number * stages + stage + 1, total))?;
            for (k, image) in images.chunks_exact(images.len() / labels.len()).enumerate() {
                sink(first + k, image)?;
            }
        }
        Ok(())
    }

    /// The denoising program of a request, for those who run it themselves: its batch, seed, steps and guidance; of its labels
    /// only whether any is guided.
    ///
    /// # Errors
    /// As [`Model::sample_each`].
    pub fn sampler_for(&self, request: &SampleRequest) -> Result<Sampler> {
        let (spec, noise) = self.checked(request)?;
        Sampler::new(self.context(), self.model.clone(), self.parameters.clone(), &noise, spec)
    }

    /// What a request means for a sampler, and the model's noise levels; or why it cannot be met.
    pub(super) fn checked(&self, request: &SampleRequest) -> Result<(SamplerSpec, NoiseSchedule)> {
        let config = &self.info.config;
        let (count, null_label) = (request.labels.len(), config.model.null_label());
        if count == 0 || ((u32::MAX - request.first) as usize) < count {
            let message = format!("{count} images from number {} on", request.first);
            return Err(Error::config("--count", message, "give 1 to 4294967295"));
        }
        if request.batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        // A model without classes takes label 0 for every image.
        let labels = (config.model.num_classes() + usize::from(null_label.is_some())).max(1);
        if let Some(stranger) = request.labels.iter().find(|label| **label >= labels) {
            let message = format!("the model has no label {stranger}");
            return Err(Error::config("--class", message, format!("give labels below {labels}")));
        }
        config.diffusion.validate()?;
        let mut sampling = request.sampling.clone();
        if request.labels.iter().all(|&label| Some(label) == null_label) {
            // Guidance contrasts a label with the null label: between equals it changes nothing but the time it takes.
            sampling = sampling.unguided();
        }
        let spec = SamplerSpec {
            sampling,
            prediction: config.diffusion.prediction,
            null_label,
            batch: request.batch.min(count),
            seed: request.seed,
        };
        Ok((spec, NoiseSchedule::new(&config.diffusion)?))
    }
}
