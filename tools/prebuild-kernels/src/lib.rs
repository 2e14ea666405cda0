//! The compiler of the prebuilt PTX, for the tool and for tests that compile kernels of their own.

mod nvrtc;

pub use nvrtc::{Nvrtc, search};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
