//! The token sequence of a transformer: an optional conditioning token, then the patches, plus learned positions.
//!
//! y\[b, 0\] = token\[b\] + position\[0\] and y\[b, k + i\] = patches\[b, i\] + position\[k + i\], with k = 1 where there is a
//! token, else 0. Backwards the parts go where they came from, and position's gradient is the sum of dy over the batch,
//! in a fixed order. Nothing is saved.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Parts, Tape, Var, sum_parts};
use crate::tensor::{Cost, DType, Device};

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
        let to = Gradients {
            patches: backward.destination(dpatches)?,
            token: backward.destination(dtoken)?,
            position: backward.destination(dposition)?,
        };
        if dy.is_empty() {
            return to.position.map_or(Ok(()), |position| position.put_zero());
        }
        let context = backward.context();
        let parts = match (context.device(), &to.position) {
            (Device::Accelerator(_), Some(_)) => cuda::parts(batch),
            _ => 0,
        };
        let partial = (parts > 0).then(|| context.empty([parts, length * width], DType::F32)).transpose()?;
        run!(held dy, backward(dy, skip, partial.as_ref(), &to))?;
        let Some(partial) = partial else { return Ok(()) };
        let parts = Parts { count: parts, stride: length * width, order: cuda::order(parts) };
        sum_parts(&partial, parts, [(to.position.as_ref(), 0)])
    }))
}

/// Where the inputs' gradients go.
struct Gradients {
    patches: Option<Destination>,
    token: Option<Destination>,
    position: Option<Destination>,
}
