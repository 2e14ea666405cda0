//! Records ops and replays them backwards (reverse-mode differentiation).
//!
//! Every op that has gradients calls [`Tape::record`] with its inputs, its output and a closure that turns the
//! output's gradient into the inputs'. Backwards, a closure asks for a [`Destination`] per input: where the gradient
//! goes and whether to [`Accumulate::Write`] or [`Accumulate::Add`]. The tape alone decides which; parameters'
//! destinations are slices of the flat gradient buffer. Saved tensors are dropped as soon as their closure has run,
//! so that a program's plan sees their true lifetimes.

mod prepared;

use std::cell::RefCell;
use std::rc::Rc;

pub use prepared::Prepared;

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

/// Where an input's gradient goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Shape of the input; dtype of the input, except for weights, whose gradients are `f32`.
    pub tensor: Tensor,
    /// Overwrite or add.
    pub mode: Accumulate,
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

    /// The same elements under another shape, the same place on the tape.
    pub fn view(&self, shape: impl Into<Shape>) -> Result<Var> {
        Ok(Var { tensor: self.tensor.view(shape)?, id: self.id })
    }
}

type Closure = Box<dyn FnOnce(&mut Backward) -> Result<()>>;

struct Node {
    output: usize,
    inputs: Vec<Option<Input>>,
    closure: Closure,
}

/// What the tape must know of an input to make room for its gradient, without keeping its memory alive.
#[derive(Clone)]
struct Input {
    id: usize,
    shape: Shape,
    dtype: DType,
}

enum Slot {
    /// Nothing has arrived yet; a destination may have been given.
    Vacant(Option<Destination>),
    /// Holds the sum so far. `given`: in a destination that the caller gave, so that it has to stay there.
    Held { tensor: Tensor, given: bool },
}

/// A record of the ops of one forward pass.
pub struct Tape {
    context: Context,
    nodes: RefCell<Vec<Node>>,
    slots: RefCell<Vec<Slot>>,
    recording: bool,
    prepared: Option<Rc<Prepared>>,
}

impl Tape {
    /// A tape that records.
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            nodes: RefCell::default(),
            slots: RefCell::default(),
            recording: true,
            prepared: None,
        }
    }

    /// A tape that records nothing: for sampling and validation. What ops save is dropped at once.
    pub fn inference(context: &Context) -> Self {
        Self { recording: false, ..Self::new(context) }
    }

    /// The same, but ops read weights in the forms of `prepared` where it has them.
    pub fn with_prepared(self, prepared: &Rc<Prepared>) -> Self {
        Self { prepared: Some(prepared.clone()), ..self }
    }

    /// For an op on the CPU: what `make(source, made)` made of `source` at the last [`Prepared::refresh`]. None where there
    /// is no such thing, so that the op does without. In planning, makes room for `len` elements of the source's dtype under
    /// `name`, which tells an op's forms of one weight apart.
    ///
    /// # Errors
    /// What the allocation reports.
    pub fn prepared(
        &self,
        source: &Tensor,
        name: &'static str,
        len: usize,
        make: impl Fn(&Tensor, &Tensor) -> Result<()> + 'static,
    ) -> Result<Option<Tensor>> {
        match &self.prepared {
            Some(prepared) => prepared.form(source, name, len, make),
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
        self.variable(tensor, Some(Destination { tensor: gradient.clone(), mode }))
    }

    fn variable(&self, tensor: &Tensor, destination: Option<Destination>) -> Var {
        let id = self.recording.then(|| self.slot(Slot::Vacant(destination)));
        Var { tensor: tensor.clone(), id }
    }

    fn slot(&self, slot: Slot) -> usize {
        let mut slots = self.slots.borrow_mut();
        slots.push(slot);
        slots.len() - 1
    }

    /// Records an op: `closure` is called backwards with the output's gradient. It should hold only what it needs.
    pub fn record(
        &self,
        inputs: &[&Var],
        output: Tensor,
        closure: impl FnOnce(&mut Backward) -> Result<()> + 'static,
    ) -> Var {
        if !self.recording || inputs.iter().all(|input| input.id.is_none()) {
            return Var { tensor: output, id: None };
        }
        let id = self.slot(Slot::Vacant(None));
        let inputs = inputs
            .iter()
            .map(|input| input.id.map(|id| Input { id, shape: input.shape(), dtype: input.dtype() }))
            .collect();
        self.nodes.borrow_mut().push(Node { output: id, inputs, closure: Box::new(closure) });
        Var { tensor: output, id: Some(id) }
    }

    /// Runs the record backwards from `output` with `gradient` (shape and dtype of `output`). The record is used up.
    ///
    /// A parameter that no op used still has its gradient defined: zero if it was to be written.
    pub fn backward(&self, output: &Var, gradient: Tensor) -> Result<()> {
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
        self.slots.borrow_mut()[id] = Slot::Held { tensor: gradient, given: false };
        loop {
            let Some(node) = self.nodes.borrow_mut().pop() else { break };
            let slot = std::mem::replace(&mut self.slots.borrow_mut()[node.output], Slot::Vacant(None));
            // A vacant output: nothing that led to the loss used it.
            let Slot::Held { tensor: gradient, .. } = slot else { continue };
            let mut backward = Backward { tape: self, inputs: node.inputs, gradient };
            (node.closure)(&mut backward)?;
        }
        for slot in self.slots.borrow().iter() {
            if let Slot::Vacant(Some(Destination { tensor, mode: Accumulate::Write })) = slot {
                tensor.zero()?;
            }
        }
        Ok(())
    }

    /// The gradient that arrived at a leaf or parameter, after [`Tape::backward`]. None where no op sent one.
    pub fn gradient(&self, var: &Var) -> Option<Tensor> {
        match &self.slots.borrow()[var.id?] {
            Slot::Held { tensor, .. } => Some(tensor.clone()),
            Slot::Vacant(_) => None,
        }
    }
}

/// One op's way back: the output's gradient, and destinations for the inputs'.
pub struct Backward<'a> {
    tape: &'a Tape,
    inputs: Vec<Option<Input>>,
    gradient: Tensor,
}

impl Backward<'_> {
    /// The context, for scratch.
    pub fn context(&self) -> &Context {
        &self.tape.context
    }

    /// The gradient of the output.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Whether input number `input` wants a gradient.
    pub fn wants(&self, input: usize) -> bool {
        self.inputs[input].is_some()
    }

    /// Where the gradient of input number `input` goes; None if it wants none. The op must fulfil it at once.
    pub fn destination(&self, input: usize) -> Result<Option<Destination>> {
        let Some(Input { id, shape, dtype }) = &self.inputs[input] else { return Ok(None) };
        let slot = std::mem::replace(&mut self.tape.slots.borrow_mut()[*id], Slot::Vacant(None));
        let (destination, given) = match slot {
            Slot::Vacant(Some(destination)) => (destination, true),
            Slot::Vacant(None) => {
                (Destination { tensor: self.tape.context.empty(*shape, *dtype)?, mode: Accumulate::Write }, false)
            }
            // A gradient that was passed on untouched is still somebody else's too: add into a copy.
            Slot::Held { tensor, given: false } if tensor.is_shared() => {
                let copy = self.tape.context.empty(*shape, *dtype)?;
                copy.copy_from(&tensor)?;
                (Destination { tensor: copy, mode: Accumulate::Add }, false)
            }
            Slot::Held { tensor, given } => (Destination { tensor, mode: Accumulate::Add }, given),
        };
        self.tape.slots.borrow_mut()[*id] = Slot::Held { tensor: destination.tensor.clone(), given };
        Ok(Some(Destination { tensor: destination.tensor.view(*shape)?, mode: destination.mode }))
    }

    /// Gives input number `input` the output's gradient itself (the identity's gradient): no copy where nothing has
    /// arrived yet, otherwise `add(destination, gradient)` sums.
    pub fn pass(&self, input: usize, add: impl FnOnce(&Destination, &Tensor) -> Result<()>) -> Result<()> {
        let Some(Input { id, shape, .. }) = &self.inputs[input] else { return Ok(()) };
        let vacant = matches!(self.tape.slots.borrow()[*id], Slot::Vacant(None));
        if vacant {
            self.tape.slots.borrow_mut()[*id] = Slot::Held { tensor: self.gradient.view(*shape)?, given: false };
            return Ok(());
        }
        match self.destination(input)? {
            Some(destination) => add(&destination, &self.gradient),
            None => Ok(()),
        }
    }
}
