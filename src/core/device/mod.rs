//! Devices that run kernels.
//!
//! [`Accelerator`] is the only interface between the ops and the device that executes kernels: the CUDA driver ([`cuda`]) or the
//! emulator ([`emulator`]). Ops do not see which. Kernels are started through generated, typed launches ([`launches`]): a struct
//! per kernel with named fields, so that two buffers of one type cannot be swapped by mistake.

mod choose;
pub mod cuda;
pub mod emulator;
pub mod instructions;
pub mod launches;
mod ptx;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::{Error, Result};

pub use choose::{Chosen, DeviceChoice};
pub use ptx::{EmbeddedModule, embedded_modules, module_text};

/// A kernel entry point, found by `build.rs` in `kernels/*.cu`.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The `extern "C"` name, for example `layer_norm_fwd_f32`.
    pub name: &'static str,
    /// The source file's stem, for example `layer_norm`: one module per `.cu`, loaded on first use.
    pub module: &'static str,
    /// Most threads of a block, from `__launch_bounds__`.
    pub max_threads: u32,
}

/// Grid and block sizes, and dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory per block in bytes.
    pub shared_bytes: u32,
}

impl LaunchConfig {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], ..Self::default() }
    }

    /// Blocks in x and y, each of `threads` in a row, without dynamic shared memory.
    pub fn grid([x, y]: [usize; 2], threads: u32) -> Self {
        Self { grid: [x as u32, y as u32, 1], block: [threads, 1, 1], ..Self::default() }
    }

    /// One thread per element, with `threads` per block.
    pub fn elements(count: usize, threads: u32) -> Self {
        Self::linear(count.div_ceil(threads as usize).max(1) as u32, threads)
    }

    /// Sets `bytes` of dynamic shared memory.
    pub fn with_shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// A kernel argument with the data that a checker needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KernelArgument {
    /// A tensor: its exact extent, and whether the kernel may write to it (a pointer that is not to `const`).
    Buffer {
        /// Device address of the first byte.
        address: u64,
        /// Extent in bytes.
        bytes: usize,
        /// False for a pointer to `const`.
        writable: bool,
    },
    /// `i32`
    I32(i32),
    /// `u32`
    U32(u32),
    /// `u64`
    U64(u64),
    /// `f32`
    F32(f32),
}

/// A captured sequence of launches, owned by the accelerator that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// A submitted copy from pinned memory, to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// The dtype of a sum over the devices of several processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summand {
    /// `f32`
    F32,
    /// `bf16`, whose sums are rounded to it at each hop.
    Bf16,
}

/// A device that runs kernels: memory, copies, launches, capture and replay.
///
/// Work runs in the order of submission. Addresses are the device's own; arithmetic on them within an allocation is allowed.
pub trait Accelerator: fmt::Debug + Send + Sync {
    /// Its display name: `NVIDIA H100 (cuda:0)`, `emulator`.
    fn name(&self) -> String;

    /// Streaming multiprocessors (for launch configurations; never for the order of sums).
    fn multiprocessors(&self) -> u32;

    /// Whether bf16 products run on tensor cores.
    fn has_tensor_cores(&self) -> bool;

    /// Free and total memory in bytes.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Allocates `bytes`, aligned to 256 bytes. Contents are undefined.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Frees an allocation.
    ///
    /// # Safety
    /// `address` came from [`Accelerator::allocate`] of this accelerator and nothing uses it any more.
    unsafe fn release(&self, address: u64);

    /// Copies host bytes to the device and waits. Refused during capture.
    ///
    /// # Safety
    /// `address .. address + source.len()` lies in one live allocation.
    unsafe fn upload(&self, source: &[u8], address: u64) -> Result<()>;

    /// Allocates `bytes` of pinned host memory, which the device can read directly. Contents are undefined.
    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>>;

    /// Frees pinned memory.
    ///
    /// # Safety
    /// `memory` came from [`Accelerator::allocate_pinned`] of this accelerator with as many bytes, and every copy from it has been
    /// waited for.
    unsafe fn release_pinned(&self, memory: NonNull<u8>, bytes: usize);

    /// Submits a copy from pinned memory to the device, after earlier work, and returns at once. Refused during capture.
    ///
    /// # Safety
    /// `source .. source + bytes` lies in pinned memory of this accelerator, and `address .. address + bytes` in one live
    /// allocation; the source is not written or freed before [`Accelerator::wait_for`] has returned.
    unsafe fn submit_upload(&self, source: NonNull<u8>, bytes: usize, address: u64) -> Result<Ticket>;

    /// Waits until a submitted copy is done. Each ticket is waited for once.
    fn wait_for(&self, ticket: Ticket) -> Result<()>;

    /// Copies device bytes to the host and waits for all earlier work. Refused during capture.
    ///
    /// # Safety
    /// `address .. address + destination.len()` lies in one live allocation.
    unsafe fn download(&self, address: u64, destination: &mut [u8]) -> Result<()>;

    /// Copies within the device; may be captured.
    ///
    /// # Safety
    /// Both ranges lie in live allocations and do not overlap.
    unsafe fn copy(&self, source: u64, destination: u64, bytes: usize) -> Result<()>;

    /// Sets bytes to zero; may be captured.
    ///
    /// # Safety
    /// The range lies in one live allocation.
    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()>;

    /// Submits a kernel. Only called by the generated launches.
    ///
    /// # Safety
    /// The arguments match the kernel's signature and the buffers are live.
    unsafe fn launch(&self, kernel: &'static Kernel, config: LaunchConfig, arguments: &[KernelArgument]) -> Result<()>;

    /// Loads these modules with all their kernels, unless they are loaded, so that a capture needs no loading and a step does not
    /// wait for one after the other.
    fn preload(&self, modules: &[&'static str]) -> Result<()>;

    /// From now on launches, copies and fills are recorded, not executed.
    fn begin_capture(&self) -> Result<()>;

    /// Ends the recording. After an error no capture is active.
    fn end_capture(&self) -> Result<GraphId>;

    /// Submits a recorded sequence.
    ///
    /// # Safety
    /// Every buffer of the sequence is still live.
    unsafe fn replay(&self, graph: GraphId) -> Result<()>;

    /// Submits a recorded sequence after all other work and waits for it: its time on the device's own clock. None if the device
    /// has no clock; then nothing was submitted.
    ///
    /// # Safety
    /// That of [`Accelerator::replay`].
    unsafe fn time(&self, _graph: GraphId) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Drops a recorded sequence.
    fn forget(&self, graph: GraphId);

    /// Waits for all submitted work; returns its errors.
    fn synchronize(&self) -> Result<()>;

    /// From now on every launch, copy and fill is timed separately, until [`Accelerator::end_timing`]. Refused during capture.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device has no clock of its own.
    fn begin_timing(&self) -> Result<()> {
        let reason = "devices of this kind have no clock of their own".into();
        Err(Error::Unsupported { op: "timing", device: self.name(), reason })
    }

    /// Waits for all submitted work. Seconds of each launch, copy and fill since [`Accelerator::begin_timing`], in the order of
    /// submission; none if that was not called.
    ///
    /// # Errors
    /// Those of the device.
    fn end_timing(&self) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    /// The id that devices of several processes share to exchange directly: one process makes it, all give it to
    /// [`Accelerator::communicate`].
    ///
    /// # Errors
    /// [`Error::Unsupported`], or what is missing: the processes then exchange through their hosts.
    fn communicator_id(&self) -> Result<Vec<u8>> {
        Err(no_collectives(self.name()))
    }

    /// Joins the devices of `ranks` processes, of which this is `rank`. Waits until all have joined; call it once per device.
    ///
    /// # Errors
    /// As [`Accelerator::communicator_id`].
    fn communicate(&self, id: &[u8], rank: usize, ranks: usize) -> Result<()> {
        let _ = (id, rank, ranks);
        Err(no_collectives(self.name()))
    }

    /// Submits the sum of `len` elements over the joined devices, in place: after earlier work, and concurrent with later work
    /// until [`Accelerator::join`]. May be captured, once a call of its size was made outside a capture.
    ///
    /// # Safety
    /// `address` is the start of as many live elements, which nothing uses until the join, and all processes submit the same calls
    /// in the same order.
    unsafe fn all_reduce(&self, address: u64, len: usize, of: Summand) -> Result<()> {
        let _ = (address, len, of);
        Err(no_collectives(self.name()))
    }

    /// Submits a gather of `bytes` from each device: this one's are at `source`, at its rank's place in `destination`, which has
    /// room for all. As [`Accelerator::all_reduce`], also until the join.
    ///
    /// # Safety
    /// As [`Accelerator::all_reduce`], for both ranges.
    unsafe fn all_gather(&self, source: u64, destination: u64, bytes: usize) -> Result<()> {
        let _ = (source, destination, bytes);
        Err(no_collectives(self.name()))
    }

    /// Work submitted from now on waits for the current exchanges. A capture ends joined.
    ///
    /// # Errors
    /// Those of the device.
    fn join(&self) -> Result<()> {
        Ok(())
    }
}

fn no_collectives(device: String) -> Error {
    let reason = "devices of this kind exchange through their hosts".into();
    Error::Unsupported { op: "collectives", device, reason }
}

/// An active capture: dropping it before [`Capture::finish`], after an error or a panic, ends the capture and discards the
/// recording.
#[derive(Debug)]
pub struct Capture<'a> {
    accelerator: &'a dyn Accelerator,
    finished: bool,
    /// It must end in the thread that started it.
    stays: PhantomData<*const ()>,
}

impl<'a> Capture<'a> {
    /// From now on launches, copies and fills are recorded, not executed.
    ///
    /// # Errors
    /// If a capture is active, or the device refuses.
    pub fn begin(accelerator: &'a dyn Accelerator) -> Result<Self> {
        accelerator.begin_capture()?;
        Ok(Self { accelerator, finished: false, stays: PhantomData })
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// If the recorded work cannot be a graph.
    pub fn finish(mut self) -> Result<GraphId> {
        self.finished = true;
        self.accelerator.end_capture()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Ok(graph) = self.accelerator.end_capture()
        {
            self.accelerator.forget(graph);
        }
    }
}

/// An element type of kernel pointers.
pub trait KernelScalar: Copy + 'static {}
impl KernelScalar for f32 {}
impl KernelScalar for half::bf16 {}
impl KernelScalar for u8 {}
impl KernelScalar for u16 {}
impl KernelScalar for i32 {}
impl KernelScalar for u32 {}

/// The storage types of kernels: a family `name_f32`, `name_bf16` becomes one launch generic over this.
pub trait KernelFloat: KernelScalar {
    /// Selects this type's entry of a family.
    fn pick(f32: &'static Kernel, bf16: &'static Kernel) -> &'static Kernel;
}
impl KernelFloat for f32 {
    fn pick(f32: &'static Kernel, _bf16: &'static Kernel) -> &'static Kernel {
        f32
    }
}
impl KernelFloat for half::bf16 {
    fn pick(_f32: &'static Kernel, bf16: &'static Kernel) -> &'static Kernel {
        bf16
    }
}

/// A device buffer that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, T> {
    address: u64,
    len: usize,
    borrow: PhantomData<&'a T>,
}

/// A device buffer that a kernel writes (and may read).
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    address: u64,
    len: usize,
    launched: Option<&'a Cell<bool>>,
    borrow: PhantomData<&'a mut T>,
}

impl<T: KernelScalar> Slice<'_, T> {
    /// # Safety
    /// `address` is the device address of `len` live elements of type `T` for the lifetime of the slice.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, borrow: PhantomData }
    }

    /// An absent optional buffer: the kernel gets a null pointer.
    pub fn none() -> Self {
        Self { address: 0, len: 0, borrow: PhantomData }
    }

    /// The slice as a kernel argument.
    pub fn argument(&self) -> KernelArgument {
        KernelArgument::Buffer { address: self.address, bytes: self.len * size_of::<T>(), writable: false }
    }
}

impl<'a, T: KernelScalar> SliceMut<'a, T> {
    /// # Safety
    /// `address` is the device address of `len` live elements of type `T` for the lifetime of the slice, and no other
    /// slice is written through at the same time.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, launched: None, borrow: PhantomData }
    }

    /// An absent optional buffer: the kernel gets a null pointer.
    pub fn none() -> Self {
        Self { address: 0, len: 0, launched: None, borrow: PhantomData }
    }

    /// The slice, where `launched` becomes true once a launch takes it.
    pub fn seen_by(self, launched: &'a Cell<bool>) -> Self {
        Self { launched: Some(launched), ..self }
    }

    /// The slice as a kernel argument.
    pub fn argument(&self) -> KernelArgument {
        if let Some(launched) = self.launched {
            launched.set(true);
        }
        KernelArgument::Buffer { address: self.address, bytes: self.len * size_of::<T>(), writable: true }
    }
}
