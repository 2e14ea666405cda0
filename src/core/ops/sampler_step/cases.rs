//! Cases of sampling: what a stage mutates comes back as outputs.

use super::{ROW_WORDS, Row, STAGE_WORDS, SamplerState, fill_noise, sampler_step, sampler_time, to_pixels};
use crate::ops::case::{Case, Input, Values};
use crate::tensor::DType;

const SEED: u32 = 0x0042_0007;

/// Rows for `images` images, guided ones with a partner behind all of them, of plausible numbers: each of its own seed, item
/// and step, every third without the flags.
fn table(images: usize, copies: usize, flags: u32) -> Input {
    let coefficients = [500.0f32, 1.7, 1.4, -0.9, 0.2, 1.1, -0.8, 1.0, 0.9, 0.6, 0.3, -0.2, 0.4, 0.5, -0.7];
    let mut rows = vec![Row::default(); images * copies];
    for b in 0..images {
        let mut stage = [0; STAGE_WORDS];
        for (word, coefficient) in stage.iter_mut().zip(coefficients) {
            *word = (coefficient + 0.01 * b as f32).to_bits();
        }
        let flags = if b % 3 == 2 { 0 } else { flags };
        stage[STAGE_WORDS - 1] = flags | Row::OWNS | Row::BEGINS;
        let partner = b + (copies - 1) * images;
        let (item, step) = (77 + 5 * b as u32, 2 + b as u32);
        let (seed, scale) = ([SEED + b as u32, b as u32], 1.0 - 0.1 * (b % 4) as f32);
        rows[b] = Row { stage, seed, item, step, partner: partner as u32, scale, reserved: [0; 2] };
        if copies == 2 {
            rows[partner] = Row { stage: [stage[0]; STAGE_WORDS], ..Row::default() };
            rows[partner].stage[STAGE_WORDS - 1] = 0;
        }
    }
    Input::words("table", bytemuck::cast_slice(&rows))
}

fn buffer(name: &'static str, [batch, rest @ ..]: [usize; 4], copies: usize) -> Input {
    Input::parameter(name, [batch * copies, rest[0], rest[1], rest[2]]).constant()
}

fn step(name: &str, shape: [usize; 4], copies: usize, flags: u32) -> Case {
    let inputs = vec![
        buffer("x", shape, copies),
        buffer("prediction", shape, copies),
        table(shape[0], copies, flags),
        buffer("saved_state", shape, copies),
        buffer("saved", shape, copies),
    ];
    // The last two buffers are given where the flags name them.
    let (state, combination) = (flags & (1 | 8) != 0, flags & (2 | 16) != 0);
    Case::new("sampler_step", name, inputs, move |tape, inputs| {
        let [x, prediction, table, saved_state, saved] = [0, 1, 2, 3, 4].map(|i| inputs[i].tensor());
        let table = table.view([x.sizes()[0], ROW_WORDS])?;
        let (saved_state, saved) = (state.then_some(saved_state), combination.then_some(saved));
        sampler_step(tape.context(), &SamplerState { x, prediction, saved_state, saved }, &table)?;
        let mutated = [Some(x), saved_state, saved];
        Ok(mutated.into_iter().flatten().map(|tensor| tape.constant(tensor)).collect())
    })
    // Up to five terms, and a few units in the last place of the noise.
    .sums(25)
}

fn start(name: &str, shape: [usize; 4], copies: usize) -> Case {
    let inputs = vec![buffer("x", shape, copies), table(shape[0], copies, 0)];
    Case::new("sampler_step", name, inputs, move |tape, inputs| {
        let [x, table] = [0, 1].map(|i| inputs[i].tensor());
        let table = table.view([x.sizes()[0], ROW_WORDS])?;
        let time = tape.context().empty([x.sizes()[0]], x.dtype())?;
        fill_noise(tape.context(), x, &table)?;
        sampler_time(tape.context(), &time, &table)?;
        Ok(vec![tape.constant(x), tape.constant(&time)])
    })
    .sums(25)
}

fn pixels(name: &str, shape: [usize; 4]) -> Case {
    Case::new("sampler_step", name, vec![buffer("x", shape, 1)], |tape, inputs| {
        let pixels = tape.context().empty(inputs[0].shape(), DType::U8)?;
        to_pixels(tape.context(), inputs[0].tensor(), &pixels)?;
        Ok(vec![tape.constant(&pixels)])
    })
}

/// Every flag, with and without partners, odd sizes; the start and the end of sampling.
pub fn cases() -> Vec<Case> {
    let extremes: Vec<f64> = [-2.0, -1.0, -0.999, 0.0, 0.3, 0.5, 0.7, 1.0, 1.5].to_vec();
    let mut edges = pixels("pixels_edges", [1, 3, 3, 1]);
    edges.inputs[0].values = Values::Given(extremes);
    vec![
        step("plain_b3_8x8x3", [3, 8, 8, 3], 1, 0),
        step("guided_noise_b2_8x8x3", [2, 8, 8, 3], 2, 4),
        step("guided_saves_odd_b3_3x5x3", [3, 3, 5, 3], 2, 1 | 2 | 4 | 8 | 16),
        step("saves_b2_19x19x3", [2, 19, 19, 3], 1, 8 | 16),
        step("corrects_b1_4x4x1", [1, 4, 4, 1], 1, 1 | 2),
        start("start_b3_8x8x3", [3, 8, 8, 3], 2),
        start("start_odd_b2_19x19x3", [2, 19, 19, 3], 1),
        pixels("pixels_b2_9x9x3", [2, 9, 9, 3]),
        edges,
        step("guided_noise_b256_32x32x3", [256, 32, 32, 3], 2, 4).large(),
    ]
}
