//! `engine-core`: everything for authors of kernels and ops, without the application: devices, tensors, the autograd tape, the ops
//! and their random numbers. The crate `engine` re-exports all of it under the same names.
//!
//! Imports run downwards only: `ops → tape → tensor → device → rng, error → words`.

pub mod device;
pub mod error;
pub mod ops;
pub mod rng;
pub mod tape;
pub mod tensor;
pub mod words;

pub use error::{Error, Result};
