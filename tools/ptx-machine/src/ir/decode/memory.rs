//! Loads, stores, atomics and asynchronous copies.

use super::{Decoded, Decoder, Fault, Kind, Source, Space, Step, Width, width};
use crate::ir::op::{Atomic, Memory, MemoryFlags};
use crate::parse::{Operand, Reg};

/// Bytes and sign of a type in memory, and the register that it naturally goes to.
fn stored(kind: &str) -> Option<(u8, bool, Width)> {
    Some(match kind {
        "b8" | "u8" => (1, false, Width::B16),
        "s8" => (1, true, Width::B16),
        "b16" | "u16" | "f16" | "bf16" => (2, false, Width::B16),
        "s16" => (2, true, Width::B16),
        "b32" | "u32" | "f32" => (4, false, Width::B32),
        "s32" => (4, true, Width::B32),
        "b64" | "u64" | "s64" | "f64" => (8, false, Width::B64),
        _ => return None,
    })
}

impl Decoder<'_> {
    pub(super) fn memory(&mut self) -> Decoded {
        match self.base {
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" | "red" => self.atomic(),
            "cp" => self.async_copy(),
            "membar" => match self.takes_one(&["gl", "cta", "sys"]) {
                Some(_) => Ok(Some(vec![Step::new(Kind::Fence)])),
                None => Err("a scope is needed".into()),
            },
            "fence" => {
                self.takes_one(&["sc", "acq_rel"]);
                match self.takes_one(&["gpu", "cta", "sys"]) {
                    Some(_) => Ok(Some(vec![Step::new(Kind::Fence)])),
                    None => Err("a scope is needed".into()),
                }
            }
            "prefetch" | "prefetchu" => {
                self.takes("global");
                match self.takes_one(&["L1", "L2"]) {
                    Some(_) => Ok(Some(vec![Step::new(Kind::Nothing)])),
                    None => Err("a level is needed".into()),
                }
            }
            _ => Ok(None),
        }
    }

    fn space(&mut self) -> Space {
        match self.takes_one(&["global", "shared::cta", "shared", "local", "const", "param"]) {
            Some("global") => Space::Global,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("local") => Space::Local,
            Some("const") => Space::Const,
            Some("param") => Space::Param,
            _ => Space::Generic,
        }
    }

    /// The flags that loads, stores and atomics share; modifiers that only advise the caches are used up.
    fn flags(&mut self) -> Result<MemoryFlags, Fault> {
        let kind = self.kind()?;
        let (bytes, signed, width) = stored(kind).ok_or_else(|| format!("unknown type .{kind}"))?;
        let count = match self.takes_one(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        };
        let space = self.space();
        let strong = ["volatile", "relaxed", "acquire", "release", "acq_rel"].iter().any(|&word| self.takes(word));
        if strong {
            self.takes_one(&["cta", "gpu", "sys"]);
        }
        self.takes("weak");
        self.takes_one(&["ca", "cg", "cs", "lu", "cv", "wb", "wt"]);
        self.takes_one(&[
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L1::evict_normal",
            "L1::evict_unchanged",
        ]);
        self.takes_one(&["L2::64B", "L2::128B", "L2::256B"]);
        if u32::from(bytes) * count > 16 {
            return Err("vectors of more than 16 bytes".into());
        }
        let constant = false;
        Ok(MemoryFlags { space, bytes, count: count as u8, signed, constant, narrow: false, strong, width })
    }

    /// The address into the flags: a variable's space has to be the instruction's.
    fn place(&self, index: usize, flags: &mut MemoryFlags) -> Result<(Source, i64), Fault> {
        let (source, narrow, offset, space) = self.address(index)?;
        flags.narrow = narrow;
        if let Some(space) = space {
            if flags.space == Space::Generic && matches!(space, Space::Global | Space::Const) {
                flags.space = space;
            }
            if space != flags.space {
                return Err(format!("a variable of .{} in .{}", space.name(), flags.space.name()));
            }
        }
        if narrow && !matches!(flags.space, Space::Shared | Space::Local) {
            return Err("an address of 32 bits outside shared and local memory".into());
        }
        Ok((source, offset))
    }

    fn wide_enough(&self, reg: Reg, flags: &mut MemoryFlags, first: bool) -> Result<(), Fault> {
        let actual = self.width_of(reg);
        if actual == Width::Pred || actual.bits() < u32::from(flags.bytes) * 8 || (!first && actual != flags.width) {
            return Err(format!("{} does not fit", self.entry.registers[reg as usize].name));
        }
        flags.width = actual;
        Ok(())
    }

    fn load(&mut self) -> Decoded {
        let constant = self.takes("nc");
        let mut flags = self.flags()?;
        flags.constant = constant || self.base == "ldu";
        self.expects(2)?;
        if flags.constant && !matches!(flags.space, Space::Global) {
            return Err("only global memory is read by this path".into());
        }
        if flags.space == Space::Param {
            return self.parameter(flags);
        }
        let parts = self.parts(0)?;
        if parts.len() != usize::from(flags.count) {
            return Err(format!("{} registers, {} are expected", parts.len(), flags.count));
        }
        let mut destinations = Vec::new();
        let mut first = true;
        for part in parts {
            destinations.push(match part {
                Operand::Reg(reg) => {
                    self.wide_enough(*reg, &mut flags, first)?;
                    first = false;
                    Some(*reg)
                }
                Operand::Sink => None,
                _ => return Err("registers are expected".into()),
            });
        }
        let (address, offset) = self.place(1, &mut flags)?;
        let mut step = Step::new(Kind::Load(Memory { flags, offset }));
        step.destinations = destinations;
        step.sources.push(address);
        Ok(Some(vec![step]))
    }

    /// Parameters are constants of a launch: a load of one is a move.
    fn parameter(&mut self, mut flags: MemoryFlags) -> Decoded {
        let (source, _, offset, space) = self.address(1)?;
        let (Source::Value(base, _), Some(Space::Param)) = (source, space) else {
            return Err("a parameter's name is expected".into());
        };
        let parts = self.parts(0)?;
        if parts.len() != usize::from(flags.count) {
            return Err(format!("{} registers, {} are expected", parts.len(), flags.count));
        }
        let mut steps = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let at = i64::try_from(base).unwrap_or(0) + offset + index as i64 * i64::from(flags.bytes);
            let end = at + i64::from(flags.bytes);
            if at < 0 || end > i64::from(self.entry.param_bytes) || at % i64::from(flags.bytes) != 0 {
                return Err(format!("bytes {at} to {end} of the parameters"));
            }
            let Operand::Reg(reg) = part else { return Err("registers are expected".into()) };
            self.wide_enough(*reg, &mut flags, index == 0)?;
            let (bytes, signed, width) = (flags.bytes, flags.signed, flags.width);
            let mut step = Step::new(Kind::Lanes);
            step.run = Some(match width {
                Width::B16 => crate::exec::lanes::levels!(|l, s| l.unary::<u16, u16>(s, |x| x)),
                Width::B64 => crate::exec::lanes::levels!(|l, s| l.unary::<u64, u64>(s, |x| x)),
                _ => crate::exec::lanes::levels!(|l, s| l.unary::<u32, u32>(s, |x| x)),
            });
            step.destinations.push(Some(*reg));
            step.sources.push(Source::Param { offset: at as u32, bytes, signed, width });
            steps.push(step);
        }
        Ok(Some(steps))
    }

    fn store(&mut self) -> Decoded {
        let mut flags = self.flags()?;
        self.expects(2)?;
        if matches!(flags.space, Space::Param | Space::Const) {
            return Err(format!("a store to .{}", flags.space.name()));
        }
        let parts = self.parts(1)?;
        if parts.len() != usize::from(flags.count) {
            return Err(format!("{} registers, {} are expected", parts.len(), flags.count));
        }
        let mut first = true;
        for part in parts {
            if let Operand::Reg(reg) = part {
                self.wide_enough(*reg, &mut flags, first)?;
                first = false;
            }
        }
        let values = parts.iter().map(|part| self.source_of(part, flags.width)).collect::<Result<Vec<_>, _>>()?;
        let (address, offset) = self.place(0, &mut flags)?;
        let mut step = Step::new(Kind::Store(Memory { flags, offset }));
        step.sources.push(address);
        step.sources.extend(values);
        Ok(Some(vec![step]))
    }

    fn atomic(&mut self) -> Decoded {
        let returns = self.base == "atom";
        let kind = *self.modifiers.last().ok_or("a type is missing")?;
        let names = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
        let name = self.takes_one(&names).ok_or("an operation is missing")?;
        let mut flags = self.flags()?;
        self.takes_one(&["cta", "gpu", "sys"]);
        if kind.starts_with('f') || kind.starts_with("bf") {
            return Err("atomics on floats are not supported: their order is not fixed".into());
        }
        if flags.count != 1 || flags.bytes < 4 {
            return Err(format!("not of type .{kind}"));
        }
        let signed = kind.starts_with('s');
        let operation = match (name, signed) {
            ("add", _) => Atomic::Add,
            ("min", false) => Atomic::Min,
            ("max", false) => Atomic::Max,
            ("min", true) => Atomic::MinSigned,
            ("max", true) => Atomic::MaxSigned,
            ("and", _) => Atomic::And,
            ("or", _) => Atomic::Or,
            ("xor", _) => Atomic::Xor,
            ("exch", _) => Atomic::Exchange,
            ("cas", _) => Atomic::Compare,
            ("inc", _) => Atomic::Inc,
            _ => Atomic::Dec,
        };
        if matches!(operation, Atomic::Inc | Atomic::Dec) && kind != "u32" {
            return Err(format!("not of type .{kind}"));
        }
        flags.strong = true;
        let width = width(kind).ok_or("unknown type")?;
        let at = usize::from(returns);
        let values = if operation == Atomic::Compare { 2 } else { 1 };
        self.expects(at + 1 + values)?;
        let (address, offset) = self.place(at, &mut flags)?;
        if !matches!(flags.space, Space::Global | Space::Shared | Space::Generic) {
            return Err(format!("an atomic on .{}", flags.space.name()));
        }
        let mut step = Step::new(Kind::Atomic(Memory { flags, offset }, operation, returns));
        if returns {
            step.destinations.push(self.destination(0, width)?);
        }
        step.sources.push(address);
        for value in 0..values {
            step.sources.push(self.source(at + 1 + value, width)?);
        }
        Ok(Some(vec![step]))
    }

    /// `cp.async.cg.shared.global [to], [from], 16, bytes;` and its groups.
    fn async_copy(&mut self) -> Decoded {
        if !self.takes("async") {
            return Err("only cp.async is known".into());
        }
        if self.takes("commit_group") {
            self.expects(0)?;
            return Ok(Some(vec![Step::new(Kind::AsyncCommit)]));
        }
        if self.takes("wait_all") {
            self.expects(0)?;
            return Ok(Some(vec![Step::new(Kind::AsyncWaitAll)]));
        }
        if self.takes("wait_group") {
            self.expects(1)?;
            let Operand::Int(groups @ 0..=1024) = *self.operand(0)? else {
                return Err("a number of groups is expected".into());
            };
            return Ok(Some(vec![Step::new(Kind::AsyncWait(groups as u32))]));
        }
        let through = self.takes_one(&["ca", "cg"]).ok_or("one of .ca and .cg is needed")?;
        if self.takes_one(&["shared::cta", "shared"]).is_none() || !self.takes("global") {
            return Err("a copy goes from .global to .shared".into());
        }
        self.takes_one(&["L2::64B", "L2::128B", "L2::256B"]);
        if !matches!(self.count(), 3 | 4) {
            return Err("3 or 4 operands expected".into());
        }
        let bytes = match (self.operand(2)?, through) {
            (Operand::Int(16), _) => 16,
            (Operand::Int(bytes @ (4 | 8)), "ca") => *bytes as u8,
            _ => return Err("4, 8 or 16 bytes are copied, only 16 past the first cache".into()),
        };
        let (to, narrow, to_offset, to_space) = self.address(0)?;
        let (from, from_narrow, from_offset, from_space) = self.address(1)?;
        if from_narrow
            || to_space.is_some_and(|space| space != Space::Shared)
            || from_space.is_some_and(|space| space != Space::Global)
        {
            return Err("addresses of other spaces".into());
        }
        let sized = self.count() == 4;
        let mut step = Step::new(Kind::AsyncCopy { bytes, sized, narrow, to_offset, from_offset });
        step.sources = vec![to, from];
        if sized {
            step.sources.push(self.source(3, Width::B32)?);
        }
        Ok(Some(vec![step]))
    }
}
