//! One file per model.

mod config;
pub mod dit;

pub use config::ModelConfig;
