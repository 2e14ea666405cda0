//! NVIDIA devices, through the driver only: no toolkit and no runtime library.
//!
//! One primary context and one non-blocking stream per [`CudaDevice`]; everything is submitted to that stream, so work runs in the
//! order of submission. Tensors are raw addresses, so no events track them.

mod api;
mod clock;
mod driver;
mod launch;
mod machine;
mod modules;
mod nccl;
mod pinned;
mod side;
mod timing;

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use cudarc::driver::sys;

use super::{Accelerator, GraphId, Kernel, KernelArgument, LaunchConfig, Summand, Ticket};
use crate::error::{Error, Result};
use api::Code;
use driver::{advice, check, describe, driver};
use modules::Modules;

pub use machine::PtxMachine;

/// Bytes of the pinned buffer for host copies.
const STAGING_BYTES: usize = 8 << 20;

/// One NVIDIA GPU.
pub struct CudaDevice {
    label: String,
    capability: (u32, u32),
    multiprocessors: u32,
    /// Most shared memory of a block, with opt-in.
    shared_limit: u32,
    /// Whether captured launches may begin early (programmatic dependent launch).
    begins_early: bool,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    state: Mutex<State>,
    /// Notified at the end of a capture.
    captured: Condvar,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every method does first;
// mutable state is behind the mutex.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

#[derive(Default)]
struct State {
    modules: Modules,
    graphs: HashMap<GraphId, sys::CUgraphExec>,
    graphs_made: u64,
    staging: Option<*mut c_void>,
    uploads: pinned::Uploads,
    timing: timing::Timing,
    /// The capturing thread: its work is recorded, and other threads wait.
    capturing: Option<ThreadId>,
    /// Freed during a capture, when the driver refuses to free.
    released: Vec<u64>,
    forgotten: Vec<sys::CUgraphExec>,
    /// The last kernel, for asynchronous errors.
    last_kernel: Option<&'static str>,
    /// Whether the last call launched a kernel.
    after_kernel: bool,
    /// Whether the call before the current one did: then the last work of the stream is a kernel.
    follows_kernel: bool,
    /// The communicator with the GPUs of other processes.
    side: Option<side::Side>,
}

impl CudaDevice {
    /// The number of CUDA devices.
    ///
    /// # Errors
    /// If there is no usable driver.
    pub fn count() -> Result<u32> {
        driver()?;
        let mut count: c_int = 0;
        // SAFETY: the driver is initialised; `count` outlives the call.
        check(unsafe { api::cuDeviceGetCount(&mut count) }, "cuda", "count the devices")?;
        Ok(count.max(0) as u32)
    }

    /// Opens device `ordinal`, counted from 0.
    ///
    /// # Errors
    /// If there is no usable driver, no such device, or one older than compute capability 8.0.
    pub fn open(ordinal: u32) -> Result<Self> {
        let count = Self::count()?;
        let place = format!("cuda:{ordinal}");
        if ordinal >= count {
            let advice = match count {
                0 => "use `device = cpu`".to_string(),
                1 => "use cuda:0".to_string(),
                n => format!("use cuda:0 to cuda:{}", n - 1),
            };
            let plural = if count == 1 { "" } else { "s" };
            return Err(Error::device(place, format!("this machine has {count} CUDA device{plural}"), advice));
        }
        let mut device: sys::CUdevice = 0;
        // SAFETY: `device` outlives the call.
        check(unsafe { api::cuDeviceGet(&mut device, ordinal as c_int) }, &place, "open the device")?;
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most this many bytes, the last a zero.
        let code = unsafe { api::cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int - 1, device) };
        check(code, &place, "read the device's name")?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let label = format!("{} ({place})", String::from_utf8_lossy(name));

        use sys::CUdevice_attribute as Attribute;
        let attribute = |which: Attribute| -> Result<u32> {
            let mut value: c_int = 0;
            // SAFETY: `value` outlives the call.
            check(unsafe { api::cuDeviceGetAttribute(&mut value, which, device) }, &label, "read an attribute")?;
            Ok(value.max(0) as u32)
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let message = format!("compute capability {}.{}, 8.0 (Ampere) is needed", capability.0, capability.1);
            return Err(Error::device(label, message, "use `device = cpu` or a newer GPU"));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_limit = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;

        let begins_early = launch::wanted(capability)?;

        let mut context: sys::CUcontext = ptr::null_mut();
        // SAFETY: `device` came from the driver. `drop` releases the context.
        check(unsafe { api::cuDevicePrimaryCtxRetain(&mut context, device) }, &label, "open a context")?;
        // From here on `drop` cleans up, also after an error.
        let mut opened = Self {
            label,
            capability,
            multiprocessors,
            shared_limit,
            begins_early,
            device,
            context,
            stream: ptr::null_mut(),
            state: Mutex::default(),
            captured: Condvar::new(),
        };
        opened.bind()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the handle is kept in the device.
        let code = unsafe { api::cuStreamCreate(&mut opened.stream, flags) };
        check(code, &opened.label, "create a stream")?;
        Ok(opened)
    }

    /// Compute capability, for example `(9, 0)`.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        check(unsafe { api::cuCtxSetCurrent(self.context) }, &self.label, "make the context current")
    }

    /// The state, with the context current in this thread. Waits for another thread's capture: its graph would record this
    /// thread's work too.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        self.bind()?;
        let own = thread::current().id();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let others = |state: &mut State| state.capturing.is_some_and(|thread| thread != own);
        let mut state = self.captured.wait_while(state, others).unwrap_or_else(PoisonError::into_inner);
        state.follows_kernel = std::mem::take(&mut state.after_kernel);
        Ok(state)
    }

    /// A result as an error, with the last kernel if it is a fault, which any later call may return.
    fn check(&self, state: &State, code: Code, doing: &str) -> Result<()> {
        match (code.is_fault(), state.last_kernel) {
            (true, Some(last)) => check(code, &self.label, &format!("{doing} (work up to kernel {last} has failed)")),
            _ => check(code, &self.label, doing),
        }
    }

    fn refuse_in_capture(&self, state: &State, doing: &str) -> Result<()> {
        if state.capturing.is_none() {
            return Ok(());
        }
        let message = format!("cannot {doing} while a graph is captured");
        Err(Error::device(&self.label, message, "do it before or after the capture"))
    }

    /// The pinned buffer, allocated on first use.
    fn staging(&self, state: &mut State) -> Result<*mut u8> {
        let buffer = match state.staging {
            Some(buffer) => buffer,
            None => {
                let mut buffer = ptr::null_mut();
                // SAFETY: the context is current; freed by `drop`.
                let code = unsafe { api::cuMemAllocHost_v2(&mut buffer, STAGING_BYTES) };
                check(code, &self.label, "allocate pinned memory")?;
                *state.staging.insert(buffer)
            }
        };
        Ok(buffer.cast())
    }

    fn wait(&self, state: &State) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { api::cuStreamSynchronize(self.stream) };
        if code == Code::SUCCESS {
            return Ok(());
        }
        let last = state.last_kernel.map_or(String::new(), |kernel| format!(" at or before kernel {kernel}"));
        Err(Error::device(&self.label, format!("the submitted work failed{last}: {}", describe(code)), advice(code)))
    }

    /// # Safety
    /// The graph's buffers are live; the context is current.
    unsafe fn launch_graph(&self, state: &State, graph: GraphId) -> Result<()> {
        self.refuse_in_capture(state, "replay a graph")?;
        let Some(&executable) = state.graphs.get(&graph) else {
            return Err(Error::device(&self.label, "this graph was dropped", "capture it again"));
        };
        // SAFETY: the graph is this device's and its buffers are live (the caller's promise).
        let code = unsafe { api::cuGraphLaunch(executable, self.stream) };
        self.check(state, code, "replay the graph")
    }

    fn instantiate(&self, state: &State, graph: sys::CUgraph) -> Result<sys::CUgraphExec> {
        let mut executable: sys::CUgraphExec = ptr::null_mut();
        // SAFETY: `graph` is the capture's; the executable graph does not need it any more.
        let code = unsafe {
            let code = api::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            api::cuGraphDestroy(graph);
            code
        };
        self.check(state, code, "instantiate the captured graph")?;
        Ok(executable)
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice").field("label", &self.label).field("capability", &self.capability).finish()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all handles are this device's and unused after this; errors come too late to act on.
        unsafe {
            if !self.stream.is_null() {
                if state.capturing.is_some() {
                    let mut graph = ptr::null_mut();
                    api::cuStreamEndCapture(self.stream, &mut graph);
                    if !graph.is_null() {
                        api::cuGraphDestroy(graph);
                    }
                }
                api::cuStreamSynchronize(self.stream);
            }
            for executable in state.graphs.drain().map(|(_, e)| e).chain(state.forgotten.drain(..)) {
                api::cuGraphExecDestroy(executable);
            }
            for address in state.released.drain(..) {
                api::cuMemFree_v2(address);
            }
            state.side = None;
            state.modules.unload();
            if let Some(buffer) = state.staging.take() {
                api::cuMemFreeHost(buffer);
            }
            state.uploads.destroy();
            state.timing.destroy();
            if !self.stream.is_null() {
                api::cuStreamDestroy_v2(self.stream);
            }
            api::cuCtxSetCurrent(ptr::null_mut());
            api::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

impl Accelerator for CudaDevice {
    fn name(&self) -> String {
        self.label.clone()
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Every accepted device has compute capability 8.0 or more, and so bf16 tensor cores.
    fn has_tensor_cores(&self) -> bool {
        true
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the context is current; both outlive the call.
        check(unsafe { api::cuMemGetInfo_v2(&mut free, &mut total) }, &self.label, "read the memory's state")?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let state = self.enter()?;
        self.refuse_in_capture(&state, "allocate")?;
        let mut address: sys::CUdeviceptr = 0;
        // SAFETY: the context is current. The driver aligns to 256 bytes at least.
        match unsafe { api::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
            Code::OUT_OF_MEMORY => Err(Error::OutOfMemory {
                device: self.label.clone(),
                needed: bytes as u64,
                available: self.memory().map_or(0, |(free, _)| free),
                advice: "use a smaller batch or model, or stop other programs on the device".into(),
            }),
            code => self.check(&state, code, "allocate").map(|()| address),
        }
    }

    unsafe fn release(&self, address: u64) {
        let Ok(mut state) = self.enter() else { return };
        if state.capturing.is_some() {
            state.released.push(address);
        } else {
            // SAFETY: the caller's promise, and earlier work has ended.
            unsafe {
                api::cuStreamSynchronize(self.stream);
                api::cuMemFree_v2(address);
            }
        }
    }

    unsafe fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "copy from the host")?;
        let staging = self.staging(&mut state)?;
        for (index, part) in source.chunks(STAGING_BYTES).enumerate() {
            let to = address + (index * STAGING_BYTES) as u64;
            // SAFETY: `part` is no longer than the staging buffer, which nothing uses after each wait; the device's range is the
            // caller's promise.
            let code = unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), staging, part.len());
                api::cuMemcpyHtoDAsync_v2(to, staging.cast(), part.len(), self.stream)
            };
            self.check(&state, code, "copy to the device")?;
            self.wait(&state)?;
        }
        Ok(())
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        self.pin(bytes)
    }

    unsafe fn release_pinned(&self, memory: NonNull<u8>, _bytes: usize) {
        self.unpin(memory);
    }

    unsafe fn submit_upload(&self, source: NonNull<u8>, bytes: usize, address: u64) -> Result<Ticket> {
        // SAFETY: the same promise.
        unsafe { self.upload_pinned(source, bytes, address) }
    }

    fn wait_for(&self, ticket: Ticket) -> Result<()> {
        self.wait_for_upload(ticket)
    }

    unsafe fn download(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "copy to the host")?;
        let staging = self.staging(&mut state)?;
        for (index, part) in destination.chunks_mut(STAGING_BYTES).enumerate() {
            let from = address + (index * STAGING_BYTES) as u64;
            // SAFETY: as in `upload`.
            let code = unsafe { api::cuMemcpyDtoHAsync_v2(staging.cast(), from, part.len(), self.stream) };
            self.check(&state, code, "copy from the device")?;
            self.wait(&state)?;
            // SAFETY: the copy into the first bytes of the staging buffer has ended.
            unsafe { ptr::copy_nonoverlapping(staging, part.as_mut_ptr(), part.len()) };
        }
        if destination.is_empty() { self.wait(&state) } else { Ok(()) }
    }

    unsafe fn copy(&self, source: u64, destination: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let mut state = self.enter()?;
        self.timed(&mut state, |state| {
            // SAFETY: the ranges are the caller's promise.
            let code = unsafe { api::cuMemcpyDtoDAsync_v2(destination, source, bytes, self.stream) };
            self.check(state, code, "copy on the device")
        })
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let mut state = self.enter()?;
        self.timed(&mut state, |state| {
            // SAFETY: the range is the caller's promise.
            let code = unsafe {
                // In words if possible: a byte-wise fill is several times slower.
                if (address | bytes as u64).is_multiple_of(4) {
                    api::cuMemsetD32Async(address, 0, bytes / 4, self.stream)
                } else {
                    api::cuMemsetD8Async(address, 0, bytes, self.stream)
                }
            };
            self.check(state, code, "clear memory")
        })
    }

    unsafe fn launch(&self, kernel: &'static Kernel, config: LaunchConfig, arguments: &[KernelArgument]) -> Result<()> {
        let mut state = self.enter()?;
        // SAFETY: the caller's promise.
        self.timed(&mut state, |state| unsafe { self.submit(state, kernel, config, arguments) })
    }

    fn preload(&self, modules: &[&'static str]) -> Result<()> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "load kernels")?;
        state.modules.preload(modules, self.capability, &|| self.bind())
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "begin another capture")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's own, not the default one.
        let code = unsafe { api::cuStreamBeginCapture_v2(self.stream, mode) };
        self.check(&state, code, "begin a capture")?;
        state.capturing = Some(thread::current().id());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = {
            self.bind()?;
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        };
        match state.capturing {
            None => return Err(Error::device(&self.label, "no capture to end", "begin one first")),
            Some(thread) if thread != thread::current().id() => {
                let message = "a capture ends in the thread that began it";
                return Err(Error::device(&self.label, message, "end it there"));
            }
            Some(_) => {}
        }
        let mut graph: sys::CUgraph = ptr::null_mut();
        // SAFETY: this stream is being captured, by this thread. Afterwards it is not captured, whatever the result.
        let code = unsafe { api::cuStreamEndCapture(self.stream, &mut graph) };
        state.capturing = None;
        state.after_kernel = false;
        Self::close_side(&mut state);
        self.captured.notify_all();
        let captured = match self.check(&state, code, "capture the graph") {
            Ok(()) => self.instantiate(&state, graph),
            Err(error) => {
                if !graph.is_null() {
                    // SAFETY: nothing else knows this graph.
                    unsafe { api::cuGraphDestroy(graph) };
                }
                Err(error)
            }
        };
        // SAFETY: freed by their owners during the capture; earlier work may still use them, so it is waited for.
        unsafe {
            if !state.forgotten.is_empty() || !state.released.is_empty() {
                api::cuStreamSynchronize(self.stream);
            }
            for executable in state.forgotten.drain(..) {
                api::cuGraphExecDestroy(executable);
            }
            for address in state.released.drain(..) {
                api::cuMemFree_v2(address);
            }
        }
        let executable = captured?;
        // SAFETY: both are this device's. This saves the upload at the first replay.
        let code = unsafe { api::cuGraphUpload(executable, self.stream) };
        if let Err(error) = self.check(&state, code, "upload the graph") {
            // SAFETY: nothing else knows it.
            unsafe { api::cuGraphExecDestroy(executable) };
            return Err(error);
        }
        let id = GraphId(state.graphs_made);
        state.graphs_made += 1;
        state.graphs.insert(id, executable);
        Ok(id)
    }

    unsafe fn replay(&self, graph: GraphId) -> Result<()> {
        let state = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_graph(&state, graph) }
    }

    unsafe fn time(&self, graph: GraphId) -> Result<Option<Duration>> {
        // SAFETY: the same promise.
        unsafe { self.time_graph(graph) }.map(Some)
    }

    fn forget(&self, graph: GraphId) {
        let Ok(mut state) = self.enter() else { return };
        let Some(executable) = state.graphs.remove(&graph) else { return };
        if state.capturing.is_some() {
            state.forgotten.push(executable);
            return;
        }
        // SAFETY: nobody else has the handle, and the work that uses it has ended.
        unsafe {
            api::cuStreamSynchronize(self.stream);
            api::cuGraphExecDestroy(executable);
        }
    }

    fn synchronize(&self) -> Result<()> {
        let state = self.enter()?;
        self.refuse_in_capture(&state, "wait")?;
        self.wait(&state)
    }

    fn begin_timing(&self) -> Result<()> {
        self.start_timing()
    }

    fn end_timing(&self) -> Result<Vec<f64>> {
        self.stop_timing()
    }

    fn communicator_id(&self) -> Result<Vec<u8>> {
        nccl::unique_id().map(|id| id.to_vec())
    }

    fn communicate(&self, id: &[u8], rank: usize, ranks: usize) -> Result<()> {
        let id: &[u8; nccl::ID] = id.try_into().map_err(|_| {
            Error::device(&self.label, format!("an id of {} bytes", id.len()), "use that of communicator_id")
        })?;
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "connect to other GPUs")?;
        state.side = Some(side::Side::new(id, rank, ranks, &self.label)?);
        Ok(())
    }

    unsafe fn all_reduce(&self, address: u64, len: usize, of: Summand) -> Result<()> {
        let mut state = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.add_up_beside(&mut state, address, len, of) }
    }

    unsafe fn all_gather(&self, source: u64, destination: u64, bytes: usize) -> Result<()> {
        let mut state = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.gather_beside(&mut state, source, destination, bytes) }
    }

    fn join(&self) -> Result<()> {
        let mut state = self.enter()?;
        self.join_side(&mut state)
    }
}

#[cfg(test)]
mod tests;
