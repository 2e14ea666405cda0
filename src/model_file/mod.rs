//! The model file: one safetensors file with the weights and, in its metadata, everything that sampling needs.
//!
//! Metadata: `format` (`engine-model-1`), `config` (the whole configuration as JSON), `weights` (`ema` or `raw`), `step`,
//! `epoch`, `classes` (JSON list of names), `crc32c` of the tensors' bytes. Tensors are the model's parameters by name, f32,
//! bf16 or f16.
//!
//! A checkpoint (`engine-checkpoint-1`, written by training) can be loaded as a model too: it holds the weights twice, as
//! `ema.NAME` and, raw, as `weights.NAME`, which includes frozen weights and running statistics.
//!
//! A file is opened and verified once, as a [`ModelFile`]; its metadata decides how it is loaded.
//!
//! ```
//! use engine::config::Config;
//! use engine::model_file::{Loaded, ModelFile};
//! use engine::models::Network;
//! use engine::pipeline::Model;
//! use engine::tensor::{Context, DType};
//!
//! # let mut config = Config::preset("quickstart")?;
//! # for set in ["model.depth=1", "model.hidden_dim=32", "model.conditioning=token"] {
//! #     config.set(set)?;
//! # }
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model.safetensors");
//! # Model::untrained(&config, &Context::cpu(), DType::F32, 0)?.save(&path)?;
//! let file = ModelFile::open(&path)?;
//! assert_eq!(file.info().config.model.kind(), "dit");
//! let loaded: Loaded<Network> = file.load(&Context::cpu(), DType::F32, None)?;
//! let model: Model = loaded.into_kind()?;
//! assert_eq!(model.digest.sha256.len(), 64);
//! # Ok::<(), engine::Error>(())
//! ```

mod arrays;
mod info;
mod loaded;
mod open;
mod pretrained;

pub use arrays::{Array, ArrayFile, Digest, Storage, arrays, write_arrays};
pub use info::{CHECKPOINT_FORMAT, ModelInfo, Weights, write_model};
pub use loaded::{ClassifierModel, FromNetwork, Loaded};
pub use open::ModelFile;
pub use pretrained::{Pretrained, pretrained};
