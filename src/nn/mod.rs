//! Layers and the parameter store.

mod layers;
mod store;

pub use layers::{Conv2d, DropoutLayer, Embedding, GroupNorm, LayerNorm, Linear};
pub use store::{Bound, Builder, ConstantId, Dropout, Init, Kind, ParamId, Parameters, Spec, grid};
