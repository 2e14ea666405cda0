//! Sampling on a device: a plan's stages for a batch of images in lockstep, each a forward pass and one fused update.

use std::rc::Rc;

use super::rows::{Beginning, Buffers, Going, Rows};
use super::{Denoiser, NoiseSchedule, Plan, Prediction, SamplingConfig};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::tensor::{Context, Program};

/// The settings of a sampler.
#[derive(Clone, Debug)]
pub struct SamplerSpec {
    /// Sampler, times, temperature, guidance, clamp.
    pub sampling: SamplingConfig,
    /// The model's prediction.
    pub prediction: Prediction,
    /// The label that guidance contrasts with; None if the model has none.
    pub null_label: Option<usize>,
    /// Images in a batch.
    pub batch: usize,
    /// The seed: image k of a seed is the same in every batch.
    pub seed: u64,
}

/// A planned denoising program with its state on the device.
pub struct Sampler {
    plan: Plan,
    spec: SamplerSpec,
    /// Copies of the batch: 2 with guidance (labelled, then unlabelled), else 1.
    copies: usize,
    rows: Rows,
    /// The index of the first image in progress, and the number of images.
    first: u32,
    images: usize,
}

impl Sampler {
    /// Plans a denoising step and allocates its buffers.
    ///
    /// # Errors
    /// [`Error::Config`] for guidance of a model without a null label, and those of [`Plan::new`].
    pub fn new(
        context: &Context,
        model: Rc<dyn Denoiser>,
        parameters: Rc<Parameters>,
        noise: &NoiseSchedule,
        spec: SamplerSpec,
    ) -> Result<Self> {
        let plan = Plan::new(noise, spec.prediction, &spec.sampling)?;
        Self::with_plan(context, model, parameters, plan, spec)
    }

    /// As [`Sampler::new`], with a custom plan instead of that of `spec.sampling`.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn with_plan(
        context: &Context,
        model: Rc<dyn Denoiser>,
        parameters: Rc<Parameters>,
        plan: Plan,
        spec: SamplerSpec,
    ) -> Result<Self> {
        Self::planned(context, model, parameters, plan, spec, false)
    }

    /// As [`Sampler::with_plan`], and [`Sampler::predicted`] works after each stage: two more states are kept on the device for
    /// it. The images are the same, bit for bit.
    ///
    /// # Errors
    /// As [`Sampler::with_plan`].
    pub fn with_predictions(
        context: &Context,
        model: Rc<dyn Denoiser>,
        parameters: Rc<Parameters>,
        plan: Plan,
        spec: SamplerSpec,
    ) -> Result<Self> {
        Self::planned(context, model, parameters, plan, spec, true)
    }

    fn planned(
        context: &Context,
        model: Rc<dyn Denoiser>,
        parameters: Rc<Parameters>,
        plan: Plan,
        spec: SamplerSpec,
        keeps: bool,
    ) -> Result<Self> {
        if plan.is_guided() && spec.null_label.is_none() {
            return Err(Error::config(
                "sampling.guidance",
                "the model was trained without a null label, so it cannot be guided",
                "set it to 1",
            ));
        }
        let copies = if plan.is_guided() { 2 } else { 1 };
        let buffers = Buffers { saved_state: plan.needs_saved_state(), saved: plan.needs_saved_buffers(), kept: keeps };
        let mut rows = Rows::new(context, model, parameters, copies * spec.batch, buffers)?;
        rows.plan(copies * spec.batch)?;
        rows.reserve_course(plan.stages().len())?;
        Ok(Self { plan, spec, copies, rows, first: 0, images: 0 })
    }

    /// Bytes of the weights repacked for the CPU's products; 0 on other devices.
    pub fn prepared_bytes(&self) -> usize {
        self.rows.prepared_bytes()
    }

    /// The planned denoising step: memory and cost.
    ///
    /// # Panics
    /// Never: it is planned when the sampler is made.
    pub fn program(&self) -> &Program {
        self.rows.program(self.rows.capacity()).expect("planned by `Sampler::planned`")
    }

    /// Model evaluations per image, including guidance.
    pub fn stages(&self) -> usize {
        self.plan.stages().len()
    }

    /// Images in a batch.
    pub fn batch(&self) -> usize {
        self.spec.batch
    }

    /// The stages.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.spec.seed
    }

    /// Draws images `first .. first + labels.len()` of the seed, at most a batch of them: `[labels.len(), H, W, C]` in about [-1,
    /// 1]. `after_stage(stage, state)` is called after each stage and can read the state.
    ///
    /// # Errors
    /// More labels than the batch size; those of the device.
    pub fn run(
        &mut self,
        first: u32,
        labels: &[i32],
        after_stage: impl FnMut(usize, &dyn Fn() -> Result<Vec<f32>>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.begin(first, labels)?;
        self.finish(after_stage)
    }

    /// Starts images `first .. first + labels.len()` of the seed: their state becomes their initial noise. They are denoised with
    /// the parameters' current values: on the CPU, later changes may be missed.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn begin(&mut self, first: u32, labels: &[i32]) -> Result<()> {
        let batch = self.spec.batch;
        if labels.is_empty() || labels.len() > batch {
            return Err(Error::shape("sampler", format!("{} labels for a batch of {batch}", labels.len())));
        }
        // A batch is always full: the remaining places draw images that are not read.
        let mut rows = vec![0i32; self.copies * batch];
        rows[..labels.len()].copy_from_slice(labels);
        if let (2, Some(null)) = (self.copies, self.spec.null_label) {
            rows[batch..].fill(null as i32);
        }
        self.rows.refresh()?;
        self.rows.set_labels(&rows)?;
        (self.first, self.images) = (first, labels.len());
        let (seed, scale) = (self.spec.seed, self.spec.sampling.temperature as f32);
        let images: Vec<Beginning> = (0..batch)
            .map(|row| {
                let item = first.wrapping_add(row as u32);
                Beginning { row, partner: self.partner(row), seed, item, scale }
            })
            .collect();
        self.rows.begin(&images)?;
        self.chart()
    }

    /// The state of the images in progress, `[N, H, W, C]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn state(&self) -> Result<Vec<f32>> {
        self.rows.read(0, self.images)
    }

    /// The predicted x_0 of the images in progress at `stage`, the last one that was run: `[N, H, W, C]`, clamped if the plan
    /// clamps. None without [`Sampler::with_predictions`].
    ///
    /// # Errors
    /// A stage that the plan does not have; those of the device.
    pub fn predicted(&self, stage: usize) -> Result<Option<Vec<f32>>> {
        let Some(stage) = self.plan.stages().get(stage) else {
            return Err(Error::shape("sampler", format!("stage {stage} of {}", self.stages())));
        };
        self.rows.predicted(stage, 0, self.images, self.partner(0))
    }

    /// Replaces the state `[N, H, W, C]` of the images in progress.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length; those of the device.
    pub fn set_state(&mut self, values: &[f32]) -> Result<()> {
        let (image, places) = (self.rows.image_len(), self.spec.batch - self.images);
        if values.len() != self.images * image {
            let message = format!("a state of {} elements for {} images of {image}", values.len(), self.images);
            return Err(Error::shape("sampler", message));
        }
        let full: Vec<f32> = values.iter().copied().chain(std::iter::repeat_n(0.0, places * image)).collect();
        self.rows.write(0, &full.repeat(self.copies))
    }

    /// Runs one stage of the plan for the images in progress. On an accelerator it is only submitted; reading the state waits.
    ///
    /// # Errors
    /// A stage that the plan does not have; those of the device.
    pub fn advance(&mut self, stage: usize) -> Result<()> {
        if stage >= self.stages() {
            return Err(Error::shape("sampler", format!("stage {stage} of {}", self.stages())));
        }
        self.rows.advance(stage)
    }

    /// The rest of a run.
    fn finish(
        &mut self,
        mut after_stage: impl FnMut(usize, &dyn Fn() -> Result<Vec<f32>>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        for stage in 0..self.stages() {
            self.advance(stage)?;
            after_stage(stage, &|| self.state())?;
        }
        self.state()
    }

    /// Uploads the work of every row and stage at once, so that no stage waits for the host.
    fn chart(&mut self) -> Result<()> {
        let mut course = Vec::with_capacity(self.stages() * self.rows.capacity());
        for (going, step) in self.plan.stages().iter().zip(1..) {
            for row in 0..self.spec.batch {
                let item = self.first.wrapping_add(row as u32);
                let partner = self.partner(row);
                self.rows.set(row, Going { stage: going, step, seed: self.spec.seed, item, partner });
            }
            course.extend_from_slice(self.rows.table());
        }
        self.rows.set_course(&course)
    }

    /// The unlabelled partner of row `row`.
    fn partner(&self, row: usize) -> Option<usize> {
        (self.copies == 2).then_some(self.spec.batch + row)
    }
}
