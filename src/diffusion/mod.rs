//! Schedules, predictions and losses, samplers, guidance.

mod config;
mod sampler;
mod schedule;

pub use config::{DiffusionConfig, LossWeighting, Prediction, SamplerKind, SamplingConfig, Schedule, TimestepSampling};
pub use sampler::{Plan, Stage, StageCoefficients, Variance};
pub use schedule::{FLOW_TIME_SCALE, Inverse, Level, NoiseSchedule};
