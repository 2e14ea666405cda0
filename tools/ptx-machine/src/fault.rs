//! What a kernel can be found to do wrong, and how it is reported.

use std::fmt;

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside every allocation, or beyond shared or local memory.
    OutOfBounds,
    Misaligned,
    UnwrittenMemory,
    UnwrittenRegister,
    /// Two threads without a barrier between them, one of which writes.
    Race,
    /// `ld.global.nc` of what the same grid writes.
    ReadOnlyPath,
    /// Data of `cp.async` touched, or its source written, before it has landed.
    AsyncCopy,
    /// An access before `griddepcontrol.wait` to memory that a grid that may still run writes or reads.
    DependentLaunch,
    /// An `.aligned` instruction not reached by the whole warp together.
    Diverged,
    /// A `.sync` instruction whose lanes do not agree.
    WarpSync,
    /// A barrier that not all threads reach.
    Barrier,
    /// An integer division or remainder by zero, whose result the ISA leaves open.
    DivisionByZero,
    /// More instructions than are allowed.
    Endless,
    Trap,
    /// A launch beyond the kernel's or the device's limits.
    Launch,
}

/// A number of things: `1 byte`, `2 bytes`.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A fault of an instruction, without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// The lane, where it is one lane's fault.
    pub lane: Option<u32>,
    pub message: String,
}

impl Fault {
    pub fn new(kind: FaultKind, lane: impl Into<Option<u32>>, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: lane.into(), message: message.into() })
    }
}

/// A fault with its place: prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub kind: FaultKind,
    pub kernel: String,
    pub module: String,
    /// Line of the PTX; 0 for a launch that is refused as a whole.
    pub line: u32,
    /// Line of the source, where line tables are there.
    pub source: Option<String>,
    pub block: [u32; 3],
    pub thread: Option<[u32; 3]>,
    pub message: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if self.line > 0 {
            let [x, y, z] = self.block;
            write!(f, ": block ({x},{y},{z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x},{y},{z})")?;
        }
        write!(f, ": {}", self.message)?;
        if self.line > 0 {
            write!(f, "; at {}:{}", self.module, self.line)?;
        }
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
