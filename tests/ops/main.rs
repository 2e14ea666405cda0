//! The ops on the CPU: in `f64` against finite differences, in `f32` against `f64`, and laws of their own.

mod house;
mod linear_attention;
mod oracle;
