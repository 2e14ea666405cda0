//! Layers, the parameter store, and the scope in which a forward pass calls them.

mod layers;
mod scope;
mod store;

pub use layers::{BatchNorm, Conv2d, DropoutLayer, Embedding, GroupNorm, LayerNorm, Linear, Moving};
pub use scope::{Mode, Scope};
pub use store::{Builder, ConstantId, Init, Kind, ParamId, Parameters, Role, Spec, grid};
