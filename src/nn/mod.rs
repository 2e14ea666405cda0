//! Layers and the parameter store.

mod layers;
mod store;

pub use layers::{Embedding, LayerNorm, Linear};
pub use store::{Bound, Builder, Init, Kind, ParamId, Parameters, Spec};
