//! Layers and the parameter store.

mod layers;
mod store;

pub use layers::{BatchNorm, Conv2d, DropoutLayer, Embedding, GroupNorm, LayerNorm, Linear, Moving};
pub use store::{Bound, Builder, ConstantId, Dropout, Init, Kind, ParamId, Parameters, Role, Spec, grid};
