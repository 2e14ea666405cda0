//! Whether a run fits into memory, told before it starts.

use super::Trainer;
use crate::error::{Error, Result};
use crate::tensor::Device;

/// What a run needs and what there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Data set, weights, optimizer state, the network of evaluations: whatever the batch.
    pub persistent: u64,
    /// The largest program's activations and scratch: proportional to the batch.
    pub arena: u64,
    /// What the device has left, where it can be known.
    pub available: Option<u64>,
}

impl Memory {
    /// The memory of a planned run on `device`, with `evaluation` bytes for the network of its evaluations.
    pub fn of(plan: &Trainer, evaluation: usize, device: &Device) -> Self {
        let arena = plan.programs().map(|(_, program)| program.arena_bytes()).max().unwrap_or(0);
        let persistent = plan.context().persistent_bytes() + evaluation;
        Self { persistent: persistent as u64, arena: arena as u64, available: available_memory(device) }
    }

    /// All of it.
    pub fn needed(&self) -> u64 {
        self.persistent + self.arena
    }

    /// Whether it is no more than the device has left, as far as that is known.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| available >= self.needed())
    }

    /// Refuses what cannot fit; `batch` is the planned one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the batch that would fit.
    pub fn check(&self, device: &str, batch: usize) -> Result<()> {
        let Some(available) = self.available.filter(|available| *available < self.needed()) else { return Ok(()) };
        let room = available.saturating_sub(self.persistent) as u128;
        let fits = (room * batch as u128 / u128::from(self.arena.max(1))) as usize;
        let mend = match fits {
            0 => "take a smaller model".to_string(),
            fits => format!("--batch {fits} would fit (and training.gradient_accumulation makes up for it)"),
        };
        Err(Error::OutOfMemory { device: device.into(), needed: self.needed(), available, mend })
    }
}

/// Bytes that the device has left; None where it does not say.
pub fn available_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Accelerator(accelerator) => accelerator.memory().ok().map(|(free, _)| free),
        Device::Cpu => {
            let host = host_available(&std::fs::read_to_string("/proc/meminfo").ok()?);
            // A container's limit, where there is one ("max" is none).
            let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
            let limit = number("/sys/fs/cgroup/memory.max")
                .map(|most| most.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
            match (host, limit) {
                (Some(host), Some(limit)) => Some(host.min(limit)),
                (host, limit) => host.or(limit),
            }
        }
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn host_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(host_available("MemTotal: 10 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(host_available("MemFree: 1 kB"), None);
        assert_eq!(host_available("MemAvailable: many kB"), None);
    }

    #[test]
    fn the_batch_that_fits_is_named() {
        let memory = |available| Memory { persistent: 100, arena: 640, available };
        memory(Some(740)).check("cpu", 64).unwrap();
        memory(None).check("cpu", 64).unwrap();
        let message = memory(Some(420)).check("cpu", 64).unwrap_err().to_string();
        assert!(message.contains("--batch 32 would fit"), "{message}");
        assert!(memory(Some(99)).check("cpu", 64).unwrap_err().to_string().contains("smaller model"));
    }
}
