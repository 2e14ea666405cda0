//! `cvt` and `cvta`.

use super::{Decoded, Decoder, Fault, SHARED_WINDOW, Source, Width, truncated, width};
use crate::exec::approx::{
    Rounding, bf16_from, bf16_to, bf16_towards_zero, f16_from, f16_to, flushed, rounded, saturated, tf32_from,
};
use crate::exec::lanes::{Levels, levels};

/// One expression for every combination of two types; None where none fits.
macro_rules! integers {
    ($from:expr, $to:expr) => {
        integers!(@from $from, $to,
            [("u8", Width::B16, u16, u8) ("u8", Width::B32, u32, u8) ("s8", Width::B16, u16, i8) ("s8", Width::B32, u32, i8)
             ("u16", Width::B16, u16, u16) ("u16", Width::B32, u32, u16) ("s16", Width::B16, u16, i16)
             ("s16", Width::B32, u32, i16) ("u32", Width::B32, u32, u32) ("u32", Width::B64, u64, u32)
             ("s32", Width::B32, u32, i32) ("s32", Width::B64, u64, i32) ("u64", Width::B64, u64, u64)
             ("s64", Width::B64, u64, i64)])
    };
    (@from $from:expr, $to:expr, [$(($name:pat, $width:pat, $container:ty, $type:ty))*]) => {
        match $from {
            $(($name, $width) => {
                type C = $container;
                type S = $type;
                integers!(@to $to)
            })*
            _ => None,
        }
    };
    (@to $to:expr) => {
        integers!(@each $to,
            [("u8", Width::B16, u16, u8) ("u8", Width::B32, u32, u8) ("s8", Width::B16, i16, i8) ("s8", Width::B32, i32, i8)
             ("u16", Width::B16, u16, u16) ("u16", Width::B32, u32, u16) ("s16", Width::B16, i16, i16)
             ("s16", Width::B32, i32, i16) ("u32", Width::B32, u32, u32) ("u32", Width::B64, u64, u32)
             ("s32", Width::B32, i32, i32) ("s32", Width::B64, i64, i32) ("u64", Width::B64, u64, u64)
             ("s64", Width::B64, i64, i64)])
    };
    (@each $to:expr, [$(($name:pat, $width:pat, $container:ty, $type:ty))*]) => {
        match $to {
            $(($name, $width) => {
                Some(levels!(|l, s| l.unary::<C, $container>(s, |x| x as S as $type as $container)))
            })*
            _ => None,
        }
    };
}

macro_rules! to_integer {
    ($to:expr, $f:ty, $round:expr) => {{
        macro_rules! case {
            ($t:ty, $c:ty) => {
                Some(levels!(|l, s| l.unary::<$f, $c>(s, |x| {
                    let f: fn($f) -> $f = $round;
                    f(x) as $t as $c
                })))
            };
        }
        match $to {
            "u8" => case!(u8, u16),
            "s8" => case!(i8, i16),
            "u16" => case!(u16, u16),
            "s16" => case!(i16, i16),
            "u32" => case!(u32, u32),
            "s32" => case!(i32, i32),
            "u64" => case!(u64, u64),
            "s64" => case!(i64, i64),
            _ => None,
        }
    }};
}

fn is_float(kind: &str) -> bool {
    matches!(kind, "f16" | "bf16" | "f32" | "f64")
}

impl Decoder<'_> {
    pub(super) fn convert(&mut self) -> Decoded {
        match self.base {
            "cvt" => self.cvt(),
            "cvta" => self.cvta(),
            _ => Ok(None),
        }
    }

    fn cvt(&mut self) -> Decoded {
        let from = self.kind()?;
        let to = self.kind()?;
        if matches!(to, "bf16x2" | "f16x2") {
            return self.packed(to, from);
        }
        if (to, from) == ("tf32", "f32") {
            if !self.takes("rna") {
                return Err("a rounding is needed".into());
            }
            return self.lanes(levels!(|l, s| l.unary::<f32, u32>(s, tf32_from)), Width::B32, &[Width::B32]);
        }
        let rounding = self.takes_one(&["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"]);
        let (ftz, sat) = (self.takes("ftz"), self.takes("sat"));
        let bad = || -> Fault { format!("no conversion of .{from} to .{to} like this") };
        let actual = |index| -> Result<Option<Width>, Fault> {
            Ok(match self.operand(index)? {
                crate::parse::Operand::Reg(reg) => Some(self.width_of(*reg)),
                _ => None,
            })
        };
        let natural = |kind: &str| width(kind).unwrap_or(Width::B16);
        let (source, destination) = (actual(1)?.unwrap_or(natural(from)), actual(0)?.unwrap_or(natural(to)));
        let levels = match (is_float(from), is_float(to)) {
            (false, false) if rounding.is_none() && !ftz && !sat => integers!((from, source), (to, destination)),
            (true, false) if !sat => {
                if source != natural(from) || destination != natural(to) {
                    return Err(bad());
                }
                float_to_integer(from, to, rounding.ok_or("a rounding is needed")?, ftz)
            }
            (false, true) if !sat && !ftz && rounding == Some("rn") => {
                if source != natural(from) || destination != natural(to) {
                    return Err(bad());
                }
                integer_to_float(from, to)
            }
            (true, true) => float_to_float(from, to, rounding, ftz, sat),
            _ => None,
        };
        self.lanes(levels.ok_or_else(bad)?, destination, &[source])
    }

    /// Two floats into one word, the second source in its low half.
    fn packed(&mut self, to: &str, from: &str) -> Decoded {
        let zero = match self.takes_one(&["rn", "rz"]) {
            Some(mode) => mode == "rz",
            None => return Err("a rounding is needed".into()),
        };
        let levels =
            match (to, from, zero) {
                ("bf16x2", "f32", false) => {
                    levels!(|l, s| l
                        .binary::<f32, f32, u32>(s, |a, b| u32::from(bf16_from(a)) << 16 | u32::from(bf16_from(b))))
                }
                ("bf16x2", "f32", true) => levels!(|l, s| l.binary::<f32, f32, u32>(s, |a, b| {
                    u32::from(bf16_towards_zero(a)) << 16 | u32::from(bf16_towards_zero(b))
                })),
                ("f16x2", "f32", false) => {
                    levels!(|l, s| l
                        .binary::<f32, f32, u32>(s, |a, b| u32::from(f16_from(a)) << 16 | u32::from(f16_from(b))))
                }
                _ => return Err(format!("no conversion of .{from} to .{to} like this")),
            };
        self.lanes(levels, Width::B32, &[Width::B32; 2])
    }

    /// Between generic addresses and those of a space. Global addresses are generic ones.
    fn cvta(&mut self) -> Decoded {
        let kind = self.kind()?;
        if kind != "u64" {
            return Err("addresses have 64 bits".into());
        }
        let back = self.takes("to");
        let base = match self.takes_one(&["global", "shared::cta", "shared", "local", "const", "param"]) {
            Some("global" | "const") => 0,
            Some("shared" | "shared::cta") => SHARED_WINDOW,
            Some("local") => super::LOCAL_WINDOW,
            _ => return Err("the address's space is not known".into()),
        };
        self.expects(2)?;
        let add = levels!(|l, s| l.binary::<u64, u64, u64>(s, |a, b| a.wrapping_add(b)));
        let shift: u64 = if back { 0u64.wrapping_sub(base) } else { base };
        let mut step = super::Step::new(super::Kind::Lanes);
        step.run = Some(add);
        step.destinations.push(self.destination(0, Width::B64)?);
        step.sources = vec![self.source(1, Width::B64)?, Source::Value(truncated(shift, Width::B64), Width::B64)];
        Ok(Some(vec![step]))
    }
}

fn float_to_integer(from: &str, to: &str, rounding: &str, ftz: bool) -> Option<Levels> {
    match (from, rounding, ftz) {
        ("f32", "rni", false) => to_integer!(to, f32, f32::round_ties_even),
        ("f32", "rzi", false) => to_integer!(to, f32, f32::trunc),
        ("f32", "rmi", false) => to_integer!(to, f32, f32::floor),
        ("f32", "rpi", false) => to_integer!(to, f32, f32::ceil),
        ("f32", "rni" | "rzi", true) => to_integer!(to, f32, |x| flushed(x).round_ties_even())
            .filter(|_| rounding == "rni")
            .or_else(|| to_integer!(to, f32, |x| flushed(x).trunc())),
        ("f32", "rmi", true) => to_integer!(to, f32, |x| flushed(x).floor()),
        ("f32", "rpi", true) => to_integer!(to, f32, |x| flushed(x).ceil()),
        ("f64", "rni", false) => to_integer!(to, f64, f64::round_ties_even),
        ("f64", "rzi", false) => to_integer!(to, f64, f64::trunc),
        ("f64", "rmi", false) => to_integer!(to, f64, f64::floor),
        ("f64", "rpi", false) => to_integer!(to, f64, f64::ceil),
        _ => None,
    }
}

fn integer_to_float(from: &str, to: &str) -> Option<Levels> {
    macro_rules! case {
        ($c:ty, $t:ty) => {
            match to {
                "f32" => Some(levels!(|l, s| l.unary::<$c, f32>(s, |x| x as $t as f32))),
                "f64" => Some(levels!(|l, s| l.unary::<$c, f64>(s, |x| x as $t as f64))),
                _ => None,
            }
        };
    }
    match from {
        "u8" => case!(u16, u8),
        "s8" => case!(u16, i8),
        "u16" => case!(u16, u16),
        "s16" => case!(u16, i16),
        "u32" => case!(u32, u32),
        "s32" => case!(u32, i32),
        "u64" => case!(u64, u64),
        "s64" => case!(u64, i64),
        _ => None,
    }
}

fn float_to_float(from: &str, to: &str, rounding: Option<&str>, ftz: bool, sat: bool) -> Option<Levels> {
    macro_rules! f32s {
        (|$x:ident| $e:expr) => {
            match (ftz, sat) {
                (false, false) => levels!(|l, s| l.unary::<f32, f32>(s, |$x| $e)),
                (true, false) => levels!(|l, s| l.unary::<f32, f32>(s, |v| {
                    let $x = flushed(v);
                    flushed($e)
                })),
                (false, true) => levels!(|l, s| l.unary::<f32, f32>(s, |$x| saturated($e))),
                (true, true) => levels!(|l, s| l.unary::<f32, f32>(s, |v| {
                    let $x = flushed(v);
                    saturated($e)
                })),
            }
        };
    }
    macro_rules! narrowed {
        ($mode:expr) => {
            levels!(|l, s| l.unary::<f64, f32>(s, |x| rounded(x, 0.0, $mode)))
        };
    }
    Some(match (from, to, rounding) {
        ("f32", "f32", None) => f32s!(|x| x),
        ("f32", "f32", Some("rni")) => f32s!(|x| x.round_ties_even()),
        ("f32", "f32", Some("rzi")) => f32s!(|x| x.trunc()),
        ("f32", "f32", Some("rmi")) => f32s!(|x| x.floor()),
        ("f32", "f32", Some("rpi")) => f32s!(|x| x.ceil()),
        _ if ftz || sat => return None,
        ("f32", "f64", None) => levels!(|l, s| l.unary::<f32, f64>(s, f64::from)),
        ("f64", "f32", Some("rn")) => levels!(|l, s| l.unary::<f64, f32>(s, |x| x as f32)),
        ("f64", "f32", Some("rz")) => narrowed!(Rounding::Zero),
        ("f64", "f32", Some("rm")) => narrowed!(Rounding::Down),
        ("f64", "f32", Some("rp")) => narrowed!(Rounding::Up),
        ("f64", "f64", Some("rni")) => levels!(|l, s| l.unary::<f64, f64>(s, |x| x.round_ties_even())),
        ("f64", "f64", Some("rzi")) => levels!(|l, s| l.unary::<f64, f64>(s, |x| x.trunc())),
        ("f64", "f64", Some("rmi")) => levels!(|l, s| l.unary::<f64, f64>(s, |x| x.floor())),
        ("f64", "f64", Some("rpi")) => levels!(|l, s| l.unary::<f64, f64>(s, |x| x.ceil())),
        ("f32", "bf16", Some("rn")) => levels!(|l, s| l.unary::<f32, u16>(s, bf16_from)),
        ("f32", "bf16", Some("rz")) => levels!(|l, s| l.unary::<f32, u16>(s, bf16_towards_zero)),
        ("bf16", "f32", None) => levels!(|l, s| l.unary::<u16, f32>(s, bf16_to)),
        ("f32", "f16", Some("rn")) => levels!(|l, s| l.unary::<f32, u16>(s, f16_from)),
        ("f16", "f32", None) => levels!(|l, s| l.unary::<u16, f32>(s, f16_to)),
        _ => return None,
    })
}
