//! Norm of query and key heads (QK-norm; Dehghani et al. 2023, *Scaling Vision Transformers to 22 Billion Parameters*),
//! as a root mean square norm (Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*).
//!
//! For each query and key head's D columns of a row: y = x / √(mean(x²) + ε) · weight, one weight for all query heads and one
//! for all key heads. Values are copied.
//!
//! Saved for backward: the input, and per row and normalised head 1/√(mean(x²) + ε) in `f32`.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Cost, Tensor};

const OP: &str = "qk_norm";

/// Rows whose contributions to the weights' gradients are summed first, before the parts' sums are.
const ROWS_PER_PART: usize = 32;

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    epsilon: f32,
}

impl Sizes {
    /// Heads of a row: queries, keys and values.
    fn slices(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Those that are normalised.
    fn normed(&self) -> usize {
        self.heads + self.kv_heads
    }

    fn parts(&self) -> usize {
        self.rows.div_ceil(ROWS_PER_PART)
    }
}

/// Normalises the query and key heads of `qkv` `[B, T, (heads + 2 · kv_heads) · D]` (columns `[q heads | k heads | v
/// heads]`) by their root mean square, times `q_weight` or `k_weight` (`[D]`, `f32`). The result has its shape and dtype.
///
/// # Errors
/// [`Error::Shape`] where `qkv` does not have these columns or a weight is not `[D]`; [`Error::Unsupported`] on
/// accelerators where D > 128.
pub fn qk_norm(
    tape: &Tape,
    qkv: &Var,
    q_weight: &Var,
    k_weight: &Var,
    heads: usize,
    kv_heads: usize,
    epsilon: f32,
) -> Result<Var> {
    let (slices, width) = (heads + 2 * kv_heads, qkv.shape().last());
    let dim = width / slices.max(1);
    if dim == 0 || dim * slices != width || q_weight.sizes() != [dim] || k_weight.sizes() != [dim] {
        return Err(Error::shape(
            OP,
            format!(
                "qkv {} for {heads} heads and {kv_heads} key/value heads with weights {} and {}; make it \
                 [.., (H + 2 Hkv) D] and the weights [D]",
                qkv.shape(),
                q_weight.shape(),
                k_weight.shape()
            ),
        ));
    }
    let context = qkv.context();
    let sizes = Sizes { rows: qkv.shape().rows(), heads, kv_heads, dim, epsilon };
    let call = Call {
        sizes,
        x: qkv.tensor().clone(),
        rstd: context.empty([sizes.rows, sizes.normed()], qkv.dtype().exact())?,
        q_weight: q_weight.tensor().clone(),
        k_weight: k_weight.tensor().clone(),
    };
    let y = context.empty(qkv.shape(), qkv.dtype())?;
    context.charge("qk_norm_fwd", call.cost(4, 2));
    call.forward(&y)?;
    let mut inputs = tape.inputs(OP);
    let dqkv = inputs.add("qkv", qkv);
    let (dq_weight, dk_weight) = (inputs.add("q_weight", q_weight), inputs.add("k_weight", k_weight));
    Ok(inputs.record(y, move |backward| {
        backward.context().charge("qk_norm_bwd", call.cost(10, 3));
        let gradients = Gradients {
            // The kernel works all of them out at once.
            dx: backward.destination_or_scratch(dqkv)?,
            dq_weight: backward.destination(dq_weight)?,
            dk_weight: backward.destination(dk_weight)?,
        };
        call.backward(backward.gradient(), &gradients)
    }))
}

/// One call: sizes and saved tensors.
struct Call {
    sizes: Sizes,
    x: Tensor,
    rstd: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
}

/// Where the inputs' gradients go.
struct Gradients {
    dx: Destination,
    dq_weight: Option<Destination>,
    dk_weight: Option<Destination>,
}

impl Call {
    /// `passes` times over `[rows, width]` with some operations an element.
    fn cost(&self, operations: usize, passes: usize) -> Cost {
        Cost::scalar(operations * self.x.len(), passes * self.x.bytes() + self.rstd.bytes())
    }

    fn forward(&self, y: &Tensor) -> Result<()> {
        if self.x.is_empty() {
            return Ok(());
        }
        run!(held self.x, forward(self, y))
    }

    fn backward(&self, dy: &Tensor, gradients: &Gradients) -> Result<()> {
        let partial = dy.context().empty([self.sizes.parts(), 2, self.sizes.dim], self.rstd.dtype())?;
        run!(held dy, backward(self, dy, gradients, &partial))
    }
}
