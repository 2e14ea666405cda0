//! Evaluation: metrics of models and images, and the images for them. The metrics of sample sets (FID and others) need the feature
//! `metrics`.

mod anomaly;
mod classify;
mod compare;
mod errors;
#[cfg(feature = "metrics")]
pub mod evaluation;
mod extractor;
mod gallery;
mod held_out;
pub mod helpers;
mod images;
mod judge;
mod levels;
mod metric;
#[cfg(feature = "metrics")]
pub mod metrics;
mod named;
mod network;
mod rows;
mod rules;
#[cfg(feature = "metrics")]
mod statistics;
mod survey;

pub use anomaly::{Reference, Score, Scores, as_trained, scored_split};
pub use classify::{Classification, Classifier, Confusion, check_labels, wilson_interval};
pub use compare::{Comparison, Drawn, WARM_UP, draw_timed};
pub use errors::{DenoisingErrors, ErrorSpec};
pub use extractor::Extractor;
pub use gallery::{Gallery, short_hash};
pub use held_out::{HeldOut, HeldOutSource, label_of};
pub use images::{Division, Images, data_of, divided, real_images, spread};
pub use judge::{Asked, Judge, PlannedJudge, Verdicts};
pub use levels::CommonLevels;
pub use metric::{Better, Difference, Metric, mean_and_error, rounded, with_error};
pub use named::EXTRACTORS;
pub use network::NetworkClassifier;
pub use rows::{MappedRows, Rows};
pub use rules::{PreparedTreatment, Resize, Rule, Scaling, Treatment};
#[cfg(feature = "metrics")]
pub use statistics::Statistics;
pub use survey::Survey;
