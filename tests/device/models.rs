//! Training and denoising steps of whole presets in bf16, first eager, then captured and replayed, against the CPU in f32.
//!
//! Weights are those of the goldens, none of which is zero, so every gradient is nonzero. The bounds are the goldens' (see
//! `tests/library/models.rs`). The PTX machine runs these without its checks of races and of unwritten memory, which are on for
//! the ops' cases: a step of `dit-cifar10` is 30 GFLOP.

use std::rc::Rc;

use engine::config::Config;
use engine::data::{Dataset, Parts};
use engine::diffusion::{NoiseSchedule, Sampler, SamplerSpec};
use engine::models;
use engine::nn::Parameters;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, Trainer};

use super::common::golden::{place, relative_error};
use super::{UNCHECKED, device_with};

/// The goldens' bounds in bf16: for half of the tensors, and for all.
struct Bounds {
    median: f64,
    most: f64,
}

const TRANSFORMER: Bounds = Bounds { median: 0.05, most: 0.05 };
const UNET: Bounds = Bounds { median: 0.04, most: 0.2 };

/// The seed of the goldens' weights.
const WEIGHTS: u64 = 1;

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A preset with batches of this size, in a precision.
fn config(preset: &str, batch: usize, precision: &str) -> Config {
    let mut config = Config::preset(preset).unwrap();
    let settings = [format!("training.precision={precision}"), format!("training.batch_size={batch}")];
    for setting in settings.iter().map(String::as_str).chain(["training.num_steps=8", "training.warmup_steps=2"]) {
        config.set(setting).unwrap();
    }
    config
}

/// Random pixels of the model's size, none held out.
fn dataset(config: &Config) -> Dataset {
    let (count, size, channels) = (16, config.model.image_size(), config.model.image_channels());
    let classes = config.model.num_classes().max(1);
    let philox = Philox::new(11);
    let bytes = count * size.pixels() * channels;
    let words = (0..bytes.div_ceil(16) as u32).flat_map(|block| philox.bits4(block, 0, 0, Purpose::Probe));
    Dataset::from_parts(Parts {
        name: "noise".into(),
        height: size.height,
        width: size.width,
        channels,
        class_names: (0..classes).map(|class| format!("class {class}")).collect(),
        images: words.flat_map(u32::to_le_bytes).take(bytes).collect(),
        labels: (0..count).map(|i| (i % classes) as u16).collect(),
        train: count,
        ..Parts::default()
    })
    .unwrap()
}

fn trainer(config: &Config, device: &Device) -> Trainer {
    let trainer = Trainer::new(&config.model, &dataset(config), &Recipe::new(config, device.clone())).unwrap();
    place(trainer.parameters(), WEIGHTS);
    trainer
}

/// Loss and gradients of the last step.
fn step(trainer: &mut Trainer) -> (f64, Vec<f64>) {
    trainer.train_step().unwrap();
    let loss = trainer.drain_metrics().unwrap().pop().unwrap().loss;
    (loss, doubles(&trainer.gradients().download::<f32>().unwrap()))
}

/// Steps of `preset`, the first eager, the second captured and replayed, the third replayed, each from the CPU's weights.
fn training_steps(test: &str, preset: &str, batch: usize, bounds: &Bounds) {
    let Some((_guard, device)) = device_with(test, &UNCHECKED) else { return };
    let mut ours = trainer(&config(preset, batch, "bf16"), &device);
    let mut cpu = trainer(&config(preset, batch, "f32"), &Device::Cpu);
    assert_eq!(ours.parameters().precision(), DType::BF16);
    for number in 1..=3 {
        let ((loss, gradients), (reference, expected)) = (step(&mut ours), step(&mut cpu));
        let how = if number == 1 { "eager" } else { "replayed" };
        assert_eq!(ours.programs().next().unwrap().1.is_captured(), number > 1);
        let specs = cpu.parameters().trained_specs();
        let part = |flat: &[f64], number: usize| flat[specs[number].offset..][..specs[number].shape.len()].to_vec();
        let mut norms: Vec<f64> = (0..specs.len()).map(|number| norm(&part(&expected, number))).collect();
        norms.sort_by(f64::total_cmp);
        let floor = 1e-3 * norms[norms.len() / 2];
        let error = |number: usize| relative_error(&part(&gradients, number), &part(&expected, number), floor);
        let mut errors: Vec<(f64, &str)> =
            specs.iter().enumerate().map(|(number, spec)| (error(number), spec.name.as_str())).collect();
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, (most, name)) = (errors[errors.len() / 2].0, errors[errors.len() - 1]);
        let apart = (loss - reference).abs() / reference;
        println!(
            "{preset}, {how}: loss {loss:.4} for {reference:.4}, gradients off by {median:.1e}, at most {most:.1e} ({name})"
        );
        assert!(apart <= bounds.median, "{how}: a loss of {loss} for {reference}");
        assert!(median <= bounds.median, "{how}: half the gradients are off by {median:.2e} and more");
        assert!(most <= bounds.most, "{how}: {name} is off by {most:.2e}");
        // The optimizer divides by a gradient's size, so the signs of values near zero matter: continue from the same weights.
        cpu.parameters().set_flat(&ours.parameters().download().unwrap()).unwrap();
    }
}

/// A sampler over the goldens' weights.
fn sampler(config: &Config, device: &Device, precision: DType, batch: usize) -> Sampler {
    let context = Context::new(device.clone());
    let (model, builder) = models::build(&config.model).unwrap();
    let parameters = Parameters::new(&context, builder, precision).unwrap();
    place(&parameters, WEIGHTS);
    let noise = NoiseSchedule::new(&config.diffusion).unwrap();
    let spec = SamplerSpec {
        sampling: config.sampling.clone(),
        prediction: config.diffusion.prediction,
        null_label: config.model.null_label(),
        batch,
        seed: 5,
    };
    Sampler::new(&context, model, Rc::new(parameters), &noise, spec).unwrap()
}

/// Denoising steps of `preset`, the first eager, the second captured and replayed: the change of the state.
fn denoising_steps(test: &str, preset: &str, batch: usize, bounds: &Bounds) {
    let Some((_guard, device)) = device_with(test, &UNCHECKED) else { return };
    let mut config = config(preset, batch, "bf16");
    // Without clamping the change is linear in the prediction, and so is its error: a clamped x_0 jumps from -1 to 1 if an error
    // of the prediction, divided by almost no signal, changes its sign.
    let settings = ["sampling.sampler=ddim", "sampling.num_steps=2", "sampling.guidance=1", "sampling.clip_x0=false"];
    settings.iter().for_each(|setting| config.set(setting).unwrap());
    let mut ours = sampler(&config, &device, DType::BF16, batch);
    let mut cpu = sampler(&config, &Device::Cpu, DType::F32, batch);
    let labels: Vec<i32> = (0..batch as i32).collect();
    [&mut ours, &mut cpu].into_iter().for_each(|sampler| sampler.begin(0, &labels).unwrap());
    for stage in 0..ours.stages() {
        let before = ours.state().unwrap();
        cpu.set_state(&before).unwrap();
        let change = |sampler: &mut Sampler| {
            sampler.advance(stage).unwrap();
            sampler.state().unwrap().iter().zip(&before).map(|(x, old)| f64::from(x - old)).collect::<Vec<_>>()
        };
        let (changed, expected) = (change(&mut ours), change(&mut cpu));
        assert_eq!(ours.program().is_captured(), stage > 0);
        let error = relative_error(&changed, &expected, 0.0);
        println!("{preset}, stage {stage}: off by {error:.1e}");
        assert!(error <= bounds.median, "stage {stage}: the state's change is off by {error:.2e}");
    }
}

#[test]
fn dit_cifar10_trains_as_on_the_cpu() {
    training_steps("models::dit_cifar10_trains_as_on_the_cpu", "dit-cifar10", 4, &TRANSFORMER);
}

#[test]
fn ddpm_cifar10_trains_as_on_the_cpu() {
    training_steps("models::ddpm_cifar10_trains_as_on_the_cpu", "ddpm-cifar10", 2, &UNET);
}

#[test]
fn dit_cifar10_denoises_as_on_the_cpu() {
    denoising_steps("models::dit_cifar10_denoises_as_on_the_cpu", "dit-cifar10", 4, &TRANSFORMER);
}

#[test]
fn ddpm_cifar10_denoises_as_on_the_cpu() {
    denoising_steps("models::ddpm_cifar10_denoises_as_on_the_cpu", "ddpm-cifar10", 2, &UNET);
}
