//! Moves, selections, comparisons, and logic on predicates.

use super::{Decoded, Decoder, Fault, Kind, Source, Step, pick, width};
use crate::exec::lanes::{Levels, levels};
use crate::ir::op::Unknown;
use crate::parse::{Operand, Special, Width};

/// Copies lanes.
fn copies(width: Width) -> Levels {
    match width {
        Width::Pred => levels!(|l, s| {
            let bits = l.predicate(s.a);
            l.set_predicate(s.d, bits)
        }),
        Width::B16 => levels!(|l, s| l.unary::<u16, u16>(s, |x| x)),
        Width::B32 => levels!(|l, s| l.unary::<u32, u32>(s, |x| x)),
        Width::B64 => levels!(|l, s| l.unary::<u64, u64>(s, |x| x)),
    }
}

/// Comparisons of integers.
fn comparison(name: &str, kind: &str) -> Option<Levels> {
    macro_rules! compare {
        (|$x:ident, $y:ident| $e:expr) => {
            pick!(kind, T, ["u16" | "b16" => u16, "s16" => i16, "u32" | "b32" => u32, "s32" => i32,
                            "u64" | "b64" => u64, "s64" => i64], levels!(|l, s| l.compare::<T>(s, |$x, $y| $e)))
        };
    }
    let bits = kind.starts_with('b');
    match name {
        "eq" => compare!(|a, b| a == b),
        "ne" => compare!(|a, b| a != b),
        _ if bits => None,
        "lt" => compare!(|a, b| a < b),
        "le" => compare!(|a, b| a <= b),
        "gt" => compare!(|a, b| a > b),
        "ge" => compare!(|a, b| a >= b),
        "lo" if kind.starts_with('u') => compare!(|a, b| a < b),
        "ls" if kind.starts_with('u') => compare!(|a, b| a <= b),
        "hi" if kind.starts_with('u') => compare!(|a, b| a > b),
        "hs" if kind.starts_with('u') => compare!(|a, b| a >= b),
        _ => None,
    }
}

impl Decoder<'_> {
    pub(super) fn data_movement(&mut self) -> Decoded {
        match self.base {
            "mov" => self.mov(),
            "selp" => self.selp(),
            "setp" => self.setp(),
            "testp" => self.testp(),
            "and" | "or" | "xor" | "not" => self.logic(),
            _ => Ok(None),
        }
    }

    fn mov(&mut self) -> Decoded {
        let kind = self.kind()?;
        let width = width(kind).ok_or_else(|| format!("unknown type .{kind}"))?;
        self.expects(2)?;
        let (to, from) = (self.operand(0)?, self.operand(1)?);
        match (to, from) {
            (Operand::Vector(parts), _) => return self.unpack(parts, width),
            (_, Operand::Vector(parts)) => return self.pack(parts, width),
            (_, Operand::Special(special @ (Special::Clock | Special::Clock64))) => {
                let wide = *special == Special::Clock64;
                if width != if wide { Width::B64 } else { Width::B32 } {
                    return Err("the clock has another width".into());
                }
                let mut step = Step::new(Kind::Clock { wide });
                step.destinations.push(self.destination(0, width)?);
                return Ok(Some(vec![step]));
            }
            _ => {}
        }
        self.lanes(copies(width), width, &[width])
    }

    /// `mov.b32 %r, {%rs1, %rs2}`
    fn pack(&self, parts: &[Operand], width: Width) -> Decoded {
        let (part, levels) = match (width, parts.len()) {
            (Width::B32, 2) => {
                (Width::B16, levels!(|l, s| l.binary::<u16, u16, u32>(s, |a, b| u32::from(a) | u32::from(b) << 16)))
            }
            (Width::B64, 2) => {
                (Width::B32, levels!(|l, s| l.binary::<u32, u32, u64>(s, |a, b| u64::from(a) | u64::from(b) << 32)))
            }
            _ => return Err("a vector that does not fit".into()),
        };
        let mut step = Step::new(Kind::Lanes);
        step.run = Some(levels);
        step.destinations.push(self.destination(0, width)?);
        step.sources = vec![self.source_of(&parts[0], part)?, self.source_of(&parts[1], part)?];
        Ok(Some(vec![step]))
    }

    /// `mov.b32 {%rs1, %rs2}, %r`
    fn unpack(&self, parts: &[Operand], width: Width) -> Decoded {
        let (part, levels) = match (width, parts.len()) {
            (Width::B32, 2) => (
                Width::B16,
                [
                    levels!(|l, s| l.unary::<u32, u16>(s, |a| a as u16)),
                    levels!(|l, s| l.unary::<u32, u16>(s, |a| (a >> 16) as u16)),
                ],
            ),
            (Width::B64, 2) => (
                Width::B32,
                [
                    levels!(|l, s| l.unary::<u64, u32>(s, |a| a as u32)),
                    levels!(|l, s| l.unary::<u64, u32>(s, |a| (a >> 32) as u32)),
                ],
            ),
            _ => return Err("a vector that does not fit".into()),
        };
        let source = self.source(1, width)?;
        let mut steps = Vec::new();
        for (operand, levels) in parts.iter().zip(levels) {
            if let Some(to) = self.destination_of(operand, part)? {
                let mut step = Step::new(Kind::Lanes);
                step.run = Some(levels);
                step.destinations.push(Some(to));
                step.sources.push(source);
                steps.push(step);
            }
        }
        Ok(Some(steps))
    }

    fn selp(&mut self) -> Decoded {
        let kind = self.kind()?;
        let levels = pick!(kind, T, ["b16" | "u16" | "s16" => u16, "b32" | "u32" | "s32" | "f32" => u32,
                                     "b64" | "u64" | "s64" | "f64" => u64], levels!(|l, s| l.select::<T>(s)));
        let width = width(kind).ok_or("unknown type")?;
        let levels = levels.ok_or_else(|| format!("not of type .{kind}"))?;
        self.lanes_with(Unknown::Selects, levels, width, &[width, width, Width::Pred])
    }

    fn setp(&mut self) -> Decoded {
        let kind = self.kind()?;
        if self.modifiers.is_empty() {
            return Err("a comparison is missing".into());
        }
        let name = self.modifiers.remove(0);
        let float = kind.starts_with('f');
        let flush = self.takes("ftz");
        let levels = if float { super::float::comparison(name, kind) } else { comparison(name, kind) };
        let levels = levels.ok_or_else(|| format!("no comparison .{name} of .{kind}"))?;
        if flush && kind != "f32" {
            return Err("only .f32 has .ftz".into());
        }
        let width = width(kind).ok_or("unknown type")?;
        let joined = self.takes_one(&["and", "or", "xor"]);
        self.expects(if joined.is_some() { 4 } else { 3 })?;
        let (main, other) = match self.operand(0)? {
            Operand::Pair(p, q) => (Some(*p), Some(*q)),
            single => (self.destination_of(single, Width::Pred)?, None),
        };
        if other.is_some_and(|q| self.width_of(q) != Width::Pred)
            || main.is_some_and(|p| self.width_of(p) != Width::Pred)
        {
            return Err("a predicate is expected as the destination".into());
        }
        if flush {
            return Err("the comparison is not known with .ftz".into());
        }
        let mut step = Step::new(Kind::Lanes);
        step.run = Some(levels);
        step.destinations.push(main);
        step.sources = vec![self.source(1, width)?, self.source(2, width)?];
        let mut steps = vec![step];
        let Some(main) = main else { return Ok(Some(steps)) };
        let mut follow = |levels: Levels, to, sources: Vec<Source>| {
            let mut step = Step::new(Kind::Lanes);
            step.run = Some(levels);
            step.destinations.push(Some(to));
            step.sources = sources;
            steps.push(step);
        };
        if let Some(other) = other {
            follow(negation(), other, vec![Source::Reg(main)]);
        }
        if let Some(joined) = joined {
            let (reg, negated) = match self.operand(3)? {
                Operand::Reg(reg) => (*reg, false),
                Operand::NotReg(reg) => (*reg, true),
                _ => return Err("a predicate is expected".into()),
            };
            if reg == main || Some(reg) == other {
                return Err("the joined predicate is a destination".into());
            }
            for to in [Some(main), other].into_iter().flatten() {
                follow(junction(joined, negated), to, vec![Source::Reg(to), Source::Reg(reg)]);
            }
        }
        Ok(Some(steps))
    }

    fn testp(&mut self) -> Decoded {
        let kind = self.kind()?;
        let test = self.takes_one(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
        macro_rules! test {
            (|$x:ident| $e:expr) => {
                pick!(kind, T, ["f32" => f32, "f64" => f64], levels!(|l, s| l.compare::<T>(s, |$x, _| $e)))
            };
        }
        let levels = match test {
            Some("finite") => test!(|x| x.is_finite()),
            Some("infinite") => test!(|x| x.is_infinite()),
            Some("number") => test!(|x| !x.is_nan()),
            Some("notanumber") => test!(|x| x.is_nan()),
            Some("normal") => test!(|x| x.is_normal()),
            Some(_) => test!(|x| x.is_subnormal()),
            None => None,
        };
        let width = width(kind).ok_or("unknown type")?;
        self.expects(2)?;
        let mut step = Step::new(Kind::Lanes);
        step.run = Some(levels.ok_or("unknown test")?);
        step.destinations.push(self.destination(0, Width::Pred)?);
        step.sources = vec![self.source(1, width)?; 2];
        Ok(Some(vec![step]))
    }

    /// On predicates; the integer forms are elsewhere.
    fn logic(&mut self) -> Decoded {
        if self.kind()? != "pred" {
            return Err("unknown type".into());
        }
        let unknown = match self.base {
            "not" => return self.lanes(negation(), Width::Pred, &[Width::Pred]),
            "and" => Unknown::And,
            "or" => Unknown::Or,
            _ => Unknown::Passes,
        };
        self.lanes_with(unknown, junction(self.base, false), Width::Pred, &[Width::Pred; 2])
    }

    /// The source of a predicate that may be negated.
    pub(super) fn predicate(&self, index: usize) -> Result<(Source, bool), Fault> {
        match *self.operand(index)? {
            Operand::NotReg(reg) if self.width_of(reg) == Width::Pred => Ok((Source::Reg(reg), true)),
            _ => Ok((self.source(index, Width::Pred)?, false)),
        }
    }
}

fn negation() -> Levels {
    levels!(|l, s| {
        let bits = !l.predicate(s.a);
        l.set_predicate(s.d, bits)
    })
}

/// `a` joined with `b`, or with its negation.
fn junction(name: &str, negated: bool) -> Levels {
    macro_rules! join {
        (|$a:ident, $b:ident| $e:expr) => {
            levels!(|l, s| {
                let ($a, $b) = (l.predicate(s.a), l.predicate(s.b));
                l.set_predicate(s.d, $e)
            })
        };
    }
    match (name, negated) {
        ("and", false) => join!(|a, b| a & b),
        ("and", true) => join!(|a, b| a & !b),
        ("or", false) => join!(|a, b| a | b),
        ("or", true) => join!(|a, b| a | !b),
        (_, false) => join!(|a, b| a ^ b),
        (_, true) => join!(|a, b| a ^ !b),
    }
}
