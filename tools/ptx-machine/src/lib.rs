//! A machine that executes PTX on the CPU, and a CUDA driver made of it.
//!
//! [`parse`] reads a text strictly, [`ir`] decodes it once, [`exec`] runs whole warps in lock step with every access checked
//! ([`memory`]), [`count`] counts what they do, and [`driver`] puts the driver's interface in front: the library that this crate
//! builds is a `libcuda.so.1`. It knows nothing of the programs that use it.

pub mod count;
pub mod driver;
pub mod exec;
pub mod fault;
pub mod ir;
pub mod memory;
pub mod parse;
