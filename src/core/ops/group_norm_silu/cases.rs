//! Cases of group norm with SiLU.

use super::{GroupNormSilu, group_norm_silu};
use crate::ops::case::{Case, Input, Values};
use crate::ops::control::Control;
use crate::ops::mask::Mask;

#[derive(Clone, Copy)]
struct Options {
    /// Channels of the second source, 0 without.
    skip: usize,
    scale_shift: bool,
    silu: bool,
    dropout: bool,
}

const PLAIN: Options = Options { skip: 0, scale_shift: false, silu: true, dropout: false };

fn case(name: &str, shape: &[usize], groups: usize, options: Options) -> Case {
    let Options { skip, scale_shift, silu, dropout } = options;
    let (samples, outer) = (shape[0], &shape[..shape.len() - 1]);
    let channels = shape[outer.len()] + skip;
    // Away from zero, and every channel elsewhere: a variance about another center would show.
    let mut inputs = vec![
        Input::activation("x", shape).with(Values::Uniform(-1.0, 2.0)),
        Input::parameter("weight", [channels]).with(Values::Uniform(0.5, 1.5)),
        Input::parameter("bias", [channels]),
    ];
    if skip > 0 {
        inputs.push(Input::activation("skip", [outer, &[skip]].concat().as_slice()).with(Values::Uniform(-0.5, 0.5)));
    }
    if scale_shift {
        inputs.push(Input::activation("scale_shift", [samples, 2 * channels]).with(Values::Uniform(-0.6, 0.6)));
    }
    if dropout {
        let control = Control { step: 3, first_item: 1 << 20, ..Control::default() };
        inputs.push(Input::words("control", &control.words()));
    }
    let pixels: usize = outer[1..].iter().product();
    let longest = (pixels * channels / groups).max(samples * pixels);
    Case::new("group_norm_silu", name, inputs, move |tape, inputs| {
        let norm = GroupNormSilu { groups, epsilon: 1e-5, silu };
        let second = (skip > 0).then(|| &inputs[3]);
        let matrix = scale_shift.then(|| &inputs[3 + usize::from(skip > 0)]);
        let mask = Mask::new(0.3, 0x0123_4567_89ab_cdef, 5)?;
        let dropout = dropout.then(|| (mask, inputs[inputs.len() - 1].tensor()));
        Ok(vec![group_norm_silu(tape, &inputs[0], second, [&inputs[1], &inputs[2]], matrix, norm, dropout)?])
    })
    .sums(longest)
}

/// One and two sources, groups of 1, 3, 4, 8, 12 channels and wider than a block, within the sources and across them, strips that do not
/// divide the channels, single pixels, several blocks a strip, blocks whose threads hold all that they can, dropout.
pub fn cases() -> Vec<Case> {
    let skip = |skip: usize| Options { skip, ..PLAIN };
    let scaled = Options { scale_shift: true, ..PLAIN };
    let dropped = Options { dropout: true, ..PLAIN };
    vec![
        case("b2_8x8x32_g8", &[2, 8, 8, 32], 8, PLAIN),
        case("odd_b3_5x7x33_g11", &[3, 5, 7, 33], 11, PLAIN),
        case("single_channels_b2_4x4x5_g5", &[2, 4, 4, 5], 5, scaled),
        case("one_channel_b1_3x3x1_g1", &[1, 3, 3, 1], 1, scaled),
        case("one_group_b2_3x5x20_g1", &[2, 3, 5, 20], 1, Options { silu: false, ..PLAIN }),
        case("one_pixel_b3_1x1x24_g4", &[3, 1, 1, 24], 4, scaled),
        case("tokens_b2_t17_c48_g4", &[2, 17, 48], 4, Options { silu: false, ..scaled }),
        case("groups_of_4_b1_31x33x40_g10", &[1, 31, 33, 40], 10, dropped),
        case("groups_of_8_b2_7x9x24_g3", &[2, 7, 9, 24], 3, Options { dropout: true, ..scaled }),
        case("last_strip_b1_3x5x528_g66", &[1, 3, 5, 528], 66, scaled),
        case("skip_within_b2_6x6x16_16_g4", &[2, 6, 6, 16], 4, skip(16)),
        case("skip_across_b2_5x5x24_12_g3", &[2, 5, 5, 24], 3, Options { skip: 12, ..scaled }),
        case("skip_across_b1_5x5x40_56_g8", &[1, 5, 5, 40], 8, Options { skip: 56, dropout: true, ..scaled }),
        case("skip_across_odd_b2_5x5x7_5_g4", &[2, 5, 5, 7], 4, Options { dropout: true, ..skip(5) }),
        case("parts_b2_40x30x16_g2", &[2, 40, 30, 16], 2, Options { dropout: true, ..scaled }),
        case("parts_of_strips_b1_45x47x96_g24", &[1, 45, 47, 96], 24, dropped),
        case("parts_skip_odd_b1_20x33x6_3_g3", &[1, 20, 33, 6], 3, Options { skip: 3, ..scaled }),
        case("full_share_b1_8x8x256_g2", &[1, 8, 8, 256], 2, PLAIN),
        case("full_share_b1_16x16x48_g4", &[1, 16, 16, 48], 4, scaled),
        case("full_share_odd_b1_7x8x33_g1", &[1, 7, 8, 33], 1, scaled),
        case("tiles_b2_2x3x1040_g1", &[2, 2, 3, 1040], 1, Options { dropout: true, ..scaled }),
        case("tiles_odd_b1_9x17x301_g1", &[1, 9, 17, 301], 1, PLAIN),
        case("tiles_of_two_b1_10x9x1056_g2", &[1, 10, 9, 1056], 2, scaled),
        case("b32_32x32x64_g8", &[32, 32, 32, 64], 8, PLAIN).large(),
        case("scaled_b32_32x32x64_g8", &[32, 32, 32, 64], 8, scaled).large(),
        case("skip_b32_16x16x256_128_g32", &[32, 16, 16, 256], 32, skip(128)).large(),
        case("dropped_b128_32x32x128_g32", &[128, 32, 32, 128], 32, dropped).large(),
        case("skip_b128_32x32x256_128_g32", &[128, 32, 32, 256], 32, skip(128)).large(),
        case("b1_32x32x64_g8", &[1, 32, 32, 64], 8, PLAIN).large(),
        case("b128_32x32x64_g8", &[128, 32, 32, 64], 8, PLAIN).large(),
        case("skip_b128_32x32x64_64_g8", &[128, 32, 32, 64], 8, skip(64)).large(),
        case("b128_16x16x128_g8", &[128, 16, 16, 128], 8, PLAIN).large(),
        case("b128_8x8x256_g8", &[128, 8, 8, 256], 8, PLAIN).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host::parallel::with_threads;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType, Shape, Tensor};

    fn filled(context: &Context, shape: &[usize], radius: f64, offset: f64) -> Tensor {
        let tensor = context.persistent(Shape::from(shape), DType::F32).unwrap();
        let values: Vec<f64> =
            (0..tensor.len()).map(|i| offset + radius * (((i * 7919 + 13) % 4093) as f64 / 2046.0 - 1.0)).collect();
        tensor.upload_f64(&values).unwrap();
        tensor
    }

    /// Output and gradients of the first `samples` of a batch.
    fn run(samples: usize, [height, ca, cb]: [usize; 3]) -> Vec<Vec<f32>> {
        let context = Context::cpu();
        let tape = Tape::new(&context);
        let channels = ca + cb;
        let x = tape.leaf(&filled(&context, &[samples, height, 9, ca], 1.0, 0.5));
        let skip = tape.leaf(&filled(&context, &[samples, height, 9, cb], 2.0, -1.0));
        let weight = tape.leaf(&filled(&context, &[channels], 0.5, 1.0));
        let bias = tape.leaf(&filled(&context, &[channels], 0.5, 0.0));
        let matrix = tape.leaf(&filled(&context, &[samples, 2 * channels], 0.5, 0.0));
        let norm = GroupNormSilu { groups: 4, epsilon: 1e-5, silu: true };
        let y = group_norm_silu(&tape, &x, Some(&skip), [&weight, &bias], Some(&matrix), norm, None).unwrap();
        let cotangent = filled(&context, &[samples, height, 9, channels], 1.0, 0.0);
        tape.backward(&y, cotangent).unwrap();
        let gradients = [&x, &skip, &matrix, &weight, &bias].map(|var| tape.gradient(var).unwrap().download().unwrap());
        [y.tensor().download().unwrap()].into_iter().chain(gradients).collect()
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_batch() {
        for sizes in [[20, 24, 12], [33, 37, 7]] {
            let all = with_threads(1, || run(7, sizes));
            for threads in [2, 3] {
                assert_eq!(with_threads(threads, || run(7, sizes)), all);
                // Few samples are cut into chunks, many are not.
                let few = with_threads(threads, || run(2, sizes));
                for (few, all) in few.iter().zip(&all).take(4) {
                    assert_eq!(few[..], all[..few.len()]);
                }
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let shape = [2, 16, 16, 32];
        let one = |value: f64| tape.constant(&filled(&context, &[32], 0.0, value));
        let norm = GroupNormSilu { groups: 4, epsilon: 1e-5, silu: false };
        let x = filled(&context, &shape, 1.0, 1000.0);
        let y = group_norm_silu(&tape, &tape.constant(&x), None, [&one(1.0), &one(0.0)], None, norm, None).unwrap();
        let y = y.tensor().to_f64().unwrap();
        let squares = y.iter().map(|y| y * y).sum::<f64>() / y.len() as f64;
        // x itself is rounded to 6e-5 of the deviation here.
        assert!((squares - 1.0).abs() < 1e-3, "{squares}");
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let var = |shape: &[usize]| tape.constant(&filled(&context, shape, 1.0, 0.0));
        let (x, six, eight) = (var(&[2, 3, 3, 6]), var(&[6]), var(&[8]));
        let norm = |groups| GroupNormSilu { groups, epsilon: 1e-5, silu: true };
        let fault = |result: crate::Result<crate::tape::Var>| result.unwrap_err().to_string();
        assert!(
            fault(group_norm_silu(&tape, &x, None, [&six, &six], None, norm(4), None))
                .contains("4 groups of 6 channels")
        );
        assert!(fault(group_norm_silu(&tape, &x, None, [&six, &six], None, norm(0), None)).contains("0 groups"));
        assert!(fault(group_norm_silu(&tape, &x, None, [&six, &eight], None, norm(2), None)).contains("weight"));
        let skip = var(&[2, 3, 4, 2]);
        assert!(fault(group_norm_silu(&tape, &x, Some(&skip), [&eight, &eight], None, norm(2), None)).contains("skip"));
        let matrix = var(&[2, 6]);
        assert!(
            fault(group_norm_silu(&tape, &x, None, [&six, &six], Some(&matrix), norm(2), None)).contains("scale_shift")
        );
    }
}
