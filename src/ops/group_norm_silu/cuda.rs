//! Group norm on accelerators.

use super::{Call, Gradients, OP};
use crate::device::{Accelerator, KernelFloat};
use crate::error::{Error, Result};
use crate::tensor::{Element, Tensor};

fn unsupported(accelerator: &dyn Accelerator) -> Result<()> {
    Err(Error::Unsupported { op: OP, device: accelerator.name(), reason: "no kernel is compiled; use the CPU".into() })
}

pub(super) fn forward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    _call: &Call,
    _y: &Tensor,
    _partial: Option<&Tensor>,
) -> Result<()> {
    unsupported(accelerator)
}

pub(super) fn backward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    _call: &Call,
    _dy: &Tensor,
    _gradients: &Gradients,
) -> Result<()> {
    unsupported(accelerator)
}
