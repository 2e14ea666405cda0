//! What most programs need: `use engine::prelude::*;`.

pub use crate::config::Config;
pub use crate::data::Dataset;
pub use crate::error::{Error, Result};
pub use crate::nn::Scope;
pub use crate::ops;
pub use crate::pipeline::{Model, SampleRequest};
pub use crate::tape::{Tape, Var};
pub use crate::tensor::{Context, DType, Device, Tensor};
pub use crate::train::{TrainRequest, Trainer, train};
