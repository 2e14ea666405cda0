//! The diffusion transformer with grouped-query attention.

mod config;

pub use config::{Conditioning, DitConfig};
