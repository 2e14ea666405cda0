//! Batch normalisation (Ioffe and Szegedy 2015), with the residual and the ReLU behind it in one op.
//!
//! y = act(weight · (x − mean) · rstd + bias + residual), per channel over all rows, rstd = 1 / √(variance + ε). In training, mean
//! and (biased) variance are the batch's, and the running statistics move on in place, the variance's by the unbiased one, as
//! PyTorch has it:
//!
//! ```text
//! running = (1 − momentum) · running + momentum · batch's
//! ```
//!
//! In inference the running statistics take their place and stay. Backwards, n = (x − mean) · rstd and dz = dy where y > 0 (dy without
//! ReLU): dresidual = dz, dbias = Σ dz, dweight = Σ dz · n, and
//! dx = rstd · weight · (dz − (dbias + n · dweight) / rows), or rstd · weight · dz in inference.
//!
//! A block of a ResNet ends in relu(bn(x) + residual): as ops of their own, the sum and the ReLU would read and write the tensor
//! twice more each way. Saved: x, mean, rstd, weight and bias; y where there are both ReLU and residual, since the mask cannot
//! be had again from x alone.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Backward, Destination, Input, Tape, Var};
use crate::tensor::{Cost, DType, Tensor};

const OP: &str = "batch_norm";

/// Threads of a block that goes over rows.
const THREADS: usize = 256;

/// Chunks of rows up to which one more keeps more of a GPU busy; above, joining them would take as long as what it saves.
const MOST_CHUNKS: usize = 512;

/// Which statistics normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's; the running ones move on.
    Batch,
    /// The running ones, which stay.
    Running,
}

/// The op's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Which statistics normalise.
    pub statistics: Statistics,
    /// ε under the root.
    pub epsilon: f32,
    /// The batch's share of the running statistics.
    pub momentum: f32,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl Default for BatchNorm {
    /// PyTorch's constants, in training, without ReLU.
    fn default() -> Self {
        Self { statistics: Statistics::Batch, epsilon: 1e-5, momentum: 0.1, relu: false }
    }
}

/// Running mean and variance, each `[C]`, f32, persistent.
#[derive(Clone, Debug)]
pub struct Running {
    /// Zeros at first.
    pub mean: Tensor,
    /// Ones at first.
    pub variance: Tensor,
}

/// How rows and channels are cut: for kernels and, so that scratch is the same, for the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    rows: usize,
    channels: usize,
    /// Neighbouring 16-byte pieces of a row that a kernel's block takes.
    columns: usize,
    /// Blocks next to each other that take a row.
    tiles: usize,
    /// Rows that are summed by themselves.
    chunk_rows: usize,
    chunks: usize,
}

impl Layout {
    fn new(rows: usize, channels: usize, dtype: DType) -> Self {
        let pieces = channels.div_ceil(16 / dtype.size());
        let columns = pieces.next_power_of_two().min(32);
        let tiles = pieces.div_ceil(columns);
        let wanted = rows.div_ceil(8 * THREADS / columns).min((MOST_CHUNKS / tiles).max(1));
        let chunk_rows = rows.div_ceil(wanted);
        Self { rows, channels, columns, tiles, chunk_rows, chunks: rows.div_ceil(chunk_rows) }
    }
}

/// `x` `[B, H, W, C]` (or any `[…, C]`) normalised per channel, `residual` of the same shape and dtype added, then the ReLU if
/// `norm.relu`. `weight` and `bias` `[C]`, f32. `running` is read or moved on as `norm.statistics` says. `x` and `residual` are
/// different variables; both, and the parameters, get gradients.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit together, for an empty `x`, and in training for a single row, which has no
/// variance.
pub fn batch_norm(
    tape: &Tape,
    x: &Var,
    residual: Option<&Var>,
    weight: &Var,
    bias: &Var,
    running: &Running,
    norm: BatchNorm,
) -> Result<Var> {
    let (channels, dtype) = (x.shape().last(), x.dtype());
    let statistics = dtype.exact();
    for (name, tensor) in [
        ("weight", weight.tensor()),
        ("bias", bias.tensor()),
        ("running mean", &running.mean),
        ("running variance", &running.variance),
    ] {
        if tensor.sizes() != [channels] || tensor.dtype() != statistics {
            let found = format!("{name} {} {}; it is [{channels}] {statistics}", tensor.shape(), tensor.dtype());
            return Err(Error::shape(OP, found));
        }
    }
    if let Some(residual) = residual
        && (residual.shape() != x.shape() || residual.dtype() != dtype)
    {
        let found = format!("residual {} {} for x {} {dtype}", residual.shape(), residual.dtype(), x.shape());
        return Err(Error::shape(OP, found));
    }
    let rows = x.shape().rows();
    let fewest = if norm.statistics == Statistics::Batch { 2 } else { 1 };
    if x.tensor().is_empty() || rows < fewest || x.shape().len() > u32::MAX as usize {
        return Err(Error::shape(OP, format!("x {} has {rows} rows of {channels}: too few, or too many", x.shape())));
    }
    let context = x.context().clone();
    let y = context.empty(x.shape(), dtype)?;
    let mut call = Call {
        layout: Layout::new(rows, channels, dtype),
        norm,
        x: x.tensor().clone(),
        y: None,
        weight: weight.tensor().clone(),
        bias: bias.tensor().clone(),
        mean: context.empty([channels], statistics)?,
        rstd: context.empty([channels], statistics)?,
    };
    let passes = 2 + (norm.statistics == Statistics::Batch) as usize + residual.is_some() as usize;
    // Five operations for the statistics, as many to apply them.
    context.charge("batch_norm_fwd", call.cost(passes, 10));
    call.forward(&y, residual.map(Var::tensor), running)?;
    call.y = (norm.relu && residual.is_some()).then(|| y.clone());
    let mut inputs = tape.inputs(OP);
    let to = To {
        x: inputs.add("x", x),
        residual: inputs.optional("residual", residual),
        weight: inputs.add("weight", weight),
        bias: inputs.add("bias", bias),
    };
    Ok(inputs.record(y, move |backward| call.backward(backward, to)))
}

/// One call: sizes and saved tensors.
struct Call {
    layout: Layout,
    norm: BatchNorm,
    x: Tensor,
    /// For the mask of the ReLU, where x does not tell it.
    y: Option<Tensor>,
    weight: Tensor,
    bias: Tensor,
    /// `[C]`
    mean: Tensor,
    /// `[C]`
    rstd: Tensor,
}

/// The inputs.
#[derive(Clone, Copy)]
struct To {
    x: Input,
    residual: Input,
    weight: Input,
    bias: Input,
}

/// Where the inputs' gradients go, and scratch.
struct Gradients {
    dx: Option<Destination>,
    dresidual: Option<Destination>,
    dweight: Option<Destination>,
    dbias: Option<Destination>,
    /// Σ dz and Σ dz · n of the chunks `[chunks, 2, C]`, and of all rows `[2, C]`; None where nobody asks for them.
    sums: Option<[Tensor; 2]>,
}

impl Call {
    /// `passes` tensors of the size of x, `flops` operations an element.
    fn cost(&self, passes: usize, flops: usize) -> Cost {
        // Statistics, parameters and running statistics, some of them read and written.
        Cost::scalar(flops * self.x.len(), passes * self.x.bytes() + 8 * self.mean.bytes())
    }

    fn chunk_sums(&self, like: &Tensor) -> Result<Tensor> {
        like.context().empty([self.layout.chunks, 2, self.layout.channels], self.mean.dtype())
    }

    fn forward(&self, y: &Tensor, residual: Option<&Tensor>, running: &Running) -> Result<()> {
        let batch = self.norm.statistics == Statistics::Batch;
        let partial = batch.then(|| self.chunk_sums(y)).transpose()?;
        run!(held y, statistics(self, running, partial.as_ref()))?;
        run!(held y, apply(self, y, residual))
    }

    fn backward(&self, backward: &Backward, to: To) -> Result<()> {
        let (context, dy) = (backward.context(), backward.gradient());
        let batch = self.norm.statistics == Statistics::Batch;
        let parameters = backward.wants(to.weight) || backward.wants(to.bias);
        let sums = (batch || parameters)
            .then(|| Ok([self.chunk_sums(dy)?, context.empty([2, self.layout.channels], self.mean.dtype())?]))
            .transpose()?;
        let gradients = Gradients {
            dx: backward.destination(to.x)?,
            dresidual: backward.destination(to.residual)?,
            dweight: backward.destination(to.weight)?,
            dbias: backward.destination(to.bias)?,
            sums,
        };
        let written = gradients.dx.is_some() as usize + gradients.dresidual.is_some() as usize;
        let read = (2 + self.y.is_some() as usize) * (gradients.sums.is_some() as usize + (written > 0) as usize);
        context.charge("batch_norm_bwd", self.cost(read + written, 14));
        run!(held dy, backward(self, dy, &gradients))
    }
}
