//! The sampling ops against the plans' f64 reference, and the guarantee that image k of a seed is always the same.

use engine::Result;
use engine::diffusion::{
    DiffusionConfig, NoiseSchedule, Plan, Prediction, SamplerKind, SamplingConfig, Schedule, StageCoefficients,
};
use engine::ops::host::normal::fill_normal_as;
use engine::ops::sampler_step::{
    ROW_WORDS, Row, STAGE_WORDS, SamplerState, fill_noise, sampler_step, sampler_time, to_pixels,
};
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

/// Samples `batch` images from index `first` on with the ops.
fn sample(context: &Context, dtype: DType, plan: &Plan, first: u32, batch: usize, temperature: f32) -> Result<Tensor> {
    let copies = if plan.is_guided() { 2 } else { 1 };
    let rows = copies * batch;
    let table = context.zeros([rows, ROW_WORDS], DType::U32)?;
    let x = context.persistent([rows, 2, 2, 3], dtype)?;
    let (time, prediction) = (context.persistent([rows], dtype)?, context.persistent(x.shape(), dtype)?);
    let saved = [(); 2].map(|()| context.zeros(x.shape(), dtype));
    let [saved_state, saved] = saved;
    let (saved_state, saved) = (saved_state?, saved?);
    let words = |stage: &StageCoefficients, step: u32, flags: u32| -> Vec<Row> {
        let row = |row: usize| {
            let mut stage: [u32; STAGE_WORDS] = bytemuck::cast(*stage);
            // The unlabelled rows of an image have the right partner.
            stage[STAGE_WORDS - 1] = if row < batch { stage[STAGE_WORDS - 1] | flags } else { 0 };
            let partner = (row % batch + (copies - 1) * batch) as u32;
            let item = first + (row % batch) as u32;
            Row { stage, seed: [SEED as u32, 0], item, step, partner, scale: temperature, reserved: [0; 2] }
        };
        (0..rows).map(row).collect()
    };
    for (number, stage) in plan.coefficients().iter().enumerate() {
        if number == 0 {
            Row::upload(&words(stage, 0, Row::BEGINS), &table)?;
            fill_noise(context, &x, &table)?;
        }
        Row::upload(&words(stage, number as u32 + 1, Row::OWNS), &table)?;
        sampler_time(context, &time, &table)?;
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
        };
        sampler_step(context, &state, &table)?;
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
    let mut row = Row::default();
    // next = saved_state.
    (row.stage[8], row.stage[15]) = (1.0f32.to_bits(), StageCoefficients::BASE_IS_SAVED | Row::OWNS);
    let idle = Row { partner: 1, ..Row::default() };
    let table = context.zeros([2, ROW_WORDS], DType::U32)?;
    Row::upload(&[row, idle], &table)?;
    let (x, prediction) = (context.zeros([2, 3], DType::F32)?, context.zeros([2, 3], DType::F32)?);
    let state = SamplerState { x: &x, prediction: &prediction, saved_state: None, saved: None };
    sampler_step(&context, &state, &table)?;
    let values = x.download::<f32>()?;
    assert!(values[..3].iter().all(|value| value.is_nan()));
    assert_eq!(values[3..], [0.0; 3], "a row that owns nothing stays");
    Ok(())
}
