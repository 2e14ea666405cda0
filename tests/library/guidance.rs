//! Guidance: scale 1 equals no guidance bit for bit, the scale follows its schedule, and both branches are one batch.

use std::cell::RefCell;
use std::rc::Rc;

use engine::Result;
use engine::config::Config;
use engine::diffusion::{
    Denoiser, GuidanceSchedule, NoiseSchedule, Plan, Sampler, SamplerKind, SamplerSpec, SamplingConfig,
};
use engine::models;
use engine::nn::{Parameters, Scope};
use engine::rng::{Philox, Purpose};
use engine::tape::Var;
use engine::tensor::{Context, DType};

const BATCH: usize = 3;

/// A model that records its number of rows.
struct Counted {
    model: Rc<dyn Denoiser>,
    rows: RefCell<Vec<usize>>,
}

impl Denoiser for Counted {
    fn image_shape(&self) -> [usize; 3] {
        self.model.image_shape()
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        self.rows.borrow_mut().push(x.sizes()[0]);
        self.model.forward(s, x, time, labels)
    }
}

fn config() -> Config {
    let mut config = Config::preset("pets").unwrap();
    for setting in [
        "model.image_size=8",
        "model.hidden_dim=16",
        "model.depth=1",
        "model.num_heads=2",
        "model.time_embedding_dim=8",
        "model.condition_dim=8",
        "model.refine_channels=4",
        "model.norm_groups=2",
    ] {
        config.set(setting).unwrap();
    }
    config
}

/// The states of three images after each stage, and how many rows each evaluation had.
fn sample(sampling: &SamplingConfig) -> (Vec<Vec<f32>>, Vec<usize>) {
    let config = config();
    let context = Context::cpu();
    let (model, builder) = models::build(&config.model).unwrap();
    let model = Rc::new(Counted { model, rows: RefCell::default() });
    let parameters = Parameters::new(&context, builder, DType::F32).unwrap();
    // Not the zeros of training's initialization, which would ignore the label.
    let philox = Philox::new(7);
    let flat: Vec<f32> =
        (0..parameters.flat_len()).map(|i| philox.uniform4(i as u32, 0, 0, Purpose::Probe)[0] - 0.5).collect();
    parameters.set_flat(&flat).unwrap();
    let spec = SamplerSpec {
        sampling: sampling.clone(),
        prediction: config.diffusion.prediction,
        null_label: config.model.null_label(),
        batch: BATCH,
        seed: 5,
    };
    let noise = NoiseSchedule::new(&config.diffusion).unwrap();
    let mut sampler = Sampler::new(&context, model.clone(), Rc::new(parameters), &noise, spec).unwrap();
    model.rows.borrow_mut().clear();
    let mut states = Vec::new();
    let mut keep = |state| {
        states.push(state);
        Ok(())
    };
    sampler.run(0, &[0, 1, 0], |_, state| keep(state()?)).unwrap();
    (states, model.rows.take())
}

fn sampling(guidance: f64, guidance_schedule: GuidanceSchedule, sampler: SamplerKind) -> SamplingConfig {
    SamplingConfig { sampler, num_steps: 6, guidance, guidance_schedule, ..SamplingConfig::default() }
}

#[test]
fn scale_one_is_no_guidance_bit_for_bit() {
    for kind in SamplerKind::ALL {
        let (plain, rows) = sample(&sampling(1.0, GuidanceSchedule::Constant, kind));
        assert!(rows.iter().all(|&rows| rows == BATCH), "without guidance the batch is not doubled: {rows:?}");
        for schedule in [GuidanceSchedule::Adaptive, GuidanceSchedule::List(vec![1.0; 4])] {
            let (images, rows) = sample(&sampling(1.0, schedule.clone(), kind));
            assert!(images == plain && rows.iter().all(|&rows| rows == BATCH), "{kind} {schedule}");
        }
        let (guided, rows) = sample(&sampling(2.0, GuidanceSchedule::Constant, kind));
        assert!(guided != plain);
        assert!(rows.iter().all(|&rows| rows == 2 * BATCH), "both branches are one batch: {rows:?}");
    }
}

/// In a guided plan, a step of scale 1 is exactly the conditional one.
#[test]
fn a_step_of_scale_one_beside_guided_ones_is_exactly_the_plain_one() {
    let plain = sampling(1.0, GuidanceSchedule::Constant, SamplerKind::Ddim);
    let mixed = SamplingConfig {
        guidance_schedule: GuidanceSchedule::List(vec![1.0, 1.0, 1.0, 1.0, 1.0, 3.0]),
        ..plain.clone()
    };
    let ((plain, _), (mixed, _)) = (sample(&plain), sample(&mixed));
    assert_eq!(plain[..5], mixed[..5]);
    assert_ne!(plain[5], mixed[5]);
}

#[test]
fn the_adaptive_scale_follows_its_law_over_the_steps() {
    let config = config();
    let noise = NoiseSchedule::new(&config.diffusion).unwrap();
    for kind in SamplerKind::ALL {
        let sampling = SamplingConfig { num_steps: 11, ..sampling(3.0, GuidanceSchedule::Adaptive, kind) };
        let plan = Plan::new(&noise, config.diffusion.prediction, &sampling).unwrap();
        for stage in plan.stages() {
            // RunState 0, 0.1, … 1; both stages of a Heun step have its scale.
            let p = stage.step as f64 / 10.0;
            let factor = if p < 0.3 { p / 0.3 } else { 1.0 + 0.5 * ((p - 0.7) / 0.3).max(0.0) };
            assert!(
                (stage.guidance - (1.0 + 2.0 * factor)).abs() < 1e-9,
                "{kind} step {}: {}",
                stage.step,
                stage.guidance
            );
        }
        assert_eq!((plan.stages()[0].guidance, plan.stages().last().unwrap().guidance), (1.0, 4.0));
    }
    // The preset's own: low at first, then 2, at the end 1.5 times as much.
    assert_eq!((config.sampling.guidance, &config.sampling.guidance_schedule), (2.0, &GuidanceSchedule::Adaptive));
}

#[test]
fn guidance_needs_the_null_label_whatever_its_course() {
    let mut config = config();
    config.set("model.null_label=false").unwrap();
    config.set("training.label_dropout=0").unwrap();
    config.set("sampling.guidance=1").unwrap();
    config.validate().unwrap();
    config.set("sampling.guidance_schedule=[1, 2]").unwrap();
    let message = config.validate().unwrap_err().to_string();
    assert!(message.starts_with("sampling.guidance: needs a label that stands for no class"), "{message}");
    for bad in
        ["sampling.guidance_schedule=rising", "sampling.guidance_schedule=[]", "sampling.guidance_schedule=[1, -1]"]
    {
        let refused = config.set(bad).and_then(|()| config.validate()).unwrap_err().to_string();
        assert!(refused.contains("guidance_schedule"), "{bad}: {refused}");
    }
}
