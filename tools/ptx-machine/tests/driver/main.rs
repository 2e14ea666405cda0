//! The driver's rules.

#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of the driver with pointers to live values throughout")]

#[path = "../common/mod.rs"]
mod common;

mod captures;
mod faults;
mod misuses;
mod opened;
mod settings;
mod work;
