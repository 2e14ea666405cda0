//! The control buffer: per-step values that kernels read on the device.
//!
//! A captured graph replays its launches with the arguments of the capture. Whatever changes from step to step
//! therefore stands in this buffer of [`WORDS`] 32-bit words, which the host overwrites before each step.
//! `kernels/common/control.cuh` names the same words; a test compares the two.

use crate::error::{Error, Result};
use crate::tensor::{Context, DType, Tensor};

/// Words of the buffer.
pub const WORDS: usize = 16;

/// Per-step values; floats are stored as their bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Control {
    /// Word 0: the step (training) or stage (sampling): Philox's `step`.
    pub step: u32,
    /// Word 1: the epoch: seed of the order.
    pub epoch: u32,
    /// Word 2: position of the batch's first item in the epoch's order.
    pub cursor: u32,
    /// Word 3: Philox's `item` of the batch's first item.
    pub first_item: u32,
    /// Word 4: the learning rate.
    pub learning_rate: f32,
    /// Word 5: 1 / (1 - beta1^t).
    pub first_correction: f32,
    /// Word 6: 1 / (1 - beta2^t).
    pub second_correction: f32,
    /// Word 7: the decay of the moving average of weights.
    pub ema_decay: f32,
    /// Word 8: which row of the sampler's table of stages, or of the metrics' ring, this step uses.
    pub row: u32,
    /// Word 9: the guidance scale.
    pub guidance: f32,
    /// Word 10: the number of the micro-batch within the step.
    pub micro: u32,
    /// Words 11 to 15: reserved, zero.
    pub reserved: [u32; 5],
}

impl Control {
    /// A control buffer on the device, zero.
    pub fn buffer(context: &Context) -> Result<Tensor> {
        context.zeros([WORDS], DType::U32)
    }

    /// As words, to be uploaded.
    pub fn words(&self) -> [u32; WORDS] {
        bytemuck::cast(*self)
    }

    /// From a buffer's words.
    pub fn from_words(words: &[u32]) -> Self {
        let mut array = [0; WORDS];
        array.copy_from_slice(&words[..WORDS]);
        bytemuck::cast(array)
    }
}

/// Refuses what is no control buffer.
pub(super) fn check(op: &'static str, control: &Tensor) -> Result<()> {
    if control.dtype() == DType::U32 && control.len() == WORDS {
        return Ok(());
    }
    Err(Error::shape(op, format!("a control buffer {} {}; it is [{WORDS}] u32", control.shape(), control.dtype())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_kernels_read_the_same_words() {
        let words = [
            ("STEP", offset_of!(Control, step)),
            ("EPOCH", offset_of!(Control, epoch)),
            ("CURSOR", offset_of!(Control, cursor)),
            ("FIRST_ITEM", offset_of!(Control, first_item)),
            ("LEARNING_RATE", offset_of!(Control, learning_rate)),
            ("FIRST_CORRECTION", offset_of!(Control, first_correction)),
            ("SECOND_CORRECTION", offset_of!(Control, second_correction)),
            ("EMA_DECAY", offset_of!(Control, ema_decay)),
            ("ROW", offset_of!(Control, row)),
            ("GUIDANCE", offset_of!(Control, guidance)),
            ("MICRO", offset_of!(Control, micro)),
        ];
        let ours: Vec<String> = words.iter().map(|(name, at)| format!("CONTROL_{name} = {},", at / 4)).collect();
        let header = include_str!("../../../kernels/common/control.cuh");
        let theirs: Vec<&str> = header.lines().map(str::trim).filter(|l| l.starts_with("CONTROL_")).collect();
        assert_eq!(theirs, ours);
        assert_eq!((size_of::<Control>(), offset_of!(Control, reserved)), (4 * WORDS, 4 * words.len()));
        let control = Control { step: 7, learning_rate: 0.5, micro: 3, ..Control::default() };
        assert_eq!(Control::from_words(&control.words()), control);
    }
}
