//! Dropout on the CPU.

use crate::ops::host::Held;
use crate::ops::mask::Mask;
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn apply<E: Held>(mask: Mask, from: &Tensor, control: &Tensor, to: &Destination) {
    let elements = from.len() / from.sizes()[0];
    mask.apply(control, elements, from.host::<E>(), to.host_mut::<E>(), to.mode == Accumulate::Add);
}
