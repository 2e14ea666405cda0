//! Judging.

mod anomaly;
mod classify;
mod errors;

pub use anomaly::{Reference, Score};
pub use classify::{Classification, Classifier, Confusion, wilson_interval};
pub use errors::{DenoisingErrors, ErrorSpec};
