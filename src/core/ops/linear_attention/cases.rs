//! Cases of linear attention.

use super::linear_attention;
use crate::ops::case::{Case, Input, Values};

fn filled(name: &str, [batch, tokens, heads, dim]: [usize; 4], values: Values) -> Case {
    let inputs = vec![Input::activation("qkv", [batch, tokens, 3 * heads * dim]).with(values)];
    Case::new("linear_attention", name, inputs, move |tape, inputs| {
        Ok(vec![linear_attention(tape, &inputs[0], heads)?])
    })
    .sums(tokens + dim)
}

fn case(name: &str, sizes: [usize; 4]) -> Case {
    filled(name, sizes, Values::Uniform(-1.5, 1.5))
}

/// With queries and keys between the two, in an order without a pattern; values as elsewhere.
fn features(name: &str, sizes: [usize; 4], (low, high): (f64, f64)) -> Case {
    let [batch, tokens, heads, dim] = sizes;
    let width = 3 * heads * dim;
    let values = (0..batch * tokens * width).map(|i| {
        let u = (i * i * 31 + i * 57) as f64 % 1009.0 / 1009.0;
        let (low, high) = if i % width < 2 * heads * dim { (low, high) } else { (-1.5, 1.5) };
        low + (high - low) * u
    });
    filled(name, sizes, Values::Given(values.collect()))
}

/// The preset's heads, odd ones, and large ones: of one size but for the tokens, whose cost is to be linear in them.
pub fn cases() -> Vec<Case> {
    vec![
        case("b2_t64_h2_d32", [2, 64, 2, 32]),
        // Several tiles, the last one with a tail.
        case("tiles_b1_t133_h2_d32", [1, 133, 2, 32]),
        case("tiles_odd_b1_t75_h1_d53", [1, 75, 1, 53]),
        case("odd_b2_t7_h3_d13", [2, 7, 3, 13]),
        case("one_token_d5", [2, 1, 2, 5]),
        case("b2_t33_h4_d20", [2, 33, 4, 20]),
        case("b1_t50_h2_d12", [1, 50, 2, 12]),
        // A tile of more tokens than a block has threads.
        case("narrow_b1_t301_h2_d8", [1, 301, 2, 8]),
        case("b1_t70_h2_d64", [1, 70, 2, 64]),
        // On tensor cores a tile is of 64 tokens.
        case("tiles_b1_t65_h1_d16", [1, 65, 1, 16]),
        case("tiles_b1_t130_h1_d40", [1, 130, 1, 40]),
        case("wide_b1_t35_h1_d72", [1, 35, 1, 72]),
        case("wide_odd_b2_t41_h1_d101", [2, 41, 1, 101]),
        case("wide_b1_t53_h1_d128", [1, 53, 1, 128]),
        // φ of 20 and of -20 side by side, normalisers that are nearly zero, and φ where it is held.
        features("large_b1_t19_h2_d12", [1, 19, 2, 12], (-20.0, 20.0)),
        features("tiny_b1_t19_h2_d8", [1, 19, 2, 8], (-30.0, -20.0)),
        features("least_b1_t9_h1_d8", [1, 9, 1, 8], (-60.0, -38.0)),
        case("b32_t64_h8_d32", [32, 64, 8, 32]).large(),
        case("b8_t256_h8_d32", [8, 256, 8, 32]).large(),
        case("b8_t1024_h8_d32", [8, 1024, 8, 32]).large(),
        case("b32_t256_h8_d32", [32, 256, 8, 32]).large(),
        case("b32_t1024_h8_d32", [32, 1024, 8, 32]).large(),
        case("b8_t1024_h4_d128", [8, 1024, 4, 128]).large(),
    ]
}
