//! The linear layer, with bias, activation and residual in the same pass.
//!
//! y = act(z) + residual, z = x · Wᵀ + b; or, with a gate, y = g · z + residual, g per sample and column ([`Gate`]). The gradients, with
//! dz = dy · act′(z) or g · dy:
//!
//! dx = dz · W, dW = dzᵀ · x, db = Σ over rows of dz, dg = Σ over a sample's rows of dy · z, and dy itself for the residual.
//!
//! Saved for backward: `x` where the weight wants a gradient; and z, rounded to storage, where the gate wants one, or with an activation: there,
//! backwards, dz takes its place. On tensor cores the next linear layer writes it there, as it works out dy ([`Chain`]), where nothing
//! else uses `y`, and db is made with dW, whose product reads dz anyway; on the CPU a pass of its own makes dz and db.

mod cases;
mod cpu;
mod cuda;
mod gate;

pub use cases::cases;
pub use gate::Gate;

use gate::{GateSizes, Gated};

use crate::error::{Error, Result};
use crate::ops::tile::Arithmetic;
use crate::ops::{run, with_held};
use crate::tape::{Backward, Chain, Destination, Input, Parts, SumOrder, Tape, Var, sum_parts};
use crate::tensor::{Cost, DType, Device, Shape, Tensor};

const OP: &str = "linear";

/// On the CPU, rows whose contributions to the bias's gradient are summed by one task, before the tasks' sums are.
const ROWS_PER_PART: usize = 64;

/// The operations after product and bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// GELU in the tanh form (Hendrycks and Gimpel 2016).
    Gelu,
    /// SiLU (Elfwing et al. 2017).
    Silu,
}

impl Activation {
    /// As the kernels' `activation` argument: `enum Activation` in `kernels/common/activation.cuh`.
    fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::Silu => 2,
        }
    }
}

/// `x` `[m, k]`, the weight `[n, k]`, the result `[m, n]`; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

impl Sizes {
    fn parts(&self) -> usize {
        self.m.div_ceil(ROWS_PER_PART)
    }
}

/// What comes between product and residual.
#[derive(Clone, Copy)]
enum Then<'a> {
    Activation(Activation),
    Gate(Gate<'a>),
}

/// `act(x · weightᵀ + bias) + residual`: `x` `[…, K]`, `weight` `[N, K]` of the same dtype, `bias` `[N]` in `f32`, `residual` of the
/// result's shape and dtype; the result is `[…, N]`. The weight's gradient is `f32` (`f64` in oracle runs).
///
/// # Errors
/// [`Error::Shape`] where these do not fit each other.
pub fn linear(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    activation: Activation,
    residual: Option<&Var>,
) -> Result<Var> {
    fused(tape, [x, weight], bias, Then::Activation(activation), residual)
}

/// `g · (x · weightᵀ + bias) + residual` with the gate g; `x` `[B, …, K]`, the rest as for [`linear`]. Nothing is rounded between product and
/// gate.
///
/// # Errors
/// [`Error::Shape`] where these do not fit each other.
pub fn gated_linear(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    gate: Gate,
    residual: Option<&Var>,
) -> Result<Var> {
    fused(tape, [x, weight], bias, Then::Gate(gate), residual)
}

/// The sizes and the shape of the result, where the operands fit each other.
fn fit(x: &Var, weight: &Var, bias: Option<&Var>, residual: Option<&Var>) -> Result<(Sizes, Shape)> {
    let &[n, k] = weight.sizes() else {
        return Err(Error::shape(OP, format!("a weight {} where [out, in] is needed", weight.shape())));
    };
    if x.shape().last() != k || x.dtype() != weight.dtype() {
        return Err(super::misfit(OP, x, weight));
    }
    let exact = x.dtype().exact();
    if let Some(bias) = bias.filter(|bias| bias.sizes() != [n] || bias.dtype() != exact) {
        return Err(Error::shape(OP, format!("bias {} {} where [{n}] {exact} is needed", bias.shape(), bias.dtype())));
    }
    let shape = with_last(x.shape(), n);
    if let Some(residual) = residual.filter(|r| r.shape() != shape || r.dtype() != x.dtype()) {
        return Err(Error::shape(
            OP,
            format!("residual {} {} where {shape} {} is needed", residual.shape(), residual.dtype(), x.dtype()),
        ));
    }
    Ok((Sizes { m: x.shape().rows(), n, k }, shape))
}

fn fused(tape: &Tape, [x, weight]: [&Var; 2], bias: Option<&Var>, then: Then, residual: Option<&Var>) -> Result<Var> {
    let context = x.context().clone();
    let (sizes, shape) = fit(x, weight, bias, residual)?;
    let (activation, gate) = match then {
        Then::Activation(activation) => (activation, None),
        Then::Gate(gate) => (Activation::None, Some(gate)),
    };
    let wants_dz = [Some(x), Some(weight), bias].into_iter().flatten().any(Var::needs_gradient);
    let gated = gate.map(|gate| gate.of(x, sizes, wants_dz)).transpose()?;
    let saves_z = match gate {
        Some(gate) => gate.modulation.needs_gradient(),
        None => activation != Activation::None && wants_dz,
    };
    let y = context.empty(shape, x.dtype())?;
    let call = Call {
        sizes,
        activation,
        gated,
        z: saves_z.then(|| context.empty(shape, x.dtype())).transpose()?,
        x: weight.needs_gradient().then(|| x.tensor().clone()),
        weight: x.needs_gradient().then(|| weight.tensor().clone()),
    };
    let form = (cpu::packed_len(sizes, x.dtype()), x.dtype());
    let packed = tape.prepared(
        weight.tensor(),
        OP,
        form,
        move |weight, packed| with_held!(OP, weight.dtype(), T => cpu::pack::<T>(sizes, weight, packed)),
    )?;
    let operands = Operands {
        x: x.tensor(),
        weight: weight.tensor(),
        packed: packed.as_ref(),
        bias: bias.map(Var::tensor),
        residual: residual.map(Var::tensor),
    };
    context.charge("linear_fwd", call.forward_cost(&operands));
    run!(held y, forward(&call, &operands, &y))?;
    let mut inputs = tape.inputs(OP);
    let to = To {
        x: inputs.add("x", x),
        weight: inputs.add("weight", weight),
        bias: inputs.optional("bias", bias),
        residual: inputs.optional("residual", residual),
        modulation: inputs.optional("modulation", gate.map(|gate| gate.modulation)),
    };
    let bends = activation != Activation::None && residual.is_none();
    let chain = call.z.clone().filter(|_| bends).map(|z| Chain { z, code: activation.code() });
    let closure = move |backward: &Backward| call.backward(backward, to);
    Ok(match chain {
        Some(chain) => inputs.record_chained(y, chain, closure),
        None => inputs.record(y, closure),
    })
}

/// `shape` with another innermost size.
fn with_last(shape: Shape, last: usize) -> Shape {
    let mut sizes = shape.sizes().to_vec();
    if let Some(size) = sizes.last_mut() {
        *size = last;
    }
    Shape::new(&sizes)
}

/// The inputs.
#[derive(Clone, Copy)]
struct To {
    x: Input,
    weight: Input,
    bias: Input,
    residual: Input,
    modulation: Input,
}

/// The operands of a forward.
struct Operands<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    /// The weight in the form of [`cpu::pack`], where somebody keeps it.
    packed: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
}

/// Where the bias's gradient goes, and scratch for the sums of parts `[parts, n]`.
struct BiasSum {
    to: Destination,
    partial: Tensor,
}

/// One call: sizes, and what backward reads.
struct Call {
    sizes: Sizes,
    activation: Activation,
    gated: Option<Gated>,
    z: Option<Tensor>,
    x: Option<Tensor>,
    weight: Option<Tensor>,
}

impl Call {
    fn gate_sizes(&self) -> GateSizes {
        self.gated.as_ref().map_or_else(GateSizes::default, |gated| gated.sizes)
    }

    fn forward_cost(&self, operands: &Operands) -> Cost {
        let (Sizes { m, n, k }, dtype) = (self.sizes, operands.x.dtype());
        let mut cost = Cost::product(m, n, k, dtype.size());
        let rows = (self.z.is_some() as usize + operands.residual.is_some() as usize) * m * n * dtype.size();
        cost += Cost::memory(rows + operands.bias.map_or(0, |_| n * dtype.exact().size()));
        cost += Cost::memory(self.gated.as_ref().map_or(0, |gated| gated.samples() * n * dtype.size()));
        cost
    }

    fn backward(mut self, backward: &Backward, to: To) -> Result<()> {
        let context = backward.context();
        if backward.is_chained() {
            // The gradient that arrived is dz.
            self.z = None;
        }
        let Sizes { m, n, k } = self.sizes;
        backward.pass(to.residual)?;
        let behind_gate = match self.gated.take() {
            Some(gated) => match gated.backward(self.sizes, self.z.take(), backward, to.modulation)? {
                None => return Ok(()),
                dz => dz,
            },
            None => None,
        };
        let dy = behind_gate.as_ref().unwrap_or_else(|| backward.gradient());
        let db = backward.destination(to.bias)?;
        let on_cpu = !matches!(context.device(), Device::Accelerator(_));
        let (db_with_dz, db_with_dw) = if on_cpu { (db, None) } else { (None, db) };
        if self.z.is_some() || db_with_dz.is_some() {
            let reads = 1 + 2 * self.z.is_some() as usize;
            context.charge("linear_bwd_activation", Cost::memory(reads * dy.bytes()));
            self.activation_backward(dy, db_with_dz)?;
        }
        let dz = self.z.as_ref().unwrap_or(dy);
        let chains = !on_cpu && Arithmetic::of(context, dy.dtype()).on_tensor_cores();
        let dx = if chains { backward.chained_destination(to.x)? } else { backward.destination(to.x)? };
        if let (Some(weight), Some(dx)) = (&self.weight, dx) {
            let mut cost = Cost::product(m, k, n, dy.dtype().size());
            if dx.is_chained() {
                cost += Cost::memory(dx.bytes());
            }
            context.charge("linear_bwd_input", cost);
            run!(held dz, input_backward(self.sizes, dz, weight, &dx))?;
        }
        match (&self.x, backward.destination(to.weight)?) {
            (Some(x), Some(dw)) => {
                let mut cost = Cost::product(n, k, m, dy.dtype().size());
                cost += Cost::memory(db_with_dw.as_ref().map_or(0, Destination::bytes));
                context.charge("linear_bwd_weight", cost);
                self.weight_backward(dz, x, &dw, db_with_dw.as_ref())?;
            }
            _ => {
                if let Some(db) = &db_with_dw {
                    self.bias_backward(dz, db)?;
                }
            }
        }
        Ok(())
    }

    /// Turns `z` into dz and, on the CPU, sums the bias's gradient, in one pass.
    fn activation_backward(&self, dy: &Tensor, db: Option<Destination>) -> Result<()> {
        let shape = [self.sizes.parts(), self.sizes.n];
        let partial = |to| Ok(BiasSum { to, partial: dy.context().empty(shape, dy.dtype().exact())? });
        let bias = db.map(partial).transpose()?;
        run!(held dy, activation_backward(self, dy, bias.as_ref()))
    }

    /// A part of scratch, `len` elements, for each of the splits that kernels cut a sum over m into; the CPU's runs over m at once.
    fn parts_of_sum(&self, dz: &Tensor, len: usize) -> Result<Option<Tensor>> {
        let splits = match dz.context().device() {
            Device::Accelerator(_) => cuda::splits(dz.context(), self.sizes, dz.dtype()),
            _ => 1,
        };
        (splits > 1).then(|| dz.context().empty([splits, len], DType::F32)).transpose()
    }

    /// The bias's gradient where the weight has none: the same sums, of the same bits.
    fn bias_backward(&self, dz: &Tensor, db: &Destination) -> Result<()> {
        if dz.is_empty() {
            return db.put_zero();
        }
        dz.context().charge("linear_bwd_bias", Cost::memory(dz.bytes() + db.bytes()));
        let partial = self.parts_of_sum(dz, self.sizes.n)?;
        run!(held dz, bias_backward(self.sizes, partial.as_ref(), dz, db))?;
        self.sum_splits(partial.as_ref(), [(Some(db), 0)])
    }

    fn weight_backward(&self, dz: &Tensor, x: &Tensor, dw: &Destination, db: Option<&Destination>) -> Result<()> {
        if dw.dtype() != dz.dtype().exact() {
            return Err(Error::shape(
                OP,
                format!("a weight's gradient in {}: make the weight a parameter with an f32 gradient", dw.dtype()),
            ));
        }
        let Sizes { m, n, k } = self.sizes;
        if m == 0 || k == 0 {
            dw.put_zero()?;
            return db.map_or(Ok(()), |db| self.bias_backward(dz, db));
        }
        // Behind dW a part has room for db.
        let partial = self.parts_of_sum(dz, n * k + db.map_or(0, |_| n))?;
        run!(held dz, weight_backward(self.sizes, partial.as_ref(), dz, x, dw, db))?;
        self.sum_splits(partial.as_ref(), [(Some(dw), 0), (db, n * k)])
    }

    /// Adds up the parts of [`Call::parts_of_sum`].
    fn sum_splits<const N: usize>(
        &self,
        partial: Option<&Tensor>,
        sums: [(Option<&Destination>, usize); N],
    ) -> Result<()> {
        let Some(partial) = partial else { return Ok(()) };
        let [count, stride] = partial.sizes() else { unreachable!("made with two sizes") };
        sum_parts(partial, Parts { count: *count, stride: *stride, order: SumOrder::One }, sums)
    }
}
