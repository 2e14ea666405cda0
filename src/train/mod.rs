//! The training loop, optimizer, EMA, checkpoints and logs.
//!
//! [`train`] makes a whole run in a folder; a [`Trainer`] runs single steps, for a loop of your own. Both train any [`Task`]: the
//! network of a configuration, or your own with [`Denoise`] or [`Classify`] (`tools/examples/own_network.rs`). Everything that a
//! run does between its steps is an [`Observer`].
//!
//! ```
//! use engine::config::Config;
//! use engine::data::shapes;
//! use engine::device::DeviceChoice;
//! use engine::train::{Event, TrainRequest, train};
//!
//! let mut config = Config::preset("quickstart")?;
//! for assignment in ["model.hidden_dim=16", "model.depth=1", "model.patch_size=8", "training.num_steps=3",
//!     "training.batch_size=4", "sampling.num_steps=2", "sampling.count_per_class=1"] {
//!     config.set(assignment)?;
//! }
//! let folder = tempfile::tempdir().unwrap();
//! let mut request = TrainRequest::new("tiny", config);
//! request.dataset = Some(shapes(0, 40));
//! request.device = DeviceChoice::Cpu;
//! request.out = Some(folder.path().join("run"));
//!
//! let mut losses = Vec::new();
//! let summary = train(request, &mut |event| {
//!     if let Event::Step { loss, .. } = event {
//!         losses.push(*loss);
//!     }
//! })?;
//! assert_eq!((summary.steps, losses.len()), (3, 3));
//! assert!(summary.model.is_file() && summary.samples.is_file());
//!
//! // Extend the run, bit for bit as if it had never stopped: for this the learning rate must not depend on the run's length.
//! let error = train(TrainRequest { steps: Some(5), ..TrainRequest::resume(&summary.folder) }, &mut |_| ()).unwrap_err();
//! assert!(error.to_string().contains("training.lr_schedule"));
//! # Ok::<(), engine::Error>(())
//! ```

mod backbone;
mod buckets;
mod checkpoint;
mod estimate;
mod feed;
mod folder;
mod follow;
mod journal;
mod memory;
mod metrics;
mod observer;
mod observers;
mod pace;
mod pictures;
mod predictions;
mod random;
mod ranks;
mod request;
mod residency;
mod run;
mod scaling;
mod space;
mod start;
mod step;
mod task;
mod tensorboard;
mod together;
mod trainer;

pub use checkpoint::{Evaluations, RunState, Tally, checkpoint_config, list_checkpoints};
pub use estimate::{Estimate, OpWork, Peak, Roofline, SamplingWork, StepWork};
pub use folder::RunFolder;
pub use memory::{Memory, available_memory};
pub use metrics::{EvaluationLine, LossTerms, TrainingLine, ValidationLine};
pub use observer::{Ending, Observer, Place};
pub use pace::{learning_rate, steps_per_epoch};
pub use random::random_set;
pub use ranks::check_ranks;
pub use request::{Event, Start, Summary, TrainRequest, fingerprint};
pub use residency::Residency;
pub use run::{Run, follow, train, train_observed};
pub use scaling::{Link, Scaling};
pub use task::{Classify, Criterion, Denoise, Learns, Pass, Task, Terms};
pub use trainer::{DataSizes, Recipe, StepMetrics, Trainer, Validation};
