//! Convolution in two dimensions, channels last, with everything that usually surrounds it in the same pass.
//!
//! With stride s, padding p, and x̂ the image x, or x resized by nearest neighbour, zero outside:
//!
//! y\[b, i, j, o\] = Σ over (ky, kx, c) of w\[o, ky, kx, c\] · x̂\[b, s i + ky − p, s j + kx − p, c\], plus bias\[o\], plus
//! channel_add\[b, o\], plus residual\[b, i, j, o\].
//!
//! The gradients: dx̂ is the transposed convolution of dy (and dx sums x̂'s copies), dw = Σ over pixels of dy · x̂,
//! dchannel_add = Σ over an image's pixels of dy, dbias = Σ over all pixels, dresidual = dy.
//!
//! Saved for backward: `x` where the weight wants a gradient; never x̂.

mod cases;
mod cpu;
mod cuda;
mod direct;
mod doubled;
mod tile;
mod weight;
mod winograd;
mod winograd_weight;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::elementwise::add_into;
use crate::ops::{with_host_float, with_kernel_float};
use crate::tape::{Accumulate, Backward, Destination, Tape, Var};
use crate::tensor::{Backend, Context, Cost, DType, Device, Shape, Tensor};

/// `$walk.sum::<P>()` with `P` = `$count`, 1 to 14, which only run time knows: sums live in registers if their number is fixed.
macro_rules! sum_counted {
    ($walk:expr, $count:expr) => {
        match $count {
            1 => $walk.sum::<1>(),
            2 => $walk.sum::<2>(),
            3 => $walk.sum::<3>(),
            4 => $walk.sum::<4>(),
            5 => $walk.sum::<5>(),
            6 => $walk.sum::<6>(),
            7 => $walk.sum::<7>(),
            8 => $walk.sum::<8>(),
            9 => $walk.sum::<9>(),
            10 => $walk.sum::<10>(),
            11 => $walk.sum::<11>(),
            12 => $walk.sum::<12>(),
            13 => $walk.sum::<13>(),
            14 => $walk.sum::<14>(),
            count => unreachable!("a tile of {count}"),
        }
    };
}

use sum_counted;

const OP: &str = "conv2d";

/// How the window moves over the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Distance of neighbouring windows: 1 or 2.
    pub stride: usize,
    /// Rows and columns of zeros before the first one; behind the last come as many as the windows reach.
    pub pad_before: usize,
    /// Height and width to which the input is resized before, by nearest neighbour (row i of H comes from row ⌊i h / H⌋).
    pub resize: Option<[usize; 2]>,
}

impl Geometry {
    /// A window that stays centred: stride 1, `kernel / 2` zeros around; the result has the input's size.
    pub fn same(kernel: usize) -> Self {
        Self { stride: 1, pad_before: kernel / 2, resize: None }
    }
}

/// Sizes of a call; all that launch configurations and costs depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    batch: usize,
    /// Height and width of x.
    source: [usize; 2],
    /// Height and width of x̂.
    size: [usize; 2],
    /// Height and width of y.
    out: [usize; 2],
    cin: usize,
    cout: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
}

impl Sizes {
    /// Taps times channels: the length of the sum behind an element of y.
    fn depth(&self) -> usize {
        self.kernel * self.kernel * self.cin
    }

    /// Pixels of y in one image.
    fn out_pixels(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Multiply-adds that meet the image rather than its padding, in one output channel of one image.
    fn taps_inside(&self) -> usize {
        let along = |axis: usize| -> usize {
            let inside =
                |i: usize, k: usize| (i * self.stride + k).checked_sub(self.pad).is_some_and(|at| at < self.size[axis]);
            (0..self.out[axis]).map(|i| (0..self.kernel).filter(|&k| inside(i, k)).count()).sum()
        };
        along(0) * along(1)
    }
}

/// Convolves `x` `[B, h, w, Cin]` with `weight` `[Cout, k, k, Cin]` (k odd) of the same dtype.
///
/// With H, W the size after `geometry.resize` the result is `[B, ⌈H / stride⌉, ⌈W / stride⌉, Cout]` in the dtype of `x`. Added, where
/// given: `bias` `[Cout]` in `f32`, `channel_add` `[B, Cout]` and `residual` (of the result's shape) in the dtype of `x`. The weight's
/// gradient is `f32` (`f64` in oracle runs).
///
/// # Errors
/// [`Error::Shape`] where these do not fit each other.
pub fn conv2d(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    geometry: Geometry,
    channel_add: Option<&Var>,
    residual: Option<&Var>,
) -> Result<Var> {
    let context = x.context().clone();
    let sizes = sizes(x, weight, geometry)?;
    let exact = exact_dtype(x.dtype());
    let shape = Shape::new(&[sizes.batch, sizes.out[0], sizes.out[1], sizes.cout]);
    let fits = |what: &str, var: Option<&Var>, shape: Shape, dtype: DType| match var {
        Some(var) if var.shape() != shape || var.dtype() != dtype => {
            Err(Error::shape(OP, format!("{what} {} {} where {shape} {dtype} is needed", var.shape(), var.dtype())))
        }
        _ => Ok(()),
    };
    fits("bias", bias, Shape::new(&[sizes.cout]), exact)?;
    fits("channel_add", channel_add, Shape::new(&[sizes.batch, sizes.cout]), x.dtype())?;
    fits("residual", residual, shape, x.dtype())?;
    let mut inputs = vec![x, weight];
    let [bias_place, add_place, residual_place] = [bias, channel_add, residual].map(|var| {
        inputs.extend(var);
        var.map(|_| inputs.len() - 1)
    });
    let y = context.empty(shape, x.dtype())?;
    let call = Call {
        sizes,
        x: weight.needs_gradient().then(|| x.tensor().clone()),
        weight: x.needs_gradient().then(|| weight.tensor().clone()),
        bias: bias_place,
        channel_add: add_place,
        residual: residual_place,
    };
    context.charge("conv2d_fwd", call.cost(x.dtype(), residual.map_or(0, |residual| residual.tensor().bytes())));
    let added = Added {
        bias: bias.map(Var::tensor),
        channel_add: channel_add.map(Var::tensor),
        residual: residual.map(Var::tensor),
    };
    let prepared = match cpu::prepared_len(sizes, x.dtype()) {
        Some(len) => tape.prepared(weight.tensor(), OP, len, move |weight, prepared| {
            cpu::prepare(sizes, weight, prepared);
            Ok(())
        })?,
        None => None,
    };
    call.forward(x.tensor(), (weight.tensor(), prepared.as_ref()), added, &y)?;
    Ok(tape.record(&inputs, y, move |backward| call.backward(backward)))
}

fn sizes(x: &Var, weight: &Var, geometry: Geometry) -> Result<Sizes> {
    let (&[batch, h, w, cin], &[cout, kernel, columns, channels]) = (x.sizes(), weight.sizes()) else {
        let message =
            format!("x {} and weight {}; they are [B, H, W, Cin] and [Cout, k, k, Cin]", x.shape(), weight.shape());
        return Err(Error::shape(OP, message));
    };
    if kernel != columns
        || kernel.is_multiple_of(2)
        || channels != cin
        || cin * cout == 0
        || x.dtype() != weight.dtype()
    {
        return Err(Error::shape(
            OP,
            format!("x {} {} and weight {} {} do not fit", x.shape(), x.dtype(), weight.shape(), weight.dtype()),
        ));
    }
    let Geometry { stride, pad_before: pad, resize } = geometry;
    let size = resize.unwrap_or([h, w]);
    if !matches!(stride, 1 | 2)
        || pad >= kernel
        || (size.contains(&0) && h * w > 0)
        || (h * w == 0 && !size.contains(&0))
    {
        return Err(Error::shape(OP, format!("{geometry:?} for x {} and a window of {kernel}", x.shape())));
    }
    let out = size.map(|n| n.div_ceil(stride));
    Ok(Sizes { batch, source: [h, w], size, out, cin, cout, kernel, stride, pad })
}

/// Of biases and sums: `f32`, and `f64` in oracle runs.
fn exact_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// What is added to the sums.
struct Added<'a> {
    bias: Option<&'a Tensor>,
    channel_add: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
}

/// Where the sums of dy over pixels go.
struct Sums<'a> {
    bias: Option<&'a Destination>,
    channel_add: Option<&'a Destination>,
}

/// One call: sizes, what backward reads, and the places of the optional inputs.
struct Call {
    sizes: Sizes,
    x: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<usize>,
    channel_add: Option<usize>,
    residual: Option<usize>,
}

impl Call {
    /// One of the three products: each has the same multiply-adds, and touches x, w and y once.
    fn cost(&self, dtype: DType, more_bytes: usize) -> Cost {
        let sizes = self.sizes;
        let [source, out] = [sizes.source, sizes.out].map(|[h, w]| sizes.batch * h * w);
        let elements = source * sizes.cin + sizes.cout * sizes.depth() + out * sizes.cout;
        Cost {
            flops: 2.0 * (sizes.batch * sizes.taps_inside()) as f64 * (sizes.cin * sizes.cout) as f64,
            bytes: (elements * dtype.size() + more_bytes) as f64,
            tensor_cores: dtype == DType::BF16,
        }
    }

    fn forward(&self, x: &Tensor, weight: (&Tensor, Option<&Tensor>), added: Added, y: &Tensor) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        match y.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, y.dtype(), T => {
                cpu::forward::<T>(self.sizes, x, weight, added, y);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, y.dtype(), T => {
                cuda::forward::<T>(accelerator, self.sizes, x, weight.0, added, y)
            }),
        }
    }

    fn backward(self, backward: &mut Backward) -> Result<()> {
        let dy = backward.gradient().clone();
        let context = backward.context().clone();
        if let Some(residual) = self.residual {
            backward.pass(residual, add_into)?;
        }
        let destination = |place: Option<usize>| match place {
            Some(place) => backward.destination(place),
            None => Ok(None),
        };
        let (db, dadd) = (destination(self.bias)?, destination(self.channel_add)?);
        if db.is_some() || dadd.is_some() {
            context.charge("conv2d_bwd_sums", Cost::memory(dy.bytes()));
            self.sums_backward(&context, &dy, Sums { bias: db.as_ref(), channel_add: dadd.as_ref() })?;
        }
        if let (Some(weight), Some(dx)) = (&self.weight, backward.destination(0)?) {
            context.charge("conv2d_bwd_input", self.cost(dy.dtype(), 0));
            self.input_backward(&dy, weight, &dx)?;
        }
        if let (Some(x), Some(dw)) = (&self.x, backward.destination(1)?) {
            context.charge("conv2d_bwd_weight", self.cost(dy.dtype(), 0));
            self.weight_backward(&context, &dy, x, &dw)?;
        }
        Ok(())
    }

    /// dy summed over each image's pixels, and over all of them.
    fn sums_backward(&self, context: &Context, dy: &Tensor, to: Sums) -> Result<()> {
        let Sizes { batch, cout, .. } = self.sizes;
        if dy.is_empty() {
            let mut written = [to.bias, to.channel_add].into_iter().flatten().filter(|to| to.mode == Accumulate::Write);
            return written.try_for_each(|to| to.tensor.zero());
        }
        let parts = match context.device() {
            Device::Accelerator(_) => cuda::parts(self.sizes),
            Device::Cpu => 1,
        };
        let partial = context.empty([batch * parts, cout], exact_dtype(dy.dtype()))?;
        match context.backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::sums_backward::<T>(self.sizes, dy, &partial, to);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::sums_backward::<T>(accelerator, self.sizes, dy, &partial, to)
            }),
        }
    }

    fn input_backward(&self, dy: &Tensor, weight: &Tensor, dx: &Destination) -> Result<()> {
        if dx.tensor.is_empty() {
            return Ok(());
        }
        match dy.context().backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::input_backward::<T>(self.sizes, dy, weight, dx);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::input_backward::<T>(accelerator, self.sizes, dy, weight, dx)
            }),
        }
    }

    fn weight_backward(&self, context: &Context, dy: &Tensor, x: &Tensor, dw: &Destination) -> Result<()> {
        if dw.tensor.dtype() != exact_dtype(dy.dtype()) {
            return Err(Error::shape(
                OP,
                format!(
                    "a weight's gradient in {}: make the weight a parameter with an f32 gradient",
                    dw.tensor.dtype()
                ),
            ));
        }
        if dy.is_empty() || x.is_empty() {
            return if dw.mode == Accumulate::Write { dw.tensor.zero() } else { Ok(()) };
        }
        let split = cuda::split(self.sizes);
        let partial = match context.device() {
            Device::Accelerator(_) if split.count > 1 => {
                Some(context.empty([split.count, dw.tensor.len()], DType::F32)?)
            }
            Device::Cpu | Device::Accelerator(_) => None,
        };
        match context.backend() {
            Backend::Plan => Ok(()),
            Backend::Cpu => with_host_float!(OP, dy.dtype(), T => {
                cpu::weight_backward::<T>(self.sizes, dy, x, dw);
                Ok(())
            }),
            Backend::Accelerator(accelerator) => with_kernel_float!(OP, accelerator, dy.dtype(), T => {
                cuda::weight_backward::<T>(accelerator, self.sizes, partial.as_ref(), dy, x, dw)
            }),
        }
    }
}
