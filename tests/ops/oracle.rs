//! The first rung of the ladder, for every case of every op: f64 gradients against finite differences, f32 against f64,
//! and the cost model against the tensors' sizes.

use engine_core::ops::instruments::poisoned;
use engine_core::ops::layer_norm::{Affine, layer_norm};
use engine_core::ops::{case::Case, cases};
use engine_core::tape::Tape;
use engine_core::tensor::{DType, Device};

fn every_case(check: impl Fn(&Case) -> engine_core::Result<()> + Sync) {
    let only = std::env::var("ENGINE_OP").ok();
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| !case.large && only.as_deref().is_none_or(|op| case.op == op)).collect();
    assert!(!cases.is_empty(), "ENGINE_OP names no op: {only:?}");
    let faults: Vec<String> =
        cases.iter().filter_map(|case| check(case).err()).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

#[test]
fn gradients_agree_with_finite_differences() {
    every_case(Case::check_gradients);
}

#[test]
fn single_precision_agrees_with_double() {
    every_case(Case::check_oracle);
}

/// As the kernels in bf16: within the tolerance that rounding inputs, outputs and declared intermediates argues for.
#[test]
fn bf16_agrees_with_double() {
    every_case(|case| case.check_device(&Device::Cpu, DType::BF16).map(drop));
}

#[test]
fn every_choice_of_gradients_is_written_and_added_to() {
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        every_case(|case| case.check_wirings(&Device::Cpu, dtype));
    }
}

#[test]
fn costs_cover_the_outputs() {
    every_case(Case::check_cost);
    for case in cases().iter().filter(|case| case.large) {
        case.check_cost().unwrap();
    }
}

/// The weight of a norm is trained, its bias is not: the weight still gets its gradient.
#[test]
fn a_layer_norm_with_a_constant_bias_trains_its_weight() {
    let context = poisoned(Device::Cpu);
    let tape = Tape::new(&context);
    let x = tape.constant(&context.tensor(&[1.0f64, 3.0], [1, 2]).unwrap());
    let weight = tape.leaf(&context.tensor(&[1.0f64, 1.0], [2]).unwrap());
    let bias = tape.constant(&context.tensor(&[0.0f64, 0.0], [2]).unwrap());
    let y = layer_norm(&tape, &x, Affine::Parameters { weight: &weight, bias: &bias }, 0.0).unwrap();
    tape.backward(&y, context.tensor(&[2.0f64, 5.0], [1, 2]).unwrap()).unwrap();
    assert_eq!(tape.gradient(&weight).unwrap().host::<f64>(), [-2.0, 5.0]);
}
