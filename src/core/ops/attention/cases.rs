//! Cases of attention.

use super::attention;
use crate::ops::case::{Case, Input};

fn case(name: &str, [batch, tokens, heads, kv_heads, dim]: [usize; 5]) -> Case {
    let inputs = vec![Input::activation("qkv", [batch, tokens, (heads + 2 * kv_heads) * dim])];
    Case::new("attention", name, inputs, move |tape, inputs| Ok(vec![attention(tape, &inputs[0], heads, kv_heads)?]))
        .sums(dim.max(tokens * heads / kv_heads))
        .chained()
}

/// Shapes of the presets, odd ones, and one large enough to time.
pub fn cases() -> Vec<Case> {
    vec![
        case("b1_t65_h4_kv1_d48", [1, 65, 4, 1, 48]),
        case("b2_t33_h4_kv2_d20", [2, 33, 4, 2, 20]),
        case("odd_b2_t7_h3_kv3_d13", [2, 7, 3, 3, 13]),
        case("one_token_d5", [2, 1, 2, 1, 5]),
        case("b1_t34_h2_kv2_d64", [1, 34, 2, 2, 64]),
        case("wide_odd_b1_t35_h2_kv1_d101", [1, 35, 2, 1, 101]),
        case("wide_b1_t17_h1_kv1_d128", [1, 17, 1, 1, 128]),
        // More than one tile of keys and more than one block of queries, on every path.
        case("long_b1_t150_h2_kv1_d16", [1, 150, 2, 1, 16]),
        case("long_odd_b1_t133_h2_kv2_d9", [1, 133, 2, 2, 9]),
        // The heads of U-Nets: up to 256 columns, over the pixels of a small image.
        case("widest_b1_t16_h1_kv1_d256", [1, 16, 1, 1, 256]),
        case("widest_odd_b2_t35_h2_kv1_d133", [2, 35, 2, 1, 133]),
        case("widest_long_b1_t97_h1_kv1_d200", [1, 97, 1, 1, 200]),
        case("wide_long_b1_t140_h1_kv1_d96", [1, 140, 1, 1, 96]),
        case("b2_t16_h4_kv4_d128", [2, 16, 4, 4, 128]),
        // As many warps a block as long sequences have.
        case("eight_warps_b1_t250_h1_kv1_d12", [1, 250, 1, 1, 12]),
        case("six_warps_b1_t90_h2_kv1_d24", [1, 90, 2, 1, 24]),
        case("b1_t64_h4_kv4_d64", [1, 64, 4, 4, 64]),
        // Tiles of 8 and 16 rows, the last of them with one row, and full; queries of several heads in one of them; on both sides of
        // the longest sequence whose keys a block has all, and with several tiles of keys.
        case("whole_b1_t8_h4_kv2_d64", [1, 8, 4, 2, 64]),
        case("whole_b1_t9_h4_kv2_d40", [1, 9, 4, 2, 40]),
        case("whole_odd_b1_t64_h2_kv1_d37", [1, 64, 2, 1, 37]),
        case("whole_b1_t72_h2_kv1_d32", [1, 72, 2, 1, 32]),
        case("whole_b1_t65_h2_kv1_d56", [1, 65, 2, 1, 56]),
        // Blocks whose warps take several tiles of queries, one behind the other, with the keys that they hold.
        case("turns_b512_t8_h9_kv1_d4", [512, 8, 9, 1, 4]),
        case("b1_t73_h2_kv1_d24", [1, 73, 2, 1, 24]),
        case("odd_b1_t80_h3_kv1_d33", [1, 80, 3, 1, 33]),
        case("b1_t128_h1_kv1_d64", [1, 128, 1, 1, 64]),
        case("b1_t256_h2_kv1_d16", [1, 256, 2, 1, 16]),
        case("b1_t257_h1_kv1_d8", [1, 257, 1, 1, 8]),
        case("b128_t256_h1_kv1_d256", [128, 256, 1, 1, 256]).large(),
        case("b128_t256_h4_kv4_d64", [128, 256, 4, 4, 64]).large(),
        case("b256_t65_h8_kv2_d48", [256, 65, 8, 2, 48]).large(),
        case("b64_t257_h8_kv2_d64", [64, 257, 8, 2, 64]).large(),
        case("b32_t65_h8_kv2_d48", [32, 65, 8, 2, 48]).large(),
    ]
}
