//! The CUDA driver's interface, with its rules: contexts, streams, events, captures, graphs, error codes.
//!
//! Work is done as late as the rules allow, in the order of its submission: a host that does not wait for a result does not find it.
//! A kernel's fault is reported on standard error and stays: every later call of its context fails with its code.
//!
//! | variable | |
//! |---|---|
//! | `PTX_MACHINE_DEVICE` | the devices: `a100` (capability 8.0, the default), `rtx4090` (8.9), `h100`, `h200` (9.0), `b200` (10.0), or a list of them |
//! | `PTX_MACHINE_CHECKS` | `on` (the default), or `off`: no checks of races, of unwritten memory and of `cp.async` |
//! | `PTX_MACHINE_STEPS` | the most warp instructions of a block, after which a kernel counts as endless |
//! | `PTX_MACHINE_DRIVER` | the CUDA version that is reported: `12.4` (the default), `13.0` |
//! | `PTX_MACHINE_CORES` | host threads that a grid is spread over |
//! | `PTX_MACHINE_REPLACE` | a folder: a module made from `kernels/x.cu` is read from `x.ptx` there, where that exists |
//! | `PTX_MACHINE_COUNT` | a file that receives how often each call was made, whenever a device is given back |
//! | `PTX_MACHINE_EXECUTED` | a file that receives the executed lines of each module's PTX, then too |
//! | `PTX_MACHINE_PROFILE` | a file that receives, then too, what the launches did that [`ptxMachineMark`] has counted; for one device |
//!
//! A variable of such a name that is not known, or a value that is not, is an error: `cuInit` returns `CUDA_ERROR_INVALID_VALUE`, and
//! `cuGetErrorString` of it says what is wrong.

#![allow(non_snake_case, reason = "cuda.h's names")]
#![allow(
    clippy::missing_safety_doc,
    reason = "cuda.h is the contract: pointers are null where it allows that, or valid"
)]

pub mod code;
mod context;
mod event;
mod graph;
mod memory;
pub mod model;
mod module;
mod profile;
mod queue;
pub mod settings;
mod state;
mod stream;

pub use context::*;
pub use event::*;
pub use graph::*;
pub use memory::*;
pub use module::*;
pub use profile::{ptxMachineExecute, ptxMachineMark, ptxMachineSample};
pub use stream::*;

use code::{Code, Outcome};
use state::Driver;

/// Makes a call of the driver: a panic within is an unknown error, never an unwinding into C.
fn call(name: &'static str, body: impl FnOnce(&mut Driver) -> Outcome) -> Code {
    let run = std::panic::AssertUnwindSafe(|| {
        let mut driver = state::lock();
        driver.count(name);
        let outcome = match driver.answers.remove(name) {
            Some(code) => Err(code),
            None => body(&mut driver),
        };
        // The driver has no end of its own: who wants to know gives its device back.
        if name == "cuDevicePrimaryCtxRelease_v2" {
            driver.write_files();
        }
        outcome
    });
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// Writes a result where the caller wants it.
///
/// # Errors
/// For a null pointer.
fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: cuda.h: a pointer that is not null can be written.
    unsafe { to.write(value) };
    Ok(())
}
