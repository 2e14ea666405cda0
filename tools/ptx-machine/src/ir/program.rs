//! The compact form of a kernel that is executed.

use std::collections::{BTreeMap, HashMap};

use super::class::Cost;
use super::decode::{self, Layout, truncated};
use super::flow::{self, Flow};
use super::op::{Kind, Source, Step, Unknown};
use crate::exec::lanes::{Lanes, Run, Slot, Slots, UNIT, level};
use crate::parse::{Entry, Module, Place, PtxError, Reg, Space, Special, VariableRef, Width};

/// [`Inst::guard`] of an instruction without one.
pub const NO_GUARD: Slot = Slot(i32::MIN);

/// [`Inst::demands`] where every source was written for certain.
const NOTHING: u32 = u32::MAX;

/// The most calls that a place in the sources is shown with.
const MOST_CALLS: usize = 12;

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Inst {
    pub run: Run,
    pub kind: Kind,
    pub slots: Slots,
    pub guard: Slot,
    pub negated: bool,
    /// Where its slots begin in [`Program::slots`]: the destinations, then the sources.
    pub wide: u32,
    pub destinations: u8,
    pub sources: u8,
    demands: u32,
}

/// The demand of an operation on doubtful registers.
#[derive(Clone, Debug)]
pub struct Demands {
    /// Doubtful registers that are read, by their number among the doubtful ones; none for other sources.
    pub reads: Vec<Option<u32>>,
    pub guard: Option<u32>,
    pub writes: Vec<u32>,
    pub unknown: Unknown,
}

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    pub ptx: u32,
    /// One of [`Program::places`].
    pub place: Option<u32>,
}

/// A special register's place in a warp's registers.
#[derive(Clone, Copy, Debug)]
pub struct SpecialSlot {
    pub special: Special,
    pub slot: Slot,
}

#[derive(Clone, Copy, Debug)]
pub struct ParamSlot {
    pub unit: usize,
    pub offset: u32,
    pub bytes: u8,
    pub signed: bool,
    pub width: Width,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Program {
    pub name: String,
    pub module: String,
    pub code: Vec<Inst>,
    pub slots: Vec<Slot>,
    pub lines: Vec<Line>,
    /// The cost of each operation.
    pub costs: Vec<Cost>,
    pub files: HashMap<u32, String>,
    pub places: Vec<Place>,
    /// Units of a warp's registers.
    pub units: usize,
    /// The constants, parameters still zero.
    pub constants: Vec<u8>,
    pub params: Vec<ParamSlot>,
    pub specials: Vec<SpecialSlot>,
    /// Name of each doubtful register.
    pub doubtful: Vec<String>,
    demands: Vec<Demands>,
    pub param_bytes: u32,
    /// Offset and size of each parameter, in order.
    pub param_list: Vec<(u32, u32)>,
    /// Bytes before the dynamic shared memory.
    pub static_shared: u32,
    /// Bytes of a thread.
    pub local_bytes: u32,
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    /// Blocks that a multiprocessor is to have at once, for which a compiler saves registers.
    pub min_blocks: u32,
    /// The most registers of a thread that the kernel allows a compiler.
    pub max_registers: Option<u32>,
    /// Registers that a compiler would need, about: the most 32-bit values alive at once.
    pub registers: u32,
}

impl Program {
    /// Decodes a kernel. `globals` are the addresses of the module's variables, by index (unused for shared ones).
    ///
    /// # Errors
    /// The first instruction that is not known.
    pub fn build(module: &Module, entry: &Entry, globals: &[u64]) -> Result<Self, PtxError> {
        let (layout, static_shared, local_bytes) = layout(module, entry, globals)?;
        let decoded = decode::decode(module, entry, &layout)?;
        let mut first = Vec::with_capacity(decoded.len() + 1);
        let (mut steps, mut lines, mut costs) = (Vec::new(), Vec::new(), Vec::new());
        for (instruction, parts) in entry.body.iter().zip(decoded) {
            let from = steps.len();
            first.push(from as u32);
            for step in parts {
                let dropped = step.kind == Kind::Lanes && step.destinations.iter().all(Option::is_none);
                if !dropped {
                    costs.push(if steps.len() == from { Cost::of(instruction, step.kind) } else { Cost::PART });
                    steps.push(step);
                    lines.push(Line { ptx: instruction.line, place: instruction.place });
                }
            }
        }
        first.push(steps.len() as u32);
        steps.push(Step::new(Kind::Exit));
        costs.push(Cost::PART);
        lines.push(lines.last().copied().unwrap_or(Line { ptx: entry.line, ..Line::default() }));
        for step in &mut steps {
            if let Kind::Branch(to) = &mut step.kind {
                *to = first[*to as usize];
            }
        }
        let names = renumber(&mut steps, entry);
        let Some(flow) = flow::analyse(&steps, names.len()) else {
            let message = format!("the kernel {} is too large", entry.name);
            return Err(PtxError { file: module.name.clone(), line: entry.line, message });
        };
        let mut builder = Builder::new(&names, &flow);
        let code = steps.iter().map(|step| builder.lower(step)).collect();
        Ok(Self {
            name: entry.name.clone(),
            module: module.name.clone(),
            code,
            slots: builder.slots,
            lines,
            costs,
            files: module.files.clone(),
            places: entry.places.clone(),
            units: builder.units,
            constants: builder.constants,
            params: builder.params,
            specials: builder.specials.into_values().collect(),
            doubtful: builder.doubtful_names,
            demands: builder.demands,
            param_bytes: entry.param_bytes,
            param_list: entry.params.iter().map(|param| (param.offset, param.size)).collect(),
            static_shared,
            local_bytes,
            max_threads: entry.max_threads,
            required_threads: entry.required_threads,
            min_blocks: entry.min_blocks.unwrap_or(1),
            max_registers: entry.max_registers,
            registers: builder.pressure.max(8) + 8,
        })
    }

    /// The demand of an operation on doubtful registers.
    pub fn demands(&self, inst: &Inst) -> Option<&Demands> {
        if inst.demands == NOTHING { None } else { self.demands.get(inst.demands as usize) }
    }

    pub fn destinations(&self, inst: &Inst) -> &[Slot] {
        &self.slots[inst.wide as usize..][..usize::from(inst.destinations)]
    }

    pub fn sources(&self, inst: &Inst) -> &[Slot] {
        &self.slots[inst.wide as usize + usize::from(inst.destinations)..][..usize::from(inst.sources)]
    }

    /// Where an operation stands in the sources, if line tables are there: file and line where it was written, and those of the
    /// calls that were inlined, up to the kernel.
    pub fn source_places(&self, index: usize) -> Vec<(&str, u32)> {
        let mut next = self.lines.get(index).and_then(|line| line.place);
        let mut places = Vec::new();
        for _ in 0..MOST_CALLS {
            let Some(place) = next.and_then(|place| self.places.get(place as usize)) else { break };
            let Some(file) = self.files.get(&place.at.file) else { break };
            places.push((file.as_str(), place.at.line));
            next = place.caller;
        }
        places
    }

    /// [`Program::source_places`] in words.
    pub fn source_line(&self, index: usize) -> Option<String> {
        let places = self.source_places(index);
        let shown: Vec<String> = places.iter().map(|(file, line)| format!("{file}:{line}")).collect();
        (!shown.is_empty()).then(|| shown.join(", called at "))
    }
}

/// Offsets of the kernel's own variables, its static shared memory and its threads' local memory, in bytes.
fn layout(module: &Module, entry: &Entry, globals: &[u64]) -> Result<(Layout, u32, u32), PtxError> {
    let mut layout = Layout { module: globals.to_vec(), entry: vec![0; entry.variables.len()] };
    layout.module.resize(module.variables.len(), 0);
    let (mut shared, mut local) = (0u64, 0u64);
    let mut used = vec![false; module.variables.len()];
    let mut visit = |operand: &crate::parse::Operand| {
        let mut mark = |variable: &VariableRef| {
            if let VariableRef::Module(index) = variable {
                used[*index as usize] = true;
            }
        };
        match operand {
            crate::parse::Operand::Variable(variable) => mark(variable),
            crate::parse::Operand::Address(crate::parse::Base::Variable(variable), _) => mark(variable),
            _ => {}
        }
    };
    entry.body.iter().flat_map(|instruction| &instruction.operands).for_each(&mut visit);
    let mut dynamic = Vec::new();
    let mut dynamic_align = 16;
    for (index, variable) in module.variables.iter().enumerate() {
        if variable.space == Space::Shared && used[index] {
            if variable.external {
                dynamic.push(index);
                dynamic_align = dynamic_align.max(variable.align);
                continue;
            }
            shared = shared.next_multiple_of(variable.align);
            layout.module[index] = shared;
            shared += variable.size;
        }
    }
    for (index, variable) in entry.variables.iter().enumerate() {
        let end = if variable.space == Space::Shared { &mut shared } else { &mut local };
        *end = end.next_multiple_of(variable.align);
        layout.entry[index] = *end;
        *end += variable.size;
    }
    if !dynamic.is_empty() {
        shared = shared.next_multiple_of(dynamic_align);
    }
    for index in dynamic {
        layout.module[index] = shared;
    }
    let fault = |message: String| PtxError { file: module.name.clone(), line: entry.line, message };
    if shared > decode::WINDOW_BYTES {
        return Err(fault(format!("{} wants {shared} bytes of shared memory", entry.name)));
    }
    if local > 512 << 10 {
        return Err(fault(format!("{} wants {local} bytes of local memory a thread", entry.name)));
    }
    Ok((layout, shared as u32, local as u32))
}

/// Registers by number of those that are used; returns their names and widths.
fn renumber(steps: &mut [Step], entry: &Entry) -> Vec<(String, Width)> {
    let mut numbers: HashMap<Reg, Reg> = HashMap::new();
    let mut names = Vec::new();
    let mut number = |reg: &mut Reg| {
        *reg = *numbers.entry(*reg).or_insert_with(|| {
            let register = &entry.registers[*reg as usize];
            names.push((register.name.clone(), register.width));
            names.len() as Reg - 1
        });
    };
    for step in steps {
        if let Some((reg, _)) = &mut step.guard {
            number(reg);
        }
        step.destinations.iter_mut().flatten().for_each(&mut number);
        for source in &mut step.sources {
            if let Source::Reg(reg) = source {
                number(reg);
            }
        }
    }
    names
}

fn units(width: Width) -> usize {
    match width {
        Width::Pred | Width::B16 => 1,
        Width::B32 => 2,
        Width::B64 => 4,
    }
}

struct Builder {
    registers: Vec<Slot>,
    widths: Vec<Width>,
    units: usize,
    pressure: u32,
    constants: Vec<u8>,
    values: HashMap<Source, Slot>,
    params: Vec<ParamSlot>,
    specials: BTreeMap<String, SpecialSlot>,
    slots: Vec<Slot>,
    doubtful: HashMap<Reg, u32>,
    doubtful_names: Vec<String>,
    demands: Vec<Demands>,
    sink: Slot,
}

impl Builder {
    fn new(names: &[(String, Width)], flow: &Flow) -> Self {
        let widths: Vec<Width> = names.iter().map(|(_, width)| *width).collect();
        // Work without a preference goes to the first units.
        let mut top = units(Width::B64);
        let (registers, pressure) = allocate(&widths, flow, &mut top);
        let mut doubtful_names = Vec::new();
        let mut doubtful = HashMap::new();
        for (reg, name) in names.iter().enumerate().filter(|(reg, _)| flow.doubtful[*reg]) {
            doubtful.insert(reg as Reg, doubtful_names.len() as u32);
            doubtful_names.push(name.0.clone());
        }
        Self {
            registers,
            widths,
            units: top,
            pressure,
            constants: Vec::new(),
            values: HashMap::new(),
            params: Vec::new(),
            specials: BTreeMap::new(),
            slots: Vec::new(),
            doubtful,
            doubtful_names,
            demands: Vec::new(),
            sink: Slot(0),
        }
    }

    fn constant(&mut self, width: Width, value: u64) -> usize {
        let unit = self.constants.len() / UNIT;
        let bytes = units(width) * UNIT;
        match width {
            Width::Pred => {
                let bits: u32 = if value != 0 { !0 } else { 0 };
                self.constants.extend_from_slice(&bits.to_le_bytes());
            }
            _ => {
                let one = &value.to_le_bytes()[..width.bits() as usize / 8];
                (0..crate::exec::lanes::LANES).for_each(|_| self.constants.extend_from_slice(one));
            }
        }
        self.constants.resize(unit * UNIT + bytes, 0);
        unit
    }

    fn source(&mut self, source: Source) -> Slot {
        if let Source::Reg(reg) = source {
            return self.registers[reg as usize];
        }
        if let Some(&slot) = self.values.get(&source) {
            return slot;
        }
        let slot = match source {
            Source::Value(value, width) => Slot(!(self.constant(width, truncated(value, width)) as i32)),
            Source::Param { offset, bytes, signed, width } => {
                let unit = self.constant(width, 0);
                self.params.push(ParamSlot { unit, offset, bytes, signed, width });
                Slot(!(unit as i32))
            }
            Source::Special(special) => {
                let slot = Slot(self.units as i32);
                self.units += units(Width::B32);
                self.specials.insert(format!("{special:?}"), SpecialSlot { special, slot });
                slot
            }
            Source::Reg(_) => unreachable!("looked at above"),
        };
        self.values.insert(source, slot);
        slot
    }

    fn lower(&mut self, step: &Step) -> Inst {
        unsafe fn nothing(_: &mut Lanes, _: &Slots) {}
        let destinations: Vec<Slot> = step
            .destinations
            .iter()
            .map(|register| register.map_or(self.sink, |reg| self.registers[reg as usize]))
            .collect();
        let sources: Vec<Slot> = step.sources.iter().map(|&source| self.source(source)).collect();
        let at = |list: &[Slot], index: usize| list.get(index).copied().unwrap_or(self.sink);
        let slots = Slots { d: at(&destinations, 0), a: at(&sources, 0), b: at(&sources, 1), c: at(&sources, 2) };
        let wide = self.slots.len() as u32;
        let counts = (destinations.len() as u8, sources.len() as u8);
        self.slots.extend(destinations);
        self.slots.extend(sources);
        let (guard, negated) = match step.guard {
            Some((reg, negated)) => (self.registers[reg as usize], negated),
            None => (NO_GUARD, false),
        };
        let number = |reg: Reg| self.doubtful.get(&reg).copied();
        let demanded = Demands {
            reads: step
                .sources
                .iter()
                .map(|source| if let Source::Reg(reg) = source { number(*reg) } else { None })
                .collect(),
            guard: step.guard.and_then(|(reg, _)| number(reg)),
            writes: flow::writes(step).filter_map(number).collect(),
            unknown: step.unknown,
        };
        let known =
            demanded.reads.iter().all(Option::is_none) && demanded.guard.is_none() && demanded.writes.is_empty();
        let demands = if known {
            NOTHING
        } else {
            self.demands.push(demanded);
            self.demands.len() as u32 - 1
        };
        debug_assert_eq!(self.widths.len(), self.registers.len());
        let run = step.run.map_or(nothing as Run, |levels| levels[level()]);
        Inst { run, kind: step.kind, slots, guard, negated, wide, destinations: counts.0, sources: counts.1, demands }
    }
}

/// Places for registers, those used again whose owner is dead; and the most 32-bit values alive at once.
fn allocate(widths: &[Width], flow: &Flow, top: &mut usize) -> (Vec<Slot>, u32) {
    let mut order: Vec<usize> = (0..widths.len()).filter(|&reg| flow.intervals[reg].is_some()).collect();
    order.sort_by_key(|&reg| flow.intervals[reg].map_or(0, |interval| interval.start));
    let mut slots = vec![Slot(0); widths.len()];
    let mut free: [Vec<i32>; 5] = Default::default();
    let mut active = std::collections::BinaryHeap::new();
    let (mut alive, mut most) = (0u32, 0u32);
    let words = |width: Width| match width {
        Width::Pred => 0,
        Width::B16 | Width::B32 => 1,
        Width::B64 => 2,
    };
    for reg in order {
        let Some(interval) = flow.intervals[reg] else { continue };
        while let Some(&std::cmp::Reverse((end, other))) = active.peek() {
            if end >= interval.start {
                break;
            }
            active.pop();
            let other: usize = other;
            free[units(widths[other])].push(slots[other].0);
            alive -= words(widths[other]);
        }
        let size = units(widths[reg]);
        let at = free[size].pop().unwrap_or_else(|| {
            let at = *top as i32;
            *top += size;
            at
        });
        slots[reg] = Slot(at);
        active.push(std::cmp::Reverse((interval.end, reg)));
        alive += words(widths[reg]);
        most = most.max(alive);
    }
    (slots, most)
}
