//! SASS as `nvdisasm -c -gp` lists it: each kernel's instructions, with the line of the PTX that each comes from.

use std::collections::{BTreeMap, HashMap};

use super::flow::{Anchor, Flow, Instruction};

/// The instructions of every kernel, without the `NOP`s behind its end and the jump to itself in front of them.
pub fn kernels(listing: &str) -> Result<BTreeMap<String, Vec<Instruction>>, String> {
    let mut all = BTreeMap::new();
    let mut open: Option<Open> = None;
    for line in listing.lines() {
        let text = line.trim();
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            open = Some(Open { name: name.into(), ..Open::default() });
        } else if text.starts_with(".section") {
            close(open.take(), &mut all)?;
        } else if let Some(kernel) = &mut open {
            kernel.read(text);
        }
    }
    close(open, &mut all)?;
    Ok(all)
}

fn close(open: Option<Open>, all: &mut BTreeMap<String, Vec<Instruction>>) -> Result<(), String> {
    if let Some(open) = open {
        let name = open.name.clone();
        let code = open.resolve().map_err(|error| format!("{name}: {error}"))?;
        all.insert(name, code);
    }
    Ok(())
}

/// One line of the listing.
struct Listed<'a> {
    line: usize,
    seldom: bool,
    opcode: &'a str,
    operands: &'a str,
    guarded: bool,
}

#[derive(Default)]
struct Open<'a> {
    name: String,
    line: usize,
    labels: HashMap<&'a str, usize>,
    /// In a subroutine for operands that seldom come, such as a denormal divisor.
    seldom: bool,
    instructions: Vec<Listed<'a>>,
}

impl<'a> Open<'a> {
    fn read(&mut self, text: &'a str) {
        if let Some(rest) = text.strip_prefix("//## File \".nv_debug_ptx_txt\", line ") {
            self.line = rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(self.line);
        } else if let Some(label) = text.strip_suffix(':') {
            self.labels.insert(label, self.instructions.len());
            if label.starts_with('$') {
                self.seldom = label.ends_with("_slowpath");
            }
        } else if let Some((_, rest)) = text.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
            let rest = rest.trim().trim_end_matches(';').trim_end();
            let (guarded, rest) = match rest.strip_prefix('@') {
                Some(rest) => (true, rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start())),
                None => (false, rest),
            };
            let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            // The wait for the grids before, which the engine adds to each kernel (`griddepcontrol`).
            let wait = matches!(opcode, "ACQBULK" | "PREEXIT");
            let (line, seldom, operands) = (self.line, self.seldom || wait, operands.trim());
            self.instructions.push(Listed { line, seldom, opcode, operands, guarded });
        }
    }

    fn resolve(self) -> Result<Vec<Instruction>, String> {
        let Self { labels, instructions, .. } = self;
        let target = |operands: &str| {
            let label = operands.split_once("`(").and_then(|(_, rest)| rest.split(')').next()).unwrap_or_default();
            labels.get(label).copied().ok_or(format!("no label {label:?}, which a branch goes to"))
        };
        let mut code = Vec::with_capacity(instructions.len());
        for &Listed { line, seldom, opcode, operands, guarded } in &instructions {
            let base = opcode.split('.').next().unwrap_or_default();
            let flow = match base {
                // To a copy of a shuffle for lanes that have gone apart, behind the kernel; ours never have.
                "BRA" if opcode.starts_with("BRA.DIV") => Flow::Next,
                // `BRA.U` and others have a condition among the operands.
                "BRA" if guarded || !operands.starts_with('`') => Flow::Branch(target(operands)?),
                "BRA" => Flow::Jump(target(operands)?),
                // Of the kernel's own code ptxas calls only what never comes back: a loop is left so.
                "CALL" if operands.starts_with("`(.L") && guarded => Flow::Branch(target(operands)?),
                "CALL" if operands.starts_with("`(.L") => Flow::Jump(target(operands)?),
                "EXIT" | "RET" | "KILL" if !guarded => Flow::End,
                "BRX" | "JMP" | "JMX" => return Err(format!("{opcode} is a jump that this does not follow")),
                _ => Flow::Next,
            };
            let anchor = match base {
                "HMMA" | "IMMA" | "DMMA" | "HGMMA" => Some(Anchor::Mma),
                "FFMA" | "FADD" | "FMUL" => Some(Anchor::Float),
                // Generic accesses (`LD`, `ST`): none of ours are, but ptxas cannot always show it.
                "LDG" | "STG" | "LDGSTS" | "LD" | "ST" => Some(Anchor::Global),
                _ => None,
            };
            code.push(Instruction { line, seldom, anchor, flow });
        }
        while instructions.get(code.len().wrapping_sub(1)).is_some_and(|last| last.opcode == "NOP") {
            code.pop();
        }
        if code.last().is_some_and(|last| last.flow == Flow::Jump(code.len() - 1)) {
            code.pop();
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nvdisasm() {
        let listing = "\t.section\t.text.k,\"ax\",@progbits\nk:\n.text.k:\n\
            \t//## File \".nv_debug_ptx_txt\", line 12\n        /*0000*/                   S2R R1, SR_TID.X ;\n.L_x_1:\n\
            \t//## File \".nv_debug_ptx_txt\", line 14\n        /*0010*/                   FFMA R2, R1, R1, R2 ;\n\
                    /*0018*/                   BRA.DIV UR4, `(.L_x_2) ;\n\
                    /*0020*/              @P0 BRA P1, `(.L_x_1) ;\n        /*0030*/              @!P1 CALL.REL.NOINC `(.L_x_3) ;\n\
                    /*0040*/              @!P0 EXIT ;\n        /*0050*/                   BRA.U UP0, `(.L_x_1) ;\n\
                    /*0060*/                   EXIT ;\n$__internal_0_$__cuda_sm20_rcp_rn_f32_slowpath:\n.L_x_3:\n\
                    /*0070*/                   RET.REL.NODEC R2 `(k) ;\n.L_x_2:\n\
                    /*0080*/                   BRA `(.L_x_2);\n        /*0090*/                   NOP;\n\
            \t.section\t.rela.text,\"\"\n";
        let instruction = |line, seldom, anchor, flow| Instruction { line, seldom, anchor, flow };
        let expected = vec![
            instruction(12, false, None, Flow::Next),
            instruction(14, false, Some(Anchor::Float), Flow::Next),
            instruction(14, false, None, Flow::Next),
            instruction(14, false, None, Flow::Branch(1)),
            instruction(14, false, None, Flow::Branch(8)),
            instruction(14, false, None, Flow::Next),
            instruction(14, false, None, Flow::Branch(1)),
            instruction(14, false, None, Flow::End),
            instruction(14, true, None, Flow::End),
        ];
        assert_eq!(kernels(listing).unwrap(), BTreeMap::from([("k".to_string(), expected)]));
        assert!(kernels(".text.k:\n /*0000*/ BRA `(.L_x_9) ;\n").unwrap_err().contains("k: no label \".L_x_9\""));
    }
}
