//! A loss of five terms an image, balanced by the terms' own running means.
//!
//! With p and t an item of prediction and target, d = p − t and E = H·W·C:
//!
//! | term | value |
//! |---|---|
//! | mse | mean d² |
//! | l1 | mean \|d\|, of derivative 0 at 0 |
//! | cosine | 1 − ⟨p, t⟩ / (‖p‖·‖t‖) over the whole image |
//! | high frequency | mean (L d)², L d = d minus the mean of its four neighbours, edges replicated |
//! | edge | mean of √(x² + y² + ε²) − ε, x and y the differences of d to the right and below (0 in the last column and row), ε = 10⁻³ |
//!
//! Where ‖p‖·‖t‖ ≤ 10⁻⁸ there is no direction to compare: the cosine term is 1 and sends no gradient (a network whose last
//! layer begins at zero would otherwise get one of 10⁸ times the target). With replicated edges L is a quarter of the
//! grid's graph Laplacian, which is symmetric: its adjoint is L itself. The edge term is the smoothed total variation of the
//! error (Rudin, Osher and Fatemi 1992, with the norm of Charbonnier et al. 1994). All five but the cosine are functions of d
//! alone, and linear in d inside their norms.
//!
//! ```text
//! factor_i = λ_i · clamp(m̂_mse / m̂_i, 1/100, 100)      m̂: running means of the terms, see update_magnitudes
//! items[b] = weight[b] · Σ_i factor_i · T[b, i]
//! loss     = scale · mean_b items[b]
//! ```
//!
//! So every term with the same λ weighs about as much as the mean squared error, whatever its natural size. factor_i is λ_i
//! before the first update, without a state, and where a mean is not positive (an image of one pixel has no edges). The
//! factors are constants in the gradient. All in f32, in sums of fixed order: first each item's, then the items. Saved:
//! prediction, target, weight, seven numbers an item and the five factors, so the state may move on before the backward.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Tape, Var};
use crate::tensor::{Context, Cost, Tensor};

const OP: &str = "balanced_loss";

/// Terms of the loss: mse, l1, cosine, high frequency, edge.
pub const TERMS: usize = 5;

/// Values of an item that the forward keeps: its terms, and α and β of the cosine's gradient β·p − α·t.
const STATISTICS: usize = TERMS + 2;

/// ‖p‖·‖t‖ up to which the cosine is not defined.
const COSINE_GUARD: f64 = 1e-8;

/// ε of the edge term.
const EDGE_EPSILON: f64 = 1e-3;

/// How far a factor goes from its λ, up and down.
const LARGEST_RATIO: f64 = 100.0;

/// The loss's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalancedLoss {
    /// λ of mse, l1, cosine, high frequency and edge, none negative. A term of λ = 0 is off: it is reported, no more.
    pub weights: [f32; TERMS],
    /// Multiplies the loss and its gradient, not the items: 1 / the number of micro-batches of a step.
    pub scale: f32,
}

impl Default for BalancedLoss {
    fn default() -> Self {
        Self { weights: [1.0, 0.5, 0.1, 0.5, 0.25], scale: 1.0 }
    }
}

/// The results of [`balanced_loss`].
#[derive(Clone, Debug)]
pub struct Balanced {
    /// `[1]`: the loss.
    pub loss: Var,
    /// `[B]`: the items' losses, weighted, before `scale`.
    pub items: Tensor,
    /// `[5]`: the terms, neither weighted nor balanced, as means over the batch; for [`update_magnitudes`].
    pub terms: Tensor,
}

/// The loss of `prediction` `[B, H, W, C]` against `target` of the same shape, f32, item b weighted by `weight` `[B]` (f32;
/// `None` for ones). `state` `[6]` is what [`update_magnitudes`] keeps (f32, zeros at first); without it factor_i = λ_i, as
/// validation wants it. The prediction alone gets a gradient.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit together or are empty, and for weights that are negative or not finite.
pub fn balanced_loss(
    tape: &Tape,
    prediction: &Var,
    target: &Var,
    weight: Option<&Var>,
    state: Option<&Tensor>,
    config: &BalancedLoss,
) -> Result<Balanced> {
    let dtype = prediction.dtype();
    let &[batch, height, width, channels] = prediction.sizes() else {
        return Err(Error::shape(OP, format!("a prediction {}; it is [B, H, W, C]", prediction.shape())));
    };
    let weight_fits = weight.is_none_or(|w| w.sizes() == [batch] && w.dtype() == dtype);
    if prediction.shape() != target.shape() || target.dtype() != dtype || !weight_fits {
        return Err(Error::shape(
            OP,
            format!(
                "prediction {} {dtype}, target {} {}, weight {:?}",
                prediction.shape(),
                target.shape(),
                target.dtype(),
                weight.map(Var::shape)
            ),
        ));
    }
    if prediction.shape().is_empty() || prediction.shape().len() / batch > i32::MAX as usize {
        return Err(Error::shape(OP, format!("{} holds no images, or too large ones", prediction.shape())));
    }
    if let Some(state) = state {
        check_state(state, prediction.tensor())?;
    }
    if let Some(bad) = config.weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
        return Err(Error::shape(OP, format!("a term's weight of {bad}; it is zero or positive")));
    }
    let context = prediction.context();
    let empty = |len: usize| context.empty([len], dtype);
    let call = Call {
        image: Image { height, width, channels },
        batch,
        config: *config,
        prediction: prediction.tensor().clone(),
        target: target.tensor().clone(),
        weight: weight.map(|weight| weight.tensor().clone()),
        statistics: empty(batch * STATISTICS)?,
        factors: empty(TERMS)?,
    };
    let (loss, items, terms) = (empty(1)?, empty(batch)?, empty(TERMS)?);
    // The operations of each kernel per element, the square root and the division as one each.
    context.charge("balanced_loss_fwd", call.cost(2, 31, &[&items, &terms, &loss], state));
    run!(f32 prediction, forward(&call, &Results { loss: &loss, items: &items, terms: &terms }, state))?;
    let mut inputs = tape.inputs(OP);
    let dprediction = inputs.add("prediction", prediction);
    let loss = inputs.record(loss, move |backward| {
        let dloss = backward.gradient();
        backward.context().charge("balanced_loss_bwd", call.cost(3, 86, &[dloss], None));
        let Some(destination) = backward.destination(dprediction)? else { return Ok(()) };
        run!(f32 dloss, backward(&call, dloss, &destination))
    });
    Ok(Balanced { loss, items, terms })
}

/// Takes `terms` `[5]` of a [`Balanced`] into the running means of `state` `[6]` (f32, persistent), in place:
///
/// ```text
/// state[i] = decay · state[i] + (1 − decay) · terms[i], i < 5;   state[5] = decay · state[5] + 1 − decay
/// m̂_i = state[i] / state[5]
/// ```
///
/// The mean with bias correction of Kingma and Ba (2015): m̂ after the first update is that update's terms.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, or a `decay` outside [0, 1).
pub fn update_magnitudes(context: &Context, state: &Tensor, terms: &Tensor, decay: f32) -> Result<()> {
    check_state(state, terms)?;
    if terms.sizes() != [TERMS] || !(0.0..1.0).contains(&decay) {
        return Err(Error::shape(OP, format!("terms {} and a decay of {decay}; [5] and 0 to 1", terms.shape())));
    }
    context.charge("balanced_loss_update", Cost::memory(2 * state.bytes() + terms.bytes()));
    run!(f32 state, update(state, terms, decay))
}

fn check_state(state: &Tensor, like: &Tensor) -> Result<()> {
    if state.sizes() == [TERMS + 1] && state.dtype() == like.dtype() {
        return Ok(());
    }
    Err(Error::shape(OP, format!("a state {} {}; it is [6] {}", state.shape(), state.dtype(), like.dtype())))
}

/// Sizes of an item.
#[derive(Clone, Copy)]
struct Image {
    height: usize,
    width: usize,
    channels: usize,
}

impl Image {
    /// Elements of a row of pixels.
    fn row(self) -> usize {
        self.width * self.channels
    }

    fn elements(self) -> usize {
        self.height * self.row()
    }
}

/// One call: sizes and saved tensors.
struct Call {
    image: Image,
    batch: usize,
    config: BalancedLoss,
    prediction: Tensor,
    target: Tensor,
    weight: Option<Tensor>,
    /// `[B · 7]`
    statistics: Tensor,
    /// `[5]`
    factors: Tensor,
}

/// The results of the forward.
struct Results<'a> {
    loss: &'a Tensor,
    items: &'a Tensor,
    terms: &'a Tensor,
}

impl Call {
    /// `passes` times over the prediction's size, `flops` an element.
    fn cost(&self, passes: usize, flops: usize, others: &[&Tensor], state: Option<&Tensor>) -> Cost {
        // The statistics are written and read, or read alone.
        let once = others.iter().copied().chain(&self.weight).chain(state).chain([&self.factors, &self.statistics]);
        let again = if passes == 2 { self.statistics.bytes() } else { 0 };
        let once = once.map(Tensor::bytes).sum::<usize>();
        Cost::scalar(flops * self.prediction.len(), passes * self.prediction.bytes() + once + again)
    }
}

#[cfg(test)]
mod tests;
