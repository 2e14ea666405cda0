//! Cases of the linear layer.

use super::{Activation, Gate, gated_linear, linear};
use crate::ops::case::{Case, Input};
use crate::tape::Var;

/// x `[m, k]`, weight `[n, k]`, and what else the flags ask for.
fn case(name: &str, [m, n, k]: [usize; 3], bias: bool, activation: Activation, residual: bool) -> Case {
    let mut inputs = vec![Input::activation("x", [m, k]), Input::weight("weight", [n, k])];
    if bias {
        inputs.push(Input::parameter("bias", [n]));
    }
    if residual {
        inputs.push(Input::activation("residual", [m, n]));
    }
    Case::new("linear", name, inputs, move |tape, inputs| {
        let bias_var = bias.then(|| &inputs[2]);
        let residual_var = residual.then(|| &inputs[2 + bias as usize]);
        Ok(vec![linear(tape, &inputs[0], &inputs[1], bias_var, activation, residual_var)?])
    })
    .sums(m.max(n).max(k))
}

/// With a gate that begins at `column`; `beyond` is the rest of the modulation's columns. All but the smallest have tiles of several samples.
fn gated(name: &str, [samples, tokens, n, k]: [usize; 4], column: usize, beyond: usize) -> Case {
    let inputs = vec![
        Input::activation("x", [samples, tokens, k]),
        Input::weight("weight", [n, k]),
        Input::parameter("bias", [n]),
        Input::activation("modulation", [samples, column + n + beyond]),
        Input::activation("residual", [samples, tokens, n]),
    ];
    Case::new("linear", name, inputs, move |tape, inputs| {
        let gate = Gate { modulation: &inputs[3], column };
        Ok(vec![gated_linear(tape, &inputs[0], &inputs[1], Some(&inputs[2]), gate, Some(&inputs[4]))?])
    })
    .sums((samples * tokens).max(n).max(k))
}

/// Two layers, an activation between them: on tensor cores the second one's gradient of its input is multiplied by the
/// derivative. With `twice` the activation is used again, so that it is not. The second weight has no gradient here: it would be that
/// of an activation that only accelerators round.
fn chain(name: &str, [m, n, k]: [usize; 3], activation: Activation, twice: bool) -> Case {
    let inputs = vec![Input::activation("x", [m, k]), Input::weight("up", [n, k]), Input::weight("down", [k, n])];
    Case::new("linear", name, inputs, move |tape, inputs| {
        let hidden = linear(tape, &inputs[0], &inputs[1], None, activation, None)?;
        let of_hidden = |residual: Option<&Var>| linear(tape, &hidden, &inputs[2], None, Activation::None, residual);
        let y = of_hidden(None)?;
        Ok(vec![if twice { of_hidden(Some(&y))? } else { y }])
    })
    .sums(m.max(n).max(k))
    .chained()
    .constants(&["down"])
}

/// An MLP behind a gate: on tensor cores the gradient of its input is multiplied by the derivative, as in [`chain`].
fn gated_chain(name: &str, [samples, tokens, n, k]: [usize; 4]) -> Case {
    let inputs = vec![
        Input::activation("x", [samples, tokens, k]),
        Input::weight("up", [n, k]),
        Input::weight("down", [k, n]),
        Input::activation("modulation", [samples, k]),
    ];
    Case::new("linear", name, inputs, move |tape, inputs| {
        let hidden = linear(tape, &inputs[0], &inputs[1], None, Activation::Gelu, None)?;
        let gate = Gate { modulation: &inputs[3], column: 0 };
        Ok(vec![gated_linear(tape, &hidden, &inputs[2], None, gate, None)?])
    })
    .sums((samples * tokens).max(n).max(k))
    .chained()
    .constants(&["down"])
}

/// Shapes of the presets, odd ones, sums that are split, both tiles for each product, and some large enough to time.
pub fn cases() -> Vec<Case> {
    use Activation::{Gelu, None, Silu};
    vec![
        case("m65_n48_k48", [65, 48, 48], true, None, false),
        case("gelu_m33_n72_k40", [33, 72, 40], true, Gelu, false),
        case("residual_m65_n64_k128", [65, 64, 128], true, None, true),
        case("silu_odd_m5_n37_k23", [5, 37, 23], true, Silu, true),
        case("gelu_no_bias_m7_n9_k65", [7, 9, 65], false, Gelu, false),
        chain("gelu_chain_m33_n72_k24", [33, 72, 24], Gelu, false),
        chain("silu_chain_odd_m9_n21_k13", [9, 21, 13], Silu, false),
        chain("gelu_chain_used_twice_m9_n24_k8", [9, 24, 8], Gelu, true),
        case("odd_columns_m70_n67_k66", [70, 67, 66], false, None, true),
        case("whole_tiles_m9_n128_k128", [9, 128, 128], true, None, false),
        case("one_m1_n1_k1", [1, 1, 1], true, None, false),
        case("split_odd_m520_n5_k7", [520, 5, 7], true, None, false),
        case("split_m600_n24_k17", [600, 24, 17], true, None, false),
        case("large_tile_fwd_m8189_n65_k3", [8189, 65, 3], false, None, false),
        case("large_tile_bwd_input_m8189_n3_k65", [8189, 3, 65], false, None, false),
        case("large_tile_bwd_weight_m2049_n67_k72", [2049, 67, 72], false, None, false),
        case("large_tiles_bwd_weight_m1024_n129_k65", [1024, 129, 65], false, None, false),
        case("split_m520_n24_k16", [520, 24, 16], true, None, false),
        // Whole pieces of 16 bytes that begin between two such places.
        case("misaligned_m70_n72_k40", [70, 72, 40], true, None, true).misaligned(&["x", "residual"]),
        case("misaligned_cotangent_m70_n72_k40", [70, 72, 40], true, None, true).misaligned(&["cotangent"]),
        // Pieces of four f32 that are no pieces of eight bf16.
        case("fours_m70_n68_k20", [70, 68, 20], true, Gelu, true),
        case("fours_large_tile_fwd_m8540_n124_k20", [8540, 124, 20], true, None, true).constants(&["x", "weight"]),
        case("long_m130_n136_k264", [130, 136, 264], true, None, true),
        // Tensor cores take large and wide tiles only of whole pieces, and where small ones would take more waves.
        case("large_tile_fwd_m8540_n120_k24", [8540, 120, 24], true, None, true).constants(&["x", "weight"]),
        case("large_tile_bwd_input_m8540_n24_k120", [8540, 24, 120], false, None, false).constants(&["weight"]),
        case("large_tile_bwd_weight_m40_n1080_k1080", [40, 1080, 1080], true, None, false).constants(&["x"]),
        case("wide_tile_fwd_m11400_n184_k40", [11400, 184, 40], true, Silu, false).constants(&["x", "weight"]),
        case("wide_tile_bwd_input_m11400_n8_k184", [11400, 8, 184], false, None, false).constants(&["weight"]),
        case("wide_tile_bwd_weight_m33_n2872_k760", [33, 2872, 760], true, None, false).constants(&["x"]),
        gated_chain("gelu_chain_gate_b3_t11_n72_k24", [3, 11, 72, 24]),
        gated("gate_b5_t13_n64_k48", [5, 13, 64, 48], 64, 64),
        gated("gate_odd_b3_t5_n37_k23", [3, 5, 37, 23], 11, 2),
        gated("gate_one_b1_t1_n1_k1", [1, 1, 1, 1], 0, 0).constants(&["x", "weight"]),
        gated("gate_b2_t3_n384_k8", [2, 3, 384, 8], 768, 1152),
        gated("gate_one_token_b70_t1_n48_k40", [70, 1, 48, 40], 96, 0),
        gated("gate_wide_b2_t3_n1032_k8", [2, 3, 1032, 8], 8, 0),
        // Columns, and then rows, of the modulation that are pieces of four f32 but not of eight bf16; and of neither.
        gated("gate_column_4_b2_t35_n72_k40", [2, 35, 72, 40], 4, 4),
        gated("gate_stride_140_b4_t17_n64_k40", [4, 17, 64, 40], 64, 12),
        gated("gate_stride_139_b4_t17_n64_k40", [4, 17, 64, 40], 64, 11),
        gated("gate_misaligned_b3_t9_n64_k40", [3, 9, 64, 40], 64, 0).misaligned(&["modulation"]),
        gated("gate_constant_b3_t9_n64_k40", [3, 9, 64, 40], 64, 0).constants(&["modulation"]),
        gated("gate_alone_b3_t9_n64_k40", [3, 9, 64, 40], 64, 0).constants(&["x", "weight", "bias", "residual"]),
        gated("gate_large_tile_b20_t427_n120_k24", [20, 427, 120, 24], 120, 0).constants(&[
            "x",
            "weight",
            "modulation",
        ]),
        gated("gate_wide_tile_b24_t475_n184_k40", [24, 475, 184, 40], 184, 0).constants(&["x", "weight", "bias"]),
        case("qkv_m16640_n576_k384", [16640, 576, 384], true, None, false).large(),
        case("up_m16640_n1536_k384", [16640, 1536, 384], true, Gelu, false).large(),
        case("down_m16640_n384_k1536", [16640, 384, 1536], true, None, true).large(),
        gated("gate_b256_t65_n384_k1536", [256, 65, 384, 1536], 768, 1152).large(),
        case("cpu_m2080_n768_k384", [2080, 768, 384], true, None, false).large(),
        case("cpu_m2080_n384_k384", [2080, 384, 384], true, None, true).large(),
        case("cpu_m2080_n1536_k384", [2080, 1536, 384], true, Gelu, false).large(),
        case("cpu_m2080_n384_k1536", [2080, 384, 1536], true, None, true).large(),
        gated("cpu_gate_b32_t65_n384_k1536", [32, 65, 384, 1536], 768, 1152).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::instruments::poisoned;
    use crate::tape::Tape;
    use crate::tensor::{DType, Device};

    #[test]
    fn a_gate_over_no_tokens_sends_its_modulation_zeros() {
        let context = poisoned(Device::Cpu);
        let tape = Tape::new(&context);
        let leaf = |shape: &[usize]| tape.leaf(&context.zeros(shape, DType::F32).unwrap());
        let (x, weight, modulation) = (leaf(&[2, 0, 3]), leaf(&[4, 3]), leaf(&[2, 5]));
        let gate = Gate { modulation: &modulation, column: 1 };
        let y = gated_linear(&tape, &x, &weight, Option::None, gate, Option::None).unwrap();
        tape.backward(&y, context.zeros([2, 0, 4], DType::F32).unwrap()).unwrap();
        assert_eq!(tape.gradient(&modulation).unwrap().host::<f32>(), [0.0; 10]);
        assert_eq!(tape.gradient(&weight).unwrap().host::<f32>(), [0.0; 12]);
    }

    #[test]
    fn a_gate_that_does_not_fit_is_refused() {
        let context = poisoned(Device::Cpu);
        let tape = Tape::new(&context);
        let constant = |shape: &[usize]| tape.constant(&context.zeros(shape, DType::F32).unwrap());
        let (x, weight, flat) = (constant(&[2, 5, 3]), constant(&[4, 3]), constant(&[3]));
        let with = |x: &Var, modulation: &Var, column| {
            gated_linear(&tape, x, &weight, Option::None, Gate { modulation, column }, Option::None).map(|_| ())
        };
        assert!(with(&x, &constant(&[2, 5]), 1).is_ok());
        assert!(with(&x, &constant(&[2, 5]), 2).is_err(), "a column beyond the matrix");
        assert!(with(&x, &constant(&[10, 5]), 1).is_err(), "a row per token");
        assert!(with(&flat, &constant(&[3, 5]), 1).is_err(), "no samples");
    }
}
