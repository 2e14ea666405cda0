//! Layer norm, plain and modulated.
//!
//! With μ and σ² the mean and variance of a row of `x`, and n = (x − μ) / √(σ² + ε):
//!
//! - affine: y = n · weight + bias (Ba, Kiros, Hinton 2016, *Layer Normalization*);
//! - modulated: y = n · (1 + scale) + shift, scale and shift being columns of a per-sample matrix (adaLN; Peebles and
//!   Xie 2023, *Scalable Diffusion Models with Transformers*).
//!
//! Saved for backward: `x`, and per row the mean and 1/√(σ² + ε).

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Accumulate, Destination, Tape, Var};
use crate::tensor::{Backend, Context, Cost, DType, Tensor};

const OP: &str = "layer_norm";

/// Rows whose contributions to the weight's gradient are summed by one block, before the blocks' sums are.
const ROWS_PER_PART: usize = 64;

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: usize,
    cols: usize,
    /// Tokens per sample, for modulation.
    rows_per_sample: usize,
    /// Columns of the modulation matrix; 0 without.
    modulation_stride: usize,
    shift_column: usize,
    scale_column: usize,
    epsilon: f32,
}

impl Sizes {
    fn parts(&self) -> usize {
        self.rows.div_ceil(ROWS_PER_PART)
    }

    fn samples(&self) -> usize {
        self.rows / self.rows_per_sample
    }
}

/// What the rows are scaled and shifted by.
#[derive(Clone, Copy)]
pub enum Affine<'a> {
    /// Nothing.
    None,
    /// `weight` and `bias`, `[D]`, f32.
    Parameters { weight: &'a Var, bias: &'a Var },
    /// Columns of `matrix` `[B, M]`, of the dtype of `x`: `D` columns from `shift` on, `D` from `scale` on.
    Modulation { matrix: &'a Var, shift: usize, scale: usize },
}

/// Normalises the rows of `x` `[B, T, D]` (or any shape `[B, …, D]`); the result has its shape and dtype.
///
/// # Errors
/// [`Error::Shape`] where the affine part does not fit `x`.
pub fn layer_norm(tape: &Tape, x: &Var, affine: Affine, epsilon: f32) -> Result<Var> {
    let context = x.context().clone();
    let cols = x.shape().last();
    let samples = x.sizes()[0];
    let mut sizes = Sizes {
        rows: x.shape().rows(),
        cols,
        rows_per_sample: x.shape().rows() / samples.max(1),
        modulation_stride: 0,
        shift_column: 0,
        scale_column: 0,
        epsilon,
    };
    let (mut weight, mut bias, mut matrix) = (None, None, None);
    let mut inputs = vec![x];
    match affine {
        Affine::None => {}
        Affine::Parameters { weight: w, bias: b } => {
            if w.sizes() != [cols] || b.sizes() != [cols] {
                return Err(Error::shape(
                    OP,
                    format!("weight {} and bias {} for rows of {cols}", w.shape(), b.shape()),
                ));
            }
            inputs.extend([w, b]);
            (weight, bias) = (Some(w.tensor().clone()), Some(b.tensor().clone()));
        }
        Affine::Modulation { matrix: m, shift, scale } => {
            let stride = m.shape().last();
            if m.shape().rows() != samples || shift.max(scale) + cols > stride || m.dtype() != x.dtype() {
                return Err(Error::shape(
                    OP,
                    format!("modulation {} {}, columns {shift} and {scale}, for x {}", m.shape(), m.dtype(), x.shape()),
                ));
            }
            (sizes.modulation_stride, sizes.shift_column, sizes.scale_column) = (stride, shift, scale);
            inputs.push(m);
            matrix = Some(m.tensor().clone());
        }
    }
    let y = context.empty(x.shape(), x.dtype())?;
    let statistics = statistics(&context, sizes.rows, x.dtype())?;
    let call = Call { sizes, x: x.tensor().clone(), mean: statistics.0, rstd: statistics.1, weight, matrix };
    context.charge("layer_norm_fwd", call.cost(2));
    call.forward(bias.as_ref(), &y)?;
    Ok(tape.record(&inputs, y, move |backward| {
        let dy = backward.gradient().clone();
        backward.context().charge("layer_norm_bwd", call.cost(3));
        if let Some(dx) = backward.destination(0)? {
            call.backward_input(&dy, &dx)?;
        }
        if call.weight.is_some() {
            if let (Some(dw), Some(db)) = (backward.destination(1)?, backward.destination(2)?) {
                call.backward_affine(&dy, &dw, &db)?;
            }
        } else if call.matrix.is_some()
            && let Some(dm) = backward.destination(1)?
        {
            // Only the shift and scale columns are this call's: the others start from zero.
            if dm.mode == Accumulate::Write {
                dm.tensor.zero()?;
            }
            call.backward_modulation(&dy, &dm.tensor)?;
        }
        Ok(())
    }))
}

/// Mean and reciprocal standard deviation per row: `f32`, and `f64` for the oracle.
fn statistics(context: &Context, rows: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
    let dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Ok((context.empty([rows], dtype)?, context.empty([rows], dtype)?))
}

/// One call: sizes and saved tensors.
struct Call {
    sizes: Sizes,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Option<Tensor>,
    matrix: Option<Tensor>,
}

impl Call {
    /// `passes` times over `[rows, cols]`, about eight operations an element.
    fn cost(&self, passes: usize) -> Cost {
        Cost {
            flops: 8.0 * self.x.len() as f64,
            bytes: (passes * self.x.bytes() + 2 * self.mean.bytes()) as f64,
            tensor_cores: false,
        }
    }

    fn forward(&self, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
        match self.x.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, self.x.dtype(), T => {
                cpu::forward::<T>(self, bias, y);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, self.x.dtype(), T => {
                cuda::forward::<T>(accelerator, self, bias, y)
            }),
        }
    }

    fn backward_input(&self, dy: &Tensor, dx: &Destination) -> Result<()> {
        match dy.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::backward_input::<T>(self, dy, dx);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::backward_input::<T>(accelerator, self, dy, dx)
            }),
        }
    }

    fn backward_affine(&self, dy: &Tensor, dw: &Destination, db: &Destination) -> Result<()> {
        let statistics = self.mean.dtype();
        let partial = dy.context().empty([2, self.sizes.parts(), self.sizes.cols], statistics)?;
        match dy.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::backward_affine::<T>(self, dy, &partial, dw, db);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::backward_affine::<T>(accelerator, self, dy, &partial, dw, db)
            }),
        }
    }

    fn backward_modulation(&self, dy: &Tensor, dm: &Tensor) -> Result<()> {
        match dy.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::backward_modulation::<T>(self, dy, dm);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::backward_modulation::<T>(accelerator, self, dy, dm)
            }),
        }
    }
}
