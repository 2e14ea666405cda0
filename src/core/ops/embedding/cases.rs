//! Cases of embedding.

use super::embedding;
use crate::ops::case::{Case, Input};

fn case(name: &str, batch: usize, rows: usize, width: usize) -> Case {
    let inputs = vec![
        Input::parameter("table", [rows, width]),
        Input::indices("indices", [batch], rows as u32),
        // Carries the dtype under test.
        Input::activation("like", [1]).constant(),
    ];
    Case::new("embedding", name, inputs, |tape, inputs| {
        Ok(vec![embedding(tape, &inputs[0], &inputs[1], inputs[2].dtype())?])
    })
    .sums(batch)
}

/// Small tables, one of them with more rows than the batch has items.
pub fn cases() -> Vec<Case> {
    vec![
        case("b7_v11_d128", 7, 11, 128),
        case("odd_b5_v3_d33", 5, 3, 33),
        case("b64_v10_d16", 64, 10, 16),
        case("b256_v11_d128", 256, 11, 128).large(),
    ]
}
