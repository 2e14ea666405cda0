//! Cases of a training batch's draws.

use super::{Draw, NoiseStep, Noised, Target, TimeGrid, noise_step};
use crate::ops::case::{Case, Input, Values};
use crate::ops::control::Control;
use crate::tape::Var;

/// Cosine-like levels at `timesteps` times, noisier and noisier, with a² + s² = 1.
fn table(timesteps: usize, part: fn(f64) -> f64) -> Values {
    Values::Given(
        (0..timesteps)
            .map(|i| part((i as f64 + 1.0) / (timesteps as f64 + 1.0) * std::f64::consts::FRAC_PI_2))
            .collect(),
    )
}

/// How a case draws its times.
#[derive(Clone, Copy)]
enum Spread {
    Uniform,
    LogitNormal,
    /// By a state of so many bins, of which every third is five times as likely as the others.
    Adaptive(usize),
}

impl Spread {
    fn state(bins: usize) -> Values {
        let parts = |k: usize| if k.is_multiple_of(3) { 5.0 } else { 1.0 };
        let total: f64 = (0..bins).map(parts).sum();
        // As floats, so that draws in f64 fall into the same bins.
        let shares: Vec<f64> = (0..bins).map(|k| f64::from((parts(k) / total) as f32)).collect();
        let ends = shares.iter().scan(0.0, |end, share| {
            *end += share;
            Some(f64::from(*end as f32))
        });
        let mut ends: Vec<f64> = ends.collect();
        ends[bins - 1] = 1.0;
        Values::Given([vec![1.0; bins], shares, ends].concat())
    }

    fn draw(self, inputs: &[Var]) -> Draw {
        match self {
            Spread::Uniform => Draw::Uniform,
            Spread::LogitNormal => Draw::LogitNormal { mean: 0.2, std: 1.1 },
            Spread::Adaptive(_) => Draw::Adaptive(inputs[3].tensor().clone()),
        }
    }
}

fn case(
    name: &str,
    shape: [usize; 4],
    timesteps: Option<usize>,
    draw: Spread,
    target: Target,
    min_snr_gamma: Option<f32>,
) -> Case {
    let control = Control { step: 3, first_item: 1 << 20, ..Control::default() };
    let mut inputs = vec![
        Input::parameter("x0", shape).with(Values::Uniform(-1.0, 1.0)).constant(),
        Input::indices("labels", [shape[0]], 10),
        Input::words("control", &control.words()),
    ];
    if let Spread::Adaptive(bins) = draw {
        inputs.push(Input::parameter("bin_state", [3, bins]).with(Spread::state(bins)).constant());
    }
    if let Some(timesteps) = timesteps {
        inputs.push(Input::parameter("a", [timesteps]).with(table(timesteps, f64::cos)).constant());
        inputs.push(Input::parameter("s", [timesteps]).with(table(timesteps, f64::sin)).constant());
    }
    Case::new("noise_step", name, inputs, move |tape, inputs| {
        let [x0, labels, control] = [&inputs[0], &inputs[1], &inputs[2]].map(|var| var.tensor());
        let times = match inputs {
            [.., a, s] if timesteps.is_some() => TimeGrid::Table { a: a.tensor().clone(), s: s.tensor().clone() },
            _ => TimeGrid::Flow,
        };
        let config = NoiseStep {
            seed: 0x0123_4567_89ab_cdef,
            times,
            draw: draw.draw(inputs),
            target,
            min_snr_gamma,
            label_dropout: 0.3,
            null_label: 10,
        };
        let drawn = noise_step(tape.context(), x0, labels, control, &config)?;
        let Noised { x_t, target, time, labels, weight, level } = drawn;
        Ok([x_t, target, time, labels, weight].iter().chain(&level).map(|tensor| tape.constant(tensor)).collect())
    })
    // An angle of up to 2π and a radius of up to 5.8 carry a few units in the last place into the noise.
    .sums(16)
}

/// Every target, both kinds of times and draws, odd sizes.
pub fn cases() -> Vec<Case> {
    let logit_normal = Spread::LogitNormal;
    let uniform = Spread::Uniform;
    vec![
        case("table_epsilon_b5_8x8x3", [5, 8, 8, 3], Some(1000), uniform, Target::Epsilon, Some(5.0)),
        case("table_v_odd_b3_3x5x3", [3, 3, 5, 3], Some(37), logit_normal, Target::V, Some(2.0)),
        case("table_x0_b2_19x19x3", [2, 19, 19, 3], Some(10), uniform, Target::X0, Some(5.0)),
        case("flow_b4_8x8x1", [4, 8, 8, 1], None, logit_normal, Target::Flow, None),
        case("flow_v_b40_2x2x1", [40, 2, 2, 1], None, uniform, Target::V, Some(5.0)),
        case("adaptive_table_x0_b64_2x3x1", [64, 2, 3, 1], Some(50), Spread::Adaptive(7), Target::X0, Some(5.0)),
        case("adaptive_flow_b40_2x2x1", [40, 2, 2, 1], None, Spread::Adaptive(32), Target::Flow, None),
        case("flow_b256_32x32x3", [256, 32, 32, 3], None, logit_normal, Target::Flow, None).large(),
        case("table_epsilon_b256_32x32x3", [256, 32, 32, 3], Some(1000), uniform, Target::Epsilon, Some(5.0)).large(),
    ]
}
