//! Shared parts of the integration tests.

pub mod golden;
