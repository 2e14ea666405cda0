//! Records ops and replays them backwards (reverse-mode differentiation).
//!
//! An op that has gradients names its inputs ([`Tape::inputs`]), which gives it a handle for each, and records its output
//! with a closure that turns the output's gradient into the inputs' ([`Inputs::record`]). Backwards, the closure asks for a
//! [`Destination`] by each handle: where the gradient goes and whether to [`Accumulate::Write`] or [`Accumulate::Add`]. The
//! tape alone decides which; parameters' destinations are slices of the flat gradient buffer. A closure that ends without
//! having asked for and written every gradient that is wanted fails the backward, by the names of op and input. Saved
//! tensors are dropped as soon as their closure has run, so that a program's plan sees their true lifetimes.

mod backward;
mod destination;
mod parts;
mod prepared;
mod sum;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use backward::NamedInput;
pub use backward::{Backward, Input, Inputs};
pub use destination::Destination;
use parts::Waiting;
pub(crate) use parts::{Parts, SumOrder, sum_parts};
pub use prepared::PreparedWeights;
pub use sum::add_to;
pub(crate) use sum::convert;

use crate::error::{Error, Result};
use crate::tensor::{Context, DType, Shape, Tensor};

/// Whether a gradient overwrites its destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Overwrite; the destination's contents are undefined before.
    Write,
    /// Add to what is there.
    Add,
}

impl Accumulate {
    /// As a kernel's `accumulate` argument.
    pub fn flag(self) -> u32 {
        (self == Accumulate::Add) as u32
    }
}

/// A tensor with its place on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    tensor: Tensor,
    /// None: no gradient is wanted.
    id: Option<usize>,
}

impl Var {
    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.tensor.shape()
    }

    /// Its sizes, outermost first.
    pub fn sizes(&self) -> &[usize] {
        self.tensor.sizes()
    }

    /// Its dtype.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        self.tensor.context()
    }

    /// Whether a gradient is wanted.
    pub fn needs_gradient(&self) -> bool {
        self.id.is_some()
    }

    /// A view of these elements under another shape, at this place on the tape.
    pub fn view(&self, shape: impl Into<Shape>) -> Result<Var> {
        Ok(Var { tensor: self.tensor.view(shape)?, id: self.id })
    }
}

type Closure = Box<dyn FnOnce(&Backward) -> Result<()>>;

struct Node {
    op: &'static str,
    output: usize,
    inputs: Vec<NamedInput>,
    closure: Closure,
}

enum Slot {
    /// Nothing has arrived yet; a place may have been given, and whether to overwrite it.
    Vacant(Option<(Tensor, Accumulate)>),
    /// Holds the sum so far. `given`: in a destination that the caller gave, so that it has to stay there.
    Held { tensor: Tensor, given: bool },
}

/// How an op ended: its output is y = f(z), f elementwise and number `code` (not 0) of the consumers' kernels. A consumer that is
/// the only one may write dz = dy f'(z) over z instead of dy: the pass over both is saved. See [`Inputs::record_chained`].
#[derive(Clone, Debug)]
pub struct Chain {
    /// z, of the output's shape and dtype; nobody reads it afterwards.
    pub z: Tensor,
    /// f, as a kernel's argument.
    pub code: u32,
}

/// A chain of a variable, and whether its consumer took it.
struct Link {
    chain: Option<Chain>,
    uses: usize,
}

/// A record of the ops of one forward pass.
pub struct Tape {
    context: Context,
    nodes: RefCell<Vec<Node>>,
    slots: RefCell<Vec<Slot>>,
    links: RefCell<HashMap<usize, Link>>,
    waiting: Rc<Waiting>,
    recording: bool,
    prepared: Option<Rc<PreparedWeights>>,
}

impl Tape {
    /// A tape that records.
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            nodes: RefCell::default(),
            slots: RefCell::default(),
            links: RefCell::default(),
            waiting: Rc::default(),
            recording: true,
            prepared: None,
        }
    }

    /// A tape that records nothing: for sampling and validation. What ops save is dropped at once.
    pub fn inference(context: &Context) -> Self {
        Self { recording: false, ..Self::new(context) }
    }

    /// As this tape, but ops read weights in the forms of `prepared` where it has them.
    pub fn with_prepared(self, prepared: &Rc<PreparedWeights>) -> Self {
        Self { prepared: Some(prepared.clone()), ..self }
    }

    /// For an op on the CPU: what `make(source, made)` made of `source` at the last [`PreparedWeights::refresh`]. None where there
    /// is no such thing, so that the op does without. In planning, makes room for `len` elements of `dtype` under `name`, which tells
    /// an op's forms of one weight apart.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn prepared(
        &self,
        source: &Tensor,
        name: &'static str,
        (len, dtype): (usize, DType),
        make: impl Fn(&Tensor, &Tensor) -> Result<()> + 'static,
    ) -> Result<Option<Tensor>> {
        match &self.prepared {
            Some(prepared) => prepared.form(source, name, (len, dtype), make),
            None => Ok(None),
        }
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// An input without a gradient.
    pub fn constant(&self, tensor: &Tensor) -> Var {
        Var { tensor: tensor.clone(), id: None }
    }

    /// An input whose gradient, of its own dtype, is read by [`Tape::gradient`] after [`Tape::backward`].
    pub fn leaf(&self, tensor: &Tensor) -> Var {
        self.variable(tensor, None)
    }

    /// A parameter: its gradient is put or added into `gradient` (a slice of the flat gradient buffer).
    pub fn parameter(&self, tensor: &Tensor, gradient: &Tensor, mode: Accumulate) -> Var {
        self.variable(tensor, Some((gradient.clone(), mode)))
    }

    fn variable(&self, tensor: &Tensor, destination: Option<(Tensor, Accumulate)>) -> Var {
        let id = self.recording.then(|| self.slot(Slot::Vacant(destination)));
        Var { tensor: tensor.clone(), id }
    }

    fn slot(&self, slot: Slot) -> usize {
        let mut slots = self.slots.borrow_mut();
        slots.push(slot);
        slots.len() - 1
    }

    /// For one call of `op`: names its inputs, then records its output.
    pub fn inputs(&self, op: &'static str) -> Inputs<'_> {
        Inputs::new(self, op)
    }

    /// Runs the record backwards from `output` with `gradient` (shape and dtype of `output`). The record is used up.
    ///
    /// A parameter that no op used still has its gradient defined: zero if it was to be written.
    ///
    /// # Errors
    /// [`Error::Shape`] where the output wants no gradient or one of another shape or dtype, and by an op's name where its
    /// backward leaves out a gradient that is wanted; what the ops report.
    pub fn backward(&self, output: &Var, gradient: Tensor) -> Result<()> {
        self.backward_then(output, gradient, |_| Ok(()))
    }

    /// As [`Tape::backward`]; `done` is called with each parameter's gradient once it is final: an exchange of it may begin then. On
    /// accelerators a few small sums of gradients wait for each other, and what is final behind them with them. It is called once for
    /// each parameter, in the same order on every pass of one network.
    ///
    /// # Errors
    /// As [`Tape::backward`], and those of `done`.
    pub fn backward_then(
        &self,
        output: &Var,
        gradient: Tensor,
        mut done: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let Some(id) = output.id else {
            return Err(Error::shape("backward", "the output depends on nothing that wants a gradient"));
        };
        if gradient.shape().len() != output.shape().len() || gradient.dtype() != output.dtype() {
            return Err(Error::shape(
                "backward",
                format!(
                    "a gradient {} {} for an output {} {}",
                    gradient.shape(),
                    gradient.dtype(),
                    output.shape(),
                    output.dtype()
                ),
            ));
        }
        let (last, unused) = self.last_uses();
        let mut whole = Vec::new();
        self.slots.borrow_mut()[id] = Slot::Held { tensor: gradient, given: false };
        loop {
            let Some(node) = self.nodes.borrow_mut().pop() else { break };
            let number = self.nodes.borrow().len();
            let slot = std::mem::replace(&mut self.slots.borrow_mut()[node.output], Slot::Vacant(None));
            let chained = self.links.borrow_mut().remove(&node.output).is_some_and(|link| link.chain.is_none());
            // A vacant output: nothing that led to the loss used it.
            if let Slot::Held { tensor: gradient, .. } = slot {
                let backward = Backward::new(self, node.op, node.inputs, gradient, chained);
                (node.closure)(&backward)?;
                backward.check_all_written()?;
            }
            let before = whole.len();
            whole.extend_from_slice(&last[number]);
            let settled = match (self.waiting.take_launched(), self.waiting.is_empty()) {
                (_, true) => whole.len(),
                // What waits is of this node.
                (true, false) => before,
                (false, false) => 0,
            };
            whole.drain(..settled).try_for_each(|id| self.settle(id, &mut done))?;
        }
        self.waiting.launch()?;
        whole.into_iter().chain(unused).try_for_each(|id| self.settle(id, &mut done))
    }

    /// By node: the parameters whose gradients are whole once it has run backwards. And those that no node uses.
    fn last_uses(&self) -> (Vec<Vec<usize>>, Vec<usize>) {
        let (nodes, slots) = (self.nodes.borrow(), self.slots.borrow());
        let mut open: Vec<bool> = slots.iter().map(|slot| matches!(slot, Slot::Vacant(Some(_)))).collect();
        let mut last = vec![Vec::new(); nodes.len()];
        // Backwards the first one that used it comes last.
        for (node, done) in nodes.iter().zip(&mut last) {
            for id in node.inputs.iter().filter_map(NamedInput::id) {
                if std::mem::replace(&mut open[id], false) {
                    done.push(id);
                }
            }
        }
        let unused = (0..open.len()).filter(|id| open[*id]).collect();
        (last, unused)
    }

    /// No op sends a parameter's gradient anything any more: what none has sent is zero.
    fn settle(&self, id: usize, done: &mut impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let slot = std::mem::replace(&mut self.slots.borrow_mut()[id], Slot::Vacant(None));
        match slot {
            Slot::Held { tensor, given } => {
                done(&tensor)?;
                self.slots.borrow_mut()[id] = Slot::Held { tensor, given };
                Ok(())
            }
            Slot::Vacant(Some((tensor, mode))) => {
                if mode == Accumulate::Write {
                    tensor.zero()?;
                }
                done(&tensor)
            }
            Slot::Vacant(None) => Ok(()),
        }
    }

    /// The gradient that arrived at a leaf or parameter, after [`Tape::backward`]. None where no op sent one.
    pub fn gradient(&self, var: &Var) -> Option<Tensor> {
        match &self.slots.borrow()[var.id?] {
            Slot::Held { tensor, .. } => Some(tensor.clone()),
            Slot::Vacant(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
