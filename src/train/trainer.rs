//! The trainer: a model, its optimizer state and its data on one device, and the programs that step it.
//!
//! A step is one program (gather, noise, forward, backward, clip, update, moving average), so one captured graph. With
//! gradient accumulation it is a program for the first batch, one for those between, and one for the last.

use std::rc::Rc;

use super::task::Task;
use crate::config::{Config, LrSchedule, OptimizerKind, Precision, TrainingConfig};
use crate::data::{Dataset, Split};
use crate::diffusion::{Batch, Denoiser, NoiseSchedule, Purpose, Sampler, SamplerSpec, SamplingConfig};
use crate::error::{Error, Result};
use crate::models::{self, Network};
use crate::nn::Parameters;
use crate::ops::adamw::{AdamW, AdamWState, adamw, gradient_norm, record};
use crate::ops::control::Control;
use crate::ops::gather::{Augment, Order};
use crate::tape::{Accumulate, Tape};
use crate::tensor::{Context, DType, Device, Program, Tensor};

/// Rows of the ring through which losses leave the device.
const RING: u64 = 256;

/// What one optimizer step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct StepMetrics {
    /// The step, 1 after the first.
    pub step: u64,
    /// Mean loss of the step's batches.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Means of the loss's terms, in the order of [`Trainer::loss_terms`].
    pub terms: Vec<f64>,
}

/// What a validation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// The mean loss; a classifier's without smoothing.
    pub loss: f64,
    /// A classifier's share of right answers.
    pub accuracy: Option<f64>,
}

/// What a step works on; all of it persistent.
struct State {
    context: Context,
    task: Task,
    parameters: Rc<Parameters>,
    gradients: Tensor,
    first: Tensor,
    second: Tensor,
    ema: Tensor,
    control: Tensor,
    statistics: Tensor,
    ring: Tensor,
    loss: Tensor,
    /// Means of the loss's terms over the last batch, where it has any.
    terms: Option<Tensor>,
    /// The gradient of the loss by itself.
    one: Tensor,
    training: Batch,
    validation: Option<Batch>,
    averaged: Rc<Parameters>,
    hyper: AdamW,
    gradient_clip: Option<f32>,
    scale: f32,
    seed: u64,
}

/// Trains a model: its optimizer state, its data and its programs on one device.
pub struct Trainer {
    config: Config,
    state: State,
    /// One program per role of a batch in its step: see [`Role`].
    programs: Vec<(Role, Program)>,
    validation: Option<Program>,
    images: usize,
    validation_images: usize,
    step: u64,
    drained: u64,
}

/// What a batch does besides adding its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Role {
    /// Overwrites the gradients.
    first: bool,
    /// Updates the weights.
    last: bool,
}

/// The sizes of a data set, all that planning needs.
#[derive(Clone, Copy, Debug)]
pub struct DataSizes {
    /// Training images.
    pub training: usize,
    /// Validation images.
    pub validation: usize,
}

impl Trainer {
    /// Builds the model, draws its weights, puts everything on `device` and plans the programs. The weights of a pretrained
    /// backbone are drawn too: [`train`](super::train()) puts those of its file in their place.
    ///
    /// # Errors
    /// [`Error::Config`] where configuration and data do not fit together; [`Error::OutOfMemory`].
    pub fn new(config: &Config, dataset: &Dataset, device: Device) -> Result<Self> {
        check_fit(config, dataset)?;
        let context = Context::new(device);
        let split = |split: Split| -> Result<(Tensor, Tensor)> {
            let count = dataset.split_len(split);
            let shape = [count, dataset.height(), dataset.width(), dataset.channels()];
            let images = context.tensor(dataset.split_images(split), shape)?;
            Ok((images, context.tensor(&dataset.split_labels_i32(split), [count])?))
        };
        let training = split(Split::Train)?;
        let held_out = dataset.split_len(Split::Validation) > 0;
        let validation = held_out.then(|| split(Split::Validation)).transpose()?;
        let trainer = Self::build(config, context, training, validation)?;
        trainer.state.parameters.initialise(config.training.seed)?;
        trainer.state.ema.copy_from(trainer.state.parameters.master())?;
        Ok(trainer)
    }

    /// The same in shape-only mode: programs are planned, nothing is allocated.
    pub fn plan(config: &Config, sizes: DataSizes) -> Result<Self> {
        let context = Context::shape_only();
        let (size, channels) = (config.model.image_size(), config.model.image_channels());
        let split = |count: usize| -> Result<(Tensor, Tensor)> {
            let images = context.persistent([count, size, size, channels], DType::U8)?;
            Ok((images, context.persistent([count], DType::I32)?))
        };
        let training = split(sizes.training)?;
        let validation = (sizes.validation > 0).then(|| split(sizes.validation)).transpose()?;
        Self::build(config, context.clone(), training, validation)
    }

    fn build(
        config: &Config,
        context: Context,
        training: (Tensor, Tensor),
        validation: Option<(Tensor, Tensor)>,
    ) -> Result<Self> {
        config.validate()?;
        let t = &config.training;
        let precision = match t.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        if precision == DType::BF16 && matches!(context.device(), Device::Cpu) && !context.is_shape_only() {
            return Err(Error::config(
                "training.precision",
                "bf16 is for accelerators, and this run is on the cpu",
                "set it to f32",
            ));
        }
        let (network, builder) = models::network(&config.model)?;
        let parameters = Rc::new(Parameters::new(&context, builder, precision)?);
        let ema = parameters.flat_zeros()?;
        let averaged = Rc::new(parameters.with_master(ema.clone())?);
        let task = Task::new(&context, config, network)?;
        let terms = task.terms().len();
        let batch = |(images, labels): (Tensor, Tensor), order: Order, augment: Augment| Batch {
            images,
            labels,
            size: t.batch_size,
            order,
            augment,
        };
        let augment = Augment { seed: t.seed, flip: config.data.flip, crop: config.data.crop };
        let images = training.1.len();
        let validation_images = validation.as_ref().map_or(0, |(_, labels)| labels.len());
        let state = State {
            gradients: parameters.flat_zeros()?,
            first: parameters.flat_zeros()?,
            second: parameters.flat_zeros()?,
            ema,
            control: Control::buffer(&context)?,
            statistics: context.zeros([4], DType::F32)?,
            ring: context.zeros([RING as usize, 2 + terms], DType::F32)?,
            terms: (terms > 0).then(|| context.zeros([terms], DType::F32)).transpose()?,
            loss: context.zeros([1], DType::F32)?,
            one: context.tensor(&[1f32], [1])?,
            training: batch(training, Order::Shuffled { seed: t.seed }, augment),
            validation: validation.map(|validation| batch(validation, Order::Sequential, Augment::default())),
            averaged,
            hyper: AdamW {
                beta1: t.beta1,
                beta2: t.beta2,
                epsilon: t.epsilon,
                weight_decay: t.weight_decay,
                decoupled: t.optimizer == OptimizerKind::Adamw,
            },
            gradient_clip: t.gradient_clip.map(|norm| norm as f32),
            scale: 1.0 / t.gradient_accumulation as f32,
            seed: t.seed,
            task,
            parameters,
            context: context.clone(),
        };
        let roles: &[(bool, bool)] = match t.gradient_accumulation {
            1 => &[(true, true)],
            2 => &[(true, false), (false, true)],
            _ => &[(true, false), (false, false), (false, true)],
        };
        let programs = roles
            .iter()
            .map(|&(first, last)| {
                let role = Role { first, last };
                Ok((role, Program::plan(&context, || state.batch(role))?))
            })
            .collect::<Result<_>>()?;
        let validation = match &state.validation {
            Some(batch) => Some(Program::plan(&context, || state.validate(batch))?),
            None => None,
        };
        let config = config.clone();
        Ok(Self { config, state, programs, validation, images, validation_images, step: 0, drained: 0 })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device's context.
    pub fn context(&self) -> &Context {
        &self.state.context
    }

    /// The network.
    pub fn network(&self) -> Network {
        self.state.task.network()
    }

    /// The network, where it is a denoiser.
    ///
    /// # Errors
    /// [`Error::Config`] for a classifier.
    fn denoiser(&self) -> Result<Rc<dyn Denoiser>> {
        match self.network() {
            Network::Denoiser(model) => Ok(model),
            Network::Classifier(_) => {
                Err(Error::config("model.kind", "a classifier draws nothing", "name a diffusion model"))
            }
        }
    }

    /// The weights that are trained.
    pub fn parameters(&self) -> &Rc<Parameters> {
        &self.state.parameters
    }

    /// The moving average of the weights. Call [`Trainer::refresh_average`] before using it in bf16.
    pub fn averaged(&self) -> &Rc<Parameters> {
        &self.state.averaged
    }

    /// Rounds the moving average anew for products in bf16.
    pub fn refresh_average(&self) -> Result<()> {
        self.state.averaged.refresh()
    }

    /// Flat optimizer state: first and second moments, moving average.
    pub(crate) fn optimizer_state(&self) -> [&Tensor; 3] {
        [&self.state.first, &self.state.second, &self.state.ema]
    }

    /// What the loss has learnt of itself, by name.
    pub(crate) fn objective_state(&self) -> Vec<(&'static str, &Tensor)> {
        self.state.task.state()
    }

    /// The terms of the loss, by name; none where it is the mean squared error. A classifier's is its accuracy.
    pub fn loss_terms(&self) -> &'static [&'static str] {
        self.state.task.terms()
    }

    /// `count` validation images, or fewer where there are not as many, spread over the set: pixels `[N, H, W, C]`, and labels.
    pub(super) fn held_out(&self, count: usize) -> Result<(Vec<u8>, Vec<i32>)> {
        let Some(batch) = &self.state.validation else { return Ok((Vec::new(), Vec::new())) };
        let count = count.min(self.validation_images);
        let [_, h, w, c] = *batch.images.sizes() else { unreachable!("images have four dimensions") };
        let all = batch.labels.download::<i32>()?;
        let places = || (0..count).map(|number| number * self.validation_images / count);
        let image = |place: usize| batch.images.part(place * h * w * c, [h, w, c])?.download::<u8>();
        let images = places().map(image).collect::<Result<Vec<_>>>()?.concat();
        Ok((images, places().map(|place| all[place]).collect()))
    }

    /// Optimizer steps done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Puts the trainer where a checkpoint left it.
    pub(crate) fn set_step_count(&mut self, step: u64) {
        (self.step, self.drained) = (step, step);
    }

    /// Steps of an epoch; only full batches are taken.
    pub fn steps_per_epoch(&self) -> u64 {
        steps_per_epoch(&self.config.training, self.images)
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.config.training.total_steps(self.steps_per_epoch())
    }

    /// Images that one step sees.
    pub fn images_per_step(&self) -> usize {
        self.config.training.batch_size * self.config.training.gradient_accumulation
    }

    /// The planned programs by name: memory and cost.
    pub fn programs(&self) -> impl Iterator<Item = (&'static str, &Program)> {
        let training = self.programs.iter().map(|(role, program)| {
            let name = match (role.first, role.last) {
                (true, true) => "training step",
                (true, false) => "first batch of a step",
                (false, false) => "further batch of a step",
                (false, true) => "last batch of a step",
            };
            (name, program)
        });
        training.chain(self.validation.iter().map(|program| ("validation batch", program)))
    }

    /// Turns the capture of steps off (or on), for comparison and for debugging: the bits are the same either way.
    pub fn set_graphs(&mut self, graphs: bool) {
        self.programs.iter_mut().for_each(|(_, program)| program.set_graphs(graphs));
        self.validation.iter_mut().for_each(|program| program.set_graphs(graphs));
    }

    /// Does one optimizer step. Its metrics come out of [`Trainer::drain_metrics`].
    pub fn train_step(&mut self) -> Result<()> {
        if self.step - self.drained >= RING {
            return Err(Error::shape("trainer", format!("{RING} steps without reading their metrics")));
        }
        let t = &self.config.training;
        let accumulation = t.gradient_accumulation as u64;
        let number = self.step + 1;
        let within = self.step % self.steps_per_epoch();
        for micro in 0..accumulation {
            let decay = if t.ema_warmup {
                t.ema_decay.min((1.0 + number as f64) / (10.0 + number as f64))
            } else {
                t.ema_decay
            };
            let control = Control {
                step: self.step as u32,
                epoch: (self.step / self.steps_per_epoch()) as u32,
                cursor: ((within * accumulation + micro) * t.batch_size as u64) as u32,
                first_item: (micro * t.batch_size as u64) as u32,
                learning_rate: learning_rate(t, number, self.total_steps()) as f32,
                first_correction: (1.0 / (1.0 - t.beta1.powf(number as f64))) as f32,
                second_correction: (1.0 / (1.0 - t.beta2.powf(number as f64))) as f32,
                ema_decay: decay as f32,
                row: (self.step % RING) as u32,
                micro: micro as u32,
                ..Control::default()
            };
            self.state.control.upload(&control.words())?;
            let role = Role { first: micro == 0, last: micro + 1 == accumulation };
            let state = &self.state;
            let (_, program) = self
                .programs
                .iter_mut()
                .find(|(r, _)| *r == role)
                .ok_or_else(|| Error::shape("trainer", "a step without its program"))?;
            program.run(|| state.batch(role))?;
        }
        self.step = number;
        Ok(())
    }

    /// Whether the ring is full, so that metrics have to be drained before the next step.
    pub fn must_drain(&self) -> bool {
        self.step - self.drained >= RING
    }

    /// The metrics of the steps since the last call; waits for them.
    pub fn drain_metrics(&mut self) -> Result<Vec<StepMetrics>> {
        if self.drained == self.step {
            return Ok(Vec::new());
        }
        let ring = self.state.ring.download::<f32>()?;
        let width = 2 + self.loss_terms().len();
        // The device adds the terms up over the step's batches; right answers it counts.
        let batches = self.config.training.gradient_accumulation as f64 * self.items_of_a_term();
        let metrics = (self.drained..self.step)
            .map(|step| {
                let row = &ring[(step % RING) as usize * width..][..width];
                let terms = row[2..].iter().map(|sum| f64::from(*sum) / batches).collect();
                StepMetrics { step: step + 1, loss: f64::from(row[0]), gradient_norm: f64::from(row[1]), terms }
            })
            .collect();
        self.drained = self.step;
        Ok(metrics)
    }

    /// What the terms of a batch are divided by, to be means.
    fn items_of_a_term(&self) -> f64 {
        match self.state.task {
            Task::Denoise { .. } => 1.0,
            Task::Classify { .. } => self.config.training.batch_size as f64,
        }
    }

    /// The mean loss of the averaged weights over the validation images, as many as full batches take, with the same noise
    /// each time; and how many a classifier tells. None where the data set holds none out.
    pub fn validate(&mut self) -> Result<Option<Validation>> {
        let items = self.items_of_a_term();
        let (Some(program), Some(batch)) = (&mut self.validation, &self.state.validation) else { return Ok(None) };
        self.state.averaged.refresh()?;
        let all = (self.validation_images / batch.size).max(1);
        let batches = self.config.training.validation_batches.map_or(all, |most| most.min(all));
        let (mut sum, mut correct) = (0.0, 0.0);
        let classifies = matches!(self.state.task, Task::Classify { .. });
        // Spread over the set, whose images may be in the order of their classes.
        let stride = self.validation_images / batches;
        for number in 0..batches {
            let (cursor, first_item) = ((number * stride) as u32, (number * batch.size) as u32);
            let control = Control { cursor, first_item, ..Control::default() };
            self.state.control.upload(&control.words())?;
            let state = &self.state;
            program.run(|| state.validate(batch))?;
            sum += self.state.loss.download::<f32>()?[0] as f64;
            if let (true, Some(terms)) = (classifies, &self.state.terms) {
                correct += f64::from(terms.download::<f32>()?[0]);
            }
        }
        let accuracy = classifies.then_some(correct / (batches as f64 * items));
        Ok(Some(Validation { loss: sum / batches as f64, accuracy }))
    }

    /// A sampler over the averaged weights.
    ///
    /// # Errors
    /// [`Error::Config`] for a classifier, and those of [`Sampler::new`].
    pub fn sampler(&self, sampling: &SamplingConfig, batch: usize, seed: u64) -> Result<Sampler> {
        self.state.averaged.refresh()?;
        let spec = SamplerSpec {
            sampling: sampling.clone(),
            prediction: self.config.diffusion.prediction,
            null_label: self.config.model.null_label(),
            batch,
            seed,
        };
        let noise = NoiseSchedule::new(&self.config.diffusion)?;
        Sampler::new(&self.state.context, self.denoiser()?, self.state.averaged.clone(), &noise, spec)
    }
}

impl State {
    /// One batch of a step.
    fn batch(&self, role: Role) -> Result<()> {
        let tape = Tape::new(&self.context);
        let mode = if role.first { Accumulate::Write } else { Accumulate::Add };
        let s = self.parameters.bind(&tape, Some((&self.gradients, mode)))?.in_training(&self.control, self.seed);
        let loss = self.task.loss(Purpose::Training, &s, &self.training, &self.control, self.scale)?;
        self.loss.copy_from(loss.mean.tensor())?;
        if let (Some(kept), Some(terms)) = (&self.terms, &loss.terms) {
            kept.copy_from(terms)?;
        }
        tape.backward(&loss.mean, self.one.clone())?;
        drop((s, loss));
        drop(tape);
        if role.last {
            gradient_norm(&self.context, &self.gradients, &self.statistics, self.gradient_clip)?;
            let state = AdamWState {
                parameters: self.parameters.master(),
                compute: self.parameters.compute(),
                gradients: &self.gradients,
                first: &self.first,
                second: &self.second,
                ema: Some(&self.ema),
            };
            adamw(&self.context, &state, &self.control, &self.statistics, self.hyper)?;
        }
        record(&self.context, &self.ring, &self.loss, self.terms.as_ref(), &self.statistics, &self.control)
    }

    fn validate(&self, batch: &Batch) -> Result<()> {
        let tape = Tape::inference(&self.context);
        let s = self.averaged.bind(&tape, None)?;
        let loss = self.task.loss(Purpose::Validation, &s, batch, &self.control, 1.0)?;
        if let (Task::Classify { .. }, Some(kept), Some(terms)) = (&self.task, &self.terms, &loss.terms) {
            kept.copy_from(terms)?;
        }
        self.loss.copy_from(loss.mean.tensor())
    }
}

/// Steps of an epoch of `images` images.
pub fn steps_per_epoch(training: &TrainingConfig, images: usize) -> u64 {
    (images / (training.batch_size * training.gradient_accumulation)).max(1) as u64
}

/// The learning rate of update `number` (1 for the first) of `total`: linear warm-up to the peak at update
/// `warmup_steps`, then the schedule, whose last update has the lowest rate.
pub fn learning_rate(training: &TrainingConfig, number: u64, total: u64) -> f64 {
    let peak = training.learning_rate;
    if number <= training.warmup_steps {
        return peak * number as f64 / training.warmup_steps as f64;
    }
    let rest = total.saturating_sub(training.warmup_steps).max(1) as f64;
    let progress = ((number - training.warmup_steps) as f64 / rest).min(1.0);
    let low = training.min_learning_rate;
    match training.lr_schedule {
        LrSchedule::Constant => peak,
        LrSchedule::Linear => peak + (low - peak) * progress,
        LrSchedule::Cosine => low + (peak - low) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

/// A model and a data set that cannot go together are told apart before anything is allocated.
fn check_fit(config: &Config, dataset: &Dataset) -> Result<()> {
    let (size, channels) = (config.model.image_size(), config.model.image_channels());
    let file = dataset.path().map_or_else(|| dataset.name().to_string(), |path| path.display().to_string());
    if (dataset.height(), dataset.width(), dataset.channels()) != (size, size, channels) {
        return Err(Error::config(
            file,
            format!(
                "its images are {}x{}x{}, the model's {size}x{size}x{channels}",
                dataset.height(),
                dataset.width(),
                dataset.channels()
            ),
            "set model.image_size and model.image_channels, or name another data set with --data",
        ));
    }
    // A model without classes takes no labels.
    let (classes, known) = (dataset.class_names().len(), config.model.num_classes());
    if known > 0 && classes > known {
        return Err(Error::config(
            "model.num_classes",
            format!("{classes} classes in {file}, {known} in the model"),
            format!("set it to {classes}"),
        ));
    }
    if dataset.split_len(Split::Train) == 0 {
        return Err(Error::config(file, "it has no training images", "import a set with a training split"));
    }
    Ok(())
}
