//! The devices that the driver can be asked to have.

/// A kind of GPU, with the numbers of its data sheet and of the CUDA programming guide's table of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// By which the environment names it.
    pub word: &'static str,
    pub name: &'static str,
    pub capability: (i32, i32),
    pub multiprocessors: i32,
    pub memory: u64,
    pub shared_optin: u32,
    pub shared_per_multiprocessor: i32,
    pub threads_per_multiprocessor: i32,
    pub blocks_per_multiprocessor: i32,
    pub clock_khz: i32,
    pub memory_clock_khz: i32,
    pub bus_bits: i32,
    pub l2_bytes: i32,
}

/// Shared memory of a block without asking.
pub const SHARED_FREE: u32 = 48 << 10;
/// Registers of a block, and of a multiprocessor.
pub const REGISTERS: u32 = 65_536;
/// Registers of a thread: at most, at least, and in which steps a warp gets them; and of how many warps at once a block consists.
pub const MOST_REGISTERS: u32 = 255;
pub const LEAST_REGISTERS: u32 = 16;
pub const REGISTER_STEP: u32 = 8;
pub const WARPS_AT_ONCE: u32 = 4;
pub const THREADS_PER_BLOCK: u32 = 1024;
pub const BLOCK_LIMITS: [u32; 3] = [1024, 1024, 64];
pub const GRID_LIMITS: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];

pub const A100: Model = Model {
    word: "a100",
    name: "PTX machine (A100)",
    capability: (8, 0),
    multiprocessors: 108,
    memory: 40 << 30,
    shared_optin: 163 << 10,
    shared_per_multiprocessor: 164 << 10,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
    clock_khz: 1_410_000,
    memory_clock_khz: 1_215_000,
    bus_bits: 5120,
    l2_bytes: 40 << 20,
};

pub const H100: Model = Model {
    word: "h100",
    name: "PTX machine (H100)",
    capability: (9, 0),
    multiprocessors: 132,
    memory: 80 << 30,
    shared_optin: 227 << 10,
    shared_per_multiprocessor: 228 << 10,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
    clock_khz: 1_980_000,
    memory_clock_khz: 2_619_000,
    bus_bits: 5120,
    l2_bytes: 50 << 20,
};

/// H200 SXM: an H100 with 141 GB of HBM3e at 4.8 TB/s (data sheet), over six stacks of 1024 bits.
pub const H200: Model = Model {
    word: "h200",
    name: "PTX machine (H200)",
    memory: 141_000_000_000,
    memory_clock_khz: 3_125_000,
    bus_bits: 6144,
    ..H100
};

/// GeForce RTX 4090: "NVIDIA Ada GPU Architecture" whitepaper, appendix A (128 multiprocessors, 2520 MHz boost, 24 GB of GDDR6X at 21 Gbit/s
/// on 384 bits, 72 MB of L2); capability 8.9 of the programming guide's table (1536 threads, 24 blocks, 100 KB of shared memory).
pub const RTX4090: Model = Model {
    word: "rtx4090",
    name: "PTX machine (RTX 4090)",
    capability: (8, 9),
    multiprocessors: 128,
    memory: 24 << 30,
    shared_optin: 99 << 10,
    shared_per_multiprocessor: 100 << 10,
    threads_per_multiprocessor: 1536,
    blocks_per_multiprocessor: 24,
    clock_khz: 2_520_000,
    memory_clock_khz: 10_501_000,
    bus_bits: 384,
    l2_bytes: 72 << 20,
};

/// B200: what its driver reports (148 multiprocessors, 178.35 GiB, 7680 bits at 3996 MHz, 126.5 MiB of L2: github.com/pytorch/ao pull
/// request 4002; the Blackwell tuning guide rounds the L2 to 126 MB); the core clock that makes 2.25 PFLOP/s of bf16 of 8192 a cycle; capability 10.0 of the programming guide's table.
pub const B200: Model = Model {
    word: "b200",
    name: "PTX machine (B200)",
    capability: (10, 0),
    multiprocessors: 148,
    memory: 178 << 30,
    shared_optin: 227 << 10,
    shared_per_multiprocessor: 228 << 10,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
    clock_khz: 1_860_000,
    memory_clock_khz: 3_996_000,
    bus_bits: 7680,
    l2_bytes: 253 << 19,
};

/// All that there are.
pub const MODELS: [Model; 5] = [A100, RTX4090, H100, H200, B200];

impl Model {
    /// The models that a list like `a100,h100` names; None where one is not known.
    pub fn list(words: &str) -> Option<Vec<Model>> {
        let found = |word: &str| MODELS.into_iter().find(|model| model.word == word.trim());
        words.split(',').map(found).collect()
    }

    /// An attribute by cuda.h's number.
    pub fn attribute(&self, which: i32) -> Option<i32> {
        Some(match which {
            1 => THREADS_PER_BLOCK as i32,
            2..=4 => BLOCK_LIMITS[which as usize - 2] as i32,
            5..=7 => GRID_LIMITS[which as usize - 5] as i32,
            8 => SHARED_FREE as i32,
            9 => 64 << 10,
            10 => 32,
            12 | 82 => REGISTERS as i32,
            13 => self.clock_khz,
            // Copies beside kernels, kernels beside kernels, no ECC report, unified addresses.
            15 | 31 | 40 | 41 => 1,
            16 => self.multiprocessors,
            17 | 18 | 20 | 32 => 0,
            19 => 1,
            36 => self.memory_clock_khz,
            37 => self.bus_bits,
            38 => self.l2_bytes,
            39 => self.threads_per_multiprocessor,
            75 => self.capability.0,
            76 => self.capability.1,
            78 | 79 | 80 | 83 => 1,
            81 => self.shared_per_multiprocessor,
            95 => 1,
            97 => self.shared_optin as i32,
            106 => self.blocks_per_multiprocessor,
            111 => 1 << 10,
            _ => return None,
        })
    }
}
