//! Cases of the mean squared error.

use super::mse_loss;
use crate::ops::case::{Case, Input, Values};

fn case(name: &str, shape: [usize; 4], weighted: bool) -> Case {
    let mut inputs = vec![Input::parameter("prediction", shape), Input::parameter("target", shape).constant()];
    if weighted {
        inputs.push(Input::parameter("weight", [shape[0]]).with(Values::Uniform(0.2, 3.0)).constant());
    }
    Case::new("mse_loss", name, inputs, |tape, inputs| {
        let (loss, items) = mse_loss(tape, &inputs[0], &inputs[1], inputs.get(2), 0.5)?;
        Ok(vec![loss, tape.constant(&items)])
    })
    .sums(shape.iter().product())
}

/// With and without weights; items of fewer elements than a block has threads, of odd sizes, and of more.
pub fn cases() -> Vec<Case> {
    vec![
        case("weighted_b3_8x8x3", [3, 8, 8, 3], true),
        case("plain_odd_b5_3x5x3", [5, 3, 5, 3], false),
        case("weighted_odd_b2_17x23x3", [2, 17, 23, 3], true),
        case("many_items_b300_1x1x2", [300, 1, 1, 2], true),
        case("weighted_b256_32x32x3", [256, 32, 32, 3], true).large(),
    ]
}
