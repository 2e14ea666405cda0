//! Variables, parameters and registers.

use super::*;

/// Bytes of a fundamental type.
pub(super) fn type_bytes(name: &str) -> Option<u64> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

impl Parser<'_> {
    pub(super) fn module_variable(&mut self, space: &str, external: bool) -> Result<()> {
        let variable = self.variable(space, external)?;
        if self.module.variables.iter().any(|other| other.name == variable.name) {
            return self.fault(format!("a second variable {}", variable.name));
        }
        self.module.variables.push(variable);
        Ok(())
    }

    /// The declaration behind `.shared` and the like.
    pub(super) fn variable(&mut self, space: &str, external: bool) -> Result<Variable> {
        let space = match space {
            "global" => Space::Global,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "const" => Space::Const,
            other => return self.fault(format!("no variables in .{other}")),
        };
        let mut align = None;
        let mut kind = self.dot()?;
        if kind == "align" {
            align = Some(self.number_to(1 << 16)?);
            kind = self.dot()?;
        }
        let lanes = match kind {
            "v2" | "v4" => {
                let lanes = if kind == "v2" { 2 } else { 4 };
                kind = self.dot()?;
                lanes
            }
            _ => 1,
        };
        let Some(width) = type_bytes(kind) else { return self.fault(format!("unknown type .{kind}")) };
        let align = align.unwrap_or(width * lanes);
        if !align.is_power_of_two() {
            return self.fault(format!("an alignment of {align}"));
        }
        let name = self.word()?.to_string();
        let mut size = width * lanes;
        let mut dynamic = false;
        while self.takes(b'[') {
            if self.takes(b']') {
                dynamic = true;
                continue;
            }
            let count = self.number_to(MAX_VARIABLE_BYTES)?;
            size = size.saturating_mul(count);
            self.expect(b']')?;
        }
        if dynamic {
            size = 0;
        }
        if dynamic != (external && space == Space::Shared) {
            return self.fault(format!("{name}: only external shared arrays go without a size"));
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_VARIABLE_BYTES {
            return self.fault(format!("{name}: variables of more than {MAX_VARIABLE_BYTES} bytes"));
        }
        let init = if self.takes(b'=') { Some(self.initializer(kind, width, size)?) } else { None };
        self.expect(b';')?;
        Ok(Variable { name, space, align, size, init, external })
    }

    /// `1` or `{1, 2, 3}`; what is not stated is zero.
    fn initializer(&mut self, kind: &str, width: u64, size: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let braces = self.takes(b'{');
        loop {
            let value = self.initial_value(kind)?;
            bytes.extend_from_slice(&value.to_le_bytes()[..width as usize]);
            if bytes.len() as u64 > size {
                return self.fault("more initial values than the variable has");
            }
            if !braces {
                break;
            }
            if !self.takes(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        bytes.resize(size as usize, 0);
        Ok(bytes)
    }

    fn initial_value(&mut self, kind: &str) -> Result<u64> {
        match self.constant()? {
            Operand::Int(value) if !kind.starts_with('f') => Ok(value),
            Operand::F32(bits) if matches!(kind, "f32" | "b32") => Ok(u64::from(bits)),
            Operand::F64(bits) if matches!(kind, "f64" | "b64") => Ok(bits),
            _ => self.fault(format!("no initial value of a .{kind}")),
        }
    }

    /// A literal with its sign.
    pub(super) fn constant(&mut self) -> Result<Operand> {
        let negative = self.takes(b'-');
        let inverted = !negative && self.takes(b'~');
        let Token::Number(text) = self.next()? else {
            self.at -= 1;
            return self.fault("a number expected");
        };
        let hex =
            |digits: &str, length| (digits.len() == length).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
        let float = match text.get(..2) {
            Some("0f" | "0F") => Some(hex(&text[2..], 8).map(|bits| Operand::F32(bits as u32))),
            Some("0d" | "0D") => Some(hex(&text[2..], 16).map(Operand::F64)),
            _ if text.contains('.') => Some(text.parse::<f64>().ok().map(|value| Operand::F64(value.to_bits()))),
            _ => None,
        };
        match (float, integer(text)) {
            (Some(Some(Operand::F32(bits))), _) if !inverted => Ok(Operand::F32(bits ^ (u32::from(negative) << 31))),
            (Some(Some(Operand::F64(bits))), _) if !inverted => Ok(Operand::F64(bits ^ (u64::from(negative) << 63))),
            (None, Some(value)) if inverted => Ok(Operand::Int(!value)),
            (None, Some(value)) => Ok(Operand::Int(if negative { value.wrapping_neg() } else { value })),
            _ => {
                self.at -= 1;
                self.fault(format!("{text} is no number"))
            }
        }
    }

    pub(super) fn parameter(&mut self, entry: &mut Entry) -> Result<()> {
        if self.dot()? != "param" {
            return self.fault(".param expected");
        }
        let mut align = None;
        let mut kind = self.dot()?;
        if kind == "align" {
            align = Some(self.number_to(128)?);
            kind = self.dot()?;
        }
        let Some(width) = type_bytes(kind) else { return self.fault(format!("unknown type .{kind}")) };
        // `.ptr .global .align 16` says more about a pointer.
        if self.peek() == Some(Token::Dot("ptr")) {
            self.at += 1;
            while let Some(Token::Dot(word)) = self.peek() {
                self.at += 1;
                match word {
                    "global" | "shared" | "const" | "local" => {}
                    "align" => {
                        self.number_to(1 << 16)?;
                    }
                    other => return self.fault(format!("unknown .{other} of a parameter")),
                }
            }
        }
        let align = align.unwrap_or(width) as u32;
        if !align.is_power_of_two() {
            return self.fault(format!("an alignment of {align}"));
        }
        let name = self.word()?.to_string();
        let mut size = width;
        if self.takes(b'[') {
            size = size.saturating_mul(self.number_to(1 << 15)?);
            self.expect(b']')?;
        }
        let offset = entry.param_bytes.next_multiple_of(align);
        // PTX ISA: 4352 bytes, 32764 from sm_70 and PTX 8.1 on.
        if u64::from(offset) + size > 32_764 {
            return self.fault("more than 32764 bytes of parameters");
        }
        if entry.params.iter().any(|other| other.name == name) {
            return self.fault(format!("a second parameter {name}"));
        }
        entry.param_bytes = offset + size as u32;
        entry.params.push(Param { name, offset, size: size as u32 });
        Ok(())
    }
}
