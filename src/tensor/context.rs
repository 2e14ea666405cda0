//! Where tensors live and how they are allocated.
//!
//! A [`Context`] is a device plus a mode. *Direct*: every tensor is an allocation of its own (tests, small tools,
//! persistent buffers). *Planning*: nothing is allocated or computed; allocations and ops' costs are recorded.
//! *Running*: allocations take, by number, the offsets that a plan assigned in one arena.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::plan::{Cost, MemoryPlan, Recorder};
use super::{DType, Element, Shape, Tensor};
use crate::device::Accelerator;
use crate::error::{Error, Result};

/// Alignment of every allocation in bytes: a cache line on the CPU, a memory transaction on a GPU.
pub(super) const ALIGNMENT: usize = 256;

/// What executes ops.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host, through each op's `cpu.rs`.
    Cpu,
    /// Whatever runs kernels, through each op's `cuda.rs`.
    Accelerator(Arc<dyn Accelerator>),
}

/// What an op has to do right now.
pub enum Backend<'a> {
    /// Nothing: shapes only.
    Plan,
    /// Compute on the host.
    Cpu,
    /// Launch kernels.
    Accelerator(&'a dyn Accelerator),
}

pub(super) enum Mode {
    Direct,
    Planning(Recorder),
    Running { plan: Rc<MemoryPlan>, next: usize },
}

struct Inner {
    device: Device,
    shape_only: bool,
    mode: RefCell<Mode>,
    arena: RefCell<Option<Arena>>,
    persistent_bytes: Cell<usize>,
    poison: Cell<bool>,
    rounding: Cell<Option<DType>>,
}

struct Arena {
    address: u64,
    bytes: usize,
    generation: u64,
}

/// A device and an allocation mode; cheap to clone; not shared between threads.
#[derive(Clone)]
pub struct Context {
    inner: Rc<Inner>,
}

impl Context {
    /// A context on `device`.
    pub fn new(device: Device) -> Self {
        Self::build(device, false)
    }

    /// A context on the CPU.
    pub fn cpu() -> Self {
        Self::new(Device::Cpu)
    }

    /// A context that never allocates or computes: shapes, memory and costs only (`engine plan`).
    pub fn shape_only() -> Self {
        Self::build(Device::Cpu, true)
    }

    fn build(device: Device, shape_only: bool) -> Self {
        Self {
            inner: Rc::new(Inner {
                device,
                shape_only,
                mode: RefCell::new(Mode::Direct),
                arena: RefCell::new(None),
                persistent_bytes: Cell::new(0),
                poison: Cell::new(false),
                rounding: Cell::new(None),
            }),
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Whether it only plans.
    pub fn is_shape_only(&self) -> bool {
        self.inner.shape_only
    }

    /// The device in words.
    pub fn device_name(&self) -> String {
        match &self.inner.device {
            Device::Cpu => "cpu".into(),
            Device::Accelerator(accelerator) => accelerator.name(),
        }
    }

    /// What an op has to do right now.
    pub fn backend(&self) -> Backend<'_> {
        if self.inner.shape_only || matches!(*self.inner.mode.borrow(), Mode::Planning(_)) {
            return Backend::Plan;
        }
        match &self.inner.device {
            Device::Cpu => Backend::Cpu,
            Device::Accelerator(accelerator) => Backend::Accelerator(accelerator.as_ref()),
        }
    }

    /// Fills every later float tensor with NaN, so that an element that an op forgets shows.
    pub fn set_poison(&self, poison: bool) {
        self.inner.poison.set(poison);
    }

    /// Rounds what CPU ops declare as intermediates to `dtype` (tests only: the argued tolerance of DESIGN's ladder).
    pub fn set_rounding(&self, dtype: Option<DType>) {
        self.inner.rounding.set(dtype);
    }

    /// What CPU ops round declared intermediates to, for those that are no tensors.
    pub(crate) fn rounding(&self) -> Option<DType> {
        self.inner.rounding.get()
    }

    /// Bytes of live tensors outside programs.
    pub fn persistent_bytes(&self) -> usize {
        self.inner.persistent_bytes.get()
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.inner.arena.borrow().as_ref().map_or(0, |arena| arena.bytes)
    }

    /// An uninitialised tensor for an op's output, saved value or scratch: from the program's arena when one runs.
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.len() * dtype.size();
        let place = match &mut *self.inner.mode.borrow_mut() {
            Mode::Direct => None,
            Mode::Planning(recorder) => Some(Place::Planned(recorder.allocate(bytes))),
            Mode::Running { plan, next } => {
                let number = *next;
                *next += 1;
                let Some(slot) = plan.slots.get(number).filter(|slot| slot.bytes == bytes) else {
                    return Err(Error::shape(
                        "program",
                        format!("allocation {number} of {shape} {dtype} is not the planned one: shapes changed since"),
                    ));
                };
                Some(Place::Arena(slot.offset))
            }
        };
        let storage = match place {
            None => return self.persistent(shape, dtype),
            Some(Place::Planned(number)) => {
                Storage { address: 0, bytes, origin: Origin::Planned(number), context: self.clone() }
            }
            Some(Place::Arena(offset)) => {
                let arena = self.inner.arena.borrow();
                let arena = arena.as_ref().filter(|arena| offset + bytes <= arena.bytes).ok_or_else(|| {
                    Error::shape("program", "it runs without an arena of its size: reserve one after planning")
                })?;
                Storage { address: arena.address + offset as u64, bytes, origin: Origin::Arena, context: self.clone() }
            }
        };
        let tensor = Tensor::whole(Rc::new(storage), shape, dtype);
        self.poison(&tensor)?;
        Ok(tensor)
    }

    /// A tensor that outlives programs: parameters, optimizer state, data, results. Uninitialised.
    pub fn persistent(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.len() * dtype.size();
        let address = self.allocate(bytes)?;
        self.inner.persistent_bytes.set(self.inner.persistent_bytes.get() + bytes);
        let storage = Storage { address, bytes, origin: Origin::Owned, context: self.clone() };
        let tensor = Tensor::whole(Rc::new(storage), shape, dtype);
        self.poison(&tensor)?;
        Ok(tensor)
    }

    /// A persistent tensor of zeros.
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let tensor = self.persistent(shape, dtype)?;
        tensor.zero()?;
        Ok(tensor)
    }

    /// A persistent tensor with `values`.
    pub fn tensor<T: Element>(&self, values: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.len() != values.len() {
            return Err(Error::shape("tensor", format!("{} values for shape {shape}", values.len())));
        }
        let tensor = self.persistent(shape, T::DTYPE)?;
        tensor.upload(values)?;
        Ok(tensor)
    }

    /// Tells the plan what an op costs; does nothing unless planning.
    pub fn charge(&self, op: &'static str, cost: Cost) {
        if let Mode::Planning(recorder) = &mut *self.inner.mode.borrow_mut() {
            recorder.charge(op, cost);
        }
    }

    /// Waits for all submitted work.
    pub fn synchronize(&self) -> Result<()> {
        match self.backend() {
            Backend::Accelerator(accelerator) => accelerator.synchronize(),
            _ => Ok(()),
        }
    }

    /// Runs `body` in shape-only mode and returns what it recorded.
    pub(super) fn record(&self, body: impl FnOnce() -> Result<()>) -> Result<Recorder> {
        self.enter(Mode::Planning(Recorder::default()))?;
        let outcome = body();
        let Mode::Planning(recorder) = self.inner.mode.replace(Mode::Direct) else { unreachable!("entered above") };
        outcome.map(|()| recorder)
    }

    /// Runs `body` with allocations taken from the arena as `plan` says.
    pub(super) fn replay(&self, plan: Rc<MemoryPlan>, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let planned = plan.slots.len();
        self.enter(Mode::Running { plan, next: 0 })?;
        let outcome = body();
        let Mode::Running { next, .. } = self.inner.mode.replace(Mode::Direct) else { unreachable!("entered above") };
        outcome?;
        if next != planned {
            return Err(Error::shape("program", format!("made {next} allocations where {planned} were planned")));
        }
        Ok(())
    }

    fn enter(&self, mode: Mode) -> Result<()> {
        let mut current = self.inner.mode.borrow_mut();
        if !matches!(*current, Mode::Direct) {
            return Err(Error::shape("program", "a program cannot start inside another"));
        }
        *current = mode;
        Ok(())
    }

    /// Makes the arena at least `bytes` large. A new arena has a new generation: graphs of older ones are void.
    pub fn reserve_arena(&self, bytes: usize) -> Result<()> {
        let mut arena = self.inner.arena.borrow_mut();
        if arena.as_ref().is_some_and(|arena| arena.bytes >= bytes) {
            return Ok(());
        }
        let generation = arena.as_ref().map_or(1, |arena| arena.generation + 1);
        if let Some(old) = arena.take() {
            self.release(old.address, old.bytes);
        }
        *arena = Some(Arena { address: self.allocate(bytes)?, bytes, generation });
        Ok(())
    }

    pub(super) fn arena_generation(&self) -> u64 {
        self.inner.arena.borrow().as_ref().map_or(0, |arena| arena.generation)
    }

    fn poison(&self, tensor: &Tensor) -> Result<()> {
        if self.inner.poison.get() && tensor.dtype().is_float() && !matches!(self.backend(), Backend::Plan) {
            let bytes = vec![0xFF; tensor.len() * tensor.dtype().size()];
            tensor.upload_bytes(&bytes)?;
        }
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        if self.inner.shape_only {
            return Ok(0);
        }
        match &self.inner.device {
            Device::Accelerator(accelerator) => accelerator.allocate(bytes.max(1)),
            Device::Cpu => {
                let layout = host_layout(bytes)?;
                // SAFETY: the layout's size is not zero.
                let pointer = unsafe { std::alloc::alloc(layout) };
                if pointer.is_null() {
                    return Err(Error::OutOfMemory {
                        device: "cpu".into(),
                        needed: bytes as u64,
                        available: 0,
                        mend: "take a smaller batch or model".into(),
                    });
                }
                advise_huge_pages(pointer, layout.size());
                Ok(pointer as u64)
            }
        }
    }

    fn release(&self, address: u64, bytes: usize) {
        if address == 0 {
            return;
        }
        match &self.inner.device {
            // SAFETY: the address came from `allocate` and its owner is being dropped.
            Device::Accelerator(accelerator) => unsafe { accelerator.release(address) },
            Device::Cpu => {
                if let Ok(layout) = host_layout(bytes) {
                    // SAFETY: allocated by `allocate` with this layout.
                    unsafe { std::alloc::dealloc(address as *mut u8, layout) };
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.take() {
            match &self.device {
                // SAFETY: the arena came from this accelerator and no tensor outlives the context.
                Device::Accelerator(accelerator) => unsafe { accelerator.release(arena.address) },
                Device::Cpu if arena.address != 0 => {
                    if let Ok(layout) = host_layout(arena.bytes) {
                        // SAFETY: allocated by `allocate` with this layout.
                        unsafe { std::alloc::dealloc(arena.address as *mut u8, layout) };
                    }
                }
                Device::Cpu => {}
            }
        }
    }
}

/// Bytes of a huge page, and so the alignment of host allocations that are worth one.
const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages where an allocation is large: fewer page faults at first and fewer TLB misses ever after. Only a
/// hint, so a refusal changes nothing.
fn advise_huge_pages(pointer: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    if bytes >= 2 * HUGE_PAGE {
        // SAFETY: the range was just allocated, and the advice does not change its contents.
        unsafe { libc::madvise(pointer.cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    let _ = (pointer, bytes);
}

fn host_layout(bytes: usize) -> Result<Layout> {
    let alignment = if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
    Layout::from_size_align(bytes.max(1), alignment)
        .map_err(|_| Error::shape("allocate", format!("{bytes} bytes are more than an address space holds")))
}

enum Place {
    Planned(usize),
    Arena(usize),
}

enum Origin {
    Owned,
    Arena,
    Planned(usize),
}

/// The memory behind one or more tensors; given back when the last of them goes.
pub(super) struct Storage {
    pub(super) address: u64,
    pub(super) bytes: usize,
    origin: Origin,
    pub(super) context: Context,
}

impl Drop for Storage {
    fn drop(&mut self) {
        match self.origin {
            Origin::Arena => {}
            Origin::Owned => {
                let inner = &self.context.inner;
                inner.persistent_bytes.set(inner.persistent_bytes.get() - self.bytes);
                self.context.release(self.address, self.bytes);
            }
            Origin::Planned(number) => {
                // A tensor that leaves its program is dropped after planning; its lifetime then ends with the program.
                if let Mode::Planning(recorder) = &mut *self.context.inner.mode.borrow_mut() {
                    recorder.free(number);
                }
            }
        }
    }
}
