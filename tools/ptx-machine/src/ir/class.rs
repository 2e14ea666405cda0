//! What an instruction costs: the class of its issue slot, and the floating-point operations that it does.

use super::op::{Kind, MmaType};
use crate::parse::{Instruction, Space};

/// The kind of work that a warp instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No slot of its own: the second operation of an instruction that the machine does in several, or the end that the text lacks.
    Part,
    /// On integers of registers, conversions between integers, and `div` and `rem` of them.
    Integer,
    /// `add`, `mul`, `fma`, `min`, … of f16, f32 and f64.
    Float,
    /// From or to a float.
    Conversion,
    /// Operations of the special-function unit: `ex2`, `lg2`, `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `tanh`, and `div` of floats.
    Special,
    Mma,
    LoadMatrix,
    /// `shfl`, `vote`, `redux`, `match`, `activemask`.
    Shuffle,
    /// Loads by generic addresses too.
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    Local,
    /// `cp.async` itself; its groups and waits are [`Class::Other`].
    AsyncCopy,
    /// `atom` and `red`, in every space.
    Atomic,
    /// `bar`, `membar`, `fence`, `bar.warp.sync`.
    Barrier,
    /// `bra`, `ret`, `exit`, `trap`.
    Branch,
    /// `mov`, `selp`, `setp`, logic on predicates, `cvta`, loads of parameters and constants, waits for copies and grids.
    Other,
}

/// The cost class of one execution of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub class: Class,
    /// Operations on f32 of a thread: 1 for `add`, `sub`, `mul`, 2 for `fma`.
    pub float_flops: u8,
    /// Operations of a warp in `mma`: a product and a sum for each of m n k.
    pub mma_flops: u32,
    /// Those of them in TF32, of which tensor cores do half as many a cycle.
    pub tf32_flops: u32,
}

impl Cost {
    pub const PART: Self = Self { class: Class::Part, float_flops: 0, mma_flops: 0, tf32_flops: 0 };

    /// Of an instruction whose (first) operation is of this kind.
    pub fn of(instruction: &Instruction, kind: Kind) -> Self {
        let mut words = instruction.opcode.split('.');
        let base = words.next().unwrap_or_default();
        let last = words.next_back().unwrap_or_default();
        let float_flops = match (base, last) {
            ("add" | "sub" | "mul", "f32") => 1,
            ("fma" | "mad", "f32") => 2,
            _ => 0,
        };
        let mma_flops = if let Kind::Mma { k, .. } = kind { 2 * 16 * 8 * u32::from(k) } else { 0 };
        let tf32_flops = if matches!(kind, Kind::Mma { kind: MmaType::Tf32, .. }) { mma_flops } else { 0 };
        Self { class: class(base, &instruction.opcode, kind), float_flops, mma_flops, tf32_flops }
    }
}

fn class(base: &str, opcode: &str, kind: Kind) -> Class {
    match kind {
        Kind::Branch(_) | Kind::Exit | Kind::Trap => Class::Branch,
        Kind::Barrier { .. } | Kind::Fence | Kind::WarpBarrier => Class::Barrier,
        Kind::Shuffle { .. } | Kind::Vote { .. } | Kind::Redux(_) | Kind::Match { .. } | Kind::ActiveMask => {
            Class::Shuffle
        }
        Kind::Load(memory) => match memory.flags.space {
            Space::Global | Space::Generic => Class::GlobalLoad,
            Space::Shared => Class::SharedLoad,
            Space::Local => Class::Local,
            Space::Const | Space::Param => Class::Other,
        },
        Kind::Store(memory) => match memory.flags.space {
            Space::Shared => Class::SharedStore,
            Space::Local => Class::Local,
            _ => Class::GlobalStore,
        },
        Kind::Atomic(..) => Class::Atomic,
        Kind::LoadMatrix { .. } => Class::LoadMatrix,
        Kind::Mma { .. } => Class::Mma,
        Kind::AsyncCopy { .. } => Class::AsyncCopy,
        Kind::Divide(_) => Class::Integer,
        Kind::Lanes => of_lanes(base, opcode),
        Kind::Nothing
        | Kind::Clock { .. }
        | Kind::AsyncCommit
        | Kind::AsyncWait(_)
        | Kind::AsyncWaitAll
        | Kind::GridWait => Class::Other,
    }
}

fn is_float(word: &str) -> bool {
    matches!(word, "f16" | "f16x2" | "bf16" | "bf16x2" | "tf32" | "f32" | "f64")
}

/// The class of an operation on lanes alone.
fn of_lanes(base: &str, opcode: &str) -> Class {
    let last = opcode.rsplit('.').next().unwrap_or_default();
    match base {
        "mov" | "selp" | "setp" | "testp" | "cvta" | "ld" => Class::Other,
        "cvt" if opcode.split('.').any(is_float) => Class::Conversion,
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => Class::Special,
        "div" if is_float(last) => Class::Special,
        _ if is_float(last) => Class::Float,
        // Logic on predicates.
        _ if last == "pred" => Class::Other,
        _ => Class::Integer,
    }
}
