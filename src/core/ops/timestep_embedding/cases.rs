//! Cases of sinusoidal features.

use super::timestep_embedding;
use crate::ops::case::{Case, Input, Values};

fn case(name: &str, batch: usize, width: usize, largest: f64) -> Case {
    let inputs = vec![
        Input::parameter("time", [batch]).constant().with(Values::Uniform(0.0, largest)),
        // Carries the dtype under test.
        Input::activation("like", [1]).constant(),
    ];
    // The angle is a rounded product: its error grows with the time.
    let angle_error = largest as usize;
    Case::new("timestep_embedding", name, inputs, move |tape, inputs| {
        Ok(vec![timestep_embedding(tape, &inputs[0], width, inputs[1].dtype())?])
    })
    .sums(angle_error * angle_error / 4 + 1)
}

/// Times of the usual 1000 steps, small ones, an odd batch.
pub fn cases() -> Vec<Case> {
    vec![
        case("b5_d128_t1000", 5, 128, 1000.0),
        case("b3_d6_t1", 3, 6, 1.0),
        case("b256_d128_t1000", 256, 128, 1000.0).large(),
    ]
}
