//! The commands as a user runs them, the data that they read, and the house rules.

#[path = "../common/tiny.rs"]
mod tiny;

mod classes;
mod classify;
mod compare;
mod convert;
mod data;
mod edit;
mod eval;
mod eval_trust;
mod guide;
mod house;
mod large;
mod machine;
mod pages;
mod pipeline;
mod ranks;
mod sample;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_client;
mod sizes;
