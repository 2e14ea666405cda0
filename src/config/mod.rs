//! Presets, overrides, the model file.
