//! Opcodes, their modifiers and operands: a table by families. What is not in it is an error.

mod convert;
mod float;
mod integer;
mod memory;
mod moves;
mod warp;

use super::op::{Kind, Source, Step, Unknown};
use crate::exec::lanes::Levels;
use crate::parse::{Base, Entry, Instruction, Module, Operand, PtxError, Reg, Space, VariableRef, Width};

/// Why an instruction is not understood, without its place.
pub(crate) type Fault = String;
pub(crate) type Decoded = Result<Option<Vec<Step>>, Fault>;

/// Where a generic address finds shared and local memory. Global addresses lie elsewhere.
pub const SHARED_WINDOW: u64 = 1 << 40;
pub const LOCAL_WINDOW: u64 = 2 << 40;
/// Bytes of a window.
pub const WINDOW_BYTES: u64 = 1 << 24;

/// Where the variables of a kernel are: by index, offsets within shared or local memory, addresses otherwise.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub module: Vec<u64>,
    pub entry: Vec<u64>,
}

/// One instruction in the making.
pub(crate) struct Decoder<'m> {
    pub module: &'m Module,
    pub entry: &'m Entry,
    pub layout: &'m Layout,
    pub instruction: &'m Instruction,
    /// The opcode's first word.
    pub base: &'m str,
    /// Its modifiers that are not used up.
    pub modifiers: Vec<&'m str>,
}

/// Decodes a kernel: the steps of each instruction.
///
/// # Errors
/// The first instruction that is not known, with its line.
pub fn decode(module: &Module, entry: &Entry, layout: &Layout) -> Result<Vec<Vec<Step>>, PtxError> {
    let mut all = Vec::with_capacity(entry.body.len());
    for instruction in &entry.body {
        let mut words = instruction.opcode.split('.');
        let base = words.next().unwrap_or_default();
        let mut decoder = Decoder { module, entry, layout, instruction, base, modifiers: words.collect() };
        let mut steps = decoder.decode().map_err(|message| PtxError {
            file: module.name.clone(),
            line: instruction.line,
            message: format!("{}: {message}", instruction.opcode),
        })?;
        for step in &mut steps {
            step.guard = instruction.guard;
        }
        all.push(steps);
    }
    Ok(all)
}

impl<'m> Decoder<'m> {
    fn decode(&mut self) -> Result<Vec<Step>, Fault> {
        let families = [
            Self::integer as fn(&mut Self) -> Decoded,
            Self::float,
            Self::data_movement,
            Self::convert,
            Self::memory,
            Self::warp,
        ];
        for family in families {
            if let Some(steps) = family(self)? {
                return match self.modifiers.first() {
                    Some(modifier) => Err(format!("unknown modifier .{modifier}")),
                    None => Ok(steps),
                };
            }
        }
        Err("unknown instruction".into())
    }

    /// Uses up a modifier.
    pub fn takes(&mut self, modifier: &str) -> bool {
        match self.modifiers.iter().position(|&other| other == modifier) {
            Some(at) => {
                self.modifiers.remove(at);
                true
            }
            None => false,
        }
    }

    /// Uses up the first of these modifiers that is there.
    pub fn takes_one(&mut self, of: &[&'static str]) -> Option<&'static str> {
        of.iter().copied().find(|&modifier| self.takes(modifier))
    }

    /// Uses up the last modifier, the type.
    pub fn kind(&mut self) -> Result<&'m str, Fault> {
        self.modifiers.pop().ok_or_else(|| "a type is missing".into())
    }

    pub fn operand(&self, index: usize) -> Result<&'m Operand, Fault> {
        self.instruction.operands.get(index).ok_or_else(|| format!("operand {} is missing", index + 1))
    }

    pub fn count(&self) -> usize {
        self.instruction.operands.len()
    }

    pub fn expects(&self, operands: usize) -> Result<(), Fault> {
        match self.count() {
            count if count == operands => Ok(()),
            count => Err(format!("{}, {operands} expected", crate::fault::counted(count as u64, "operand"))),
        }
    }

    pub fn width_of(&self, reg: Reg) -> Width {
        self.entry.registers[reg as usize].width
    }

    fn demand(&self, reg: Reg, width: Width) -> Result<Reg, Fault> {
        if self.width_of(reg) == width {
            return Ok(reg);
        }
        let name = &self.entry.registers[reg as usize].name;
        Err(format!("{name} has {} bits, {} are expected", self.width_of(reg).bits(), width.bits()))
    }

    /// A register that is written.
    pub fn destination_of(&self, operand: &Operand, width: Width) -> Result<Option<Reg>, Fault> {
        match operand {
            Operand::Reg(reg) => Ok(Some(self.demand(*reg, width)?)),
            Operand::Sink => Ok(None),
            _ => Err("a register is expected as the destination".into()),
        }
    }

    /// The address or offset of a variable.
    pub fn variable(&self, variable: VariableRef) -> u64 {
        match variable {
            VariableRef::Module(index) => self.layout.module[index as usize],
            VariableRef::Entry(index) => self.layout.entry[index as usize],
        }
    }

    pub fn variable_space(&self, variable: VariableRef) -> Space {
        match variable {
            VariableRef::Module(index) => self.module.variables[index as usize].space,
            VariableRef::Entry(index) => self.entry.variables[index as usize].space,
        }
    }

    pub fn source_of(&self, operand: &Operand, width: Width) -> Result<Source, Fault> {
        match *operand {
            Operand::Reg(reg) => Ok(Source::Reg(self.demand(reg, width)?)),
            Operand::Int(value) => Ok(Source::Value(truncated(value, width), width)),
            Operand::F32(bits) if width == Width::B32 => Ok(Source::Value(u64::from(bits), width)),
            // A double literal stands for the single that it rounds to.
            Operand::F64(bits) if width == Width::B32 => {
                Ok(Source::Value(u64::from((f64::from_bits(bits) as f32).to_bits()), width))
            }
            Operand::F64(bits) if width == Width::B64 => Ok(Source::Value(bits, width)),
            Operand::F32(bits) if width == Width::B64 => {
                Ok(Source::Value(f64::from(f32::from_bits(bits)).to_bits(), width))
            }
            Operand::Special(special) => {
                use crate::parse::Special;
                match (special, width) {
                    (Special::Clock64, Width::B64) => Ok(Source::Special(special)),
                    (Special::Clock64, _) | (_, Width::B64 | Width::B16 | Width::Pred) => {
                        Err("a special register of another width".into())
                    }
                    _ => Ok(Source::Special(special)),
                }
            }
            Operand::Variable(variable) if matches!(width, Width::B32 | Width::B64) => {
                Ok(Source::Value(truncated(self.variable(variable), width), width))
            }
            _ => Err("an operand of another kind is expected".into()),
        }
    }

    pub fn source(&self, index: usize, width: Width) -> Result<Source, Fault> {
        self.source_of(self.operand(index)?, width)
    }

    pub fn destination(&self, index: usize, width: Width) -> Result<Option<Reg>, Fault> {
        self.destination_of(self.operand(index)?, width)
    }

    /// As [`Decoder::lanes`], with what becomes of values that nobody wrote.
    pub fn lanes_with(&self, unknown: Unknown, levels: Levels, destination: Width, sources: &[Width]) -> Decoded {
        let mut steps = self.lanes(levels, destination, sources)?;
        steps.iter_mut().flatten().for_each(|step| step.unknown = unknown);
        Ok(steps)
    }

    /// A step on lanes: the first operand is the destination, the others are the sources, of these widths.
    pub fn lanes(&self, levels: Levels, destination: Width, sources: &[Width]) -> Decoded {
        self.expects(1 + sources.len())?;
        let mut step = Step::new(Kind::Lanes);
        step.run = Some(levels);
        step.destinations.push(self.destination(0, destination)?);
        for (index, &width) in sources.iter().enumerate() {
            step.sources.push(self.source(index + 1, width)?);
        }
        Ok(Some(vec![step]))
    }

    /// The parts of a vector operand, or the operand itself.
    pub fn parts(&self, index: usize) -> Result<&'m [Operand], Fault> {
        Ok(match self.operand(index)? {
            Operand::Vector(parts) => parts,
            other => std::slice::from_ref(other),
        })
    }

    /// An address: the register or value, whether it is of 32 bits, the offset, and the variable's space where one is named.
    pub fn address(&self, index: usize) -> Result<(Source, bool, i64, Option<Space>), Fault> {
        match *self.operand(index)? {
            Operand::Address(base, offset) => Ok(match base {
                Base::Reg(reg) => match self.width_of(reg) {
                    Width::B64 => (Source::Reg(reg), false, offset, None),
                    Width::B32 => (Source::Reg(reg), true, offset, None),
                    _ => return Err("an address has 32 or 64 bits".into()),
                },
                Base::Variable(variable) => {
                    let space = self.variable_space(variable);
                    (Source::Value(self.variable(variable), Width::B64), false, offset, Some(space))
                }
                Base::Param(at) => (Source::Value(u64::from(at), Width::B64), false, offset, Some(Space::Param)),
                Base::Absolute => (Source::Value(0, Width::B64), false, offset, None),
            }),
            _ => Err("an address is expected".into()),
        }
    }
}

/// The bits that a register of `width` holds.
pub(crate) fn truncated(value: u64, width: Width) -> u64 {
    match width {
        Width::Pred => u64::from(value != 0),
        Width::B16 => value & 0xffff,
        Width::B32 => value & 0xffff_ffff,
        Width::B64 => value,
    }
}

/// The width of a register for a type of 16 bits or more.
pub(crate) fn width(kind: &str) -> Option<Width> {
    Some(match kind {
        "pred" => Width::Pred,
        "b16" | "u16" | "s16" | "f16" | "bf16" => Width::B16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Width::B32,
        "b64" | "u64" | "s64" | "f64" => Width::B64,
        _ => return None,
    })
}

/// For the matching type, the levels of an expression in which `T` is that type; None for another type.
macro_rules! pick {
    ($kind:expr, $t:ident, [$($names:pat => $type:ty),* $(,)?], $levels:expr) => {
        match $kind {
            $($names => {
                type $t = $type;
                Some($levels)
            })*
            _ => None,
        }
    };
}
pub(crate) use pick;
