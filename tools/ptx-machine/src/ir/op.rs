//! A decoded instruction before its registers have places.

use crate::exec::lanes::Levels;
use crate::parse::{Reg, Space, Special, Width};

/// An operand that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Reg(Reg),
    /// A value in every lane, of a register's width; 0 or 1 for a predicate.
    Value(u64, Width),
    /// A parameter's bytes from an offset on, read as so many bytes and widened to the width.
    Param {
        offset: u32,
        bytes: u8,
        signed: bool,
        width: Width,
    },
    Special(Special),
}

/// Flags of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFlags {
    pub space: Space,
    /// Bytes of an element.
    pub bytes: u8,
    /// Elements.
    pub count: u8,
    /// Widen with the sign.
    pub signed: bool,
    /// Through the read-only path.
    pub constant: bool,
    /// The address is of 32 bits.
    pub narrow: bool,
    /// Ordered or `volatile`: it does not race with others of its kind.
    pub strong: bool,
    /// Width of the registers.
    pub width: Width,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub flags: MemoryFlags,
    pub offset: i64,
}

/// Operations on memory that read, change and write in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    Add,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Exchange,
    Compare,
    Inc,
    Dec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Add,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
}

/// The element types of a matrix product's A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaType {
    Bf16,
    F16,
    Tf32,
}

/// The kind of an instruction for the machine's main loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On lanes alone: [`Step::run`] does it.
    Lanes,
    /// As `Lanes`, where the second source, an integer of this width, must not be zero.
    Divide(Width),
    /// To the instruction of this index.
    Branch(u32),
    Exit,
    Trap,
    Nothing,
    /// `bar.sync`: barrier in `a`, with `counted` the number of threads in `b`.
    Barrier {
        counted: bool,
        aligned: bool,
        arrive: bool,
    },
    /// `membar` and `fence`.
    Fence,
    /// `bar.warp.sync`: mask in `a`.
    WarpBarrier,
    /// Destination `d` (and a predicate, the second destination); sources value, lane, clamp, mask.
    Shuffle {
        mode: Shuffle,
        with_predicate: bool,
    },
    /// Sources predicate and mask; `negated` the predicate.
    Vote {
        mode: Vote,
        negated: bool,
    },
    /// Sources value and mask.
    Redux(Reduction),
    /// Sources value and mask.
    Match {
        bytes: u8,
    },
    ActiveMask,
    Clock {
        wide: bool,
    },
    Load(Memory),
    Store(Memory),
    Atomic(Memory, Atomic, /* returns the old value */ bool),
    /// Destinations in order; source the row's address.
    LoadMatrix {
        count: u8,
        transposed: bool,
        narrow: bool,
        offset: i64,
    },
    /// Destination 4; sources A, B, C in order.
    Mma {
        kind: MmaType,
        k: u8,
    },
    /// Sources to, from and, with `sized`, the bytes to read.
    AsyncCopy {
        bytes: u8,
        sized: bool,
        narrow: bool,
        to_offset: i64,
        from_offset: i64,
    },
    AsyncCommit,
    AsyncWait(u32),
    AsyncWaitAll,
    /// `griddepcontrol.wait`: behind it, the grids before have ended.
    GridWait,
}

impl Kind {
    /// Whether all lanes of the warp have to come to it together.
    pub fn is_aligned(self) -> bool {
        matches!(self, Kind::LoadMatrix { .. } | Kind::Mma { .. } | Kind::Barrier { aligned: true, .. })
    }

    /// Whether lanes wait at it for those that its mask names.
    pub fn is_masked(self) -> bool {
        matches!(
            self,
            Kind::WarpBarrier | Kind::Shuffle { .. } | Kind::Vote { .. } | Kind::Redux(_) | Kind::Match { .. }
        )
    }
}

/// One decoded instruction.
#[derive(Clone, Debug)]
pub struct Step {
    pub kind: Kind,
    pub run: Option<Levels>,
    pub guard: Option<(Reg, bool)>,
    /// None: the value is not wanted.
    pub destinations: Vec<Option<Reg>>,
    pub sources: Vec<Source>,
    pub unknown: Unknown,
}

/// The treatment of a register that nobody wrote. Compilers compute with such values where they do not use the result:
/// arithmetic passes on that a value is not known, and a fault is what depends on it: an address, a jump, a store, what other
/// lanes receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Demands,
    Passes,
    /// `a` or `b`, by the predicate `c`.
    Selects,
    /// On predicates: false and anything is false.
    And,
    /// True or anything is true.
    Or,
}

impl Step {
    pub fn new(kind: Kind) -> Self {
        let unknown = if kind == Kind::Lanes { Unknown::Passes } else { Unknown::Demands };
        Self { kind, run: None, guard: None, destinations: Vec::new(), sources: Vec::new(), unknown }
    }
}
