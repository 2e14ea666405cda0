//! The first rung of the ladder, for every case of every op: f64 gradients against finite differences, f32 against f64,
//! and the cost model against the tensors' sizes.

use engine_core::ops::{case::Case, cases};

fn every_case(check: impl Fn(&Case) -> engine_core::Result<()> + Sync) {
    let cases: Vec<Case> = cases().into_iter().filter(|case| !case.large).collect();
    assert!(!cases.is_empty());
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

#[test]
fn costs_cover_the_outputs() {
    every_case(Case::check_cost);
    for case in cases().iter().filter(|case| case.large) {
        case.check_cost().unwrap();
    }
}
