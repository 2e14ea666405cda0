//! Denoising errors of a model on given images.

use std::rc::Rc;

use crate::diffusion::{Denoiser, Inverse, NoiseLevel, NoiseSchedule};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::elementwise::cast;
use crate::ops::host::normal::fill_normal;
use crate::pipeline::Model;
use crate::rng::{Philox, Purpose};
use crate::tape::{PreparedWeights, Tape};
use crate::tensor::{Context, DType, Program, Tensor};

/// The noise levels and the noise for denoising.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorSpec {
    /// Number of noise levels, in the middles of equal parts of the diffusion time.
    pub levels: usize,
    /// Draws of noise at each level, whose errors are averaged.
    pub draws: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Evaluations of the network computed together, above 0.
    pub batch: usize,
}

impl Default for ErrorSpec {
    fn default() -> Self {
        Self { levels: 8, draws: 1, seed: 0, batch: 32 }
    }
}

/// One noise level.
struct At {
    time: f64,
    time_input: f32,
    level: NoiseLevel,
    inverse: Inverse,
}

/// Denoises images at several noise levels and measures the error.
///
/// An error is the mean over an image's pixels and channels of (ε̂ − ε)²: the squared error of the predicted noise in the noisy
/// image. It applies to models of every kind of prediction: x_0, v and a flow's velocity are converted.
pub struct DenoisingErrors {
    context: Context,
    model: Rc<dyn Denoiser>,
    parameters: Rc<Parameters>,
    prepared: Rc<PreparedWeights>,
    spec: ErrorSpec,
    levels: Vec<At>,
    state: State,
    program: Program,
}

/// Persistent buffers.
struct State {
    x: Tensor,
    time: Tensor,
    labels: Tensor,
    prediction: Tensor,
}

/// One evaluation of the network.
#[derive(Clone, Copy)]
struct Row {
    /// The index of the image.
    image: usize,
    /// The index of the noise: the item of Philox's counter.
    item: u32,
    level: usize,
    draw: usize,
    label: usize,
    /// The index of the sum for its error.
    sum: usize,
}

impl DenoisingErrors {
    /// Plans the program, at levels in the middles of equal parts of the model's diffusion time.
    ///
    /// # Errors
    /// [`Error::Config`] for no levels, more than the model has, no draws or a batch of 0; those of the device.
    pub fn new(model: &Model, spec: ErrorSpec) -> Result<Self> {
        let noise = NoiseSchedule::new(&model.info.config.diffusion)?;
        if !(1..=noise.num_steps().min(1000)).contains(&spec.levels) {
            let message = format!("{} noise levels", spec.levels);
            return Err(Error::config("levels", message, format!("give 1 to {}", noise.num_steps().min(1000))));
        }
        let time = |number: usize| {
            let share = (number as f64 + 0.5) / spec.levels as f64;
            if noise.is_continuous() { share } else { (share * noise.num_steps() as f64).floor() }
        };
        let times: Vec<f64> = (0..spec.levels).map(time).collect();
        Self::at_times(model, &times, spec)
    }

    /// As [`DenoisingErrors::new`], but at these diffusion times of the model, ignoring `spec.levels`.
    ///
    /// # Errors
    /// As [`DenoisingErrors::new`]; [`Error::Config`] for no times, and for a time that the model does not have or at which its
    /// prediction does not determine the noise.
    pub fn at_times(model: &Model, times: &[f64], spec: ErrorSpec) -> Result<Self> {
        let config = &model.info.config.diffusion;
        let noise = NoiseSchedule::new(config)?;
        let spec = ErrorSpec { levels: times.len(), ..spec };
        if times.is_empty() {
            return Err(Error::config("levels", "0 noise levels", "give 1 or more"));
        }
        if !(1..=10_000).contains(&spec.draws) {
            return Err(Error::config("draws", format!("{} draws of noise", spec.draws), "give 1 to 10000"));
        }
        if !(1..=1 << 20).contains(&spec.batch) {
            return Err(Error::config("batch", format!("{} images in a batch", spec.batch), "give 1 or more"));
        }
        let [h, w, c] = model.image_shape();
        let at = |&time: &f64| {
            if !noise.has(time) {
                let message = format!("time {time} is not a noise level of {}", noise.num_steps());
                return Err(Error::config("denoising errors", message, "give times of the model's own schedule"));
            }
            let level = noise.level(time);
            let inverse = level.invert(config.prediction).ok_or_else(|| {
                let message = format!("does not determine the noise at time {time}");
                Error::config("diffusion.prediction", message, "use another")
            })?;
            Ok(At { time, time_input: noise.time_input(time) as f32, level, inverse })
        };
        let levels = times.iter().map(at).collect::<Result<Vec<_>>>()?;
        let context = model.context().clone();
        let state = State {
            x: context.zeros([spec.batch, h, w, c], DType::F32)?,
            time: context.zeros([spec.batch], DType::F32)?,
            labels: context.zeros([spec.batch], DType::I32)?,
            prediction: context.zeros([spec.batch, h, w, c], DType::F32)?,
        };
        let (network, parameters) = (model.network.clone(), model.parameters.clone());
        let prepared = Rc::new(parameters.prepared());
        let weights = (&*parameters, &prepared);
        let program = Program::plan(&context, || predict(&context, network.as_ref(), weights, &state))?;
        Ok(Self { context, model: network, parameters, prepared, spec, levels, state, program })
    }

    /// The noise levels' diffusion times, ascending.
    pub fn times(&self) -> Vec<f64> {
        self.levels.iter().map(|at| at.time).collect()
    }

    /// The noise levels, the noisiest last.
    pub fn levels(&self) -> Vec<NoiseLevel> {
        self.levels.iter().map(|at| at.level).collect()
    }

    /// Mean squared errors of the predicted noise: for each image one at each level.
    ///
    /// `images` are `[N, H, W, C]` in [-1, 1], with one of `labels` each. `progress(done, total)` counts evaluations of the
    /// network. At one level and draw the noise is the same for every image, so that differences come from the images only; an
    /// image's errors do not depend on the others.
    ///
    /// # Errors
    /// [`Error::Shape`] for mismatched lengths; those of the device.
    pub fn measure(
        &mut self,
        images: &[f32],
        labels: &[usize],
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<f64>>> {
        self.labelled(images, labels, &vec![0; labels.len()], progress)
    }

    /// As [`DenoisingErrors::measure`], but each image has its own noise, from the seed and the image's values, so that errors of
    /// different images are independent and their mean has a standard error. Different models get the same noise for the same
    /// images.
    ///
    /// # Errors
    /// As [`DenoisingErrors::measure`].
    pub fn measure_independent(
        &mut self,
        images: &[f32],
        labels: &[usize],
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<f64>>> {
        let items = self.items(images);
        self.labelled(images, labels, &items, progress)
    }

    /// Errors of each image under its label, with the noise of its item.
    fn labelled(
        &mut self,
        images: &[f32],
        labels: &[usize],
        items: &[u32],
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<f64>>> {
        self.check(images, labels.len())?;
        let (levels, draws) = (self.spec.levels, self.spec.draws);
        let rows = (0..labels.len() * levels * draws).map(|number| {
            let (image, level, draw) = (number / (levels * draws), number / draws % levels, number % draws);
            Row { image, item: items[image], level, draw, label: labels[image], sum: image * levels + level }
        });
        let errors = self.run(images, rows, labels.len() * levels * draws, labels.len() * levels, progress)?;
        Ok(errors.chunks(levels).map(<[f64]>::to_vec).collect())
    }

    /// Errors of each image under several labels: for each image, for each of `labels`, an error at each level: `[N][K][levels]`.
    ///
    /// An image's noise is the same for every label, so that differences come from the labels only. It follows from the seed and
    /// the image's values: independent between images, and independent of an image's position.
    ///
    /// # Errors
    /// As [`DenoisingErrors::measure`].
    pub fn compare(
        &mut self,
        images: &[f32],
        labels: &[usize],
        progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let len = self.image_len();
        let count = images.len() / len;
        self.check(images, count)?;
        let (levels, draws, classes) = (self.spec.levels, self.spec.draws, labels.len());
        let items = self.items(images);
        let per_image = levels * draws * classes;
        // The labels of one noisy image are adjacent.
        let rows = (0..count * per_image).map(|number| {
            let (image, rest) = (number / per_image, number % per_image);
            let (level, draw, class) = (rest / (draws * classes), rest / classes % draws, rest % classes);
            let sum = (image * classes + class) * levels + level;
            Row { image, item: items[image], level, draw, label: labels[class], sum }
        });
        let errors = self.run(images, rows, count * per_image, count * classes * levels, progress)?;
        let image = |errors: &[f64]| errors.chunks(levels).map(<[f64]>::to_vec).collect();
        Ok(errors.chunks(classes * levels).map(image).collect())
    }

    /// Numbers that identify images by their values.
    fn items(&self, images: &[f32]) -> Vec<u32> {
        images.chunks_exact(self.image_len()).map(|image| crc32c::crc32c(bytemuck::cast_slice(image))).collect()
    }

    fn image_len(&self) -> usize {
        self.model.image_shape().iter().product()
    }

    fn check(&self, images: &[f32], count: usize) -> Result<()> {
        let len = self.image_len();
        if images.len() != count * len {
            let message = format!("{} values for {count} images of {len}", images.len());
            return Err(Error::shape("denoising errors", message));
        }
        Ok(())
    }

    /// Evaluates `total` rows, a batch at a time, and returns the `sums` means over their draws. Errors are added in the rows'
    /// order, independent of the batch.
    fn run(
        &mut self,
        images: &[f32],
        mut rows: impl Iterator<Item = Row>,
        total: usize,
        sums: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<f64>> {
        self.prepared.refresh()?;
        let (batch, len) = (self.spec.batch, self.image_len());
        let mut errors = vec![0.0; sums];
        let (mut x, mut time, mut labels) = (vec![0f32; batch * len], vec![0f32; batch], vec![0i32; batch]);
        // The noise of each row; rows with the same noise are adjacent.
        let mut noise = vec![0f32; batch * len];
        let mut taken: Vec<Row> = Vec::with_capacity(batch);
        for done in 1..=total.div_ceil(batch) {
            taken.clear();
            taken.extend(rows.by_ref().take(batch));
            for (k, row) in taken.iter().enumerate() {
                let at = &self.levels[row.level];
                let (before, noise) = noise[..(k + 1) * len].split_at_mut(k * len);
                let (x_before, x) = x[..(k + 1) * len].split_at_mut(k * len);
                let last = k.checked_sub(1).map(|last| taken[last]);
                if last.is_some_and(|last| (last.image, last.level, last.draw) == (row.image, row.level, row.draw)) {
                    noise.copy_from_slice(&before[(k - 1) * len..]);
                    x.copy_from_slice(&x_before[(k - 1) * len..]);
                } else {
                    let step = (row.draw * self.spec.levels + row.level) as u32;
                    fill_normal(noise, Philox::new(self.spec.seed), row.item, step, Purpose::Noise);
                    let image = &images[row.image * len..][..len];
                    for ((x, image), noise) in x.iter_mut().zip(image).zip(&*noise) {
                        *x = (at.level.alpha * f64::from(*image) + at.level.sigma * f64::from(*noise)) as f32;
                    }
                }
                (time[k], labels[k]) = (at.time_input, row.label as i32);
            }
            // A batch is always full: the last one is padded with rows that are not read.
            self.state.x.upload(&x)?;
            self.state.time.upload(&time)?;
            self.state.labels.upload(&labels)?;
            let (context, model, state) = (&self.context, self.model.as_ref(), &self.state);
            let weights = (&*self.parameters, &self.prepared);
            self.program.run(|| predict(context, model, weights, state))?;
            let prediction = self.state.prediction.download::<f32>()?;
            for (k, row) in taken.iter().enumerate() {
                let at = &self.levels[row.level];
                let own = k * len..(k + 1) * len;
                let (x, prediction, noise) = (&x[own.clone()], &prediction[own.clone()], &noise[own]);
                let squared = |((x, pred), z): ((&f32, &f32), &f32)| {
                    let eps = at.inverse.eps_x * f64::from(*x) + at.inverse.eps_pred * f64::from(*pred);
                    (eps - f64::from(*z)).powi(2)
                };
                let error = x.iter().zip(prediction).zip(noise).map(squared).sum::<f64>() / len as f64;
                errors[row.sum] += error;
            }
            progress(done, total.div_ceil(batch));
        }
        errors.iter_mut().for_each(|error| *error /= self.spec.draws as f64);
        Ok(errors)
    }
}

/// One evaluation of the network, whose result is stored.
fn predict(
    context: &Context,
    model: &dyn Denoiser,
    (parameters, prepared): (&Parameters, &Rc<PreparedWeights>),
    state: &State,
) -> Result<()> {
    let tape = Tape::inference(context).with_prepared(prepared);
    let s = parameters.bind(&tape, None)?;
    let (x, time, labels) = (s.constant(&state.x), s.constant(&state.time), s.constant(&state.labels));
    let prediction = cast(&s, &model.forward(&s, &x, &time, &labels)?, DType::F32)?;
    state.prediction.copy_from(prediction.tensor())
}
