//! Group norm with what follows it in a residual block: scale and shift, SiLU, dropout; of one tensor or of two side by side.
//!
//! With the channels of `x` and `skip` side by side cut into groups, μ and σ² the mean and variance of a sample's group over its
//! pixels and channels, and n = (x − μ) / √(σ² + ε):
//!
//! u = n · weight + bias,  v = u · (1 + scale) + shift,  y = v · sigmoid(v)
//!
//! scale and shift are columns of a per-sample matrix; without one, v = u. Without SiLU, y = v. Where a [`Mask`] is given, y goes through
//! its dropout. A group may lie across the border of the two sources: their concatenation is never made, only its normalised form is.
//!
//! Wu and He 2018, *Group Normalization*; scale and shift: Dhariwal and Nichol 2021, *Diffusion Models Beat GANs on Image
//! Synthesis*. Saved for backward: the sources, and per sample and group μ and 1/√(σ² + ε). The mask is drawn
//! again backwards.

mod cases;
mod cpu;
mod cuda;
mod cut;

pub use cases::cases;

use cut::Cut;

use crate::error::{Error, Result};
use crate::ops::mask::Mask;
use crate::ops::{control, run};
use crate::tape::{Backward, Destination, Input, Parts, SumOrder, Tape, Var, sum_parts};
use crate::tensor::{Context, Cost, Tensor};

const OP: &str = "group_norm_silu";

/// How to normalise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormSilu {
    /// Groups; they divide the channels.
    pub groups: usize,
    /// The constant added to the variance.
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    samples: usize,
    /// Pixels (or tokens) of a sample.
    pixels: usize,
    /// Channels of `x` and of `skip`.
    sources: [usize; 2],
    norm: GroupNormSilu,
}

impl Sizes {
    fn channels(self) -> usize {
        self.sources[0] + self.sources[1]
    }

    /// Channels of a group.
    fn width(self) -> usize {
        self.channels() / self.norm.groups
    }
}

/// Normalises `x` `[B, H, W, Ca]` (or any `[B, …, Ca]`) and `skip` `[B, H, W, Cb]` as the one tensor `[B, H, W, Ca + Cb]`, the
/// result's shape. `affine`, weight and bias `[Ca + Cb]`, f32; `scale_shift` `[B, 2 (Ca + Cb)]`, of the dtype of `x`: the scales' columns,
/// then the shifts'. `x` and `skip` are different variables. `dropout`: the mask, and the control buffer, which holds the same words
/// backwards.
///
/// # Errors
/// [`Error::Shape`] where the operands do not fit each other or the groups do not divide the channels.
pub fn group_norm_silu(
    tape: &Tape,
    x: &Var,
    skip: Option<&Var>,
    affine: [&Var; 2],
    scale_shift: Option<&Var>,
    norm: GroupNormSilu,
    dropout: Option<(Mask, &Tensor)>,
) -> Result<Var> {
    let [weight, bias] = affine;
    let context = x.context().clone();
    let outer = &x.sizes()[..x.sizes().len() - 1];
    let sizes = Sizes {
        samples: x.sizes()[0],
        pixels: outer[1..].iter().product(),
        sources: [x.shape().last(), skip.map_or(0, |skip| skip.shape().last())],
        norm,
    };
    let channels = sizes.channels();
    if outer.is_empty() || x.tensor().is_empty() || norm.groups == 0 || !channels.is_multiple_of(norm.groups) {
        return Err(Error::shape(OP, format!("{} groups of {channels} channels, x {}", norm.groups, x.shape())));
    }
    if let Some(skip) = skip
        && (skip.sizes()[..skip.sizes().len() - 1] != *outer || skip.dtype() != x.dtype() || sizes.sources[1] == 0)
    {
        return Err(Error::shape(OP, format!("skip {} {} for x {}", skip.shape(), skip.dtype(), x.shape())));
    }
    if weight.sizes() != [channels] || bias.sizes() != [channels] {
        return Err(Error::shape(
            OP,
            format!("weight {} and bias {} for {channels} channels", weight.shape(), bias.shape()),
        ));
    }
    if let Some(matrix) = scale_shift
        && (matrix.sizes() != [sizes.samples, 2 * channels] || matrix.dtype() != x.dtype())
    {
        let shape = matrix.shape();
        return Err(Error::shape(OP, format!("scale_shift {shape} {} for {channels} channels", matrix.dtype())));
    }
    if let Some((_, control)) = dropout {
        control::check(OP, control)?;
    }
    let mut shape = x.sizes().to_vec();
    shape[outer.len()] = channels;
    let y = context.empty(shape.as_slice(), x.dtype())?;
    let statistics = x.dtype().exact();
    let call = Call {
        sizes,
        x: x.tensor().clone(),
        skip: skip.map(|skip| skip.tensor().clone()),
        weight: weight.tensor().clone(),
        bias: bias.tensor().clone(),
        scale_shift: scale_shift.map(|matrix| matrix.tensor().clone()),
        dropout: dropout.map(|(mask, control)| (mask, control.clone())),
        mean: context.empty([sizes.samples, norm.groups], statistics)?,
        rstd: context.empty([sizes.samples, norm.groups], statistics)?,
    };
    context.charge("group_norm_silu_fwd", call.cost(&y, 2));
    call.forward(&y)?;
    let mut inputs = tape.inputs(OP);
    let to = To {
        x: inputs.add("x", x),
        skip: inputs.optional("skip", skip),
        weight: inputs.add("weight", weight),
        bias: inputs.add("bias", bias),
        scale_shift: inputs.optional("scale_shift", scale_shift),
    };
    Ok(inputs.record(y, move |backward| call.backward(backward, to)))
}

/// One call: sizes and saved tensors.
struct Call {
    sizes: Sizes,
    x: Tensor,
    skip: Option<Tensor>,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Option<Tensor>,
    dropout: Option<(Mask, Tensor)>,
    mean: Tensor,
    rstd: Tensor,
}

/// The inputs.
#[derive(Clone, Copy)]
struct To {
    x: Input,
    skip: Input,
    weight: Input,
    bias: Input,
    scale_shift: Input,
}

/// Where the inputs' gradients go.
struct Gradients {
    dx: Option<Destination>,
    dskip: Option<Destination>,
    dweight: Option<Destination>,
    dbias: Option<Destination>,
    dscale_shift: Option<Destination>,
    /// Per sample Σ dv and Σ dv · n over its pixels, `[B, 2, C]`: scratch.
    sums: Tensor,
    /// Those of a kernel's chunks of pixels, `[B, chunks, 2, C]`, where there are several parts: scratch.
    partial: Option<Tensor>,
}

impl Call {
    /// `passes` tensors of the result's size; about 24 operations an element, of which SiLU makes most, and 26 of dropout's.
    fn cost(&self, y: &Tensor, passes: usize) -> Cost {
        let operations = if self.sizes.norm.silu { 24 } else { 8 } + if self.dropout.is_some() { 26 } else { 0 };
        let control = self.dropout.as_ref().map_or(0, |(_, control)| control.bytes());
        Cost::scalar(operations * y.len(), passes * y.bytes() + 2 * self.mean.bytes() + control)
    }

    /// Scratch of kernels with several blocks a group: their means and sums of squares.
    fn parts(&self, context: &Context) -> Result<Option<Tensor>> {
        let (sizes, parts) = (self.sizes, self.cut().parts());
        let shape = [sizes.samples, sizes.norm.groups, parts, 2];
        (parts > 1).then(|| context.empty(shape, self.mean.dtype())).transpose()
    }

    fn cut(&self) -> Cut {
        Cut::of(self.sizes, self.x.dtype())
    }

    fn forward(&self, y: &Tensor) -> Result<()> {
        let partial = self.parts(y.context())?;
        run!(held y, forward(self, y, partial.as_ref()))
    }

    fn backward(&self, backward: &Backward, to: To) -> Result<()> {
        let (context, dy, sizes) = (backward.context(), backward.gradient(), self.sizes);
        context.charge("group_norm_silu_bwd", self.cost(dy, 3));
        let (samples, channels, cut) = (sizes.samples, sizes.channels(), self.cut());
        let partial = [samples, cut.chunks, 2, channels];
        let gradients = Gradients {
            dx: backward.destination(to.x)?,
            dskip: backward.destination(to.skip)?,
            dweight: backward.destination(to.weight)?,
            dbias: backward.destination(to.bias)?,
            dscale_shift: backward.destination(to.scale_shift)?,
            sums: context.empty([samples, 2, channels], self.mean.dtype())?,
            partial: (cut.parts() > 1).then(|| context.empty(partial, self.mean.dtype())).transpose()?,
        };
        run!(held dy, backward(self, dy, &gradients))?;
        if self.scale_shift.is_some() {
            return Ok(());
        }
        let parts = Parts { count: samples, stride: 2 * channels, order: SumOrder::Across };
        let Gradients { dweight, dbias, sums, .. } = &gradients;
        sum_parts(sums, parts, [(dweight.as_ref(), channels), (dbias.as_ref(), 0)])
    }
}
