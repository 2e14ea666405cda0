//! A module as it is written, names resolved.

use std::collections::HashMap;
use std::fmt;

/// A fault of a PTX text and its place: prints as `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PtxError {
    pub file: String,
    pub line: u32,
    pub message: String,
}

impl fmt::Display for PtxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

impl Space {
    pub fn name(self) -> &'static str {
        match self {
            Space::Generic => "generic",
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Const => "const",
            Space::Param => "param",
        }
    }
}

/// The type of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    Pred,
    B16,
    B32,
    B64,
}

impl Width {
    /// Bits of a lane's part; 1 for a predicate.
    pub fn bits(self) -> u32 {
        match self {
            Width::Pred => 1,
            Width::B16 => 16,
            Width::B32 => 32,
            Width::B64 => 64,
        }
    }
}

/// A register of a kernel, an index into [`Entry::registers`].
pub type Reg = u32;

#[derive(Clone, Debug)]
pub struct Register {
    pub name: String,
    pub width: Width,
}

/// A variable of a module or a kernel, outside registers.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u64,
    /// Bytes; 0 for an external array (dynamic shared memory).
    pub size: u64,
    /// The initial bytes; none where nothing is stated.
    pub init: Option<Vec<u8>>,
    pub external: bool,
}

#[derive(Clone, Debug)]
pub struct Param {
    pub name: String,
    pub offset: u32,
    pub size: u32,
}

/// Special registers; `W` is the launch's or the thread's dimension (0 to 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(MaskOf),
    Clock,
    Clock64,
    SmId,
    NSmId,
    DynamicShared,
    TotalShared,
}

/// Lanes relative to the thread's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskOf {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// The base of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Reg(Reg),
    /// A variable of the kernel (by index), then of the module.
    Variable(VariableRef),
    Param(u32),
    Absolute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VariableRef {
    Module(u32),
    Entry(u32),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Reg(Reg),
    /// `!%p`
    NotReg(Reg),
    /// An integer, negative ones in two's complement.
    Int(u64),
    /// `0f…`: an f32's bits.
    F32(u32),
    /// `0d…`: an f64's bits.
    F64(u64),
    Special(Special),
    /// The address of a variable.
    Variable(VariableRef),
    /// `[base + offset]`
    Address(Base, i64),
    Vector(Vec<Operand>),
    /// `%r1|%p1`
    Pair(Reg, Reg),
    /// `_`
    Sink,
    /// A jump's destination: index of an instruction.
    Label(u32),
}

/// A place in a source of the PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub file: u32,
    pub line: u32,
    pub column: u32,
}

/// Where an instruction was written, and into what that was inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub at: Location,
    /// The place of the call, an earlier one of [`Entry::places`].
    pub caller: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub guard: Option<(Reg, bool)>,
    /// The name with all its modifiers, as written.
    pub opcode: String,
    pub operands: Vec<Operand>,
    pub line: u32,
    /// One of [`Entry::places`], where the text has line tables.
    pub place: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub name: String,
    pub line: u32,
    pub params: Vec<Param>,
    pub param_bytes: u32,
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    pub max_registers: Option<u32>,
    /// Blocks that a multiprocessor is to have at once.
    pub min_blocks: Option<u32>,
    pub registers: Vec<Register>,
    pub variables: Vec<Variable>,
    pub body: Vec<Instruction>,
    /// Places in the sources.
    pub places: Vec<Place>,
}

#[derive(Clone, Debug, Default)]
pub struct Module {
    pub name: String,
    pub version: (u32, u32),
    /// 80 for `sm_80`.
    pub target: u32,
    /// A target whose instructions no other architecture has (`sm_90a`).
    pub specific: bool,
    pub variables: Vec<Variable>,
    pub entries: Vec<Entry>,
    pub files: HashMap<u32, String>,
}
