//! The driver: its availability, and its errors as text.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::api::{self, Code, Missing};
use crate::error::{Error, Result};

/// The oldest driver: the first that loads PTX 8.4.
const OLDEST_DRIVER: c_int = 12_040;

/// Loads and initialises the driver once. After `Ok` every function of [`api`] can be called.
pub(super) fn driver() -> Result<()> {
    static OUTCOME: OnceLock<Result<(), (String, Cow<'static, str>)>> = OnceLock::new();
    match OUTCOME.get_or_init(probe) {
        Ok(()) => Ok(()),
        Err((message, advice)) => Err(Error::device("cuda", message.clone(), advice.clone())),
    }
}

const CPU: &str = "install NVIDIA's driver, or use `device = cpu`";
const STUB: &str = "remove toolkits' stub folders from LD_LIBRARY_PATH so that the driver's own libcuda is found, \
                    or use `device = cpu`";
const UPDATE: &str = "update NVIDIA's driver to 550 or newer, or use `device = cpu`";
const CHECK: &str = "check `nvidia-smi`, or use `device = cpu`";

const FABRIC: &str = "on a machine with NVSwitch start `nvidia-fabricmanager`, or use `device = cpu`";

const SETTINGS: &str = "correct it, or unset it";

/// Why `tools/ptx-machine` was not found, and advice: if the loader was sent to its folder, or tests were.
fn machine() -> Option<(String, String)> {
    let is_there = |folder: &Path| folder.join("libcuda.so.1").exists();
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let sent = std::env::split_paths(&paths).find(|folder| folder.ends_with("ptx-machine") && !is_there(folder));
    let of_tests = || std::env::var_os("ENGINE_PTX_MACHINE").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = sent.or_else(of_tests)?;
    let shown = folder.display();
    Some(if is_there(&folder) {
        let message = "no CUDA driver (libcuda) where the loader looks; ENGINE_PTX_MACHINE is only for tests";
        (message.into(), format!("set LD_LIBRARY_PATH={shown}, or use `device = cpu`"))
    } else {
        let command = format!("cargo run --release -p ptx-machine -- {shown}");
        (format!("no libcuda.so.1 in {shown}"), format!("build the machine, `{command}`, or use `device = cpu`"))
    })
}

fn probe() -> Result<(), (String, Cow<'static, str>)> {
    match api::load() {
        Ok(()) => {}
        Err(Missing::Library) => {
            return Err(match machine() {
                Some((message, advice)) => (message, advice.into()),
                None => ("no CUDA driver (libcuda) on this machine".into(), CPU.into()),
            });
        }
        Err(Missing::Symbol(name)) => {
            return Err((format!("libcuda has no {name}: it is a stub, or older than CUDA 12.4"), STUB.into()));
        }
    }
    start().map_err(|(message, advice)| (message, advice.into()))
}

/// Initialises the loaded driver.
fn start() -> Result<(), (String, &'static str)> {
    let mut version: c_int = 0;
    // SAFETY: the version outlives the call; these two calls have no requirements.
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
        // Without flags only the environment can be wrong; `tools/ptx-machine` says what is.
        Code::INVALID_VALUE => {
            return Err((format!("the driver refuses its settings: {}", explain(initialised)), SETTINGS));
        }
        code => return Err((format!("the driver does not start (cuInit: {})", describe(code)), CHECK)),
    }
    if known != Code::SUCCESS || version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err((format!("the driver supports CUDA {major}.{minor}, 12.4 is needed"), UPDATE));
    }
    Ok(())
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`; `error 12345` if the driver has no name for its result.
pub(super) fn describe(code: Code) -> String {
    let name = said(code, api::cuGetErrorName).unwrap_or_else(|| format!("error {}", code.0));
    match said(code, api::cuGetErrorString) {
        Some(text) => format!("{name} ({text})"),
        None => name,
    }
}

/// Only the driver's description of a result, if any.
fn explain(code: Code) -> String {
    said(code, api::cuGetErrorString).unwrap_or_else(|| describe(code))
}

/// One of the driver's two texts for a result.
fn said(code: Code, ask: unsafe fn(Code, *mut *const c_char) -> Code) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the pointer outlives the call.
    let told = unsafe { ask(code, &mut text) } == Code::SUCCESS && !text.is_null();
    // SAFETY: cuda.h: a zero-terminated text in the library, which stays loaded.
    told.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Advice for an error of the driver.
pub(super) fn advice(code: Code) -> &'static str {
    match code {
        _ if code.is_fault() => "a kernel is wrong: run `engine doctor`, and this command under `compute-sanitizer`",
        Code::ECC_UNCORRECTABLE => "the device's memory is damaged: reset or replace it",
        Code::DEVICE_UNAVAILABLE => "another process holds the device: stop it, or choose another device",
        Code::OUT_OF_MEMORY => "use a smaller batch or model, or stop other programs on the device",
        Code::JIT_COMPILER_NOT_FOUND => {
            "install the driver's libnvidia-ptxjitcompiler; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        }
        Code::JIT_COMPILATION_DISABLED => "unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT",
        Code::OPERATING_SYSTEM => "check that this process may open /dev/nvidia*, or use `device = cpu`",
        _ => CHECK,
    }
}

/// A driver result as an error of `device`: `doing` completes "cannot …".
pub(super) fn check(code: Code, device: &str, doing: &str) -> Result<()> {
    match code {
        Code::SUCCESS => Ok(()),
        code => Err(Error::device(device, format!("cannot {doing}: {}", describe(code)), advice(code))),
    }
}
