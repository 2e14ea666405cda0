//! Cases of patches and back.

use super::{patchify, unpatchify};
use crate::ops::case::{Case, Input};

fn to_tokens(name: &str, shape: [usize; 4], patch: usize) -> Case {
    // `like` carries the dtype under test: images are f32.
    let inputs = vec![Input::parameter("x", shape), Input::activation("like", [1]).constant()];
    Case::new("patchify", name, inputs, move |tape, inputs| {
        Ok(vec![patchify(tape, &inputs[0], patch, inputs[1].dtype())?])
    })
}

fn to_image(name: &str, [b, h, w, c]: [usize; 4], patch: usize, skip: usize) -> Case {
    let length = skip + (h / patch) * (w / patch);
    let inputs = vec![Input::activation("tokens", [b, length, patch * patch * c])];
    Case::new("patchify", name, inputs, move |tape, inputs| {
        Ok(vec![unpatchify(tape, &inputs[0], skip, [h, w, c], patch)?])
    })
}

/// Both ways, square and not, with and without skipped tokens.
pub fn cases() -> Vec<Case> {
    vec![
        to_tokens("b2_8x8x3_p4", [2, 8, 8, 3], 4),
        to_tokens("odd_b3_6x10x1_p2", [3, 6, 10, 1], 2),
        to_tokens("b5_4x12x2_p2", [5, 4, 12, 2], 2),
        to_image("back_b2_8x8x3_p4_skip1", [2, 8, 8, 3], 4, 1),
        to_image("back_odd_b3_6x9x1_p3", [3, 6, 9, 1], 3, 0),
        to_tokens("b256_32x32x3_p4", [256, 32, 32, 3], 4).large(),
    ]
}
