//! Schedules, predictions and losses, samplers, guidance.

mod config;

pub use config::{DiffusionConfig, LossWeighting, Prediction, SamplerKind, SamplingConfig, Schedule, TimestepSampling};
