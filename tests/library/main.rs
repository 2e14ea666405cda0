//! The library: models, samplers and training against PyTorch, for consistency, and on the emulator.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/emulator.rs"]
mod emulator;
#[path = "../common/tiny.rs"]
mod tiny;

mod backbone;
mod batch;
mod evaluation;
mod examples;
mod goldens;
mod guidance;
mod models;
mod own;
mod parity;
mod plan;
mod prepared;
mod ranks;
mod replay;
mod resnet;
mod sampler_step;
mod samplers;
#[cfg(feature = "serve")]
mod serving;
mod sizes;
mod streaming;
mod tensorboard;
mod train;
mod train_metric;
