//! Integer arithmetic, logic and shifts.

use super::{Decoded, Decoder, Fault, Kind, Source, pick, width};
use crate::exec::lanes::{Levels, levels};
use crate::parse::{Operand, Width};

macro_rules! unary {
    ($a:ty => $d:ty, |$x:ident| $e:expr) => {
        levels!(|l, s| l.unary::<$a, $d>(s, |$x| $e))
    };
}
macro_rules! binary {
    ($t:ty, |$x:ident, $y:ident| $e:expr) => {
        levels!(|l, s| l.binary::<$t, $t, $t>(s, |$x, $y| $e))
    };
}
macro_rules! ternary {
    ($t:ty, |$x:ident, $y:ident, $z:ident| $e:expr) => {
        levels!(|l, s| l.ternary::<$t, $t, $t, $t>(s, |$x, $y, $z| $e))
    };
}

impl Decoder<'_> {
    pub(super) fn integer(&mut self) -> Decoded {
        let Some(&kind) = self.modifiers.last() else { return Ok(None) };
        if matches!(kind, "f16" | "bf16" | "f32" | "f64" | "f16x2" | "bf16x2" | "pred") {
            return Ok(None);
        }
        let done = match self.base {
            "add" | "sub" | "min" | "max" | "div" | "rem" | "and" | "or" | "xor" => self.two(kind),
            "mul" | "mad" => return self.products(),
            "abs" | "neg" | "not" | "cnot" => self.one(kind),
            "shl" | "shr" => return self.shifts(),
            "popc" | "clz" | "brev" | "bfind" => return self.counts(),
            "bfe" | "bfi" => return self.fields(),
            "prmt" | "shf" | "sad" => return self.others(),
            "lop3" => return self.logic_of_three(),
            _ => return Ok(None),
        };
        let Some((levels, sources)) = done else { return Err(format!("not of type .{kind}")) };
        self.kind()?;
        let width = width(kind).ok_or("unknown type")?;
        let mut steps = self.lanes(levels, width, &[width; 2][..sources])?;
        if matches!(self.base, "div" | "rem") {
            for step in steps.iter_mut().flatten() {
                let safe = matches!(step.sources[1], Source::Value(divisor, _) if divisor != 0);
                step.kind = if safe { Kind::Lanes } else { Kind::Divide(width) };
            }
        }
        Ok(steps)
    }

    fn two(&self, kind: &str) -> Option<(Levels, usize)> {
        let any = |base: &str| match base {
            "add" => pick!(kind, T, ["u16" | "s16" => u16, "u32" | "s32" => u32, "u64" | "s64" => u64],
                binary!(T, |a, b| a.wrapping_add(b))),
            "sub" => pick!(kind, T, ["u16" | "s16" => u16, "u32" | "s32" => u32, "u64" | "s64" => u64],
                binary!(T, |a, b| a.wrapping_sub(b))),
            "and" => pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64], binary!(T, |a, b| a & b)),
            "or" => pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64], binary!(T, |a, b| a | b)),
            "xor" => pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64], binary!(T, |a, b| a ^ b)),
            _ => None,
        };
        let signed = |base: &str| match base {
            "min" => {
                pick!(kind, T, ["u16" => u16, "s16" => i16, "u32" => u32, "s32" => i32, "u64" => u64, "s64" => i64],
                binary!(T, |a, b| if a < b { a } else { b }))
            }
            "max" => {
                pick!(kind, T, ["u16" => u16, "s16" => i16, "u32" => u32, "s32" => i32, "u64" => u64, "s64" => i64],
                binary!(T, |a, b| if a > b { a } else { b }))
            }
            // A division by zero gives a value that the ISA does not state: a fault, found before this is executed.
            "div" => {
                pick!(kind, T, ["u16" => u16, "s16" => i16, "u32" => u32, "s32" => i32, "u64" => u64, "s64" => i64],
                binary!(T, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }))
            }
            "rem" => {
                pick!(kind, T, ["u16" => u16, "s16" => i16, "u32" => u32, "s32" => i32, "u64" => u64, "s64" => i64],
                binary!(T, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }))
            }
            _ => None,
        };
        any(self.base).or_else(|| signed(self.base)).map(|levels| (levels, 2))
    }

    fn one(&self, kind: &str) -> Option<(Levels, usize)> {
        match self.base {
            "abs" => pick!(kind, T, ["s16" => i16, "s32" => i32, "s64" => i64], unary!(T => T, |a| a.wrapping_abs())),
            "neg" => pick!(kind, T, ["s16" => i16, "s32" => i32, "s64" => i64], unary!(T => T, |a| a.wrapping_neg())),
            "not" => pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64], unary!(T => T, |a| !a)),
            "cnot" => pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64],
                unary!(T => T, |a| if a == 0 { 1 } else { 0 })),
            _ => None,
        }
        .map(|levels| (levels, 1))
    }

    fn products(&mut self) -> Decoded {
        let kind = self.kind()?;
        let part = self.takes_one(&["lo", "hi", "wide"]).ok_or("one of .lo, .hi and .wide is needed")?;
        let narrow = width(kind).ok_or("unknown type")?;
        let wide = match narrow {
            Width::B16 => Width::B32,
            _ => Width::B64,
        };
        let bad = || -> Fault { format!("not of type .{kind}") };
        if self.base == "mul" {
            let levels = match part {
                "lo" => pick!(kind, T, ["u16" | "s16" => u16, "u32" | "s32" => u32, "u64" | "s64" => u64],
                    binary!(T, |a, b| a.wrapping_mul(b))),
                "hi" => high(kind),
                _ => match kind {
                    "u16" => Some(levels!(|l, s| l.binary::<u16, u16, u32>(s, |a, b| u32::from(a) * u32::from(b)))),
                    "s16" => Some(levels!(|l, s| l.binary::<i16, i16, i32>(s, |a, b| i32::from(a) * i32::from(b)))),
                    "u32" => Some(levels!(|l, s| l.binary::<u32, u32, u64>(s, |a, b| u64::from(a) * u64::from(b)))),
                    "s32" => Some(levels!(|l, s| l.binary::<i32, i32, i64>(s, |a, b| i64::from(a) * i64::from(b)))),
                    _ => None,
                },
            };
            let to = if part == "wide" { wide } else { narrow };
            return self.lanes(levels.ok_or_else(bad)?, to, &[narrow; 2]);
        }
        let levels = match part {
            "lo" => pick!(kind, T, ["u16" | "s16" => u16, "u32" | "s32" => u32, "u64" | "s64" => u64],
                ternary!(T, |a, b, c| a.wrapping_mul(b).wrapping_add(c))),
            "hi" => match kind {
                "u32" => Some(ternary!(u32, |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))),
                "s32" => Some(ternary!(i32, |a, b, c| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c))),
                _ => None,
            },
            _ => {
                match kind {
                    "u32" => Some(levels!(|l, s| l
                        .ternary::<u32, u32, u64, u64>(s, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c)))),
                    "s32" => Some(levels!(|l, s| l
                        .ternary::<i32, i32, i64, i64>(s, |a, b, c| (i64::from(a) * i64::from(b)).wrapping_add(c)))),
                    "u16" => Some(levels!(|l, s| l
                        .ternary::<u16, u16, u32, u32>(s, |a, b, c| (u32::from(a) * u32::from(b)).wrapping_add(c)))),
                    "s16" => Some(levels!(|l, s| l
                        .ternary::<i16, i16, i32, i32>(s, |a, b, c| (i32::from(a) * i32::from(b)).wrapping_add(c)))),
                    _ => None,
                }
            }
        };
        let to = if part == "wide" { wide } else { narrow };
        self.lanes(levels.ok_or_else(bad)?, to, &[narrow, narrow, to])
    }

    fn shifts(&mut self) -> Decoded {
        let kind = self.kind()?;
        let width = width(kind).ok_or("unknown type")?;
        let levels = if self.base == "shl" {
            pick!(kind, T, ["b16" => u16, "b32" => u32, "b64" => u64],
                levels!(|l, s| l.binary::<T, u32, T>(s, |a, n| if n < T::BITS { a << n } else { 0 })))
        } else {
            pick!(kind, T, ["b16" | "u16" => u16, "b32" | "u32" => u32, "b64" | "u64" => u64],
                levels!(|l, s| l.binary::<T, u32, T>(s, |a, n| if n < T::BITS { a >> n } else { 0 })))
            .or_else(|| {
                pick!(kind, T, ["s16" => i16, "s32" => i32, "s64" => i64],
                levels!(|l, s| l.binary::<T, u32, T>(s, |a, n| a >> n.min(T::BITS - 1))))
            })
        };
        self.lanes(levels.ok_or_else(|| format!("not of type .{kind}"))?, width, &[width, Width::B32])
    }

    fn counts(&mut self) -> Decoded {
        let kind = self.kind()?;
        let width = width(kind).ok_or("unknown type")?;
        let (levels, to) = match self.base {
            "popc" => (pick!(kind, T, ["b32" => u32, "b64" => u64], unary!(T => u32, |a| a.count_ones())), Width::B32),
            "clz" => {
                (pick!(kind, T, ["b32" => u32, "b64" => u64], unary!(T => u32, |a| a.leading_zeros())), Width::B32)
            }
            "brev" => (pick!(kind, T, ["b32" => u32, "b64" => u64], unary!(T => T, |a| a.reverse_bits())), width),
            _ => {
                let find = pick!(kind, T, ["u32" => u32, "u64" => u64],
                    unary!(T => u32, |a| (T::BITS - 1).wrapping_sub(a.leading_zeros())))
                .or_else(|| {
                    pick!(kind, T, ["s32" => i32, "s64" => i64],
                    unary!(T => u32, |a| (T::BITS - 1).wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())))
                });
                (find, Width::B32)
            }
        };
        self.lanes(levels.ok_or_else(|| format!("not of type .{kind}"))?, to, &[width])
    }

    fn fields(&mut self) -> Decoded {
        let kind = self.kind()?;
        let width = width(kind).ok_or("unknown type")?;
        if self.base == "bfe" {
            let levels = pick!(kind, T, ["u32" => u32, "u64" => u64],
            levels!(|l, s| l.ternary::<T, u32, u32, T>(s, |a, at, n| {
                let (at, n) = (at & 0xff, n & 0xff);
                let moved = if at < T::BITS { a >> at } else { 0 };
                if n < T::BITS { moved & (((1 as T) << n) - 1) } else { moved }
            })))
            .or_else(|| {
                pick!(kind, T, ["s32" => i32, "s64" => i64],
                levels!(|l, s| l.ternary::<T, u32, u32, T>(s, |a, at, n| {
                    let (at, n) = (at & 0xff, n & 0xff);
                    if n == 0 {
                        0
                    } else {
                        // The field's highest bit, or the value's where the field reaches beyond it.
                        let moved = a >> at.min(T::BITS - 1);
                        let left = T::BITS.saturating_sub(at).min(n).max(1);
                        (moved << (T::BITS - left)) >> (T::BITS - left)
                    }
                })))
            });
            let levels = levels.ok_or_else(|| format!("not of type .{kind}"))?;
            return self.lanes(levels, width, &[width, Width::B32, Width::B32]);
        }
        // bfi d, f, b, at, n: two of the four sources are numbers in all that compilers write, a mask and a shift.
        self.expects(5)?;
        let (Operand::Int(at), Operand::Int(length)) = (self.operand(3)?, self.operand(4)?) else {
            return Err("position and length have to be numbers".into());
        };
        let (at, length) = (at & 0xff, length & 0xff);
        let bits = u64::from(width.bits());
        let ones = if length >= 64 { !0 } else { (1u64 << length) - 1 };
        let mask = if at >= bits { 0 } else { ones << at };
        let value = |number: u64| Source::Value(super::truncated(number, width), width);
        // d = (b & !mask) | ((f << at) & mask), as a product of f and a power of two.
        let factor = if at >= bits { 0 } else { 1u64 << at };
        let levels = pick!(kind, T, ["b32" => u32, "b64" => u64], {
            let product = binary!(T, |a, b| a.wrapping_mul(b));
            let merge = ternary!(T, |a, b, m| (a & m) | (b & !m));
            (product, merge)
        });
        let (product, merge) = levels.ok_or_else(|| format!("not of type .{kind}"))?;
        let temporary = self.destination(0, width)?;
        let (field, into) = (self.source(1, width)?, self.source(2, width)?);
        // The destination holds the moved field between the two steps; it must not be the one merged into.
        if let (Source::Reg(reg), Some(to)) = (into, temporary)
            && reg == to
        {
            return Err("the destination is the field's surroundings".into());
        }
        let mut first = super::Step::new(Kind::Lanes);
        first.run = Some(product);
        first.destinations.push(temporary);
        first.sources = vec![field, value(factor)];
        let mut second = first.clone();
        second.run = Some(merge);
        second.sources = vec![temporary.map_or(value(0), Source::Reg), into, value(mask)];
        Ok(Some(vec![first, second]))
    }

    /// The functions of three bits that have names; a table is the function's value at 0xf0, 0xcc and 0xaa.
    fn logic_of_three(&mut self) -> Decoded {
        if self.kind()? != "b32" {
            return Err("only of type .b32".into());
        }
        self.expects(5)?;
        let levels = match self.operand(4)? {
            Operand::Int(0x96) => ternary!(u32, |a, b, c| a ^ b ^ c),
            Operand::Int(0x80) => ternary!(u32, |a, b, c| a & b & c),
            Operand::Int(0xfe) => ternary!(u32, |a, b, c| a | b | c),
            Operand::Int(0xca) => ternary!(u32, |a, b, c| (a & b) | (!a & c)),
            Operand::Int(0xe8) => ternary!(u32, |a, b, c| (a & b) | (a & c) | (b & c)),
            _ => return Err("a table of another function than xor, and, or, selection and majority".into()),
        };
        let mut step = super::Step::new(Kind::Lanes);
        step.run = Some(levels);
        step.destinations.push(self.destination(0, Width::B32)?);
        step.sources = (1..4).map(|index| self.source(index, Width::B32)).collect::<Result<_, _>>()?;
        Ok(Some(vec![step]))
    }

    fn others(&mut self) -> Decoded {
        let kind = self.kind()?;
        let word = Width::B32;
        match (self.base, kind) {
            ("prmt", "b32") => {
                let levels = ternary!(u32, |a, b, c| {
                    let bytes = u64::from(a) | u64::from(b) << 32;
                    let mut d = 0;
                    for i in 0..4 {
                        let pick = c >> (4 * i) & 15;
                        let byte = (bytes >> (8 * (pick & 7))) as u8;
                        let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
                        d |= u32::from(byte) << (8 * i);
                    }
                    d
                });
                self.lanes(levels, word, &[word; 3])
            }
            ("sad", "u32") => self.lanes(ternary!(u32, |a, b, c| a.abs_diff(b).wrapping_add(c)), word, &[word; 3]),
            ("sad", "s32") => {
                let levels =
                    levels!(|l, s| l.ternary::<i32, i32, u32, u32>(s, |a, b, c| a.abs_diff(b).wrapping_add(c)));
                self.lanes(levels, word, &[word; 3])
            }
            ("shf", "b32") => {
                let left = match self.takes_one(&["l", "r"]) {
                    Some(side) => side == "l",
                    None => return Err("one of .l and .r is needed".into()),
                };
                let wrap = match self.takes_one(&["wrap", "clamp"]) {
                    Some(mode) => mode == "wrap",
                    None => return Err("one of .wrap and .clamp is needed".into()),
                };
                let levels = match (left, wrap) {
                    (true, true) => {
                        ternary!(u32, |a, b, n| { ((u64::from(b) << 32 | u64::from(a)) << (n & 31) >> 32) as u32 })
                    }
                    (true, false) => {
                        ternary!(u32, |a, b, n| { ((u64::from(b) << 32 | u64::from(a)) << n.min(32) >> 32) as u32 })
                    }
                    (false, true) => {
                        ternary!(u32, |a, b, n| ((u64::from(b) << 32 | u64::from(a)) >> (n & 31)) as u32)
                    }
                    (false, false) => {
                        ternary!(u32, |a, b, n| ((u64::from(b) << 32 | u64::from(a)) >> n.min(32)) as u32)
                    }
                };
                self.lanes(levels, word, &[word; 3])
            }
            _ => Err(format!("not of type .{kind}")),
        }
    }
}

fn high(kind: &str) -> Option<Levels> {
    Some(match kind {
        "u16" => binary!(u16, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        "s16" => binary!(i16, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        "u32" => binary!(u32, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "s32" => binary!(i32, |a, b| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        "u64" => binary!(u64, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        "s64" => binary!(i64, |a, b| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        _ => return None,
    })
}
