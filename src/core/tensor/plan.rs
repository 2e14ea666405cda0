//! Memory plans: lifetimes recorded in shape-only mode, offsets assigned offline.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::ALIGNMENT;

/// The cost of one call of an op, from shapes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flops: f64,
    /// Bytes that must be read or written at least once.
    pub bytes: f64,
    /// Whether the operations are products for tensor cores.
    pub tensor_cores: bool,
}

impl Cost {
    /// The cost of a memory-bound op.
    pub fn memory(bytes: usize) -> Self {
        Self { flops: 0.0, bytes: bytes as f64, tensor_cores: false }
    }

    /// Arithmetic that does not use tensor cores.
    pub fn scalar(flops: usize, bytes: usize) -> Self {
        Self { flops: flops as f64, bytes: bytes as f64, tensor_cores: false }
    }

    /// A matrix product `[m, k] x [k, n]` with operands and result accessed once, `size` bytes per element.
    pub fn product(m: usize, n: usize, k: usize, size: usize) -> Self {
        Self {
            flops: 2.0 * m as f64 * n as f64 * k as f64,
            bytes: (m * k + k * n + m * n) as f64 * size as f64,
            tensor_cores: true,
        }
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.tensor_cores |= other.tensor_cores;
    }
}

/// One allocation's place in the arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// Offsets by allocation number.
#[derive(Debug)]
pub(super) struct MemoryPlan {
    pub(super) slots: Vec<Slot>,
    pub(super) bytes: usize,
}

/// The record of a program in shape-only mode.
#[derive(Default)]
pub(super) struct Recorder {
    lifetimes: Vec<Lifetime>,
    clock: usize,
    pub(super) charges: BTreeMap<&'static str, (usize, Cost)>,
    /// The kernel modules that it uses.
    pub(super) modules: BTreeSet<&'static str>,
}

struct Lifetime {
    bytes: usize,
    birth: usize,
    death: usize,
}

impl Recorder {
    pub(super) fn allocate(&mut self, bytes: usize) -> usize {
        self.lifetimes.push(Lifetime { bytes, birth: self.clock, death: usize::MAX });
        self.clock += 1;
        self.lifetimes.len() - 1
    }

    pub(super) fn free(&mut self, number: usize) {
        self.lifetimes[number].death = self.clock;
        self.clock += 1;
    }

    pub(super) fn charge(&mut self, op: &'static str, cost: Cost) {
        let (calls, sum) = self.charges.entry(op).or_default();
        *calls += 1;
        *sum += cost;
    }

    /// Greedy by size: the largest allocation first, each at the lowest offset that overlaps no allocation alive at the same time.
    pub(super) fn assign(&self) -> MemoryPlan {
        let mut order: Vec<usize> = (0..self.lifetimes.len()).collect();
        order.sort_by_key(|&number| (std::cmp::Reverse(self.lifetimes[number].bytes), number));
        let mut slots = vec![Slot { offset: 0, bytes: 0 }; self.lifetimes.len()];
        // Placed allocations, kept sorted by offset.
        let mut placed: Vec<usize> = Vec::new();
        let mut total = 0;
        for number in order {
            let lifetime = &self.lifetimes[number];
            let size = lifetime.bytes.next_multiple_of(ALIGNMENT);
            let mut offset = 0;
            for &other in &placed {
                let neighbour = &self.lifetimes[other];
                if lifetime.birth >= neighbour.death || neighbour.birth >= lifetime.death {
                    continue;
                }
                let slot = slots[other];
                if offset + size <= slot.offset {
                    break;
                }
                offset = offset.max(slot.offset + slot.bytes.next_multiple_of(ALIGNMENT));
            }
            slots[number] = Slot { offset, bytes: lifetime.bytes };
            total = total.max(offset + size);
            let position = placed.partition_point(|&other| slots[other].offset <= offset);
            placed.insert(position, number);
        }
        MemoryPlan { slots, bytes: total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_after_death_and_never_shared_in_life() {
        let mut recorder = Recorder::default();
        let a = recorder.allocate(1000);
        let b = recorder.allocate(500);
        recorder.free(a);
        let c = recorder.allocate(700);
        recorder.free(b);
        let d = recorder.allocate(100);
        let plan = recorder.assign();
        assert_eq!(plan.slots[c].offset, plan.slots[a].offset);
        assert!(plan.bytes <= 1024 + 512);
        let overlaps = |x: usize, y: usize| {
            let (x, y) = (plan.slots[x], plan.slots[y]);
            x.offset < y.offset + y.bytes && y.offset < x.offset + x.bytes
        };
        assert!(!overlaps(a, b) && !overlaps(b, c) && !overlaps(c, d));
    }
}
