//! Sampling on the device: the starting noise, a stage's time, the stage's update, and pixels.
//!
//! A sampler's table is `[S, 16]` u32: a row for each stage, floats as their bits, in the order of
//! `diffusion::StageCoefficients`, whose module says what each number does. The row of a step is `control.row`, so that one
//! captured program serves every stage. With guidance the state stands twice in its buffer (`copies` = 2): the network sees
//! both, with and without the label. Nothing here has a gradient; everything is f32.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{control, run};
use crate::tensor::{Context, Cost, DType, Tensor};

const OP: &str = "sampler_step";

/// 32-bit words of a stage.
pub const STAGE_WORDS: usize = 16;

fn check_table(table: &Tensor) -> Result<()> {
    match table.sizes() {
        &[stages, STAGE_WORDS] if stages > 0 && table.dtype() == DType::U32 => Ok(()),
        _ => {
            Err(Error::shape(OP, format!("a table {} {}; it is [S, {STAGE_WORDS}] u32", table.shape(), table.dtype())))
        }
    }
}

/// Items of one copy, elements of an item.
fn split(x: &Tensor, copies: usize) -> Result<(usize, usize)> {
    let rows = x.sizes().first().copied().unwrap_or(0);
    if x.is_empty() || copies == 0 || !rows.is_multiple_of(copies) {
        return Err(Error::shape(OP, format!("{copies} copies of a state in {}", x.shape())));
    }
    Ok((rows / copies, x.len() / rows))
}

/// Fills `x` `[copies · B, …]` with the noise that sampling starts from: `scale` times the standard normal noise of item
/// `control.first_item` + b (purpose [`Noise`](crate::rng::Purpose::Noise), step 0), the same in every copy.
///
/// # Errors
/// [`Error::Shape`] where `x` does not hold `copies` copies.
pub fn fill_noise(context: &Context, x: &Tensor, copies: usize, control: &Tensor, seed: u64, scale: f32) -> Result<()> {
    control::check(OP, control)?;
    let (batch, elements) = split(x, copies)?;
    context.charge("sampler_step_noise", Cost::scalar(30 * batch * elements, x.bytes() + control.bytes()));
    run!(f32 x, fill_noise(x, batch, control, seed, scale))
}

/// Fills `time` (any shape, f32) with what the network is told of the time in stage `control.row` of `table`.
///
/// # Errors
/// [`Error::Shape`] for a table of another shape or dtype.
pub fn sampler_time(context: &Context, time: &Tensor, table: &Tensor, control: &Tensor) -> Result<()> {
    control::check(OP, control)?;
    check_table(table)?;
    if time.is_empty() {
        return Err(Error::shape(OP, "no times to fill"));
    }
    context.charge("sampler_step_time", Cost::memory(time.bytes() + control.bytes() + 4));
    run!(f32 time, time(time, table, control))
}

/// What a stage works on.
#[derive(Clone, Copy, Debug)]
pub struct SamplerState<'a> {
    /// The state `[copies · B, …]`, f32: the first copy is read, every copy is overwritten by the next state.
    pub x: &'a Tensor,
    /// The network's output, of the shape of `x`: with the label, then (two copies) without.
    pub prediction: &'a Tensor,
    /// `[B, …]`: for samplers some of whose stages save the state (Heun).
    pub saved_state: Option<&'a Tensor>,
    /// `[B, …]`: for samplers some of whose stages save a combination of x_0 and ε (Heun, DPM-Solver++).
    pub saved: Option<&'a Tensor>,
    /// 1, or 2 under guidance: then the prediction is guidance · cond + (1 - guidance) · uncond, exactly cond at 1.
    pub copies: usize,
}

/// Stage `control.row` of `table`. Its noise is that of item `control.first_item` + b and step `control.row` + 1 of `seed`
/// (purpose [`Noise`](crate::rng::Purpose::Noise)). A stage that reads a buffer which is `None` gives NaN.
///
/// # Errors
/// [`Error::Shape`] for buffers that do not fit together, or more than two copies.
pub fn sampler_step(
    context: &Context,
    state: &SamplerState,
    table: &Tensor,
    control: &Tensor,
    seed: u64,
) -> Result<()> {
    control::check(OP, control)?;
    check_table(table)?;
    let SamplerState { x, prediction, saved_state, saved, copies } = *state;
    let (batch, elements) = split(x, copies)?;
    let fits = |tensor: &Tensor, len: usize| tensor.len() == len && tensor.dtype() == x.dtype();
    let saved_fit = [saved_state, saved].iter().flatten().all(|tensor| fits(tensor, batch * elements));
    if copies > 2 || !fits(prediction, x.len()) || !saved_fit {
        return Err(Error::shape(
            OP,
            format!(
                "{copies} copies in x {}, prediction {} {}, saved {:?} and {:?}",
                x.shape(),
                prediction.shape(),
                prediction.dtype(),
                saved_state.map(Tensor::shape),
                saved.map(Tensor::shape)
            ),
        ));
    }
    let kept = saved_state.map_or(0, Tensor::bytes) + saved.map_or(0, Tensor::bytes);
    let bytes = x.bytes() / copies + x.bytes() + prediction.bytes() + 2 * kept + control.bytes() + 4 * STAGE_WORDS;
    context.charge(OP, Cost::scalar(60 * batch * elements, bytes));
    run!(f32 x, advance(state, table, control, seed))
}

/// Pixels of `x` (f32, [-1, 1] from black to white): `pixels` (u8, as many) = round((clamp(x) + 1) · 127.5), halves upwards.
///
/// # Errors
/// [`Error::Shape`] for operands of different lengths or other dtypes.
pub fn to_pixels(context: &Context, x: &Tensor, pixels: &Tensor) -> Result<()> {
    if x.is_empty() || pixels.len() != x.len() || pixels.dtype() != DType::U8 {
        return Err(Error::shape(OP, format!("pixels {} {} of x {}", pixels.shape(), pixels.dtype(), x.shape())));
    }
    context.charge("sampler_step_pixels", Cost::memory(x.bytes() + pixels.bytes()));
    run!(f32 x, pixels(x, pixels))
}
