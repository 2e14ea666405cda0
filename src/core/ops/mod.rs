//! The ops: one folder each, and the list of them.
//!
//! An op's name is its address: `src/core/ops/<op>/`, `kernels/<op>.cu`, entries `<op>_…`, the benchmark's id.

pub mod adamw;
pub mod assemble_batch;
pub mod attention;
pub mod balanced_loss;
pub mod batch_norm;
pub mod case;
pub mod concat;
pub mod control;
pub mod conv2d;
pub mod cross_entropy;
pub mod depthwise_conv2d;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod group_norm_silu;
pub mod host;
mod input;
pub mod instruments;
pub mod layer_norm;
pub mod level_sampling;
pub mod linear;
pub mod linear_attention;
pub mod mask;
pub mod mse_loss;
pub mod noise_step;
pub mod patchify;
pub mod pool;
pub mod qk_norm;
pub mod repeats;
pub mod sampler_step;
pub mod tf32;
mod tile;
pub mod timestep_embedding;
pub mod tokens;
mod wirings;

use case::Case;

use crate::device::{Accelerator, KernelFloat, KernelScalar, LaunchConfig, Slice, SliceMut};
use crate::error::Error;
use crate::tape::{Destination, Var};
use crate::tensor::{DType, Element, Tensor};

/// An op as the registry lists it.
pub struct Op {
    /// The folder's and the kernel file's name.
    pub name: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// Every op. One line each; a test refuses orphans on either side.
pub const REGISTRY: &[Op] = &[
    Op { name: "adamw", cases: adamw::cases },
    Op { name: "assemble_batch", cases: assemble_batch::cases },
    Op { name: "attention", cases: attention::cases },
    Op { name: "balanced_loss", cases: balanced_loss::cases },
    Op { name: "batch_norm", cases: batch_norm::cases },
    Op { name: "concat", cases: concat::cases },
    Op { name: "conv2d", cases: conv2d::cases },
    Op { name: "cross_entropy", cases: cross_entropy::cases },
    Op { name: "depthwise_conv2d", cases: depthwise_conv2d::cases },
    Op { name: "dropout", cases: dropout::cases },
    Op { name: "elementwise", cases: elementwise::cases },
    Op { name: "embedding", cases: embedding::cases },
    Op { name: "group_norm_silu", cases: group_norm_silu::cases },
    Op { name: "layer_norm", cases: layer_norm::cases },
    Op { name: "level_sampling", cases: level_sampling::cases },
    Op { name: "linear", cases: linear::cases },
    Op { name: "linear_attention", cases: linear_attention::cases },
    Op { name: "mse_loss", cases: mse_loss::cases },
    Op { name: "noise_step", cases: noise_step::cases },
    Op { name: "patchify", cases: patchify::cases },
    Op { name: "pool", cases: pool::cases },
    Op { name: "qk_norm", cases: qk_norm::cases },
    Op { name: "sampler_step", cases: sampler_step::cases },
    Op { name: "timestep_embedding", cases: timestep_embedding::cases },
    Op { name: "tokens", cases: tokens::cases },
];

/// Every case of every op.
pub fn cases() -> Vec<Case> {
    REGISTRY.iter().flat_map(|op| (op.cases)()).collect()
}

/// A type in which kernels store activations: `f32` or `bf16`.
pub(crate) trait Stored: KernelFloat + Element {}
impl<T: KernelFloat + Element> Stored for T {}

/// An optional input of a kernel: null if absent.
pub(crate) fn optional<T: Element + KernelScalar>(tensor: Option<&Tensor>) -> Slice<'_, T> {
    tensor.map_or(Slice::none(), Tensor::slice)
}

/// An optional output of a kernel: null if absent.
pub(crate) fn optional_mut<T: Element + KernelScalar>(tensor: Option<&Tensor>) -> SliceMut<'_, T> {
    tensor.map_or(SliceMut::none(), Tensor::slice_mut)
}

/// A gradient, null where it is not wanted, and whether it is added to.
pub(crate) fn wanted<T: Element + KernelScalar>(destination: Option<&Destination>) -> (SliceMut<'_, T>, u32) {
    destination.map_or((SliceMut::none(), 0), |to| (to.slice_mut(), to.mode.flag()))
}

/// Blocks \[item, chunk of its elements\], each thread taking four elements.
pub(crate) fn by_item(batch: usize, elements: usize, threads: u32) -> LaunchConfig {
    let chunks = elements.div_ceil(4 * threads as usize).max(1);
    LaunchConfig::grid([batch, chunks], threads)
}

/// Calls a function of the op's own `cpu.rs` or `cuda.rs`, whichever the context of the tensor `$like` asks for, with T for
/// the dtype of `$like`; while planning, neither. Both functions have the same name and arguments:
///
/// ```ignore
/// run!(y, forward(x, y))?;        // cpu::forward::<T>(x, y), T: Float (f32 also for bf16 tensors), or
///                                 // cuda::forward::<T>(accelerator, x, y)?, T: Stored
/// run!(held y, forward(x, y))?;   // cpu::forward::<T>(x, y), T: Held: the op reads and writes bf16 itself
/// run!(f32 loss, forward(loss))?; // cuda::forward(accelerator, loss)?: kernels that are compiled for f32 alone
/// ```
///
/// `OP`, `cpu` and `cuda` are those of the module that it stands in; `OP` is also the name of the op's `.cu`, which a program loads before
/// its first run. A dtype that the device does not compute in is
/// [`Error::Unsupported`].
macro_rules! run {
    (f32 $like:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $like.context().backend() {
            $crate::tensor::Backend::Plan => Ok($like.context().note_module(OP)),
            $crate::tensor::Backend::Cpu => $crate::tensor::clock::time(OP, stringify!($function), || {
                $crate::ops::with_host_float!(OP, $like.dtype(), T => cpu::$function::<T>($($argument),*))
            }),
            $crate::tensor::Backend::Accelerator(accelerator) => match $like.dtype() {
                $crate::tensor::DType::F32 => cuda::$function(accelerator, $($argument),*),
                other => Err($crate::ops::no_kernel(OP, accelerator, other, "f32")),
            },
        }
    };
    (held $like:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $crate::ops::run!(@with_held $like, $function($($argument),*))
    };
    (@$host:ident $like:expr, $function:ident($($argument:expr),*)) => {
        match $like.context().backend() {
            $crate::tensor::Backend::Plan => Ok($like.context().note_module(OP)),
            $crate::tensor::Backend::Cpu => $crate::tensor::clock::time(OP, stringify!($function), || {
                $crate::ops::$host!(OP, $like.dtype(), T => cpu::$function::<T>($($argument),*))
            }),
            $crate::tensor::Backend::Accelerator(accelerator) => match $like.dtype() {
                $crate::tensor::DType::F32 => cuda::$function::<f32>(accelerator, $($argument),*),
                $crate::tensor::DType::BF16 => cuda::$function::<half::bf16>(accelerator, $($argument),*),
                other => Err($crate::ops::no_kernel(OP, accelerator, other, "f32 or bf16")),
            },
        }
    };
    ($like:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $crate::ops::run!(@with_host_float $like, $function($($argument),*))
    };
}

pub(crate) fn no_kernel(op: &'static str, accelerator: &dyn Accelerator, dtype: DType, others: &str) -> Error {
    let reason = format!("no kernel is compiled for {dtype}; use {others}");
    Error::Unsupported { op, device: accelerator.name(), reason }
}

/// Runs `$body` with `$T` as the type in which the CPU computes tensors of `$dtype`: `f32`, also for bf16 tensors, whose elements it gets
/// in f32 ([`crate::tensor::in_f32`]), or `f64`. Anything else is [`Error::Unsupported`].
macro_rules! with_host_float {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body;
                Ok(())
            }
            $crate::tensor::DType::BF16 => $crate::tensor::in_f32(|| {
                type $T = f32;
                $body;
                Ok(())
            }),
            $crate::tensor::DType::F64 => {
                type $T = f64;
                $body;
                Ok(())
            }
            other => Err($crate::error::Error::Unsupported {
                op: $op,
                device: "cpu".into(),
                reason: format!("{other} is not a type that the CPU computes in; use f32 or bf16"),
            }),
        }
    };
}

/// Calls `$body` with `$T` as the type in which the CPU holds tensors of `$dtype`: `f32`, `bf16` or `f64`. Anything else is
/// [`Error::Unsupported`].
macro_rules! with_held {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body;
                Ok(())
            }
            dtype => $crate::ops::with_host_float!($op, dtype, $T => $body),
        }
    };
}

pub(crate) use {run, with_held, with_host_float};

/// The error of an input and a weight that do not fit each other.
fn misfit(op: &'static str, x: &Var, weight: &Var) -> Error {
    let hint = if x.dtype() == weight.dtype() { "" } else { "; elementwise::cast converts x" };
    let [x, weight] = [x, weight].map(|var| format!("{} {}", var.shape(), var.dtype()));
    Error::shape(op, format!("x {x} and weight {weight} do not fit{hint}"))
}
