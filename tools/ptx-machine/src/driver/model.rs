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
    clock_khz: 1_980_000,
    memory_clock_khz: 2_619_000,
    bus_bits: 5120,
    l2_bytes: 50 << 20,
};

impl Model {
    /// The models that a list like `a100,h100` names; None where one is not known.
    pub fn list(words: &str) -> Option<Vec<Model>> {
        let found = |word: &str| [A100, H100].into_iter().find(|model| model.word == word.trim());
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
            106 => 32,
            111 => 1 << 10,
            _ => return None,
        })
    }
}
