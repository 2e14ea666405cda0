//! The sampling ops against the plans' own reference in f64, and the promise that image k of a seed is the same image.

use engine::Result;
use engine::diffusion::{
    DiffusionConfig, NoiseSchedule, Plan, Prediction, SamplerKind, SamplingConfig, Schedule, StageCoefficients,
};
use engine::ops::control::Control;
use engine::ops::host::normal::fill_normal_as;
use engine::ops::sampler_step::{STAGE_WORDS, SamplerState, fill_noise, sampler_step, sampler_time, to_pixels};
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Tensor};

const SEED: u64 = 17;
/// Values of an image.
const SIZE: usize = 2 * 2 * 3;

fn model(x: &[f64], time: f64, conditional: bool, pred: &mut [f64]) {
    for (pred, x) in pred.iter_mut().zip(x) {
        *pred = (0.8 * x + if conditional { 0.3 } else { -0.2 } + 0.1 * (time / 200.0).cos()).tanh();
    }
}

fn plan(sampler: SamplerKind, flow: bool, guidance: f64, clip_x0: bool, temperature: f64) -> Plan {
    let (schedule, prediction) =
        if flow { (Schedule::Flow, Prediction::Flow) } else { (Schedule::Linear, Prediction::V) };
    let noise = NoiseSchedule::new(&DiffusionConfig { schedule, prediction, ..DiffusionConfig::default() }).unwrap();
    let eta = if sampler == SamplerKind::Ddim && !flow { 0.5 } else { 0.0 };
    let sampling =
        SamplingConfig { sampler, num_steps: 5, eta, temperature, guidance, clip_x0, ..SamplingConfig::default() };
    Plan::new(&noise, prediction, &sampling).unwrap()
}

/// Samples `batch` images from number `first` on with the ops.
fn sample(context: &Context, dtype: DType, plan: &Plan, first: u32, batch: usize, temperature: f32) -> Result<Tensor> {
    let copies = if plan.is_guided() { 2 } else { 1 };
    let rows = plan.coefficients();
    let words: &[u32] = bytemuck::cast_slice(&rows);
    let table = context.tensor(words, [rows.len(), STAGE_WORDS])?;
    let x = context.persistent([copies * batch, 2, 2, 3], dtype)?;
    let (time, prediction) = (context.persistent([copies * batch], dtype)?, context.persistent(x.shape(), dtype)?);
    let saved = [(); 2].map(|()| context.zeros([batch, 2, 2, 3], dtype));
    let [saved_state, saved] = saved;
    let (saved_state, saved) = (saved_state?, saved?);
    let control = Control::buffer(context)?;
    for row in 0..rows.len() as u32 {
        control.upload(&Control { row, first_item: first, ..Control::default() }.words())?;
        if row == 0 {
            fill_noise(context, &x, copies, &control, SEED, temperature)?;
        }
        sampler_time(context, &time, &table, &control)?;
        let (state, times) = (x.to_f64()?, time.to_f64()?);
        assert!((1..copies).all(|copy| state[copy * batch * SIZE..][..batch * SIZE] == state[..batch * SIZE]));
        let mut pred = vec![0.0; state.len()];
        for (i, (x, pred)) in state.chunks_exact(SIZE).zip(pred.chunks_exact_mut(SIZE)).enumerate() {
            model(x, times[i], i < batch, pred);
        }
        prediction.upload_f64(&pred)?;
        let state = SamplerState {
            x: &x,
            prediction: &prediction,
            saved_state: plan.needs_saved_state().then_some(&saved_state),
            saved: plan.needs_saved_buffers().then_some(&saved),
            copies,
        };
        sampler_step(context, &state, &table, &control, SEED)?;
    }
    x.part(0, [batch, 2, 2, 3])
}

#[test]
fn the_ops_follow_the_plan() -> Result<()> {
    assert_eq!(size_of::<StageCoefficients>(), 4 * STAGE_WORDS);
    let context = Context::cpu();
    for (sampler, flow) in [
        (SamplerKind::Ddpm, false),
        (SamplerKind::Ddim, false),
        (SamplerKind::Heun, false),
        (SamplerKind::Dpmpp2m, false),
        (SamplerKind::Ddim, true),
        (SamplerKind::Heun, true),
        (SamplerKind::Dpmpp2m, true),
    ] {
        for (guidance, clip, temperature) in [(1.0, true, 1.0), (1.7, true, 0.75), (1.7, false, 1.0)] {
            let plan = plan(sampler, flow, guidance, clip, temperature);
            let normal = |step: usize, z: &mut [f64]| {
                fill_normal_as(z, Philox::new(SEED), 9, step as u32, Purpose::Noise);
            };
            let mut expected = vec![0.0; SIZE];
            normal(0, &mut expected);
            expected.iter_mut().for_each(|x| *x *= temperature);
            plan.run_host(&mut expected, model, |stage, z| normal(stage + 1, z));
            for dtype in [DType::F64, DType::F32] {
                // Item 9 is the second of the batch.
                let images = sample(&context, dtype, &plan, 8, 3, temperature as f32)?.to_f64()?;
                for (ours, expected) in images[SIZE..].iter().zip(&expected) {
                    // The table holds the plan's coefficients in f32, and the noisiest level multiplies by 1/a = 160.
                    let error = (ours - expected).abs() / expected.abs().max(1.0);
                    assert!(error < 1e-4, "{sampler} flow {flow} guidance {guidance} {dtype}: {ours}, not {expected}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_image_is_the_same_in_every_batch() -> Result<()> {
    let context = Context::cpu();
    for guidance in [1.0, 2.0] {
        let plan = plan(SamplerKind::Ddpm, false, guidance, true, 1.0);
        let many = sample(&context, DType::F32, &plan, 0, 7, 1.0)?.download::<f32>()?;
        let few = sample(&context, DType::F32, &plan, 4, 2, 1.0)?.download::<f32>()?;
        assert_eq!(few, many[4 * SIZE..6 * SIZE]);
    }
    Ok(())
}

#[test]
fn pixels_are_rounded_and_clamped() -> Result<()> {
    let context = Context::cpu();
    let values: Vec<f32> = (0..=255).map(|pixel| pixel as f32 / 127.5 - 1.0).chain([-3.0, 3.0, f32::NAN]).collect();
    let x = context.tensor(&values, [values.len()])?;
    let pixels = context.persistent([values.len()], DType::U8)?;
    to_pixels(&context, &x, &pixels)?;
    let expected: Vec<u8> = (0..=255).chain([0, 255, 0]).collect();
    assert_eq!(pixels.download::<u8>()?, expected);
    Ok(())
}

#[test]
fn a_stage_without_its_buffer_shows() -> Result<()> {
    let context = Context::cpu();
    let mut words = [0u32; STAGE_WORDS];
    // next = saved_state.
    (words[8], words[15]) = (1.0f32.to_bits(), StageCoefficients::BASE_IS_SAVED);
    let table = context.tensor(&words, [1, STAGE_WORDS])?;
    let (x, prediction) = (context.zeros([2, 3], DType::F32)?, context.zeros([2, 3], DType::F32)?);
    let state = SamplerState { x: &x, prediction: &prediction, saved_state: None, saved: None, copies: 1 };
    sampler_step(&context, &state, &table, &Control::buffer(&context)?, SEED)?;
    assert!(x.download::<f32>()?.iter().all(|value| value.is_nan()));
    Ok(())
}
