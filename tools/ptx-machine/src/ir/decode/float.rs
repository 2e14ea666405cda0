//! Arithmetic on floats, and the approximate functions.

use super::{Decoded, Decoder, pick, width};
use crate::exec::approx::{self, Rounding, flushed, fma_directed, rounded, saturated};
use crate::exec::lanes::{Levels, levels};
use crate::parse::Width;

macro_rules! f32_unary {
    (|$x:ident| $e:expr) => {
        levels!(|l, s| l.unary::<f32, f32>(s, |$x| $e))
    };
}
macro_rules! f32_binary {
    (|$x:ident, $y:ident| $e:expr) => {
        levels!(|l, s| l.binary::<f32, f32, f32>(s, |$x, $y| $e))
    };
}
macro_rules! f32_ternary {
    (|$x:ident, $y:ident, $z:ident| $e:expr) => {
        levels!(|l, s| l.ternary::<f32, f32, f32, f32>(s, |$x, $y, $z| $e))
    };
}

/// An operation on f32 with `.ftz` and `.sat` or without.
macro_rules! variants {
    ($ftz:expr, $sat:expr, unary |$x:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => f32_unary!(|$x| $e),
            (true, false) => f32_unary!(|v| {
                let $x = flushed(v);
                flushed($e)
            }),
            (false, true) => f32_unary!(|$x| saturated($e)),
            (true, true) => f32_unary!(|v| {
                let $x = flushed(v);
                saturated(flushed($e))
            }),
        }
    };
    ($ftz:expr, $sat:expr, binary |$x:ident, $y:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => f32_binary!(|$x, $y| $e),
            (true, false) => f32_binary!(|v, w| {
                let ($x, $y) = (flushed(v), flushed(w));
                flushed($e)
            }),
            (false, true) => f32_binary!(|$x, $y| saturated($e)),
            (true, true) => f32_binary!(|v, w| {
                let ($x, $y) = (flushed(v), flushed(w));
                saturated(flushed($e))
            }),
        }
    };
    ($ftz:expr, $sat:expr, ternary |$x:ident, $y:ident, $z:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => f32_ternary!(|$x, $y, $z| $e),
            (true, false) => f32_ternary!(|u, v, w| {
                let ($x, $y, $z) = (flushed(u), flushed(v), flushed(w));
                flushed($e)
            }),
            (false, true) => f32_ternary!(|$x, $y, $z| saturated($e)),
            (true, true) => f32_ternary!(|u, v, w| {
                let ($x, $y, $z) = (flushed(u), flushed(v), flushed(w));
                saturated(flushed($e))
            }),
        }
    };
}

impl Decoder<'_> {
    pub(super) fn float(&mut self) -> Decoded {
        let known = [
            "add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh",
            "abs", "neg", "min", "max", "copysign",
        ];
        if !known.contains(&self.base) {
            return Ok(None);
        }
        match self.kind()? {
            "f32" => self.single(),
            "f64" => self.double(),
            other => Err(format!("not of type .{other}")),
        }
    }

    fn rounding(&mut self) -> Option<Rounding> {
        Some(match self.takes_one(&["rn", "rz", "rm", "rp"])? {
            "rn" => Rounding::Nearest,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            _ => Rounding::Up,
        })
    }

    fn single(&mut self) -> Decoded {
        let word = Width::B32;
        let approximate = self.takes_one(&["approx", "full"]);
        let rounding = self.rounding();
        let (ftz, sat) = (self.takes("ftz"), self.takes("sat"));
        let needs_rounding = matches!(self.base, "fma" | "mad");
        let either = matches!(self.base, "div" | "rcp" | "sqrt");
        let only_approximate = matches!(self.base, "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh");
        if (needs_rounding && rounding.is_none()) || (either && rounding.is_none() == approximate.is_none()) {
            return Err("one rounding is needed".into());
        }
        if only_approximate && (approximate != Some("approx") || rounding.is_some()) {
            return Err("only .approx is known".into());
        }
        if !either && !only_approximate && approximate.is_some() {
            return Err("nothing to approximate".into());
        }
        let rounds = matches!(self.base, "add" | "sub" | "mul" | "fma" | "mad") || either;
        if (rounding.is_some() && !rounds) || (sat && !matches!(self.base, "add" | "sub" | "mul" | "fma" | "mad")) {
            return Err("a modifier that it does not have".into());
        }
        let mode = rounding.unwrap_or(Rounding::Nearest);
        let (levels, sources) = match self.base {
            "add" | "sub" | "mul" | "fma" | "mad" => (arithmetic(self.base, mode, ftz, sat)?, self.base),
            "min" | "max" => (self.extremum(ftz), self.base),
            _ => (functions(self.base, mode, approximate.is_some(), ftz)?, self.base),
        };
        let count = match sources {
            "fma" | "mad" => 3,
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            _ => 1,
        };
        self.lanes(levels, word, &[word; 3][..count])
    }

    fn extremum(&mut self, ftz: bool) -> Levels {
        let nan = self.takes("NaN");
        // Without .NaN a number wins over NaN; -0 is below +0.
        match (self.base == "min", nan) {
            (true, false) => variants!(ftz, false, binary | a, b | lesser(a, b)),
            (false, false) => variants!(ftz, false, binary | a, b | -lesser(-a, -b)),
            (true, true) => {
                variants!(ftz, false, binary | a, b | if a.is_nan() || b.is_nan() { f32::NAN } else { lesser(a, b) })
            }
            (false, true) => {
                variants!(ftz, false, binary | a, b | if a.is_nan() || b.is_nan() { f32::NAN } else { -lesser(-a, -b) })
            }
        }
    }

    fn double(&mut self) -> Decoded {
        let rounding = self.rounding();
        if rounding.is_some_and(|mode| mode != Rounding::Nearest) {
            return Err("f64 is rounded to nearest only".into());
        }
        if rounding.is_none() && matches!(self.base, "fma" | "mad" | "div" | "rcp" | "sqrt") {
            return Err("a rounding is needed".into());
        }
        macro_rules! unary {
            (|$x:ident| $e:expr) => {
                (levels!(|l, s| l.unary::<f64, f64>(s, |$x| $e)), 1)
            };
        }
        macro_rules! binary {
            (|$x:ident, $y:ident| $e:expr) => {
                (levels!(|l, s| l.binary::<f64, f64, f64>(s, |$x, $y| $e)), 2)
            };
        }
        let (levels, count) = match self.base {
            "add" => binary!(|a, b| a + b),
            "sub" => binary!(|a, b| a - b),
            "mul" => binary!(|a, b| a * b),
            "div" => binary!(|a, b| a / b),
            "min" => binary!(|a, b| a.min(b)),
            "max" => binary!(|a, b| a.max(b)),
            "copysign" => binary!(|a, b| b.copysign(a)),
            "fma" | "mad" => (levels!(|l, s| l.ternary::<f64, f64, f64, f64>(s, |a, b, c| a.mul_add(b, c))), 3),
            "rcp" => unary!(|a| 1.0 / a),
            "sqrt" => unary!(|a| a.sqrt()),
            "abs" => unary!(|a| a.abs()),
            "neg" => unary!(|a| -a),
            _ => return Err("not of type .f64".into()),
        };
        let wide = width("f64").unwrap_or(Width::B64);
        self.lanes(levels, wide, &[wide; 3][..count])
    }
}

#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    let zeros = a == 0.0 && b == 0.0;
    if zeros {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b || b.is_nan() {
        a
    } else {
        b
    }
}

fn arithmetic(base: &str, mode: Rounding, ftz: bool, sat: bool) -> Result<Levels, super::Fault> {
    macro_rules! directed {
        ($mode:expr) => {
            match base {
                "add" => variants!(ftz, sat, binary | a, b | fma_directed(a, 1.0, b, $mode)),
                "sub" => variants!(ftz, sat, binary | a, b | fma_directed(a, 1.0, -b, $mode)),
                "mul" => variants!(ftz, sat, binary | a, b | rounded(f64::from(a) * f64::from(b), 0.0, $mode)),
                _ => variants!(ftz, sat, ternary | a, b, c | fma_directed(a, b, c, $mode)),
            }
        };
    }
    Ok(match mode {
        Rounding::Nearest => match base {
            "add" => variants!(ftz, sat, binary | a, b | a + b),
            "sub" => variants!(ftz, sat, binary | a, b | a - b),
            "mul" => variants!(ftz, sat, binary | a, b | a * b),
            _ => variants!(ftz, sat, ternary | a, b, c | a.mul_add(b, c)),
        },
        Rounding::Down => directed!(Rounding::Down),
        Rounding::Up => directed!(Rounding::Up),
        Rounding::Zero => directed!(Rounding::Zero),
    })
}

/// Functions of one or two values. Approximate ones are computed in f64 and rounded, which is within every stated error.
fn functions(base: &str, mode: Rounding, approximate: bool, ftz: bool) -> Result<Levels, super::Fault> {
    // Approximate functions of f32 take the quotient or root to nearest.
    if !approximate && mode != Rounding::Nearest {
        return match (base, mode) {
            ("div", Rounding::Down) => Ok(variants!(ftz, false, binary | a, b | quotient(a, b, Rounding::Down))),
            ("div", Rounding::Up) => Ok(variants!(ftz, false, binary | a, b | quotient(a, b, Rounding::Up))),
            ("div", _) => Ok(variants!(ftz, false, binary | a, b | quotient(a, b, Rounding::Zero))),
            ("rcp", Rounding::Down) => Ok(variants!(ftz, false, unary | a | quotient(1.0, a, Rounding::Down))),
            ("rcp", Rounding::Up) => Ok(variants!(ftz, false, unary | a | quotient(1.0, a, Rounding::Up))),
            ("rcp", _) => Ok(variants!(ftz, false, unary | a | quotient(1.0, a, Rounding::Zero))),
            _ => Err("this rounding is not known".into()),
        };
    }
    Ok(match base {
        "div" => variants!(ftz, false, binary | a, b | a / b),
        "rcp" => variants!(ftz, false, unary | a | 1.0 / a),
        "sqrt" => variants!(ftz, false, unary | a | a.sqrt()),
        "rsqrt" => variants!(ftz, false, unary | a | (1.0 / f64::from(a).sqrt()) as f32),
        "ex2" => variants!(ftz, false, unary | a | approx::exp2(a)),
        "lg2" => variants!(ftz, false, unary | a | f64::from(a).log2() as f32),
        "sin" => variants!(ftz, false, unary | a | f64::from(a).sin() as f32),
        "cos" => variants!(ftz, false, unary | a | f64::from(a).cos() as f32),
        "tanh" => variants!(ftz, false, unary | a | f64::from(a).tanh() as f32),
        "abs" => variants!(ftz, false, unary | a | a.abs()),
        "neg" => variants!(ftz, false, unary | a | -a),
        "copysign" => variants!(ftz, false, binary | a, b | b.copysign(a)),
        _ => return Err("unknown instruction".into()),
    })
}

/// a / b rounded in a direction: the remainder tells on which side the f64 quotient lies.
#[inline(always)]
fn quotient(a: f32, b: f32, mode: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let q = a / b;
    let rest = if q.is_finite() { (-q).mul_add(b, a) / b } else { 0.0 };
    rounded(q, rest, mode)
}

/// Comparisons of floats, by name: `u` behind it means that NaN makes it true.
pub(super) fn comparison(name: &str, kind: &str) -> Option<Levels> {
    macro_rules! compare {
        (|$x:ident, $y:ident| $e:expr) => {
            pick!(kind, T, ["f32" => f32, "f64" => f64], levels!(|l, s| l.compare::<T>(s, |$x, $y| $e)))
        };
    }
    #[allow(clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons, reason = "NaN is the point")]
    match name {
        "eq" => compare!(|a, b| a == b),
        "ne" => compare!(|a, b| a < b || a > b),
        "lt" => compare!(|a, b| a < b),
        "le" => compare!(|a, b| a <= b),
        "gt" => compare!(|a, b| a > b),
        "ge" => compare!(|a, b| a >= b),
        "equ" => compare!(|a, b| !(a < b || a > b)),
        "neu" => compare!(|a, b| a != b),
        "ltu" => compare!(|a, b| !(a >= b)),
        "leu" => compare!(|a, b| !(a > b)),
        "gtu" => compare!(|a, b| !(a <= b)),
        "geu" => compare!(|a, b| !(a < b)),
        "num" => compare!(|a, b| !a.is_nan() && !b.is_nan()),
        "nan" => compare!(|a, b| a.is_nan() || b.is_nan()),
        _ => None,
    }
}
