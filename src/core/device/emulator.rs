//! The emulator as an [`Accelerator`]: kernels run on the host, thread by thread, with every memory access checked.
//!
//! Device memory is host memory, filled with NaNs when it is allocated. A launch's tensors must lie in live allocations, and the
//! kernel may only access them within their exact extents; see the crate `kernel-emulator` in `tools/` for the other checks. That
//! crate compiles `kernels/*.cu` with a C++ compiler into a folder of shared libraries; this adapter only opens such a folder.
//! Their interface is declared in the crate `kernel-abi`.
//!
//! An asynchronous copy from pinned memory is done as late as on a real device: when the host waits for it, or for later work.
//! Until then all submitted work waits too. So a host that writes to a buffer too early changes what the device reads, and tests
//! detect it.
//!
//! Captured work is recorded with its arguments and replayed with them, as in a CUDA graph: a per-step value passed as an argument
//! stays what it was, and a test that compares replays with plain runs detects it.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use kernel_abi as abi;
use libloading::Library;

use super::{Accelerator, GraphId, Kernel, KernelArgument, LaunchConfig, Ticket};
use crate::error::{Error, Result};

const NAME: &str = "emulator";

/// The order of a launch's blocks, warps and lanes. A correct kernel gives the same bits in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By ascending index.
    #[default]
    Forward,
    /// By descending index.
    Reverse,
    /// Shuffled with this seed, again at every barrier and warp collective.
    Random(u64),
}

/// Output elements that no thread of a launch wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The argument's name in the kernel's source.
    pub argument: String,
    /// How many elements.
    pub count: u64,
    /// The index of the first.
    pub first: u64,
}

/// A device that runs kernels on the emulator, one launch after another, on the calling thread.
pub struct EmulatorDevice {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modules: HashMap<&'static str, Module>,
    allocations: BTreeMap<u64, usize>,
    allocated: u64,
    capacity: u64,
    capture: Option<Vec<Step>>,
    graphs: HashMap<GraphId, Arc<Vec<Step>>>,
    next_graph: u64,
    order: Order,
    find_unwritten: bool,
    unwritten: Vec<Unwritten>,
    launches: u64,
    waits: u64,
    tensor_cores: bool,
    /// Submitted but pending work: empty unless it includes a copy from pinned memory.
    late: VecDeque<Late>,
    pinned: BTreeMap<u64, usize>,
    tickets: u64,
}

/// Work after a copy that has not been waited for.
enum Late {
    Upload { source: u64, bytes: usize, address: u64, ticket: Ticket },
    Step(Step),
    Graph(Arc<Vec<Step>>),
}

/// The work recorded in a capture.
#[derive(Clone, Debug)]
enum Step {
    Copy { source: u64, destination: u64, bytes: usize },
    Zero { address: u64, bytes: usize },
    Launch { kernel: &'static Kernel, config: LaunchConfig, arguments: Vec<KernelArgument> },
}

struct Module {
    launch: abi::LaunchFunction,
    kernels: HashMap<String, *const abi::Kernel>,
    // Kept as long as the pointers above.
    _library: Library,
}

// SAFETY: the pointers are to constant data of the library that is kept beside them.
unsafe impl Send for Module {}

impl EmulatorDevice {
    /// A device that runs the kernels of a folder made by `kernel_emulator::compile`. Modules are opened on first use.
    ///
    /// # Errors
    /// [`Error::Device`] if the folder does not exist.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        if !folder.is_dir() {
            let message = format!("{}: no folder of compiled kernels", folder.display());
            return Err(Error::device(NAME, message, "make one with kernel_emulator::compile"));
        }
        let state = State { capacity: 16 << 30, ..State::default() };
        Ok(Self { folder, state: Mutex::new(state) })
    }

    /// Sets the order of later launches.
    pub fn set_order(&self, order: Order) {
        self.lock().order = order;
    }

    /// Sets the limit of allocated bytes (initially 16 GiB).
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Sets whether the device reports tensor cores (initially not), which changes the `auto` precision.
    pub fn set_tensor_cores(&self, present: bool) {
        self.lock().tensor_cores = present;
    }

    /// Sets whether later launches check for unwritten output elements: [`EmulatorDevice::take_unwritten`].
    pub fn set_find_unwritten(&self, find: bool) {
        self.lock().find_unwritten = find;
    }

    /// The unwritten elements of launches since the last call.
    pub fn take_unwritten(&self) -> Vec<Unwritten> {
        std::mem::take(&mut self.lock().unwritten)
    }

    /// Launches so far, including replays, but not those only recorded or still pending.
    pub fn launches(&self) -> u64 {
        self.lock().launches
    }

    /// Calls so far in which a host would wait for a real device: copies from and to the host, and synchronisation.
    pub fn waits(&self) -> u64 {
        self.lock().waits
    }

    /// Graphs captured so far, including dropped ones.
    pub fn captures(&self) -> u64 {
        self.lock().next_graph
    }

    /// Live allocations, including pinned ones: 0 at the end of a test without leaks.
    pub fn live_allocations(&self) -> usize {
        let state = self.lock();
        state.allocations.len() + state.pinned.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn submit(&self, step: Step) -> Result<()> {
        let mut state = self.lock();
        if let Some(steps) = &mut state.capture {
            steps.push(step);
        } else if state.late.is_empty() {
            return state.run(&self.folder, &step);
        } else {
            state.late.push_back(Late::Step(step));
        }
        Ok(())
    }
}

impl fmt::Debug for EmulatorDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmulatorDevice").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for EmulatorDevice {
    fn drop(&mut self) {
        let allocations = std::mem::take(&mut self.lock().allocations);
        let pinned = std::mem::take(&mut self.lock().pinned);
        for (address, bytes) in allocations.into_iter().chain(pinned) {
            // SAFETY: allocated with this layout, and not yet freed.
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
        }
    }
}

/// The layout of an allocation: never empty, so that every one has a distinct address.
///
/// # Panics
/// Above `isize::MAX - 256` bytes, which `allocate` refuses.
fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).expect("allocate refuses what is too large for a layout")
}

fn device_error(message: impl Into<String>, advice: &str) -> Error {
    Error::device(NAME, message, advice)
}

impl State {
    /// Whether `address .. address + bytes` lies in one live allocation.
    fn is_live(&self, address: u64, bytes: usize) -> bool {
        self.allocations
            .range(..=address)
            .next_back()
            .is_some_and(|(start, size)| bytes <= *size && (address - start) as usize <= size - bytes)
    }

    fn check_live(&self, what: &str, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || self.is_live(address, bytes) {
            return Ok(());
        }
        let message = format!("{what}: {bytes} bytes at {address:#x} are not in a live allocation");
        Err(device_error(message, "keep the buffer alive and stay within it"))
    }

    fn refuse_in_capture(&self, what: &str) -> Result<()> {
        match self.capture {
            Some(_) => Err(device_error(format!("{what} during a capture"), "do it before begin_capture")),
            None => Ok(()),
        }
    }

    /// Runs pending work: up to the copy of `ticket`, or all of it.
    fn catch_up(&mut self, folder: &Path, ticket: Option<Ticket>) -> Result<()> {
        while let Some(late) = self.late.pop_front() {
            match late {
                Late::Step(step) => self.run(folder, &step)?,
                Late::Graph(steps) => steps.iter().try_for_each(|step| self.run(folder, step))?,
                Late::Upload { source, bytes, address, ticket: done } => {
                    let room = self.pinned.range(..=source).next_back();
                    if room.is_none_or(|(start, size)| source + bytes as u64 > start + *size as u64) {
                        let message = "a copy from pinned memory that was given back before it was done";
                        return Err(device_error(message, "wait for its ticket first"));
                    }
                    self.check_live("upload", address, bytes)?;
                    // SAFETY: the source is pinned, the destination live.
                    unsafe { std::ptr::copy_nonoverlapping(source as *const u8, address as *mut u8, bytes) };
                    if ticket == Some(done) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, folder: &Path, step: &Step) -> Result<()> {
        match step {
            Step::Copy { source, destination, bytes } => {
                self.check_live("copy from", *source, *bytes)?;
                self.check_live("copy to", *destination, *bytes)?;
                // SAFETY: both ranges are live; `copy` allows an overlap.
                unsafe { std::ptr::copy(*source as *const u8, *destination as *mut u8, *bytes) };
                Ok(())
            }
            Step::Zero { address, bytes } => {
                self.check_live("zero", *address, *bytes)?;
                // SAFETY: the range is live.
                unsafe { std::ptr::write_bytes(*address as *mut u8, 0, *bytes) };
                Ok(())
            }
            Step::Launch { kernel, config, arguments } => self.run_kernel(folder, kernel, *config, arguments),
        }
    }

    fn run_kernel(
        &mut self,
        folder: &Path,
        kernel: &'static Kernel,
        config: LaunchConfig,
        arguments: &[KernelArgument],
    ) -> Result<()> {
        let fail = |message: String| Error::Kernel { kernel: kernel.name.to_string(), message };
        self.open(folder, kernel.module)?;
        let found = self.modules.get(kernel.module).and_then(|m| Some((*m.kernels.get(kernel.name)?, m.launch)));
        let Some((pointer, launch)) = found else {
            return Err(fail(format!("not in the compiled kernels at {}; compile them again", folder.display())));
        };
        // SAFETY: the parameters are as many as the table says, and live as long as the module.
        let parameters = unsafe { (*pointer).parameters() };
        // SAFETY: the module is loaded.
        let name = |index: usize| parameters.get(index).map_or_else(|| index.to_string(), |p| unsafe { p.name() });

        let mut raw = Vec::with_capacity(arguments.len());
        for (index, argument) in arguments.iter().enumerate() {
            let scalar = |kind, value| abi::Argument { kind, value, ..Default::default() };
            raw.push(match *argument {
                KernelArgument::Buffer { address, bytes, writable } => {
                    if bytes > 0 && !self.is_live(address, bytes) {
                        let place = format!("{bytes} bytes at {address:#x} are not in a live allocation");
                        return Err(fail(format!("argument {}: {place}", name(index))));
                    }
                    abi::Argument {
                        kind: abi::BUFFER,
                        writable: u32::from(writable),
                        value: address,
                        bytes: bytes as u64,
                        ..Default::default()
                    }
                }
                KernelArgument::I32(v) => scalar(abi::I32, u64::from(v as u32)),
                KernelArgument::U32(v) => scalar(abi::U32, u64::from(v)),
                KernelArgument::U64(v) => scalar(abi::U64, v),
                KernelArgument::F32(v) => scalar(abi::F32, u64::from(v.to_bits())),
            });
        }
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let config = abi::Config {
            grid: config.grid,
            block: config.block,
            shared_bytes: config.shared_bytes,
            order,
            seed,
            find_unwritten: u32::from(self.find_unwritten),
            reserved: 0,
        };
        let mut report = abi::Report { accesses: 0, barriers: 0, message: [0; 2040] };
        // SAFETY: every buffer lies in a live allocation of this device, which is locked; the emulator keeps the kernel
        // within the extents and compares the arguments with the kernel's parameters.
        let failed = unsafe { launch(pointer, &config, raw.as_mut_ptr(), raw.len() as u32, &mut report) } != 0;
        if failed {
            let message = CStr::from_bytes_until_nul(&report.message).unwrap_or(c"failed");
            return Err(fail(message.to_string_lossy().into_owned()));
        }
        self.launches += 1;
        self.unwritten.extend(raw.iter().enumerate().filter(|(_, a)| a.unwritten > 0).map(|(index, a)| Unwritten {
            kernel: kernel.name,
            argument: name(index),
            count: a.unwritten,
            first: a.first_unwritten,
        }));
        Ok(())
    }

    fn open(&mut self, folder: &Path, module: &'static str) -> Result<()> {
        if !self.modules.contains_key(module) {
            let path = folder.join(format!("{module}.so"));
            // SAFETY: the folder was made by `kernel_emulator::compile`, whose libraries' initialisers do nothing.
            let opened = unsafe { Module::open(&path) }.map_err(|e| {
                device_error(
                    format!("{}: {e}", path.display()),
                    "compile the kernels again with kernel_emulator::compile",
                )
            })?;
            self.modules.insert(module, opened);
        }
        Ok(())
    }
}

impl Module {
    /// # Safety
    /// The file is a library made by `kernel_emulator::compile`.
    unsafe fn open(path: &Path) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        // SAFETY: promised by the caller; the interface's version is compared before anything else is used.
        unsafe {
            let library = Library::new(path)?;
            let table = &*library.get::<abi::ModuleFunction>(b"emulator_module")?();
            if table.abi != abi::VERSION {
                return Err(format!("interface version {} instead of {}", table.abi, abi::VERSION).into());
            }
            let launch = *library.get::<abi::LaunchFunction>(b"emulator_launch")?;
            let kernels = std::slice::from_raw_parts(table.kernels, table.kernel_count as usize)
                .iter()
                .map(|k| (CStr::from_ptr(k.name).to_string_lossy().into_owned(), std::ptr::from_ref(k)))
                .collect();
            Ok(Self { launch, kernels, _library: library })
        }
    }
}

impl Accelerator for EmulatorDevice {
    fn name(&self) -> String {
        NAME.to_string()
    }

    fn multiprocessors(&self) -> u32 {
        4
    }

    fn has_tensor_cores(&self) -> bool {
        self.lock().tensor_cores
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let state = self.lock();
        Ok((state.capacity.saturating_sub(state.allocated), state.capacity))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut state = self.lock();
        let available = state.capacity.saturating_sub(state.allocated);
        let refused = Error::OutOfMemory {
            device: NAME.to_string(),
            needed: bytes as u64,
            available,
            advice: "use a smaller batch or model".to_string(),
        };
        if bytes as u64 > available || bytes > isize::MAX as usize - 256 {
            return Err(refused);
        }
        // SAFETY: the layout is not empty.
        let pointer = unsafe { alloc(layout(bytes)) };
        if pointer.is_null() {
            return Err(refused);
        }
        // NaNs in f32 and bf16: reads of unwritten values are visible.
        // SAFETY: just allocated with at least this size.
        unsafe { std::ptr::write_bytes(pointer, 0xff, bytes) };
        state.allocations.insert(pointer as u64, bytes);
        state.allocated += bytes as u64;
        Ok(pointer as u64)
    }

    unsafe fn release(&self, address: u64) {
        let mut state = self.lock();
        // As in the driver: memory is freed when the work that uses it is done. Errors of that work are lost.
        let _ = state.catch_up(&self.folder, None);
        if let Some(bytes) = state.allocations.remove(&address) {
            state.allocated -= bytes as u64;
            // SAFETY: allocated with this layout, and no longer in the table.
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
        }
    }

    unsafe fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        let mut state = self.lock();
        state.waits += 1;
        state.refuse_in_capture("an upload")?;
        state.catch_up(&self.folder, None)?;
        state.check_live("upload", address, source.len())?;
        // SAFETY: the destination is live, and is no Rust object's memory.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), address as *mut u8, source.len()) };
        Ok(())
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc(layout(bytes)) })
            .ok_or_else(|| device_error(format!("no {bytes} bytes of pinned memory"), "use a smaller batch"))?;
        // SAFETY: just allocated with at least this size.
        unsafe { std::ptr::write_bytes(memory.as_ptr(), 0xff, bytes) };
        self.lock().pinned.insert(memory.as_ptr() as u64, bytes);
        Ok(memory)
    }

    unsafe fn release_pinned(&self, memory: NonNull<u8>, _bytes: usize) {
        if let Some(bytes) = self.lock().pinned.remove(&(memory.as_ptr() as u64)) {
            // SAFETY: allocated with this layout, and no longer in the table.
            unsafe { dealloc(memory.as_ptr(), layout(bytes)) };
        }
    }

    unsafe fn submit_upload(&self, source: NonNull<u8>, bytes: usize, address: u64) -> Result<Ticket> {
        let mut state = self.lock();
        state.refuse_in_capture("an upload")?;
        state.check_live("upload", address, bytes)?;
        let ticket = Ticket(state.tickets);
        state.tickets += 1;
        state.late.push_back(Late::Upload { source: source.as_ptr() as u64, bytes, address, ticket });
        Ok(ticket)
    }

    fn wait_for(&self, ticket: Ticket) -> Result<()> {
        let mut state = self.lock();
        let pending = |late: &Late| matches!(late, Late::Upload { ticket: other, .. } if *other == ticket);
        if state.late.iter().any(pending) { state.catch_up(&self.folder, Some(ticket)) } else { Ok(()) }
    }

    unsafe fn download(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        state.waits += 1;
        state.refuse_in_capture("a download")?;
        state.catch_up(&self.folder, None)?;
        state.check_live("download", address, destination.len())?;
        // SAFETY: the source is live, and is no Rust object's memory.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, destination.as_mut_ptr(), destination.len()) };
        Ok(())
    }

    unsafe fn copy(&self, source: u64, destination: u64, bytes: usize) -> Result<()> {
        self.submit(Step::Copy { source, destination, bytes })
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.submit(Step::Zero { address, bytes })
    }

    unsafe fn launch(&self, kernel: &'static Kernel, config: LaunchConfig, arguments: &[KernelArgument]) -> Result<()> {
        self.submit(Step::Launch { kernel, config, arguments: arguments.to_vec() })
    }

    fn preload(&self, modules: &[&'static str]) -> Result<()> {
        let mut state = self.lock();
        modules.iter().try_for_each(|module| state.open(&self.folder, module))
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.lock();
        state.refuse_in_capture("begin_capture")?;
        state.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.lock();
        let steps =
            state.capture.take().ok_or_else(|| device_error("no capture to end", "call begin_capture first"))?;
        let graph = GraphId(state.next_graph);
        state.next_graph += 1;
        state.graphs.insert(graph, Arc::new(steps));
        Ok(graph)
    }

    unsafe fn replay(&self, graph: GraphId) -> Result<()> {
        let mut state = self.lock();
        state.refuse_in_capture("a replay")?;
        let steps = state.graphs.get(&graph).cloned();
        let steps = steps.ok_or_else(|| device_error(format!("no graph {}", graph.0), "replay before forget"))?;
        if !state.late.is_empty() {
            state.late.push_back(Late::Graph(steps));
            return Ok(());
        }
        steps.iter().try_for_each(|step| state.run(&self.folder, step))
    }

    fn forget(&self, graph: GraphId) {
        self.lock().graphs.remove(&graph);
    }

    fn synchronize(&self) -> Result<()> {
        let mut state = self.lock();
        state.waits += 1;
        state.refuse_in_capture("synchronize")?;
        state.catch_up(&self.folder, None)
    }
}

#[cfg(test)]
mod tests;
