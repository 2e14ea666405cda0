//! Judging.

mod anomaly;

pub use anomaly::{DenoisingErrors, ErrorSpec, Reference, Score};
