//! Drawing from any start: one loop over batches and stages, which notifies a watcher.

use std::ops::Range;
use std::rc::Rc;

use super::{Ends, Inpaint, Model, SampleRequest};
use crate::diffusion::{Binding, Known, NoiseSchedule, Plan, Sampler, SamplerSpec};
use crate::error::Result;

/// The source of the images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drawing<'a> {
    /// From noise: see [`Model::sample`].
    Sample,
    /// Between two seeds or images: see [`Model::interpolate`].
    Interpolate(Ends<'a>),
    /// From a noised image, with a strength in [0, 1]: see [`Model::vary`].
    Vary {
        /// `[H, W, C]` in [-1, 1].
        image: &'a [f32],
        /// The share of the sampling steps to run.
        strength: f64,
    },
    /// The known part of an image: see [`Model::inpaint`].
    Inpaint(Inpaint<'a>),
    /// A small image: see [`Model::upscale`].
    Upscale {
        /// `[H / factor, W / factor, C]` in [-1, 1].
        small: &'a [f32],
        /// The factor to the model's image size.
        factor: usize,
        /// Repetitions of each step, at least 1.
        rounds: usize,
    },
}

/// A stage of a drawing that has just ended: one evaluation of the network, including guidance.
pub struct DrawingStage<'a> {
    /// Evaluations so far.
    pub done: usize,
    /// Total evaluations.
    pub total: usize,
    /// The images in progress, by index in the request; empty during the inversion of given images.
    pub images: Range<usize>,
    view: View<'a>,
}

/// The source of previews.
#[derive(Clone, Copy)]
struct View<'a> {
    sampler: &'a Sampler,
    stage: usize,
    known: Option<&'a Known>,
}

impl DrawingStage<'_> {
    /// The predicted x_0 of the images: `[H, W, C]` each, in about [-1, 1], one for each of [`DrawingStage::images`], with their known
    /// pixels. Every call computes it again. None if [`Watch::previews`] returns false.
    ///
    /// # Errors
    /// Those of the device.
    pub fn preview(&self) -> Result<Option<Vec<Vec<f32>>>> {
        let View { sampler, stage, known } = self.view;
        if self.images.is_empty() {
            return Ok(None);
        }
        let Some(mut values) = sampler.predicted(stage)? else { return Ok(None) };
        if let Some(known) = known {
            known.finish(&mut values);
        }
        Ok(Some(values.chunks_exact(values.len() / self.images.len()).map(<[f32]>::to_vec).collect()))
    }
}

/// Observes a drawing in progress. A closure that takes a [`DrawingStage`] implements it without previews.
pub trait Watch {
    /// Whether [`DrawingStage::preview`] will be called. Two more states are then kept on the device; the images are the same.
    fn previews(&self) -> bool {
        false
    }

    /// Called after each stage.
    ///
    /// # Errors
    /// An error ends the drawing and is returned from it: [`Error::Interrupted`](crate::Error::Interrupted) to cancel it. The
    /// model can then draw again.
    fn stage(&mut self, stage: &DrawingStage) -> Result<()>;
}

impl<F: FnMut(&DrawingStage) -> Result<()>> Watch for F {
    fn stage(&mut self, stage: &DrawingStage) -> Result<()> {
        self(stage)
    }
}

/// A closure that wants previews.
pub struct Previewed<F>(pub F);

impl<F: FnMut(&DrawingStage) -> Result<()>> Watch for Previewed<F> {
    fn previews(&self) -> bool {
        true
    }

    fn stage(&mut self, stage: &DrawingStage) -> Result<()> {
        (self.0)(stage)
    }
}

/// Makes a state from an image's index in its request and its noise.
pub(super) type StateOf = dyn Fn(usize, &[f32]) -> Vec<f32>;

/// The start of an image.
#[derive(Clone)]
pub(super) enum Start {
    /// Its noise.
    Noise,
    /// Image k from the state computed from k and its noise.
    From(Rc<StateOf>),
    /// Its noise, with known pixels, repeating each step.
    Around(Rc<Known>, usize),
}

/// Images drawn with the same plan.
pub(super) struct Work {
    pub plan: Plan,
    pub spec: SamplerSpec,
    pub start: Start,
    /// The index of the first image.
    pub first: u32,
}

impl Model {
    /// Draws the images of a request, `[H, W, C]` each in about [-1, 1], and notifies `watch` of every stage.
    ///
    /// # Errors
    /// Those of the method named at each kind of [`Drawing`]; the error with which `watch` ended it.
    pub fn draw(&self, drawing: Drawing, request: &SampleRequest, watch: &mut dyn Watch) -> Result<Vec<Vec<f32>>> {
        match drawing {
            Drawing::Sample => {
                let mut images = Vec::with_capacity(request.labels.len());
                self.draw_noise(request, watch, |_, image| {
                    images.push(image.to_vec());
                    Ok(())
                })?;
                Ok(images)
            }
            Drawing::Interpolate(ends) => self.draw_between(ends, request, watch),
            Drawing::Vary { image, strength } => self.draw_variations(image, strength, request, watch),
            Drawing::Inpaint(inpaint) => self.draw_inpainted(inpaint, request, watch),
            Drawing::Upscale { small, factor, rounds } => self.draw_larger(small, factor, rounds, request, watch),
        }
    }

    /// Draws the images of a request: each `[H, W, C]`, in about [-1, 1].
    ///
    /// ```
    /// use engine::config::Config;
    /// use engine::pipeline::Model;
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
    /// // Image 0 is the same image alone.
    /// request.labels.truncate(1);
    /// assert_eq!(model.sample(&request)?[0], images[0]);
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::sample_each`].
    pub fn sample(&self, request: &SampleRequest) -> Result<Vec<Vec<f32>>> {
        self.draw(Drawing::Sample, request, &mut |_: &DrawingStage| Ok(()))
    }

    /// Draws the images of a request and delivers each as soon as it is finished: `sink(k, image)`, k from 0 in the request.
    /// `progress(done, total)` counts evaluations of the network; an error from either ends the drawing.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for no images, a batch of 0, an unknown label, guidance without a null label, and
    /// what [`SamplingConfig::validate`](crate::config::SamplingConfig::validate) refuses; those of the device.
    pub fn sample_each(
        &self,
        request: &SampleRequest,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
        sink: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.draw_noise(request, &mut |stage: &DrawingStage| progress(stage.done, stage.total), sink)
    }

    fn draw_noise(
        &self,
        request: &SampleRequest,
        watch: &mut dyn Watch,
        sink: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.in_batches(self.work_of_noise(request)?, request, watch, sink)
    }

    pub(super) fn work_of_noise(&self, request: &SampleRequest) -> Result<Work> {
        Ok(Work { first: request.first, ..self.work(request, Start::Noise)? })
    }

    /// A request's images with its own plan.
    pub(super) fn work(&self, request: &SampleRequest, start: Start) -> Result<Work> {
        let (spec, noise) = self.checked(request)?;
        let plan = Plan::new(&noise, spec.prediction, &spec.sampling)?;
        Ok(Work { plan, spec, start, first: 0 })
    }

    /// Processes a request batch by batch, and delivers each image.
    pub(super) fn in_batches(
        &self,
        work: Work,
        request: &SampleRequest,
        watch: &mut dyn Watch,
        mut sink: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let Work { plan, spec, start, first } = work;
        let mut sampler = self.planned(plan, spec, watch.previews())?;
        let (batch, stages) = (sampler.batch(), sampler.stages());
        let total = request.labels.len().div_ceil(batch) * stages;
        for (number, labels) in request.labels.chunks(batch).enumerate() {
            let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
            let place = number * batch;
            let mut tell = |sampler: &Sampler, stage: usize, known: Option<&Known>| {
                let (done, images) = (number * stages + stage + 1, place..place + labels.len());
                watch.stage(&DrawingStage { done, total, images, view: View { sampler, stage, known } })
            };
            let first = first + place as u32;
            let drawn = match &start {
                Start::Around(known, rounds) => {
                    let binding = Binding { known, rounds: *rounds };
                    sampler.run_bound(first, &labels, binding, |stage, sampler| tell(sampler, stage, Some(known)))?
                }
                Start::Noise => {
                    sampler.begin(first, &labels)?;
                    finish(&mut sampler, tell)?
                }
                Start::From(state) => {
                    sampler.begin(first, &labels)?;
                    let noise = sampler.state()?;
                    let noises = noise.chunks_exact(noise.len() / labels.len());
                    let states: Vec<f32> = noises.enumerate().flat_map(|(k, noise)| state(place + k, noise)).collect();
                    sampler.set_state(&states)?;
                    finish(&mut sampler, tell)?
                }
            };
            for (k, image) in drawn.chunks_exact(drawn.len() / labels.len()).enumerate() {
                sink(place + k, image)?;
            }
        }
        Ok(())
    }

    /// As [`Model::in_batches`], and collects the images.
    pub(super) fn all_of(&self, work: Work, request: &SampleRequest, watch: &mut dyn Watch) -> Result<Vec<Vec<f32>>> {
        let mut images = Vec::with_capacity(request.labels.len());
        self.in_batches(work, request, watch, |_, image| {
            images.push(image.to_vec());
            Ok(())
        })?;
        Ok(images)
    }

    /// The denoising program of a request, to run it yourself, any number of times. It depends on the request's batch, seed, steps
    /// and guidance; of its labels only on whether any is guided.
    ///
    /// # Errors
    /// As [`Model::sample_each`].
    pub fn sampler_for(&self, request: &SampleRequest) -> Result<Sampler> {
        let (spec, noise) = self.checked(request)?;
        let plan = Plan::new(&noise, spec.prediction, &spec.sampling)?;
        self.planned(plan, spec, false)
    }

    /// As [`Model::sampler_for`], with a plan of your own in place of the request's sampler and steps.
    ///
    /// # Errors
    /// As [`Model::sample_each`].
    pub fn sampler_with(&self, plan: Plan, request: &SampleRequest) -> Result<Sampler> {
        let (spec, _) = self.checked(request)?;
        self.planned(plan, spec, false)
    }

    pub(super) fn planned(&self, plan: Plan, spec: SamplerSpec, previews: bool) -> Result<Sampler> {
        let (network, parameters) = (self.network.clone(), self.parameters.clone());
        match previews {
            true => Sampler::with_predictions(self.context(), network, parameters, plan, spec),
            false => Sampler::with_plan(self.context(), network, parameters, plan, spec),
        }
    }

    /// The sampler's settings for a request, and the model's noise levels; or an error if the model cannot meet it.
    pub(super) fn checked(&self, request: &SampleRequest) -> Result<(SamplerSpec, NoiseSchedule)> {
        request.spec(&self.info)
    }
}

/// The stages of the images so far.
fn finish(
    sampler: &mut Sampler,
    mut tell: impl FnMut(&Sampler, usize, Option<&Known>) -> Result<()>,
) -> Result<Vec<f32>> {
    for stage in 0..sampler.stages() {
        sampler.advance(stage)?;
        tell(sampler, stage, None)?;
    }
    sampler.state()
}

/// A part of a multi-part drawing: reports its stages as a share of the whole.
pub(super) struct Part<'a> {
    /// The watcher.
    pub watch: &'a mut dyn Watch,
    /// The units of the parts before this one, of this one, and in total, in units of this one's stages.
    pub before: usize,
    pub weight: usize,
    pub all: usize,
    /// Whether the images in progress are the request's.
    pub shown: bool,
}

impl Watch for Part<'_> {
    fn previews(&self) -> bool {
        self.shown && self.watch.previews()
    }

    fn stage(&mut self, stage: &DrawingStage) -> Result<()> {
        let done = self.before * stage.total + self.weight * stage.done;
        let images = if self.shown { stage.images.clone() } else { 0..0 };
        self.watch.stage(&DrawingStage { done, total: self.all * stage.total, images, view: stage.view })
    }
}
