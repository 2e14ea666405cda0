//! Cases of QK-norm.

use super::qk_norm;
use crate::ops::case::{Case, Input, Values};

fn case(name: &str, [batch, tokens, heads, kv_heads, dim]: [usize; 5]) -> Case {
    let inputs = vec![
        Input::activation("qkv", [batch, tokens, (heads + 2 * kv_heads) * dim]),
        Input::parameter("q_weight", [dim]).with(Values::Uniform(0.5, 1.5)),
        Input::parameter("k_weight", [dim]).with(Values::Uniform(0.5, 1.5)),
    ];
    Case::new("qk_norm", name, inputs, move |tape, inputs| {
        Ok(vec![qk_norm(tape, &inputs[0], &inputs[1], &inputs[2], heads, kv_heads, 1e-6)?])
    })
    .sums(dim.max(batch * tokens * heads))
}

/// Shapes of the presets, odd ones, and one large enough to time.
pub fn cases() -> Vec<Case> {
    vec![
        case("b2_t65_h8_kv2_d48", [2, 65, 8, 2, 48]),
        case("odd_b3_t7_h4_kv1_d20", [3, 7, 4, 1, 20]),
        case("odd_b1_t33_h3_kv3_d13", [1, 33, 3, 3, 13]),
        case("one_row_d2", [1, 1, 1, 1, 2]),
        case("b1_t34_h2_kv1_d128", [1, 34, 2, 1, 128]),
        case("b256_t65_h8_kv2_d48", [256, 65, 8, 2, 48]).large(),
    ]
}
