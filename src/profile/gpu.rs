//! GPU data for the time model, each figure with its source.
//!
//! Rates of products and of memory are those of [`Peak`]: NVIDIA's data sheets. Figures without a source are marked as assumed; a
//! calibration corrects their effect.

use crate::error::{Error, Result, nearest};
use crate::train::Peak;

/// The properties of a GPU that the model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Its name for `--on`; the PTX machine uses the same name.
    pub key: &'static str,
    /// Its display name.
    pub name: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Cycles per second at which the sheet's rates hold.
    pub clock: f64,
    /// Warp instructions issued per cycle by a multiprocessor: one per scheduler, four in all (CUDA C++ Programming Guide, from
    /// compute capability 5.0).
    pub issue_per_cycle: f64,
    /// Dense bf16 FLOPs with f32 accumulation per cycle of a multiprocessor's tensor cores: the sheet's rate over clock and count.
    pub tensor_per_cycle: f64,
    /// The share of it that `mma.sync` reaches. All of it up to compute capability 8.9; 0.62 on Hopper, where only `wgmma` keeps
    /// the tensor cores busy (Luo et al. 2024, arXiv:2402.13499); on Blackwell assumed to be Hopper's FLOPs per cycle.
    pub mma_sync_share: f64,
    /// f32 multiply-adds per cycle of a multiprocessor (Programming Guide, table of arithmetic throughput).
    pub float_per_cycle: f64,
    /// Results of `ex2`, `rcp` and the like per cycle: 16 (same table).
    pub special_per_cycle: f64,
    /// Bytes of shared memory per cycle of a multiprocessor: 32 banks of 4 (Programming Guide).
    pub shared_per_cycle: f64,
    /// 32-bit registers of a multiprocessor (Programming Guide, table of compute capabilities, like the next three).
    pub registers: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: u32,
    /// Most threads of a multiprocessor.
    pub threads: u32,
    /// Most blocks of a multiprocessor.
    pub blocks: u32,
    /// Bytes of the second-level cache (white papers of GA100, AD102, GH100; 126 MB for B200 by deviceQuery).
    pub l2: u64,
    /// Bytes per cycle between it and the multiprocessors. 5120 on A100 (white paper of GA100); assumed to be the same elsewhere.
    pub l2_per_cycle: f64,
    /// Latency of a load from it in cycles: 262, 273 and 263 on A100, RTX 4090 and H100 (arXiv:2402.13499); B200 as H100.
    pub l2_latency: f64,
    /// Latency of a load from memory in cycles: 466, 542 and 479 (same source), B200 as H100.
    pub dram_latency: f64,
    /// Memory bandwidth in bytes per second.
    pub dram: f64,
    /// Seconds between the end of a kernel and the start of the next in a graph. Assumed: 1 µs.
    pub launch_gap: f64,
}

/// The differences: key, multiprocessors, clock in MHz, tensor FLOPs per cycle, `mma.sync`'s share, f32 FMAs per cycle, KiB of
/// shared memory, threads, blocks, MiB of L2, latencies of L2 and memory.
type Sheet = (&'static str, u32, f64, f64, f64, f64, u32, u32, u32, u64, f64, f64);

const SHEETS: &[Sheet] = &[
    ("a100", 108, 1410.0, 2048.0, 1.0, 64.0, 164, 2048, 32, 40, 262.0, 466.0),
    ("h100", 132, 1830.0, 4096.0, 0.62, 128.0, 228, 2048, 32, 50, 263.0, 479.0),
    ("h200", 132, 1830.0, 4096.0, 0.62, 128.0, 228, 2048, 32, 50, 263.0, 479.0),
    ("rtx4090", 128, 2520.0, 512.0, 1.0, 128.0, 100, 1536, 24, 72, 273.0, 542.0),
    ("b200", 148, 1860.0, 8192.0, 0.31, 128.0, 228, 2048, 32, 126, 263.0, 479.0),
];

impl Gpu {
    /// The modelled devices.
    pub fn known() -> Vec<Self> {
        let peaks = Peak::known();
        let of = |sheet: &Sheet| {
            let &(key, multiprocessors, clock, tensor, share, float, shared, threads, blocks, l2, near, far) = sheet;
            let peak = peaks.iter().find(|peak| peak.key == key)?;
            Some(Self {
                key,
                name: peak.name.clone(),
                multiprocessors,
                clock: clock * 1e6,
                issue_per_cycle: 4.0,
                tensor_per_cycle: tensor,
                mma_sync_share: share,
                float_per_cycle: float,
                special_per_cycle: 16.0,
                shared_per_cycle: 128.0,
                registers: 65_536,
                shared: shared << 10,
                threads,
                blocks,
                l2: l2 << 20,
                l2_per_cycle: 5120.0,
                l2_latency: near,
                dram_latency: far,
                dram: peak.bandwidth,
                launch_gap: 1e-6,
            })
        };
        SHEETS.iter().filter_map(of).collect()
    }

    /// The device with that key.
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest one and a list of all.
    pub fn named(key: &str) -> Result<Self> {
        let known = Self::known();
        if let Some(gpu) = known.iter().find(|gpu| gpu.key == key) {
            return Ok(gpu.clone());
        }
        let keys: Vec<&str> = known.iter().map(|gpu| gpu.key).chain(["here"]).collect();
        let all = keys.join(", ");
        let advice = match nearest(key, keys) {
            Some(near) => format!("did you mean {near}? Known: {all}"),
            None => format!("use one of {all}"),
        };
        let short: String = key.chars().take(60).collect();
        Err(Error::config("on", format!("no device is called `{}`", short.escape_debug()), advice))
    }

    /// The device of an accelerator's name: `NVIDIA H100 80GB HBM3 (cuda:0)`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is unknown.
    pub fn of_name(name: &str) -> Result<Self> {
        let plain = name.to_lowercase().replace([' ', '-'], "");
        let known = Self::known();
        let found = known.iter().find(|gpu| plain.contains(gpu.key)).cloned();
        found.ok_or_else(|| {
            let keys: Vec<&str> = known.iter().map(|gpu| gpu.key).collect();
            let message = format!("the model does not know {name}");
            Error::config("on here", message, format!("use one of {}", keys.join(", ")))
        })
    }

    /// Dense bf16 FLOPs per second of all tensor cores.
    pub fn tensor_rate(&self) -> f64 {
        self.tensor_per_cycle * f64::from(self.multiprocessors) * self.clock
    }

    /// f32 FLOPs per second outside tensor cores.
    pub fn float_rate(&self) -> f64 {
        2.0 * self.float_per_cycle * f64::from(self.multiprocessors) * self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_data_sheets() {
        let peaks = Peak::known();
        assert_eq!(Gpu::known().len(), SHEETS.len());
        for gpu in Gpu::known() {
            let peak = peaks.iter().find(|peak| peak.key == gpu.key).unwrap();
            let apart = |a: f64, b: f64| (a / b - 1.0).abs();
            assert!(apart(gpu.tensor_rate(), peak.bf16) < 0.01, "{}: {:e} {:e}", gpu.key, gpu.tensor_rate(), peak.bf16);
            // H100's sheet states f32 at a higher clock than that of its tensor cores.
            assert!(apart(gpu.float_rate(), peak.f32) < 0.1, "{}: {:e} {:e}", gpu.key, gpu.float_rate(), peak.f32);
        }
    }

    #[test]
    fn devices_go_by_key_and_by_name() {
        assert_eq!(Gpu::named("h100").unwrap().multiprocessors, 132);
        let error = Gpu::named("h10").unwrap_err().to_string();
        assert!(error.starts_with("on: ") && error.contains("did you mean h100?"), "{error}");
        assert_eq!(Gpu::of_name("NVIDIA GeForce RTX 4090 (cuda:1)").unwrap().key, "rtx4090");
        assert_eq!(Gpu::of_name("NVIDIA A100-SXM4-80GB (cuda:0)").unwrap().key, "a100");
        assert!(Gpu::of_name("NVIDIA L4 (cuda:0)").unwrap_err().to_string().contains("use one of a100"));
    }
}
