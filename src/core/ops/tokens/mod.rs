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
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Backend, Cost, DType, Tensor};

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
    forward(patches.tensor(), token.map(Var::tensor), position.tensor(), &y)?;
    let mut inputs = vec![patches, position];
    inputs.extend(token);
    let has_token = token.is_some();
    Ok(tape.record(&inputs, y, move |backward| {
        let dy = backward.gradient().clone();
        let bytes = 2 * dy.bytes() + length * width * DType::F32.size();
        backward.context().charge("tokens_bwd", Cost::memory(bytes));
        let skip = usize::from(has_token);
        if let Some(patches) = backward.destination(0)? {
            extract(&dy, &patches, skip)?;
        }
        if let Some(position) = backward.destination(1)? {
            sum_batch(&dy, &position)?;
        }
        if has_token && let Some(token) = backward.destination(2)? {
            extract(&dy, &token, 0)?;
        }
        Ok(())
    }))
}

fn forward(patches: &Tensor, token: Option<&Tensor>, position: &Tensor, y: &Tensor) -> Result<()> {
    match y.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
            cpu::forward::<T>(patches, token, position, y);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
            cuda::forward::<T>(accelerator, patches, token, position, y)
        }),
    }
}

/// Copies tokens `first ..` of each sequence of `dy` to `destination`, as many as it has.
fn extract(dy: &Tensor, destination: &Destination, first: usize) -> Result<()> {
    match dy.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
            cpu::extract::<T>(dy, destination, first);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
            cuda::extract::<T>(accelerator, dy, destination, first)
        }),
    }
}

fn sum_batch(dy: &Tensor, destination: &Destination) -> Result<()> {
    match dy.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
            cpu::sum_batch::<T>(dy, destination);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
            cuda::sum_batch::<T>(accelerator, dy, destination)
        }),
    }
}
