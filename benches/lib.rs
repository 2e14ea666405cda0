//! The benchmarks of `engine` are `ops.rs` and `steps.rs`; this library is empty, because a package needs a target that is built.
