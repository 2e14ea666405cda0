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
use crate::ops::run;
use crate::tape::{Destination, Parts, SumOrder, Tape, Var, sum_parts};
use crate::tensor::{Cost, Tensor};

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
}

/// Scale and shift of the rows.
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
    match affine {
        Affine::None => {}
        Affine::Parameters { weight: w, bias: b } => {
            if w.sizes() != [cols] || b.sizes() != [cols] {
                return Err(Error::shape(
                    OP,
                    format!("weight {} and bias {} for rows of {cols}", w.shape(), b.shape()),
                ));
            }
            (weight, bias) = (Some(w), Some(b));
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
            matrix = Some(m);
        }
    }
    let y = context.empty(x.shape(), x.dtype())?;
    let call = Call {
        sizes,
        x: x.tensor().clone(),
        mean: context.empty([sizes.rows], x.dtype().exact())?,
        rstd: context.empty([sizes.rows], x.dtype().exact())?,
        weight: weight.map(|weight| weight.tensor().clone()),
        matrix: matrix.map(|matrix| matrix.tensor().clone()),
    };
    context.charge("layer_norm_fwd", call.cost(2));
    run!(held y, forward(&call, bias.map(Var::tensor), &y))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    let (dweight, dbias) = (inputs.optional("weight", weight), inputs.optional("bias", bias));
    let dmatrix = inputs.optional("matrix", matrix);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        backward.context().charge("layer_norm_bwd", call.cost(3));
        let dx = backward.destination(dx)?;
        let affine = match backward.wants(dweight) || backward.wants(dbias) {
            true => {
                // One kernel works out both sums.
                let weight = backward.destination_or_scratch(dweight)?;
                let bias = backward.destination_or_scratch(dbias)?;
                let partial = backward.context().empty([2, sizes.parts(), sizes.cols], call.mean.dtype())?;
                Some(AffineSums { weight, bias, partial })
            }
            false => None,
        };
        // Only the shift and scale columns are this call's: the others start from zero.
        let matrix = backward.destination(dmatrix)?.map(Destination::into_sum).transpose()?;
        let to = Gradients { x: dx, affine, matrix };
        run!(held dy, backward(&call, dy, &to))?;
        let Some(AffineSums { weight, bias, partial }) = &to.affine else { return Ok(()) };
        let parts = Parts { count: sizes.parts(), stride: sizes.cols, order: SumOrder::Across };
        sum_parts(partial, parts, [(Some(weight), 0), (Some(bias), sizes.parts() * sizes.cols)])
    }))
}

/// Where the gradients go that are wanted.
struct Gradients {
    x: Option<Destination>,
    affine: Option<AffineSums>,
    matrix: Option<Destination>,
}

/// Where the gradients of weight and bias go, and scratch for the sums of parts `[2, parts, D]`.
struct AffineSums {
    weight: Destination,
    bias: Destination,
    partial: Tensor,
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
        Cost::scalar(8 * self.x.len(), passes * self.x.bytes() + 2 * self.mean.bytes())
    }
}
