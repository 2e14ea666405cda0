//! Dropout on the CPU.

use crate::ops::host::Float;
use crate::ops::mask::Mask;
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn apply<T: Float>(mask: Mask, from: &Tensor, control: &Tensor, to: &Destination) {
    let elements = from.len() / from.sizes()[0];
    mask.apply(control, elements, Some(from.host::<T>()), to.host_mut::<T>(), to.mode == Accumulate::Add);
}
