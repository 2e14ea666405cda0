//! What a training batch draws: times, noise, dropped labels; the noisy images and the targets.
//!
//! For item b, with Philox's `item` = `control.first_item` + b and `step` = `control.step`, and (a, s) the noise level at its
//! time: x_t = a·x_0 + s·ε and target = c_x·x_0 + c_n·ε (see [`Target`]). The random numbers are the `f32` ones whatever the
//! dtype. The element e of ε is normal number e mod 4 of call e / 4 (purpose [`Noise`](crate::rng::Purpose::Noise)). No gradient.
//!
//! Ho, Jain, Abbeel 2020, *Denoising Diffusion Probabilistic Models*; Lipman et al. 2023, *Flow Matching for Generative
//! Modeling*; Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting Strategy*.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::{control, level_sampling, run};
use crate::tensor::{Context, Cost, DType, Tensor};

const OP: &str = "noise_step";

/// The time input of a network for a flow time t is t times this.
const FLOW_TIME_SCALE: f32 = 1000.0;

/// The noise levels of times.
#[derive(Clone, Debug)]
pub enum TimeGrid {
    /// Timesteps 0 … T − 1; timestep i has the level (a\[i\], s\[i\]), `[T]` f32 each. The network is told i.
    Table {
        /// Weights of the clean image.
        a: Tensor,
        /// Weights of the noise.
        s: Tensor,
    },
    /// Continuous t in (0, 1) with a = 1 − t and s = t. The network is told 1000·t.
    Flow,
}

/// How a time u in (0, 1) is drawn: as t under [`TimeGrid::Flow`], as timestep ⌊u·T⌋ of a table. u keeps within
/// [2⁻²⁴, 1 − 2⁻²⁴], the range of the uniform numbers, so that neither a nor s vanishes.
#[derive(Clone, Debug)]
pub enum Draw {
    /// Uniformly.
    Uniform,
    /// u = σ(mean + std·n), n standard normal (Esser et al. 2024).
    LogitNormal {
        /// Mean of the logit.
        mean: f32,
        /// Standard deviation of the logit.
        std: f32,
    },
    /// By the state `[3, K]` of [`level_sampling`]: a bin with its probability p, uniformly within it. The items' weights are
    /// multiplied by 1 / (K · p), and [`Noised::level`] says the bins.
    Adaptive(Tensor),
}

/// The training target of the network, as weights (c_x of x_0, c_n of ε).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// ε: (0, 1).
    Epsilon,
    /// x_0: (1, 0).
    X0,
    /// v: (−s, a) (Salimans and Ho 2022).
    V,
    /// The flow's velocity: (−1, 1).
    Flow,
}

/// The random quantities, and their distributions.
#[derive(Clone, Debug)]
pub struct NoiseStep {
    /// The seed of all draws.
    pub seed: u64,
    /// Noise levels.
    pub times: TimeGrid,
    /// The distribution of times.
    pub draw: Draw,
    /// The training target.
    pub target: Target,
    /// γ > 0 of min-SNR weights: min(a², γ·s²) / (a·c_n − s·c_x)². `None`: every weight is 1.
    pub min_snr_gamma: Option<f32>,
    /// Probability with which a label becomes `null_label`.
    pub label_dropout: f32,
    /// The label of "no label".
    pub null_label: i32,
}

/// A drawn batch.
#[derive(Clone, Debug)]
pub struct Noised {
    /// Noisy images, of the shape of x_0.
    pub x_t: Tensor,
    /// The target of the network, of the shape of x_0.
    pub target: Tensor,
    /// The time input of the network, `[B]` f32.
    pub time: Tensor,
    /// The labels, some of them dropped, `[B]` i32.
    pub labels: Tensor,
    /// Weights of the items' losses, `[B]` f32.
    pub weight: Tensor,
    /// The bins of [`Draw::Adaptive`], `[B]` i32.
    pub level: Option<Tensor>,
}

/// Draws for `x0` `[B, …]` (f32) with `labels` `[B]` (i32) at the step that `control` ([`control::Control`]) names.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, an empty batch, or a γ that is not positive.
pub fn noise_step(
    context: &Context,
    x0: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    config: &NoiseStep,
) -> Result<Noised> {
    control::check(OP, control)?;
    let batch = x0.sizes().first().copied().unwrap_or(0);
    if x0.is_empty() || labels.sizes() != [batch] || labels.dtype() != DType::I32 {
        return Err(Error::shape(OP, format!("x0 {}, labels {} {}", x0.shape(), labels.shape(), labels.dtype())));
    }
    if let TimeGrid::Table { a, s } = &config.times
        && (a.is_empty()
            || a.sizes() != [a.len()]
            || a.shape() != s.shape()
            || [a.dtype(), s.dtype()] != [x0.dtype(); 2])
    {
        return Err(Error::shape(OP, format!("tables of {} and {} for x0 of {}", a.shape(), s.shape(), x0.dtype())));
    }
    if let Some(gamma) = config.min_snr_gamma.filter(|&gamma| gamma.is_nan() || gamma <= 0.0) {
        return Err(Error::shape(OP, format!("min-SNR's gamma is {gamma}; it is positive")));
    }
    if let Draw::Adaptive(state) = &config.draw {
        level_sampling::bins(OP, state, x0.dtype())?;
    }
    let noised = Noised {
        x_t: context.empty(x0.shape(), x0.dtype())?,
        target: context.empty(x0.shape(), x0.dtype())?,
        time: context.empty([batch], x0.dtype())?,
        labels: context.empty([batch], DType::I32)?,
        weight: context.empty([batch], x0.dtype())?,
        level: match &config.draw {
            Draw::Adaptive(_) => Some(context.empty([batch], DType::I32)?),
            _ => None,
        },
    };
    // Each item reads one level; four elements take a Philox call and two Box-Muller pairs, about 150 operations.
    let bytes = 3 * x0.bytes() + 4 * noised.time.bytes() + 2 * labels.bytes() + control.bytes();
    context.charge(OP, Cost::scalar(40 * x0.len(), bytes));
    run!(f32 x0, forward(x0, labels, control, config, &noised))?;
    Ok(noised)
}

#[cfg(test)]
mod tests;
