//! One file per command.

pub mod data;
