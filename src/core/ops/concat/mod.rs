//! Concatenation along the last axis, as the branches of an Inception block end.
//!
//! y\[…, :\] = \[x₀\[…, :\] | x₁\[…, :\] | …\]; the gradient of a part is its columns of dy. Nothing is saved.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, Shape};

const OP: &str = "concat";

/// Sizes of a part.
#[derive(Clone, Copy, Debug)]
struct Part {
    rows: usize,
    /// Columns of the part.
    part: usize,
    /// Columns of the whole.
    width: usize,
    /// The part's first column in the whole.
    column: usize,
}

/// `parts` `[…, Cᵢ]`, equal but for the last axis, side by side: `[…, Σ Cᵢ]`.
///
/// # Errors
/// [`Error::Shape`] for no part at all, and for parts of other sizes or dtypes than the first.
pub fn concat(tape: &Tape, parts: &[&Var]) -> Result<Var> {
    let Some(first) = parts.first() else { return Err(Error::shape(OP, "no parts".to_string())) };
    let leading = |var: &Var| var.sizes()[..var.sizes().len().saturating_sub(1)].to_vec();
    let lead = leading(first);
    if let Some(other) = parts.iter().find(|part| {
        part.sizes().is_empty() || leading(part) != lead || part.dtype() != first.dtype() || part.tensor().is_empty()
    }) {
        let (found, like) =
            (format!("{} {}", other.shape(), other.dtype()), format!("{} {}", first.shape(), first.dtype()));
        return Err(Error::shape(
            OP,
            format!("{found} beside {like}; they differ in the last axis alone, and are not empty"),
        ));
    }
    let width: usize = parts.iter().map(|part| part.shape().last()).sum();
    let context = first.context();
    let y = context.empty(Shape::new(&[lead.as_slice(), &[width]].concat()), first.dtype())?;
    context.charge("concat_fwd", Cost::memory(2 * y.bytes()));
    let mut column = 0;
    let mut sizes = Vec::with_capacity(parts.len());
    for part in parts {
        let part_sizes = Part { rows: first.shape().rows(), part: part.shape().last(), width, column };
        run!(held y, forward(part_sizes, part.tensor(), &y))?;
        column += part_sizes.part;
        sizes.push(part_sizes);
    }
    let mut inputs = tape.inputs(OP);
    let to: Vec<_> = parts.iter().zip(sizes).map(|(part, sizes)| (inputs.add("part", part), sizes)).collect();
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        for (to, sizes) in to {
            let Some(dx) = backward.destination(to)? else { continue };
            backward.context().charge("concat_bwd", Cost::memory(2 * dx.bytes()));
            run!(held dy, backward(sizes, dy, &dx))?;
        }
        Ok(())
    }))
}
