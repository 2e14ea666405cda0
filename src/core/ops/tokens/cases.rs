//! Cases of the token sequence.

use super::tokens;
use crate::ops::case::{Case, Input};

fn case(name: &str, [batch, count, width]: [usize; 3], token: bool) -> Case {
    let length = count + usize::from(token);
    let mut inputs =
        vec![Input::activation("patches", [batch, count, width]), Input::parameter("position", [length, width])];
    if token {
        inputs.push(Input::activation("token", [batch, width]));
    }
    Case::new("tokens", name, inputs, |tape, inputs| Ok(vec![tokens(tape, &inputs[0], inputs.get(2), &inputs[1])?]))
        .sums(batch)
}

/// With and without a token, odd sizes, and the preset's.
pub fn cases() -> Vec<Case> {
    vec![
        case("token_b2_t16_d32", [2, 16, 32], true),
        case("token_odd_b3_t5_d7", [3, 5, 7], true),
        case("patches_b2_t9_d33", [2, 9, 33], false),
        case("token_b35_t2_d8", [35, 2, 8], true),
        case("token_b256_t64_d384", [256, 64, 384], true).large(),
    ]
}
