//! From instructions as written to a program of decoded operations.
//!
//! [`decode`] knows every opcode with its modifiers and operands, [`class`] what kind of work it is; `flow` finds what lives how long
//! and what may be read before it was written; `program` gives registers their places and makes the compact form that
//! [`crate::exec`] runs.

pub mod class;
pub mod decode;
mod flow;
pub mod op;
mod program;

pub use class::{Class, Cost};
pub use op::{Kind, Memory, MemoryFlags, Source, Step};
pub use program::{Demands, Inst, Line, NO_GUARD, Program, SpecialSlot};
