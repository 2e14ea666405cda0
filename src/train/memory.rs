//! Checks that a run fits into memory before it starts.

use super::Trainer;
use crate::error::{Error, Result};
use crate::tensor::Device;

/// Required and available bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Data set, weights, optimizer state, the network for evaluations: independent of the batch.
    pub persistent: u64,
    /// The largest program's activations and scratch: proportional to the batch.
    pub arena: u64,
    /// Free bytes of the device, if known.
    pub available: Option<u64>,
}

impl Memory {
    /// The memory of a planned run on `device`, with `evaluation` bytes for the network of its evaluations.
    pub fn of(plan: &Trainer, evaluation: usize, device: &Device) -> Self {
        let arena = plan.programs().map(|(_, program)| program.arena_bytes()).max().unwrap_or(0);
        let persistent = plan.context().persistent_bytes() + evaluation;
        Self { persistent: persistent as u64, arena: arena as u64, available: available_memory(device) }
    }

    /// The total.
    pub fn needed(&self) -> u64 {
        self.persistent + self.arena
    }

    /// Whether it fits into the free memory, as far as that is known.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| available >= self.needed())
    }

    /// Refuses a run that cannot fit; `batch` is the planned one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the largest batch that fits.
    pub fn check(&self, device: &str, batch: usize) -> Result<()> {
        let Some(available) = self.available.filter(|available| *available < self.needed()) else { return Ok(()) };
        let room = available.saturating_sub(self.persistent) as u128;
        let fits = (room * batch as u128 / u128::from(self.arena.max(1))) as usize;
        let advice = match fits {
            0 => "use a smaller model".to_string(),
            fits => format!("`batch = {fits}` would fit (and training.gradient_accumulation makes up for it)"),
        };
        Err(Error::OutOfMemory { device: device.into(), needed: self.needed(), available, advice })
    }
}

/// Free bytes of the device; None if unknown.
pub fn available_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Accelerator(accelerator) => accelerator.memory().ok().map(|(free, _)| free),
        Device::Cpu => {
            let host = host_entry(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:");
            // A container's limit, if there is one ("max" means none).
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

/// Total memory of the host, including swap; none if unknown.
pub(super) fn host_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(host_entry(&meminfo, "MemTotal:")? + host_entry(&meminfo, "SwapTotal:").unwrap_or(0))
}

/// Bytes of an entry of `/proc/meminfo`, such as `MemAvailable:`.
fn host_entry(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let available = |meminfo| host_entry(meminfo, "MemAvailable:");
        assert_eq!(available("MemTotal: 10 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemFree: 1 kB"), None);
        assert_eq!(available("MemAvailable: many kB"), None);
    }

    #[test]
    fn the_batch_that_fits_is_named() {
        let memory = |available| Memory { persistent: 100, arena: 640, available };
        memory(Some(740)).check("cpu", 64).unwrap();
        memory(None).check("cpu", 64).unwrap();
        let message = memory(Some(420)).check("cpu", 64).unwrap_err().to_string();
        assert!(message.contains("`batch = 32` would fit"), "{message}");
        assert!(memory(Some(99)).check("cpu", 64).unwrap_err().to_string().contains("smaller model"));
    }
}
