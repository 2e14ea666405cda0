//! Sampling on a device: a plan's stages, each a forward pass and one fused update.

use std::rc::Rc;

use super::{Denoiser, NoiseSchedule, Plan, Prediction, SamplingConfig};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::control::{Control, WORDS};
use crate::ops::sampler_step::{SamplerState, fill_noise, sampler_step, sampler_time};
use crate::tape::{Prepared, Tape};
use crate::tensor::{Context, DType, Program, Tensor};

/// What a sampler is made for.
#[derive(Clone, Debug)]
pub struct SamplerSpec {
    /// Sampler, times, temperature, guidance, clamp.
    pub sampling: SamplingConfig,
    /// What the model predicts.
    pub prediction: Prediction,
    /// The label that guidance contrasts with; None where the model has none.
    pub null_label: Option<usize>,
    /// Images in a batch.
    pub batch: usize,
    /// The seed: image k of a seed is the same image in every batch.
    pub seed: u64,
}

/// A planned denoising program with its state on the device.
pub struct Sampler {
    context: Context,
    model: Rc<dyn Denoiser>,
    parameters: Rc<Parameters>,
    plan: Plan,
    spec: SamplerSpec,
    /// Batches side by side: 2 with guidance (labelled, then unlabelled), else 1.
    copies: usize,
    state: State,
    /// The weights as ops on the CPU read them, as they were when the images under way were begun.
    prepared: Rc<Prepared>,
    program: Program,
    /// The seed's number of the first image of those under way, and how many they are.
    first: u32,
    images: usize,
}

/// Persistent buffers of a sampler.
#[derive(Clone)]
struct State {
    table: Tensor,
    /// `[stages, words]`: the control words of each stage of the images under way.
    rows: Tensor,
    control: Tensor,
    x: Tensor,
    time: Tensor,
    labels: Tensor,
    saved_state: Option<Tensor>,
    saved: Option<Tensor>,
    kept: Option<Kept>,
}

/// Before a stage's update changes the state: the state, and the network's output, both of all copies.
#[derive(Clone)]
struct Kept {
    x: Tensor,
    prediction: Tensor,
}

impl Sampler {
    /// Plans a denoising step and makes its buffers.
    ///
    /// # Errors
    /// [`Error::Config`] for guidance of a model without a null label, and what [`Plan::new`] refuses.
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

    /// As [`Sampler::new`], on a plan of one's own instead of the one that `spec.sampling` describes.
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

    /// As [`Sampler::with_plan`], and [`Sampler::predicted`] can be asked after each stage: two more states are kept on the
    /// device for it. The images are the same, bit for bit.
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
        if spec.batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        let copies = if plan.is_guided() { 2 } else { 1 };
        let [h, w, c] = model.image_shape();
        let rows = copies * spec.batch;
        let rows_of_images = || context.zeros([rows, h, w, c], DType::F32);
        let kept = || Ok(Kept { x: rows_of_images()?, prediction: rows_of_images()? });
        let saved = |needed: bool| needed.then(|| context.zeros([spec.batch, h, w, c], DType::F32)).transpose();
        let words: Vec<u32> = bytemuck::cast_slice(&plan.coefficients()).to_vec();
        let state = State {
            table: context.tensor(&words, [plan.stages().len(), words.len() / plan.stages().len()])?,
            rows: context.zeros([plan.stages().len(), WORDS], DType::U32)?,
            control: Control::buffer(context)?,
            x: rows_of_images()?,
            time: context.zeros([rows], DType::F32)?,
            labels: context.zeros([rows], DType::I32)?,
            saved_state: saved(plan.needs_saved_state())?,
            saved: saved(plan.needs_saved_buffers())?,
            kept: keeps.then(kept).transpose()?,
        };
        let prepared = Rc::new(parameters.prepared());
        let program = Program::plan(context, || {
            step(context, model.as_ref(), (&parameters, &prepared), &state, spec.seed, copies)
        })?;
        Ok(Self {
            context: context.clone(),
            model,
            parameters,
            plan,
            spec,
            copies,
            state,
            prepared,
            program,
            first: 0,
            images: 0,
        })
    }

    /// Bytes of the weights in the order in which the CPU's products read them; 0 on other devices.
    pub fn prepared_bytes(&self) -> usize {
        self.prepared.bytes()
    }

    /// The planned denoising step: memory and cost.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Model evaluations of one image, guidance's counted.
    pub fn stages(&self) -> usize {
        self.plan.stages().len()
    }

    /// Images in a batch.
    pub fn batch(&self) -> usize {
        self.spec.batch
    }

    /// What is done, stage by stage.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.spec.seed
    }

    /// Draws images `first .. first + labels.len()` of the seed, at most a batch of them: `[labels.len(), H, W, C]` in
    /// about [-1, 1]. `after_stage(stage, state)` is called after each stage with the state so far, if it wants it.
    ///
    /// # Errors
    /// More labels than a batch has places; what the device reports.
    pub fn run(
        &mut self,
        first: u32,
        labels: &[i32],
        after_stage: impl FnMut(usize, &dyn Fn() -> Result<Vec<f32>>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.begin(first, labels)?;
        self.finish(after_stage)
    }

    /// Begins with images `first .. first + labels.len()` of the seed: their state becomes the noise that they start from.
    /// They are denoised by the parameters as they are now: on the CPU, one that changes meanwhile may go unseen.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn begin(&mut self, first: u32, labels: &[i32]) -> Result<()> {
        let batch = self.spec.batch;
        if labels.is_empty() || labels.len() > batch {
            return Err(Error::shape("sampler", format!("{} labels for a batch of {batch}", labels.len())));
        }
        // A batch is always full: places without a request draw images that nobody sees.
        let mut rows = vec![0i32; self.copies * batch];
        rows[..labels.len()].copy_from_slice(labels);
        if let (2, Some(null)) = (self.copies, self.spec.null_label) {
            rows[batch..].fill(null as i32);
        }
        self.prepared.refresh()?;
        self.state.labels.upload(&rows)?;
        (self.first, self.images) = (first, labels.len());
        let words = |row| Control { first_item: first, row, ..Control::default() }.words();
        self.state.rows.upload(&(0..self.stages() as u32).flat_map(words).collect::<Vec<u32>>())?;
        self.turn_to(0)?;
        let (state, temperature) = (&self.state, self.spec.sampling.temperature as f32);
        fill_noise(&self.context, &state.x, self.copies, &state.control, self.spec.seed, temperature)
    }

    /// The state of the images under way, `[N, H, W, C]`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn state(&self) -> Result<Vec<f32>> {
        let image = self.image_len();
        let mut values = self.state.x.part(0, [self.spec.batch * image])?.download::<f32>()?;
        values.truncate(self.images * image);
        Ok(values)
    }

    /// The x_0 that the network saw in the images under way at `stage`, the last one that was done: `[N, H, W, C]`, clamped
    /// where the plan clamps. None without [`Sampler::with_predictions`].
    ///
    /// # Errors
    /// A stage that the plan does not have; what the device reports.
    pub fn predicted(&self, stage: usize) -> Result<Option<Vec<f32>>> {
        let Some(Kept { x, prediction }) = &self.state.kept else { return Ok(None) };
        let Some(stage) = self.plan.stages().get(stage) else {
            return Err(Error::shape("sampler", format!("stage {stage} of {}", self.stages())));
        };
        let (image, batch) = (self.image_len(), self.spec.batch);
        let (x, prediction) = (x.download::<f32>()?, prediction.download::<f32>()?);
        let guided = |at: usize| match self.copies {
            1 => f64::from(prediction[at]),
            _ => {
                let unlabelled = f64::from(prediction[batch * image + at]);
                stage.guidance * f64::from(prediction[at]) + (1.0 - stage.guidance) * unlabelled
            }
        };
        let x0 = |at: usize| {
            let raw = stage.inverse.x0_x * f64::from(x[at]) + stage.inverse.x0_pred * guided(at);
            raw.clamp(-stage.clip, stage.clip) as f32
        };
        Ok(Some((0..self.images * image).map(x0).collect()))
    }

    /// Puts another state `[N, H, W, C]` in the place of that of the images under way.
    ///
    /// # Errors
    /// [`Error::Shape`] for one of another length; what the device reports.
    pub fn set_state(&mut self, values: &[f32]) -> Result<()> {
        let (image, places) = (self.image_len(), self.spec.batch - self.images);
        if values.len() != self.images * image {
            let message = format!("a state of {} elements for {} images of {image}", values.len(), self.images);
            return Err(Error::shape("sampler", message));
        }
        let full: Vec<f32> = values.iter().copied().chain(std::iter::repeat_n(0.0, places * image)).collect();
        self.state.x.upload(&full.repeat(self.copies))
    }

    /// Brings a stage's words into the control buffer: on the device, without a wait.
    fn turn_to(&self, stage: usize) -> Result<()> {
        self.state.control.copy_from(&self.state.rows.part(stage * WORDS, [WORDS])?)
    }

    /// Does one stage of the plan, of images that were begun. On an accelerator it is only submitted: whoever asks for the state waits.
    ///
    /// # Errors
    /// A stage that the plan does not have; what the device reports.
    pub fn advance(&mut self, stage: usize) -> Result<()> {
        if stage >= self.stages() {
            return Err(Error::shape("sampler", format!("stage {stage} of {}", self.stages())));
        }
        self.turn_to(stage)?;
        let (context, model, state) = (&self.context, self.model.as_ref(), &self.state);
        let (parameters, seed, copies) = ((&*self.parameters, &self.prepared), self.spec.seed, self.copies);
        self.program.run(|| step(context, model, parameters, state, seed, copies))
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

    /// Elements of an image.
    fn image_len(&self) -> usize {
        self.state.x.len() / (self.copies * self.spec.batch)
    }
}

/// One stage: the time input of the control buffer's row, the prediction, the update.
fn step(
    context: &Context,
    model: &dyn Denoiser,
    (parameters, prepared): (&Parameters, &Rc<Prepared>),
    state: &State,
    seed: u64,
    copies: usize,
) -> Result<()> {
    let tape = Tape::inference(context).with_prepared(prepared);
    sampler_time(context, &state.time, &state.table, &state.control)?;
    let s = parameters.bind(&tape, None)?;
    let (x, time, labels) = (s.constant(&state.x), s.constant(&state.time), s.constant(&state.labels));
    let prediction = model.forward(&s, &x, &time, &labels)?;
    if let Some(kept) = &state.kept {
        kept.x.copy_from(&state.x)?;
        kept.prediction.copy_from(prediction.tensor())?;
    }
    let buffers = SamplerState {
        x: &state.x,
        prediction: prediction.tensor(),
        saved_state: state.saved_state.as_ref(),
        saved: state.saved.as_ref(),
        copies,
    };
    sampler_step(context, &buffers, &state.table, &state.control, seed)
}
