//! The linear layer, with bias, activation and residual in the same pass.
//!
//! y = act(z) + residual, z = x · Wᵀ + b. The gradients, with dz = dy · act′(z):
//!
//! dx = dz · W, dW = dzᵀ · x, db = Σ over rows of dz, and dy itself for the residual.
//!
//! Saved for backward: `x` where the weight wants a gradient, and with an activation `z`, rounded to storage; backwards dz
//! takes its place.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::elementwise::add_into;
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Accumulate, Backward, Destination, Tape, Var};
use crate::tensor::{Backend, Context, Cost, DType, Device, Shape, Tensor};

const OP: &str = "linear";

/// Rows whose contributions to the bias's gradient are summed by one block, before the blocks' sums are.
const ROWS_PER_PART: usize = 64;

/// What follows the product and the bias.
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
    let context = x.context().clone();
    let &[n, k] = weight.sizes() else {
        return Err(Error::shape(OP, format!("a weight {} where [out, in] is needed", weight.shape())));
    };
    if x.shape().last() != k || x.dtype() != weight.dtype() {
        return Err(Error::shape(
            OP,
            format!("x {} {} and weight {} {} do not fit", x.shape(), x.dtype(), weight.shape(), weight.dtype()),
        ));
    }
    let exact = exact_dtype(x.dtype());
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
    let sizes = Sizes { m: x.shape().rows(), n, k };
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    inputs.extend(residual);
    let y = context.empty(shape, x.dtype())?;
    let bends =
        activation != Activation::None && inputs[..2 + bias.iter().len()].iter().any(|var| var.needs_gradient());
    let z = if bends { Some(context.empty(shape, x.dtype())?) } else { None };
    let call = Call {
        sizes,
        activation,
        z,
        x: weight.needs_gradient().then(|| x.tensor().clone()),
        weight: x.needs_gradient().then(|| weight.tensor().clone()),
        bias: bias.map(|_| 2),
        residual: residual.map(|_| inputs.len() - 1),
    };
    context.charge("linear_fwd", call.forward_cost(x.dtype()));
    let packed = match x.dtype() {
        DType::F32 | DType::F64 => {
            tape.prepared(weight.tensor(), OP, cpu::packed_len(sizes), move |weight, packed| {
                with_host_float!(OP, weight.dtype(), T => {
                    cpu::pack::<T>(sizes, weight, packed);
                    Ok(())
                })
            })?
        }
        _ => None,
    };
    let weight = (weight.tensor(), packed.as_ref());
    call.forward(x.tensor(), weight, bias.map(Var::tensor), residual.map(Var::tensor), &y)?;
    Ok(tape.record(&inputs, y, move |backward| call.backward(backward)))
}

/// Of biases and sums: `f32`, and `f64` in oracle runs.
fn exact_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// `shape` with another innermost size.
fn with_last(shape: Shape, last: usize) -> Shape {
    let mut sizes = shape.sizes().to_vec();
    if let Some(size) = sizes.last_mut() {
        *size = last;
    }
    Shape::new(&sizes)
}

/// One call: sizes, what backward reads, and the places of the optional inputs.
struct Call {
    sizes: Sizes,
    activation: Activation,
    z: Option<Tensor>,
    x: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<usize>,
    residual: Option<usize>,
}

impl Call {
    fn forward_cost(&self, dtype: DType) -> Cost {
        let Sizes { m, n, k } = self.sizes;
        let mut cost = Cost::product(m, n, k, dtype.size());
        let rows = (self.z.is_some() as usize + self.residual.is_some() as usize) * m * n * dtype.size();
        cost += Cost::memory(rows + self.bias.map_or(0, |_| n * exact_dtype(dtype).size()));
        cost
    }

    fn forward(
        &self,
        x: &Tensor,
        weight: (&Tensor, Option<&Tensor>),
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        match y.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
                cpu::forward::<T>(self, x, weight, bias, residual, y);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
                cuda::forward::<T>(accelerator, self, x, weight.0, bias, residual, y)
            }),
        }
    }

    fn backward(self, backward: &mut Backward) -> Result<()> {
        let dy = backward.gradient().clone();
        let context = backward.context().clone();
        let Sizes { m, n, k } = self.sizes;
        if let Some(residual) = self.residual {
            backward.pass(residual, add_into)?;
        }
        let db = match self.bias {
            Some(bias) => backward.destination(bias)?,
            None => None,
        };
        if self.z.is_some() || db.is_some() {
            let reads = 1 + 2 * self.z.is_some() as usize;
            context.charge("linear_bwd_activation", Cost::memory(reads * dy.bytes()));
            self.activation_backward(&context, &dy, db.as_ref())?;
        }
        let dz = self.z.as_ref().unwrap_or(&dy);
        if let (Some(weight), Some(dx)) = (&self.weight, backward.destination(0)?) {
            context.charge("linear_bwd_input", Cost::product(m, k, n, dy.dtype().size()));
            self.input_backward(dz, weight, &dx)?;
        }
        if let (Some(x), Some(dw)) = (&self.x, backward.destination(1)?) {
            context.charge("linear_bwd_weight", Cost::product(n, k, m, dy.dtype().size()));
            self.weight_backward(&context, dz, x, &dw)?;
        }
        Ok(())
    }

    /// Turns `z` into dz and sums the bias's gradient, in one pass.
    fn activation_backward(&self, context: &Context, dy: &Tensor, db: Option<&Destination>) -> Result<()> {
        let partial = match db {
            Some(_) => Some(context.empty([self.sizes.parts(), self.sizes.n], exact_dtype(dy.dtype()))?),
            None => None,
        };
        match context.backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::activation_backward::<T>(self, dy, partial.as_ref().zip(db));
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::activation_backward::<T>(accelerator, self, dy, partial.as_ref().zip(db))
            }),
        }
    }

    fn input_backward(&self, dz: &Tensor, weight: &Tensor, dx: &Destination) -> Result<()> {
        match dz.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dz.dtype(), T => {
                cpu::input_backward::<T>(self.sizes, dz, weight, dx);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dz.dtype(), T => {
                cuda::input_backward::<T>(accelerator, self.sizes, dz, weight, dx)
            }),
        }
    }

    fn weight_backward(&self, context: &Context, dz: &Tensor, x: &Tensor, dw: &Destination) -> Result<()> {
        if dw.tensor.dtype() != exact_dtype(dz.dtype()) {
            return Err(Error::shape(
                OP,
                format!(
                    "a weight's gradient in {}: make the weight a parameter with an f32 gradient",
                    dw.tensor.dtype()
                ),
            ));
        }
        if self.sizes.m == 0 {
            return if dw.mode == Accumulate::Write { dw.tensor.zero() } else { Ok(()) };
        }
        let split = cuda::split(self.sizes);
        // Only kernels cut this sum; the CPU's runs over m at once.
        let partial = match context.device() {
            Device::Accelerator(_) if split.count > 1 => {
                Some(context.empty([split.count, self.sizes.n, self.sizes.k], DType::F32)?)
            }
            _ => None,
        };
        match context.backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dz.dtype(), T => {
                cpu::weight_backward::<T>(self.sizes, dz, x, dw);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dz.dtype(), T => {
                cuda::weight_backward::<T>(accelerator, self.sizes, split, partial.as_ref(), dz, x, dw)
            }),
        }
    }
}
