//! Layers and the parameter store.
