//! Sampling on the device: the starting noise, a stage's time, the stage's update, and pixels.
//!
//! Every row of a batch goes its own way: its [`Row`] says which stage it is at, and whose noise it draws, so that one
//! captured program serves every stage of every sampler at once. The rows' table is `[R, 24]` u32, floats as their
//! bits. Under guidance an image has two rows, of which the network sees one with and one without the label. Nothing
//! here has a gradient; everything is f32.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tensor::{Context, Cost, DType, Tensor};

const OP: &str = "sampler_step";

/// 32-bit words of a stage, in the order of `diffusion::StageCoefficients`, whose module says what each number does.
pub const STAGE_WORDS: usize = 16;
/// 32-bit words of a row.
pub const ROW_WORDS: usize = 24;

/// The state of a row in this step.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// The stage; its last word are flags, those below among them.
    pub stage: [u32; STAGE_WORDS],
    /// The seed: low word, high word.
    pub seed: [u32; 2],
    /// Philox's `item`: the number of the image.
    pub item: u32,
    /// Philox's `step`: 0 for the noise that sampling starts from, above that for a stage's.
    pub step: u32,
    /// The row that stands for the same image without its label; the row itself where there is none.
    pub partner: u32,
    /// The factor of the starting noise.
    pub scale: f32,
    /// Zero.
    pub reserved: [u32; 2],
}

impl Row {
    /// The row owns an image, which a step updates in it and in its partner. Other rows stay as they are.
    pub const OWNS: u32 = 32;
    /// The row, and its partner, are filled with the noise that sampling starts from.
    pub const BEGINS: u32 = 64;

    /// Where the words are in the table.
    fn words(of: &[Self]) -> &[u32] {
        bytemuck::cast_slice(of)
    }

    /// Rows as a table, on the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn upload(rows: &[Self], table: &Tensor) -> Result<()> {
        table.upload(Self::words(rows))
    }
}

fn check_table(rows: usize, table: &Tensor) -> Result<()> {
    match table.sizes() {
        &[have, ROW_WORDS] if have == rows && rows > 0 && table.dtype() == DType::U32 => Ok(()),
        _ => {
            let message = format!("a table {} {}; it is [{rows}, {ROW_WORDS}] u32", table.shape(), table.dtype());
            Err(Error::shape(OP, message))
        }
    }
}

/// Rows, elements of a row.
fn split(x: &Tensor) -> Result<(usize, usize)> {
    match x.sizes().first() {
        Some(&rows) if !x.is_empty() => Ok((rows, x.len() / rows)),
        _ => Err(Error::shape(OP, format!("a state of {}", x.shape()))),
    }
}

/// Fills the rows of `x` `[R, …]` that begin ([`Row::BEGINS`]), and their partners, with the noise that sampling starts
/// from: [`Row::scale`] times the standard normal noise of the row's seed, item and step (purpose
/// [`Noise`](crate::rng::Purpose::Noise)).
///
/// # Errors
/// [`Error::Shape`] for a table of another shape or dtype.
pub fn fill_noise(context: &Context, x: &Tensor, table: &Tensor) -> Result<()> {
    let (rows, elements) = split(x)?;
    check_table(rows, table)?;
    context.charge("sampler_step_noise", Cost::scalar(30 * rows * elements, x.bytes() + table.bytes()));
    run!(f32 x, fill_noise(x, table))
}

/// Fills `time` `[R]`, f32, with what the network is told of the time in each row's stage.
///
/// # Errors
/// [`Error::Shape`] for a table of another shape or dtype.
pub fn sampler_time(context: &Context, time: &Tensor, table: &Tensor) -> Result<()> {
    check_table(time.len(), table)?;
    context.charge("sampler_step_time", Cost::memory(2 * time.bytes()));
    run!(f32 time, time(time, table))
}

/// The operands of a step, all `[R, …]`, f32.
#[derive(Clone, Copy, Debug)]
pub struct SamplerState<'a> {
    /// The state: of rows that own an image it becomes the next state, in their partners too.
    pub x: &'a Tensor,
    /// The network's output: under guidance of an image's own row with the label, of its partner without. The
    /// prediction is then guidance · cond + (1 - guidance) · uncond, exactly cond at 1.
    pub prediction: &'a Tensor,
    /// For samplers some of whose stages save the state (Heun).
    pub saved_state: Option<&'a Tensor>,
    /// For samplers some of whose stages save a combination of x_0 and ε (Heun, DPM-Solver++).
    pub saved: Option<&'a Tensor>,
}

/// Each row's stage. Its noise is that of the row's seed, item and step (purpose
/// [`Noise`](crate::rng::Purpose::Noise)). A stage that reads a buffer which is `None` gives NaN. No row is the partner
/// of two, and no partner owns an image.
///
/// # Errors
/// [`Error::Shape`] for buffers that do not fit together.
pub fn sampler_step(context: &Context, state: &SamplerState, table: &Tensor) -> Result<()> {
    let SamplerState { x, prediction, saved_state, saved } = *state;
    let (rows, elements) = split(x)?;
    check_table(rows, table)?;
    let fits = |tensor: &Tensor| tensor.len() == x.len() && tensor.dtype() == x.dtype();
    if !fits(prediction) || ![saved_state, saved].iter().flatten().all(|tensor| fits(tensor)) {
        let message = format!(
            "x {}, prediction {} {}, saved {:?} and {:?}",
            x.shape(),
            prediction.shape(),
            prediction.dtype(),
            saved_state.map(Tensor::shape),
            saved.map(Tensor::shape)
        );
        return Err(Error::shape(OP, message));
    }
    let kept = saved_state.map_or(0, Tensor::bytes) + saved.map_or(0, Tensor::bytes);
    let bytes = 2 * x.bytes() + prediction.bytes() + 2 * kept + table.bytes();
    context.charge(OP, Cost::scalar(60 * rows * elements, bytes));
    run!(f32 x, advance(state, table))
}

/// Pixels of `x` (f32, [-1, 1] from black to white): `pixels` (u8, as many) = round((clamp(x) + 1) · 127.5), halves
/// upwards.
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
