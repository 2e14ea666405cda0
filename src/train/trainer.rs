//! The trainer: a task, its optimizer state and its data on one device, with the programs of a step.

use std::rc::Rc;
use std::sync::Arc;

use super::feed::{Feed, Feeds};
use super::follow::Command;
use super::pace::Pace;
use super::ranks;
use super::residency::Residency;
use super::step::{RING, Role, Step, takes};
use super::task::{Task, Terms};
use super::together::{Exchange, Records};
use crate::cluster::{Alone, Collective, Moving};
use crate::config::{CommunicationDtype, Config};
use crate::data::{Dataset, Split};
use crate::diffusion::{Denoiser, NoiseSchedule, Sampler, SamplerSpec, SamplingConfig};
use crate::error::{Error, Result};
use crate::models::Network;
use crate::nn::Parameters;
use crate::ops::control::Control;
use crate::tensor::{Context, Device, Program, Tensor};

/// One optimizer step's report.
#[derive(Clone, Debug, PartialEq)]
pub struct StepMetrics {
    /// The step, 1 after the first.
    pub step: u64,
    /// Mean loss over the step's batches.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Means of the loss's terms, in the order of [`Trainer::loss_terms`].
    pub terms: Vec<f64>,
}

/// The result of a validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// The mean loss; for a classifier without label smoothing.
    pub loss: f64,
    /// A classifier's accuracy.
    pub accuracy: Option<f64>,
}

/// The settings and the device of a trainer.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The configuration. [`Trainer::new`] replaces its `model` section with the task's, and settles the precision.
    pub config: Config,
    /// The device.
    pub device: Device,
    /// The placement of the images; None decides by the device and `data.device_memory`, without checking free memory.
    pub residency: Option<Residency>,
    /// The processes that train together, each with a trainer of the same recipe; by default only this one.
    pub team: Arc<dyn Collective>,
}

impl Recipe {
    /// With this configuration, on this device.
    pub fn new(config: &Config, device: Device) -> Self {
        Self { config: config.clone(), device, residency: None, team: Arc::new(Alone::default()) }
    }
}

/// The sizes of a data set, which suffice for planning.
#[derive(Clone, Copy, Debug)]
pub struct DataSizes {
    /// Training images.
    pub training: usize,
    /// Validation images.
    pub validation: usize,
}

/// Trains a [`Task`]: its optimizer state, its data and its programs on one device.
///
/// ```
/// use engine::config::Config;
/// use engine::data::shapes;
/// use engine::tensor::Device;
/// use engine::train::{Recipe, Trainer};
///
/// let mut config = Config::preset("quickstart")?;
/// for assignment in ["model.hidden_dim=16", "model.depth=1", "model.patch_size=8", "training.batch_size=4"] {
///     config.set(assignment)?;
/// }
/// let mut trainer = Trainer::new(&config.model, &shapes(0, 40), &Recipe::new(&config, Device::Cpu))?;
/// for _ in 0..3 {
///     trainer.train_step()?;
/// }
/// assert_eq!(trainer.drain_metrics()?.len(), 3);
/// # Ok::<(), engine::Error>(())
/// ```
pub struct Trainer {
    config: Config,
    step: Step,
    /// One program per role of a batch in its step.
    programs: Vec<(Role, Program)>,
    validation: Option<Program>,
    /// The work after all batches of a step, if it is a separate program.
    finish: Option<Program>,
    team: Arc<dyn Collective>,
    pace: Pace,
    done: u64,
    drained: u64,
}

impl Trainer {
    /// Builds the task's network, initializes its weights, moves everything to the recipe's device and plans the programs. The
    /// weights of a pretrained backbone are initialized too: [`train`](super::train()) then loads those of its file.
    ///
    /// A precision of `auto` is what it means on rank 0's device, which tells it: the processes of a team call this together.
    ///
    /// # Errors
    /// [`Error::Config`] if task, data and configuration do not match; [`Error::OutOfMemory`].
    pub fn new(task: &dyn Task, data: &Dataset, recipe: &Recipe) -> Result<Self> {
        let mut config = Config { model: task.model(), ..recipe.config.clone() };
        let asked = config.training.precision;
        config.training.precision = ranks::settled(recipe.team.as_ref(), asked, &recipe.device)?;
        check_fit(&config, data)?;
        let context = config.training.precision.context(&recipe.device);
        let (training, validation) = takes(&config);
        let shape = [data.height(), data.width(), data.channels()];
        let chosen = || Residency::of(&recipe.device, data, config.data.device_memory);
        let feeds = Feeds::new(&context, recipe.residency.unwrap_or_else(chosen), shape, training.size)?;
        let training = feeds.of(data, Split::Train, training)?.ok_or_else(none_to_train_on)?;
        let validation = feeds.of(data, Split::Validation, validation)?;
        let trainer = Self::build(task, config, &context, (training, validation), recipe.team.clone())?;
        let seed = trainer.config.training.seed;
        trainer.step.parameters.initialise(seed)?;
        trainer.step.ema.copy_from(trainer.step.parameters.master())?;
        Ok(trainer)
    }

    /// As [`Trainer::new`] in shape-only mode: programs are planned, nothing is allocated. A precision of `auto` is planned as
    /// f32: settle it first if the device is known.
    ///
    /// # Errors
    /// [`Error::Config`] if task and configuration do not match.
    pub fn plan(task: &dyn Task, config: &Config, sizes: DataSizes) -> Result<Self> {
        Self::plan_with(task, config, sizes, Residency::Resident)
    }

    /// As [`Trainer::plan`], with another placement of the images.
    ///
    /// # Errors
    /// As [`Trainer::plan`].
    pub fn plan_with(task: &dyn Task, config: &Config, sizes: DataSizes, residency: Residency) -> Result<Self> {
        let mut config = Config { model: task.model(), ..config.clone() };
        config.training.precision = config.training.precision.settled(false);
        let (context, shape) = (Context::shape_only(), config.model.image_shape());
        let (training, validation) = takes(&config);
        let feeds = Feeds::new(&context, residency, shape, training.size)?;
        let training = feeds.planned(sizes.training, training)?.ok_or_else(none_to_train_on)?;
        let validation = feeds.planned(sizes.validation, validation)?;
        Self::build(task, config, &context, (training, validation), Arc::new(Alone::default()))
    }

    fn build(
        task: &dyn Task,
        config: Config,
        context: &Context,
        feeds: (Feed, Option<Feed>),
        team: Arc<dyn Collective>,
    ) -> Result<Self> {
        config.validate()?;
        let pace = Pace::new(context, &config.training, feeds.0.len(), RING)?;
        let step = Step::new(context, &config, task.build(context, &config)?, feeds, team.as_ref())?;
        step.warm_up()?;
        let programs = step
            .roles()
            .into_iter()
            .map(|role| Ok((role, Program::plan(context, || step.train(role))?)))
            .collect::<Result<_>>()?;
        let validation = match &step.validation {
            Some(feed) => Some(Program::plan(context, || step.validate(feed))?),
            None => None,
        };
        let finish = step.finishes_apart().then(|| Program::plan(context, || step.finish())).transpose()?;
        Ok(Self { config, step, programs, validation, finish, team, pace, done: 0, drained: 0 })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device's context.
    pub fn context(&self) -> &Context {
        &self.step.context
    }

    /// The network, if it can make pictures.
    pub fn network(&self) -> Option<Network> {
        self.step.criterion.network()
    }

    /// The network, if it is a denoiser.
    fn denoiser(&self) -> Result<Rc<dyn Denoiser>> {
        match self.network() {
            Some(Network::Denoiser(model)) => Ok(model),
            Some(Network::Classifier(_)) => {
                Err(Error::config("model.kind", "a classifier draws nothing", "give a diffusion model"))
            }
            None => {
                let message = "this network is not a denoiser, so it draws nothing";
                Err(Error::config("model.kind", message, "return a denoiser from its criterion's network()"))
            }
        }
    }

    /// The trained weights.
    pub fn parameters(&self) -> &Rc<Parameters> {
        &self.step.parameters
    }

    /// The gradient of the last step `[trained_len]`, f32, flat like [`Parameters::master`]: before clipping, and with gradient
    /// accumulation the sum over the step's batches.
    pub fn gradients(&self) -> &Tensor {
        &self.step.gradients
    }

    /// The moving average of the weights. Call [`Trainer::refresh_average`] before using it in bf16.
    pub fn averaged(&self) -> &Rc<Parameters> {
        &self.step.averaged
    }

    /// Updates the bf16 copy of the moving average.
    ///
    /// # Errors
    /// Those of the device.
    pub fn refresh_average(&self) -> Result<()> {
        self.step.averaged.refresh()
    }

    /// Flat optimizer state: first and second moments, moving average.
    pub(crate) fn optimizer_state(&self) -> [&Tensor; 3] {
        [&self.step.first, &self.step.second, &self.step.ema]
    }

    /// The state of the loss, by name.
    pub(crate) fn objective_state(&self) -> Vec<(&'static str, &Tensor)> {
        self.step.criterion.state()
    }

    /// The terms of the loss, by name; none for the mean squared error. A classifier's is its accuracy.
    pub fn loss_terms(&self) -> &'static [&'static str] {
        self.step.criterion.terms().names()
    }

    /// Whether the loss counts correct predictions.
    pub(super) fn classifies(&self) -> bool {
        self.step.criterion.terms() == Terms::RightAnswers
    }

    /// `count` validation images, or all if there are fewer, spread over the set: pixels `[N, H, W, C]`, and labels.
    pub(super) fn held_out(&self, count: usize) -> Result<(Vec<u8>, Vec<i32>)> {
        self.step.validation.as_ref().map_or_else(|| Ok(Default::default()), |feed| feed.spread(count))
    }

    /// The training data; None when planning.
    pub(super) fn dataset(&self) -> Option<&Dataset> {
        self.step.training.dataset()
    }

    /// Optimizer steps done.
    pub fn step_count(&self) -> u64 {
        self.done
    }

    /// Restores the trainer from a checkpoint.
    pub(crate) fn set_step_count(&mut self, step: u64) {
        (self.done, self.drained) = (step, step);
    }

    /// Steps per epoch; only full batches are used.
    pub fn steps_per_epoch(&self) -> u64 {
        self.pace.steps_per_epoch()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.pace.total_steps()
    }

    /// Images per step, over all processes.
    pub fn images_per_step(&self) -> usize {
        self.config.training.batch_size * self.config.training.micro_batches()
    }

    /// How the processes exchange gradients, as text.
    pub fn exchange(&self) -> String {
        let brief = self.config.training.communication_dtype == CommunicationDtype::Bf16;
        let described = self.step.exchange.describe(self.team.as_ref());
        match &self.step.buckets {
            Some(buckets) if brief => format!("{described} in {}", buckets.dtype()),
            None if brief => format!("{described} in f32 (training.communication_dtype is for NCCL)"),
            _ => described,
        }
    }

    /// The processes that train together.
    pub fn team(&self) -> &Arc<dyn Collective> {
        &self.team
    }

    /// The planned programs by name: memory and cost.
    pub fn programs(&self) -> impl Iterator<Item = (&'static str, &Program)> {
        let training = self.programs.iter().map(|(role, program)| (role.name(), program));
        let finish = self.finish.iter().map(|program| ("end of a step", program));
        training.chain(finish).chain(self.validation.iter().map(|program| ("validation batch", program)))
    }

    /// Turns the capture of steps off or on, for comparison and debugging: the bits are the same.
    pub fn set_graphs(&mut self, graphs: bool) {
        self.programs.iter_mut().for_each(|(_, program)| program.set_graphs(graphs));
        self.validation.iter_mut().chain(&mut self.finish).for_each(|program| program.set_graphs(graphs));
    }

    /// Runs one optimizer step. [`Trainer::drain_metrics`] returns its metrics. If several processes train together, each does its
    /// share; rank 0 sends commands to those in [`Trainer::follow`].
    ///
    /// # Errors
    /// [`Error::Shape`] if [`Trainer::must_drain`]; those of the device; [`Error::Cluster`] if another process is gone.
    pub fn train_step(&mut self) -> Result<()> {
        if self.must_drain() {
            return Err(Error::shape("trainer", format!("{RING} steps without reading their metrics")));
        }
        self.tell(Command::Step)?;
        if self.step.shared {
            self.shared_step()?;
        } else {
            for micro in 0..self.step.share.all {
                self.batch(micro, Role::of(micro as u64, self.step.share.all as u64))?;
                if let Some(records) = &self.step.records {
                    records.after_batch(&self.step, micro)?;
                }
            }
            self.finish()?;
        }
        self.done += 1;
        Ok(())
    }

    /// Runs batch `micro` of the current step.
    fn batch(&mut self, micro: usize, role: Role) -> Result<()> {
        self.team.go_on(Moving::Alone);
        self.step.training.send(&self.pace.control(self.done, micro as u64))?;
        self.pace.set(&self.step.control, self.done, micro as u64)?;
        let step = &self.step;
        let (_, program) = self
            .programs
            .iter_mut()
            .find(|(r, _)| *r == role)
            .ok_or_else(|| Error::shape("trainer", "a step without its program"))?;
        program.run(|| step.train(role))
    }

    fn finish(&mut self) -> Result<()> {
        let (Some(program), step) = (&mut self.finish, &self.step) else { return Ok(()) };
        program.run(|| step.finish())
    }

    /// A step shared with other processes.
    fn shared_step(&mut self) -> Result<()> {
        let share = self.step.share;
        self.records()?.begin()?;
        for local in 0..share.count {
            let role = self.step.role(local);
            self.records()?.before_batch()?;
            self.batch(share.first + local, role)?;
            if role.last {
                // Its program has already done the rest.
                break;
            }
            self.records()?.after_batch(&self.step, share.first + local)?;
            if self.step.buckets.is_none() && (local + 1).is_multiple_of(share.in_a_row) {
                self.records()?.after_shard(&self.step.gradients, local / share.in_a_row)?;
            }
        }
        if self.step.exchange != Exchange::Devices {
            self.records()?.exchange(self.team.as_ref(), &self.step.gradients)?;
        }
        self.finish()?;
        // In order, as on a single process.
        for micro in 0..share.all {
            self.pace.set(&self.step.control, self.done, micro as u64)?;
            self.records()?.recall(&self.step, micro)?;
            self.step.record()?;
        }
        Ok(())
    }

    fn records(&self) -> Result<&Records> {
        self.step.records.as_ref().ok_or_else(|| Error::shape("trainer", "a shared step without its records"))
    }

    /// Only rank 0's metrics are read.
    pub(super) fn pass_over_metrics(&mut self) {
        self.drained = self.done;
    }

    /// Whether the ring is full, so that metrics must be drained before the next step.
    pub fn must_drain(&self) -> bool {
        self.done - self.drained >= RING
    }

    /// The metrics of the steps since the last call; waits for them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn drain_metrics(&mut self) -> Result<Vec<StepMetrics>> {
        if self.drained == self.done {
            return Ok(Vec::new());
        }
        let ring = self.step.ring.download::<f32>()?;
        let terms = self.step.criterion.terms();
        let width = 2 + terms.names().len();
        // The device sums the terms over the step's batches; correct predictions are counts.
        let batches = self.step.share.all as f64 * terms.items(self.config.training.batch_size);
        let metrics = (self.drained..self.done)
            .map(|step| {
                let row = &ring[(step % RING) as usize * width..][..width];
                let terms = row[2..].iter().map(|sum| f64::from(*sum) / batches).collect();
                StepMetrics { step: step + 1, loss: f64::from(row[0]), gradient_norm: f64::from(row[1]), terms }
            })
            .collect();
        self.drained = self.done;
        Ok(metrics)
    }

    /// The mean loss of the averaged weights over the validation images, in full batches, with the same noise each time; and a
    /// classifier's accuracy. None if the data set has no validation images. Processes share the batches.
    ///
    /// # Errors
    /// Those of the device.
    pub fn validate(&mut self) -> Result<Option<Validation>> {
        self.tell(Command::Validate)?;
        let (Some(program), Some(feed)) = (&mut self.validation, &self.step.validation) else { return Ok(None) };
        self.step.averaged.refresh()?;
        let all = (feed.len() / feed.batch_size()).max(1);
        let batches = self.config.training.validation_batches.map_or(all, |most| most.min(all));
        let (rank, ranks) = (self.team.rank(), self.team.ranks());
        let mut found = vec![[0f32; 2]; batches.div_ceil(ranks)];
        let terms = self.step.criterion.terms();
        let classifies = terms == Terms::RightAnswers;
        // Spread over the set, whose images may be sorted by class.
        let stride = feed.len() / batches;
        for number in (rank..batches).step_by(ranks) {
            self.team.go_on(Moving::Alone);
            let (cursor, first_item) = ((number * stride) as u32, (number * feed.batch_size()) as u32);
            let control = Control { cursor, first_item, ..Control::default() };
            feed.send(&control)?;
            self.step.control.upload(&feed.found_by(control).words())?;
            let step = &self.step;
            program.run(|| step.validate(feed))?;
            let found = &mut found[number / ranks];
            found[0] = self.step.loss.download::<f32>()?[0];
            if let (true, Some(terms)) = (classifies, &self.step.terms) {
                found[1] = terms.download::<f32>()?[0];
            }
        }
        let mut all = vec![[0f32; 2]; found.len() * ranks];
        self.team.gather(bytemuck::cast_slice(&found), bytemuck::cast_slice_mut(&mut all))?;
        // In the order of the batches, whichever process computed them.
        let (mut sum, mut correct) = (0.0, 0.0);
        for number in 0..batches {
            let [loss, right] = all[number % ranks * found.len() + number / ranks];
            (sum, correct) = (sum + f64::from(loss), correct + f64::from(right));
        }
        let accuracy = classifies.then_some(correct / (batches as f64 * terms.items(feed.batch_size())));
        Ok(Some(Validation { loss: sum / batches as f64, accuracy }))
    }

    /// Copies rank 0's state to the trainers of all processes: weights, optimizer state, step.
    ///
    /// # Errors
    /// [`Error::Cluster`] if another process is gone; those of the device.
    pub fn share_state(&mut self) -> Result<()> {
        if self.team.ranks() == 1 {
            return Ok(());
        }
        let team = self.team.clone();
        let mut weights = self.parameters().download()?;
        team.broadcast(bytemuck::cast_slice_mut(&mut weights), 0)?;
        self.parameters().set_flat(&weights)?;
        let objective = self.objective_state().into_iter().map(|(_, state)| state);
        for state in self.optimizer_state().into_iter().chain(objective) {
            state.change::<f32>(|values| team.broadcast(bytemuck::cast_slice_mut(values), 0))?;
        }
        let mut step = self.done.to_le_bytes();
        team.broadcast(&mut step, 0)?;
        self.set_step_count(u64::from_le_bytes(step));
        Ok(())
    }

    /// A sampler with the averaged weights.
    ///
    /// # Errors
    /// [`Error::Config`] for a network that is not a denoiser, and those of [`Sampler::new`].
    pub fn sampler(&self, sampling: &SamplingConfig, batch: usize, seed: u64) -> Result<Sampler> {
        self.step.averaged.refresh()?;
        let spec = SamplerSpec {
            sampling: sampling.clone(),
            prediction: self.config.diffusion.prediction,
            null_label: self.config.model.null_label(),
            batch,
            seed,
        };
        let noise = NoiseSchedule::new(&self.config.diffusion)?;
        Sampler::new(&self.step.context, self.denoiser()?, self.step.averaged.clone(), &noise, spec)
    }
}

fn none_to_train_on() -> Error {
    Error::config("data", "there are no training images", "give a set that has some")
}

/// Refuses a model and a data set that do not match, before anything is allocated.
fn check_fit(config: &Config, dataset: &Dataset) -> Result<()> {
    let (size, channels) = (config.model.image_size(), config.model.image_channels());
    let file = dataset.path().map_or_else(|| dataset.name().to_string(), |path| path.display().to_string());
    if (dataset.size(), dataset.channels()) != (size, channels) {
        return Err(Error::config(
            file,
            format!(
                "its images are {}, the model's {}",
                dataset.size().with_channels(dataset.channels()),
                size.with_channels(channels)
            ),
            "set model.image_size and model.image_channels, or give another data set with `data`",
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
