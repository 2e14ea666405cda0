//! Sampling plans and timestep schedules against the schedulers of diffusers (`tools/goldens/samplers.py`).

use engine::diffusion::{
    DiffusionConfig, NoiseSchedule, Plan, Prediction, SamplerKind, SamplingConfig, Schedule, Variance,
};
use engine::rng::{Philox, Purpose};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    start: Vec<f64>,
    /// ᾱ by schedule and timestep.
    alpha_bar: BTreeMap<String, BTreeMap<String, f64>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sampler: SamplerKind,
    schedule: Schedule,
    prediction: Prediction,
    times: Vec<f64>,
    clip: bool,
    eta: f64,
    variance: String,
    /// Standard normal noise of each step, if the sampler draws any.
    #[serde(default)]
    noise: Vec<Vec<f64>>,
    /// The state after each step.
    states: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../goldens/samplers.json")).expect("tests/goldens/samplers.json")
}

fn schedule(schedule: Schedule) -> NoiseSchedule {
    let prediction = if schedule == Schedule::Flow { Prediction::Flow } else { Prediction::Epsilon };
    NoiseSchedule::new(&DiffusionConfig { schedule, prediction, ..DiffusionConfig::default() }).unwrap()
}

fn predictor(x: &[f64], time: f64, _: bool, pred: &mut [f64]) {
    for (pred, x) in pred.iter_mut().zip(x) {
        *pred = (0.8 * x + 0.3 * (time / 200.0).cos()).tanh() - 0.1 * x;
    }
}

#[test]
fn schedules_agree() {
    for (name, levels) in golden().alpha_bar {
        let noise = schedule(if name == "linear" { Schedule::Linear } else { Schedule::Cosine });
        for (time, alpha_bar) in levels {
            let level = noise.level(time.parse().unwrap());
            assert!(
                (level.alpha.powi(2) / alpha_bar - 1.0).abs() < 1e-11,
                "{name} at {time}: {level:?}, ᾱ = {alpha_bar}"
            );
        }
    }
}

#[test]
fn plans_agree_with_diffusers() {
    let golden = golden();
    assert!(golden.cases.len() >= 24);
    for case in golden.cases {
        let place =
            format!("{} {:?} {:?} η {} clip {}", case.sampler, case.schedule, case.prediction, case.eta, case.clip);
        let sampling = SamplingConfig {
            sampler: case.sampler,
            eta: case.eta,
            clip_x0: case.clip,
            guidance: 1.0,
            ..SamplingConfig::default()
        };
        let variance = if case.variance == "forward" { Variance::Forward } else { Variance::Posterior };
        let noise = schedule(case.schedule);
        let plan = Plan::with_times(&noise, case.prediction, &sampling, variance, &case.times).unwrap();
        let steps: Vec<usize> = plan.stages().iter().map(|stage| stage.step).collect();
        let mut seen = Vec::new();
        let mut x = golden.start.clone();
        let model = |x: &[f64], time: f64, _: bool, pred: &mut [f64]| {
            seen.push(x.to_vec());
            predictor(x, time, true, pred);
        };
        plan.run_host(&mut x, model, |stage, z| z.copy_from_slice(&case.noise[steps[stage]]));
        seen.push(x);
        // diffusers' schedulers for flow matching compute in f32.
        let tolerance = if case.schedule == Schedule::Flow { 1e-6 } else { 1e-9 };
        for (step, expected) in case.states.iter().enumerate() {
            let state = &seen[steps.iter().rposition(|&other| other == step).unwrap() + 1];
            for (ours, theirs) in state.iter().zip(expected) {
                let error = (ours - theirs).abs() / theirs.abs().max(1.0);
                assert!(error < tolerance, "{place}: step {step}: {ours}, diffusers {theirs}");
            }
        }
        // On the default grid the default plan is the same.
        if case.times == noise.times(case.times.len()) && variance == Variance::Posterior {
            let sampling = SamplingConfig { num_steps: case.times.len(), ..sampling };
            assert_eq!(Plan::new(&noise, case.prediction, &sampling).unwrap().stages(), plan.stages());
        }
    }
}

#[derive(Deserialize)]
struct Timesteps {
    seed: u64,
    size: usize,
    /// Descending timesteps by schedule name.
    times: BTreeMap<String, Vec<f64>>,
    /// The same under flow.
    flow_times: BTreeMap<String, Vec<f64>>,
    /// The source of `list`: NumPy's `logspace(0, log10(1000), 50)`.
    listed: Vec<i64>,
    cases: Vec<End>,
}

#[derive(Deserialize)]
struct End {
    sampler: SamplerKind,
    schedule: Schedule,
    prediction: Prediction,
    timesteps: String,
    clip: bool,
    eta: f64,
    /// The image.
    end: Vec<f64>,
}

#[test]
fn every_timestep_schedule_ends_where_diffusers_does() {
    let golden: Timesteps = serde_json::from_str(include_str!("../goldens/timesteps.json")).unwrap();
    assert_eq!(golden.cases.len(), 5 * 2 * 3 * 4 + 3 * 4);
    let numbers = |item: usize, values: &mut [f64]| {
        for (e, value) in values.iter_mut().enumerate() {
            let drawn = Philox::new(golden.seed).uniform4(e as u32 / 4, item as u32, 0, Purpose::Probe);
            *value = 4.0 * f64::from(drawn[e % 4]) - 2.0;
        }
    };
    for case in golden.cases {
        let place =
            format!("{} {:?} {:?} {} η {}", case.sampler, case.schedule, case.prediction, case.timesteps, case.eta);
        let sampling = SamplingConfig {
            sampler: case.sampler,
            eta: case.eta,
            clip_x0: case.clip,
            guidance: 1.0,
            num_steps: 8,
            schedule: case.timesteps.parse().unwrap_or_default(),
            timesteps: (case.timesteps == "list").then(|| golden.listed.clone()),
            ..SamplingConfig::default()
        };
        let noise = schedule(case.schedule);
        let flow = case.schedule == Schedule::Flow;
        let expected = &(if flow { &golden.flow_times } else { &golden.times })[&case.timesteps];
        let times = sampling.times(&noise).unwrap().times;
        assert_eq!(times.len(), expected.len(), "{place}");
        for (time, expected) in times.iter().zip(expected) {
            // Whole timesteps are exact; NumPy's powers are not, nor need they be.
            assert!((time - expected).abs() <= if flow { 1e-14 } else { 0.0 }, "{place}: {times:?}");
        }
        let plan = Plan::new(&noise, case.prediction, &sampling).unwrap();
        let mut x = vec![0.0; golden.size];
        numbers(0, &mut x);
        plan.run_host(&mut x, predictor, |stage, z| numbers(1 + plan.stages()[stage].step, z));
        for (ours, theirs) in x.iter().zip(&case.end) {
            let error = (ours - theirs).abs() / theirs.abs().max(1.0);
            // diffusers' Euler and Heun for flow compute in f32, the rest here in f64.
            let tolerance = if flow && case.sampler != SamplerKind::Dpmpp2m { 1e-5 } else { 1e-8 };
            assert!(error < tolerance, "{place}: {ours}, diffusers {theirs}");
        }
    }
}
