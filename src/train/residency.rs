//! Placement of a run's images during training, and its cost.
//!
//! | | chosen | a step reads | images take |
//! |---|---|---|---|
//! | [`Resident`](Residency::Resident) | on an accelerator, where they fit | the whole set, on the device | N·H·W·C bytes of the device |
//! | [`InPlace`](Residency::InPlace) | on the CPU | the whole set, where it lies: in its mapped file | nothing: the system's file cache |
//! | [`Streamed`](Residency::Streamed) | where the set does not fit, or is no one piece | one batch, in one place | a batch there, two in pinned memory |
//!
//! A set fits if the run, including the images, takes no more than the device's free memory, and the images no more than
//! `data.device_memory`.
//!
//! Streamed batches go through two pinned buffers ([`Uplink`](crate::tensor::Uplink)): while the device runs step k, the host
//! finds the images of step k + 1 with the same permutation that the device would compute and copies them from the mapped file
//! into the other buffer. The step, captured once, reads them in order from a fixed place, and draws flips and crops from the same
//! counters. So weights, losses and checkpoints have the same bits for every placement, and a run may resume with another one. The
//! host waits only if a buffer is still being read, two steps behind.

use crate::data::{Dataset, Split};
use crate::tensor::Device;

/// The placement of a run's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All of them on the accelerator.
    Resident,
    /// On the CPU: in the data set's own memory.
    InPlace,
    /// In the data set, from which each batch is copied to the device.
    Streamed,
}

impl Residency {
    /// The placement for `dataset` on `device`, with at most `limit` MiB of images on an accelerator. Does not check that there is
    /// room for the rest of the run.
    pub fn of(device: &Device, dataset: &Dataset, limit: Option<u64>) -> Self {
        let is_whole = [Split::Train, Split::Validation].iter().all(|&split| dataset.in_one_piece(split).is_some());
        match device {
            Device::Cpu if is_whole => Self::InPlace,
            Device::Cpu => Self::Streamed,
            Device::Accelerator(_) => {
                let images = dataset.split_len(Split::Train) + dataset.split_len(Split::Validation);
                Self::within(images as u64 * dataset.image_bytes() as u64, limit)
            }
        }
    }

    /// The placement on an accelerator for `bytes` of images, with at most `limit` MiB of images there.
    pub fn within(bytes: u64, limit: Option<u64>) -> Self {
        match limit {
            Some(limit) if bytes > limit.saturating_mul(1 << 20) => Self::Streamed,
            _ => Self::Resident,
        }
    }
}
