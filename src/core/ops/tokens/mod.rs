//! The token sequence of a transformer: an optional conditioning token, then the patches, plus learned positions.
//!
//! y\[b, 0\] = token\[b\] + position\[0\] and y\[b, k + i\] = patches\[b, i\] + position\[k + i\], with k = 1 where there is a
//! token, else 0. Backwards the parts go where they came from, and position's gradient is the sum of dy over the batch,
//! in ascending order. Nothing is saved.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, DType};

const OP: &str = "tokens";

/// `patches` `[B, T, D]`, `token` `[B, D]` of the same dtype, `position` `[T + k, D]` f32: `[B, T + k, D]`.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit together.
pub fn tokens(tape: &Tape, patches: &Var, token: Option<&Var>, position: &Var) -> Result<Var> {
    let &[batch, count, width] = patches.sizes() else {
        return Err(Error::shape(OP, format!("patches {}; they are [B, T, D]", patches.shape())));
    };
    let length = count + usize::from(token.is_some());
    let token_fits = token.is_none_or(|token| token.sizes() == [batch, width] && token.dtype() == patches.dtype());
    if position.sizes() != [length, width] || !token_fits {
        return Err(Error::shape(
            OP,
            format!("patches {}, token {:?}, position {}", patches.shape(), token.map(Var::shape), position.shape()),
        ));
    }
    let context = patches.context();
    let y = context.empty([batch, length, width], patches.dtype())?;
    context.charge("tokens_fwd", Cost::memory(2 * y.bytes() + position.tensor().bytes()));
    if !y.is_empty() {
        run!(held y, forward(patches.tensor(), token.map(Var::tensor), position.tensor(), &y))?;
    }
    let skip = usize::from(token.is_some());
    let mut inputs = tape.inputs(OP);
    let (dpatches, dposition) = (inputs.add("patches", patches), inputs.add("position", position));
    let dtoken = inputs.optional("token", token);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        let bytes = 2 * dy.bytes() + length * width * DType::F32.size();
        backward.context().charge("tokens_bwd", Cost::memory(bytes));
        for (part, first) in [(backward.destination(dpatches)?, skip), (backward.destination(dtoken)?, 0)] {
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                run!(held dy, extract(dy, &part, first))?;
            }
        }
        match backward.destination(dposition)? {
            Some(dposition) if dy.is_empty() => dposition.put_zero(),
            Some(dposition) => run!(held dy, sum_batch(dy, &dposition)),
            None => Ok(()),
        }
    }))
}
