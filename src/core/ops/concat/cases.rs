//! Cases of concatenation.

use super::concat;
use crate::ops::case::{Case, Input};
use crate::tape::Var;
use crate::tensor::Shape;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn case(name: &str, leading: &[usize], parts: &[usize]) -> Case {
    let shape = |part: usize| Shape::new(&[leading, &[part]].concat());
    let inputs = parts.iter().zip(NAMES).map(|(&part, name)| Input::activation(name, shape(part))).collect();
    Case::new("concat", name, inputs, |tape, inputs| Ok(vec![concat(tape, &inputs.iter().collect::<Vec<&Var>>())?]))
}

/// Parts of whole pieces and odd ones, one part alone, and an Inception block's to time.
pub fn cases() -> Vec<Case> {
    vec![
        case("b2_3x4_c16_c8_c24", &[2, 3, 4], &[16, 8, 24]),
        case("odd_b3_5x2_c5_c1_c7_c3", &[3, 5, 2], &[5, 1, 7, 3]),
        case("mixed_b1_7_c8_c3_c16", &[1, 7], &[8, 3, 16]),
        case("one_b2_c9", &[2], &[9]),
        case("b32_17x17_c192x4", &[32, 17, 17], &[192, 192, 192, 192]).large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType};

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let var = |shape: &[usize]| tape.constant(&context.zeros(shape, DType::F32).unwrap());
        let (a, b, empty) = (var(&[2, 3]), var(&[3, 3]), var(&[2, 0]));
        assert_eq!(concat(&tape, &[&a, &var(&[2, 1])]).unwrap().sizes(), [2, 4]);
        for parts in [vec![], vec![&a, &b], vec![&a, &empty]] {
            assert!(concat(&tape, &parts).unwrap_err().to_string().contains("concat"));
        }
    }
}
