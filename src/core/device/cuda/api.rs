//! The driver's functions, looked up by name, with plain numbers as results.
//!
//! `cudarc` declares these functions too, but with a Rust `enum` as result: an unknown result of a newer driver would be an
//! invalid value of it, which is undefined behaviour. Its types and constants are used here, its functions are not.

#![allow(non_snake_case, reason = "cuda.h's names")]
// The contract of each function is that of cuda.h; nothing can be added here.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::Library;

/// cuda.h's `CUresult`: any number that a driver may return.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub u32);

macro_rules! codes {
    ($($name:ident = $theirs:ident;)*) => {
        impl Code {
            $(pub(super) const $name: Self = Self(sys::CUresult::$theirs as u32);)*
        }
    };
}

codes! {
    SUCCESS = CUDA_SUCCESS;
    INVALID_VALUE = CUDA_ERROR_INVALID_VALUE;
    OUT_OF_MEMORY = CUDA_ERROR_OUT_OF_MEMORY;
    NOT_INITIALIZED = CUDA_ERROR_NOT_INITIALIZED;
    STUB_LIBRARY = CUDA_ERROR_STUB_LIBRARY;
    DEVICE_UNAVAILABLE = CUDA_ERROR_DEVICE_UNAVAILABLE;
    NO_DEVICE = CUDA_ERROR_NO_DEVICE;
    ECC_UNCORRECTABLE = CUDA_ERROR_ECC_UNCORRECTABLE;
    JIT_COMPILER_NOT_FOUND = CUDA_ERROR_JIT_COMPILER_NOT_FOUND;
    UNSUPPORTED_PTX_VERSION = CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    JIT_COMPILATION_DISABLED = CUDA_ERROR_JIT_COMPILATION_DISABLED;
    OPERATING_SYSTEM = CUDA_ERROR_OPERATING_SYSTEM;
    ILLEGAL_ADDRESS = CUDA_ERROR_ILLEGAL_ADDRESS;
    LAUNCH_TIMEOUT = CUDA_ERROR_LAUNCH_TIMEOUT;
    ASSERT = CUDA_ERROR_ASSERT;
    HARDWARE_STACK_ERROR = CUDA_ERROR_HARDWARE_STACK_ERROR;
    ILLEGAL_INSTRUCTION = CUDA_ERROR_ILLEGAL_INSTRUCTION;
    MISALIGNED_ADDRESS = CUDA_ERROR_MISALIGNED_ADDRESS;
    INVALID_ADDRESS_SPACE = CUDA_ERROR_INVALID_ADDRESS_SPACE;
    INVALID_PC = CUDA_ERROR_INVALID_PC;
    LAUNCH_FAILED = CUDA_ERROR_LAUNCH_FAILED;
    SYSTEM_NOT_READY = CUDA_ERROR_SYSTEM_NOT_READY;
    SYSTEM_DRIVER_MISMATCH = CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    COMPAT_NOT_SUPPORTED_ON_DEVICE = CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE;
}

impl Code {
    /// Whether it is a kernel fault, which is sticky: every later call in the context returns it.
    pub(super) fn is_fault(self) -> bool {
        matches!(
            self,
            Self::ILLEGAL_ADDRESS
                | Self::LAUNCH_TIMEOUT
                | Self::ASSERT
                | Self::HARDWARE_STACK_ERROR
                | Self::ILLEGAL_INSTRUCTION
                | Self::MISALIGNED_ADDRESS
                | Self::INVALID_ADDRESS_SPACE
                | Self::INVALID_PC
                | Self::LAUNCH_FAILED
        )
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        /// All required functions.
        #[cfg(test)]
        pub(super) const SYMBOLS: &[&str] = &[$(stringify!($name)),*];

        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> Code,)*
            /// Available from CUDA 11.8.
            cuLaunchKernelEx: Option<LaunchKernelEx>,
        }

        impl Functions {
            /// # Safety
            /// The library is the driver's: its functions have cuda.h's signatures.
            unsafe fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller's promise.
                    $($name: unsafe { symbol(library, stringify!($name)) }.ok_or(stringify!($name))?,)*
                    // SAFETY: as above.
                    cuLaunchKernelEx: unsafe { symbol(library, "cuLaunchKernelEx") },
                })
            }
        }

        $(
            pub(super) unsafe fn $name($($argument: $type),*) -> Code {
                match FUNCTIONS.get() {
                    // SAFETY: the caller follows cuda.h.
                    Some(functions) => unsafe { (functions.$name)($($argument),*) },
                    None => Code::NOT_INITIALIZED,
                }
            }
        )*
    };
}

type LaunchKernelEx =
    unsafe extern "C" fn(*const sys::CUlaunchConfig, sys::CUfunction, *mut *mut c_void, *mut *mut c_void) -> Code;

functions! {
    cuCtxSetCurrent(context: sys::CUcontext);
    cuDeviceGet(device: *mut sys::CUdevice, ordinal: c_int);
    cuDeviceGetAttribute(value: *mut c_int, which: sys::CUdevice_attribute, device: sys::CUdevice);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: sys::CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut sys::CUcontext, device: sys::CUdevice);
    cuDriverGetVersion(version: *mut c_int);
    cuEventCreate(event: *mut sys::CUevent, flags: c_uint);
    cuEventDestroy_v2(event: sys::CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: sys::CUevent, end: sys::CUevent);
    cuEventRecord(event: sys::CUevent, stream: sys::CUstream);
    cuEventSynchronize(event: sys::CUevent);
    cuFuncGetAttribute(value: *mut c_int, which: sys::CUfunction_attribute, function: sys::CUfunction);
    cuFuncLoad(function: sys::CUfunction);
    cuFuncSetAttribute(function: sys::CUfunction, which: sys::CUfunction_attribute, value: c_int);
    cuGetErrorName(code: Code, name: *mut *const c_char);
    cuGetErrorString(code: Code, text: *mut *const c_char);
    cuGraphDestroy(graph: sys::CUgraph);
    cuGraphExecDestroy(graph: sys::CUgraphExec);
    cuGraphInstantiateWithFlags(executable: *mut sys::CUgraphExec, graph: sys::CUgraph, flags: c_ulonglong);
    cuGraphLaunch(graph: sys::CUgraphExec, stream: sys::CUstream);
    cuGraphUpload(graph: sys::CUgraphExec, stream: sys::CUstream);
    cuInit(flags: c_uint);
    cuLaunchKernel(
        function: sys::CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: sys::CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuMemAllocHost_v2(memory: *mut *mut c_void, bytes: usize);
    cuMemAlloc_v2(address: *mut sys::CUdeviceptr, bytes: usize);
    cuMemFreeHost(memory: *mut c_void);
    cuMemFree_v2(address: sys::CUdeviceptr);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemcpyDtoDAsync_v2(to: sys::CUdeviceptr, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
    cuMemcpyHtoDAsync_v2(to: sys::CUdeviceptr, from: *const c_void, bytes: usize, stream: sys::CUstream);
    cuMemsetD32Async(to: sys::CUdeviceptr, value: c_uint, count: usize, stream: sys::CUstream);
    cuMemsetD8Async(to: sys::CUdeviceptr, value: u8, count: usize, stream: sys::CUstream);
    cuModuleGetFunction(function: *mut sys::CUfunction, module: sys::CUmodule, name: *const c_char);
    cuModuleLoadDataEx(
        module: *mut sys::CUmodule, image: *const c_void, count: c_uint, options: *mut sys::CUjit_option,
        values: *mut *mut c_void
    );
    cuModuleUnload(module: sys::CUmodule);
    cuStreamBeginCapture_v2(stream: sys::CUstream, mode: sys::CUstreamCaptureMode);
    cuStreamCreate(stream: *mut sys::CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: sys::CUstream);
    cuStreamEndCapture(stream: sys::CUstream, graph: *mut sys::CUgraph);
    cuStreamSynchronize(stream: sys::CUstream);
    cuStreamWaitEvent(stream: sys::CUstream, event: sys::CUevent, flags: c_uint);
}

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

/// The launch with attributes; None if the driver has no such function.
pub(super) unsafe fn cuLaunchKernelEx(
    config: &sys::CUlaunchConfig,
    function: sys::CUfunction,
    parameters: *mut *mut c_void,
) -> Option<Code> {
    let launch = FUNCTIONS.get()?.cuLaunchKernelEx?;
    // SAFETY: the caller follows cuda.h.
    Some(unsafe { launch(config, function, parameters, std::ptr::null_mut()) })
}

/// A function of the library.
///
/// # Safety
/// `T` is the type of a function pointer, with the function's signature.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Option<T> {
    // SAFETY: the caller's promise.
    unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

/// Why the driver's library cannot be used.
pub(super) enum Missing {
    /// It is missing.
    Library,
    /// It lacks this function.
    Symbol(&'static str),
}

/// The names of the driver's library. A toolkit's stub only has the name without a number, so that comes last.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// Finds the library and its functions. It stays loaded until the process ends.
pub(super) fn load() -> Result<(), Missing> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    // SAFETY: loading the driver's library runs its initialisers, as intended.
    let open = || LIBRARIES.iter().find_map(|&name| unsafe { Library::new(name) }.ok());
    let library = LIBRARY.get_or_init(open).as_ref().ok_or(Missing::Library)?;
    // SAFETY: a library with that name on the loader's path is the driver's.
    let functions = unsafe { Functions::find(library) }.map_err(Missing::Symbol)?;
    let _ = FUNCTIONS.set(functions);
    Ok(())
}

/// A function that only `tools/ptx-machine` has.
///
/// # Safety
/// `T` is the type of a function pointer, with the function's signature.
pub(super) unsafe fn machine<T: Copy>(name: &str) -> Option<T> {
    // SAFETY: the caller gives the function's type; only existing functions are used.
    LIBRARIES.iter().find_map(|&library| unsafe { symbol(&Library::new(library).ok()?, name) })
}
