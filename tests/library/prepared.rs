//! Weights that a sampler repacks at the start of its run: the same bits as without, and never those of an earlier run.

use std::rc::Rc;

use engine::config::Config;
use engine::diffusion::{Denoiser, NoiseSchedule, Sampler, SamplerSpec};
use engine::models;
use engine::nn::Parameters;
use engine::rng::{Philox, Purpose};
use engine::tape::Tape;
use engine::tensor::{Context, DType, Program};

/// Small models of each kind; the U-Net's channels are whole blocks for Winograd's convolution, of tiles of four pixels and of two, and it
/// doubles images.
fn configs() -> Vec<Config> {
    let size = ["model.image_size=8", "sampling.num_steps=2", "model.num_heads=2"];
    let width = ["model.hidden_dim=32", "model.depth=1"];
    let unet = ["model.image_size=16", "model.channels=[16, 32]", "model.norm_groups=4"];
    [
        ("quickstart", &[&size[..], &width, &["model.num_kv_heads=1"]].concat()),
        ("pets", &[&size[..], &width, &["model.refine_channels=16", "model.norm_groups=4"]].concat()),
        ("unet-fashion-small", &[&size[..], &unet].concat()),
    ]
    .into_iter()
    .map(|(preset, settings)| {
        let mut config = Config::preset(preset).unwrap();
        settings.iter().for_each(|setting| config.set(setting).unwrap());
        config
    })
    .collect()
}

/// Not the zeros of training's initialization, which would disable most of the network.
fn flat(parameters: &Parameters, seed: u64) -> Vec<f32> {
    let philox = Philox::new(seed);
    let draw = |i| 0.6 * philox.uniform4(i as u32, 0, 0, Purpose::Probe)[0] - 0.3;
    (0..parameters.flat_len()).map(draw).collect()
}

fn build(config: &Config, context: Context, precision: DType) -> (Rc<dyn Denoiser>, Rc<Parameters>) {
    let (model, builder) = models::build(&config.model).unwrap();
    (model, Rc::new(Parameters::new(&context, builder, precision).unwrap()))
}

/// Every model in both precisions.
fn cases() -> impl Iterator<Item = (Config, DType)> {
    configs().into_iter().flat_map(|config| [DType::F32, DType::BF16].map(|precision| (config.clone(), precision)))
}

fn sampler(config: &Config, model: &Rc<dyn Denoiser>, parameters: &Rc<Parameters>) -> Sampler {
    let spec = SamplerSpec {
        sampling: config.sampling.clone(),
        prediction: config.diffusion.prediction,
        null_label: config.model.null_label(),
        batch: 2,
        seed: 1,
    };
    let noise = NoiseSchedule::new(&config.diffusion).unwrap();
    Sampler::new(parameters.master().context(), model.clone(), parameters.clone(), &noise, spec).unwrap()
}

#[test]
fn each_run_reads_the_parameters_as_they_are_when_it_begins() {
    for (config, precision) in cases() {
        let (model, parameters) = build(&config, Context::cpu(), precision);
        let mut kept = sampler(&config, &model, &parameters);
        let (_, planned) = build(&config, Context::shape_only(), precision);
        assert_eq!(sampler(&config, &model, &planned).prepared_bytes(), kept.prepared_bytes(), "planned and allocated");
        assert!(kept.prepared_bytes() > 0);
        let mut images = Vec::new();
        for seed in [1, 2, 1] {
            let flat = flat(&parameters, seed);
            parameters.set_flat(&flat).unwrap();
            let (model, others) = build(&config, Context::cpu(), precision);
            others.set_flat(&flat).unwrap();
            let mut fresh = sampler(&config, &model, &others);
            let [kept, fresh] = [&mut kept, &mut fresh].map(|sampler| sampler.run(0, &[0, 1], |_, _| Ok(())).unwrap());
            assert!(kept.iter().all(|x| x.is_finite()) && kept == fresh, "{}", config.model.kind());
            images.push(kept);
        }
        assert!(images[0] == images[2] && images[0] != images[1], "{}", config.model.kind());
    }
}

#[test]
fn prepared_weights_give_the_same_bits() {
    for (config, precision) in cases() {
        let (model, parameters) = build(&config, Context::cpu(), precision);
        let context = parameters.master().context().clone();
        parameters.set_flat(&flat(&parameters, 3)).unwrap();
        let [h, w, c] = model.image_shape();
        let x: Vec<f32> = (0..2 * h * w * c).map(|i| (i % 37) as f32 / 18.0 - 1.0).collect();
        let x = context.tensor(&x, [2, h, w, c]).unwrap();
        let (time, labels) = (context.tensor(&[3f32, 500.0], [2]).unwrap(), context.tensor(&[0i32, 1], [2]).unwrap());
        let forward = |tape: Tape| {
            let s = parameters.bind(&tape, None)?;
            let [x, time, labels] = [&x, &time, &labels].map(|tensor| tape.constant(tensor));
            Ok(model.forward(&s, &x, &time, &labels)?.tensor().clone())
        };
        let prepared = Rc::new(parameters.prepared());
        let tape = || Tape::inference(&context).with_prepared(&prepared);
        Program::plan(&context, || forward(tape()).map(drop)).unwrap();
        prepared.refresh().unwrap();
        let plain = forward(Tape::inference(&context)).unwrap().download::<f32>().unwrap();
        // Only the repacked weights are read: the masters are overwritten except for vectors.
        let mut vectors = flat(&parameters, 3);
        for spec in parameters.specs().iter().filter(|spec| spec.kind == engine::nn::ParameterKind::Matrix) {
            if spec.shape.sizes().len() == 2 {
                vectors[spec.offset..][..spec.shape.len()].fill(f32::NAN);
            }
        }
        parameters.set_flat(&vectors).unwrap();
        let ours = forward(tape()).unwrap().download::<f32>().unwrap();
        assert!(plain.iter().all(|x| x.is_finite()) && ours == plain, "{}", config.model.kind());
    }
}
