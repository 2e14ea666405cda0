//! Cases of the balanced loss.

use super::{BalancedLoss, TERMS, balanced_loss, update_magnitudes};
use crate::ops::case::{Case, Input, Values};
use crate::rng::{Philox, Purpose};

/// Between -1 and 1.
fn symmetric(element: usize, item: u32) -> f64 {
    2.0 * f64::from(Philox::new(11).uniform4(element as u32, item, 0, Purpose::Probe)[0]) - 1.0
}

/// Predictions and targets, kept off what cannot be differentiated numerically: |d| has a kink at 0, and the edges' norm is
/// as good as one, since it bends within ε = 1e-3, the finite differences' own step. Each d lies in one of three ranges
/// that are 0.3 apart and 0.1 away from 0, and neighbours, along either axis, lie in different ones.
fn images([batch, height, width, channels]: [usize; 4]) -> [Vec<f64>; 2] {
    const RANGES: [(f64, f64); 3] = [(-0.75, 0.25), (0.25, 0.15), (0.95, 0.25)];
    let elements = height * width * channels;
    let target: Vec<f64> = (0..batch * elements).map(|e| 1.5 * symmetric(e, 0)).collect();
    let prediction = target.iter().enumerate().map(|(e, target)| {
        let (c, x, y) = (e % channels, e / channels % width, e % elements / channels / width);
        let (centre, radius) = RANGES[(e / elements + x + y + c) % RANGES.len()];
        target + centre + radius * symmetric(e, 1)
    });
    [prediction.collect(), target]
}

struct Options {
    weighted: bool,
    /// The running means' sums and the sum of their weights.
    state: Option<[f64; TERMS + 1]>,
    weights: [f32; TERMS],
}

impl Default for Options {
    fn default() -> Self {
        Self { weighted: true, state: None, weights: BalancedLoss::default().weights }
    }
}

fn case(name: &str, shape: [usize; 4], options: Options) -> Case {
    let [prediction, target] = images(shape);
    let mut inputs = vec![
        Input::parameter("prediction", shape).with(Values::Given(prediction)),
        Input::parameter("target", shape).with(Values::Given(target)).constant(),
    ];
    if options.weighted {
        inputs.push(Input::parameter("weight", [shape[0]]).with(Values::Uniform(0.2, 3.0)).constant());
    }
    if let Some(state) = options.state {
        inputs.push(Input::parameter("state", [TERMS + 1]).with(Values::Given(state.to_vec())).constant());
    }
    let config = BalancedLoss { weights: options.weights, scale: 0.5 };
    Case::new("balanced_loss", name, inputs, move |tape, inputs| {
        let weight = if options.weighted { inputs.get(2) } else { None };
        let state = options.state.and_then(|_| inputs.last()).map(|state| state.tensor());
        let result = balanced_loss(tape, &inputs[0], &inputs[1], weight, state, &config)?;
        Ok(vec![result.loss, tape.constant(&result.items), tape.constant(&result.terms)])
    })
    .sums(shape.iter().product())
}

fn update(name: &str, state: [f64; TERMS + 1]) -> Case {
    let inputs = vec![
        Input::parameter("state", [TERMS + 1]).with(Values::Given(state.to_vec())).constant(),
        Input::parameter("terms", [TERMS]).with(Values::Uniform(0.01, 2.0)).constant(),
    ];
    Case::new("balanced_loss", name, inputs, |tape, inputs| {
        update_magnitudes(tape.context(), inputs[0].tensor(), inputs[1].tensor(), 0.99)?;
        Ok(vec![inputs[0].clone()])
    })
}

/// With and without weights and state; images of one pixel, row or column, of fewer elements than a block has threads, of
/// odd sizes, and of more; more items than the mean's block has threads; each term alone; the running means' step.
pub fn cases() -> Vec<Case> {
    // Factors within bounds, and (the cosine's, the edges') beyond both.
    let state = Some([0.6, 0.3, 0.001, 0.2, 90.0, 0.875]);
    let plain = || Options { weighted: false, ..Options::default() };
    let alone = |term: usize| {
        let weights = std::array::from_fn(|i| if i == term { 2.0 } else { 0.0 });
        Options { weights, state: Some([0.6, 0.3, 0.8, 0.2, 0.1, 0.5]), ..Options::default() }
    };
    vec![
        case("balanced_b3_8x8x3", [3, 8, 8, 3], Options { state, ..Options::default() }),
        case("plain_odd_b5_3x5x1", [5, 3, 5, 1], plain()),
        case("first_step_b2_17x23x3", [2, 17, 23, 3], Options { state: Some([0.0; TERMS + 1]), ..Options::default() }),
        case(
            "a_mean_of_zero_b2_5x4x4",
            [2, 5, 4, 4],
            Options { state: Some([0.6, 0.3, 0.8, 0.0, 0.1, 0.5]), ..plain() },
        ),
        case("pixels_b300_1x1x2", [300, 1, 1, 2], Options { state, ..Options::default() }),
        case("pixels_b3_1x1x1", [3, 1, 1, 1], plain()),
        case("a_row_b2_1x9x3", [2, 1, 9, 3], plain()),
        case("a_column_b2_7x1x3", [2, 7, 1, 3], Options { state, ..Options::default() }),
        case("two_by_two_b2_2x2x2", [2, 2, 2, 2], plain()),
        case("mse_alone_b2_4x5x3", [2, 4, 5, 3], alone(0)),
        case("l1_alone_b2_4x5x3", [2, 4, 5, 3], alone(1)),
        case("cosine_alone_b2_4x5x3", [2, 4, 5, 3], alone(2)),
        case("high_frequency_alone_b2_6x5x3", [2, 6, 5, 3], alone(3)),
        case("edge_alone_b2_4x5x3", [2, 4, 5, 3], alone(4)),
        update("first_update", [0.0; TERMS + 1]),
        update("update", [0.6, 0.3, 0.8, 0.2, 0.1, 0.5]),
        case("balanced_b128_32x32x3", [128, 32, 32, 3], Options { state, ..Options::default() }).large(),
    ]
}
