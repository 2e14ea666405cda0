//! The driver: whether it is there and usable, and its errors in words.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use super::api::{self, Code, Missing};
use crate::error::{Error, Result};

/// The oldest driver: the first that loads PTX 8.4.
const OLDEST_DRIVER: c_int = 12_040;

/// Loads and initialises the driver once. After `Ok` every function of [`api`] can be called.
pub(super) fn driver() -> Result<()> {
    static OUTCOME: OnceLock<Result<(), (String, &'static str)>> = OnceLock::new();
    match OUTCOME.get_or_init(probe) {
        Ok(()) => Ok(()),
        Err((message, mend)) => Err(Error::device("cuda", message.clone(), *mend)),
    }
}

const CPU: &str = "install NVIDIA's driver, or use --device cpu";
const STUB: &str = "take toolkits' stub folders out of LD_LIBRARY_PATH so that the driver's own libcuda is found, \
                    or use --device cpu";
const UPDATE: &str = "update NVIDIA's driver to 550 or newer, or use --device cpu";
const CHECK: &str = "check `nvidia-smi`, or use --device cpu";

const FABRIC: &str = "on a machine with NVSwitch start `nvidia-fabricmanager`, or use --device cpu";

fn probe() -> Result<(), (String, &'static str)> {
    match api::load() {
        Ok(()) => {}
        Err(Missing::Library) => return Err(("no CUDA driver (libcuda) on this machine".into(), CPU)),
        Err(Missing::Symbol(name)) => {
            return Err((format!("libcuda has no {name}: it is a stub, or older than CUDA 12.4"), STUB));
        }
    }
    let mut version: c_int = 0;
    // SAFETY: the version outlives the call; nothing is asked of these two calls.
    let (known, initialised) = unsafe { (api::cuDriverGetVersion(&mut version), api::cuInit(0)) };
    match initialised {
        Code::SUCCESS => {}
        Code::STUB_LIBRARY => return Err(("libcuda is a stub for linking, not a driver".into(), STUB)),
        Code::NO_DEVICE => return Err(("the driver sees no CUDA device".into(), CHECK)),
        Code::SYSTEM_NOT_READY => return Err(("the system's GPUs are not ready yet".into(), FABRIC)),
        Code::SYSTEM_DRIVER_MISMATCH => {
            return Err(("the driver's library and kernel module differ in version".into(), "restart the machine"));
        }
        Code::COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            return Err(("the compatibility libcuda does not support this device".into(), STUB));
        }
        Code(number) => return Err((format!("the driver does not start (cuInit: error {number})"), CHECK)),
    }
    if known != Code::SUCCESS || version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err((format!("the driver supports CUDA {major}.{minor}, 12.4 is needed"), UPDATE));
    }
    Ok(())
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`; `error 12345` where the driver has no name for its result.
pub(super) fn describe(code: Code) -> String {
    let said = |ask: unsafe fn(Code, *mut *const c_char) -> Code| {
        let mut text = std::ptr::null();
        // SAFETY: the pointer outlives the call.
        let told = unsafe { ask(code, &mut text) } == Code::SUCCESS && !text.is_null();
        // SAFETY: cuda.h: a text of the library's own, which stays loaded, with a zero byte at its end.
        told.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = said(api::cuGetErrorName).unwrap_or_else(|| format!("error {}", code.0));
    match said(api::cuGetErrorString) {
        Some(text) => format!("{name} ({text})"),
        None => name,
    }
}

/// What to do about an error of the driver.
pub(super) fn mend(code: Code) -> &'static str {
    match code {
        _ if code.is_fault() => "a kernel is wrong: run `engine doctor`, and this command under `compute-sanitizer`",
        Code::ECC_UNCORRECTABLE => "the device's memory is damaged: reset or replace it",
        Code::DEVICE_UNAVAILABLE => "another process holds the device: stop it, or choose another device",
        Code::OUT_OF_MEMORY => "take a smaller batch or model, or stop what else runs on the device",
        Code::JIT_COMPILER_NOT_FOUND => {
            "install the driver's libnvidia-ptxjitcompiler; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        }
        Code::JIT_COMPILATION_DISABLED => "unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT",
        Code::OPERATING_SYSTEM => "check that this process may open /dev/nvidia*, or use --device cpu",
        _ => CHECK,
    }
}

/// A driver result as an error of `device`: `doing` completes "cannot …".
pub(super) fn check(code: Code, device: &str, doing: &str) -> Result<()> {
    match code {
        Code::SUCCESS => Ok(()),
        code => Err(Error::device(device, format!("cannot {doing}: {}", describe(code)), mend(code))),
    }
}
