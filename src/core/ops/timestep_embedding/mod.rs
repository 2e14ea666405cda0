//! Sinusoidal features of the diffusion time (Vaswani et al. 2017; Ho, Jain, Abbeel 2020).
//!
//! y\[b\] = \[cos(t\[b\]·f_0), …, cos(t\[b\]·f_{h−1}), sin(t\[b\]·f_0), …\] with h = width / 2 and f_i = 10000^(−i/h).
//! There is no gradient: time is data.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Cost, DType};

const OP: &str = "timestep_embedding";

/// The longest period over 2π.
const MAX_PERIOD: f64 = 10_000.0;

/// Frequency number `i` of `half`.
fn frequency(i: usize, half: usize) -> f64 {
    (-MAX_PERIOD.ln() * i as f64 / half as f64).exp()
}

/// Features `[B, width]` of `dtype` for `time` `[B]` (f32).
///
/// # Errors
/// [`Error::Shape`] for an odd width or a time of another rank.
pub fn timestep_embedding(tape: &Tape, time: &Var, width: usize, dtype: DType) -> Result<Var> {
    let &[batch] = time.sizes() else {
        return Err(Error::shape(OP, format!("time {}; it is one number per image", time.shape())));
    };
    if width == 0 || !width.is_multiple_of(2) {
        return Err(Error::shape(OP, format!("width {width}; sines and cosines come in pairs")));
    }
    let context = time.context();
    let y = context.empty([batch, width], dtype)?;
    context.charge("timestep_embedding_fwd", Cost { flops: 20.0 * y.len() as f64, ..Cost::memory(y.bytes()) });
    run!(y, forward(time.tensor(), &y))?;
    Ok(tape.constant(&y))
}
