//! The tape's own sum of gradients, which also converts between the kernels' dtypes.

use std::rc::Rc;

use half::bf16;
use rayon::prelude::*;

use super::{Accumulate, Destination};
use crate::device::instructions::dispatch;
use crate::device::launches::{ElementwiseAddInto, ElementwiseNarrow, ElementwiseWiden};
use crate::device::{Accelerator, KernelFloat, LaunchConfig};
use crate::error::{Error, Result};
use crate::tensor::{Backend, Cost, DType, Element, Tensor, clock, round_into, rounded, widen_into, widened};

/// Threads of a block; each takes 16 bytes.
const THREADS: u32 = 256;
/// Elements of the host's tasks; with fewer than two of them another thread is not worth waking.
const TASK: usize = 1 << 13;

/// Puts `x` into a destination of as many elements, and charges for it.
pub(super) fn add_into(to: &Destination, x: &Tensor) -> Result<()> {
    let reads = 1 + (to.mode == Accumulate::Add) as usize;
    x.context().charge("add_into", Cost::memory(x.bytes() + reads * to.bytes()));
    convert(to, x)
}

/// Adds `x` to `sum`, which has as many elements, outside of any tape: flat gradients of one step.
///
/// # Errors
/// As for a sum of the tape: [`Error::Shape`] where the lengths differ, [`Error::Unsupported`] for dtypes that the device does
/// not convert.
pub fn add_to(sum: &Tensor, x: &Tensor) -> Result<()> {
    add_into(&Destination::new(sum.clone(), Accumulate::Add, Rc::default()), x)
}

/// Writes or adds `x` to a destination of as many elements, in the destination's dtype.
///
/// # Errors
/// [`Error::Shape`] where the lengths differ, [`Error::Unsupported`] for a pair of dtypes that the device does not convert.
pub(crate) fn convert(to: &Destination, x: &Tensor) -> Result<()> {
    if to.len() != x.len() {
        return Err(Error::shape("add", format!("{} into {}", x.shape(), to.shape())));
    }
    let (from, dtype) = (x.dtype(), to.dtype());
    if from == dtype && to.mode == Accumulate::Write {
        return to.copy_from(x);
    }
    let refuse = |reason: String| {
        let device = x.context().device_name();
        Err(Error::Unsupported { op: "elementwise", device, reason })
    };
    match (x.context().backend(), from, dtype) {
        (Backend::Plan, ..) => x.context().note_module("elementwise"),
        (Backend::Cpu, ..) => {
            if !clock::time("elementwise", "add_into", || convert_on_host(to, x)) {
                return refuse(format!("{dtype} is not made of {from}; use f32 or bf16"));
            }
        }
        (Backend::Accelerator(accelerator), from, dtype) => match (from, dtype) {
            _ if x.is_empty() => {}
            (DType::F32, DType::F32) => add_kernel::<f32>(accelerator, to, x)?,
            (DType::BF16, DType::BF16) => add_kernel::<bf16>(accelerator, to, x)?,
            (DType::F32, DType::BF16) => {
                let (y, x, len) = (to.slice_mut(), x.slice(), x.len() as u64);
                ElementwiseNarrow { y, x, len, accumulate: to.mode.flag() }
                    .launch(accelerator, by_piece::<bf16>(len))?;
            }
            (DType::BF16, DType::F32) => {
                let (y, x, len) = (to.slice_mut(), x.slice(), x.len() as u64);
                ElementwiseWiden { y, x, len, accumulate: to.mode.flag() }
                    .launch(accelerator, by_piece::<bf16>(len))?;
            }
            _ => return refuse(format!("no kernel makes {dtype} of {from}; use f32 or bf16")),
        },
    }
    Ok(())
}

/// [`convert`] on the CPU; false for dtypes that are not converted.
fn convert_on_host(to: &Destination, x: &Tensor) -> bool {
    match (x.dtype(), to.dtype()) {
        (DType::F32, DType::BF16) if to.mode == Accumulate::Write => round_into(to.host_mut(), x.host()),
        (DType::BF16, DType::F32) if to.mode == Accumulate::Write => widen_into(to.host_mut(), x.host()),
        (DType::F32, DType::F32) => add_host(to, x, |to: f32, x: f32| to + x),
        (DType::F64, DType::F64) => add_host(to, x, |to: f64, x: f64| to + x),
        (DType::BF16, DType::BF16) => add_host(to, x, |to, x| rounded(widened(to) + widened(x))),
        (DType::F32, DType::BF16) => add_host(to, x, |to, x: f32| rounded(widened(to) + x)),
        (DType::BF16, DType::F32) => add_host(to, x, |to: f32, x| to + widened(x)),
        _ => return false,
    }
    true
}

/// `to[i] = add(to[i], x[i])`.
fn add_host<B: Element, A: Element>(to: &Destination, x: &Tensor, add: impl Fn(B, A) -> B + Sync) {
    let (to, x) = (to.host_mut::<B>(), x.host::<A>());
    let some = |(to, x): (&mut [B], &[A])| {
        dispatch(
            #[inline(always)]
            || to.iter_mut().zip(x).for_each(|(to, &x)| *to = add(*to, x)),
        );
    };
    if to.len() < 2 * TASK {
        some((to, x));
    } else {
        to.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(some);
    }
}

fn add_kernel<T: KernelFloat + Element>(accelerator: &dyn Accelerator, to: &Destination, x: &Tensor) -> Result<()> {
    let (to, x, len) = (to.slice_mut(), x.slice(), x.len() as u64);
    ElementwiseAddInto::<T> { to, x, len }.launch(accelerator, by_piece::<T>(len))
}

/// A thread per 16 bytes.
fn by_piece<T>(len: u64) -> LaunchConfig {
    LaunchConfig::elements((len as usize).div_ceil(16 / size_of::<T>()), THREADS)
}
