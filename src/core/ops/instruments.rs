//! Contexts for tests of ops, which show what an op forgets and what a dtype costs.

use crate::error::Result;
use crate::tensor::{Context, DType, Device, Instrument, Tensor};

/// Fills new float tensors with NaN, so that an element that an op forgets shows.
struct Poison {
    rounding: Option<DType>,
}

impl Instrument for Poison {
    fn allocated(&self, tensor: &Tensor) -> Result<()> {
        if !tensor.dtype().is_float() {
            return Ok(());
        }
        tensor.upload_bytes(&vec![0xFF; tensor.bytes()])
    }

    fn rounding(&self) -> Option<DType> {
        self.rounding
    }
}

/// A context on `device` whose new float tensors are NaN.
pub fn poisoned(device: Device) -> Context {
    Context::instrumented(device, Poison { rounding: None })
}

/// A context on the CPU, whose ops round what they declare as intermediates to `dtype`: the argued tolerance of kernels.
pub fn rounded(dtype: DType) -> Context {
    Context::instrumented(Device::Cpu, Poison { rounding: Some(dtype) })
}
