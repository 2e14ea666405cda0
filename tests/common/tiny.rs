//! A model and a data set that the emulator can train on in seconds, and the comparison of two runs.

// Each test file compiles this module separately and uses a part of it.
#![allow(dead_code)]

use std::rc::Rc;

use engine::config::{Config, Precision};
use engine::data::{Dataset, Parts};
use engine::diffusion::{NoiseSchedule, Sampler, SamplerSpec};
use engine::models;
use engine::nn::Parameters;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, StepMetrics, Trainer};

/// Number of training images: not a multiple of a batch, so that an epoch drops some.
const TRAINING: usize = 13;

/// Settings on top of a small `quickstart`: adaLN-zero, flow, cosine schedule after a warm-up.
pub fn config(settings: &[&str]) -> Config {
    const SMALL: [&str; 15] = [
        "training.precision=f32",
        "model.image_size=8",
        "model.hidden_dim=32",
        "model.depth=1",
        "model.num_heads=2",
        "model.num_kv_heads=1",
        "model.time_embedding_dim=16",
        "model.condition_hidden_dim=24",
        "model.class_embedding_dim=16",
        "model.num_classes=3",
        "data.flip=true",
        "training.num_steps=6",
        "training.warmup_steps=2",
        "training.batch_size=3",
        "training.label_dropout=0.3",
    ];
    let mut config = Config::preset("quickstart").unwrap();
    for setting in SMALL.iter().chain(settings) {
        config.set(setting).unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
    config
}

/// The remaining features of a run: shifted images, a conditioning token, QK-norm, a table of noise levels, loss weights.
pub const TOKEN: [&str; 7] = [
    "data.crop=2",
    "model.conditioning=token",
    "model.qk_norm=true",
    "diffusion.prediction=v",
    "diffusion.schedule=cosine",
    "diffusion.timestep_sampling=uniform",
    "diffusion.loss_weighting=min_snr",
];

/// A loss with state: terms balanced by their magnitudes, adaptive noise levels.
pub const BALANCED: [&str; 5] = [
    "diffusion.prediction=x0",
    "diffusion.schedule=cosine",
    "diffusion.timestep_sampling=adaptive",
    "diffusion.adaptive_bins=5",
    "diffusion.loss=balanced",
];

/// Random pixels, labels 0, 1, 2, 0, …
pub fn dataset() -> Dataset {
    let count = TRAINING + 4;
    let philox = Philox::new(11);
    let images = (0..count * 8 * 8 * 3).map(|i| philox.bits4(i as u32, 0, 0, Purpose::Probe)[0] as u8).collect();
    Dataset::from_parts(Parts {
        name: "noise".into(),
        height: 8,
        width: 8,
        channels: 3,
        class_names: ["a", "b", "c"].map(String::from).to_vec(),
        images,
        labels: (0..count).map(|i| (i % 3) as u16).collect(),
        train: TRAINING,
        ..Parts::default()
    })
    .unwrap()
}

/// A trainer before its first step.
pub fn trainer(config: &Config, device: &Device) -> Trainer {
    Trainer::new(&config.model, &dataset(), &Recipe::new(config, device.clone())).unwrap()
}

/// The state of a run. Floats are compared by their bits, because none is NaN.
#[derive(Debug, PartialEq)]
pub struct State {
    pub weights: Vec<f32>,
    pub average: Vec<f32>,
    /// Metrics of the steps since the last look.
    pub metrics: Vec<StepMetrics>,
}

impl State {
    pub fn of(trainer: &mut Trainer) -> Self {
        let metrics = trainer.drain_metrics().unwrap();
        let read = |parameters: &Parameters| parameters.master().download::<f32>().unwrap();
        let state = Self { weights: read(trainer.parameters()), average: read(trainer.averaged()), metrics };
        assert!(state.weights.iter().chain(&state.average).all(|x| x.is_finite()));
        assert!(state.metrics.iter().all(|m| m.loss.is_finite() && m.loss > 0.0 && m.gradient_norm.is_finite()));
        state
    }
}

/// `steps` steps, captured and replayed or each launched eagerly.
pub fn train(config: &Config, device: &Device, graphs: bool, steps: u64) -> State {
    let mut trainer = trainer(config, device);
    trainer.set_graphs(graphs);
    (0..steps).for_each(|_| trainer.train_step().unwrap());
    State::of(&mut trainer)
}

/// Images 0 to `count - 1` of a seed by a model with random weights, `batch` at a time: `[count, 8, 8, 3]`.
pub fn sample(config: &Config, device: &Device, precision: Precision, batch: usize, count: usize) -> Vec<f32> {
    let context = precision.context(device);
    let (model, builder) = models::build(&config.model).unwrap();
    let parameters = Parameters::new(&context, builder, precision.dtype()).unwrap();
    // Not the zeros of training's initialization, which would disable most of the network.
    let philox = Philox::new(3);
    let flat: Vec<f32> =
        (0..parameters.flat_len()).map(|i| 0.6 * philox.uniform4(i as u32, 0, 0, Purpose::Probe)[0] - 0.3).collect();
    parameters.set_flat(&flat).unwrap();
    let noise = NoiseSchedule::new(&config.diffusion).unwrap();
    let spec = SamplerSpec {
        sampling: config.sampling.clone(),
        prediction: config.diffusion.prediction,
        null_label: config.model.null_label(),
        batch,
        seed: 0x5eed,
    };
    let mut sampler = Sampler::new(&context, model, Rc::new(parameters), &noise, spec).unwrap();
    let labels: Vec<i32> = (0..count).map(|k| (k % 3) as i32).collect();
    let mut images = Vec::new();
    for first in (0..count).step_by(batch) {
        let labels = &labels[first..count.min(first + batch)];
        images.extend(sampler.run(first as u32, labels, |_, _| Ok(())).unwrap());
    }
    assert_eq!(images.len(), count * 8 * 8 * 3);
    images
}

/// Compares the rounded copies of weights on a device with the host's, bit by bit. Of a NaN a device keeps neither sign nor payload:
/// it becomes 0x7fff, as `cvt.rn.bf16.f32` has it.
pub fn rounds_as_the_host(device: &Device) {
    let (_, builder) = models::build(&config(&[]).model).unwrap();
    let parameters = Parameters::new(&Context::new(device.clone()), builder, DType::BF16).unwrap();
    // Every kind of number: ties, numbers that become infinite, subnormal ones, infinities, NaNs with payloads.
    let special = [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0xbf80_7fff,
        0x7f7f_ffff,
        0x0000_8000,
        0x8001_8000,
        0x8000_0001,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
        0xff80_ffff,
        0x7fc1_2345,
        0xffff_ffff,
    ];
    let philox = Philox::new(7);
    let words = (0..parameters.flat_len().div_ceil(4) as u32).flat_map(|i| philox.bits4(i, 0, 0, Purpose::Probe));
    let flat: Vec<f32> = special.into_iter().chain(words).take(parameters.flat_len()).map(f32::from_bits).collect();
    let rounded = |x: f32| if x.is_nan() { 0x7fff } else { half::bf16::from_f32(x).to_bits() };
    let expected: Vec<u16> = flat.iter().map(|&x| rounded(x)).collect();
    let compute = parameters.compute().unwrap();
    let check = |how: &str| {
        let rounded = compute.download::<half::bf16>().unwrap();
        for (k, (x, expected)) in rounded.iter().zip(&expected).enumerate() {
            assert_eq!(x.to_bits(), *expected, "{how}: {:08x}", flat[k].to_bits());
        }
        compute.zero().unwrap();
    };
    parameters.set_flat(&flat).unwrap();
    check("set");
    parameters.refresh().unwrap();
    check("refreshed");
}

/// ‖a − b‖ / ‖a‖.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b))) / norm(&mut a.iter().map(|a| f64::from(*a)))
}
