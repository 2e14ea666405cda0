//! Judging.

mod anomaly;
mod classify;
mod compare;
mod errors;
mod levels;
mod metric;
mod network;

pub use anomaly::{Reference, Score};
pub use classify::{Classification, Classifier, Confusion, check_labels, wilson_interval};
pub use compare::{Comparison, Drawn, WARM_UP, draw_timed};
pub use errors::{DenoisingErrors, ErrorSpec};
pub use levels::CommonLevels;
pub use metric::{Better, Difference, Metric, mean_and_error, rounded, with_error};
pub use network::NetworkClassifier;
