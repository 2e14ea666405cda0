//! Plans on data with a known distribution.

use super::*;
use crate::diffusion::{DiffusionConfig, Schedule};

/// Data distributed as N(MEAN, SPREAD²), with known exact results.
const MEAN: f64 = 0.3;
const SPREAD: f64 = 0.4;

fn schedule(schedule: Schedule) -> NoiseSchedule {
    let prediction = if schedule == Schedule::Flow { Prediction::Flow } else { Prediction::Epsilon };
    NoiseSchedule::new(&DiffusionConfig { schedule, prediction, ..DiffusionConfig::default() }).unwrap()
}

fn sampling(sampler: SamplerKind, num_steps: usize) -> SamplingConfig {
    SamplingConfig { sampler, num_steps, clip_x0: false, guidance: 1.0, ..SamplingConfig::default() }
}

/// Runs a plan with the exact predictor of the normally distributed data.
fn run_exact(noise: &NoiseSchedule, prediction: Prediction, plan: &Plan, x: f64, z: impl Fn(usize) -> f64) -> f64 {
    let mut state = [x];
    let model = |x: &[f64], time_input: f64, _: bool, pred: &mut [f64]| {
        let time = if noise.is_continuous() { time_input / super::super::FLOW_TIME_SCALE } else { time_input };
        let level = noise.level(time);
        let variance = (level.alpha * SPREAD).powi(2) + level.sigma.powi(2);
        let surprise = x[0] - level.alpha * MEAN;
        let (x0, eps) = (MEAN + level.alpha * SPREAD.powi(2) / variance * surprise, level.sigma / variance * surprise);
        let (c_x, c_n) = level.target(prediction);
        pred[0] = c_x * x0 + c_n * eps;
    };
    plan.run_host(&mut state, model, |stage, noise| noise[0] = z(stage));
    state[0]
}

/// The exact solution of the probability-flow equation from the noisiest level: quantiles are preserved.
fn exact(noise: &NoiseSchedule, x: f64) -> f64 {
    let level = noise.level(noise.times(1)[0]);
    let deviation = ((level.alpha * SPREAD).powi(2) + level.sigma.powi(2)).sqrt();
    MEAN + SPREAD * (x - level.alpha * MEAN) / deviation
}

fn error(noise: &NoiseSchedule, prediction: Prediction, sampler: SamplerKind, steps: usize) -> f64 {
    let plan = Plan::new(noise, prediction, &sampling(sampler, steps)).unwrap();
    (run_exact(noise, prediction, &plan, 1.2, |_| 0.0) - exact(noise, 1.2)).abs()
}

#[test]
fn ddim_is_first_order_heun_and_dpm_solver_second() {
    let flow = schedule(Schedule::Flow);
    for prediction in [Prediction::Flow, Prediction::X0, Prediction::V] {
        for (sampler, order) in [(SamplerKind::Ddim, 1.0), (SamplerKind::Heun, 2.0), (SamplerKind::Dpmpp2m, 2.0)] {
            let errors = [50, 100, 200].map(|steps| error(&flow, prediction, sampler, steps));
            let orders = [0, 1].map(|k| (errors[k] / errors[k + 1]).log2());
            let place = format!("{sampler} {prediction:?}: {errors:?}, orders {orders:?}");
            if sampler == SamplerKind::Dpmpp2m {
                // Its first steps from pure noise are long in λ, so the order appears slowly: 1.6, then 1.7.
                assert!(orders[0] > 1.5 && orders[1] > orders[0] + 0.1 && orders[1] < order, "{place}");
            } else {
                assert!(orders.iter().all(|measured| (measured - order).abs() < 0.15), "{place}");
            }
        }
    }
    for kind in [Schedule::Linear, Schedule::Cosine] {
        let noise = schedule(kind);
        for prediction in [Prediction::Epsilon, Prediction::X0, Prediction::V] {
            let ddim = error(&noise, prediction, SamplerKind::Ddim, 100);
            let heun = error(&noise, prediction, SamplerKind::Heun, 50);
            let multistep = error(&noise, prediction, SamplerKind::Dpmpp2m, 50);
            // All share the last, plain step, so the order does not show here.
            assert!(heun < 0.5 * ddim && ddim < 0.02, "{kind:?} {prediction:?}: {heun} and {ddim}");
            assert!(multistep < 0.5 * ddim, "{kind:?} {prediction:?}: {multistep} and {ddim}");
        }
    }
}

#[test]
fn ancestral_steps_end_with_the_spread_of_the_data() {
    for kind in [Schedule::Linear, Schedule::Cosine, Schedule::Flow] {
        let noise = schedule(kind);
        let prediction = if kind == Schedule::Flow { Prediction::Flow } else { Prediction::V };
        let plan = Plan::new(&noise, prediction, &sampling(SamplerKind::Ddpm, 1000)).unwrap();
        // The plan is affine in its noises, so variances add up.
        let still = run_exact(&noise, prediction, &plan, 0.0, |_| 0.0);
        let of_start = run_exact(&noise, prediction, &plan, 1.0, |_| 0.0) - still;
        let of_stages = (0..plan.stages().len()).map(|stage| {
            (run_exact(&noise, prediction, &plan, 0.0, |other| f64::from(u8::from(other == stage))) - still).powi(2)
        });
        let spread = (of_start.powi(2) + of_stages.sum::<f64>()).sqrt();
        assert!((spread / SPREAD - 1.0).abs() < 0.02, "{kind:?}: {spread}");
        assert!((still - MEAN).abs() < 0.01, "{kind:?}: {still}");
    }
}

#[test]
fn full_ddpm_has_the_papers_posterior() {
    let noise = schedule(Schedule::Linear);
    let plan = Plan::new(&noise, Prediction::Epsilon, &sampling(SamplerKind::Ddpm, 1000)).unwrap();
    let (stage, t) = (&plan.stages()[499], 500);
    let (alpha_bar, previous) = (noise.level(500.0).alpha.powi(2), noise.level(499.0).alpha.powi(2));
    let beta = 1.0 - alpha_bar / previous;
    assert_eq!(stage.time, f64::from(t));
    assert!((stage.next_noise.powi(2) - (1.0 - previous) / (1.0 - alpha_bar) * beta).abs() < 1e-14);
    // Equation (11): the mean is (x - β/√(1-ᾱ)·ε)/√α.
    let of_eps = stage.next_x0 * stage.inverse.x0_pred + stage.next_eps * stage.inverse.eps_pred;
    let of_x = stage.next_x0 * stage.inverse.x0_x + stage.next_eps * stage.inverse.eps_x;
    assert!((of_x - 1.0 / (1.0 - beta).sqrt()).abs() < 1e-12);
    assert!((of_eps + beta / (1.0 - alpha_bar).sqrt() / (1.0 - beta).sqrt()).abs() < 1e-12);
    assert_eq!(plan.stages()[999].next_noise, 0.0);
}

#[test]
fn heun_takes_two_evaluations_a_step_but_one_in_the_last() {
    let noise = schedule(Schedule::Linear);
    let plan = Plan::new(&noise, Prediction::Epsilon, &sampling(SamplerKind::Heun, 10)).unwrap();
    assert_eq!((plan.stages().len(), plan.steps(), plan.needs_saved_buffers()), (19, 10, true));
    // The fall from σ = 2e4 to 13 is not corrected.
    let plan = Plan::new(&schedule(Schedule::Cosine), Prediction::V, &sampling(SamplerKind::Heun, 20)).unwrap();
    assert_eq!(plan.stages().len(), 38);
    let saved = StageCoefficients::SAVES_STATE | StageCoefficients::SAVES;
    let used = StageCoefficients::BASE_IS_SAVED | StageCoefficients::USES_SAVED;
    let flags: Vec<_> = plan.coefficients()[..4].iter().map(|stage| stage.flags).collect();
    assert_eq!(flags, [0, saved, used, saved]);
    assert_eq!(size_of::<StageCoefficients>(), 64);
}

#[test]
fn guidance_mixes_and_the_clamp_keeps_the_decomposition() {
    let noise = schedule(Schedule::Linear);
    let config = SamplingConfig { guidance: 3.0, clip_x0: true, ..sampling(SamplerKind::Ddim, 1) };
    let plan = Plan::with_times(&noise, Prediction::X0, &config, Variance::default(), &[600.0, 300.0]).unwrap();
    assert!(plan.is_guided());
    let (mut x, mut seen) = ([0.5], Vec::new());
    let model = |x: &[f64], time: f64, conditional: bool, pred: &mut [f64]| {
        seen.push((time, x[0]));
        pred[0] = if conditional { 0.6 } else { 0.2 };
    };
    plan.run_host(&mut x, model, |_, _| unreachable!("DDIM draws no noise"));
    // 0.2 + 3·0.4 = 1.4 is clamped to 1, and ε is the rest of the state.
    let (level, next) = (noise.level(600.0), noise.level(300.0));
    let expected = next.alpha + next.sigma * (0.5 - level.alpha) / level.sigma;
    assert_eq!(seen[0].0, 600.0);
    assert!((seen[2].1 - expected).abs() < 1e-14 && seen[2].0 == 300.0 && x[0] == 1.0);
}

#[test]
fn bad_times_are_refused() {
    let (linear, flow) = (schedule(Schedule::Linear), schedule(Schedule::Flow));
    let config = sampling(SamplerKind::Ddim, 2);
    let plan = |noise, times: &[f64]| Plan::with_times(noise, Prediction::X0, &config, Variance::default(), times);
    for (noise, times) in
        [(&linear, &[][..]), (&linear, &[1000.0]), (&linear, &[1.5]), (&linear, &[5.0, 5.0]), (&flow, &[0.5, 0.0])]
    {
        let message = plan(noise, times).unwrap_err().to_string();
        assert!(message.starts_with("sampling timesteps: "), "{message}");
    }
    assert!(Plan::with_times(&flow, Prediction::Epsilon, &config, Variance::default(), &[1.0]).is_err());
    assert!(Plan::new(&linear, Prediction::X0, &sampling(SamplerKind::Ddim, 1001)).is_err());
}

#[test]
fn dpm_solver_is_the_papers_formula_between_two_plain_ends() {
    let noise = schedule(Schedule::Linear);
    let plan = Plan::new(&noise, Prediction::Epsilon, &sampling(SamplerKind::Dpmpp2m, 10)).unwrap();
    assert_eq!((plan.stages().len(), plan.needs_saved_buffers(), plan.needs_saved_state()), (10, true, false));
    let first_order = Plan::new(&noise, Prediction::Epsilon, &sampling(SamplerKind::Ddim, 10)).unwrap();
    let ends = |plan: &Plan| {
        [0, 9].map(|k| (plan.stages()[k].next_x0, plan.stages()[k].next_eps, plan.stages()[k].next_saved))
    };
    assert_eq!(ends(&plan), ends(&first_order));
    assert!(plan.stages()[9].saves.is_none(), "it would not be read");
    // Algorithm 2: x' = σ'/σ·x - α'(e^-h - 1)·D with D = (1 + 1/2r)·x0 - 1/2r·x0_previous, r = h_previous/h.
    let [before, level, next] = [899.0, 799.0, 699.0].map(|time| noise.level(time));
    let lambda = |level: NoiseLevel| (level.alpha / level.sigma).ln();
    let (h, r) = (lambda(next) - lambda(level), (lambda(level) - lambda(before)) / (lambda(next) - lambda(level)));
    let stage = &plan.stages()[2];
    assert_eq!((stage.time, stage.saves), (799.0, Some((1.0, 0.0))));
    let (x0, eps, saved) = (0.4, -0.9, 0.7);
    let x = level.alpha * x0 + level.sigma * eps;
    let d = (1.0 + 0.5 / r) * x0 - 0.5 / r * saved;
    let expected = next.sigma / level.sigma * x - next.alpha * ((-h).exp() - 1.0) * d;
    let ours = stage.next_x0 * x0 + stage.next_eps * eps + stage.next_saved.unwrap() * saved;
    assert!((ours - expected).abs() < 1e-12, "{ours}, not {expected}");
    // From pure noise nothing can be extrapolated.
    let flow = Plan::new(&schedule(Schedule::Flow), Prediction::Flow, &sampling(SamplerKind::Dpmpp2m, 10)).unwrap();
    let uses: Vec<bool> = flow.stages().iter().map(|stage| stage.next_saved.is_some()).collect();
    assert_eq!(uses, [false, false, true, true, true, true, true, true, true, false]);
}

#[test]
fn temperature_scales_the_fresh_noise_and_one_changes_no_bit() {
    let noise = schedule(Schedule::Linear);
    let plan = |temperature: f64| {
        let config = SamplingConfig { temperature, ..sampling(SamplerKind::Ddpm, 10) };
        Plan::new(&noise, Prediction::Epsilon, &config).unwrap()
    };
    let (usual, cooler, still) = (plan(1.0), plan(0.5), plan(0.0));
    for ((usual, cooler), still) in usual.stages().iter().zip(cooler.stages()).zip(still.stages()) {
        assert_eq!(cooler, &Stage { next_noise: 0.5 * usual.next_noise, ..usual.clone() });
        assert_eq!(still.coefficients().flags & StageCoefficients::NEEDS_NOISE, 0);
    }
}
