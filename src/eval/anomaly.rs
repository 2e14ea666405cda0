//! How unlike the training data an image is: a model denoises best what it was trained on (Graham et al. 2023, "Denoising
//! Diffusion Models for Out-of-Distribution Detection").

use std::rc::Rc;

use crate::config::Model;
use crate::diffusion::{Denoiser, Inverse, Level, NoiseSchedule};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::host::normal::fill_normal;
use crate::rng::{Philox, Purpose};
use crate::tape::Tape;
use crate::tensor::{Context, DType, Program, Tensor};

/// Below this an error is that of arithmetic.
const LEAST_ERROR: f64 = 1e-12;

/// At which noise levels images are denoised, and with which noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorSpec {
    /// Number of noise levels, in the middles of equal parts of the diffusion time.
    pub levels: usize,
    /// Seed of the noise. At one level it is the same for every image, so that the images alone make the difference.
    pub seed: u64,
    /// Images that are computed together, above 0.
    pub batch: usize,
}

impl Default for ErrorSpec {
    fn default() -> Self {
        Self { levels: 8, seed: 0, batch: 32 }
    }
}

/// One noise level.
struct At {
    time: f64,
    time_input: f32,
    level: Level,
    inverse: Inverse,
    noise: Vec<f32>,
}

/// Denoises images at several noise levels and measures by how much it misses.
pub struct DenoisingErrors {
    context: Context,
    model: Rc<dyn Denoiser>,
    parameters: Rc<Parameters>,
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

impl DenoisingErrors {
    /// Plans the program and draws the noise.
    ///
    /// # Errors
    /// [`Error::Config`] for no level, more than the model has, or a batch of 0; what the device reports.
    pub fn new(model: &Model, spec: ErrorSpec) -> Result<Self> {
        let config = &model.info.config.diffusion;
        let noise = NoiseSchedule::new(config)?;
        if !(1..=noise.num_steps().min(1000)).contains(&spec.levels) {
            let message = format!("{} noise levels", spec.levels);
            return Err(Error::config("--levels", message, format!("give 1 to {}", noise.num_steps().min(1000))));
        }
        if spec.batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        let [h, w, c] = model.model.image_shape();
        let at = |number: usize| {
            let share = (number as f64 + 0.5) / spec.levels as f64;
            let time = if noise.is_continuous() { share } else { (share * noise.num_steps() as f64).floor() };
            let level = noise.level(time);
            let mut values = vec![0.0; h * w * c];
            fill_normal(&mut values, Philox::new(spec.seed), 0, number as u32, Purpose::Noise);
            let inverse = level.invert(config.prediction).ok_or_else(|| {
                Error::config(
                    "diffusion.prediction",
                    format!("says nothing of the noise at time {time}"),
                    "use another",
                )
            })?;
            Ok(At { time, time_input: noise.time_input(time) as f32, level, inverse, noise: values })
        };
        let levels = (0..spec.levels).map(at).collect::<Result<Vec<_>>>()?;
        let context = model.context().clone();
        let state = State {
            x: context.zeros([spec.batch, h, w, c], DType::F32)?,
            time: context.zeros([spec.batch], DType::F32)?,
            labels: context.zeros([spec.batch], DType::I32)?,
            prediction: context.zeros([spec.batch, h, w, c], DType::F32)?,
        };
        let (network, parameters) = (model.model.clone(), model.parameters.clone());
        let program = Program::plan(&context, || predict(&context, network.as_ref(), &parameters, &state))?;
        Ok(Self { context, model: network, parameters, spec, levels, state, program })
    }

    /// The noise levels' diffusion times, rising.
    pub fn times(&self) -> Vec<f64> {
        self.levels.iter().map(|at| at.time).collect()
    }

    /// Mean squared errors of the predicted noise, for each image one at each level.
    ///
    /// `images` are `[N, H, W, C]` in [-1, 1], `labels` one for each. `progress(done, total)` counts evaluations of the
    /// network. An image's errors do not depend on the others.
    ///
    /// # Errors
    /// [`Error::Shape`] where lengths do not fit; what the device reports.
    pub fn measure(
        &mut self,
        images: &[f32],
        labels: &[usize],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<f64>>> {
        let len = self.model.image_shape().iter().product::<usize>();
        if images.len() != labels.len() * len {
            let message = format!("{} values for {} images of {len}", images.len(), labels.len());
            return Err(Error::shape("denoising errors", message));
        }
        let batch = self.spec.batch;
        let total = labels.len().div_ceil(batch) * self.levels.len();
        let mut errors = vec![Vec::with_capacity(self.levels.len()); labels.len()];
        let mut done = 0;
        for ((images, labels), errors) in
            images.chunks(batch * len).zip(labels.chunks(batch)).zip(errors.chunks_mut(batch))
        {
            // A batch is always full: what is left of it denoises nothing.
            let mut rows: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
            rows.resize(batch, rows[0]);
            self.state.labels.upload(&rows)?;
            for at in &self.levels {
                let noised = |(x, z): (&f32, &f32)| (at.level.a * f64::from(*x) + at.level.s * f64::from(*z)) as f32;
                let mut x: Vec<f32> =
                    images.chunks_exact(len).flat_map(|image| image.iter().zip(&at.noise).map(noised)).collect();
                x.resize(batch * len, 0.0);
                self.state.x.upload(&x)?;
                self.state.time.upload(&vec![at.time_input; batch])?;
                let (context, model, state) = (&self.context, self.model.as_ref(), &self.state);
                let parameters = &self.parameters;
                self.program.run(|| predict(context, model, parameters, state))?;
                let prediction = self.state.prediction.download::<f32>()?;
                for ((errors, x), prediction) in
                    errors.iter_mut().zip(x.chunks_exact(len)).zip(prediction.chunks_exact(len))
                {
                    let squared = |((x, pred), z): ((&f32, &f32), &f32)| {
                        let eps = at.inverse.eps_x * f64::from(*x) + at.inverse.eps_pred * f64::from(*pred);
                        (eps - f64::from(*z)).powi(2)
                    };
                    errors.push(x.iter().zip(prediction).zip(&at.noise).map(squared).sum::<f64>() / len as f64);
                }
                done += 1;
                progress(done, total);
            }
        }
        Ok(errors)
    }
}

/// One evaluation of the network, its result kept.
fn predict(context: &Context, model: &dyn Denoiser, parameters: &Parameters, state: &State) -> Result<()> {
    let tape = Tape::inference(context);
    let bound = parameters.bind(&tape, None)?;
    let (x, time, labels) = (tape.constant(&state.x), tape.constant(&state.time), tape.constant(&state.labels));
    let prediction = model.forward(&tape, &bound, &x, &time, &labels)?;
    state.prediction.copy_from(prediction.tensor())
}

/// What an image's errors come to beside a reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// By how many standard deviations of the reference the logarithm of the error lies above its mean, averaged over the
    /// noise levels: about 0 for images like the reference's, more for stranger ones.
    pub score: f64,
    /// The share of the reference's images that score lower, in [0, 1].
    pub percentile: f64,
}

/// The errors of images that count as normal: means and deviations of their logarithms at each level.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    mean: Vec<f64>,
    deviation: Vec<f64>,
    /// The reference images' own scores, rising.
    scores: Vec<f64>,
}

impl Reference {
    /// From [`DenoisingErrors::measure`]'s result.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 images: they have no deviation.
    pub fn new(errors: &[Vec<f64>]) -> Result<Self> {
        let count = errors.len();
        if count < 2 {
            let message = format!("{count} images to compare with");
            return Err(Error::config("--reference-count", message, "give 2 or more; 256 is usual"));
        }
        let levels = errors[0].len();
        let log = |level: usize| errors.iter().map(move |errors| errors[level].max(LEAST_ERROR).ln());
        let mean: Vec<f64> = (0..levels).map(|level| log(level).sum::<f64>() / count as f64).collect();
        let deviation = (0..levels)
            .map(|level| {
                let squares: f64 = log(level).map(|x| (x - mean[level]).powi(2)).sum();
                // Equal images have none.
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
