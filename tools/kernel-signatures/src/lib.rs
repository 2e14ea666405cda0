//! Reads kernel signatures from `kernels/*.cu` and writes the typed Rust launches.
