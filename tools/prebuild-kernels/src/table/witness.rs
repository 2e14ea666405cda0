//! The second witness of the ratio: for five kernels the hot loop is counted again from nvdisasm's JSON, by addresses alone.

use serde_json::Value;

/// Products of a linear layer and of its gradient, a convolution's and its gradient's, and a norm's, which has no `mma`: kernels whose hot
/// loop keeps its blocks together, for addresses do not find those that ptxas moves away.
pub const KERNELS: [&str; 5] = [
    "linear_fwd_large_bf16",
    "linear_bwd_weight_large_bf16",
    "conv2d_fwd_large_bf16",
    "conv2d_bwd_weight_large_bf16",
    "layer_norm_bwd_input_bf16",
];

/// The opcodes that a loop is known by, the most telling first.
const ANCHORS: [&[&str]; 3] = [&["HMMA"], &["FFMA", "FADD", "FMUL"], &["LDG", "STG", "LDGSTS"]];

/// The instructions of the kernel's hot loop, without the loops within it. A loop here is what lies from the target of a jump backwards to
/// that jump; no control flow is followed.
pub fn hot_loop(json: &str, kernel: &str) -> Result<usize, String> {
    let listing: Value = serde_json::from_str(json).map_err(|error| format!("nvdisasm's JSON: {error}"))?;
    let function = listing.as_array().into_iter().flatten().filter_map(Value::as_array).flatten();
    let function = function.into_iter().find(|function| function["function-name"] == kernel);
    let instructions = function.and_then(|function| function["sass-instructions"].as_array());
    let instructions = instructions.ok_or(format!("nvdisasm's JSON does not list {kernel}"))?;
    let opcode =
        |index: usize| instructions[index]["opcode"].as_str().unwrap_or_default().split('.').next().unwrap_or_default();
    let mut spans = Vec::new();
    for (index, instruction) in instructions.iter().enumerate().filter(|&(index, _)| opcode(index) == "BRA") {
        let operands = instruction["operands"].as_str().unwrap_or_default();
        let target = operands
            .rsplit(',')
            .next()
            .and_then(|o| o.trim().strip_prefix("0x"))
            .and_then(|o| usize::from_str_radix(o, 16).ok());
        // An instruction has 16 bytes.
        let target = target.ok_or(format!("{kernel}: a branch to {operands:?}"))? / 16;
        if target < index {
            spans.push(target..index + 1);
        }
    }
    let innermost = |index: usize| spans.iter().filter(|span| span.contains(&index)).min_by_key(|span| span.len());
    for anchors in ANCHORS {
        let counts = spans.iter().map(|span| {
            (
                span.clone()
                    .filter(|&index| anchors.contains(&opcode(index)) && innermost(index) == Some(span))
                    .count(),
                span,
            )
        });
        // Of equals the first: a loop's last steps follow it as a loop of their own.
        if let Some((1.., hot)) = counts.max_by_key(|(count, span)| (*count, std::cmp::Reverse(span.start))) {
            return Ok(hot.clone().filter(|&index| innermost(index) == Some(hot)).count());
        }
    }
    Err(format!("{kernel} has no loop"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_addresses() {
        let instruction =
            |opcode: &str, operands: &str| format!("{{\"opcode\":\"{opcode}\",\"operands\":\"{operands}\"}}");
        let code = [
            instruction("MOV", "R1,R2"),
            instruction("HMMA.16816.F32.BF16", "R4"),
            instruction("LDG.E", "R4"),
            instruction("BRA", "0x20"),
            instruction("BRA.U", "UP0,0x10"),
            instruction("EXIT", ""),
            instruction("BRA", "0x60"),
        ]
        .join(",");
        let json = format!("[{{\"SM\":{{}}}},[{{\"function-name\":\"k\",\"sass-instructions\":[{code}]}}]]");
        assert_eq!(hot_loop(&json, "k"), Ok(2));
        assert!(hot_loop(&json, "j").unwrap_err().contains("does not list j"));
    }
}
