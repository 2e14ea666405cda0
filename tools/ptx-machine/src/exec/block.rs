//! A block: its warps in turn, barrier to barrier.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use super::lanes::{ALL, LANES, UNIT};
use super::warp::{State, Warp};
use super::{Grid, Observer};
use crate::fault::{Fault, FaultKind, Report, counted};
use crate::ir::op::{Kind, Unknown};
use crate::ir::{Demands, Inst, NO_GUARD};
use crate::memory::shadow::{Moment, SharedShadow};
use crate::parse::{MaskOf, Special, Width};

/// Zeroed bytes at an aligned address.
#[derive(Debug)]
pub(super) struct Buffer {
    at: *mut u8,
    layout: Layout,
}

impl Buffer {
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1).next_multiple_of(1024), 1024).expect("a bounded size");
        // SAFETY: the layout has bytes.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            handle_alloc_error(layout);
        }
        Self { at, layout }
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.at
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: this many bytes are owned and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.at, self.layout) };
    }
}

// SAFETY: owned bytes.
unsafe impl Send for Buffer {}
// SAFETY: shared only to be read.
unsafe impl Sync for Buffer {}

/// The program's constants with a launch's parameters.
pub(super) fn constants(grid: &Grid<'_>) -> Result<Buffer, Box<Report>> {
    let program = grid.program;
    let mut buffer = Buffer::new(program.constants.len() + 4 * UNIT);
    buffer.bytes_mut()[..program.constants.len()].copy_from_slice(&program.constants);
    for param in &program.params {
        let (from, bytes) = (param.offset as usize, usize::from(param.bytes));
        let mut value = [0u8; 8];
        let Some(source) = grid.params.get(from..from + bytes) else {
            return Err(Box::new(Report {
                kind: FaultKind::Launch,
                kernel: program.name.clone(),
                module: program.module.clone(),
                line: 0,
                source: None,
                block: [0; 3],
                thread: None,
                message: "fewer parameters than the kernel reads".into(),
            }));
        };
        value[..bytes].copy_from_slice(source);
        if param.signed && value[bytes - 1] & 0x80 != 0 {
            value[bytes..].fill(0xff);
        }
        let width = match param.width {
            Width::Pred | Width::B16 => 2,
            Width::B32 => 4,
            Width::B64 => 8,
        };
        let to = &mut buffer.bytes_mut()[param.unit * UNIT..][..width * LANES];
        to.chunks_exact_mut(width).for_each(|lane| lane.copy_from_slice(&value[..width]));
    }
    Ok(buffer)
}

/// A barrier of the block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Barrier {
    pub arrived: u32,
    pub expected: u32,
}

/// The executor of blocks, one after another, on one core.
pub(super) struct Worker<'g, const CHECKED: bool, O> {
    pub grid: &'g Grid<'g>,
    pub observer: O,
    _registers: Buffer,
    pub shared: Buffer,
    pub shared_bytes: u64,
    pub shadow: SharedShadow,
    pub local: Buffer,
    /// A byte a byte of local memory: not 0 where it was written.
    pub local_written: Vec<u8>,
    pub warps: Vec<Warp>,
    pub threads: u32,
    pub block: [u32; 3],
    pub block_index: u64,
    pub epoch: u32,
    pub barriers: [Barrier; 16],
    /// The allocation that each operation accessed last, start and end.
    pub caches: Vec<(u64, u64)>,
    /// Copies of the block's threads that have not landed.
    pub copies: u32,
    pub steps: u64,
    /// A barrier of the block lies behind a thread's `griddepcontrol.wait`.
    pub waited: bool,
}

impl<'g, const CHECKED: bool, O: Observer> Worker<'g, CHECKED, O> {
    pub fn new(grid: &'g Grid<'g>, constants: &Buffer, observer: O) -> Self {
        let program = grid.program;
        let threads: u32 = grid.block.iter().product();
        let count = threads.div_ceil(LANES as u32) as usize;
        let bytes = program.units * UNIT;
        let registers = Buffer::new(bytes * count);
        let shared_bytes = u64::from(program.static_shared) + u64::from(grid.dynamic_shared);
        let local_bytes = program.local_bytes as usize * count * LANES;
        let warps = (0..count)
            .map(|index| {
                let mut warp = Warp::new();
                warp.index = index as u32;
                warp.lanes.constants = constants.as_ptr();
                // SAFETY: within the buffer.
                warp.lanes.registers = unsafe { registers.as_ptr().add(index * bytes) };
                let lanes = (threads - index as u32 * 32).min(32);
                warp.present = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
                warp.written = vec![0; program.doubtful.len()];
                warp
            })
            .collect();
        Self {
            grid,
            observer,
            _registers: registers,
            shared: Buffer::new(shared_bytes as usize),
            shared_bytes,
            shadow: SharedShadow::default(),
            local: Buffer::new(local_bytes),
            local_written: vec![0; if CHECKED { local_bytes } else { 0 }],
            warps,
            threads,
            block: [0; 3],
            block_index: 0,
            epoch: 0,
            barriers: [Barrier::default(); 16],
            caches: vec![(0, 0); program.code.len()],
            copies: 0,
            steps: 0,
            waited: false,
        }
    }

    pub fn into_observer(self) -> O {
        self.observer
    }

    /// Executes a block.
    pub fn run(&mut self, index: u64) -> Result<(), Box<Report>> {
        self.begin(index);
        loop {
            let mut progress = false;
            let mut done = true;
            for number in 0..self.warps.len() {
                match self.warps[number].state {
                    State::Done => continue,
                    State::Ready => {
                        progress = true;
                        let mut warp = std::mem::replace(&mut self.warps[number], Warp::new());
                        let outcome = self.run_warp(&mut warp);
                        self.warps[number] = warp;
                        outcome.map_err(|fault| self.report(number, *fault))?;
                    }
                    State::Waits { .. } => {}
                }
                done &= self.warps[number].state == State::Done;
            }
            if done {
                return Ok(());
            }
            if !self.release_barriers() && !progress {
                return Err(self.stuck());
            }
        }
    }

    fn begin(&mut self, index: u64) {
        let [x, y, _] = self.grid.grid.map(u64::from);
        self.block = [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32];
        self.block_index = index;
        self.epoch = 0;
        self.barriers = [Barrier::default(); 16];
        self.copies = 0;
        self.steps = 0;
        self.waited = false;
        // Shared and local memory hold no numbers when a block begins.
        if CHECKED {
            self.shared.bytes_mut().fill(0xff);
            self.shadow.begin(self.shared_bytes);
            self.local_written.fill(0);
        }
        let mut warps = std::mem::take(&mut self.warps);
        for warp in &mut warps {
            warp.alive = warp.present;
            warp.lanes.mask = warp.present;
            warp.pc = 0;
            warp.paths.clear();
            warp.limit = u32::MAX;
            warp.epoch = 0;
            warp.waited = 0;
            warp.state = State::Ready;
            warp.copies.clear();
            warp.groups = [0; 32];
            warp.written.fill(0);
            self.fill_specials(warp);
        }
        self.warps = warps;
    }

    fn fill_specials(&self, warp: &mut Warp) {
        let [bx, by, _] = self.grid.block;
        for place in &self.grid.program.specials {
            let value = |lane: u32| -> u32 {
                let thread = warp.index * 32 + lane;
                match place.special {
                    Special::Tid(0) => thread % bx,
                    Special::Tid(1) => thread / bx % by,
                    Special::Tid(_) => thread / (bx * by),
                    Special::Ntid(of) => self.grid.block[usize::from(of)],
                    Special::Ctaid(of) => self.block[usize::from(of)],
                    Special::Nctaid(of) => self.grid.grid[usize::from(of)],
                    Special::LaneId => lane,
                    Special::WarpId => warp.index,
                    Special::NWarpId => self.threads.div_ceil(32),
                    Special::LaneMask(which) => {
                        let own = 1u32 << lane;
                        match which {
                            MaskOf::Equal => own,
                            MaskOf::Less => own - 1,
                            MaskOf::LessEqual => own | (own - 1),
                            MaskOf::Greater => !(own | (own - 1)),
                            MaskOf::GreaterEqual => !(own - 1),
                        }
                    }
                    Special::SmId => 0,
                    Special::NSmId => 1,
                    Special::DynamicShared => self.grid.dynamic_shared,
                    Special::TotalShared => self.shared_bytes as u32,
                    Special::Clock | Special::Clock64 => 0,
                }
            };
            let values: [u32; 32] = std::array::from_fn(|lane| value(lane as u32));
            for (lane, value) in values.into_iter().enumerate() {
                // SAFETY: the slot is a word's, within the warp's registers.
                unsafe { warp.lanes.set_lane(place.slot, lane, value) };
            }
        }
    }

    /// Lets the warps go on whose barrier is complete.
    fn release_barriers(&mut self) -> bool {
        let mut any = false;
        for number in 0..self.barriers.len() {
            let barrier = &mut self.barriers[number];
            if barrier.expected == 0 || barrier.arrived < barrier.expected {
                continue;
            }
            *barrier = Barrier::default();
            self.epoch += 1;
            any = true;
            for warp in &mut self.warps {
                if warp.state == (State::Waits { barrier: number as u8 }) {
                    warp.state = State::Ready;
                    warp.epoch = 0;
                    self.waited |= warp.waited != 0;
                }
            }
        }
        any
    }

    fn stuck(&self) -> Box<Report> {
        let number = self.warps.iter().position(|warp| warp.state != State::Done).unwrap_or(0);
        let (gone, waiting) = self.warps.iter().fold((0, 0), |(gone, waiting), warp| {
            (gone + u64::from((warp.present & !warp.alive).count_ones()), waiting + u64::from(warp.alive.count_ones()))
        });
        let (waiting, gone) = (counted(waiting, "thread"), counted(gone, "other"));
        let message = format!("a barrier at which there wait {waiting}; {gone} left the kernel");
        self.report(number, Fault { kind: FaultKind::Barrier, lane: None, message })
    }

    /// When `lane 0` of a warp acts.
    #[inline(always)]
    pub fn moment(&self, warp: &Warp) -> Moment {
        Moment::new(self.block_index, warp.index * 32, self.epoch, warp.epoch)
    }

    fn report(&self, number: usize, fault: Fault) -> Box<Report> {
        let (program, warp) = (self.grid.program, &self.warps[number]);
        let lane = fault.lane.unwrap_or(warp.lanes.mask.trailing_zeros().min(31));
        let [bx, by, _] = self.grid.block;
        let thread = warp.index * 32 + lane;
        // A warp that waits at a barrier is behind it already.
        let at = warp.pc as usize - usize::from(matches!(warp.state, State::Waits { .. }));
        Box::new(Report {
            kind: fault.kind,
            kernel: program.name.clone(),
            module: program.module.clone(),
            line: program.lines.get(at).map_or(0, |line| line.ptx),
            source: program.source_line(at),
            block: self.block,
            thread: Some([thread % bx, thread / bx % by, thread / (bx * by)]),
            message: fault.message,
        })
    }

    /// Executes a warp until it waits or is done.
    fn run_warp(&mut self, warp: &mut Warp) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let code: &[Inst] = &program.code;
        loop {
            if warp.pc >= warp.limit && !warp.select(false) {
                return Ok(());
            }
            let at = warp.pc as usize;
            let inst = &code[at];
            let all = warp.lanes.mask;
            let mut mask = all;
            if inst.guard != NO_GUARD {
                // SAFETY: decoded slots lie within the registers.
                let bits = unsafe { warp.lanes.predicate(inst.guard) };
                mask &= if inst.negated { !bits } else { bits };
            }
            self.steps += 1;
            if CHECKED && let Some(demands) = program.demands(inst) {
                self.demand(warp, demands, inst, all, mask)?;
            }
            match inst.kind {
                Kind::Lanes => {
                    self.observer.issue(at, mask);
                    warp.lanes.mask = mask;
                    // SAFETY: decoded slots have the operation's widths and lie within registers and constants.
                    unsafe { (inst.run)(&mut warp.lanes, &inst.slots) };
                    warp.lanes.mask = all;
                    warp.pc += 1;
                }
                Kind::Branch(to) => {
                    self.observer.issue(at, mask);
                    self.branch(warp, to, mask)?;
                }
                Kind::Exit => {
                    self.observer.issue(at, mask);
                    let rest = all & !mask;
                    warp.lanes.mask = mask;
                    warp.leave();
                    warp.lanes.mask = rest;
                    warp.pc += 1;
                    if rest == 0 && !warp.select(false) {
                        warp.state = State::Done;
                        return Ok(());
                    }
                }
                _ if mask == 0 => {
                    self.observer.issue(at, 0);
                    warp.pc += 1;
                }
                kind if kind.is_aligned() || kind.is_masked() => {
                    if self.together(warp, kind, mask)? {
                        return Ok(());
                    }
                }
                _ => {
                    self.observer.issue(at, mask);
                    warp.lanes.mask = mask;
                    let outcome = self.other(warp, inst, at);
                    warp.lanes.mask = all;
                    outcome?;
                    warp.pc += 1;
                }
            }
        }
    }

    /// Follows which lanes of doubtful registers hold a value.
    #[inline(never)]
    fn demand(&self, warp: &mut Warp, demands: &Demands, inst: &Inst, all: u32, mask: u32) -> Result<(), Box<Fault>> {
        let fault = |reg: u32, missing: u32| {
            let name = &self.grid.program.doubtful[reg as usize];
            let message = format!("what it does depends on {name}, which this thread never gave a value");
            Err(Fault::new(FaultKind::UnwrittenRegister, missing.trailing_zeros(), message))
        };
        let known = |warp: &Warp, reg: Option<u32>| reg.map_or(ALL, |reg| warp.written[reg as usize]);
        if let Some(reg) = demands.guard {
            let missing = all & !warp.written[reg as usize];
            if missing != 0 {
                return fault(reg, missing);
            }
        }
        // SAFETY: the sources are predicates where the operation says so.
        let predicate = |slot| unsafe { warp.lanes.predicate(slot) };
        let of = |index: usize| known(warp, demands.reads.get(index).copied().flatten());
        let (a, b) = (of(0), of(1));
        let result = match demands.unknown {
            Unknown::Demands => {
                for reg in demands.reads.iter().flatten() {
                    let missing = mask & !warp.written[*reg as usize];
                    if missing != 0 {
                        return fault(*reg, missing);
                    }
                }
                ALL
            }
            Unknown::Passes => demands.reads.iter().fold(ALL, |all, &reg| all & known(warp, reg)),
            Unknown::Selects => {
                let bits = predicate(inst.slots.c);
                ((bits & a) | (!bits & b)) & of(2)
            }
            Unknown::And => (a & b) | (a & !predicate(inst.slots.a)) | (b & !predicate(inst.slots.b)),
            Unknown::Or => (a & b) | (a & predicate(inst.slots.a)) | (b & predicate(inst.slots.b)),
        };
        for &reg in &demands.writes {
            let word = &mut warp.written[reg as usize];
            *word = (*word & !mask) | (result & mask);
        }
        Ok(())
    }

    #[inline(always)]
    fn branch(&mut self, warp: &mut Warp, to: u32, taken: u32) -> Result<(), Box<Fault>> {
        if self.steps > self.grid.limits.steps {
            let message = format!("does not end: {} warp instructions in one block", self.steps);
            return Err(Fault::new(FaultKind::Endless, None, message));
        }
        let rest = warp.lanes.mask & !taken;
        if rest == 0 {
            warp.pc = to;
        } else if taken == 0 {
            warp.pc += 1;
        } else {
            let next = warp.pc + 1;
            let (near, far) = if to < next { ((to, taken), (next, rest)) } else { ((next, rest), (to, taken)) };
            warp.set_aside(far.0, far.1, false);
            (warp.pc, warp.lanes.mask) = near;
        }
        Ok(())
    }

    fn divide(&mut self, warp: &mut Warp, inst: &Inst, width: Width) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let is_zero = |lane: usize| {
            // SAFETY: the divisor's slot, of this width.
            unsafe {
                match width {
                    Width::B64 => warp.lanes.lane::<u64>(inst.slots.b, lane) == 0,
                    Width::B32 => warp.lanes.lane::<u32>(inst.slots.b, lane) == 0,
                    _ => warp.lanes.lane::<u16>(inst.slots.b, lane) == 0,
                }
            }
        };
        let zeros = (0..LANES).fold(0u32, |all, lane| all | u32::from(is_zero(lane)) << lane);
        // The result of a divisor that nobody computed counts only where it is used.
        let known = match program.demands(inst).and_then(|demands| demands.reads.get(1).copied().flatten()) {
            Some(reg) if CHECKED => warp.written[reg as usize],
            Some(_) => 0,
            None => ALL,
        };
        let wrong = zeros & known & warp.lanes.mask;
        if wrong != 0 {
            let message = "divides an integer by zero, which gives any value";
            return Err(Fault::new(FaultKind::DivisionByZero, wrong.trailing_zeros(), message));
        }
        // SAFETY: as for `Kind::Lanes`.
        unsafe { (inst.run)(&mut warp.lanes, &inst.slots) };
        Ok(())
    }

    fn other(&mut self, warp: &mut Warp, inst: &Inst, at: usize) -> Result<(), Box<Fault>> {
        match inst.kind {
            Kind::Divide(width) => self.divide(warp, inst, width),
            Kind::Load(memory) => self.load(warp, inst, at, memory),
            Kind::Store(memory) => self.store(warp, inst, at, memory),
            Kind::Atomic(memory, operation, returns) => self.atomic(warp, inst, at, memory, operation, returns),
            Kind::AsyncCopy { .. } => self.async_copy(warp, inst, at),
            Kind::AsyncCommit => {
                Self::async_commit(warp);
                Ok(())
            }
            Kind::AsyncWait(groups) => self.async_wait(warp, Some(groups)),
            Kind::AsyncWaitAll => self.async_wait(warp, None),
            Kind::GridWait => {
                warp.waited |= warp.lanes.mask;
                Ok(())
            }
            Kind::Trap => Err(Fault::new(FaultKind::Trap, None, "a trap")),
            Kind::ActiveMask => {
                let mask = warp.lanes.mask;
                // SAFETY: a word's slot.
                unsafe { warp.lanes.write(inst.slots.d, &[mask; 32]) };
                Ok(())
            }
            Kind::Clock { wide } => {
                // SAFETY: a slot of the width.
                unsafe {
                    if wide {
                        warp.lanes.write(inst.slots.d, &[self.steps; 32]);
                    } else {
                        warp.lanes.write(inst.slots.d, &[self.steps as u32; 32]);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
