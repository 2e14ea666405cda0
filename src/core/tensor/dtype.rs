//! Element types and the Rust types that hold them.

use bytemuck::Pod;
use half::bf16;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: the CPU's working type; masters, statistics and losses everywhere.
    F32,
    /// bfloat16: activations and matrix weights where precision is bf16; computed in `f32`.
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
    /// `f32`, `bf16` and so on.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F64 => "f64",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::U32 => "u32",
        }
    }

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
        f.write_str(self.name())
    }
}

/// A bf16 in f32, without loss.
#[inline(always)]
pub(crate) fn widened(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The nearest bf16, ties to even; a NaN becomes a quiet NaN with its sign and what is left of its payload. The bits are those of
/// [`bf16::from_f32`], without branches: loops over it become vector code.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    bf16::from_bits((if x.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_have_the_bits_of_the_crate_half() {
        for high in 0..=u16::MAX {
            assert!(widened(bf16::from_bits(high)).to_bits() == u32::from(high) << 16);
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(rounded(x).to_bits(), bf16::from_f32(x).to_bits(), "{:08x}", x.to_bits());
            }
        }
    }
}
