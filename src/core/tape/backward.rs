//! An op's inputs by name: handles when it is recorded, destinations for their gradients on the way back.

use std::cell::Cell;
use std::rc::Rc;

use super::sum::add_into;
use super::{Accumulate, Chain, Destination, Link, Node, Slot, Tape, Var};
use crate::error::{Error, Result};
use crate::tensor::{Backend, Context, DType, Shape, Tensor};

/// One input of one call: what [`Backward::destination`] is asked with. Made by [`Inputs::add`] and [`Inputs::optional`].
#[derive(Clone, Copy, Debug)]
pub struct Input(usize);

/// The description of an input that the tape needs to make room for its gradient, without keeping its memory alive.
pub(super) struct NamedInput {
    name: &'static str,
    /// None: no gradient is wanted.
    id: Option<usize>,
    shape: Shape,
    dtype: DType,
    asked: Cell<bool>,
    written: Rc<Cell<bool>>,
}

impl NamedInput {
    pub(super) fn id(&self) -> Option<usize> {
        self.id
    }
}

/// The inputs of one call of an op: [`Tape::inputs`].
///
/// ```
/// use engine_core::tape::{Tape, Var};
/// use engine_core::tensor::Tensor;
///
/// /// `y` = x + mask, where the mask is no function of what is trained: its gradient is zero.
/// fn masked(tape: &Tape, x: &Var, mask: Option<&Var>, y: Tensor) -> Var {
///     let mut inputs = tape.inputs("masked");
///     let (dx, dmask) = (inputs.add("x", x), inputs.optional("mask", mask));
///     inputs.record(y, move |backward| {
///         backward.pass(dx)?;
///         match backward.destination(dmask)? {
///             Some(dmask) => dmask.put_zero(),
///             None => Ok(()),
///         }
///     })
/// }
/// ```
pub struct Inputs<'a> {
    tape: &'a Tape,
    op: &'static str,
    inputs: Vec<NamedInput>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(tape: &'a Tape, op: &'static str) -> Self {
        Self { tape, op, inputs: Vec::new() }
    }

    /// An input, by the name that it has in the op's documentation.
    pub fn add(&mut self, name: &'static str, var: &Var) -> Input {
        self.push(name, var.id, var.shape(), var.dtype())
    }

    /// One that may be absent; then nobody wants its gradient.
    pub fn optional(&mut self, name: &'static str, var: Option<&Var>) -> Input {
        match var {
            Some(var) => self.add(name, var),
            None => self.push(name, None, Shape::from([0]), DType::F32),
        }
    }

    fn push(&mut self, name: &'static str, id: Option<usize>, shape: Shape, dtype: DType) -> Input {
        self.inputs.push(NamedInput { name, id, shape, dtype, asked: Cell::default(), written: Rc::default() });
        Input(self.inputs.len() - 1)
    }

    /// The op's output. Where an input wants a gradient, `closure` is called backwards with the output's gradient; it has to
    /// ask for the destination of each that does, and to write it. It should hold only what it needs.
    pub fn record(self, output: Tensor, closure: impl FnOnce(&Backward) -> Result<()> + 'static) -> Var {
        let Self { tape, op, inputs } = self;
        if !tape.recording || inputs.iter().all(|input| input.id.is_none()) {
            return Var { tensor: output, id: None };
        }
        let id = tape.slot(Slot::Vacant(None));
        for id in inputs.iter().filter_map(|input| input.id) {
            if let Some(link) = tape.links.borrow_mut().get_mut(&id) {
                link.uses += 1;
            }
        }
        tape.nodes.borrow_mut().push(Node { op, output: id, inputs, closure: Box::new(closure) });
        Var { tensor: output, id: Some(id) }
    }

    /// As [`Inputs::record`], for an output that is `chain`'s f(z). Where [`Backward::is_chained`] says so, the gradient that the
    /// closure gets is dz, in z's memory.
    pub fn record_chained(
        self,
        output: Tensor,
        chain: Chain,
        closure: impl FnOnce(&Backward) -> Result<()> + 'static,
    ) -> Var {
        let tape = self.tape;
        let var = self.record(output, closure);
        if let Some(id) = var.id {
            tape.links.borrow_mut().insert(id, Link { chain: Some(chain), uses: 0 });
        }
        var
    }
}

/// One op's way back: the output's gradient, and destinations for the inputs'.
pub struct Backward<'a> {
    tape: &'a Tape,
    op: &'static str,
    inputs: Vec<NamedInput>,
    gradient: Tensor,
    chained: bool,
}

impl<'a> Backward<'a> {
    pub(super) fn new(
        tape: &'a Tape,
        op: &'static str,
        inputs: Vec<NamedInput>,
        gradient: Tensor,
        chained: bool,
    ) -> Self {
        Self { tape, op, inputs, gradient, chained }
    }

    /// Whether the gradient is that of the z of this output's [`Chain`], and lies in z's memory.
    pub fn is_chained(&self) -> bool {
        self.chained
    }

    /// The context, for scratch.
    pub fn context(&self) -> &Context {
        &self.tape.context
    }

    /// The gradient of the output.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Whether an input wants a gradient.
    pub fn wants(&self, input: Input) -> bool {
        self.inputs[input.0].id.is_some()
    }

    /// Where an input's gradient goes; None if it wants none. What is taken here has to be written.
    ///
    /// # Errors
    /// [`Error::Shape`] where the op still holds the destination of another input that is the same variable, so that one of
    /// the two would be lost; what an allocation reports.
    pub fn destination(&self, input: Input) -> Result<Option<Destination>> {
        let NamedInput { name, id: Some(id), shape, dtype, asked, written } = &self.inputs[input.0] else {
            return Ok(None);
        };
        // A destination holds the flag as long as it lives.
        let twice = self.inputs.iter().find(|other| other.id == Some(*id) && Rc::strong_count(&other.written) > 1);
        if let Some(other) = twice {
            let message = format!("{} and {name} are one variable; give the op two", other.name);
            return Err(Error::shape(self.op, message));
        }
        asked.set(true);
        let slot = std::mem::replace(&mut self.tape.slots.borrow_mut()[*id], Slot::Vacant(None));
        let (tensor, mode, given) = match slot {
            Slot::Vacant(Some((tensor, mode))) => (tensor, mode, true),
            Slot::Vacant(None) => (self.tape.context.empty(*shape, *dtype)?, Accumulate::Write, false),
            // A gradient that was passed on untouched is still somebody else's too: add into a copy.
            Slot::Held { tensor, given: false } if tensor.is_shared() => {
                let copy = self.tape.context.empty(*shape, *dtype)?;
                copy.copy_from(&tensor)?;
                (copy, Accumulate::Add, false)
            }
            Slot::Held { tensor, given } => (tensor, Accumulate::Add, given),
        };
        // What is added to has to be there, also where two parameters were given one place.
        if given && self.tape.waiting.touch(&tensor) {
            self.tape.waiting.launch()?;
        }
        let waiting = given.then(|| self.tape.waiting.clone());
        self.tape.slots.borrow_mut()[*id] = Slot::Held { tensor: tensor.clone(), given };
        Ok(Some(Destination::new(tensor.view(*shape)?, mode, written.clone()).with_waiting(waiting)))
    }

    /// As [`Backward::destination`], for an op that can multiply what it writes by f'(z): where the input is an f(z) that nobody else
    /// uses, the destination is z itself, and [`Destination::flag`] says by which f.
    ///
    /// # Errors
    /// As [`Backward::destination`].
    pub fn chained_destination(&self, input: Input) -> Result<Option<Destination>> {
        let NamedInput { id: Some(id), shape, asked, written, .. } = &self.inputs[input.0] else { return Ok(None) };
        let vacant = matches!(self.tape.slots.borrow()[*id], Slot::Vacant(None));
        let chain = match self.tape.links.borrow_mut().get_mut(id) {
            Some(link) if link.uses == 1 && vacant => link.chain.take(),
            _ => None,
        };
        let Some(Chain { z, code }) = chain else { return self.destination(input) };
        asked.set(true);
        let to = Destination::chained(z.view(*shape)?, code, written.clone());
        self.tape.slots.borrow_mut()[*id] = Slot::Held { tensor: z, given: false };
        Ok(Some(to))
    }

    /// As [`Backward::destination`] for kernels that work out several gradients at once: what nobody wants goes to scratch.
    ///
    /// # Errors
    /// As [`Backward::destination`].
    pub fn destination_or_scratch(&self, input: Input) -> Result<Destination> {
        match self.destination(input)? {
            Some(destination) => Ok(destination),
            None => {
                let NamedInput { shape, dtype, .. } = self.inputs[input.0];
                Ok(Destination::overwrite(&self.tape.context.empty(shape, dtype)?))
            }
        }
    }

    /// Gives an input the output's gradient itself (the identity's gradient): no copy where nothing has arrived yet, otherwise
    /// it is added.
    ///
    /// # Errors
    /// As [`Backward::destination`], and for a pair of dtypes that the device does not add.
    pub fn pass(&self, input: Input) -> Result<()> {
        let NamedInput { id: Some(id), shape, asked, written, .. } = &self.inputs[input.0] else { return Ok(()) };
        let vacant = matches!(self.tape.slots.borrow()[*id], Slot::Vacant(None));
        if vacant {
            asked.set(true);
            written.set(true);
            self.tape.slots.borrow_mut()[*id] = Slot::Held { tensor: self.gradient.view(*shape)?, given: false };
            return Ok(());
        }
        match self.destination(input)? {
            Some(destination) => add_into(&destination, &self.gradient),
            None => Ok(()),
        }
    }

    /// Whether the op did for every input what it has to; while planning nothing is written.
    pub(super) fn check_all_written(&self) -> Result<()> {
        let planning = matches!(self.tape.context.backend(), Backend::Plan);
        for input in self.inputs.iter().filter(|input| input.id.is_some()) {
            let fault = match (input.asked.get(), input.written.get()) {
                (false, _) => "wants a gradient and was not asked where it goes",
                (true, false) if !planning => "wants a gradient; its destination was taken and never written",
                _ => continue,
            };
            return Err(Error::shape(self.op, format!("{} {fault}: fix the op's backward", input.name)));
        }
        Ok(())
    }
}
