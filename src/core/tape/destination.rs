//! Where an input's gradient goes.

use std::cell::Cell;
use std::rc::Rc;

use super::Accumulate;
use super::parts::Waiting;
use crate::device::{KernelScalar, SliceMut};
use crate::error::Result;
use crate::tensor::{Context, DType, Element, Shape, Tensor};

/// Where an input's gradient goes, and whether to overwrite or to add. The memory is had only through the calls below, and the
/// tape sees which were made: a destination that an op took and did not write fails the backward.
#[derive(Debug)]
pub struct Destination {
    /// Shape of the input; dtype of the input, except for weights, whose gradients are `f32`.
    tensor: Tensor,
    /// Overwrite or add.
    pub mode: Accumulate,
    /// Not 0: it holds z, and what is written is multiplied by the derivative of the f of this number.
    chain: u32,
    written: Rc<Cell<bool>>,
    /// Where the last sums of this gradient may wait, if nobody reads it before the tape says so.
    waiting: Option<Rc<Waiting>>,
}

impl Destination {
    /// All of `tensor`, to be overwritten, outside of any tape.
    pub fn overwrite(tensor: &Tensor) -> Self {
        Self::new(tensor.clone(), Accumulate::Write, Rc::default())
    }

    pub(super) fn new(tensor: Tensor, mode: Accumulate, written: Rc<Cell<bool>>) -> Self {
        // Of nothing there is nothing to write.
        written.set(written.get() || tensor.is_empty());
        Self { tensor, mode, chain: 0, written, waiting: None }
    }

    pub(super) fn with_waiting(self, waiting: Option<Rc<Waiting>>) -> Self {
        Self { waiting, ..self }
    }

    pub(super) fn chained(z: Tensor, code: u32, written: Rc<Cell<bool>>) -> Self {
        Self { chain: code, ..Self::new(z, Accumulate::Write, written) }
    }

    /// Whether it holds a z whose gradient takes its place: see [`Destination::flag`].
    pub fn is_chained(&self) -> bool {
        self.chain > 0
    }

    /// As a kernel's `accumulate` argument: 0 to overwrite, 1 to add, 1 + the number of f to multiply by f'(z), z being what is there.
    pub fn flag(&self) -> u32 {
        if self.chain > 0 { 1 + self.chain } else { self.mode.flag() }
    }

    /// The context it lives in.
    pub fn context(&self) -> &Context {
        self.tensor.context()
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.tensor.shape()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.tensor.len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.tensor.is_empty()
    }

    /// The dtype.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.tensor.bytes()
    }

    /// As [`Tensor::is_aligned`].
    pub(crate) fn is_aligned(&self) -> bool {
        self.tensor.is_aligned()
    }

    /// The elements on the host, for `cpu.rs` to write or to add to.
    pub(crate) fn host_mut<T: Element>(&self) -> &mut [T] {
        self.written.set(true);
        self.tensor.host_mut()
    }

    /// Writes the gradient or adds it, by the mode, on the host: for ops outside this crate ([`Tensor::change`]).
    ///
    /// # Errors
    /// As [`Tensor::change`].
    pub fn change<T: Element>(&self, change: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
        self.written.set(true);
        self.tensor.change(change)
    }

    /// As an argument of the kernel that writes it or adds to it; written when that kernel is launched.
    pub fn slice_mut<T: Element + KernelScalar>(&self) -> SliceMut<'_, T> {
        self.tensor.slice_mut().seen_by(&self.written)
    }

    /// For [`sum_parts`](super::sum_parts), which writes it: the tensor, and where that may wait.
    pub(super) fn summed_later(&self) -> (&Tensor, Option<&Rc<Waiting>>) {
        self.written.set(true);
        (&self.tensor, self.waiting.as_ref())
    }

    /// A gradient of zero: written, or nothing added.
    ///
    /// # Errors
    /// Those of the device.
    pub fn put_zero(&self) -> Result<()> {
        self.written.set(true);
        match self.mode {
            Accumulate::Write => self.tensor.zero(),
            Accumulate::Add => Ok(()),
        }
    }

    /// Another tensor's elements, of the same dtype, where they are to be overwritten.
    pub(super) fn copy_from(&self, source: &Tensor) -> Result<()> {
        self.written.set(true);
        self.tensor.copy_from(source)
    }

    /// This destination for an op that can only add: zeros first where it was to be overwritten.
    ///
    /// # Errors
    /// Those of the device.
    pub fn into_sum(self) -> Result<Self> {
        if self.mode == Accumulate::Write {
            self.tensor.zero()?;
        }
        Ok(Self { mode: Accumulate::Add, ..self })
    }
}
