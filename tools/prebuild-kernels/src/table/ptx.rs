//! The prebuilt PTX: each kernel's instructions, with their lines.

use std::collections::{BTreeMap, HashMap};

use super::flow::{Anchor, Flow, Instruction};

/// The instructions of every entry.
pub fn kernels(text: &str) -> Result<BTreeMap<String, Vec<Instruction>>, String> {
    let mut all = BTreeMap::new();
    let mut open: Option<(&str, Vec<(usize, &str)>)> = None;
    let mut in_body = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some((_, rest)) = line.split_once(".entry ") {
            open = Some((rest.split('(').next().unwrap_or_default().trim(), Vec::new()));
            in_body = false;
        }
        let Some((_, body)) = &mut open else { continue };
        match line {
            // Braces of inline PTX are indented.
            "{" => in_body = true,
            "}" => {
                if let Some((name, body)) = open.take() {
                    let code = resolve(&body).map_err(|error| format!("{name}: {error}"))?;
                    all.insert(name.to_string(), code);
                }
            }
            _ if in_body && !trimmed.is_empty() && !matches!(trimmed, "{" | "}") && !trimmed.starts_with('.') => {
                body.push((index + 1, trimmed))
            }
            _ => {}
        }
    }
    Ok(all)
}

fn resolve(body: &[(usize, &str)]) -> Result<Vec<Instruction>, String> {
    let (mut labels, mut instructions) = (HashMap::new(), Vec::new());
    let mut continued = false;
    for &(line, text) in body {
        match text.strip_suffix(':') {
            Some(label) if !continued => {
                labels.insert(label, instructions.len());
            }
            _ => {
                if !continued {
                    instructions.push((line, text));
                }
                continued = !text.ends_with(';');
            }
        }
    }
    let mut code = Vec::with_capacity(instructions.len());
    for (line, text) in instructions {
        let (guarded, text) = match text.strip_prefix('@') {
            Some(rest) => (true, rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start())),
            None => (false, text),
        };
        let (opcode, operands) = text.trim_end_matches(';').split_once(char::is_whitespace).unwrap_or((text, ""));
        let opcode = opcode.trim_end_matches(';');
        let parts: Vec<&str> = opcode.split('.').collect();
        let flow = match parts[0] {
            "bra" => {
                let label = operands.trim();
                let target = *labels.get(label).ok_or(format!("no label {label:?}, which a branch goes to"))?;
                if guarded { Flow::Branch(target) } else { Flow::Jump(target) }
            }
            "ret" | "exit" | "trap" if !guarded => Flow::End,
            "brx" => return Err(format!("{opcode} is a jump that this does not follow")),
            _ => Flow::Next,
        };
        let anchor = match parts[0] {
            "mma" => Some(Anchor::Mma),
            "fma" | "add" | "sub" | "mul" if parts.last() == Some(&"f32") => Some(Anchor::Float),
            "ld" | "st" if parts[1..].contains(&"global") => Some(Anchor::Global),
            "cp" if parts[1..].starts_with(&["async"]) && parts.contains(&"global") => Some(Anchor::Global),
            _ => None,
        };
        code.push(Instruction { line, seldom: false, anchor, flow });
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prebuilt_ptx() {
        let text = ".version 8.4\n.visible .entry k(\n\t.param .u64 k_param_0\n)\n{\n\t.reg .b32 %r<4>;\n$L__BB0_1:\n\
            \t.loc 1 2 3\n\tfma.rn.f32 \t%f1, %f2, %f2, %f1;\n\tmma.sync.aligned.m16n8k16 {%f1},\n\t\t{%r1};\n\
            \tld.global.nc.f32 \t%f4, [%rd1];\n\t@%p1 bra \t$L__BB0_1;\n\t{\n\tadd.s32 \t%r1, %r2, 1;\n\t}\n\tret;\n}\n";
        let instruction = |line, anchor, flow| Instruction { line, seldom: false, anchor, flow };
        let expected = vec![
            instruction(9, Some(Anchor::Float), Flow::Next),
            instruction(10, Some(Anchor::Mma), Flow::Next),
            instruction(12, Some(Anchor::Global), Flow::Next),
            instruction(13, None, Flow::Branch(0)),
            instruction(15, None, Flow::Next),
            instruction(17, None, Flow::End),
        ];
        assert_eq!(kernels(text).unwrap(), BTreeMap::from([("k".to_string(), expected)]));
        assert!(kernels(".entry k(\n{\n\tbra.uni \t$L;\n}\n").unwrap_err().contains("no label \"$L\""));
    }
}
