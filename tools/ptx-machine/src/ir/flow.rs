//! What lives how long, and what may be read before it was written.

use super::op::{Kind, Source, Step, Unknown};
use crate::parse::Reg;

/// The most words of the sets that the analysis keeps, of each kind: a bound on memory for any text.
const MAX_SET_WORDS: usize = 1 << 24;

/// A register's life, in positions: instruction `i` reads at `2i` and writes at `2i + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub start: u32,
    pub end: u32,
}

pub(super) struct Flow {
    /// By register; none where it is not used at all.
    pub intervals: Vec<Option<Interval>>,
    /// Registers of which some read may come before every write, or that are computed from such.
    pub doubtful: Vec<bool>,
}

struct Block {
    start: usize,
    end: usize,
    successors: Vec<usize>,
}

fn blocks(steps: &[Step]) -> Vec<Block> {
    let mut leads = vec![false; steps.len() + 1];
    leads[0] = true;
    for (index, step) in steps.iter().enumerate() {
        match step.kind {
            Kind::Branch(to) => {
                leads[to as usize] = true;
                leads[index + 1] = true;
            }
            Kind::Exit | Kind::Trap => leads[index + 1] = true,
            _ => {}
        }
    }
    let starts: Vec<usize> = (0..steps.len()).filter(|&at| leads[at]).collect();
    let block_of = |at: usize| starts.partition_point(|&start| start <= at) - 1;
    starts
        .iter()
        .enumerate()
        .map(|(index, &start)| {
            let end = starts.get(index + 1).copied().unwrap_or(steps.len());
            let last = &steps[end - 1];
            let mut successors = Vec::new();
            if let Kind::Branch(to) = last.kind {
                successors.push(block_of(to as usize));
            }
            let leaves = matches!(last.kind, Kind::Branch(_) | Kind::Exit | Kind::Trap) && last.guard.is_none();
            if !leaves && end < steps.len() {
                successors.push(index + 1);
            }
            Block { start, end, successors }
        })
        .collect()
}

pub(super) fn reads(step: &Step) -> impl Iterator<Item = Reg> + '_ {
    let guard = step.guard.map(|(reg, _)| reg);
    step.sources.iter().filter_map(|source| if let Source::Reg(reg) = source { Some(*reg) } else { None }).chain(guard)
}

pub(super) fn writes(step: &Step) -> impl Iterator<Item = Reg> + '_ {
    step.destinations.iter().flatten().copied()
}

/// Sets of registers, one a block.
struct Sets {
    words: usize,
    bits: Vec<u64>,
}

impl Sets {
    fn new(count: usize, words: usize, value: u64) -> Self {
        Self { words, bits: vec![value; count * words] }
    }

    fn of(&self, index: usize) -> &[u64] {
        &self.bits[index * self.words..][..self.words]
    }

    fn of_mut(&mut self, index: usize) -> &mut [u64] {
        &mut self.bits[index * self.words..][..self.words]
    }
}

/// Analyses a kernel of `count` registers. None: too large to be analysed.
pub(super) fn analyse(steps: &[Step], count: usize) -> Option<Flow> {
    let blocks = blocks(steps);
    let words = count.div_ceil(64).max(1);
    if blocks.len().checked_mul(words)? > MAX_SET_WORDS {
        return None;
    }
    let bit = |set: &mut [u64], reg: Reg| set[reg as usize / 64] |= 1 << (reg % 64);
    let has = |set: &[u64], reg: Reg| set[reg as usize / 64] >> (reg % 64) & 1 != 0;

    // Per block: read before written here, and written whatever happens.
    let mut used = Sets::new(blocks.len(), words, 0);
    let mut written = Sets::new(blocks.len(), words, 0);
    for (index, block) in blocks.iter().enumerate() {
        for step in &steps[block.start..block.end] {
            for reg in reads(step) {
                if !has(written.of(index), reg) {
                    bit(used.of_mut(index), reg);
                }
            }
            if step.guard.is_none() {
                for reg in writes(step) {
                    bit(written.of_mut(index), reg);
                }
            }
        }
    }

    let (live_in, live_out) = liveness(&blocks, &used, &written, words);
    let mut doubtful = doubtful(steps, &blocks, &written, count, words);
    pass_on(steps, &mut doubtful);
    let mut intervals: Vec<Option<Interval>> = vec![None; count];
    let mut extend = |reg: usize, at: u32| match &mut intervals[reg] {
        Some(interval) => {
            interval.start = interval.start.min(at);
            interval.end = interval.end.max(at);
        }
        none => *none = Some(Interval { start: at, end: at }),
    };
    for (index, block) in blocks.iter().enumerate() {
        let mut all = |set: &[u64], at: usize| {
            for (word, &bits) in set.iter().enumerate() {
                let mut rest = bits;
                while rest != 0 {
                    extend(word * 64 + rest.trailing_zeros() as usize, at as u32);
                    rest &= rest - 1;
                }
            }
        };
        all(live_in.of(index), 2 * block.start);
        all(live_out.of(index), 2 * block.end - 1);
        for (at, step) in steps.iter().enumerate().take(block.end).skip(block.start) {
            for reg in reads(step) {
                extend(reg as usize, 2 * at as u32);
            }
            for reg in writes(step) {
                extend(reg as usize, 2 * at as u32 + 1);
            }
        }
    }
    Some(Flow { intervals, doubtful })
}

/// Live registers at the beginning and at the end of each block.
fn liveness(blocks: &[Block], used: &Sets, written: &Sets, words: usize) -> (Sets, Sets) {
    let mut live_in = Sets::new(blocks.len(), words, 0);
    let mut live_out = Sets::new(blocks.len(), words, 0);
    let mut changed = true;
    while changed {
        changed = false;
        for index in (0..blocks.len()).rev() {
            for &successor in &blocks[index].successors {
                for word in 0..words {
                    let from = live_in.of(successor)[word];
                    live_out.of_mut(index)[word] |= from;
                }
            }
            for word in 0..words {
                let now = used.of(index)[word] | (live_out.of(index)[word] & !written.of(index)[word]);
                if now != live_in.of(index)[word] {
                    live_in.of_mut(index)[word] = now;
                    changed = true;
                }
            }
        }
    }
    (live_in, live_out)
}

/// A value computed from a doubtful register is doubtful.
fn pass_on(steps: &[Step], doubtful: &mut [bool]) {
    let mut changed = doubtful.contains(&true);
    while changed {
        changed = false;
        for step in steps.iter().filter(|step| step.unknown != Unknown::Demands) {
            let any = step.sources.iter().any(|source| matches!(source, Source::Reg(reg) if doubtful[*reg as usize]));
            for reg in writes(step).filter(|_| any) {
                changed |= !doubtful[reg as usize];
                doubtful[reg as usize] = true;
            }
        }
    }
}

fn doubtful(steps: &[Step], blocks: &[Block], written: &Sets, count: usize, words: usize) -> Vec<bool> {
    let mut known = Sets::new(blocks.len(), words, !0);
    known.of_mut(0).fill(0);
    let mut changed = true;
    while changed {
        changed = false;
        for (index, block) in blocks.iter().enumerate() {
            for &successor in &block.successors {
                for word in 0..words {
                    let out = known.of(index)[word] | written.of(index)[word];
                    let now = known.of(successor)[word] & out;
                    if now != known.of(successor)[word] {
                        known.of_mut(successor)[word] = now;
                        changed = true;
                    }
                }
            }
        }
    }
    let mut doubtful = vec![false; count];
    for (index, block) in blocks.iter().enumerate() {
        let mut now = known.of(index).to_vec();
        for step in &steps[block.start..block.end] {
            for reg in reads(step) {
                doubtful[reg as usize] |= now[reg as usize / 64] >> (reg % 64) & 1 == 0;
            }
            if step.guard.is_none() {
                for reg in writes(step) {
                    now[reg as usize / 64] |= 1 << (reg % 64);
                }
            }
        }
    }
    doubtful
}
