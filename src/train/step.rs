//! The programs of a trainer: a batch of a training step, and one of validation.
//!
//! A step is one program (batch, forward, backward, clip, update, moving average), so one captured graph. With gradient
//! accumulation there is a program for the first batch, one for those between, and one for the last. If the devices of several
//! processes exchange gradients, the last batch's program does so: each bucket is reduced during the backward pass of earlier
//! layers. If the hosts exchange, and with shards, the update is a separate program.

use std::rc::Rc;

use super::buckets::Buckets;
use super::feed::{Feed, Take};
use super::task::{Criterion, Pass, Terms};
use super::together::{Exchange, Records, Share};
use crate::cluster::Collective;
use crate::config::{CommunicationDtype, Config, OptimizerKind, TrainingConfig};
use crate::diffusion::{Loss, LossMode};
use crate::error::{Error, Result};
use crate::nn::{Builder, Parameters};
use crate::ops::adamw::{AdamW, AdamWState, adamw, gradient_norm, record};
use crate::ops::assemble_batch::{Augment, Order};
use crate::ops::control::Control;
use crate::tape::{Accumulate, Tape};
use crate::tensor::{Context, DType, Tensor};

/// Rows of the ring buffer for losses on the device.
pub(super) const RING: u64 = 256;

/// The role of a batch in its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Role {
    /// Overwrites the gradients.
    pub first: bool,
    /// Updates the weights.
    pub last: bool,
}

impl Role {
    /// The role of batch `micro` of `accumulation`.
    pub fn of(micro: u64, accumulation: u64) -> Self {
        Self { first: micro == 0, last: micro + 1 == accumulation }
    }

    /// The roles of a step's batches.
    pub fn all(accumulation: usize) -> Vec<Self> {
        // A first, a middle and a last batch; fewer if a step has fewer.
        let mut roles: Vec<Self> =
            (0..accumulation as u64).map(|micro| Self::of(micro, accumulation as u64)).take(2).collect();
        if accumulation > 2 {
            roles.push(Self { first: false, last: true });
        }
        roles
    }

    /// The roles of batches that are accumulated, this many in a row, before a separate update.
    pub fn shared(in_a_row: usize) -> Vec<Self> {
        let all = [Self { first: true, last: false }, Self { first: false, last: false }];
        all[..in_a_row.min(2)].to_vec()
    }

    /// The name of the program.
    pub fn name(self) -> &'static str {
        match (self.first, self.last) {
            (true, true) => "training step",
            (true, false) => "first batch of a step",
            (false, false) => "further batch of a step",
            (false, true) => "last batch of a step",
        }
    }
}

/// How training and validation batches are taken from their splits.
pub(super) fn takes(config: &Config) -> (Take, Take) {
    let t = &config.training;
    let (size, augment) = (t.batch_size, Augment { seed: t.seed, flip: config.data.flip, crop: config.data.crop });
    (
        Take { size, order: Order::Shuffled { seed: t.seed }, augment },
        Take { size, order: Order::Sequential, augment: Augment::default() },
    )
}

/// All tensors of a step; all of them persistent.
pub(super) struct Step {
    pub context: Context,
    pub criterion: Box<dyn Criterion>,
    pub parameters: Rc<Parameters>,
    /// The moving average of the weights.
    pub averaged: Rc<Parameters>,
    pub gradients: Tensor,
    pub first: Tensor,
    pub second: Tensor,
    pub ema: Tensor,
    pub control: Tensor,
    statistics: Tensor,
    pub ring: Tensor,
    pub loss: Tensor,
    /// The loss terms of the last batch, if any, where batches are combined or validated.
    pub terms: Option<Tensor>,
    /// The items' losses and bins of the last batch, if the loss learns from all batches of a step.
    pub items: Option<(Tensor, Tensor)>,
    /// The records of the batches of a step, if they are combined.
    pub records: Option<Records>,
    /// The batches of a step that this process computes.
    pub share: Share,
    /// Whether the update waits for other processes, or for other shards.
    pub shared: bool,
    /// How the processes exchange.
    pub exchange: Exchange,
    /// The gradient buckets, if the devices reduce them within the last batch's program.
    pub buckets: Option<Buckets>,
    /// The gradient of the loss with respect to itself.
    one: Tensor,
    pub training: Feed,
    pub validation: Option<Feed>,
    hyper: AdamW,
    gradient_clip: Option<f32>,
    scale: f32,
    seed: u64,
}

impl Step {
    pub fn new(
        context: &Context,
        config: &Config,
        (criterion, builder): (Box<dyn Criterion>, Builder),
        (training, validation): (Feed, Option<Feed>),
        team: &dyn Collective,
    ) -> Result<Self> {
        let t = &config.training;
        let ranks = team.ranks();
        let share = Share::new(team.rank(), ranks, t.micro_batches(), t.shards)?;
        let exchange = Exchange::of(context, team)?;
        let shared = ranks > 1 || t.shards.is_some();
        let parameters = Rc::new(Parameters::new(context, builder, config.training.precision.dtype())?);
        let ema = parameters.flat_zeros()?;
        let averaged = Rc::new(parameters.with_master(ema.clone())?);
        let terms = criterion.terms().names().len();
        let gradients = parameters.flat_zeros()?;
        let learns = criterion.learns();
        let recorded = shared || (learns.any && share.all > 1);
        let kept = |dtype| context.zeros([t.batch_size], dtype);
        let items = (recorded && learns.items).then(|| Ok::<_, Error>((kept(DType::F32)?, kept(DType::I32)?)));
        let buffers = if shared { parameters.buffers()? } else { Vec::new() };
        let sizes = (t.batch_size, terms, learns.items);
        let gathering = if exchange == Exchange::Devices && t.shards.is_some() { ranks } else { 0 };
        let records = || Records::new(context, share, sizes, buffers, &gradients, gathering);
        let records = recorded.then(records).transpose()?;
        let buckets = || buckets(context, t, &parameters, &gradients);
        let buckets = (exchange == Exchange::Devices && t.shards.is_none()).then(buckets).transpose()?;
        Ok(Self {
            buckets,
            gradients,
            items: items.transpose()?,
            records,
            share,
            shared,
            exchange,
            first: parameters.flat_zeros()?,
            second: parameters.flat_zeros()?,
            ema,
            control: Control::buffer(context)?,
            statistics: context.zeros([4], DType::F32)?,
            ring: context.zeros([RING as usize, 2 + terms], DType::F32)?,
            terms: (terms > 0).then(|| context.zeros([terms], DType::F32)).transpose()?,
            loss: context.zeros([1], DType::F32)?,
            one: context.tensor(&[1f32], [1])?,
            training,
            validation,
            averaged,
            hyper: AdamW {
                beta1: t.beta1,
                beta2: t.beta2,
                epsilon: t.epsilon,
                weight_decay: t.weight_decay,
                decoupled: t.optimizer == OptimizerKind::Adamw,
            },
            gradient_clip: t.gradient_clip.map(|norm| norm as f32),
            scale: 1.0 / t.micro_batches() as f32,
            seed: t.seed,
            criterion,
            parameters,
            context: context.clone(),
        })
    }

    /// The roles of this process's batches in a step.
    pub fn roles(&self) -> Vec<Role> {
        match (self.shared, &self.buckets) {
            (true, None) => Role::shared(self.share.in_a_row),
            (true, Some(_)) => Role::all(self.share.count),
            (false, _) => Role::all(self.share.all),
        }
    }

    /// The role of the `local`-th of them.
    pub fn role(&self, local: usize) -> Role {
        match (self.shared, &self.buckets) {
            (true, None) => Role { first: local.is_multiple_of(self.share.in_a_row), last: false },
            _ => Role::of(local as u64, self.share.count as u64),
        }
    }

    /// Whether the work after all batches is a separate program.
    pub fn finishes_apart(&self) -> bool {
        self.records.is_some() && self.buckets.is_none()
    }

    /// One batch of a step.
    pub fn train(&self, role: Role) -> Result<()> {
        let (loss, terms) = self.differentiate(role)?;
        // The step's flat gradient: ranks combine it before they continue identically.
        if self.shared {
            return if role.last { self.come_together() } else { Ok(()) };
        }
        if role.last {
            self.update()?;
        }
        // As many as the ring has columns for, whatever the criterion says.
        let terms = self.terms.as_ref().map(|kept| terms.as_ref().unwrap_or(kept));
        record(&self.context, &self.ring, &loss, terms, &self.statistics, &self.control)
    }

    /// The end of a step whose gradient is already reduced: gathers its records, then runs the optimizer step.
    fn come_together(&self) -> Result<()> {
        let (Some(buckets), Some(records)) = (&self.buckets, &self.records) else { return Ok(()) };
        records.after_batch(self, self.share.last())?;
        records.gather_on_devices()?;
        buckets.join()?;
        self.update()?;
        records.finish(self)
    }

    /// Exchanges everything once before any capture, and waits for it, so that NCCL has opened its connections. Only zeros are
    /// exchanged.
    pub fn warm_up(&self) -> Result<()> {
        let (Exchange::Devices, Some(records)) = (&self.exchange, &self.records) else { return Ok(()) };
        match &self.buckets {
            Some(buckets) => buckets.warm_up()?,
            None => records.add_up_on_devices(&self.gradients)?,
        }
        records.gather_on_devices()?;
        self.context.join()?;
        self.context.synchronize()
    }

    /// Writes the loss, its terms and the gradient's norm to the ring.
    pub fn record(&self) -> Result<()> {
        record(&self.context, &self.ring, &self.loss, self.terms.as_ref(), &self.statistics, &self.control)
    }

    /// The work after all batches of a step, if it is not part of the last batch.
    pub fn finish(&self) -> Result<()> {
        if let (Exchange::Devices, Some(records)) = (&self.exchange, &self.records) {
            records.gather_on_devices()?;
            records.add_up_on_devices(&self.gradients)?;
            self.context.join()?;
        }
        if self.shared {
            self.update()?;
        }
        self.records.as_ref().map_or(Ok(()), |records| records.finish(self))
    }

    /// Computes loss and gradients of a batch. Returns the loss and its terms; where batches are combined, they are kept too.
    fn differentiate(&self, role: Role) -> Result<(Tensor, Option<Tensor>)> {
        let tape = Tape::new(&self.context);
        let mode = if role.first { Accumulate::Write } else { Accumulate::Add };
        let s = self.parameters.bind(&tape, Some((&self.gradients, mode)))?.in_training(&self.control, self.seed);
        let batch = self.training.batch(&self.context, &self.control)?;
        let (purpose, control, scale) = (LossMode::Training, &self.control, self.scale);
        let pass = Pass { purpose, scope: &s, control, scale };
        let mut loss = self.criterion.loss(&pass, batch)?;
        let items = loss.items.take();
        if self.records.is_none() {
            self.criterion.learn(&self.context, loss.terms.as_ref(), items.as_ref())?;
        } else {
            self.keep(&loss, items.as_ref())?;
        }
        drop(items);
        let found = (loss.mean.tensor().clone(), loss.terms.take());
        let Some(buckets) = self.buckets.as_ref().filter(|_| role.last) else {
            tape.backward(&loss.mean, self.one.clone())?;
            return Ok(found);
        };
        let mut arrivals = buckets.begin();
        tape.backward_then(&loss.mean, self.one.clone(), |gradient| arrivals.add(gradient))?;
        arrivals.end()?;
        Ok(found)
    }

    /// Keeps what is recorded of a batch until the records are combined.
    fn keep(&self, loss: &Loss, items: Option<&(Tensor, Tensor)>) -> Result<()> {
        self.loss.copy_from(loss.mean.tensor())?;
        if let (Some(kept), Some(terms)) = (&self.terms, &loss.terms) {
            kept.copy_from(terms)?;
        }
        if let (Some(kept), Some(items)) = (&self.items, items) {
            kept.0.copy_from(&items.0)?;
            kept.1.copy_from(&items.1)?;
        }
        Ok(())
    }

    /// Clips the gradient and applies the optimizer.
    fn update(&self) -> Result<()> {
        gradient_norm(&self.context, &self.gradients, &self.statistics, self.gradient_clip)?;
        let state = AdamWState {
            parameters: self.parameters.master(),
            compute: self.parameters.compute(),
            gradients: &self.gradients,
            first: &self.first,
            second: &self.second,
            ema: Some(&self.ema),
        };
        adamw(&self.context, &state, &self.control, &self.statistics, self.hyper)
    }

    /// The loss of the averaged weights over a batch of validation images.
    pub fn validate(&self, feed: &Feed) -> Result<()> {
        let tape = Tape::inference(&self.context);
        let s = self.averaged.bind(&tape, None)?;
        let batch = feed.batch(&self.context, &self.control)?;
        let (purpose, control, scale) = (LossMode::Validation, &self.control, 1.0);
        let loss = self.criterion.loss(&Pass { purpose, scope: &s, control, scale }, batch)?;
        if let (Terms::RightAnswers, Some(kept), Some(terms)) = (self.criterion.terms(), &self.terms, &loss.terms) {
            kept.copy_from(terms)?;
        }
        self.loss.copy_from(loss.mean.tensor())
    }
}

/// The gradient buckets, and the dtype of the exchange.
fn buckets(
    context: &Context,
    training: &TrainingConfig,
    parameters: &Parameters,
    gradients: &Tensor,
) -> Result<Buckets> {
    let brief = training.communication_dtype == CommunicationDtype::Bf16;
    let rounded = brief.then(|| context.zeros(gradients.shape(), DType::BF16)).transpose()?;
    Ok(Buckets::new(gradients, &parameters.trained_specs(), rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_of_a_step_has_a_program_and_every_program_a_batch() {
        for accumulation in 1..6 {
            let mut met: Vec<Role> = Vec::new();
            for role in (0..accumulation).map(|micro| Role::of(micro, accumulation)) {
                if !met.contains(&role) {
                    met.push(role);
                }
            }
            assert_eq!(met, Role::all(accumulation as usize), "{accumulation} batches a step");
        }
    }
}
