//! Cases of dropout.

use super::dropout;
use crate::ops::case::{Case, Input};
use crate::ops::control::Control;

fn case(name: &str, shape: &[usize], probability: f32) -> Case {
    let control = Control { step: 3, first_item: 1 << 20, ..Control::default() };
    let inputs = vec![Input::activation("x", shape), Input::words("control", &control.words())];
    Case::new("dropout", name, inputs, move |tape, inputs| {
        Ok(vec![dropout(tape, &inputs[0], probability, 0x0123_4567_89ab_cdef, 5, inputs[1].tensor())?])
    })
}

/// x used twice: its second gradient is added to the first.
fn twice(name: &str, shape: &[usize]) -> Case {
    let control = Control { step: 9, ..Control::default() };
    let inputs = vec![Input::activation("x", shape), Input::words("control", &control.words())];
    Case::new("dropout", name, inputs, move |tape, inputs| {
        let once = dropout(tape, &inputs[0], 0.3, 1, 0, inputs[1].tensor())?;
        let again = dropout(tape, &inputs[0], 0.3, 1, 1, inputs[1].tensor())?;
        Ok(vec![crate::ops::elementwise::add(tape, &once, &again)?])
    })
}

/// Shares from little to much, tails, several blocks an item.
pub fn cases() -> Vec<Case> {
    vec![
        case("b3_8x8x16_p0.1", &[3, 8, 8, 16], 0.1),
        case("odd_b5_3x5x7_p0.5", &[5, 3, 5, 7], 0.5),
        case("one_b1_1_p0.01", &[1, 1], 0.01),
        case("tail_b2_t11_d95_p0.9", &[2, 11, 95], 0.9),
        twice("added_b3_t5_d33", &[3, 5, 33]),
        case("b32_16x16x128_p0.1", &[32, 16, 16, 128], 0.1).large(),
        case("b128_16x16x256_p0.1", &[128, 16, 16, 256], 0.1).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host::parallel::with_threads;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType, Tensor};

    const SEED: u64 = 7;

    /// The output of dropout for ones, and of its backward for a gradient of ones.
    fn masks(shape: [usize; 2], probability: f32, layer: u32, control: Control) -> [Vec<f32>; 2] {
        let context = Context::cpu();
        let tape = Tape::new(&context);
        let ones = |shape: [usize; 2]| -> Tensor {
            let tensor = context.persistent(shape, DType::F32).unwrap();
            tensor.upload_f64(&vec![1.0; tensor.len()]).unwrap();
            tensor
        };
        let buffer = Control::buffer(&context).unwrap();
        buffer.upload(&control.words()).unwrap();
        let x = tape.leaf(&ones(shape));
        let y = dropout(&tape, &x, probability, SEED, layer, &buffer).unwrap();
        tape.backward(&y, ones(shape)).unwrap();
        [y.tensor(), &tape.gradient(&x).unwrap()].map(|tensor| tensor.download().unwrap())
    }

    #[test]
    fn the_share_that_is_kept_is_right_and_backward_draws_the_same() {
        let shape = [20, 5001];
        let count = (shape[0] * shape[1]) as f64;
        for probability in [0.05_f32, 0.1, 0.5, 0.9] {
            let [y, dx] = masks(shape, probability, 3, Control { step: 11, ..Control::default() });
            assert_eq!(y, dx);
            let scale = 1.0 / (1.0 - probability);
            assert!(y.iter().all(|&y| y == 0.0 || y == scale));
            let p = probability as f64;
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64;
            // Five standard deviations of a binomial number; by item and by place in a call of four too.
            assert!((dropped - p * count).abs() < 5.0 * (count * p * (1.0 - p)).sqrt(), "{probability}: {dropped}");
            for place in 0..4 {
                let (all, dropped) = (y.chunks(shape[1]))
                    .flat_map(|item| item.iter().skip(place).step_by(4))
                    .fold((0.0, 0.0), |(all, dropped), &y| (all + 1.0, dropped + (y == 0.0) as u8 as f64));
                assert!((dropped - p * all).abs() < 5.0 * (all * p * (1.0 - p)).sqrt(), "{probability} {place}");
            }
        }
    }

    #[test]
    fn masks_depend_on_the_item_and_not_on_its_place_in_the_batch() {
        let at = |first_item| Control { step: 2, first_item, ..Control::default() };
        let all = masks([6, 777], 0.4, 1, at(100))[0].clone();
        for b in 0..6 {
            assert_eq!(masks([1, 777], 0.4, 1, at(100 + b as u32))[0], all[b * 777..][..777]);
        }
        for threads in [1, 3] {
            assert_eq!(
                with_threads(threads, || masks([6, 20_000], 0.4, 1, at(0))),
                with_threads(2, || masks([6, 20_000], 0.4, 1, at(0)))
            );
        }
        assert_ne!(all[..777], all[777..][..777], "items differ");
        assert_ne!(masks([6, 777], 0.4, 2, at(100))[0], all, "layers differ");
        assert_ne!(masks([6, 777], 0.4, 1, Control { step: 3, ..at(100) })[0], all, "steps differ");
    }

    #[test]
    fn probability_zero_is_the_identity_and_one_is_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let x = tape.constant(&context.tensor(&[1.0f32, -2.0], [1, 2]).unwrap());
        let control = Control::buffer(&context).unwrap();
        let y = dropout(&tape, &x, 0.0, SEED, 0, &control).unwrap();
        assert_eq!(y.tensor().download::<f32>().unwrap(), [1.0, -2.0]);
        for (probability, layer) in [(1.0, 0), (-0.1, 0), (f32::NAN, 0), (0.5, 1 << 24)] {
            assert!(dropout(&tape, &x, probability, SEED, layer, &control).is_err(), "{probability} {layer}");
        }
    }
}
