//! Cases of depthwise convolution.

use super::{Window, depthwise_conv2d};
use crate::ops::case::{Case, Input};

fn case(name: &str, x: [usize; 4], kernel: usize, (stride, pad_before): (usize, usize), bias: bool) -> Case {
    let [b, h, w, c] = x;
    let mut inputs = vec![Input::activation("x", x), Input::parameter("weight", [kernel, kernel, c])];
    if bias {
        inputs.push(Input::parameter("bias", [c]));
    }
    Case::new("depthwise_conv2d", name, inputs, move |tape, inputs| {
        let window = Window { stride, pad_before };
        Ok(vec![depthwise_conv2d(tape, &inputs[0], &inputs[1], inputs.get(2), window)?])
    })
    .sums((kernel * kernel).max(b * h.div_ceil(stride) * w.div_ceil(stride)))
}

/// Windows of 3 and 5, both strides, both ways of padding, odd channels, more channels than a block, several parts.
pub fn cases() -> Vec<Case> {
    vec![
        case("b2_h5_w6_c16_k3", [2, 5, 6, 16], 3, (1, 1), true),
        case("odd_b3_h7_w5_c5_k3", [3, 7, 5, 5], 3, (1, 1), true),
        case("down_b2_h8_w6_c8_k3", [2, 8, 6, 8], 3, (2, 0), false),
        case("down_odd_b1_h7_w9_c12_k5", [1, 7, 9, 12], 5, (2, 2), true),
        case("five_b1_h6_w4_c7_k5", [1, 6, 4, 7], 5, (1, 2), true),
        case("small_b2_h1_w2_c3_k5", [2, 1, 2, 3], 5, (1, 2), true),
        case("wide_b1_h3_w3_c140_k3", [1, 3, 3, 140], 3, (1, 1), true),
        case("parts_b3_h100_w2_c4_k3", [3, 100, 2, 4], 3, (1, 1), true),
        case("b32_h56_w56_c144_k3", [32, 56, 56, 144], 3, (1, 1), true).large(),
        case("b32_h28_w28_c240_k5", [32, 28, 28, 240], 5, (1, 2), true).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType};

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let var = |shape: &[usize]| tape.constant(&context.zeros(shape, DType::F32).unwrap());
        let (x, window) = (var(&[1, 4, 5, 3]), Window { stride: 2, pad_before: 1 });
        let sizes = depthwise_conv2d(&tape, &x, &var(&[3, 3, 3]), None, window).unwrap();
        assert_eq!(sizes.sizes(), [1, 2, 3, 3]);
        assert!(depthwise_conv2d(&tape, &x, &var(&[3, 3, 4]), None, window).is_err());
        assert!(depthwise_conv2d(&tape, &x, &var(&[3, 5, 3]), None, window).is_err());
        assert!(depthwise_conv2d(&tape, &x, &var(&[3, 3, 3]), Some(&var(&[4])), window).is_err());
        for window in [Window { stride: 0, pad_before: 1 }, Window { stride: 1, pad_before: 3 }] {
            assert!(depthwise_conv2d(&tape, &x, &var(&[3, 3, 3]), None, window).is_err());
        }
    }
}
