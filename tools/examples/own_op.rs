//! An op of your own on the tape, with its gradient, on the CPU and as kernel launches; a step of gradient descent with it.
//!
//! ```sh
//! cargo run --release --example own_op
//! ```
//!
//! The op looks rows of a table up, with kernels that the engine has. A kernel of your own is added to the engine itself, as the
//! guide's page "Adding an op" shows.

#[path = "launch_kernel.rs"]
#[allow(dead_code)]
pub mod launch_kernel;

use engine::device::LaunchConfig;
use engine::device::launches::{EmbeddingBwd, EmbeddingFwd};
use engine::ops::mse_loss::mse_loss;
use engine::prelude::*;
use engine::tape::Accumulate;
use engine::tensor::Backend;

/// Rows of `table` `[V, D]` at `indices` `[B]` (i32): `[B, D]`, all f32.
pub fn lookup(tape: &Tape, table: &Var, indices: &Tensor) -> Result<Var> {
    let (rows, width, batch) = (table.sizes()[0], table.sizes()[1], indices.len());
    let y = table.context().empty([batch, width], DType::F32)?;
    match table.context().backend() {
        // While a program is planned, nothing is computed.
        Backend::Plan => {}
        Backend::Cpu => y.change(|y: &mut [f32]| {
            for (y, &index) in y.chunks_mut(width).zip(indices.host::<i32>()) {
                y.copy_from_slice(&table.tensor().host::<f32>()[index as usize * width..][..width]);
            }
            Ok(())
        })?,
        Backend::Accelerator(device) => EmbeddingFwd::<f32> {
            y: y.slice_mut(),
            table: table.tensor().slice(),
            indices: indices.slice(),
            batch: batch as u32,
            rows: rows as u32,
            width: width as u32,
        }
        .launch(device, LaunchConfig::elements(y.len(), 128))?,
    }
    let mut inputs = tape.inputs("lookup");
    let dtable = inputs.add("table", table);
    let indices = indices.clone();
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        let Some(dtable) = backward.destination(dtable)? else { return Ok(()) };
        match backward.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => dtable.change(|sums: &mut [f32]| {
                if dtable.mode == Accumulate::Write {
                    sums.fill(0.0);
                }
                for (dy, &index) in dy.host::<f32>().chunks(width).zip(indices.host::<i32>()) {
                    let row = &mut sums[index as usize * width..][..width];
                    row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                }
                Ok(())
            }),
            Backend::Accelerator(device) => EmbeddingBwd::<f32> {
                dtable: dtable.slice_mut(),
                dy: dy.slice(),
                indices: indices.slice(),
                batch: batch as u32,
                rows: rows as u32,
                width: width as u32,
                accumulate: dtable.flag(),
            }
            .launch(device, LaunchConfig::elements(dtable.len(), 128)),
        }
    }))
}

/// The loss of the rows against zeros, and its gradient by the table.
pub fn loss_and_gradient(context: &Context) -> Result<(f32, Vec<f32>)> {
    let tape = Tape::new(context);
    let table = tape.leaf(&context.tensor(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2])?);
    let indices = context.tensor(&[2i32, 0, 2], [3])?;
    let rows = lookup(&tape, &table, &indices)?;
    let zeros = tape.constant(&context.zeros([3, 2], DType::F32)?);
    let (loss, _) = mse_loss(&tape, &rows, &zeros, None, 1.0)?;
    tape.backward(&loss, context.tensor(&[1.0f32], [1])?)?;
    let gradient = tape.gradient(&table).ok_or_else(|| Error::shape("lookup", "no gradient"))?;
    Ok((loss.tensor().download::<f32>()?[0], gradient.download()?))
}

fn main() -> Result<()> {
    let device = launch_kernel::device()?;
    for context in [Context::cpu(), Context::new(Device::Accelerator(device))] {
        let (loss, gradient) = loss_and_gradient(&context)?;
        println!("{}: loss {loss}, gradient {gradient:?}", context.device_name());
    }
    Ok(())
}
