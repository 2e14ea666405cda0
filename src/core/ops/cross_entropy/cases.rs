//! Cases of cross-entropy.

use super::cross_entropy;
use crate::ops::case::{Case, Input, Values};

fn case(name: &str, batch: usize, classes: usize, smoothing: f32) -> Case {
    let inputs = vec![
        Input::parameter("logits", [batch, classes]).with(Values::Uniform(-4.0, 4.0)),
        Input::indices("labels", [batch], classes as u32),
    ];
    Case::new("cross_entropy", name, inputs, move |tape, inputs| {
        let result = cross_entropy(tape, &inputs[0], &inputs[1], smoothing, 0.5)?;
        Ok(vec![result.loss, tape.constant(&result.correct), tape.constant(&result.items)])
    })
    .sums(batch * classes)
}

/// Few classes and many, fewer than a warp has lanes and more, batches that leave a block's last warps idle, one class.
pub fn cases() -> Vec<Case> {
    let mut outside = case("labels_outside_b6_k10", 6, 10, 0.1);
    outside.inputs[1] = outside.inputs[1].clone().with(Values::Given(vec![3.0, -1.0, 9.0, 10.0, 0.0, -100.0]));
    let mut far = case("far_b5_k12", 5, 12, 0.1);
    far.inputs[0] = far.inputs[0].clone().with(Values::Uniform(200.0, 212.0));
    vec![
        case("b8_k10", 8, 10, 0.0),
        case("smooth_b7_k37", 7, 37, 0.1),
        case("smooth_odd_b13_k100", 13, 100, 0.2),
        case("many_items_b301_k3", 301, 3, 0.1),
        case("one_class_b3_k1", 3, 1, 0.0),
        outside,
        far,
        case("b256_k10", 256, 10, 0.1).large(),
        case("b256_k1000", 256, 1000, 0.1).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType};

    #[test]
    fn right_answers_are_counted_and_ties_go_to_the_first() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let logits = [[0.0f32, 2.0, 1.0], [3.0, 3.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 9.0]].concat();
        let logits = tape.constant(&context.tensor(&logits, [4, 3]).unwrap());
        let labels = tape.constant(&context.tensor(&[1i32, 0, 1, 5], [4]).unwrap());
        let result = cross_entropy(&tape, &logits, &labels, 0.0, 1.0).unwrap();
        assert_eq!(result.correct.host::<f32>(), [2.0]);
        assert_eq!(result.items.host::<f32>()[3], 0.0);
    }

    #[test]
    fn logits_that_know_nothing_cost_the_logarithm_of_the_classes() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let logits = tape.constant(&context.zeros([2, 10], DType::F32).unwrap());
        let labels = tape.constant(&context.tensor(&[4i32, 7], [2]).unwrap());
        let loss = cross_entropy(&tape, &logits, &labels, 0.1, 1.0).unwrap().loss;
        assert!((loss.tensor().host::<f32>()[0] - 10f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let var = |shape: &[usize], dtype: DType| tape.constant(&context.zeros(shape, dtype).unwrap());
        let run = |logits: &[usize], labels: &[usize], dtype: DType, smoothing: f32| {
            let result = cross_entropy(&tape, &var(logits, DType::F32), &var(labels, dtype), smoothing, 1.0);
            result.map(drop).map_err(|error| error.to_string())
        };
        assert!(run(&[2, 3], &[2], DType::I32, 0.0).is_ok());
        assert!(run(&[2, 3, 1], &[2], DType::I32, 0.0).unwrap_err().contains("logits"));
        assert!(run(&[2, 3], &[3], DType::I32, 0.0).unwrap_err().contains("labels"));
        assert!(run(&[2, 3], &[2], DType::F32, 0.0).unwrap_err().contains("labels"));
        assert!(run(&[0, 3], &[0], DType::I32, 0.0).unwrap_err().contains("none"));
        assert!(run(&[2, 3], &[2], DType::I32, 1.0).unwrap_err().contains("smoothing"));
    }
}
