//! Device memory: allocations in one reserved range, and the shadow that says who wrote and read what.

pub mod shadow;
mod space;

pub use space::{AllocateError, DeviceMemory};
