//! The loop, optimizer, EMA, checkpoints, logs.
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
//! // A longer run from where that one ended, bit for bit as if it had never stopped: for this the learning rate must not
//! // depend on the run's length.
//! let error = train(TrainRequest { steps: Some(5), ..TrainRequest::resume(&summary.folder) }, &mut |_| ()).unwrap_err();
//! assert!(error.to_string().contains("training.lr_schedule"));
//! # Ok::<(), engine::Error>(())
//! ```

mod backbone;
mod checkpoint;
mod estimate;
mod folder;
mod memory;
mod metrics;
mod pictures;
mod predictions;
mod request;
mod run;
mod space;
mod task;
mod tensorboard;
mod trainer;

pub use checkpoint::{Progress, Tally, checkpoint_config, list_checkpoints};
pub use estimate::{Estimate, OpWork, Peak, Roofline, SamplingWork, StepWork};
pub use folder::RunFolder;
pub use memory::{Memory, available_memory};
pub use metrics::{LossTerms, TrainingLine, ValidationLine};
pub use request::{Event, Start, Summary, TrainRequest, fingerprint};
pub use run::train;
pub use space::{check_space, needed_space};
pub use trainer::{DataSizes, StepMetrics, Trainer, Validation, learning_rate, steps_per_epoch};
