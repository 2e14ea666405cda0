//! Edited images: interpolation, inpainting, upscaling and variations.
//!
//! Images are `[H, W, C]` of the model's size, in [-1, 1]. Every method uses the same noise for a seed as [`Model::sample`], so
//! their images are comparable.

use std::rc::Rc;

use super::draw::{Part, Start, Work};
use super::{Drawing, DrawingStage, Model, SampleRequest, Watch};
use crate::diffusion::{Binding, Known, Plan, SamplerKind, SamplingConfig, slerp};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::words;

/// The two ends of an interpolation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ends<'a> {
    /// The first image of each of two seeds.
    Seeds(u64, u64),
    /// Two images.
    Images(&'a [f32], &'a [f32]),
}

/// The area to fill, and the number of repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inpaint<'a> {
    /// The image; its free pixels are never read.
    pub image: &'a [f32],
    /// The free pixels `[H, W]`, which are painted; all others are kept.
    pub free: &'a [bool],
    /// Repetitions of each step, at least 1: more blend better with the kept pixels, at proportional cost (Lugmayr et al. 2022,
    /// "RePaint"). Must be 1 for multistep samplers (`heun`, `dpmpp2m`).
    pub rounds: usize,
}

/// Receives the number of evaluations of the network, done and total.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, usize);

impl Model {
    /// Interpolates between two images: as many frames as the request has labels, at least 2, including the ends.
    ///
    /// Between seeds, frame t in [0, 1] is drawn from the spherical interpolation of both noises ([`slerp`]). The ends are the
    /// images that [`Model::sample`] draws for the seeds, bit for bit; `request.seed` is not used.
    ///
    /// Between images, both are first inverted to noise ([`Plan::inverted`]). Their reconstruction errors are blended in, so that
    /// the ends are the images themselves. No guidance is used.
    ///
    /// # Errors
    /// Those of [`Model::sample_each`]; [`Error::Config`] for fewer than 2 frames, or a stochastic sampler, with which
    /// neighbouring frames would differ.
    pub fn interpolate(&self, ends: Ends, request: &SampleRequest, progress: OnProgress) -> Result<Vec<Vec<f32>>> {
        self.draw(Drawing::Interpolate(ends), request, &mut counted(progress))
    }

    pub(super) fn draw_between(
        &self,
        ends: Ends,
        request: &SampleRequest,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<f32>>> {
        match ends {
            Ends::Seeds(from, to) => self.all_of(self.work_between(from, to, request)?, request, watch),
            Ends::Images(from, to) => {
                let bridge = Bridge::new(self, [from, to], request)?;
                // Roughly a third: with many frames, the frames are most of the work.
                let mut part = Part { watch: &mut *watch, before: 0, weight: 1, all: 3, shown: false };
                let back = self.all_of(bridge.back(self)?, bridge.pair(), &mut part)?;
                let mut part = Part { watch, before: 1, weight: 2, all: 3, shown: true };
                let mut drawn = self.all_of(bridge.frames(self, &back)?, &bridge.request, &mut part)?;
                bridge.finish(&mut drawn);
                Ok(drawn)
            }
        }
    }

    /// Frames between the noises of two seeds.
    pub(super) fn work_between(&self, from: u64, to: u64, request: &SampleRequest) -> Result<Work> {
        check_frames(request)?;
        let (from, to) = (self.first_noise(request, from)?, self.first_noise(request, to)?);
        let last = request.labels.len() - 1;
        let frame = move |frame: usize, _: &[f32]| slerp(&from, &to, frame as f64 / last as f64);
        self.work(request, Start::From(Rc::new(frame)))
    }

    /// Variations of an image, one for each of the request's labels: noises the image and runs the remaining sampling steps (Meng
    /// et al. 2021, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations").
    ///
    /// `strength` in [0, 1] is the share of the sampling steps to run: 0 gives the image itself, 1 ignores it and gives the result
    /// of [`Model::sample`], both bit for bit.
    ///
    /// # Errors
    /// Those of [`Model::sample_each`]; [`Error::Config`] for a strength outside [0, 1], [`Error::Shape`] for an image of
    /// another size.
    pub fn vary(
        &self,
        image: &[f32],
        strength: f64,
        request: &SampleRequest,
        progress: OnProgress,
    ) -> Result<Vec<Vec<f32>>> {
        self.draw(Drawing::Vary { image, strength }, request, &mut counted(progress))
    }

    pub(super) fn draw_variations(
        &self,
        image: &[f32],
        strength: f64,
        request: &SampleRequest,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<f32>>> {
        match self.work_of_variations(image, strength, request)? {
            Some(work) => self.all_of(work, request, watch),
            None => Ok(vec![image.to_vec(); request.labels.len()]),
        }
    }

    /// None if no step is run: each result is the image itself.
    pub(super) fn work_of_variations(
        &self,
        image: &[f32],
        strength: f64,
        request: &SampleRequest,
    ) -> Result<Option<Work>> {
        if !(0.0..=1.0).contains(&strength) {
            let message = format!("a strength of {strength} is outside [0, 1]");
            return Err(Error::config("strength", message, "0 returns the image, 1 ignores it; 0.4 to 0.8 is usual"));
        }
        check_image(image, self.image_shape())?;
        let (spec, noise) = self.checked(request)?;
        if strength == 0.0 {
            return Ok(None);
        }
        let steps = Plan::new(&noise, spec.prediction, &spec.sampling)?.steps();
        // A product that rounding has put just above a whole number counts as that number.
        let left = ((strength * steps as f64 - 1e-9).ceil() as usize).clamp(1, steps);
        let plan = Plan::last_steps(&noise, spec.prediction, &spec.sampling, left)?;
        let level = plan.stages()[0].level;
        let image = image.to_vec();
        let start = move |_: usize, z: &[f32]| -> Vec<f32> {
            let mix = |(x, z): (&f32, &f32)| (level.alpha * f64::from(*x) + level.sigma * f64::from(*z)) as f32;
            if strength == 1.0 { z.to_vec() } else { image.iter().zip(z).map(mix).collect() }
        };
        Ok(Some(Work { plan, spec, start: Start::From(Rc::new(start)), first: 0 }))
    }

    /// Fills the free pixels of an image, once for each of the request's labels; every other pixel is kept, bit for bit.
    ///
    /// # Errors
    /// Those of [`Model::sample_each`]; [`Error::Shape`] for an image or a mask of another size; [`Error::Config`] for several
    /// rounds with a multistep sampler.
    pub fn inpaint(&self, inpaint: Inpaint, request: &SampleRequest, progress: OnProgress) -> Result<Vec<Vec<f32>>> {
        self.draw(Drawing::Inpaint(inpaint), request, &mut counted(progress))
    }

    pub(super) fn draw_inpainted(
        &self,
        inpaint: Inpaint,
        request: &SampleRequest,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<f32>>> {
        self.all_of(self.work_of_inpainting(inpaint, request)?, request, watch)
    }

    pub(super) fn work_of_inpainting(&self, inpaint: Inpaint, request: &SampleRequest) -> Result<Work> {
        let [h, w, c] = self.image_shape();
        check_image(inpaint.image, [h, w, c])?;
        if inpaint.free.len() != h * w {
            let message = format!("a mask of {} pixels for images of {}", inpaint.free.len(), ImageSize::new(h, w));
            return Err(Error::shape("inpaint", message));
        }
        let mask = inpaint.free.iter().flat_map(|free| std::iter::repeat_n(!free, c)).collect();
        self.work_around(Known::Pixels { image: inpaint.image.to_vec(), mask }, inpaint.rounds, request)
    }

    /// Larger versions of a small image, one for each of the request's labels: `factor` times as wide and high, the model's size.
    /// The mean of each block of `factor` x `factor` pixels equals the small image's pixel: its low frequencies are kept, and the
    /// rest is drawn.
    ///
    /// # Errors
    /// Those of [`Model::sample_each`]; [`Error::Config`] for a factor that does not divide the model's size; [`Error::Shape`]
    /// for an image of another size than `[H / factor, W / factor, C]`.
    pub fn upscale(
        &self,
        small: &[f32],
        factor: usize,
        rounds: usize,
        request: &SampleRequest,
        progress: OnProgress,
    ) -> Result<Vec<Vec<f32>>> {
        self.draw(Drawing::Upscale { small, factor, rounds }, request, &mut counted(progress))
    }

    pub(super) fn draw_larger(
        &self,
        small: &[f32],
        factor: usize,
        rounds: usize,
        request: &SampleRequest,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<f32>>> {
        self.all_of(self.work_of_upscaling(small, factor, rounds, request)?, request, watch)
    }

    pub(super) fn work_of_upscaling(
        &self,
        small: &[f32],
        factor: usize,
        rounds: usize,
        request: &SampleRequest,
    ) -> Result<Work> {
        let [h, w, c] = self.image_shape();
        if factor < 2 || !h.is_multiple_of(factor) || !w.is_multiple_of(factor) {
            let size = ImageSize::new(h, w);
            let message = format!("the model's images of {size} cannot be cut into blocks of {factor}x{factor}");
            return Err(Error::config("factor", message, "give 2 or 4"));
        }
        check_image(small, [h / factor, w / factor, c])?;
        let known = Known::Means { small: small.to_vec(), factor, shape: [h, w, c] };
        self.work_around(known, rounds, request)
    }

    /// A request's images with known pixels.
    fn work_around(&self, known: Known, rounds: usize, request: &SampleRequest) -> Result<Work> {
        if !(1..=1000).contains(&rounds) {
            let message = format!("each step {rounds} times");
            return Err(Error::config("rounds", message, "give 1 to 1000; 5 is a lot"));
        }
        let work = self.work(request, Start::Around(Rc::new(known), rounds))?;
        if let Start::Around(known, rounds) = &work.start {
            Binding { known, rounds: *rounds }.check(&work.plan)?;
        }
        Ok(work)
    }

    /// The initial noise of the first image of a seed.
    fn first_noise(&self, request: &SampleRequest, seed: u64) -> Result<Vec<f32>> {
        let first = SampleRequest { labels: request.labels[..1].to_vec(), seed, batch: 1, ..request.clone() };
        let (spec, noise) = self.checked(&first)?;
        let mut sampler = self.planned(Plan::new(&noise, spec.prediction, &spec.sampling)?, spec, false)?;
        sampler.begin(0, &[first.labels[0] as i32])?;
        sampler.state()
    }
}

/// A path between two images through their noises, with each reconstruction error blended back in.
pub(super) struct Bridge {
    ends: [Vec<f32>; 2],
    /// Settings of the frames, without guidance.
    pub request: SampleRequest,
    pair: SampleRequest,
}

impl Bridge {
    /// # Errors
    /// As [`Model::interpolate`].
    pub fn new(model: &Model, ends: [&[f32]; 2], request: &SampleRequest) -> Result<Self> {
        check_frames(request)?;
        for image in ends {
            check_image(image, model.image_shape())?;
        }
        let mut request = request.clone();
        request.sampling = request.sampling.unguided();
        let labels = vec![request.labels[0], request.labels[request.labels.len() - 1]];
        let pair = SampleRequest { labels, batch: 2, ..request.clone() };
        Ok(Self { ends: ends.map(<[f32]>::to_vec), request, pair })
    }

    /// The request of both ends.
    pub fn pair(&self) -> &SampleRequest {
        &self.pair
    }

    /// The inversion of both ends to their noises.
    pub fn back(&self, model: &Model) -> Result<Work> {
        let (spec, noise) = model.checked(&self.pair)?;
        let plan = Plan::inverted(&noise, spec.prediction, &spec.sampling)?;
        let ends = self.ends.clone();
        Ok(Work { plan, spec, start: Start::From(Rc::new(move |k, _| ends[k].clone())), first: 0 })
    }

    /// The frames between the noises from `back`.
    pub fn frames(&self, model: &Model, back: &[Vec<f32>]) -> Result<Work> {
        let (back, last) = ([back[0].clone(), back[1].clone()], self.request.labels.len() - 1);
        let start = move |frame: usize, _: &[f32]| slerp(&back[0], &back[1], frame as f64 / last as f64);
        model.work(&self.request, Start::From(Rc::new(start)))
    }

    /// Blends the reconstruction errors of the ends into all frames, so that the ends become the images themselves.
    pub fn finish(&self, drawn: &mut [Vec<f32>]) {
        let last = drawn.len() - 1;
        let miss = |image: &[f32], drawn: &[f32]| -> Vec<f32> { image.iter().zip(drawn).map(|(x, y)| x - y).collect() };
        let misses = [miss(&self.ends[0], &drawn[0]), miss(&self.ends[1], &drawn[last])];
        for (frame, image) in drawn.iter_mut().enumerate() {
            let t = (frame as f64 / last as f64) as f32;
            for ((x, first), last) in image.iter_mut().zip(&misses[0]).zip(&misses[1]) {
                *x += (1.0 - t) * first + t * last;
            }
        }
        drawn[0].copy_from_slice(&self.ends[0]);
        drawn[last].copy_from_slice(&self.ends[1]);
    }
}

/// Refuses an invalid number of frames.
fn check_frames(request: &SampleRequest) -> Result<()> {
    let frames = request.labels.len();
    if frames < 2 {
        return Err(Error::config("frames", words::counted(frames, "frame"), "give 2 or more"));
    }
    let SamplingConfig { sampler, eta, .. } = request.sampling;
    if sampler == SamplerKind::Ddpm || (sampler == SamplerKind::Ddim && eta > 0.0) {
        let message = "the sampler adds noise on the way, in which neighbouring frames would differ";
        return Err(Error::config("sampler", message, "give `sampler = ddim, eta = 0`, heun or dpmpp2m"));
    }
    Ok(())
}

/// A [`Watch`] that counts evaluations.
fn counted(progress: OnProgress) -> impl Watch {
    move |stage: &DrawingStage| {
        progress(stage.done, stage.total);
        Ok(())
    }
}

fn check_image(image: &[f32], [h, w, c]: [usize; 3]) -> Result<()> {
    if image.len() != h * w * c {
        let message =
            format!("{} values are given where {} are needed", image.len(), ImageSize::new(h, w).with_channels(c));
        return Err(Error::shape("image", message));
    }
    if let Some(stranger) = image.iter().find(|value| !value.is_finite()) {
        return Err(Error::shape("image", format!("it holds {stranger}; give values in [-1, 1]")));
    }
    Ok(())
}
