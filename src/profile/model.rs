//! The time model: the time that each part of a GPU would need for a launch alone. The slowest part determines the launch's time.
//!
//! Counters give the work of a launch, [`Gpu`] the rates of each part. Work is distributed in whole blocks: the multiprocessor
//! with the most blocks ends last. Not modelled: caches of multiprocessors (all sectors go through the second level), clocks that
//! drop under load, the two halves of the second level, and interactions between parts. A modelled time is therefore mostly a
//! lower bound; its use is to find the limiting part, and to compare two versions of a kernel.

use serde::Serialize;

use super::counters::Counters;
use super::gpu::Gpu;
use super::memory::Traffic;

/// Mean cycles between two instructions of one warp: dependent arithmetic takes four (arXiv:2402.13499), and about every second
/// instruction depends on the previous one (assumed).
const CYCLES_PER_SLOT: f64 = 2.0;
/// Cycles that a warp waits at a barrier of its block (assumed).
const BARRIER_CYCLES: f64 = 30.0;
/// Concurrent loads of a warp (assumed: what compilers hoist before the first use).
const LOADS_TOGETHER: f64 = 4.0;
/// Concurrent `cp.async` of a warp (assumed: two stages of eight).
const COPIES_TOGETHER: f64 = 16.0;
/// Bytes of shared memory reserved per block by the system (Programming Guide, from compute capability 8.0).
const RESERVED_SHARED: u32 = 1024;
/// Allocation units of registers per warp, and of shared memory per block (same source).
const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;

/// A part of a GPU that can limit a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The schedulers' issue slots, and the pipes for f32 and for special functions.
    Issue,
    /// Tensor cores.
    Tensor,
    /// Shared memory's banks.
    Shared,
    /// The path between multiprocessors and the second-level cache.
    L2,
    /// Memory.
    Dram,
    /// Latency: too few warps to hide their waits.
    Latency,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Issue, Self::Tensor, Self::Shared, Self::L2, Self::Dram, Self::Latency];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Issue => "issue",
            Self::Tensor => "tensor",
            Self::Shared => "shared",
            Self::L2 => "L2",
            Self::Dram => "DRAM",
            Self::Latency => "latency",
        }
    }
}

/// A launch with all inputs of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Blocks of the grid.
    pub blocks: u64,
    /// Warps of a block.
    pub warps: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared: u32,
    /// Whether it may start before the previous launch has ended.
    pub dependent: bool,
    /// Ratio of real issue slots to those of the PTX.
    pub slots_per_ptx: f64,
    /// Of the whole launch.
    pub counters: Counters,
    /// Of the whole launch.
    pub traffic: Traffic,
}

/// The occupancy of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Resident blocks.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// The limit: `registers`, `shared memory`, `threads` or `blocks`.
    pub limit: &'static str,
}

impl Occupancy {
    /// For a kernel with this many warps per block, registers per thread and bytes of shared memory per block. At least one block.
    pub fn of(gpu: &Gpu, warps: u32, registers: u32, shared: u32) -> Self {
        let warps = warps.max(1);
        let of_warp = (32 * registers.max(1)).next_multiple_of(REGISTER_UNIT);
        let of_block = (shared + RESERVED_SHARED).next_multiple_of(SHARED_UNIT);
        let limits = [
            (gpu.threads / (32 * warps), "threads"),
            (gpu.blocks, "blocks"),
            (gpu.registers / of_warp / warps, "registers"),
            (gpu.shared / of_block, "shared memory"),
        ];
        let (blocks, limit) = limits.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap_or((1, "blocks"));
        let blocks = blocks.max(1);
        Self { blocks, warps: blocks * warps, limit }
    }
}

/// A launch's modelled time. Never measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modelled {
    /// Seconds of each part, in the order of [`Part::ALL`].
    pub parts: [f64; 6],
    /// The slowest part.
    pub bound: Part,
    /// The second slowest part.
    pub second: Part,
    /// Seconds, including the gap before the launch.
    pub seconds: f64,
    /// Seconds of the gap.
    pub gap: f64,
    /// The roofline: FLOPs over the sheet's rate, or each tensor once over memory's bandwidth.
    pub floor: f64,
    /// The occupancy.
    pub occupancy: Occupancy,
    /// Blocks on the busiest multiprocessor.
    pub busiest: u64,
    /// The share of all multiprocessors' time that is idle because blocks are indivisible: 0 to 1.
    pub idle: f64,
}

impl Modelled {
    /// The ratio of the slowest part's time to the next.
    pub fn margin(&self) -> f64 {
        self.of(self.bound) / self.of(self.second).max(1e-12)
    }

    /// Seconds of a part.
    pub fn of(&self, part: Part) -> f64 {
        self.parts[part as usize]
    }
}

/// The model.
pub fn model(gpu: &Gpu, work: &Work) -> Modelled {
    let Work { blocks, warps, counters, .. } = *work;
    let blocks = blocks.max(1);
    let multiprocessors = u64::from(gpu.multiprocessors);
    let occupancy = Occupancy::of(gpu, warps, work.registers, work.shared);
    let busiest = blocks.div_ceil(multiprocessors);
    // The busiest multiprocessor's share of all work.
    let share = busiest as f64 / blocks as f64;
    let cycles = |amount: f64, rate: f64| share * amount / rate / gpu.clock;
    let slots = work.slots_per_ptx * counters.warp_instructions as f64;

    let issue = cycles(slots, gpu.issue_per_cycle)
        .max(cycles(32.0 * counters.float as f64, gpu.float_per_cycle))
        .max(cycles(32.0 * counters.special as f64, gpu.special_per_cycle));
    // In bf16's: a FLOP in TF32 takes twice the time, on every device here.
    let mma_flops = (counters.mma_flops + counters.tf32_flops) as f64;
    let tensor = cycles(mma_flops, gpu.tensor_per_cycle * gpu.mma_sync_share);
    let shared = cycles(128.0 * counters.shared_wavefronts as f64, gpu.shared_per_cycle);
    let l2 = 32.0 * counters.global_sectors as f64 / gpu.l2_per_cycle / gpu.clock;
    let dram = work.traffic.dram() / gpu.dram;
    let latency = latency(gpu, work, occupancy, busiest);

    let parts = [issue, tensor, shared, l2, dram, latency];
    let mut order = Part::ALL;
    order.sort_by(|a, b| parts[*b as usize].total_cmp(&parts[*a as usize]));
    // A dependent launch is already resident when the previous one ends: assumed to halve the gap.
    let gap = if work.dependent { 0.5 * gpu.launch_gap } else { gpu.launch_gap };
    let flops = mma_flops / gpu.tensor_rate() + counters.float_flops as f64 / gpu.float_rate();
    let bytes = (work.traffic.read + work.traffic.written) / gpu.dram;
    Modelled {
        parts,
        bound: order[0],
        second: order[1],
        seconds: gap + parts[order[0] as usize],
        gap,
        floor: flops.max(bytes),
        occupancy,
        busiest,
        idle: 1.0 - blocks as f64 / (busiest * multiprocessors) as f64,
    }
}

/// Seconds of the busiest multiprocessor's warps in rounds of as many as fit at once: each warp issues and waits at barriers and
/// for its loads, without overlap with other warps.
fn latency(gpu: &Gpu, work: &Work, occupancy: Occupancy, busiest: u64) -> f64 {
    let warps = (work.blocks.max(1) * u64::from(work.warps.max(1))) as f64;
    let of_warp = |count: u64| count as f64 / warps;
    let Counters { warp_instructions, barrier_waits, global_load, async_copy, .. } = work.counters;
    let missed = (work.traffic.missed / work.traffic.read.max(1.0)).min(1.0);
    let wait = gpu.l2_latency + missed * (gpu.dram_latency - gpu.l2_latency);
    let cycles = CYCLES_PER_SLOT * work.slots_per_ptx * of_warp(warp_instructions)
        + BARRIER_CYCLES * of_warp(barrier_waits)
        + wait * (of_warp(global_load) / LOADS_TOGETHER + of_warp(async_copy) / COPIES_TOGETHER);
    busiest.div_ceil(u64::from(occupancy.blocks)) as f64 * cycles / gpu.clock
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Gpu {
        Gpu::named("h100").unwrap()
    }

    fn work(blocks: u64, counters: Counters) -> Work {
        Work {
            blocks,
            warps: 4,
            registers: 32,
            shared: 0,
            dependent: false,
            slots_per_ptx: 1.0,
            counters,
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn occupancy_is_nvidias() {
        let gpu = h100();
        let of = |warps, registers, shared| Occupancy::of(&gpu, warps, registers, shared);
        assert_eq!(of(8, 32, 0), Occupancy { blocks: 8, warps: 64, limit: "threads" });
        assert_eq!(of(8, 128, 0), Occupancy { blocks: 2, warps: 16, limit: "registers" });
        // 41 registers are given as 48.
        assert_eq!(of(8, 41, 0).blocks, 5);
        assert_eq!(of(4, 32, 48 << 10), Occupancy { blocks: 4, warps: 16, limit: "shared memory" });
        assert_eq!(of(1, 16, 0), Occupancy { blocks: 32, warps: 32, limit: "blocks" });
        assert_eq!(of(32, 255, 0).blocks, 1);
    }

    #[test]
    fn blocks_are_whole() {
        // With the same slots per block, 132 of them take as long as 1, and 135 twice as long.
        let slots = |blocks: u64| Counters { warp_instructions: blocks * 100_000, ..Counters::default() };
        let time = |blocks| model(&h100(), &work(blocks, slots(blocks)));
        let (one, full, more) = (time(1), time(132), time(135));
        assert_eq!(one.of(Part::Issue), full.of(Part::Issue));
        assert!((more.of(Part::Issue) / full.of(Part::Issue) - 2.0).abs() < 1e-9);
        assert_eq!((full.idle, full.busiest, more.busiest), (0.0, 1, 2));
        assert!((more.idle - (1.0 - 135.0 / 264.0)).abs() < 1e-9);
    }

    #[test]
    fn the_slowest_part_binds() {
        let gpu = h100();
        let flops = Counters { mma_flops: 1 << 40, warp_instructions: 1000, ..Counters::default() };
        let product = model(&gpu, &work(1320, flops));
        assert_eq!((product.bound, product.margin() > 10.0), (Part::Tensor, true));
        let rate = flops.mma_flops as f64 / product.of(Part::Tensor);
        assert!((rate / (0.62 * gpu.tensor_rate()) - 1.0).abs() < 1e-9);
        assert!((product.floor * gpu.tensor_rate() / flops.mma_flops as f64 - 1.0).abs() < 1e-9);

        let traffic = Traffic { read: 3.35e9, written: 0.0, missed: 3.35e9, stored: 0.0 };
        let moved = model(&gpu, &Work { traffic, ..work(1320, Counters::default()) });
        assert_eq!(moved.bound, Part::Dram);
        assert!((moved.seconds - 1e-3 - gpu.launch_gap).abs() < 1e-9 && (moved.floor - 1e-3).abs() < 1e-9);

        let conflicts = Counters { shared_wavefronts: 1 << 30, warp_instructions: 1 << 20, ..Counters::default() };
        assert_eq!(model(&gpu, &work(1320, conflicts)).bound, Part::Shared);
        let sectors = Counters { global_sectors: 1 << 30, ..Counters::default() };
        assert_eq!(model(&gpu, &work(1320, sectors)).bound, Part::L2);
    }

    #[test]
    fn one_block_waits() {
        let counters = Counters { warp_instructions: 4000, global_load: 400, ..Counters::default() };
        let alone = model(&h100(), &work(1, counters));
        assert_eq!((alone.bound, alone.second), (Part::Latency, Part::Issue));
        let dependent = model(&h100(), &Work { dependent: true, ..work(1, counters) });
        assert!(dependent.seconds < alone.seconds);
    }
}
