//! The counters of a launch, a line or a kernel, under the names in the PTX machine's file.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Profile counters. Missing ones in a file are 0, unknown ones are ignored.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }
        }
    };
}

counters! {
    /// Warp instructions of the PTX: issue slots before `ptxas`.
    warp_instructions,
    /// Active lanes, summed over the warp instructions.
    thread_instructions,
    /// Warp instructions by class, from here to [`Counters::other`].
    integer,
    /// f32 arithmetic.
    float,
    /// Conversions between number formats.
    conversion,
    /// `ex2`, `rcp`, `sqrt`, `sin`, divisions.
    special,
    /// Tensor cores.
    mma,
    /// `ldmatrix`.
    load_matrix,
    /// Warp shuffles, including votes, `redux` and matches.
    shuffle,
    /// Loads of global memory.
    global_load,
    /// Stores to global memory.
    global_store,
    /// Loads of shared memory.
    shared_load,
    /// Stores to shared memory.
    shared_store,
    /// Local memory: spills and arrays.
    local_access,
    /// `cp.async`.
    async_copy,
    /// Atomics.
    atomic,
    /// Barriers of blocks and warps, fences.
    barrier,
    /// Branches.
    branch,
    /// Moves, selections, predicates.
    other,
    /// FLOPs of tensor cores: 2 m n k per warp `mma`.
    mma_flops,
    /// Those of them in TF32, of which tensor cores do half as many a cycle as in bf16.
    tf32_flops,
    /// FLOPs in f32; a multiply-add counts as two.
    float_flops,
    /// Requests to global memory: warp instructions that access it.
    global_requests,
    /// Sectors of 32 bytes that they access.
    global_sectors,
    /// The minimum number of sectors for the same distinct bytes.
    global_sectors_least,
    /// The loads' part of [`Counters::global_sectors`].
    global_load_sectors,
    /// The stores' part of [`Counters::global_sectors`].
    global_store_sectors,
    /// Requests to shared memory.
    shared_requests,
    /// Their passes over the banks.
    shared_wavefronts,
    /// The minimum number of passes for the same distinct bytes.
    shared_wavefronts_least,
    /// Bytes of local memory.
    local_bytes,
    /// Atomic operations, by lane.
    atomics,
    /// Warps that reached a barrier of their block.
    barrier_waits,
}

impl Counters {
    /// Ratio of sectors to the minimum: 1 is coalesced, 4 accesses four times what it uses. 1 without accesses.
    pub fn sector_ratio(&self) -> f64 {
        ratio(self.global_sectors, self.global_sectors_least)
    }

    /// Ratio of passes over the banks to the minimum: 1 is free of conflicts.
    pub fn conflict_ratio(&self) -> f64 {
        ratio(self.shared_wavefronts, self.shared_wavefronts_least)
    }

    /// Mean active lanes per warp instruction, of 32.
    pub fn lanes(&self) -> f64 {
        self.thread_instructions as f64 / self.warp_instructions.max(1) as f64
    }
}

/// `a / b`; 1 if there is nothing to compare.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 1.0 } else { a as f64 / b as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_left_out_and_missing_ones_are_zero() {
        let read: Counters =
            serde_json::from_str(r#"{"global_sectors": 8, "global_sectors_least": 2, "of_tomorrow": 3}"#).unwrap();
        assert_eq!((read.sector_ratio(), read.conflict_ratio(), read.mma), (4.0, 1.0, 0));
        let mut sum = read;
        sum += Counters { warp_instructions: 2, thread_instructions: 48, ..read };
        assert_eq!((sum.global_sectors, sum.lanes()), (16, 24.0));
    }
}
