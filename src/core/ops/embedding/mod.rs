//! Embedding: rows of a table, looked up by index.
//!
//! y\[b\] = table\[index\[b\]\]. The table is `f32`; the rows come out in the dtype of activations. Backwards, row v of the
//! table's gradient is the sum of dy\[b\] over the b with index\[b\] = v, in ascending b. Saved: the indices.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Backend, Cost, DType, Tensor};

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
    forward(table.tensor(), indices.tensor(), &y)?;
    let indices = indices.tensor().clone();
    Ok(tape.record(&[table], y, move |backward| {
        let dy = backward.gradient().clone();
        let bytes = dy.bytes() + rows * width * DType::F32.size();
        backward.context().charge("embedding_bwd", Cost::memory(bytes));
        match backward.destination(0)? {
            Some(destination) => self::backward(&dy, &indices, &destination),
            None => Ok(()),
        }
    }))
}

fn forward(table: &Tensor, indices: &Tensor, y: &Tensor) -> Result<()> {
    match y.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
            cpu::forward::<T>(table, indices, y);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
            cuda::forward::<T>(accelerator, table, indices, y)
        }),
    }
}

fn backward(dy: &Tensor, indices: &Tensor, dtable: &Destination) -> Result<()> {
    match dy.context().backend() {
        Backend::Plan => Ok(()),
        Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
            cpu::backward::<T>(dy, indices, dtable);
            Ok(())
        }),
        Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
            cuda::backward::<T>(accelerator, dy, indices, dtable)
        }),
    }
}
