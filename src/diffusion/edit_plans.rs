//! Sampling from given images: from a noised image, with known pixels, or inverted from an image to its noise.

use super::sample::Sampler;
use super::sampler::{Plan, Stage};
use super::{NoiseLevel, NoiseSchedule, Prediction, SamplerKind, SamplingConfig, Variance};
use crate::error::{Error, Result};
use crate::ops::host::normal::fill_normal;
use crate::rng::{Philox, Purpose};

/// Offset of Philox steps that re-noise a state, so that they differ from all stages.
const RENOISE_STEP: u32 = 1 << 31;

/// Spherical interpolation (Shoemake 1985, "Animating Rotation with Quaternion Curves") from `from` (t = 0) to `to` (t = 1):
/// between two draws of noise every point has the length of a draw, unlike on a straight line. The ends are `from` and `to`
/// themselves, to the bit.
///
/// # Panics
/// If the lengths differ.
pub fn slerp(from: &[f32], to: &[f32], t: f64) -> Vec<f32> {
    assert_eq!(from.len(), to.len(), "ends of different lengths");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(from, from) * dot(to, to)).sqrt();
    let cosine = if lengths > 0.0 { (dot(from, to) / lengths).clamp(-1.0, 1.0) } else { 1.0 };
    let angle = cosine.acos();
    // Nearly parallel or opposite, the arc is a line or undetermined.
    let (a, b) = match angle.sin() {
        sine if sine < 1e-6 => (1.0 - t, t),
        sine => (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine),
    };
    match t {
        0.0 => from.to_vec(),
        1.0 => to.to_vec(),
        _ => from.iter().zip(to).map(|(x, y)| (a * f64::from(*x) + b * f64::from(*y)) as f32).collect(),
    }
}

impl Plan {
    /// The last `steps` of a plan's steps, on its own times: the rest of sampling for an image that has been noised to the first
    /// of them (Meng et al. 2021, "SDEdit"). All of them are the plan itself.
    ///
    /// # Errors
    /// [`Error::Config`] for no steps; else as [`Plan::new`].
    pub fn last_steps(
        noise: &NoiseSchedule,
        prediction: Prediction,
        sampling: &SamplingConfig,
        steps: usize,
    ) -> Result<Self> {
        let times = Self::new(noise, prediction, sampling)?.times();
        let times = &times[times.len().saturating_sub(steps)..];
        Self::with_times(noise, prediction, sampling, Variance::default(), times)
    }

    /// The inversion of an image to the noise from which deterministic DDIM would make it, on the plan's own times in reverse
    /// (Song et al. 2020, "Denoising Diffusion Implicit Models", section 4.3). Each step takes ε from the state at its start, so
    /// the reconstruction has an error of first order in the step size.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn inverted(noise: &NoiseSchedule, prediction: Prediction, sampling: &SamplingConfig) -> Result<Self> {
        let sampling = SamplingConfig { sampler: SamplerKind::Ddim, eta: 0.0, ..sampling.clone() };
        let forward = Self::new(noise, prediction, &sampling)?;
        let mut stages: Vec<Stage> = forward.stages().to_vec();
        stages.reverse();
        let levels: Vec<NoiseLevel> = stages.iter().map(|stage| stage.level).collect();
        // ε is undetermined for the image itself: it is treated as a state of the least noisy level.
        let mut first = stages[0].clone();
        (first.next_base, first.next_x0, first.next_eps, first.clip) =
            (levels[0].alpha, 0.0, levels[0].sigma, f64::INFINITY);
        for (stage, to) in stages.iter_mut().zip(&levels[1..]) {
            (stage.next_x0, stage.next_eps) = (to.alpha, to.sigma);
        }
        stages.pop();
        stages.insert(0, first);
        for (step, stage) in stages.iter_mut().enumerate() {
            stage.step = step;
        }
        Ok(Self::from_stages(stages))
    }

    /// The time of each step.
    pub fn times(&self) -> Vec<f64> {
        let mut times: Vec<f64> = Vec::with_capacity(self.steps());
        for stage in self.stages() {
            if stage.step == times.len() {
                times.push(stage.time);
            }
        }
        times
    }
}

/// A known part of an image, which its samples must match: some pixels, or block means.
///
/// The known part is linear in the image, x ↦ A·x, so for a noisy state a·x + s·ε the part a·A·x + s·A·ε is known: it is inserted
/// before every evaluation of the network, which adapts the rest to it (Lugmayr et al. 2022, "RePaint", for pixels; Choi et al.
/// 2021, "ILVR", for low frequencies). ε is the sample's initial noise, so the known part moves on a straight path.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Elements of the image selected by `mask`; both `[H, W, C]`, the image in [-1, 1].
    Pixels {
        /// The image; elements outside the mask are never read.
        image: Vec<f32>,
        /// True for known elements.
        mask: Vec<bool>,
    },
    /// The mean of each block of `factor` x `factor` pixels.
    Means {
        /// The means: `[H / factor, W / factor, C]`, in [-1, 1].
        small: Vec<f32>,
        /// Width and height of a block.
        factor: usize,
        /// Sizes of the image `[H, W, C]`, multiples of `factor`.
        shape: [usize; 3],
    },
}

impl Known {
    /// Replaces A·x by a·A·image + s·A·noise in each image of `x` and `noise` `[N, H, W, C]`.
    pub fn impose(&self, level: NoiseLevel, noise: &[f32], x: &mut [f32]) {
        let known = |value: f32, noise: f64| level.alpha * f64::from(value) + level.sigma * noise;
        let elements = self.elements();
        for (x, noise) in x.chunks_exact_mut(elements).zip(noise.chunks_exact(elements)) {
            match self {
                Self::Pixels { image, mask } => {
                    for (((x, noise), image), _) in
                        x.iter_mut().zip(noise).zip(image).zip(mask).filter(|(_, known)| **known)
                    {
                        *x = known(*image, f64::from(*noise)) as f32;
                    }
                }
                Self::Means { small, factor, shape } => {
                    for (number, &value) in small.iter().enumerate() {
                        let places = block(*factor, *shape, number);
                        let mean = |of: &[f32]| {
                            places.clone().map(|at| f64::from(of[at])).sum::<f64>() / places.clone().count() as f64
                        };
                        let shift = known(value, mean(noise)) - mean(x);
                        for at in places.clone() {
                            x[at] = (f64::from(x[at]) + shift) as f32;
                        }
                    }
                }
            }
        }
    }

    /// Makes finished images `[N, H, W, C]` match the known part: pixels are replaced; blocks are shifted until their means,
    /// clamped to [-1, 1] like pictures, match.
    pub fn finish(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.elements()) {
            match self {
                Self::Pixels { image, mask } => {
                    for ((x, image), _) in x.iter_mut().zip(image).zip(mask).filter(|(_, known)| **known) {
                        *x = *image;
                    }
                }
                Self::Means { small, factor, shape } => {
                    for (number, &value) in small.iter().enumerate() {
                        let values: Vec<f64> = block(*factor, *shape, number).map(|at| f64::from(x[at])).collect();
                        let shift = clamped_shift(&values, f64::from(value.clamp(-1.0, 1.0)));
                        for at in block(*factor, *shape, number) {
                            x[at] = (f64::from(x[at]) + shift).clamp(-1.0, 1.0) as f32;
                        }
                    }
                }
            }
        }
    }

    /// Elements of an image.
    fn elements(&self) -> usize {
        match self {
            Self::Pixels { image, .. } => image.len(),
            Self::Means { shape: [h, w, c], .. } => h * w * c,
        }
    }
}

/// The elements of the block, in an image of `shape`, whose mean is element `number` of the small image.
fn block(factor: usize, [_, w, c]: [usize; 3], number: usize) -> impl Iterator<Item = usize> + Clone {
    let columns = w / factor;
    let (row, column, channel) = (number / c / columns, number / c % columns, number % c);
    (0..factor * factor).map(move |k| ((row * factor + k / factor) * w + column * factor + k % factor) * c + channel)
}

/// The shift after which `values`, clamped to [-1, 1], have the mean `target` in [-1, 1].
fn clamped_shift(values: &[f64], target: f64) -> f64 {
    let mean = |shift: f64| values.iter().map(|v| (v + shift).clamp(-1.0, 1.0)).sum::<f64>() / values.len() as f64;
    let (least, greatest) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    // At the ends all values are clamped.
    let (mut low, mut high) = (-1.0 - greatest, 1.0 - least);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if mean(middle) < target { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The known part of samples, and the number of rounds.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The known part of each sample.
    pub known: &'a Known,
    /// Repetitions of each step, at least 1: before each repetition the state is noised back to the step's level, so that the
    /// unknown part can adapt again (RePaint's resampling).
    pub rounds: usize,
}

impl Binding<'_> {
    /// Refuses several rounds for a multistep plan.
    pub(crate) fn check(&self, plan: &Plan) -> Result<()> {
        if self.rounds > 1 && plan.needs_saved_buffers() {
            return Err(Error::config(
                "rounds",
                "the sampler uses its previous step, so no step can be repeated",
                "give `sampler = ddim` or ddpm, or leave `rounds` out",
            ));
        }
        Ok(())
    }

    /// Repetitions of `stage`.
    pub(crate) fn rounds_at(&self, stages: &[Stage], stage: usize) -> usize {
        // After the last step nothing remains to adapt.
        if stage + 1 < stages.len() { self.rounds.max(1) } else { 1 }
    }

    /// Prepares the states `x` of images `first …` of `seed` for a round of a stage: noises them back to its level in later
    /// rounds, then inserts the known part. `noise` is their initial noise.
    pub(crate) fn bind(
        &self,
        stages: &[Stage],
        (stage, round): (usize, usize),
        (seed, first): (u64, u32),
        noise: &[f32],
        x: &mut [f32],
    ) {
        let level = stages[stage].level;
        if let (Some(next), true) = (stages.get(stage + 1), round > 0) {
            let step = RENOISE_STEP | (stage * self.rounds + round) as u32;
            renoise(next.level, level, seed, first, step, x.len() / self.known.elements(), x);
        }
        self.known.impose(level, noise, x);
    }
}

impl Sampler {
    /// Draws images `first .. first + labels.len()` of the seed with a known part: `[labels.len(), H, W, C]`. `after_stage(stage,
    /// sampler)` is called after the last round of each stage of [`Sampler::plan`].
    ///
    /// # Errors
    /// As [`Sampler::run`]; [`Error::Config`] for several rounds with a multistep sampler.
    pub fn run_bound(
        &mut self,
        first: u32,
        labels: &[i32],
        binding: Binding,
        mut after_stage: impl FnMut(usize, &Self) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let known = binding.known;
        binding.check(self.plan())?;
        self.begin(first, labels)?;
        let noise = self.state()?;
        let (stages, seed) = (self.plan().stages().to_vec(), self.seed());
        for stage in 0..stages.len() {
            for round in 0..binding.rounds_at(&stages, stage) {
                let mut x = self.state()?;
                binding.bind(&stages, (stage, round), (seed, first), &noise, &mut x);
                self.set_state(&x)?;
                self.advance(stage)?;
            }
            after_stage(stage, self)?;
        }
        let mut x = self.state()?;
        known.finish(&mut x);
        Ok(x)
    }
}

/// Adds fresh noise to `count` states at level `from` to raise them to the noisier level `to`.
fn renoise(from: NoiseLevel, to: NoiseLevel, seed: u64, first: u32, step: u32, count: usize, x: &mut [f32]) {
    let scale = to.alpha / from.alpha;
    let fresh = (to.sigma * to.sigma - (scale * from.sigma).powi(2)).max(0.0).sqrt();
    let mut z = vec![0.0; x.len() / count.max(1)];
    for (item, x) in x.chunks_exact_mut(z.len()).enumerate() {
        fill_normal(&mut z, Philox::new(seed), first.wrapping_add(item as u32), step, Purpose::Noise);
        for (x, z) in x.iter_mut().zip(&z) {
            *x = (scale * f64::from(*x) + fresh * f64::from(*z)) as f32;
        }
    }
}
