//! Loaded modules and their functions.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, ptr, thread};

use cudarc::driver::sys;

use super::api::{self, Code};
use super::driver::{advice, describe};
use crate::device::ptx::{self, EmbeddedPtx, Origin};
use crate::device::{Kernel, launches};
use crate::error::{Error, Result};

/// Shared memory, static and dynamic, that a kernel may use without opting in.
const FREE_SHARED_BYTES: u32 = 48 << 10;

/// Bytes for the driver's log about refused PTX.
const LOG_BYTES: usize = 4096;

/// The loaded modules of one device. All calls need its context to be current.
#[derive(Default)]
pub(super) struct Modules {
    modules: HashMap<&'static str, sys::CUmodule>,
    /// By the address of the kernel's static description.
    functions: HashMap<usize, Function>,
}

struct Function {
    handle: sys::CUfunction,
    /// Its dynamic shared memory limit so far.
    shared_bytes: u32,
}

impl Modules {
    /// The kernel's function, loaded and allowed its shared memory.
    pub(super) fn function(
        &mut self,
        kernel: &'static Kernel,
        shared_bytes: u32,
        capability: (u32, u32),
        capturing: bool,
    ) -> Result<sys::CUfunction> {
        let key = ptr::from_ref(kernel) as usize;
        if !self.functions.contains_key(&key) {
            // A capture does not allow loading modules or functions.
            if capturing {
                return Err(fail(kernel.name, "not loaded before the capture; run the step once without capture"));
            }
            self.load_function(kernel, capability)?;
        }
        let Some(function) = self.functions.get_mut(&key) else {
            return Err(fail(kernel.name, "not in its module"));
        };
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module of the current context.
            match unsafe { api::cuFuncSetAttribute(function.handle, attribute, shared_bytes as c_int) } {
                Code::SUCCESS => function.shared_bytes = shared_bytes,
                code => {
                    let message = format!("cannot have {shared_bytes} bytes of shared memory: {}", describe(code));
                    return Err(fail(kernel.name, message));
                }
            }
        }
        Ok(function.handle)
    }

    /// Loads modules and all their functions. The driver compiles PTX while loading it: several modules at once, each in its own
    /// thread, which gets the context from `bind`.
    ///
    /// # Errors
    /// The error of one module that cannot be loaded; the others stay loaded.
    pub(super) fn preload(
        &mut self,
        modules: &[&'static str],
        capability: (u32, u32),
        bind: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<()> {
        let mut missing: Vec<&'static str> =
            modules.iter().copied().filter(|m| !self.modules.contains_key(m)).collect();
        // Longest first, because all wait for it.
        let length = |module: &str| ptx::candidates(module, capability).first().map_or(0, |ptx| ptx.length);
        missing.sort_by_key(|module| std::cmp::Reverse(length(module)));
        missing.dedup();
        let mut first = Ok(());
        for (module, loaded) in load_all(&missing, capability, bind) {
            match loaded {
                Ok(Loaded(handle)) => drop(self.modules.insert(module, handle)),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first?;
        for &kernel in launches::ALL.iter().filter(|kernel| modules.contains(&kernel.module)) {
            self.function(kernel, 0, capability, false)?;
        }
        Ok(())
    }

    /// Unloads everything.
    ///
    /// # Safety
    /// None of its functions runs or is part of a graph.
    pub(super) unsafe fn unload(&mut self) {
        self.functions.clear();
        for (_, module) in self.modules.drain() {
            // SAFETY: the caller's promise.
            unsafe { api::cuModuleUnload(module) };
        }
    }

    fn load_function(&mut self, kernel: &'static Kernel, capability: (u32, u32)) -> Result<()> {
        let module = match self.modules.get(kernel.module) {
            Some(&module) => module,
            None => {
                let module = load(kernel.module, ptx::candidates(kernel.module, capability), capability)?;
                self.modules.insert(kernel.module, module);
                module
            }
        };
        let name = CString::new(kernel.name).map_err(|_| fail(kernel.name, "a name with a zero byte"))?;
        let mut handle: sys::CUfunction = ptr::null_mut();
        // SAFETY: the module is loaded and the name ends with a zero byte. Functions load lazily, which a capture would refuse, so
        // cuFuncLoad is called.
        let mut found = unsafe { api::cuModuleGetFunction(&mut handle, module, name.as_ptr()) };
        if found == Code::SUCCESS {
            // SAFETY: the function was just found.
            found = unsafe { api::cuFuncLoad(handle) };
        }
        let (mut own, size) = (0, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
        if found == Code::SUCCESS {
            // SAFETY: as above; `own` outlives the call.
            found = unsafe { api::cuFuncGetAttribute(&mut own, size, handle) };
        }
        if found != Code::SUCCESS {
            return Err(fail(kernel.name, format!("cannot be loaded: {}; {}", describe(found), advice(found))));
        }
        let key = ptr::from_ref(kernel) as usize;
        let shared_bytes = FREE_SHARED_BYTES.saturating_sub(own.max(0) as u32);
        self.functions.insert(key, Function { handle, shared_bytes });
        Ok(())
    }
}

fn fail(kernel: &str, message: impl Into<String>) -> Error {
    Error::Kernel { kernel: kernel.into(), message: message.into() }
}

/// A module's handle, usable from any thread.
struct Loaded(sys::CUmodule);

// SAFETY: the driver's handles belong to the context, not to a thread.
unsafe impl Send for Loaded {}

/// Loads modules on as many threads as there are processors; the results are in the order of `modules`.
fn load_all(
    modules: &[&'static str],
    capability: (u32, u32),
    bind: &(dyn Fn() -> Result<()> + Sync),
) -> Vec<(&'static str, Result<Loaded>)> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some(&module) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
            let loaded = bind().and_then(|()| load(module, ptx::candidates(module, capability), capability));
            done.push((module, loaded.map(Loaded)));
        }
        done
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(modules.len());
    let mut all: Vec<_> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        let join = |other: thread::ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|p| panic::resume_unwind(p));
        others.into_iter().flat_map(join).chain(own).collect()
    });
    all.sort_by_key(|(module, _)| modules.iter().position(|m| m == module));
    all
}

/// The first candidate that the driver accepts: it may be too old for the compiler of machine code or PTX.
pub(super) fn load(
    module: &'static str,
    candidates: Vec<&EmbeddedPtx>,
    capability: (u32, u32),
) -> Result<sys::CUmodule> {
    if candidates.is_empty() {
        return Err(Error::StaleKernel { module: module.into() });
    }
    for candidate in candidates {
        if candidate.origin == (Origin::Prebuilt { stale: true }) {
            return Err(Error::StaleKernel { module: module.into() });
        }
        let (code, handle, log) = load_text(&candidate.text(capability)?);
        match code {
            Code::SUCCESS => return Ok(handle),
            Code::UNSUPPORTED_PTX_VERSION => {}
            // Whatever the reason, PTX is tried next, and errors are reported for PTX.
            _ if matches!(candidate.origin, Origin::Cubin { .. }) => {}
            code => {
                let made = match candidate.origin {
                    Origin::Nvcc { version } => format!("PTX of nvcc {version}"),
                    Origin::Cubin { .. } | Origin::Prebuilt { .. } => "prebuilt PTX".to_string(),
                };
                let message = format!("the driver refuses its {made}: {}{log}; {}", describe(code), advice(code));
                return Err(fail(module, message));
            }
        }
    }
    Err(fail(module, "the driver is too old for its PTX; update NVIDIA's driver to 550 or newer"))
}

/// Loads PTX or machine code: returns the result, the module, and the compiler's first complaint.
fn load_text(text: &[u8]) -> (Code, sys::CUmodule, String) {
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
    let mut module: sys::CUmodule = ptr::null_mut();
    // SAFETY: the text ends with a zero byte; the log has the given length, and all outlive the call. cuda.h: numbers are passed
    // in place of the pointer.
    let code = unsafe {
        let (count, options) = (options.len() as u32, options.as_mut_ptr());
        api::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), count, options, values.as_mut_ptr())
    };
    let log = String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
    let log =
        log.lines().find(|line| !line.trim().is_empty()).map_or(String::new(), |line| format!(": {}", line.trim()));
    (code, module, log)
}
