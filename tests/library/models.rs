//! Whole models against PyTorch in f64 (`tools/goldens`): forward and every gradient, on the CPU and on the emulator.

use crate::common::golden::{self, Projected, Whole};
use crate::emulator;
use engine::config::Config;
use engine::models::{self, ModelConfig};
use engine::nn::Parameters;
use engine::ops::instruments::poisoned;
use engine::tape::{Accumulate, Tape};
use engine::tensor::{Context, DType, Device};

/// A model's results: by name, `output`, `input` (its gradient) and every parameter's gradient.
type Results = Vec<(String, Vec<f64>)>;

fn run(config: &serde_json::Value, seed: u64, batch: usize, device: Device, precision: DType) -> Results {
    let config: ModelConfig = serde_json::from_value(config.clone()).unwrap();
    let context = poisoned(device);
    let (model, builder) = models::build(&config).unwrap();
    let parameters = Parameters::new(&context, builder, precision).unwrap();
    golden::place(&parameters, seed);
    let gradients = parameters.flat_zeros().unwrap();

    let [h, w, c] = model.image_shape();
    let labels = config.num_classes() + usize::from(config.null_label().is_some());
    let inputs = golden::inputs(seed, batch, h * w * c, labels.max(1));
    let floats = |values: &[f32], shape: &[usize]| golden::floats(&context, precision, values, shape);
    let tape = Tape::new(&context);
    let s = parameters.bind(&tape, Some((&gradients, Accumulate::Write))).unwrap();
    let x = tape.leaf(&floats(&inputs.input, &[batch, h, w, c]));
    let time = tape.constant(&floats(&inputs.time, &[batch]));
    let label = tape.constant(&context.tensor(&inputs.label, [batch]).unwrap());
    let output = model.forward(&s, &x, &time, &label).unwrap();
    tape.backward(&output, floats(&inputs.cotangent, &[batch, h, w, c])).unwrap();

    let mut results = vec![
        ("output".to_string(), output.tensor().to_f64().unwrap()),
        ("input".to_string(), tape.gradient(&x).unwrap().to_f64().unwrap()),
    ];
    let flat = gradients.to_f64().unwrap();
    for spec in parameters.trained_specs() {
        results.push((spec.name.clone(), flat[spec.offset..][..spec.shape.len()].to_vec()));
    }
    results
}

/// The errors of a whole golden, the largest last, with the denominator for gradients of `tests/common/golden.rs`.
fn whole_errors(file: &str, device: Device, precision: DType) -> Vec<(f64, String)> {
    let golden = Whole::load(file);
    let config: serde_json::Value = serde_json::from_str(&golden.metadata["model"]).unwrap();
    let seed = golden.metadata["seed"].parse().unwrap();
    let batch = golden.metadata["batch"].parse().unwrap();
    let results = run(&config, seed, batch, device, precision);
    let stored = |name: &str| match name {
        "output" => "output".to_string(),
        "input" => "input_gradient".to_string(),
        name => format!("gradient.{name}"),
    };
    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut norms: Vec<f64> = results[2..].iter().map(|(name, _)| norm(&golden.get(&stored(name)).values)).collect();
    norms.sort_by(f64::total_cmp);
    let floor = 1e-3 * norms[norms.len() / 2];
    let mut errors: Vec<_> = results
        .iter()
        .map(|(name, values)| (golden::relative_error(values, &golden.get(&stored(name)).values, floor), name.clone()))
        .collect();
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    errors
}

/// The largest error of a whole golden.
fn whole_error(file: &str, device: Device, precision: DType) -> (f64, String) {
    whole_errors(file, device, precision).pop().unwrap()
}

const TRANSFORMERS: [&str; 4] = [
    "dit-token.safetensors",
    "dit-adaln.safetensors",
    "dit-token-qknorm-patch2.safetensors",
    "dit-adaln-qknorm-patch2.safetensors",
];

const LINEAR_TRANSFORMERS: [&str; 2] = ["linear-transformer.safetensors", "linear-transformer-grey.safetensors"];

const RESNET_DITS: [&str; 2] = ["resnet-dit.safetensors", "resnet-dit-unfrozen.safetensors"];

const UNETS: [&str; 2] = ["unet-scale-shift.safetensors", "unet-level.safetensors"];

#[test]
fn small_models_agree_with_pytorch() {
    for file in TRANSFORMERS.into_iter().chain(UNETS).chain(LINEAR_TRANSFORMERS).chain(RESNET_DITS) {
        let (error, name) = whole_error(file, Device::Cpu, DType::F64);
        assert!(error <= 1e-10, "{file} f64: {name} is off by {error:.2e}");
        let (error, name) = whole_error(file, Device::Cpu, DType::F32);
        assert!(error <= 1e-5, "{file} f32: {name} is off by {error:.2e}");
    }
}

#[test]
fn small_models_agree_with_pytorch_on_the_emulator() {
    for file in TRANSFORMERS.into_iter().chain(UNETS).chain(LINEAR_TRANSFORMERS).chain(RESNET_DITS) {
        let (error, name) = whole_error(file, Device::Accelerator(emulator::device()), DType::F32);
        assert!(error <= 1e-5, "{file} f32: {name} is off by {error:.2e}");
    }
    agree_with_pytorch_in_bf16(&Device::Accelerator(emulator::device()));
}

#[test]
fn small_models_agree_with_pytorch_in_bf16() {
    agree_with_pytorch_in_bf16(&Device::Cpu);
}

fn agree_with_pytorch_in_bf16(device: &Device) {
    // bf16 keeps 8 bits: a few roundings per layer, over two layers forward and back.
    for file in TRANSFORMERS {
        let (error, name) = whole_error(file, device.clone(), DType::BF16);
        assert!(error <= 0.05, "{file} bf16: {name} is off by {error:.2e}");
    }
    // More blocks, and biases whose gradients nearly cancel before a group norm. PyTorch, made to round at the same places up
    // or down at random, is off by 0.02 to 0.04 in the median and by 0.07 to 0.14 in the worst tensor, which is another each
    // time (24 draws). With a backbone: 0.01 to 0.045 and 0.03 to 0.07; where that has gradients too, rounding lets some
    // ReLUs of its few channels open or close: 0.02 to 0.044 and 0.04 to 0.26.
    let unets = UNETS.map(|file| (file, 0.04, 0.2));
    let resnet_dits = [(RESNET_DITS[0], 0.05, 0.1), (RESNET_DITS[1], 0.05, 0.3)];
    for (file, most_median, most) in unets.into_iter().chain(resnet_dits) {
        let errors = whole_errors(file, device.clone(), DType::BF16);
        let median = errors[errors.len() / 2].0;
        assert!(median <= most_median, "{file} bf16: half the tensors are off by {median:.2e} and more");
        let (error, name) = errors.last().unwrap();
        assert!(*error <= most, "{file} bf16: {name} is off by {error:.2e}");
    }
}

/// f64 against PyTorch's norms, projections and samples, then f32 against that f64, tensor by tensor: so f32 is within 1e-5 of
/// PyTorch in norm.
fn agrees_with_pytorch(file: &str) {
    let golden = Projected::load(file);
    let [exact, single] =
        [DType::F64, DType::F32].map(|dtype| run(&golden.model, golden.seed, golden.batch, Device::Cpu, dtype));
    assert_eq!(count(serde_json::from_value(golden.model.clone()).unwrap()), golden.parameters);
    let floor = 1e-3 * golden.median_gradient_norm();
    for ((name, exact), (_, single)) in exact.iter().zip(&single) {
        let error = golden.error(name, exact);
        assert!(error <= 1e-10, "{file} f64: {name} is off by {error:.2e}");
        let error = golden::relative_error(single, exact, floor);
        assert!(error <= 1e-5, "{file} f32: {name} is off by {error:.2e}");
    }
}

#[test]
fn the_cifar_transformer_agrees_with_pytorch() {
    agrees_with_pytorch("dit-cifar10.json");
    // And f32 against each number directly, which is stricter: one projection of a difference may exceed the difference's norm.
    // (In the U-Nets one does, by up to 1.3e-5, as in PyTorch's own f32.)
    let golden = Projected::load("dit-cifar10.json");
    for (name, values) in run(&golden.model, golden.seed, golden.batch, Device::Cpu, DType::F32) {
        let error = golden.error(&name, &values);
        assert!(error <= 1e-5, "f32: {name} is off by {error:.2e}");
    }
}

#[test]
fn the_fashion_unets_agree_with_pytorch() {
    agrees_with_pytorch("unet-fashion.json");
    agrees_with_pytorch("unet-fashion-small.json");
}

#[test]
fn the_cifar_unets_agree_with_pytorch() {
    agrees_with_pytorch("ddpm-cifar10.json");
    agrees_with_pytorch("ddpm-cifar10-paper.json");
}

#[test]
fn the_linear_transformer_agrees_with_pytorch() {
    agrees_with_pytorch("pets.json");
}

/// A golden has the preset's own model, except for dropout, whose masks differ between both sides.
#[test]
fn goldens_are_of_the_presets() {
    for preset in [
        "dit-cifar10",
        "ddpm-cifar10",
        "ddpm-cifar10-paper",
        "unet-fashion",
        "unet-fashion-small",
        "pets",
        "resnet-dit",
    ] {
        let golden = Projected::load(&format!("{preset}.json"));
        let mut config = Config::preset(preset).unwrap();
        if config.model.kind() == "unet" {
            config.set("model.dropout=0").unwrap();
        }
        assert_eq!(serde_json::from_value::<ModelConfig>(golden.model).unwrap(), config.model, "{preset}");
    }
}

#[test]
fn the_resnet_transformer_agrees_with_pytorch() {
    agrees_with_pytorch("resnet-dit.json");
}

/// Parameters of a model, including frozen ones.
fn count(config: ModelConfig) -> usize {
    let (_, builder) = models::network(&config).unwrap();
    Parameters::new(&Context::shape_only(), builder, DType::F32).unwrap().count()
}

#[test]
fn parameter_counts_are_pinned() {
    let dit = |null_label| ModelConfig::Dit(models::dit::DitConfig { null_label, ..Default::default() });
    assert_eq!(count(dit(false)), 19_107_920);
    assert_eq!(count(dit(true)), 19_108_048);
    for (preset, parameters) in [
        ("ddpm-cifar10", 15_753_475),
        // As counted in the weights published by Ho et al. 2020.
        ("ddpm-cifar10-paper", 35_746_307),
        ("unet-fashion", 32_075_713),
        ("unet-fashion-small", 2_485_985),
        ("pets", 7_236_659),
        // torchvision's 11,689,512 with ten classes instead of a thousand, and the smaller stem.
        ("resnet18-cifar10", 11_689_512 - 990 * 513 - 40 * 3 * 64),
        ("resnet-dit", 4_356_355),
    ] {
        assert_eq!(count(Config::preset(preset).unwrap().model), parameters, "{preset}");
    }
}
