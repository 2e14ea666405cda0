//! Cases of batch normalisation.

use super::{BatchNorm, Running, Statistics, batch_norm};
use crate::ops::case::{Case, Input, Values};

/// Two values per channel, far from where a ReLU bends, with some spread about them, and every channel elsewhere: a variance
/// about another center would show. Rows of a channel are on either side in turn.
fn two_sided(rows: usize, channels: usize) -> Values {
    let value = |at: usize| {
        let (row, c) = (at / channels, at % channels);
        let side = if (row + c).is_multiple_of(2) { 1.0 } else { -1.0 };
        // Golden-ratio steps: spread evenly, and never the same twice.
        let spread = (at as f64 * 0.618_033_988_749_895).fract() - 0.5;
        2.0 + (c % 5) as f64 + side * (1.0 + 0.3 * spread)
    };
    Values::Given((0..rows * channels).map(value).collect())
}

fn case(name: &str, shape: &[usize], norm: BatchNorm, residual: bool) -> Case {
    let channels = shape[shape.len() - 1];
    let rows = shape.iter().product::<usize>() / channels;
    let mut inputs = vec![
        Input::activation("x", shape).with(if rows * channels > 1 << 20 {
            // To be timed, not differentiated: the list of cases stays small.
            Values::Uniform(-1.0, 2.0)
        } else {
            two_sided(rows, channels)
        }),
        Input::parameter("weight", [channels]).with(Values::Uniform(0.8, 1.2)),
        Input::parameter("bias", [channels]).with(Values::Uniform(-0.2, 0.2)),
        Input::parameter("running_mean", [channels]).with(Values::Uniform(1.5, 6.5)).constant(),
        Input::parameter("running_variance", [channels]).with(Values::Uniform(0.5, 2.0)).constant(),
    ];
    if norm.statistics == Statistics::Running {
        // About the middle of each channel's two values.
        let means = (0..channels).map(|c| 2.0 + (c % 5) as f64).collect();
        inputs[3] = inputs[3].clone().with(Values::Given(means));
    }
    if residual {
        inputs.push(Input::activation("residual", shape).with(Values::Uniform(-0.2, 0.2)));
    }
    Case::new("batch_norm", name, inputs, move |tape, inputs| {
        let running = Running { mean: inputs[3].tensor().clone(), variance: inputs[4].tensor().clone() };
        let y = batch_norm(tape, &inputs[0], inputs.get(5), &inputs[1], &inputs[2], &running, norm)?;
        Ok(vec![y, tape.constant(&running.mean), tape.constant(&running.variance)])
    })
    .sums(rows)
}

/// Training and inference, each with and without ReLU and residual; fewer and more channels than a block takes, odd ones;
/// one chunk of rows and several.
pub fn cases() -> Vec<Case> {
    let plain = BatchNorm::default();
    let relu = BatchNorm { relu: true, ..plain };
    let inference = BatchNorm { statistics: Statistics::Running, ..plain };
    let inference_relu = BatchNorm { relu: true, ..inference };
    vec![
        case("plain_b2_4x4x16", &[2, 4, 4, 16], plain, false),
        case("relu_b2_5x3x24", &[2, 5, 3, 24], relu, false),
        case("residual_relu_b2_4x4x32", &[2, 4, 4, 32], relu, true),
        case("residual_odd_b3_3x5x7", &[3, 3, 5, 7], BatchNorm { momentum: 0.3, epsilon: 1e-3, ..plain }, true),
        case("residual_relu_odd_b2_3x3x37", &[2, 3, 3, 37], relu, true),
        case("misaligned_b2_3x4x16", &[2, 3, 4, 16], relu, false).misaligned(&["x"]),
        case("misaligned_cotangent_b2_3x4x16", &[2, 3, 4, 16], relu, false).misaligned(&["cotangent"]),
        case("two_rows_c1", &[2, 1], BatchNorm { epsilon: 0.5, ..plain }, false),
        case("chunks_b1_53x47x5", &[1, 53, 47, 5], relu, false),
        case("chunks_residual_b2_11x13x132", &[2, 11, 13, 132], relu, true),
        case("tiles_b2_2x3x264", &[2, 2, 3, 264], relu, true),
        case("inference_b2_4x4x16", &[2, 4, 4, 16], inference, false),
        case("inference_relu_odd_b2_3x5x9", &[2, 3, 5, 9], inference_relu, false),
        case("inference_residual_relu_b1_9x9x24", &[1, 9, 9, 24], inference_relu, true),
        case("relu_b128_32x32x64", &[128, 32, 32, 64], relu, false).large(),
        case("residual_relu_b128_32x32x64", &[128, 32, 32, 64], relu, true).large(),
        case("residual_relu_b128_4x4x512", &[128, 4, 4, 512], relu, true).large(),
        case("inference_residual_relu_b128_32x32x64", &[128, 32, 32, 64], inference_relu, true).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host::parallel::with_threads;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType, Tensor};

    #[test]
    fn bits_do_not_depend_on_threads() {
        let shape = [8, 16, 16, 24];
        let run = || {
            let case = case("threads", &shape, BatchNorm { relu: true, ..BatchNorm::default() }, true);
            let outcome = case.run(&Context::cpu(), DType::F32, DType::F32, 1).unwrap();
            let outputs = outcome.outputs.into_iter().map(|(values, _)| values);
            outputs.chain(outcome.gradients.into_iter().map(|(_, values, _)| values)).collect::<Vec<_>>()
        };
        let one = with_threads(1, run);
        assert_eq!(one, with_threads(2, run));
        assert_eq!(one, with_threads(3, run));
    }

    #[test]
    fn a_mean_far_from_zero_costs_no_digits() {
        let context = Context::cpu();
        let filled = |value: f32| -> Tensor { context.tensor(&[value], [1]).unwrap() };
        let running = Running { mean: filled(0.0), variance: filled(1.0) };
        let values: Vec<f32> = (0..4000).map(|i| 4096.0 + (i % 4) as f32).collect();
        let tape = Tape::inference(&context);
        let x = tape.constant(&context.tensor(&values, [4000, 1]).unwrap());
        let (weight, bias) = (tape.constant(&filled(1.0)), tape.constant(&filled(0.0)));
        let norm = BatchNorm { momentum: 1.0, ..BatchNorm::default() };
        batch_norm(&tape, &x, None, &weight, &bias, &running, norm).unwrap();
        assert_eq!(running.mean.host::<f32>(), [4097.5]);
        let unbiased = 1.25 * 4000.0 / 3999.0;
        assert!((running.variance.host::<f32>()[0] - unbiased).abs() < 1e-5, "{:?}", running.variance.host::<f32>());
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let var = |shape: &[usize], dtype: DType| tape.constant(&context.zeros(shape, dtype).unwrap());
        let run = |x: &[usize], residual: Option<&[usize]>, channels: usize, norm: BatchNorm| {
            let parameter = var(&[channels], DType::F32);
            let running = || var(&[channels], DType::F32).tensor().clone();
            let running = Running { mean: running(), variance: running() };
            let residual = residual.map(|shape| var(shape, DType::F32));
            batch_norm(&tape, &var(x, DType::F32), residual.as_ref(), &parameter, &parameter, &running, norm).map(drop)
        };
        let norm = BatchNorm::default();
        assert!(run(&[2, 3], Some(&[2, 3]), 3, norm).is_ok());
        assert!(run(&[2, 3], None, 4, norm).unwrap_err().to_string().contains("weight"));
        assert!(run(&[2, 3], Some(&[3, 3]), 3, norm).unwrap_err().to_string().contains("residual"));
        assert!(run(&[1, 3], None, 3, norm).unwrap_err().to_string().contains("rows"));
        assert!(run(&[1, 3], None, 3, BatchNorm { statistics: Statistics::Running, ..norm }).is_ok());
        assert!(run(&[0, 3], None, 3, norm).unwrap_err().to_string().contains("rows"));
    }
}
