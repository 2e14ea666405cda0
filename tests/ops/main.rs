//! The ops on the CPU: in `f64` against finite differences, in `f32` against `f64`, and op-specific properties.

mod house;
mod linear_attention;
mod oracle;
