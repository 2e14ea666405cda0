//! Cases of pooling.

use super::{Window, global_average_pool, max_pool, mean_pool};
use crate::ops::case::{Case, Input, Values};

fn max(name: &str, shape: [usize; 4], window: Window) -> Case {
    let len: usize = shape.iter().product();
    let input = Input::activation("x", shape);
    // In steps, shuffled: no two values of a window are near enough for a small step to make another the largest. Cases
    // that are only timed take what comes.
    let input = if len > 1 << 16 {
        input
    } else {
        input.with(Values::Given((0..len).map(|i| (i * 7919 % len) as f64 * 0.02 - 0.01 * len as f64).collect()))
    };
    Case::new("pool", format!("max_{name}"), vec![input], move |tape, inputs| {
        Ok(vec![max_pool(tape, &inputs[0], window)?])
    })
    .sums(window.kernel * window.kernel)
}

fn mean(name: &str, shape: [usize; 4], window: Window) -> Case {
    let inputs = vec![Input::activation("x", shape).with(Values::Uniform(-1.0, 2.0))];
    Case::new("pool", format!("mean_{name}"), inputs, move |tape, inputs| {
        Ok(vec![mean_pool(tape, &inputs[0], window)?])
    })
    .sums(window.kernel * window.kernel)
}

fn average(name: &str, shape: [usize; 4]) -> Case {
    let inputs = vec![Input::activation("x", shape).with(Values::Uniform(-1.0, 2.0))];
    Case::new("pool", format!("average_{name}"), inputs, |tape, inputs| {
        Ok(vec![global_average_pool(tape, &inputs[0])?])
    })
    .sums(shape[1] * shape[2])
}

/// Windows that overlap, that meet and that leave gaps, with and without padding, images smaller than a window and with
/// pixels behind the last; channels in whole pieces and odd ones.
pub fn cases() -> Vec<Case> {
    let window = |kernel, stride, padding| Window { kernel, stride, padding };
    vec![
        max("b2_8x8x16_k3_s2_p1", [2, 8, 8, 16], window(3, 2, 1)),
        max("odd_b3_7x5x5_k3_s2_p1", [3, 7, 5, 5], window(3, 2, 1)),
        max("b1_6x6x8_k2_s2", [1, 6, 6, 8], window(2, 2, 0)),
        max("rest_b2_7x9x12_k2_s3", [2, 7, 9, 12], window(2, 3, 0)),
        max("dense_b1_5x6x9_k5_s1_p2", [1, 5, 6, 9], window(5, 1, 2)),
        max("small_b2_1x2x3_k3_s1_p1", [2, 1, 2, 3], window(3, 1, 1)),
        mean("b2_5x6x16_k3_s1_p1", [2, 5, 6, 16], window(3, 1, 1)),
        mean("odd_b3_7x5x5_k3_s2_p1", [3, 7, 5, 5], window(3, 2, 1)),
        mean("b1_6x6x8_k2_s2", [1, 6, 6, 8], window(2, 2, 0)),
        mean("rest_b2_7x9x12_k2_s3", [2, 7, 9, 12], window(2, 3, 0)),
        mean("small_b2_1x2x3_k3_s1_p1", [2, 1, 2, 3], window(3, 1, 1)),
        average("b2_4x4x32", [2, 4, 4, 32]),
        average("odd_b3_5x7x37", [3, 5, 7, 37]),
        average("wide_b1_2x3x260", [1, 2, 3, 260]),
        average("one_pixel_b2_1x1x5", [2, 1, 1, 5]),
        max("b128_32x32x64_k3_s2_p1", [128, 32, 32, 64], window(3, 2, 1)).large(),
        average("b128_4x4x512", [128, 4, 4, 512]).large(),
        mean("b16_35x35x192_k3_s1_p1", [16, 35, 35, 192], window(3, 1, 1)).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType};

    #[test]
    fn the_first_of_equals_gets_the_gradient() {
        let context = Context::cpu();
        let tape = Tape::new(&context);
        let x = tape.leaf(&context.zeros([1, 2, 2, 1], DType::F32).unwrap());
        let y = max_pool(&tape, &x, Window { kernel: 2, stride: 2, padding: 0 }).unwrap();
        tape.backward(&y, context.tensor(&[3.0f32], [1, 1, 1, 1]).unwrap()).unwrap();
        assert_eq!(tape.gradient(&x).unwrap().host::<f32>(), [3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_mean_counts_no_padding() {
        let context = Context::cpu();
        let tape = Tape::new(&context);
        let x = tape.leaf(&context.tensor(&[1.0f32, 2.0, 3.0, 4.0], [1, 2, 2, 1]).unwrap());
        let y = mean_pool(&tape, &x, Window { kernel: 3, stride: 1, padding: 1 }).unwrap();
        assert_eq!(y.tensor().host::<f32>(), [2.5; 4]);
        tape.backward(&y, context.tensor(&[1.0f32; 4], [1, 2, 2, 1]).unwrap()).unwrap();
        assert_eq!(tape.gradient(&x).unwrap().host::<f32>(), [1.0; 4]);
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let x = tape.constant(&context.zeros([1, 4, 3, 2], DType::F32).unwrap());
        let run = |kernel, stride, padding| max_pool(&tape, &x, Window { kernel, stride, padding });
        assert_eq!(run(3, 2, 1).unwrap().sizes(), [1, 2, 2, 2]);
        for (kernel, stride, padding) in [(0, 1, 0), (17, 1, 8), (3, 0, 1), (3, 1, 2), (4, 1, 0)] {
            assert!(run(kernel, stride, padding).unwrap_err().to_string().contains("window"));
        }
        assert!(mean_pool(&tape, &x, Window { kernel: 2, stride: 1, padding: 1 }).is_err());
        assert!(global_average_pool(&tape, &x.view([4, 6]).unwrap()).is_err());
    }
}
