//! The ops: one folder each.

pub mod host;
