//! Weights are rounded to bf16 on their device.

use super::device;
use super::tiny::rounds_as_the_host;

#[test]
fn small_weights_are_rounded_as_on_the_host() {
    let Some((_guard, device)) = device("weights::small_weights_are_rounded_as_on_the_host") else { return };
    rounds_as_the_host(&device);
}
