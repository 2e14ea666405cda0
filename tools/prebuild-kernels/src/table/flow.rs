//! Control flow of a listing, PTX or SASS: which instructions belong to which loop.

use std::collections::HashMap;

/// Where control goes after an instruction; targets are indices into the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Next,
    Jump(usize),
    /// To the target, or on.
    Branch(usize),
    End,
}

/// The fingerprint of a loop, the most telling part first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    Mma,
    /// An f32 sum, product or fused product.
    Float,
    /// A load or store of global memory.
    Global,
}

impl Anchor {
    pub const ALL: [Self; 3] = [Self::Mma, Self::Float, Self::Global];

    pub fn name(self) -> &'static str {
        match self {
            Self::Mma => "mma",
            Self::Float => "float",
            Self::Global => "global",
        }
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The line of the PTX file that it comes from (SASS) or stands in (PTX).
    pub line: usize,
    /// Of a subroutine that seldom runs.
    pub seldom: bool,
    pub anchor: Option<Anchor>,
    pub flow: Flow,
}

/// The number of the innermost loop of each instruction; `None` outside of all loops, and where control never comes. A loop is a natural
/// one: what reaches the jump back to its head without passing the head. A block that ptxas moved behind the kernel's end is in its loop all the same.
pub fn innermost_loops(code: &[Instruction]) -> Vec<Option<usize>> {
    let blocks = Blocks::of(code);
    let dominator = blocks.dominators();
    let mut bodies: HashMap<usize, Vec<usize>> = HashMap::new();
    for (block, successors) in blocks.successors.iter().enumerate() {
        for &head in successors {
            if blocks.order[block].is_some() && dominates(&dominator, head, block) {
                let body = bodies.entry(head).or_insert_with(|| vec![head]);
                let mut open = vec![block];
                while let Some(block) = open.pop() {
                    if !body.contains(&block) {
                        body.push(block);
                        open.extend(blocks.predecessors[block].iter().filter(|&&b| blocks.order[b].is_some()));
                    }
                }
            }
        }
    }
    let mut bodies: Vec<_> = bodies.into_iter().collect();
    // The largest first, so that what lies within overwrites it; numbers follow the heads.
    bodies.sort_by_key(|(head, body)| (std::cmp::Reverse(body.len()), *head));
    let mut innermost = vec![None; code.len()];
    for (head, body) in &bodies {
        for &block in body {
            innermost[blocks.starts[block]..blocks.end(block)].fill(Some(*head));
        }
    }
    innermost
}

fn dominates(dominator: &[Option<usize>], above: usize, mut block: usize) -> bool {
    loop {
        if block == above {
            return true;
        }
        match dominator[block] {
            Some(next) if next != block => block = next,
            _ => return false,
        }
    }
}

/// Basic blocks.
struct Blocks {
    starts: Vec<usize>,
    length: usize,
    successors: Vec<Vec<usize>>,
    predecessors: Vec<Vec<usize>>,
    /// Its place in reverse postorder from the entry; `None` where control never comes.
    order: Vec<Option<usize>>,
}

impl Blocks {
    fn of(code: &[Instruction]) -> Self {
        let mut first = vec![false; code.len()];
        if let Some(entry) = first.first_mut() {
            *entry = true;
        }
        for (index, instruction) in code.iter().enumerate() {
            if let Flow::Jump(target) | Flow::Branch(target) = instruction.flow
                && let Some(target) = first.get_mut(target)
            {
                *target = true;
            }
            if instruction.flow != Flow::Next
                && let Some(next) = first.get_mut(index + 1)
            {
                *next = true;
            }
        }
        let starts: Vec<usize> = (0..code.len()).filter(|&index| first[index]).collect();
        let block_of = |index: usize| starts.partition_point(|&start| start <= index).checked_sub(1);
        let mut blocks = Self {
            length: code.len(),
            successors: vec![Vec::new(); starts.len()],
            predecessors: vec![Vec::new(); starts.len()],
            order: vec![None; starts.len()],
            starts: Vec::new(),
        };
        for block in 0..starts.len() {
            let end = starts.get(block + 1).copied().unwrap_or(code.len());
            let next = (end < code.len()).then_some(end);
            let targets = match code[end - 1].flow {
                Flow::Next => [next, None],
                Flow::Jump(target) => [Some(target), None],
                Flow::Branch(target) => [Some(target), next],
                Flow::End => [None, None],
            };
            for target in targets.into_iter().flatten().filter(|&target| target < code.len()).filter_map(block_of) {
                blocks.successors[block].push(target);
                blocks.predecessors[target].push(block);
            }
        }
        blocks.starts = starts;
        blocks.number();
        blocks
    }

    fn end(&self, block: usize) -> usize {
        self.starts.get(block + 1).copied().unwrap_or(self.length)
    }

    fn number(&mut self) {
        if self.starts.is_empty() {
            return;
        }
        let (mut seen, mut finished) = (vec![false; self.starts.len()], Vec::new());
        let mut open = vec![(0, 0)];
        seen[0] = true;
        while let Some((block, next)) = open.pop() {
            match self.successors[block].get(next) {
                Some(&successor) => {
                    open.push((block, next + 1));
                    if !std::mem::replace(&mut seen[successor], true) {
                        open.push((successor, 0));
                    }
                }
                None => finished.push(block),
            }
        }
        for (place, block) in finished.into_iter().rev().enumerate() {
            self.order[block] = Some(place);
        }
    }

    /// Each block's immediate dominator, its own for the entry (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm").
    fn dominators(&self) -> Vec<Option<usize>> {
        let mut dominator: Vec<Option<usize>> = vec![None; self.starts.len()];
        let mut by_order: Vec<usize> = (0..self.starts.len()).filter(|&block| self.order[block].is_some()).collect();
        by_order.sort_by_key(|&block| self.order[block]);
        let Some(&entry) = by_order.first() else { return dominator };
        dominator[entry] = Some(entry);
        let mut changed = true;
        while changed {
            changed = false;
            for &block in &by_order[1..] {
                let mut common: Option<usize> = None;
                for &before in self.predecessors[block].iter().filter(|&&before| dominator[before].is_some()) {
                    common = Some(common.map_or(before, |other| self.meet(&dominator, before, other)));
                }
                if dominator[block] != common {
                    dominator[block] = common;
                    changed = true;
                }
            }
        }
        dominator
    }

    /// The nearest block that dominates both.
    fn meet(&self, dominator: &[Option<usize>], mut a: usize, mut b: usize) -> usize {
        while a != b {
            let deeper = if self.order[a] > self.order[b] { &mut a } else { &mut b };
            match dominator[*deeper] {
                Some(above) => *deeper = above,
                None => return *deeper,
            }
        }
        a
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(flows: &[Flow]) -> Vec<Instruction> {
        flows.iter().map(|&flow| Instruction { line: 0, seldom: false, anchor: None, flow }).collect()
    }

    #[test]
    fn loops_nest_and_a_block_behind_the_end_is_in_its_loop() {
        use Flow::{Branch, End, Jump, Next};
        // 1..6 is a loop with 3..4 within; 8 lies behind the end, is reached from 2 and goes back to 3.
        let flows = [Next, Next, Branch(8), Next, Branch(3), Next, Branch(1), End, Next, Jump(3), Next];
        let loops = innermost_loops(&code(&flows));
        let (outer, inner) = (loops[1], loops[3]);
        assert!(outer.is_some() && inner.is_some() && outer != inner);
        assert_eq!(loops, [None, outer, outer, inner, inner, outer, outer, None, outer, outer, None]);
    }

    #[test]
    fn a_jump_back_that_closes_no_loop_is_none() {
        use Flow::{Branch, End, Jump, Next};
        // 4 goes back to 2, but 2 is reached without it, and 4 not from 2.
        assert_eq!(innermost_loops(&code(&[Branch(4), Next, Next, End, Jump(2)])), [None; 5]);
        assert!(innermost_loops(&[]).is_empty());
    }
}
