//! Linear attention (Katharopoulos et al. 2020, *Transformers are RNNs: Fast Autoregressive Transformers with Linear
//! Attention*), not causal: with the feature map φ(x) = elu(x) + 1, per head
//!
//! S = Σₜ φ(kₜ)ᵀ vₜ,  z = Σₜ φ(kₜ),  yₜ = φ(qₜ) S / (φ(qₜ) · z)
//!
//! That is attention with the weights φ(q) · φ(k) in the place of exp(q · k / √D), divided by their sum. The state S `[D, D]` does
//! not grow with the tokens, and neither memory nor work has a part that is quadratic in their number.
//!
//! φ does not fall below 2⁻⁶⁰ (x = -41.6, below which its derivative is 0): the normaliser is never zero, nor too small for `f32`.
//!
//! Saved for backward: `qkv` alone. S and z are computed again, a fifth of the backward's work.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Cost, Tensor};

const OP: &str = "linear_attention";

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    dim: usize,
}

impl Sizes {
    /// Columns of `qkv`.
    fn width(&self) -> usize {
        3 * self.heads * self.dim
    }

    /// Where row 0 of a head's queries begins in `qkv`; its keys and its values are `heads · dim` columns further on each.
    fn q(&self, sample: usize, head: usize) -> usize {
        sample * self.tokens * self.width() + head * self.dim
    }

    /// Where row 0 of a head begins in the output.
    fn out(&self, sample: usize, head: usize) -> usize {
        (sample * self.tokens * self.heads + head) * self.dim
    }

    /// Multiply-adds of one product of all heads.
    fn products(&self) -> usize {
        self.batch * self.heads * self.tokens * self.dim * self.dim
    }
}

/// Linear attention of `num_heads` heads.
///
/// `qkv` `[B, T, 3 · num_heads · D]` has the columns `[q heads | k heads | v heads]`, as in
/// [`attention`](crate::ops::attention::attention); the result is `[B, T, num_heads · D]`, of its dtype. Arithmetic is `f32`
/// (`f64` for `f64`).
///
/// # Errors
/// [`Error::Shape`] where `qkv` does not have these columns; [`Error::Unsupported`] on accelerators where D > 128.
pub fn linear_attention(tape: &Tape, qkv: &Var, num_heads: usize) -> Result<Var> {
    let sizes = match *qkv.sizes() {
        [batch, tokens, width] if num_heads > 0 && width > 0 && width.is_multiple_of(3 * num_heads) => {
            Sizes { batch, tokens, heads: num_heads, dim: width / (3 * num_heads) }
        }
        _ => {
            let shape = qkv.shape();
            return Err(Error::shape(OP, format!("qkv {shape} for {num_heads} heads; make it [B, T, 3 H D]")));
        }
    };
    let context = qkv.context();
    let out = context.empty([sizes.batch, sizes.tokens, sizes.heads * sizes.dim], qkv.dtype())?;
    let call = Call { sizes, qkv: qkv.tensor().clone() };
    context.charge("linear_attention_fwd", call.cost(2, call.qkv.bytes() + out.bytes()));
    call.forward(&out)?;
    let mut inputs = tape.inputs(OP);
    let dqkv = inputs.add("qkv", qkv);
    Ok(inputs.record(out, move |backward| {
        let Some(destination) = backward.destination(dqkv)? else { return Ok(()) };
        let dout = backward.gradient();
        backward.context().charge("linear_attention_bwd", call.cost(5, 2 * call.qkv.bytes() + dout.bytes()));
        call.backward(dout, &destination)
    }))
}

/// One call: sizes and what is saved.
struct Call {
    sizes: Sizes,
    qkv: Tensor,
}

impl Call {
    fn cost(&self, products: usize, bytes: usize) -> Cost {
        Cost {
            flops: 2.0 * products as f64 * self.sizes.products() as f64,
            bytes: bytes as f64,
            tensor_cores: cuda::has_tensor_cores(self.sizes, self.qkv.dtype()),
        }
    }

    fn forward(&self, out: &Tensor) -> Result<()> {
        if self.qkv.is_empty() {
            return Ok(());
        }
        run!(held out, forward(self, out))
    }

    fn backward(&self, dout: &Tensor, to: &Destination) -> Result<()> {
        if self.qkv.is_empty() {
            return Ok(());
        }
        run!(held dout, backward(self, dout, to))
    }
}
