//! Grouped-query attention (Ainslie et al. 2023, *GQA*), not causal.
//!
//! Query head h reads key/value head h / (H / Hkv): with S = Q Kᵀ / √D, out = softmax(S) V. Neither scores nor weights
//! are kept: backward recomputes them from the logarithm of each row's sum (Dao 2023, *FlashAttention-2*).
//!
//! Saved for backward: `qkv`, the output, and per head and row that logarithm in `f32`.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Cost, Tensor};

const OP: &str = "attention";

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Sizes {
    /// Columns of `qkv`.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// Where row 0 of a query head begins in `qkv`.
    fn q(&self, sample: usize, head: usize) -> usize {
        sample * self.tokens * self.width() + head * self.dim
    }

    /// Where row 0 of a key head begins in `qkv`.
    fn k(&self, sample: usize, group: usize) -> usize {
        self.q(sample, self.heads + group)
    }

    /// Where row 0 of a value head begins in `qkv`.
    fn v(&self, sample: usize, group: usize) -> usize {
        self.q(sample, self.heads + self.kv_heads + group)
    }

    /// Where row 0 of a head begins in the output.
    fn out(&self, sample: usize, head: usize) -> usize {
        (sample * self.tokens * self.heads + head) * self.dim
    }

    /// Multiply-adds of one product of all heads.
    fn products(&self) -> usize {
        self.batch * self.heads * self.tokens * self.tokens * self.dim
    }
}

/// Attention of `heads` query heads over `kv_heads` key/value heads.
///
/// `qkv` `[B, T, (heads + 2 · kv_heads) · D]` has the columns `[q heads | k heads | v heads]`; the result is
/// `[B, T, heads · D]`, of its dtype. Scores, softmax and its statistics are `f32`.
///
/// # Errors
/// [`Error::Shape`] where `qkv` does not have these columns or `heads` is no multiple of `kv_heads`;
/// [`Error::Unsupported`] on accelerators where D > 256.
pub fn attention(tape: &Tape, qkv: &Var, heads: usize, kv_heads: usize) -> Result<Var> {
    let sizes = match *qkv.sizes() {
        [batch, tokens, width]
            if heads * kv_heads > 0
                && heads.is_multiple_of(kv_heads)
                && width > 0
                && width.is_multiple_of(heads + 2 * kv_heads) =>
        {
            Sizes { batch, tokens, heads, kv_heads, dim: width / (heads + 2 * kv_heads) }
        }
        _ => {
            return Err(Error::shape(
                OP,
                format!(
                    "qkv {} for {heads} heads over {kv_heads} key/value heads; make it [B, T, (H + 2 Hkv) D] with H a multiple of Hkv",
                    qkv.shape()
                ),
            ));
        }
    };
    let context = qkv.context();
    let call = Call {
        sizes,
        qkv: qkv.tensor().clone(),
        out: context.empty([sizes.batch, sizes.tokens, heads * sizes.dim], qkv.dtype())?,
        lse: context.empty([sizes.batch, heads, sizes.tokens], qkv.dtype().exact())?,
    };
    context.charge("attention_fwd", call.cost(2, call.qkv.bytes() + call.out.bytes()));
    call.forward()?;
    let mut inputs = tape.inputs(OP);
    let dqkv = inputs.add("qkv", qkv);
    Ok(inputs.record(call.out.clone(), move |backward| {
        let Some(destination) = backward.destination(dqkv)? else { return Ok(()) };
        let bytes = 2 * (call.qkv.bytes() + call.out.bytes());
        backward.context().charge("attention_bwd", call.cost(5, bytes));
        call.backward(backward.gradient(), &destination)
    }))
}

/// One call: sizes and saved tensors.
struct Call {
    sizes: Sizes,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
}

impl Call {
    fn cost(&self, products: usize, bytes: usize) -> Cost {
        Cost {
            flops: 2.0 * products as f64 * self.sizes.products() as f64,
            bytes: (bytes + self.lse.bytes()) as f64,
            tensor_cores: true,
        }
    }

    fn forward(&self) -> Result<()> {
        if self.qkv.is_empty() {
            return Ok(());
        }
        run!(held self.qkv, forward(self))
    }

    fn backward(&self, dout: &Tensor, to: &Destination) -> Result<()> {
        if self.qkv.is_empty() {
            return Ok(());
        }
        let context = dout.context();
        let delta = context.empty(self.lse.shape(), self.lse.dtype())?;
        run!(held dout, backward(self, dout, &delta, to))
    }
}
