//! The last step of parameters' gradients on accelerators: sums over the parts that blocks of kernels left in scratch.
//!
//! A small sum is hardly worth a launch of its own. A parameter's waits on the tape, where the caller gave the place of its gradient,
//! until a large one comes, or as many as one launch takes, or the end of the backward; only then is the gradient final. A large one waits for
//! nothing: its parts would have left the second-level cache.

use std::cell::{Cell, RefCell};

use super::Destination;
use crate::device::launches::GradientSums;
use crate::device::{Accelerator, LaunchConfig, Slice, SliceMut};
use crate::error::Result;
use crate::tensor::{Backend, Device, Tensor};

/// Sums of one launch, at most.
const MOST: usize = 7;
/// Bytes of scratch that may wait: parts should still lie in the second-level cache when they are read.
const WAITING_BYTES: usize = 4 << 20;
/// Threads of a block.
const THREADS: u32 = 256;
/// Elements of a block, by [`SumOrder`].
const ELEMENTS: [usize; 2] = [1024, 32];

/// In which order parts are added: a function of shapes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SumOrder {
    /// One after the other, by one thread: for few parts of a weight.
    One = 0,
    /// By eight warps, each every eighth, then the warps' sums: for hundreds of parts of a bias.
    Across = 1,
}

/// How sums lie in scratch: part p of each begins `stride` elements behind part p - 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) count: usize,
    pub(crate) stride: usize,
    pub(crate) order: SumOrder,
}

/// A sum that is still to be made.
struct Sum {
    to: Tensor,
    add: u32,
    partial: Tensor,
    parts: Parts,
}

impl Sum {
    fn blocks(&self) -> usize {
        self.to.len().div_ceil(ELEMENTS[self.parts.order as usize])
    }

    fn bytes(&self) -> usize {
        self.parts.count * self.to.bytes()
    }
}

/// Puts or adds into each destination the sum of its parts, f32, the first of which begins at that element of `partial`. On the CPU,
/// whose ops add up by themselves, and for absent destinations, it does nothing.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where a sum lies outside `partial`; those of the device.
pub(crate) fn sum_parts<const N: usize>(
    partial: &Tensor,
    parts: Parts,
    sums: [(Option<&Destination>, usize); N],
) -> Result<()> {
    if matches!(partial.context().device(), Device::Cpu) {
        return Ok(());
    }
    if parts.count == 0 {
        return sums.into_iter().filter_map(|(to, _)| to).try_for_each(Destination::put_zero);
    }
    let (mut made, mut waiting) = (Vec::with_capacity(N), Vec::with_capacity(N));
    for (to, first) in sums.into_iter().filter_map(|(to, first)| Some((to?, first))).filter(|(to, _)| !to.is_empty()) {
        let partial = partial.part(first, [(parts.count - 1) * parts.stride + to.len()])?;
        let (tensor, queue) = to.summed_later();
        made.push(Sum { to: tensor.clone(), add: to.mode.flag(), partial, parts });
        waiting.extend(queue);
    }
    match waiting.first() {
        Some(queue) if waiting.len() == made.len() => queue.put(made),
        _ => launch(&made),
    }
}

/// A tape's sums that wait.
#[derive(Default)]
pub(super) struct Waiting {
    sums: RefCell<Vec<Sum>>,
    launched: Cell<bool>,
}

impl Waiting {
    fn put(&self, sums: Vec<Sum>) -> Result<()> {
        let of_one_launch = self.sums.borrow().len() + sums.len() <= MOST;
        if !of_one_launch {
            self.launch()?;
        }
        self.sums.borrow_mut().extend(sums);
        let bytes = self.sums.borrow().iter().map(Sum::bytes).sum::<usize>();
        if bytes > WAITING_BYTES { self.launch() } else { Ok(()) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sums.borrow().is_empty()
    }

    /// Whether one of them goes to these elements, or to some of them.
    pub(super) fn touch(&self, tensor: &Tensor) -> bool {
        let (memory, start) = tensor.place();
        self.sums.borrow().iter().any(|sum| {
            let (of, first) = sum.to.place();
            of == memory && first < start + tensor.len() && start < first + sum.to.len()
        })
    }

    /// Makes those that wait.
    pub(super) fn launch(&self) -> Result<()> {
        self.launched.set(true);
        launch(&self.sums.take())
    }

    /// Whether sums were made since the last call: then those are done that waited before.
    pub(super) fn take_launched(&self) -> bool {
        self.launched.take()
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sums wait", self.sums.borrow().len())
    }
}

fn launch(sums: &[Sum]) -> Result<()> {
    let Some(first) = sums.first() else { return Ok(()) };
    match first.to.context().backend() {
        Backend::Plan => {
            first.to.context().note_module("gradient_sums");
            Ok(())
        }
        Backend::Cpu => Ok(()),
        Backend::Accelerator(accelerator) => sums.chunks(MOST).try_for_each(|sums| launch_some(accelerator, sums)),
    }
}

/// A sum as a kernel's arguments.
struct Arguments<'a> {
    to: SliceMut<'a, f32>,
    partial: Slice<'a, f32>,
    parts: u32,
    len: u32,
    stride: u32,
    mode: u32,
}

impl<'a> Arguments<'a> {
    fn of(sum: Option<&'a Sum>) -> Self {
        let Some(Sum { to, add, partial, parts }) = sum else {
            return Self { to: SliceMut::none(), partial: Slice::none(), parts: 0, len: 0, stride: 0, mode: 0 };
        };
        Self {
            to: to.slice_mut(),
            partial: partial.slice(),
            parts: parts.count as u32,
            len: to.len() as u32,
            stride: parts.stride as u32,
            mode: add + 2 * parts.order as u32,
        }
    }
}

#[rustfmt::skip]
fn launch_some(accelerator: &dyn Accelerator, sums: &[Sum]) -> Result<()> {
    let blocks = sums.iter().map(Sum::blocks).sum::<usize>();
    let [a, b, c, d, e, f, g] = std::array::from_fn(|i| Arguments::of(sums.get(i)));
    GradientSums {
        to0: a.to, partial0: a.partial, parts0: a.parts, len0: a.len, stride0: a.stride, mode0: a.mode,
        to1: b.to, partial1: b.partial, parts1: b.parts, len1: b.len, stride1: b.stride, mode1: b.mode,
        to2: c.to, partial2: c.partial, parts2: c.parts, len2: c.len, stride2: c.stride, mode2: c.mode,
        to3: d.to, partial3: d.partial, parts3: d.parts, len3: d.len, stride3: d.stride, mode3: d.mode,
        to4: e.to, partial4: e.partial, parts4: e.parts, len4: e.len, stride4: e.stride, mode4: e.mode,
        to5: f.to, partial5: f.partial, parts5: f.parts, len5: f.len, stride5: f.stride, mode5: f.mode,
        to6: g.to, partial6: g.partial, parts6: g.parts, len6: g.len, stride6: g.stride, mode6: g.mode,
    }
    .launch(accelerator, LaunchConfig::linear(blocks as u32, THREADS))
}
