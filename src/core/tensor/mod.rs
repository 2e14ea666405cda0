//! Dtypes, shapes, storage, tensors; programs and the arena.

pub mod clock;
mod context;
mod dtype;
pub(crate) mod memory;
mod plan;
mod program;
mod shape;
mod uplink;
mod widening;

use std::rc::Rc;

use context::Storage;
pub use context::{Backend, Context, Device, Instrument};
pub use dtype::{DType, Element};
pub(crate) use dtype::{rounded, widened};
use half::bf16;
pub use plan::Cost;
pub use program::Program;
pub use shape::Shape;
pub use uplink::Uplink;
pub(crate) use widening::{in_f32, round_into, widen_into};

use crate::device::{KernelScalar, Slice, SliceMut, Summand};
use crate::error::{Error, Result};

/// A contiguous array on a device. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    storage: Rc<Storage>,
    /// Index of the first element in the storage.
    offset: usize,
    shape: Shape,
    dtype: DType,
}

impl Tensor {
    fn whole(storage: Rc<Storage>, shape: Shape, dtype: DType) -> Self {
        Self { storage, offset: 0, shape, dtype }
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The sizes, outermost first.
    pub fn sizes(&self) -> &[usize] {
        self.shape.sizes()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The dtype.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.storage.context
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The tensor with another shape.
    pub fn view(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(Error::shape("view", format!("{} cannot be seen as {shape}", self.shape)));
        }
        Ok(Self { shape, ..self.clone() })
    }

    /// `shape.len()` elements from flat element `start` on, sharing the memory.
    pub fn part(&self, start: usize, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if start + shape.len() > self.len() {
            return Err(Error::shape("part", format!("{shape} from element {start} on lies outside {}", self.shape)));
        }
        Ok(Self { offset: self.offset + start, shape, ..self.clone() })
    }

    /// The tensor with its bytes as elements of another dtype.
    ///
    /// # Errors
    /// [`Error::Shape`] for a different number of bytes, or a start that is not aligned to that dtype.
    pub fn reinterpret(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let (shape, start) = (shape.into(), self.offset * self.dtype.size());
        if shape.len() * dtype.size() != self.bytes() || !start.is_multiple_of(dtype.size()) {
            return Err(Error::shape("reinterpret", format!("{self:?} cannot be seen as {shape} of {dtype}")));
        }
        Ok(Self { offset: start / dtype.size(), shape, dtype, ..self.clone() })
    }

    /// Its start as an element index of `whole`; None if it is in other memory, or before it.
    pub fn offset_in(&self, whole: &Tensor) -> Option<usize> {
        let same = Rc::ptr_eq(&self.storage, &whole.storage) && self.dtype == whole.dtype;
        self.offset.checked_sub(whole.offset).filter(|_| same)
    }

    /// Its memory and the index of its first element: equal for two tensors with the same first element.
    pub(crate) fn place(&self) -> (usize, usize) {
        (Rc::as_ptr(&self.storage) as usize, self.offset)
    }

    /// Whether another tensor shares the memory.
    pub(crate) fn is_shared(&self) -> bool {
        Rc::strong_count(&self.storage) > 1
    }

    /// Whether accesses of 16 bytes may begin at its first element.
    pub(crate) fn is_aligned(&self) -> bool {
        self.address().is_multiple_of(16)
    }

    fn address(&self) -> u64 {
        self.storage.address + (self.offset * self.dtype.size()) as u64
    }

    /// Refuses to write to borrowed memory.
    fn check_writable(&self, op: &'static str) -> Result<()> {
        match self.storage.is_borrowed() {
            true => Err(Error::shape(op, format!("{self:?} is borrowed memory, which is read-only"))),
            false => Ok(()),
        }
    }

    fn expect<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.dtype != T::DTYPE {
            return Err(Error::shape(op, format!("a tensor of {} where {} is needed", self.dtype, T::DTYPE)));
        }
        Ok(())
    }

    /// The elements on the host, for `cpu.rs` and for reading results of CPU contexts. An op that computes in f32 gets a bf16 tensor
    /// as f32, and what it writes there is rounded when it ends.
    ///
    /// # Panics
    /// For another element type or device: a bug in an op.
    pub fn host<T: Element>(&self) -> &[T] {
        if let Some(copy) = self.widened_copy::<T>(false) {
            // SAFETY: the copy holds as many elements, and lives until the op has ended.
            return unsafe { std::slice::from_raw_parts(copy, self.len()) };
        }
        self.assert_host::<T>();
        // SAFETY: the storage holds `offset + len` elements of this type, aligned, and lives as long as `self`. Ops write only to
        // tensors that they made or own, never to one that they read at the same time.
        unsafe { std::slice::from_raw_parts(self.address() as *const T, self.len()) }
    }

    /// The elements on the host, for writing by an op.
    ///
    /// Only the op that made the tensor (or to which it was given as a destination) writes to it, and it holds no other slice of
    /// the same elements meanwhile.
    ///
    /// # Panics
    /// As [`Tensor::host`].
    #[allow(clippy::mut_from_ref)] // tensors are handles; the discipline above replaces the borrow
    pub(crate) fn host_mut<T: Element>(&self) -> &mut [T] {
        if let Some(copy) = self.widened_copy::<T>(true) {
            // SAFETY: as in `host`; the caller keeps the discipline stated above.
            return unsafe { std::slice::from_raw_parts_mut(copy, self.len()) };
        }
        self.assert_host::<T>();
        assert!(!self.storage.is_borrowed(), "a write to borrowed memory");
        // SAFETY: as in `host`; the caller keeps the discipline stated above.
        unsafe { std::slice::from_raw_parts_mut(self.address() as *mut T, self.len()) }
    }

    /// The f32 copy of a bf16 tensor, where an op asks for it.
    fn widened_copy<T: Element>(&self, writes: bool) -> Option<*mut T> {
        match (self.dtype, T::DTYPE) {
            (DType::BF16, DType::F32) => widening::copy(self, writes).map(|copy| copy.cast()),
            _ => None,
        }
    }

    fn assert_host<T: Element>(&self) {
        assert!(
            matches!(self.context().backend(), Backend::Cpu),
            "host access to a tensor on {}",
            self.context().device_name()
        );
        assert_eq!(self.dtype, T::DTYPE, "host access under another dtype");
    }

    /// The tensor as a kernel input.
    ///
    /// # Panics
    /// For another element type: a bug in an op.
    pub fn slice<T: Element + KernelScalar>(&self) -> Slice<'_, T> {
        assert_eq!(self.dtype, T::DTYPE, "kernel access under another dtype");
        // SAFETY: the storage lives as long as the borrow of `self`.
        unsafe { Slice::from_raw(self.address(), self.len()) }
    }

    /// The tensor as a kernel output.
    ///
    /// # Panics
    /// For another element type: a bug in an op.
    pub fn slice_mut<T: Element + KernelScalar>(&self) -> SliceMut<'_, T> {
        assert_eq!(self.dtype, T::DTYPE, "kernel access under another dtype");
        // SAFETY: the storage lives as long as the borrow of `self`; launches are ordered.
        unsafe { SliceMut::from_raw(self.address(), self.len()) }
    }

    /// Copies `values` to the tensor and waits. Does nothing in shape-only mode.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<()> {
        self.expect::<T>("upload")?;
        if values.len() != self.len() {
            return Err(Error::shape("upload", format!("{} values for shape {}", values.len(), self.shape)));
        }
        self.upload_bytes(bytemuck::cast_slice(values))
    }

    /// Copies raw bytes to the tensor.
    pub(crate) fn upload_bytes(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.bytes() {
            return Err(Error::shape("upload", format!("{} bytes for {} of {}", bytes.len(), self.shape, self.dtype)));
        }
        self.check_writable("upload")?;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => {
                // SAFETY: the storage holds these bytes; `bytes` is foreign memory, so they do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address() as *mut u8, bytes.len()) };
                Ok(())
            }
            // SAFETY: the range lies in this tensor's live storage.
            Backend::Accelerator(accelerator) => unsafe { accelerator.upload(bytes, self.address()) },
        }
    }

    /// Copies the elements to the host, after all earlier work.
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        self.expect::<T>("download")?;
        let mut values = vec![T::zeroed(); self.len()];
        match self.context().backend() {
            Backend::Plan => {}
            Backend::Cpu => values.copy_from_slice(self.host()),
            Backend::Accelerator(accelerator) => {
                // SAFETY: the range lies in this tensor's live storage.
                unsafe { accelerator.download(self.address(), bytemuck::cast_slice_mut(&mut values)) }?;
            }
        }
        Ok(values)
    }

    /// Modifies the elements on the host with `change`, after all earlier work: in place on the CPU, through a copy on an
    /// accelerator. Does nothing in shape-only mode. Call it outside of programs.
    ///
    /// # Errors
    /// [`Error::Shape`] for another element type; those of `change` and of the device.
    pub fn change<T: Element>(&self, change: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
        self.expect::<T>("change")?;
        self.check_writable("change")?;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => change(self.host_mut()),
            Backend::Accelerator(_) => {
                let mut values = self.download::<T>()?;
                change(&mut values)?;
                self.upload(&values)
            }
        }
    }

    /// Replaces the elements, f32 or bf16, by their sums over the joined devices ([`Accelerator::communicate`]), concurrently with
    /// work submitted next: they must not be accessed before [`Context::join`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a device that is not joined, and on the CPU; [`Error::Shape`] for another dtype.
    ///
    /// [`Accelerator::communicate`]: crate::device::Accelerator::communicate
    pub fn all_reduce(&self) -> Result<()> {
        let of = match self.dtype {
            DType::F32 => Summand::F32,
            DType::BF16 => Summand::Bf16,
            other => return Err(Error::shape("all_reduce", format!("sums are of f32 or bf16, not of {other}"))),
        };
        self.check_writable("all_reduce")?;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => Err(self.no_device("all_reduce")),
            // SAFETY: the range lies in this tensor's live storage.
            Backend::Accelerator(accelerator) => unsafe { accelerator.all_reduce(self.address(), self.len(), of) },
        }
    }

    /// Fills in the parts of the other ranks, all as long as that of `rank`, which is this process's own and already in place; as
    /// [`Tensor::all_reduce`].
    ///
    /// # Errors
    /// As [`Tensor::all_reduce`]; [`Error::Shape`] if the elements cannot be divided so.
    pub fn all_gather(&self, rank: usize, ranks: usize) -> Result<()> {
        self.check_writable("all_gather")?;
        if rank >= ranks || !self.bytes().is_multiple_of(ranks) {
            return Err(Error::shape("all_gather", format!("{self:?} for rank {rank} of {ranks}")));
        }
        let bytes = self.bytes() / ranks;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => Err(self.no_device("all_gather")),
            Backend::Accelerator(accelerator) => {
                let source = self.address() + (rank * bytes) as u64;
                // SAFETY: both ranges lie in this tensor's live storage.
                unsafe { accelerator.all_gather(source, self.address(), bytes) }
            }
        }
    }

    fn no_device(&self, op: &'static str) -> Error {
        let reason = "processes exchange through their hosts there".into();
        Error::Unsupported { op, device: self.context().device_name(), reason }
    }

    /// The elements as `f64`, whatever the dtype: for tests, reports and files.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        fn widen<T: Element>(tensor: &Tensor, convert: impl Fn(T) -> f64) -> Result<Vec<f64>> {
            Ok(tensor.download::<T>()?.into_iter().map(convert).collect())
        }
        match self.dtype {
            DType::F32 => widen::<f32>(self, f64::from),
            DType::BF16 => widen::<bf16>(self, f64::from),
            DType::F64 => widen::<f64>(self, |x| x),
            DType::U8 => widen::<u8>(self, f64::from),
            DType::I32 => widen::<i32>(self, f64::from),
            DType::U32 => widen::<u32>(self, f64::from),
        }
    }

    /// Copies `values` to the tensor, rounded to its dtype.
    pub fn upload_f64(&self, values: &[f64]) -> Result<()> {
        match self.dtype {
            DType::F32 => self.upload(&values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            DType::BF16 => self.upload(&values.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>()),
            DType::F64 => self.upload(values),
            DType::U8 => self.upload(&values.iter().map(|&x| x as u8).collect::<Vec<_>>()),
            DType::I32 => self.upload(&values.iter().map(|&x| x as i32).collect::<Vec<_>>()),
            DType::U32 => self.upload(&values.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        }
    }

    /// Sets every byte to zero; may be captured.
    pub fn zero(&self) -> Result<()> {
        self.check_writable("zero")?;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => {
                // SAFETY: the storage holds these bytes, and zero bytes are valid elements.
                unsafe { std::ptr::write_bytes(self.address() as *mut u8, 0, self.bytes()) };
                Ok(())
            }
            // SAFETY: the range lies in this tensor's live storage.
            Backend::Accelerator(accelerator) => unsafe { accelerator.zero(self.address(), self.bytes()) },
        }
    }

    /// Copies from another tensor of the same length and dtype; may be captured.
    pub fn copy_from(&self, source: &Tensor) -> Result<()> {
        if source.dtype != self.dtype || source.len() != self.len() {
            return Err(Error::shape(
                "copy",
                format!("{} of {} into {} of {}", source.shape, source.dtype, self.shape, self.dtype),
            ));
        }
        self.check_writable("copy")?;
        match self.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => {
                // SAFETY: both storages hold these bytes; `copy` allows overlap.
                unsafe { std::ptr::copy(source.address() as *const u8, self.address() as *mut u8, self.bytes()) };
                Ok(())
            }
            // SAFETY: both ranges lie in live storages.
            Backend::Accelerator(accelerator) => unsafe {
                accelerator.copy(source.address(), self.address(), self.bytes())
            },
        }
    }

    /// For `cpu.rs`: whether a declared intermediate is rounded to bf16, as [`Tensor::round_declared`] does.
    pub(crate) fn is_rounded(&self) -> bool {
        matches!((self.context().rounding(), self.context().backend()), (Some(DType::BF16), Backend::Cpu))
    }

    /// For `cpu.rs`: rounds a declared intermediate to the dtype under test (see [`Instrument::rounding`]).
    pub(crate) fn round_declared(&self) {
        if !self.is_rounded() {
            return;
        }
        match self.dtype {
            DType::F32 => self.host_mut::<f32>().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            DType::F64 => self.host_mut::<f64>().iter_mut().for_each(|x| *x = bf16::from_f64(*x).to_f64()),
            _ => {}
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor {} {} on {}", self.shape, self.dtype, self.context().device_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reuses_its_arena_and_checks_its_allocations() -> Result<()> {
        let context = Context::cpu();
        let result = context.zeros([4], DType::F32)?;
        let step = |size: usize| {
            let result = result.clone();
            let context = context.clone();
            move || -> Result<()> {
                let a = context.empty([size], DType::F32)?;
                a.zero()?;
                drop(a);
                let b = context.empty([size], DType::F32)?;
                if matches!(context.backend(), Backend::Cpu) {
                    b.host_mut::<f32>().fill(3.0);
                }
                result.copy_from(&b.part(0, [4])?)
            }
        };
        let mut program = Program::plan(&context, step(1024))?;
        assert_eq!(program.arena_bytes(), 4096);
        program.run(step(1024))?;
        program.run(step(1024))?;
        assert_eq!(result.download::<f32>()?, [3.0; 4]);
        assert!(program.run(step(512)).unwrap_err().to_string().contains("allocation 0"));
        Ok(())
    }

    #[test]
    fn borrowed_bytes_are_read_in_place_and_never_written() -> Result<()> {
        let context = Context::cpu();
        let bytes: std::sync::Arc<[u8]> = (0..6).collect();
        // SAFETY: the owner holds the bytes, which nobody changes.
        let tensor = unsafe { context.borrowed(&bytes[..], Box::new(bytes.clone()), [3, 2]) }?;
        assert_eq!((tensor.host::<u8>().as_ptr(), context.persistent_bytes()), (bytes.as_ptr(), 0));
        for refused in [tensor.zero(), tensor.upload(&[0u8; 6]), tensor.copy_from(&context.zeros([6], DType::U8)?)] {
            assert!(refused.unwrap_err().to_string().contains("read-only"));
        }
        let address = bytes.as_ptr();
        drop(bytes);
        assert_eq!((tensor.host::<u8>(), tensor.host::<u8>().as_ptr()), (&[0, 1, 2, 3, 4, 5][..], address));
        let tail = context.tensor(&[1u8, 0, 0, 0, 2, 0, 0, 0], [8])?.part(4, [4])?.reinterpret(DType::I32, [1])?;
        assert_eq!(tail.download::<i32>()?, [2]);
        assert!(tensor.reinterpret(DType::I32, [2]).is_err());
        Ok(())
    }

    #[test]
    fn shape_only_contexts_allocate_nothing() -> Result<()> {
        let context = Context::shape_only();
        let huge = context.persistent([1 << 20, 1 << 20], DType::F32)?;
        huge.zero()?;
        assert_eq!(context.persistent_bytes(), 1 << 42);
        Ok(())
    }
}
