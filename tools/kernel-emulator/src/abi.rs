//! The C interface of `runtime/abi.h`, field by field.

use std::ffi::{c_char, c_int};

/// Compared with the library's, so that a stale one is refused.
pub const ABI: u32 = 1;

#[repr(C)]
pub struct Parameter {
    pub name: *const c_char,
    pub type_name: *const c_char,
    pub element_bytes: u32,
    pub writable: u32,
}

#[repr(C)]
pub struct Kernel {
    pub name: *const c_char,
    pub max_threads: u32,
    pub parameter_count: u32,
    pub parameters: *const Parameter,
    pub invoke: *const (),
}

#[repr(C)]
pub struct Module {
    pub abi: u32,
    pub kernel_count: u32,
    pub kernels: *const Kernel,
}

pub const BUFFER: u32 = 0;
pub const I32: u32 = 1;
pub const U32: u32 = 2;
pub const U64: u32 = 3;
pub const F32: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Argument {
    pub kind: u32,
    pub writable: u32,
    pub value: u64,
    pub bytes: u64,
    pub unwritten: u64,
    pub first_unwritten: u64,
}

#[repr(C)]
pub struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub order: u32,
    pub seed: u64,
    pub find_unwritten: u32,
    pub reserved: u32,
}

#[repr(C)]
pub struct Report {
    pub accesses: u64,
    pub barriers: u64,
    pub message: [u8; 2040],
}

pub type ModuleFunction = unsafe extern "C" fn() -> *const Module;
pub type LaunchFunction = unsafe extern "C" fn(*const Kernel, *const Config, *mut Argument, u32, *mut Report) -> c_int;
