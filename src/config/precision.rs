//! The precision of a run.

use serde::{Deserialize, Serialize};

use crate::device::instructions::NO_PRODUCTS;
use crate::tensor::{Context, DType, Device};

/// The storage dtype of activations, and how products are made; master weights, statistics and losses are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where the device has instructions for its products (tensor cores, AVX-512 BF16, AMX), else f32. A run settles it before its first
    /// step, for all its processes as for the first, and records the result.
    Auto,
    /// 32-bit floating point.
    F32,
    /// f32 whose linear layers, convolutions and attention round their factors to TF32 (f32's exponents, 10 bits of fraction) and run on
    /// tensor cores; all else is f32. A device without tensor cores multiplies f32.
    Tf32,
    /// bfloat16: half the memory of activations and weights' copies.
    Bf16,
}

impl Precision {
    /// All but [`Precision::Auto`].
    pub const SETTLED: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// The dtype of activations; of a precision that is not settled yet f32.
    pub fn dtype(self) -> DType {
        match self {
            Self::Auto | Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Why steps of this precision are not faster on `device` than those of another, if they are not.
    pub fn warning(self, device: &Device) -> Option<&'static str> {
        let Device::Cpu = device else { return None };
        match self {
            Self::Bf16 if !device.multiplies_bf16() => Some(NO_PRODUCTS),
            Self::Tf32 => Some("TF32 is of GPUs' tensor cores: products are f32 here, with f32's results and time"),
            _ => None,
        }
    }

    /// A context on `device` that multiplies as this says.
    pub fn context(self, device: &Device) -> Context {
        Context::new(device.clone()).with_tf32(self == Self::Tf32)
    }

    /// The settled precision on a device with or without instructions for products of bf16: never [`Precision::Auto`].
    pub fn settled(self, multiplies_bf16: bool) -> Self {
        match self {
            Self::Auto if multiplies_bf16 => Self::Bf16,
            Self::Auto => Self::F32,
            settled => settled,
        }
    }

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}
