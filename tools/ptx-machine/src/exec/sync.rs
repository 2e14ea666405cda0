//! What lanes of a warp do together: barriers, shuffles, votes, reductions.

use super::Observer;
use super::block::Worker;
use super::lanes::LANES;
use super::warp::{State, Warp};
use crate::fault::{Fault, FaultKind, counted};
use crate::ir::Inst;
use crate::ir::op::{Kind, Reduction, Shuffle, Vote};

/// The mask operand of an instruction that has one.
fn mask_operand(kind: Kind) -> usize {
    match kind {
        Kind::WarpBarrier => 0,
        Kind::Shuffle { .. } => 3,
        _ => 1,
    }
}

impl<const CHECKED: bool, O: Observer> Worker<'_, CHECKED, O> {
    /// An instruction that needs other lanes. True: the warp has stopped.
    pub(super) fn together(&mut self, warp: &mut Warp, kind: Kind, mask: u32) -> Result<bool, Box<Fault>> {
        // Lanes that skip it by their guard go on alone.
        if mask != warp.lanes.mask {
            let rest = warp.lanes.mask & !mask;
            let next = warp.pc + 1;
            warp.set_aside(next, rest, false);
            warp.lanes.mask = mask;
        }
        warp.gather();
        if kind.is_aligned() { self.aligned(warp, kind) } else { self.masked(warp) }
    }

    fn aligned(&mut self, warp: &mut Warp, kind: Kind) -> Result<bool, Box<Fault>> {
        if warp.lanes.mask != warp.alive {
            return self.wait_for_others(warp);
        }
        let inst = &self.grid.program.code[warp.pc as usize];
        self.observer.issue(warp.pc as usize, warp.lanes.mask);
        match kind {
            Kind::Barrier { .. } => self.barrier(warp, inst),
            _ => {
                if warp.alive != !0 {
                    let alive = counted(warp.alive.count_ones().into(), "thread");
                    let message = format!("an instruction of whole warps in a warp of {alive}");
                    return Err(Fault::new(FaultKind::Diverged, None, message));
                }
                let at = warp.pc as usize;
                if matches!(kind, Kind::Mma { .. }) {
                    self.mma(warp, inst);
                } else {
                    self.load_matrix(warp, inst, at)?;
                }
                warp.pc += 1;
                Ok(false)
            }
        }
    }

    /// The executing lanes wait here; others go on. An error where no lane can.
    fn wait_for_others(&mut self, warp: &mut Warp) -> Result<bool, Box<Fault>> {
        let (at, here) = (warp.pc, warp.lanes.mask);
        if warp.select(true) {
            return Ok(false);
        }
        let code = &self.grid.program.code;
        // Lanes at several places: can those that agree go on together?
        if let Some(parts) = self.agreeing(warp) {
            self.execute_masked(warp, &parts)?;
            warp.lanes.mask = 0;
            for &(pc, mask) in &parts {
                warp.paths.retain(|path| !(path.pc == pc && path.waits && path.mask & !mask == 0));
                for path in warp.paths.iter_mut().filter(|path| path.pc == pc && path.waits) {
                    path.mask &= !mask;
                }
                warp.set_aside(pc + 1, mask, false);
            }
            warp.select(false);
            return Ok(false);
        }
        let lines: Vec<String> = warp
            .paths
            .iter()
            .map(|path| {
                let line = self.grid.program.lines[path.pc as usize].ptx;
                format!("lanes {:#010x} at line {line}", path.mask)
            })
            .collect();
        (warp.pc, warp.lanes.mask) = (at, here);
        let (kind, what) = if code[at as usize].kind.is_aligned() {
            (FaultKind::Diverged, "an .aligned instruction that the warp does not reach together")
        } else {
            (FaultKind::WarpSync, "a .sync instruction whose lanes do not agree")
        };
        Err(Fault::new(kind, None, format!("{what}: {}", lines.join(", "))))
    }

    /// Waiting lanes at different places with the same operation and mask, where none is missing.
    fn agreeing(&self, warp: &Warp) -> Option<Vec<(u32, u32)>> {
        let code = &self.grid.program.code;
        for path in warp.paths.iter().filter(|path| code[path.pc as usize].kind.is_masked()) {
            let kind = code[path.pc as usize].kind;
            let wanted = self.mask_of(warp, path.pc, path.mask.trailing_zeros());
            let mut parts = Vec::new();
            let mut found = 0;
            for other in warp.paths.iter().filter(|other| code[other.pc as usize].kind == kind) {
                let mut agree = 0;
                for lane in lanes(other.mask) {
                    if self.mask_of(warp, other.pc, lane) == wanted {
                        agree |= 1 << lane;
                    }
                }
                if agree != 0 {
                    parts.push((other.pc, agree));
                    found |= agree;
                }
            }
            if found & wanted & warp.alive == wanted & warp.alive {
                return Some(parts);
            }
        }
        None
    }

    fn mask_of(&self, warp: &Warp, pc: u32, lane: u32) -> u32 {
        let program = self.grid.program;
        let inst = &program.code[pc as usize];
        let slot = program.sources(inst)[mask_operand(inst.kind)];
        // SAFETY: a word's slot.
        unsafe { warp.lanes.lane::<u32>(slot, lane as usize) }
    }

    fn masked(&mut self, warp: &mut Warp) -> Result<bool, Box<Fault>> {
        let first = warp.lanes.mask.trailing_zeros();
        let wanted = self.mask_of(warp, warp.pc, first);
        let mut agree = 0;
        for lane in lanes(warp.lanes.mask) {
            let own = self.mask_of(warp, warp.pc, lane);
            if own >> lane & 1 == 0 {
                let message = format!("a .sync instruction whose mask {own:#010x} lacks the thread's own lane {lane}");
                return Err(Fault::new(FaultKind::WarpSync, lane, message));
            }
            if own == wanted {
                agree |= 1 << lane;
            }
        }
        if agree & wanted & warp.alive != wanted & warp.alive {
            // Other lanes with another mask at the same place may be complete.
            let rest = warp.lanes.mask & !agree;
            if rest != 0 {
                let pc = warp.pc;
                warp.paths.push(super::warp::Path { pc, mask: agree, waits: true });
                warp.lanes.mask = rest;
                let next = self.mask_of(warp, pc, rest.trailing_zeros());
                let same = lanes(rest).filter(|&lane| self.mask_of(warp, pc, lane) == next);
                let same = same.fold(0u32, |all, lane| all | 1 << lane);
                if same & next & warp.alive == next & warp.alive {
                    return self.run_masked(warp, same);
                }
            }
            return self.wait_for_others(warp);
        }
        self.run_masked(warp, agree)
    }

    /// Executes for some of the lanes at the current place; the others stay.
    fn run_masked(&mut self, warp: &mut Warp, mask: u32) -> Result<bool, Box<Fault>> {
        let rest = warp.lanes.mask & !mask;
        let pc = warp.pc;
        if rest != 0 {
            warp.set_aside(pc, rest, false);
        }
        warp.lanes.mask = mask;
        self.execute_masked(warp, &[(pc, mask)])?;
        warp.lanes.mask = mask;
        warp.pc = pc + 1;
        Ok(false)
    }

    fn execute_masked(&mut self, warp: &mut Warp, parts: &[(u32, u32)]) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let kind = program.code[parts[0].0 as usize].kind;
        let members = parts.iter().fold(0, |all, (_, mask)| all | mask);
        for &(pc, mask) in parts {
            self.observer.issue(pc as usize, mask);
        }
        match kind {
            Kind::WarpBarrier => warp.epoch += 1,
            Kind::Shuffle { mode, with_predicate } => self.shuffle(warp, parts, members, mode, with_predicate)?,
            Kind::Vote { mode, .. } => {
                let mut bits = 0;
                for &(pc, mask) in parts {
                    let inst = &program.code[pc as usize];
                    let Kind::Vote { negated, .. } = inst.kind else { continue };
                    // SAFETY: a predicate's slot.
                    let own = unsafe { warp.lanes.predicate(inst.slots.a) };
                    bits |= mask & if negated { !own } else { own };
                }
                let yes = match mode {
                    Vote::All => bits == members,
                    Vote::Any => bits != 0,
                    Vote::Uniform => bits == 0 || bits == members,
                    Vote::Ballot => false,
                };
                for &(pc, mask) in parts {
                    let to = program.code[pc as usize].slots.d;
                    warp.lanes.mask = mask;
                    // SAFETY: slots of the widths that the vote has.
                    unsafe {
                        if mode == Vote::Ballot {
                            warp.lanes.write(to, &[bits; LANES]);
                        } else {
                            warp.lanes.set_predicate(to, if yes { !0 } else { 0 });
                        }
                    }
                }
            }
            Kind::Redux(operation) => self.redux(warp, parts, operation),
            Kind::Match { bytes } => self.matching(warp, parts, bytes),
            _ => {}
        }
        Ok(())
    }

    fn shuffle(
        &mut self,
        warp: &mut Warp,
        parts: &[(u32, u32)],
        members: u32,
        mode: Shuffle,
        with_predicate: bool,
    ) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let mut values = [0u32; LANES];
        for &(pc, mask) in parts {
            // SAFETY: a word's slot.
            let own: [u32; LANES] = unsafe { warp.lanes.read(program.code[pc as usize].slots.a) };
            for lane in lanes(mask) {
                values[lane as usize] = own[lane as usize];
            }
        }
        for &(pc, mask) in parts {
            let inst = &program.code[pc as usize];
            // SAFETY: words' slots.
            let (by, clamp): ([u32; LANES], [u32; LANES]) =
                unsafe { (warp.lanes.read(inst.slots.b), warp.lanes.read(inst.slots.c)) };
            let mut result = values;
            let mut inside = 0u32;
            for lane in lanes(mask) {
                let (b, c) = (by[lane as usize] & 31, clamp[lane as usize]);
                let (limit, segment) = (c & 31, c >> 8 & 31);
                let low = lane & segment;
                let high = low | (limit & !segment);
                // PTX ISA, shfl.sync: the lane to read, and whether it is within the segment.
                let (from, within) = match mode {
                    Shuffle::Up => {
                        let from = lane as i32 - b as i32;
                        (from, from >= high as i32)
                    }
                    Shuffle::Down => ((lane + b) as i32, lane + b <= high),
                    Shuffle::Butterfly => ((lane ^ b) as i32, lane ^ b <= high),
                    Shuffle::Index => {
                        let from = low | (b & !segment);
                        (from as i32, from <= high)
                    }
                };
                let from = if within { from as u32 } else { lane };
                inside |= u32::from(within) << lane;
                if members >> from & 1 == 0 {
                    let message = format!("lane {lane} reads lane {from}, which does not take part in the shuffle");
                    return Err(Fault::new(FaultKind::WarpSync, lane, message));
                }
                result[lane as usize] = values[from as usize];
            }
            let destinations = program.destinations(inst);
            warp.lanes.mask = mask;
            // SAFETY: slots of the widths that a shuffle has.
            unsafe {
                warp.lanes.write(destinations[0], &result);
                if with_predicate {
                    warp.lanes.set_predicate(destinations[1], inside);
                }
            }
        }
        Ok(())
    }

    fn redux(&mut self, warp: &mut Warp, parts: &[(u32, u32)], operation: Reduction) {
        let program = self.grid.program;
        let mut total: Option<u32> = None;
        for &(pc, mask) in parts {
            // SAFETY: a word's slot.
            let own: [u32; LANES] = unsafe { warp.lanes.read(program.code[pc as usize].slots.a) };
            for lane in lanes(mask) {
                let b = own[lane as usize];
                total = Some(total.map_or(b, |a| match operation {
                    Reduction::Add => a.wrapping_add(b),
                    Reduction::Min => a.min(b),
                    Reduction::Max => a.max(b),
                    Reduction::MinSigned => (a as i32).min(b as i32) as u32,
                    Reduction::MaxSigned => (a as i32).max(b as i32) as u32,
                    Reduction::And => a & b,
                    Reduction::Or => a | b,
                    Reduction::Xor => a ^ b,
                }));
            }
        }
        for &(pc, mask) in parts {
            warp.lanes.mask = mask;
            // SAFETY: a word's slot.
            unsafe { warp.lanes.write(program.code[pc as usize].slots.d, &[total.unwrap_or(0); LANES]) };
        }
    }

    fn matching(&mut self, warp: &mut Warp, parts: &[(u32, u32)], bytes: u8) {
        let program = self.grid.program;
        let mut values = [None; LANES];
        for &(pc, mask) in parts {
            let slot = program.code[pc as usize].slots.a;
            for lane in lanes(mask) {
                // SAFETY: a slot of this width.
                values[lane as usize] = Some(unsafe {
                    if bytes == 8 {
                        warp.lanes.lane::<u64>(slot, lane as usize)
                    } else {
                        u64::from(warp.lanes.lane::<u32>(slot, lane as usize))
                    }
                });
            }
        }
        let same: [u32; LANES] = std::array::from_fn(|lane| {
            (0..LANES).filter(|&other| values[other] == values[lane]).fold(0, |all, other| all | 1 << other)
        });
        for &(pc, mask) in parts {
            warp.lanes.mask = mask;
            // SAFETY: a word's slot.
            unsafe { warp.lanes.write(program.code[pc as usize].slots.d, &same) };
        }
    }

    /// `bar`: the warp arrives. True: it waits.
    fn barrier(&mut self, warp: &mut Warp, inst: &Inst) -> Result<bool, Box<Fault>> {
        let Kind::Barrier { counted, arrive, .. } = inst.kind else { return Ok(false) };
        let lane = warp.lanes.mask.trailing_zeros() as usize;
        // SAFETY: words' slots.
        let (number, count) = unsafe {
            let count = if counted { warp.lanes.lane::<u32>(inst.slots.b, lane) } else { self.threads };
            (warp.lanes.lane::<u32>(inst.slots.a, lane), count)
        };
        let fault = |message: String| Err(Fault::new(FaultKind::Barrier, None, message));
        if number >= 16 {
            return fault(format!("barrier {number}: a block has 16"));
        }
        if counted && (count == 0 || count % 32 != 0) {
            return fault(format!(
                "a barrier of {}: not a multiple of a warp",
                crate::fault::counted(count.into(), "thread")
            ));
        }
        let barrier = &mut self.barriers[number as usize];
        if barrier.expected != 0 && barrier.expected != count {
            return fault(format!("barrier {number} of {count} threads; others came for {}", barrier.expected));
        }
        barrier.expected = count;
        barrier.arrived += if counted { 32 } else { warp.lanes.mask.count_ones() };
        warp.pc += 1;
        if arrive {
            return Ok(false);
        }
        warp.state = State::Waits { barrier: number as u8 };
        Ok(true)
    }
}

/// The lanes of a mask.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        Some(lane)
    })
}
