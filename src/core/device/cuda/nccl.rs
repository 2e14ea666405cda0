//! NVIDIA's collective communication library, if it is installed.
//!
//! It is loaded as `libnccl.so.2` when several GPUs train one model, and not otherwise. Its calls are submitted to a stream like
//! kernels, including captured ones, and the host does not wait for them. `ncclCommAbort` is never called, because it hangs where
//! the peers do: a process that waits for a lost rank is ended by the control channel's watch.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::Library;

use crate::device::Summand;
use crate::error::{Error, Result};

/// nccl.h's `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId {
    bytes: [c_char; ID],
}

/// Bytes of an id.
pub(super) const ID: usize = 128;

/// nccl.h's `ncclFloat32`, `ncclBfloat16`, `ncclUint8` and `ncclSum`.
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
const UINT8: c_int = 1;
const SUM: c_int = 0;

const PACKAGE: &str = "install the package libnccl2 (or put the folder of the wheel nvidia-nccl-cu12 on LD_LIBRARY_PATH), or train \
                       with `processes`, which does not need it";

type Handle = *mut c_void;

struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, sys::CUstream) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, sys::CUstream) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions loaded.
    _library: Library,
}

fn load() -> Result<Functions, String> {
    // Fixes the order of sums: the same ranks get the same bits, whatever NCCL would measure.
    for (name, value) in [("NCCL_ALGO", "Ring"), ("NCCL_PROTO", "Simple")] {
        if std::env::var_os(name).is_none() {
            // SAFETY: libc's own lock guards the environment against other writers in Rust; NCCL reads it later.
            unsafe { std::env::set_var(name, value) };
        }
    }
    // SAFETY: loading NCCL runs its initialisers, as in any program linked with it.
    let opened = ["libnccl.so.2", "libnccl.so"].iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = opened.ok_or_else(|| "no NCCL (libnccl.so.2) on this machine".to_string())?;
    fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
        // SAFETY: the types are those of nccl.h, which have not changed since NCCL 2.0.
        let found = unsafe { library.get::<T>(name.as_bytes()) };
        found.map(|symbol| *symbol).map_err(|_| format!("libnccl has no {name}: it is not NCCL"))
    }
    Ok(Functions {
        get_unique_id: symbol(&library, "ncclGetUniqueId")?,
        init_rank: symbol(&library, "ncclCommInitRank")?,
        all_reduce: symbol(&library, "ncclAllReduce")?,
        all_gather: symbol(&library, "ncclAllGather")?,
        destroy: symbol(&library, "ncclCommDestroy")?,
        error_string: symbol(&library, "ncclGetErrorString")?,
        _library: library,
    })
}

fn functions() -> Result<&'static Functions> {
    static LOADED: OnceLock<Result<Functions, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(|message| Error::device("nccl", message.clone(), PACKAGE))
}

fn check(functions: &Functions, code: c_int, doing: &str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: nccl.h: a text in the library, for any number.
    let text = unsafe { CStr::from_ptr((functions.error_string)(code)) }.to_string_lossy();
    let advice = "run it again with NCCL_DEBUG=WARN, which says more";
    Err(Error::device("nccl", format!("cannot {doing}: {text} (error {code})"), advice))
}

/// The id that the ranks of a communicator share. Needs no GPU.
///
/// # Errors
/// If there is no NCCL, or it has no network.
pub(super) fn unique_id() -> Result<[u8; ID]> {
    let functions = functions()?;
    let mut id = UniqueId { bytes: [0; ID] };
    // SAFETY: the id outlives the call.
    check(functions, unsafe { (functions.get_unique_id)(&mut id) }, "begin a communicator")?;
    Ok(id.bytes.map(|byte| byte as u8))
}

/// One rank's end of a communicator, on the current context's device.
pub(super) struct Communicator {
    functions: &'static Functions,
    handle: Handle,
}

// SAFETY: NCCL's handles may be used from any thread, one at a time: the device's state has it behind its mutex.
unsafe impl Send for Communicator {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Communicator")
    }
}

impl Communicator {
    /// Waits until all ranks have joined.
    pub fn new(id: &[u8; ID], rank: usize, ranks: usize) -> Result<Self> {
        let functions = functions()?;
        let (id, mut handle) = (UniqueId { bytes: id.map(|byte| byte as c_char) }, ptr::null_mut());
        // SAFETY: the handle outlives the call.
        let code = unsafe { (functions.init_rank)(&mut handle, ranks as c_int, id, rank as c_int) };
        check(functions, code, "connect the GPUs")?;
        Ok(Self { functions, handle })
    }

    /// # Safety
    /// `address` is that of `len` live elements of the current context's device, and `stream` is one of its streams.
    pub unsafe fn all_reduce(&self, address: u64, len: usize, of: Summand, stream: sys::CUstream) -> Result<()> {
        let buffer = address as *mut c_void;
        let dtype = match of {
            Summand::F32 => FLOAT32,
            Summand::Bf16 => BFLOAT16,
        };
        // SAFETY: the caller's promise; in-place is allowed.
        let code = unsafe { (self.functions.all_reduce)(buffer, buffer, len, dtype, SUM, self.handle, stream) };
        check(self.functions, code, "sum over the GPUs")
    }

    /// # Safety
    /// As above, for `bytes` at `source` and as many per rank at `destination`, where `source` is the rank's own part.
    pub unsafe fn all_gather(&self, source: u64, destination: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
        let (source, destination) = (source as *const c_void, destination as *mut c_void);
        // SAFETY: the caller's promise.
        let code = unsafe { (self.functions.all_gather)(source, destination, bytes, UINT8, self.handle, stream) };
        check(self.functions, code, "gather from the GPUs")
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: it is not used after this.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_needs_no_gpu_and_a_missing_library_names_its_package() {
        match unique_id() {
            Ok(first) => assert!(first != unique_id().unwrap()),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("no NCCL (libnccl.so.2)") && message.contains("libnccl2"), "{message}");
            }
        }
    }
}
