//! Embedding: rows of a table, looked up by index.
//!
//! y\[b\] = table\[index\[b\]\]. The table is `f32`; the rows come out in the dtype of activations. Backwards, row v of the
//! table's gradient is the sum of dy\[b\] over the b with index\[b\] = v, in ascending b. Saved: the indices.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, DType};

const OP: &str = "embedding";

/// Rows of `table` `[V, D]` (f32) at `indices` `[B]` (i32, below V): `[B, D]` of `dtype`.
///
/// An index outside the table gives a row of zeros and no gradient; labels are checked where they enter.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes.
pub fn embedding(tape: &Tape, table: &Var, indices: &Var, dtype: DType) -> Result<Var> {
    let (&[rows, width], &[batch]) = (table.sizes(), indices.sizes()) else {
        return Err(Error::shape(OP, format!("table {}, indices {}", table.shape(), indices.shape())));
    };
    if indices.dtype() != DType::I32 {
        return Err(Error::shape(OP, format!("indices of {}; they are i32", indices.dtype())));
    }
    let context = table.context();
    let y = context.empty([batch, width], dtype)?;
    context.charge("embedding_fwd", Cost::memory(y.bytes() + batch * width * table.dtype().size()));
    let indices = indices.tensor().clone();
    run!(y, forward(table.tensor(), &indices, &y))?;
    let mut inputs = tape.inputs(OP);
    let dtable = inputs.add("table", table);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        let bytes = dy.bytes() + rows * width * DType::F32.size();
        backward.context().charge("embedding_bwd", Cost::memory(bytes));
        let Some(dtable) = backward.destination(dtable)? else { return Ok(()) };
        run!(dy, backward(dy, &indices, &dtable))
    }))
}
