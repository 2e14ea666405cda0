//! Cases of layer norm.

use super::{Affine, layer_norm};
use crate::ops::case::{Case, Input, Values};

const EPSILON: f32 = 1e-5;

fn parameters(name: &str, shape: [usize; 3]) -> Case {
    let inputs = vec![
        Input::activation("x", shape),
        Input::parameter("weight", [shape[2]]).with(Values::Uniform(0.5, 1.5)),
        Input::parameter("bias", [shape[2]]),
    ];
    Case::new("layer_norm", name, inputs, |tape, inputs| {
        let affine = Affine::Parameters { weight: &inputs[1], bias: &inputs[2] };
        Ok(vec![layer_norm(tape, &inputs[0], affine, EPSILON)?])
    })
    .sums(shape[2].max(shape[0] * shape[1]))
}

fn modulated(name: &str, shape: [usize; 3]) -> Case {
    let d = shape[2];
    let inputs = vec![Input::activation("x", shape), Input::activation("modulation", [shape[0], 6 * d])];
    Case::new("layer_norm", name, inputs, move |tape, inputs| {
        let affine = Affine::Modulation { matrix: &inputs[1], shift: 3 * d, scale: 4 * d };
        Ok(vec![layer_norm(tape, &inputs[0], affine, EPSILON)?])
    })
    .sums(d.max(shape[1]))
}

/// Shapes of the presets, odd ones, and one large enough to time.
pub fn cases() -> Vec<Case> {
    let plain = Case::new("layer_norm", "plain_odd", vec![Input::activation("x", [3, 5, 33])], |tape, inputs| {
        Ok(vec![layer_norm(tape, &inputs[0], Affine::None, EPSILON)?])
    });
    vec![
        parameters("b2_t65_d64", [2, 65, 64]),
        parameters("odd_b3_t7_d129", [3, 7, 129]),
        parameters("one_row_d3", [1, 1, 3]),
        parameters("steps_b1_t17_d388", [1, 17, 388]),
        parameters("wide_odd_b1_t9_d1021", [1, 9, 1021]),
        modulated("modulated_wide_b2_t3_d768", [2, 3, 768]),
        parameters("block_odd_b1_t3_d1049", [1, 3, 1049]),
        modulated("modulated_block_b2_t1_d1028", [2, 1, 1028]),
        plain.sums(33),
        modulated("modulated_b2_t16_d64", [2, 16, 64]),
        modulated("modulated_odd_b3_t5_d37", [3, 5, 37]),
        parameters("b256_t65_d384", [256, 65, 384]).large(),
        modulated("modulated_b256_t64_d384", [256, 64, 384]).large(),
    ]
}
