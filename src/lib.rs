//! `engine`: a hand-written CUDA kernel engine that trains, samples, evaluates and serves small diffusion models.
//!
//! | to … | use |
//! |---|---|
//! | load a model and draw with it | [`Model`] |
//! | train in a folder, or step by step | [`train()`](train::train), [`Trainer`] |
//! | read pictures and published data sets | [`Dataset`] |
//! | write a network of your own | [`nn`], and [`ops`] on a [`tape`] |
//! | compute on a device, launch kernels | [`Tensor`], [`device`] |
//! | evaluate, serve, profile | [`eval`], `serve`, [`profile`] |
//!
//! ```
//! use engine::prelude::*;
//!
//! // The model that comes with the engine draws a garment of each of two classes.
//! let model = Model::load("unet-fashion-small", &Context::cpu(), DType::F32)?;
//! let mut request = model.request([7, 8]);
//! request.sampling.num_steps = 4;
//! let images = model.sample(&request)?;
//! assert_eq!((images.len(), images[0].len()), (2, 28 * 28));
//! # Ok::<(), Error>(())
//! ```
//!
//! Programs to start from are in `tools/examples`; the [`guide`] explains the rest. The command line, `engine`, is one more user of
//! this library.
//!
//! # Features
//!
//! `cli` (the binary), `fetch` (downloads), `formats` (parquet, TIFF, WebP, Zstandard), `plots` (loss curves, text on grids) and
//! `serve` are on by default; `metrics` (FID and others) comes with `cli`; `mpi` is off. Without any of them the library still
//! trains, samples and launches kernels. For kernels alone, the crate `engine-core` (`src/core`) has less still.
//!
//! # Layers
//!
//! Imports run downwards only:
//! `cli → serve, profile → train → eval → pipeline → model_file → config → models → diffusion → nn`
//! `→ ops → tape → tensor → device → rng, error`;
//! `data → picture, weights, tensor`; `picture`, `weights` and `cluster` use only `files` and `error`; `names → error`;
//! `image_size` and `progress` use nothing.

// A build without some features lacks the only callers of some functions.
#![cfg_attr(not(all(feature = "cli", feature = "fetch", feature = "formats")), allow(dead_code))]

#[cfg(feature = "cli")]
#[doc(hidden)]
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
pub mod prelude;
pub mod profile;
pub mod progress;
#[cfg(feature = "serve")]
pub mod serve;
pub mod train;
pub mod weights;

pub use data::Dataset;
pub use engine_core::{Error, Result, device, error, ops, rng, tape, tensor, words};
pub use pipeline::Model;
pub use tensor::Tensor;
pub use train::Trainer;
