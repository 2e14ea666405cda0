//! Element types and the Rust types that hold them.

use bytemuck::Pod;
use half::bf16;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: the CPU's working type; masters, statistics and losses everywhere.
    F32,
    /// bfloat16: activations and matrix weights on accelerators.
    BF16,
    /// 64-bit float: CPU only, the oracle of the tests.
    F64,
    /// Pixels.
    U8,
    /// Labels.
    I32,
    /// Control words.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::BF16 => 2,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F64 => 8,
        }
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F64)
    }

    /// The dtype of sums, statistics and master weights for tensors of this dtype: `f32`, or `f64` in oracle runs.
    pub fn exact(self) -> Self {
        if self == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// The distance from 1 to the next larger number, for floats.
    pub fn epsilon(self) -> f64 {
        match self {
            DType::F32 => f32::EPSILON as f64,
            DType::BF16 => 0.0078125,
            DType::F64 => f64::EPSILON,
            _ => 0.0,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F64 => "f64",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::U32 => "u32",
        })
    }
}

/// A Rust type for tensor elements.
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// Its dtype.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
elements!(f32 => F32, bf16 => BF16, f64 => F64, u8 => U8, i32 => I32, u32 => U32);
