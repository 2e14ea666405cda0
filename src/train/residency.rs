//! Where a run's images lie while it trains, and what that takes.
//!
//! | | chosen | a step reads | images take |
//! |---|---|---|---|
//! | [`Resident`](Residency::Resident) | on an accelerator, where they fit | the whole set, on the device | N·H·W·C bytes of the device |
//! | [`InPlace`](Residency::InPlace) | on the CPU | the whole set, where it lies: in its mapped file | nothing: the system's file cache |
//! | [`Streamed`](Residency::Streamed) | where the set does not fit, or is no one piece | one batch, in one place | a batch there, two in pinned memory |
//!
//! A set fits where the run, images included, takes no more than the device has free, and no more of it for images than
//! `data.device_memory` says.
//!
//! Streamed batches go through two pinned buffers ([`Uplink`](crate::tensor::Uplink)): while the device does step k, the host
//! finds the images of step k + 1 by the same permutation that the device would compute and copies them from the mapped file
//! into the other buffer. The step, captured once, takes them in order from its one place, and draws flips and crops from the
//! same counters. So weights, losses and checkpoints have the same bits however the images come, and a run may go on with
//! another residency than it began with. The host waits only where a buffer is still being read, two steps behind.

use crate::data::{Dataset, Split};
use crate::tensor::Device;

/// Where a run's images lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All of them on the accelerator.
    Resident,
    /// On the CPU: where the data set has them.
    InPlace,
    /// In the data set, from where each batch comes to the device.
    Streamed,
}

impl Residency {
    /// Of `dataset` on `device`, where at most `limit` MiB of images may lie on an accelerator. Whether there is room besides the
    /// rest of the run is not looked at.
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

    /// On an accelerator: of `bytes` of images, where at most `limit` MiB may lie there.
    pub fn within(bytes: u64, limit: Option<u64>) -> Self {
        match limit {
            Some(limit) if bytes > limit.saturating_mul(1 << 20) => Self::Streamed,
            _ => Self::Resident,
        }
    }
}
