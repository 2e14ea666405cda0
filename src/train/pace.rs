//! Values that change from step to step: data positions, learning rate, bias corrections. All are functions of the step's number.

use crate::config::{LrSchedule, TrainingConfig};
use crate::error::Result;
use crate::ops::control::{Control, WORDS};
use crate::tensor::{Context, DType, Tensor};

/// Batches whose control words are on the device at once.
const AHEAD: u64 = 256;

/// Steps per epoch of `images` images.
pub fn steps_per_epoch(training: &TrainingConfig, images: usize) -> u64 {
    (images / (training.batch_size * training.micro_batches())).max(1) as u64
}

/// The learning rate of update `number` (1 for the first) of `total`: linear warm-up to the peak at update `warmup_steps`, then
/// the schedule, which reaches its minimum at the last update.
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

/// The control words of a run's batches.
pub(super) struct Pace {
    training: TrainingConfig,
    steps_per_epoch: u64,
    total_steps: u64,
    /// Rows of the metrics ring.
    ring: u64,
    /// `[AHEAD or a step's, words]`: those of the batches from `first` on, at the start of a step.
    rows: Tensor,
    first: u64,
    filled: bool,
}

impl Pace {
    /// For a run on `images` images, with a metrics ring of `ring` rows.
    pub fn new(context: &Context, training: &TrainingConfig, images: usize, ring: u64) -> Result<Self> {
        let steps_per_epoch = steps_per_epoch(training, images);
        let ahead = (AHEAD as usize).max(training.micro_batches());
        let rows = context.zeros([ahead, WORDS], DType::U32)?;
        let total_steps = training.total_steps(steps_per_epoch);
        Ok(Self { training: training.clone(), steps_per_epoch, total_steps, ring, rows, first: 0, filled: false })
    }

    /// Steps per epoch; only full batches are used.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// The control words of batch `micro` of the step after `step`.
    pub fn control(&self, step: u64, micro: u64) -> Control {
        let t = &self.training;
        let (number, batch) = (step + 1, t.batch_size as u64);
        let within = step % self.steps_per_epoch;
        let accumulation = t.micro_batches() as u64;
        let decay = match t.ema_warmup {
            true => t.ema_decay.min((1.0 + number as f64) / (10.0 + number as f64)),
            false => t.ema_decay,
        };
        Control {
            step: step as u32,
            epoch: (step / self.steps_per_epoch) as u32,
            cursor: ((within * accumulation + micro) * batch) as u32,
            first_item: (micro * batch) as u32,
            learning_rate: learning_rate(t, number, self.total_steps) as f32,
            first_correction: (1.0 / (1.0 - t.beta1.powf(number as f64))) as f32,
            second_correction: (1.0 / (1.0 - t.beta2.powf(number as f64))) as f32,
            ema_decay: decay as f32,
            row: (step % self.ring) as u32,
            micro: micro as u32,
            ..Control::default()
        }
    }

    /// Copies the words of batch `micro` of the step after `step` into the buffer `control`. The host computes the words of many
    /// batches at once and then waits for the device; in between it only submits a device copy.
    pub fn set(&mut self, control: &Tensor, step: u64, micro: u64) -> Result<()> {
        let accumulation = self.training.micro_batches() as u64;
        let number = step * accumulation + micro;
        let ahead = (self.rows.len() / WORDS) as u64;
        if !self.filled || !(self.first..self.first + ahead).contains(&number) {
            let first = number - micro;
            let words = (first..first + ahead).flat_map(|n| self.control(n / accumulation, n % accumulation).words());
            self.rows.upload(&words.collect::<Vec<u32>>())?;
            (self.first, self.filled) = (first, true);
        }
        control.copy_from(&self.rows.part((number - self.first) as usize * WORDS, [WORDS])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_gets_the_words_of_each_batch_wherever_the_run_begins() -> Result<()> {
        let context = Context::cpu();
        let training = TrainingConfig {
            num_epochs: None,
            num_steps: Some(300),
            batch_size: 4,
            gradient_accumulation: 3,
            lr_schedule: LrSchedule::Cosine,
            ..TrainingConfig::default()
        };
        let mut pace = Pace::new(&context, &training, 50, 16)?;
        assert_eq!((pace.steps_per_epoch(), pace.total_steps()), (4, 300));
        let control = Control::buffer(&context)?;
        // Past the end of the uploaded words, back, and far ahead.
        for step in (0..100).chain(0..2).chain([299, 250]) {
            for micro in 0..3 {
                pace.set(&control, step, micro)?;
                let found = Control::from_words(&control.download::<u32>()?);
                assert_eq!(found, pace.control(step, micro), "step {step}, batch {micro}");
                let (row, cursor) = ((step % 16) as u32, (4 * (3 * (step % 4) + micro)) as u32);
                assert_eq!(
                    (found.step, found.micro, found.row, found.cursor),
                    (step as u32, micro as u32, row, cursor)
                );
                assert_eq!(found.learning_rate, learning_rate(&training, step + 1, 300) as f32);
            }
        }
        Ok(())
    }
}
