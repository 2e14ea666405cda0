//! Convolution in two dimensions, channels last, with everything that usually surrounds it in the same pass.
//!
//! With stride s, padding (p, q), and x̂ the image x, or x resized by nearest neighbour, zero outside:
//!
//! y\[b, i, j, o\] = Σ over (ky, kx, c) of w\[o, ky, kx, c\] · x̂\[b, s i + ky − p, s j + kx − q, c\], plus bias\[o\], plus
//! channel_add\[b, o\], plus residual\[b, i, j, o\].
//!
//! The gradients: dx̂ is the transposed convolution of dy (and dx sums x̂'s copies), dw = Σ over pixels of dy · x̂,
//! dchannel_add = Σ over an image's pixels of dy, dbias = Σ over all pixels, dresidual = dy.
//!
//! Saved for backward: `x` where the weight wants a gradient (on accelerators also where the bias does); never x̂. Which way is taken when: `path.rs`.

mod cases;
mod cpu;
mod cuda;
mod direct;
mod doubled;
mod pairs;
mod pairs_weight;
mod path;
mod thin;
mod tile;
mod weight;
mod winograd;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Backward, Destination, Input, Parts, SumOrder, Tape, Var, sum_parts};
use crate::tensor::{Cost, DType, Device, Shape, Tensor, in_f32};

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
    pub pad_before: [usize; 2],
    /// Height and width to which the input is resized before, by nearest neighbour (row i of H comes from row ⌊i h / H⌋).
    pub resize: Option<[usize; 2]>,
    /// Whether no window reaches behind the last row or column: there are no zeros behind, and the result is smaller.
    pub valid: bool,
}

impl Geometry {
    /// A square window that stays centred: stride 1, `kernel / 2` zeros around; the result has the input's size.
    pub fn same(kernel: usize) -> Self {
        Self::centred([kernel; 2])
    }

    /// As [`Geometry::same`] with a window of `kernel` rows and columns.
    pub fn centred(kernel: [usize; 2]) -> Self {
        Self { stride: 1, pad_before: kernel.map(|side| side / 2), resize: None, valid: false }
    }

    /// Windows of `stride` that lie within the image: no zeros at all.
    pub fn within(stride: usize) -> Self {
        Self { stride, pad_before: [0, 0], resize: None, valid: true }
    }

    /// These windows, further apart.
    pub fn strided(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Height or width of the result along `axis`, of `size` pixels (after the resize) and a window of `kernel`; None where it fits
    /// nowhere.
    fn out(&self, size: usize, kernel: usize, axis: usize) -> Option<usize> {
        match self.valid {
            true => (size + self.pad_before[axis]).checked_sub(kernel).map(|last| last / self.stride + 1),
            false => Some(size.div_ceil(self.stride)),
        }
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
    /// Rows and columns of the window.
    kernel: [usize; 2],
    stride: usize,
    pad: [usize; 2],
}

impl Sizes {
    /// Pixels of the window.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Row and column of a tap.
    fn tap(&self, tap: usize) -> (usize, usize) {
        (tap / self.kernel[1], tap % self.kernel[1])
    }

    /// Taps times channels: the length of the sum behind an element of y.
    fn depth(&self) -> usize {
        self.taps() * self.cin
    }

    /// Pixels of y in one image.
    fn out_pixels(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Multiply-adds that meet the image rather than its padding, in one output channel of one image.
    fn taps_inside(&self) -> usize {
        let along = |axis: usize| -> usize {
            let inside = |i: usize, k: usize| {
                (i * self.stride + k).checked_sub(self.pad[axis]).is_some_and(|at| at < self.size[axis])
            };
            (0..self.out[axis]).map(|i| (0..self.kernel[axis]).filter(|&k| inside(i, k)).count()).sum()
        };
        along(0) * along(1)
    }
}

/// Convolves `x` `[B, h, w, Cin]` with `weight` `[Cout, ky, kx, Cin]` (ky, kx odd) of the same dtype.
///
/// With H, W the size after `geometry.resize` the result is `[B, ⌈H / stride⌉, ⌈W / stride⌉, Cout]` in the dtype of `x`; of a
/// `geometry.valid` it is as many windows as fit, `⌊(H + pad_before − ky) / stride⌋ + 1` rows. Added, where
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
    let shape = Shape::new(&[sizes.batch, sizes.out[0], sizes.out[1], sizes.cout]);
    let fits = |what: &str, var: Option<&Var>, shape: Shape, dtype: DType| match var {
        Some(var) if var.shape() != shape || var.dtype() != dtype => {
            Err(Error::shape(OP, format!("{what} {} {} where {shape} {dtype} is needed", var.shape(), var.dtype())))
        }
        _ => Ok(()),
    };
    fits("bias", bias, Shape::new(&[sizes.cout]), x.dtype().exact())?;
    fits("channel_add", channel_add, Shape::new(&[sizes.batch, sizes.cout]), x.dtype())?;
    fits("residual", residual, shape, x.dtype())?;
    let y = context.empty(shape, x.dtype())?;
    let on_accelerator = matches!(context.device(), Device::Accelerator(_));
    let sums_with_weight = on_accelerator && channel_add.is_none() && cuda::sums_with_weight(sizes);
    let sums = sums_with_weight && bias.is_some_and(Var::needs_gradient);
    let call = Call {
        sizes,
        sums_with_weight,
        x: (weight.needs_gradient() || sums).then(|| x.tensor().clone()),
        weight: x.needs_gradient().then(|| weight.tensor().clone()),
    };
    context.charge("conv2d_fwd", call.cost(x.dtype(), residual.map_or(0, |residual| residual.tensor().bytes())));
    let prepared = match cpu::prepared_form(sizes, x.dtype()) {
        Some(form) => tape.prepared(weight.tensor(), OP, form, move |weight, prepared| {
            in_f32(|| cpu::prepare(sizes, weight, prepared));
            Ok(())
        })?,
        None => None,
    };
    let operands = Operands {
        x: x.tensor(),
        weight: weight.tensor(),
        prepared: prepared.as_ref(),
        bias: bias.map(Var::tensor),
        channel_add: channel_add.map(Var::tensor),
        residual: residual.map(Var::tensor),
    };
    if !y.is_empty() {
        run!(y, forward(sizes, &operands, &y))?;
    }
    let mut inputs = tape.inputs(OP);
    let to = To {
        x: inputs.add("x", x),
        weight: inputs.add("weight", weight),
        bias: inputs.optional("bias", bias),
        channel_add: inputs.optional("channel_add", channel_add),
        residual: inputs.optional("residual", residual),
    };
    Ok(inputs.record(y, move |backward| call.backward(backward, to)))
}

fn sizes(x: &Var, weight: &Var, geometry: Geometry) -> Result<Sizes> {
    let (&[batch, h, w, cin], &[cout, rows, columns, channels]) = (x.sizes(), weight.sizes()) else {
        let message =
            format!("x {} and weight {}; they are [B, H, W, Cin] and [Cout, ky, kx, Cin]", x.shape(), weight.shape());
        return Err(Error::shape(OP, message));
    };
    let kernel = [rows, columns];
    if kernel.iter().any(|side| side.is_multiple_of(2))
        || channels != cin
        || cin * cout == 0
        || x.dtype() != weight.dtype()
    {
        return Err(super::misfit(OP, x, weight));
    }
    let Geometry { stride, pad_before: pad, resize, .. } = geometry;
    let size = resize.unwrap_or([h, w]);
    if !matches!(stride, 1 | 2)
        || pad.iter().zip(&kernel).any(|(pad, kernel)| pad >= kernel)
        || (size.contains(&0) && h * w > 0)
        || (h * w == 0 && !size.contains(&0))
    {
        return Err(Error::shape(OP, format!("{geometry:?} for x {} and a window of {rows} x {columns}", x.shape())));
    }
    let out = [0, 1].map(|axis| geometry.out(size[axis], kernel[axis], axis));
    let [Some(height), Some(width)] = out else {
        return Err(Error::shape(OP, format!("a window of {rows} x {columns} is larger than x {}", x.shape())));
    };
    let out = [height, width];
    Ok(Sizes { batch, source: [h, w], size, out, cin, cout, kernel, stride, pad })
}

/// The operands of a forward.
struct Operands<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    /// The weight in the form of [`cpu::prepare`], where somebody keeps it.
    prepared: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    channel_add: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
}

/// The inputs.
#[derive(Clone, Copy)]
struct To {
    x: Input,
    weight: Input,
    bias: Input,
    channel_add: Input,
    residual: Input,
}

/// Where the sums of dy over pixels go.
struct Sums {
    bias: Option<Destination>,
    channel_add: Option<Destination>,
}

/// One call: sizes, and what backward reads.
struct Call {
    sizes: Sizes,
    /// Whether the bias's gradient comes with the weight's, whose kernels read all of dy: by what the call has, not by what is wanted, so
    /// that its bits are the same whatever else is.
    sums_with_weight: bool,
    x: Option<Tensor>,
    weight: Option<Tensor>,
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
            tensor_cores: true,
        }
    }

    fn backward(self, backward: &Backward, to: To) -> Result<()> {
        let (context, dy) = (backward.context(), backward.gradient());
        backward.pass(to.residual)?;
        let sums = Sums { bias: backward.destination(to.bias)?, channel_add: backward.destination(to.channel_add)? };
        if !self.sums_with_weight && (sums.bias.is_some() || sums.channel_add.is_some()) {
            context.charge("conv2d_bwd_sums", Cost::memory(dy.bytes()));
            self.sums_backward(dy, &sums)?;
        }
        if let (Some(weight), Some(dx)) = (&self.weight, backward.destination(to.x)?) {
            context.charge("conv2d_bwd_input", self.cost(dy.dtype(), 0));
            if !dx.is_empty() {
                run!(dy, input_backward(self.sizes, dy, weight, &dx))?;
            }
        }
        let db = sums.bias.filter(|_| self.sums_with_weight);
        let dw = match backward.destination(to.weight)? {
            // Nobody's.
            None if db.is_some() => {
                let scratch = context.empty([self.sizes.cout * self.sizes.depth()], dy.dtype().exact())?;
                Some(Destination::overwrite(&scratch))
            }
            dw => dw,
        };
        if let (Some(x), Some(dw)) = (&self.x, dw) {
            context.charge("conv2d_bwd_weight", self.cost(dy.dtype(), 0));
            self.weight_backward(dy, x, &dw, db.as_ref())?;
        }
        Ok(())
    }

    /// dy summed over each image's pixels, and over all of them.
    fn sums_backward(&self, dy: &Tensor, to: &Sums) -> Result<()> {
        let (Sizes { batch, cout, .. }, context) = (self.sizes, dy.context());
        if dy.is_empty() {
            return [&to.bias, &to.channel_add].into_iter().flatten().try_for_each(Destination::put_zero);
        }
        let parts = match context.device() {
            Device::Accelerator(_) => cuda::parts(self.sizes),
            Device::Cpu => 1,
        };
        let partial = context.empty([batch * parts, cout], dy.dtype().exact())?;
        run!(held dy, sums_backward(self.sizes, dy, &partial, to))?;
        let parts = Parts { count: batch * parts, stride: cout, order: SumOrder::Across };
        sum_parts(&partial, parts, [(to.bias.as_ref(), 0)])
    }

    /// Also of the bias, where it comes with the weight's.
    fn weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &Destination, db: Option<&Destination>) -> Result<()> {
        if dw.dtype() != dy.dtype().exact() {
            return Err(Error::shape(
                OP,
                format!("a weight's gradient in {}: make the weight a parameter with an f32 gradient", dw.dtype()),
            ));
        }
        if dy.is_empty() || x.is_empty() {
            return [Some(dw), db].into_iter().flatten().try_for_each(Destination::put_zero);
        }
        let context = dy.context();
        let splits = match context.device() {
            Device::Accelerator(_) => cuda::splits(dy.context(), self.sizes, dy.dtype()),
            Device::Cpu => 1,
        };
        let part = dw.len() + db.map_or(0, Destination::len);
        let partial = (splits > 1).then(|| context.empty([splits, part], DType::F32)).transpose()?;
        run!(dy, weight_backward(self.sizes, partial.as_ref(), dy, x, [Some(dw), db]))?;
        let Some(partial) = partial else { return Ok(()) };
        let parts = Parts { count: splits, stride: part, order: cuda::order(self.sizes) };
        sum_parts(&partial, parts, [(Some(dw), 0), (db, dw.len())])
    }
}
