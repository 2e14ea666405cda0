//! The loop, optimizer, EMA, checkpoints, logs.

mod checkpoint;
mod trainer;

pub use checkpoint::{Progress, checkpoint_config, list_checkpoints};
pub use trainer::{DataSizes, StepMetrics, Trainer, learning_rate, steps_per_epoch};
