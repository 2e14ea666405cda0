//! The driver's library: whether it is there and usable, and its errors in words.
//!
//! `cudarc` panics where the library or one of its symbols is missing, and reads results into a Rust `enum`. Therefore
//! [`driver`] looks before anything else is called: the library, every symbol that this back end uses, and the results
//! of the first calls as plain numbers.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};

use crate::error::{Error, Result};

/// The oldest driver: the first that loads PTX 8.4.
const OLDEST_DRIVER: c_int = 12_040;

/// Every driver function that the CUDA back end calls.
pub(super) const SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocHost_v2",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Loads and initialises the driver once. After `Ok` every function of [`SYMBOLS`] can be called.
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

fn probe() -> Result<(), (String, &'static str)> {
    // SAFETY: loading the driver's library runs its initialisers, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return Err(("no CUDA driver (libcuda) on this machine".into(), CPU));
    }
    // SAFETY: it is present, therefore this does not panic; the library stays loaded.
    let library = unsafe { sys::culib() };
    for symbol in SYMBOLS {
        // SAFETY: the symbol is only looked up, not used.
        if unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.is_err() {
            return Err((format!("libcuda has no {symbol}: it is a stub, or older than CUDA 12.4"), STUB));
        }
    }
    let absent = |_| ("libcuda changed while it was read".to_string(), CHECK);
    let mut version: c_int = 0;
    // SAFETY: cuda.h: `CUresult cuDriverGetVersion(int *)` and `CUresult cuInit(unsigned int)`; the results are read as
    // numbers, for a stub may return any.
    let (known, initialised) = unsafe {
        let get_version =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_uint>(b"cuDriverGetVersion").map_err(absent)?;
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_uint>(b"cuInit").map_err(absent)?;
        (get_version(&mut version), init(0))
    };
    match initialised {
        0 => {}
        34 => return Err(("libcuda is a stub for linking, not a driver".into(), STUB)),
        100 => return Err(("the driver sees no CUDA device".into(), CHECK)),
        803 => return Err(("the driver's library and kernel module differ in version".into(), "restart the machine")),
        804 => return Err(("the compatibility libcuda does not support this device".into(), STUB)),
        code => return Err((format!("the driver does not start (cuInit: error {code})"), CHECK)),
    }
    if known != 0 || version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err((format!("the driver supports CUDA {major}.{minor}, 12.4 is needed"), UPDATE));
    }
    Ok(())
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
pub(super) fn describe(code: CUresult) -> String {
    let error = DriverError(code);
    let name =
        error.error_name().map_or_else(|_| format!("error {}", code as u32), |n| n.to_string_lossy().into_owned());
    match error.error_string() {
        Ok(text) => format!("{name} ({})", text.to_string_lossy()),
        Err(_) => name,
    }
}

/// What to do about an error of the driver.
pub(super) fn mend(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "a kernel is wrong: run `engine doctor`, and this command under `compute-sanitizer`"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => "the device's memory is damaged: reset or replace it",
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process holds the device: stop it, or choose another device"
        }
        _ => CHECK,
    }
}

/// A driver result as an error of `device`: `doing` completes "cannot …".
pub(super) fn check(code: CUresult, device: &str, doing: &str) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(Error::device(device, format!("cannot {doing}: {}", describe(code)), mend(code))),
    }
}
