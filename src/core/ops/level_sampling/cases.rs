//! Cases of the law of the bins: the state comes back as the output.

use super::{Law, start, update};
use crate::ops::case::{Case, Input, Values};

/// `visited` bins have a mean, the others none yet.
fn case(name: &str, bins: usize, batch: usize, visited: usize, law: Law) -> Case {
    let mut state = start(bins);
    for (k, moment) in state[..visited].iter_mut().enumerate() {
        *moment = 0.25 + (k % 5) as f32;
    }
    let state = Values::Given(state.into_iter().map(f64::from).collect());
    let inputs = vec![
        Input::parameter("state", [3, bins]).with(state).constant(),
        Input::parameter("losses", [batch]).with(Values::Uniform(0.1, 2.0)).constant(),
        // One bin in three cannot be visited by this batch.
        Input::indices("levels", [batch], (2 * bins as u32).div_ceil(3)),
    ];
    Case::new("level_sampling", name, inputs, move |tape, inputs| {
        let [state, losses, levels] = [0, 1, 2].map(|i| inputs[i].tensor());
        update(tape.context(), state, losses, levels, law)?;
        Ok(vec![inputs[0].clone()])
    })
    .sums(batch + bins)
}

/// New states, old ones and mixed ones; fewer items than bins, and more; one bin, and as many as there may be.
pub fn cases() -> Vec<Case> {
    let law = Law { decay: 0.9, uniform: 0.2 };
    vec![
        case("new_k32_b16", 32, 16, 0, law),
        case("mixed_k37_b128", 37, 128, 20, law),
        case("old_k256_b301", 256, 301, 256, Law { decay: 0.99, uniform: 0.05 }),
        case("one_bin_b3", 1, 3, 1, law),
        case("three_bins_b5", 3, 5, 1, law),
        case("no_memory_k5_b7", 5, 7, 5, Law { decay: 0.0, uniform: 1.0 }),
        case("mixed_k64_b512", 64, 512, 40, law).large(),
    ]
}
