//! Layers, the parameter store, and the scope in which a forward pass calls them.

mod layers;
mod scope;
mod store;

pub use layers::{
    BatchNorm, BatchNormCall, Conv2d, Conv2dCall, Dropout, Embedding, GroupNorm, GroupNormCall, LayerNorm, Linear,
    LinearCall, Mlp, MlpCall, Modulated, Modulation, RunningStatistics,
};
pub use scope::{Mode, Scope};
pub use store::{Builder, ConstantId, Init, ParamId, ParameterKind, Parameters, Role, Spec, grid};
