//! Schedules, predictions and losses, samplers, guidance.

mod config;
mod denoiser;
mod edit_plans;
mod guidance;
mod loss;
mod rows;
mod sample;
mod sampler;
mod schedule;
mod timesteps;

pub use config::{
    BALANCED_TERMS, DiffusionConfig, LossKind, LossWeighting, Prediction, SamplerKind, SamplingConfig, Schedule,
    TimestepSampling,
};
pub use denoiser::Denoiser;
pub use edit_plans::{Binding, Known, slerp};
pub use guidance::GuidanceSchedule;
pub use loss::{Batch, Loss, LossMode, Objective};
pub(crate) use rows::{Beginning, Buffers, Going, Rows};
pub use sample::{Sampler, SamplerSpec};
pub use sampler::{Plan, Stage, StageCoefficients, Variance};
pub use schedule::{FLOW_TIME_SCALE, Inverse, NoiseLevel, NoiseSchedule};
pub use timesteps::{Profile, Times, TimestepSchedule};
