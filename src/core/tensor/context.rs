//! Devices and allocation of tensors.
//!
//! A [`Context`] is a device plus a mode. *Direct*: every tensor is a separate allocation (tests, small tools, persistent
//! buffers). *Planning*: nothing is allocated or computed; allocations and ops' costs are recorded. *Running*: allocations get, by
//! number, the offsets of a plan in one arena.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use super::plan::{Cost, MemoryPlan, Recorder};
use super::{DType, Element, Shape, Tensor, memory};
use crate::device::Accelerator;
use crate::device::instructions::instruction_set;
use crate::error::{Error, Result};

/// The device that executes ops.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host, through each op's `cpu.rs`.
    Cpu,
    /// An accelerator, through each op's `cuda.rs`.
    Accelerator(Arc<dyn Accelerator>),
}

impl Device {
    /// Whether there are instructions for products of bf16: tensor cores; on the CPU AVX-512 BF16 or AMX.
    pub fn multiplies_bf16(&self) -> bool {
        match self {
            Self::Cpu => instruction_set().multiplies_bf16(),
            Self::Accelerator(accelerator) => accelerator.has_tensor_cores(),
        }
    }
}

/// The work required of an op.
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
    tf32: Cell<bool>,
    instrument: Option<Box<dyn Instrument>>,
}

/// Observes a context's allocations: for tests of ops. The context of a run has none.
pub trait Instrument {
    /// Receives a new tensor, outside planning, before its creator does.
    ///
    /// # Errors
    /// Those of the device, which make the allocation fail.
    fn allocated(&self, tensor: &Tensor) -> Result<()>;

    /// The dtype to which CPU ops round declared intermediates, if any.
    fn rounding(&self) -> Option<DType>;
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
        Self::build(device, false, None)
    }

    /// A context on the CPU.
    pub fn cpu() -> Self {
        Self::new(Device::Cpu)
    }

    /// A context that never allocates or computes: shapes, memory and costs only (`engine plan`).
    pub fn shape_only() -> Self {
        Self::build(Device::Cpu, true, None)
    }

    /// A context on `device` whose tensors are observed.
    pub fn instrumented(device: Device, instrument: impl Instrument + 'static) -> Self {
        Self::build(device, false, Some(Box::new(instrument)))
    }

    fn build(device: Device, shape_only: bool, instrument: Option<Box<dyn Instrument>>) -> Self {
        Self {
            inner: Rc::new(Inner {
                device,
                shape_only,
                mode: RefCell::new(Mode::Direct),
                arena: RefCell::new(None),
                persistent_bytes: Cell::new(0),
                tf32: Cell::new(false),
                instrument,
            }),
        }
    }

    /// Lets tensor cores multiply `f32`, or not, which is how a context begins: linear layers, convolutions and attention then round their
    /// factors to TF32 (`f32`'s exponents, 10 bits of fraction: a relative error of at most 2⁻¹¹ each) and sum in `f32`. Set it before
    /// anything is planned, and before the context is cloned: clones share it. Devices without tensor cores multiply `f32`.
    pub fn with_tf32(self, on: bool) -> Self {
        self.inner.tf32.set(on);
        self
    }

    /// Whether products of `f32` have factors rounded to TF32: it was asked for, and the device has tensor cores.
    pub fn multiplies_tf32(&self) -> bool {
        let Device::Accelerator(accelerator) = &self.inner.device else { return false };
        self.inner.tf32.get() && accelerator.has_tensor_cores()
    }

    /// The name of products of tensors of `dtype`: that of the dtype, or `tf32`.
    pub fn products_name(&self, dtype: DType) -> &'static str {
        if dtype == DType::F32 && self.multiplies_tf32() { "tf32" } else { dtype.name() }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Whether it is planning.
    pub fn is_shape_only(&self) -> bool {
        self.inner.shape_only
    }

    /// The device as text.
    pub fn device_name(&self) -> String {
        match &self.inner.device {
            Device::Cpu => "cpu".into(),
            Device::Accelerator(accelerator) => accelerator.name(),
        }
    }

    /// The work required of an op.
    pub fn backend(&self) -> Backend<'_> {
        if self.inner.shape_only || matches!(*self.inner.mode.borrow(), Mode::Planning(_)) {
            return Backend::Plan;
        }
        match &self.inner.device {
            Device::Cpu => Backend::Cpu,
            Device::Accelerator(accelerator) => Backend::Accelerator(accelerator.as_ref()),
        }
    }

    /// The dtype to which CPU ops round declared intermediates that are not tensors.
    pub(crate) fn rounding(&self) -> Option<DType> {
        self.inner.instrument.as_ref().and_then(|instrument| instrument.rounding())
    }

    /// Bytes of live tensors outside programs.
    pub fn persistent_bytes(&self) -> usize {
        self.inner.persistent_bytes.get()
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.inner.arena.borrow().as_ref().map_or(0, |arena| arena.bytes)
    }

    /// An uninitialised tensor for an op's output, saved value or scratch: from the arena while a program runs.
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
        self.show(&tensor)?;
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
        self.show(&tensor)?;
        Ok(tensor)
    }

    /// Borrowed bytes on the host, read in place and never written: for memory-mapped data. They do not count as memory of the
    /// context. In shape-only mode only their number matters.
    ///
    /// # Safety
    /// `bytes` neither move nor change as long as `owner` lives.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number does not match `shape`; [`Error::Unsupported`] on an accelerator.
    pub unsafe fn borrowed(&self, bytes: &[u8], owner: Box<dyn Any>, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if matches!(self.inner.device, Device::Accelerator(_)) {
            let reason = "a device does not read the host's memory".into();
            return Err(Error::Unsupported { op: "borrowed", device: self.device_name(), reason });
        }
        if !self.inner.shape_only && bytes.len() != shape.len() {
            return Err(Error::shape("borrowed", format!("{} bytes for shape {shape}", bytes.len())));
        }
        let (address, origin) = (bytes.as_ptr() as u64, Origin::Borrowed(owner));
        let storage = Storage { address, bytes: shape.len(), origin, context: self.clone() };
        Ok(Tensor::whole(Rc::new(storage), shape, DType::U8))
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

    /// Adds an op's cost to the plan; does nothing unless planning.
    pub fn charge(&self, op: &'static str, cost: Cost) {
        if let Mode::Planning(recorder) = &mut *self.inner.mode.borrow_mut() {
            recorder.charge(op, cost);
        }
    }

    /// Adds a launched kernel module to the plan; does nothing unless planning.
    pub(crate) fn note_module(&self, module: &'static str) {
        if let Mode::Planning(recorder) = &mut *self.inner.mode.borrow_mut() {
            recorder.modules.insert(module);
        }
    }

    /// Waits for all submitted work.
    pub fn synchronize(&self) -> Result<()> {
        match self.backend() {
            Backend::Accelerator(accelerator) => accelerator.synchronize(),
            _ => Ok(()),
        }
    }

    /// Makes work submitted from now on wait for the current exchanges between processes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn join(&self) -> Result<()> {
        match self.backend() {
            Backend::Accelerator(accelerator) => accelerator.join(),
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

    /// Runs `body` with allocations from the arena according to `plan`.
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

    /// Grows the arena to at least `bytes`. A new arena has a new generation: graphs of older ones are invalid.
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

    fn show(&self, tensor: &Tensor) -> Result<()> {
        match &self.inner.instrument {
            Some(instrument) if !matches!(self.backend(), Backend::Plan) => instrument.allocated(tensor),
            _ => Ok(()),
        }
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        if self.inner.shape_only {
            return Ok(0);
        }
        match &self.inner.device {
            Device::Accelerator(accelerator) => accelerator.allocate(bytes.max(1)),
            Device::Cpu => {
                let pointer = memory::allocate(bytes).ok_or_else(|| Error::OutOfMemory {
                    device: "cpu".into(),
                    needed: bytes as u64,
                    available: 0,
                    advice: "use a smaller batch or model".into(),
                })?;
                Ok(pointer.as_ptr() as u64)
            }
        }
    }

    fn release(&self, address: u64, bytes: usize) {
        // SAFETY: the address came from `allocate` with these bytes, and its owner is being dropped.
        unsafe { release(&self.inner.device, address, bytes) };
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.take() {
            // SAFETY: the arena came from this device and no tensor outlives the context.
            unsafe { release(&self.device, arena.address, arena.bytes) };
        }
    }
}

/// Frees memory; address 0, used in shape-only contexts, is ignored.
///
/// # Safety
/// It was allocated on this device with this size, and is no longer used.
unsafe fn release(device: &Device, address: u64, bytes: usize) {
    match (device, NonNull::new(address as *mut u8)) {
        (_, None) => {}
        // SAFETY: the caller's promise.
        (Device::Accelerator(accelerator), Some(_)) => unsafe { accelerator.release(address) },
        // SAFETY: the caller's promise.
        (Device::Cpu, Some(pointer)) => unsafe { memory::release(pointer, bytes) },
    }
}

enum Place {
    Planned(usize),
    Arena(usize),
}

enum Origin {
    Owned,
    /// Kept alive by its owner.
    Borrowed(#[expect(dead_code, reason = "held, never read")] Box<dyn Any>),
    Arena,
    Planned(usize),
}

/// The memory of one or more tensors; freed with the last of them.
pub(super) struct Storage {
    pub(super) address: u64,
    pub(super) bytes: usize,
    origin: Origin,
    pub(super) context: Context,
}

impl Storage {
    pub(super) fn is_borrowed(&self) -> bool {
        matches!(self.origin, Origin::Borrowed(_))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        match self.origin {
            Origin::Arena | Origin::Borrowed(_) => {}
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
