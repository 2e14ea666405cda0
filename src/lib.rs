//! `engine`: a hand-written CUDA kernel engine that trains, samples and evaluates small diffusion models.
//!
//! Imports run downwards only:
//! `cli → serve, profile → train → eval → pipeline → model_file → config → models → diffusion → nn → ops → tape → tensor → device → rng, error`;
//! `data → picture, weights, tensor`; `picture`, `weights` and `cluster` use only `files` and `error`; `names → error`;
//! `image_size` uses nothing. Start with the [`guide`].

pub mod cli;
pub mod cluster;
pub mod config;
pub mod data;
pub mod diffusion;
pub mod eval;
pub mod files;
pub mod guide;
pub mod image_size;
pub mod model_file;
pub mod models;
pub mod names;
pub mod nn;
pub mod picture;
pub mod pipeline;
pub mod profile;
#[cfg(feature = "serve")]
pub mod serve;
pub mod train;
pub mod weights;

pub use engine_core::{Error, Result, device, error, ops, rng, tape, tensor};
