//! Images that are not square: networks treat both sides equally, train, sample and resume.

use crate::common::golden;
use crate::emulator;
use crate::train::{assert_refused, assert_same, engine, finish, request, resume, stop_after, tiny_unet, with_tiny};
use engine::config::Config;
use engine::data::{Dataset, Parts};
use engine::models::{self, Architecture, ModelConfig};
use engine::nn::Parameters;
use engine::ops::instruments::poisoned;
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tape::{Accumulate, Tape};
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, TrainRequest, Trainer};
use serde_json::{Value, json};

const SEED: u64 = 21;
const BATCH: usize = 2;

/// Transposes each `[h, w, c]` block to `[w, h, c]`.
fn transposed<T: Copy>(values: &[T], [h, w, c]: [usize; 3]) -> Vec<T> {
    let one = |values: &[T]| -> Vec<T> {
        let pixel = |at: usize| values[at * c..][..c].to_vec();
        (0..w).flat_map(|x| (0..h).map(move |y| (y, x))).flat_map(|(y, x)| pixel(y * w + x)).collect()
    };
    values.chunks(h * w * c).flat_map(one).collect()
}

/// A network whose rows and columns are swapped.
struct Turn {
    config: ModelConfig,
    /// Height and width of a patch, rows and columns of patches, channels of the images, tokens before them.
    patch: usize,
    patches: [usize; 2],
    skip: usize,
    /// The width of a token, if positions are fixed: their first half encodes the row, the second the column.
    fixed: Option<usize>,
}

impl Turn {
    fn new(model: Value) -> Self {
        let config: ModelConfig = serde_json::from_value(model).unwrap();
        let (patch, patches, skip, fixed) = match &config {
            ModelConfig::Dit(dit) => (dit.patch_size, dit.patches(), dit.condition_tokens(), None),
            ModelConfig::LinearTransformer(model) => (model.patch_size, model.patches(), 0, Some(model.hidden_dim)),
            ModelConfig::ResnetDit(model) => (1, model.feature_size().sides(), 1, None),
            _ => (1, [1, 1], 0, None),
        };
        Self { config, patch, patches, skip, fixed }
    }

    /// A parameter, or its gradient, of the network with rows and columns swapped.
    fn parameter<T: Copy>(&self, name: &str, shape: &[usize], values: &[T]) -> Vec<T> {
        let (patch, channels) = (self.patch, self.config.image_channels());
        let mut turned = match (name, shape) {
            (_, &[_, k, _, channels]) => transposed(values, [k, k, channels]),
            ("patch_embed.weight", _) => transposed(values, [patch, patch, channels]),
            ("final.linear.weight" | "decoder.head.weight", &[_, width]) => {
                transposed(values, [patch, patch, channels * width])
            }
            ("final.linear.bias" | "decoder.head.bias", _) => transposed(values, [patch, patch, channels]),
            ("position", &[_, width]) => {
                let (before, cells) = values.split_at(self.skip * width);
                [before, &transposed(cells, [self.patches[0], self.patches[1], width])].concat()
            }
            _ => values.to_vec(),
        };
        if let Some(width) = self.fixed {
            // If a token's halves are swapped, so are the weights that read and write it.
            let reads = ["attn.qkv.weight", "mlp.fc1.weight", "decoder.head.weight"];
            let writes = ["patch_embed.", "modulation.", "attn.out.", "mlp.fc2."];
            if reads.iter().any(|part| name.ends_with(part)) {
                turned.chunks_mut(width).for_each(|row| row.rotate_left(width / 2));
            } else if writes.iter().any(|part| name.contains(part)) {
                let inner = shape.get(1).copied().unwrap_or(1);
                turned.chunks_mut(width * inner).for_each(|rows| rows.rotate_left(width / 2 * inner));
            }
        }
        turned
    }

    /// The largest error between this network's results and those of the transposed one, each transposed back.
    fn error(&self, turned: &ModelConfig, device: &Device, precision: DType) -> (f64, String) {
        let shape = self.config.image_shape();
        let weights = |name: &str, number: usize, sizes: &[usize]| golden::parameter(SEED, number, name, sizes);
        let inputs = golden::inputs(SEED, BATCH, shape.iter().product(), self.config.num_classes().max(1));
        let own = computed(&self.config, device, precision, [&inputs.input, &inputs.cotangent], &inputs, weights);
        let images = [&inputs.input, &inputs.cotangent].map(|values| transposed(values, shape));
        let [input, cotangent] = &images;
        let other = computed(turned, device, precision, [input, cotangent], &inputs, |name, number, sizes| {
            self.parameter(name, sizes, &weights(name, number, sizes))
        });
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut norms: Vec<f64> = own[2..].iter().map(|(.., values)| norm(values)).collect();
        norms.sort_by(f64::total_cmp);
        let floor = 1e-3 * norms[norms.len() / 2];
        let errors = own.iter().zip(&other).map(|((name, sizes, own), (.., other))| {
            let expected = match name.as_str() {
                "output" | "input" => transposed(own, shape),
                name => self.parameter(name, sizes, own),
            };
            (golden::relative_error(other, &expected, floor), name.clone())
        });
        errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }
}

/// By name and shape: the output, its input's gradient, and every parameter's gradient.
fn computed(
    config: &ModelConfig,
    device: &Device,
    precision: DType,
    [input, cotangent]: [&[f32]; 2],
    inputs: &golden::Inputs,
    weights: impl Fn(&str, usize, &[usize]) -> Vec<f32>,
) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let context = poisoned(device.clone());
    let (model, builder) = models::build(config).unwrap();
    let parameters = Parameters::new(&context, builder, precision).unwrap();
    let mut flat = vec![0f32; parameters.flat_len()];
    for (number, spec) in parameters.specs().iter().enumerate() {
        parameters.place(&mut flat, &spec.name, &weights(&spec.name, number, spec.shape.sizes())).unwrap();
    }
    parameters.set_flat(&flat).unwrap();
    let gradients = parameters.flat_zeros().unwrap();
    let [h, w, c] = model.image_shape();
    let shape = [BATCH, h, w, c];
    let floats = |values: &[f32], shape: &[usize]| golden::floats(&context, precision, values, shape);
    let tape = Tape::new(&context);
    let s = parameters.bind(&tape, Some((&gradients, Accumulate::Write))).unwrap();
    let x = tape.leaf(&floats(input, &shape));
    let time = tape.constant(&floats(&inputs.time, &[BATCH]));
    let label = tape.constant(&context.tensor(&inputs.label, [BATCH]).unwrap());
    let output = model.forward(&s, &x, &time, &label).unwrap();
    tape.backward(&output, floats(cotangent, &shape)).unwrap();
    let named = |name: &str, values| (name.to_owned(), shape.to_vec(), values);
    let mut results = vec![
        named("output", output.tensor().to_f64().unwrap()),
        named("input", tape.gradient(&x).unwrap().to_f64().unwrap()),
    ];
    let flat = gradients.to_f64().unwrap();
    for spec in parameters.trained_specs() {
        let values = flat[spec.offset..][..spec.shape.len()].to_vec();
        results.push((spec.name.clone(), spec.shape.sizes().to_vec(), values));
    }
    results
}

/// Networks of every kind, and what else changes with rows and columns swapped.
fn networks() -> Vec<(ModelConfig, ModelConfig)> {
    let merged = |base: &Value, more: Value| serde_json::from_value::<ModelConfig>(merged_value(base, more)).unwrap();
    let transformer = json!({
        "hidden_dim": 16, "depth": 2, "num_heads": 2, "time_embedding_dim": 8, "image_channels": 3, "num_classes": 3,
        "null_label": false
    });
    let with = |more: Value| merged_value(&transformer, more);
    let dit = |conditioning: &str| {
        with(json!({
            "kind": "dit", "patch_size": 2, "num_kv_heads": 1, "condition_hidden_dim": 12, "class_embedding_dim": 8,
            "conditioning": conditioning
        }))
    };
    let linear = with(json!({
        "kind": "linear-transformer", "patch_size": 2, "condition_dim": 12, "refine_channels": 8, "norm_groups": 4
    }));
    let resnet = with(json!({
        "kind": "resnet-dit", "backbone": null, "backbone_blocks": [1, 1], "backbone_widths": [8, 12], "backbone_layers": 2,
        "freeze_backbone": false, "decoder_channels": 8, "norm_groups": 4
    }));
    let unet = json!({
        "kind": "unet", "image_channels": 3, "channels": [8, 16, 16], "res_blocks": 1, "num_heads": 2, "norm_groups": 4,
        "time_embedding_dim": 8, "time_hidden_dim": 12, "time_output_dim": 8, "num_classes": 3
    });
    let both = |model: &Value, [h, w]: [usize; 2]| {
        let size = |sides: [usize; 2]| merged(model, json!({ "image_size": sides }));
        (size([h, w]), size([w, h]))
    };
    // 14x9, 7x5, 4x3; with `same` both sides have to be even or odd together.
    let unets = [([14, 9], "symmetric", 7, 5), ([20, 12], "same", 5, 3)].map(|([h, w], padding, high, wide)| {
        let size = |sides: [usize; 2], attended: usize| {
            merged(&unet, json!({ "image_size": sides, "attention_sizes": [attended], "downsample_padding": padding }))
        };
        (size([h, w], high), size([w, h], wide))
    });
    let transformers = [
        both(&dit("token"), [10, 6]),
        both(&dit("adaln_zero"), [4, 8]),
        both(&linear, [10, 6]),
        both(&resnet, [9, 14]),
    ];
    unets.into_iter().chain(transformers).collect()
}

fn merged_value(base: &Value, more: Value) -> Value {
    let mut model = base.clone();
    model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    model
}

#[test]
fn rows_and_columns_may_change_places() {
    for (config, turned) in networks() {
        let turn = Turn::new(serde_json::to_value(&config).unwrap());
        assert_ne!(config.image_shape(), turned.image_shape());
        let (error, name) = turn.error(&turned, &Device::Cpu, DType::F64);
        assert!(error <= 1e-10, "{config:?}: {name} is off by {error:.2e}");
    }
}

#[test]
fn rows_and_columns_may_change_places_on_the_emulator() {
    let device = Device::Accelerator(emulator::device());
    for (config, turned) in networks() {
        let turn = Turn::new(serde_json::to_value(&config).unwrap());
        let (error, name) = turn.error(&turned, &device, DType::F32);
        assert!(error <= 1e-4, "{config:?}: {name} is off by {error:.2e}");
    }
}

/// Images of one colour each, with a dark row at the top: 24 for training, 8 held out, of ten classes.
fn dataset([height, width]: [usize; 2]) -> Dataset {
    let philox = Philox::new(4);
    let image = |i: usize| {
        let colour = philox.bits4(i as u32, 0, 0, Purpose::Probe);
        (0..height * width * 3).map(move |at| if at < 3 * width { 0 } else { colour[at % 3] as u8 })
    };
    Dataset::from_parts(Parts {
        name: "bars".into(),
        height,
        width,
        channels: 3,
        class_names: (0..10).map(|label| label.to_string()).collect(),
        images: (0..32).flat_map(image).collect(),
        labels: (0..32).map(|i| i % 10).collect(),
        train: 24,
        ..Parts::default()
    })
    .unwrap()
}

#[test]
fn images_that_are_not_square_are_trained_on_sampled_and_resumed() {
    let base = tempfile::tempdir().unwrap();
    for [height, width] in [[24, 16], [16, 24]] {
        let size = format!("model.image_size=[{height}, {width}]");
        let attention = format!("model.attention_sizes=[{}]", height / 2);
        for (kind, config) in [("dit", None), ("unet", Some(tiny_unet(0.0)))] {
            let request_of = |name: &str| {
                let out = base.path().join(format!("{kind}-{height}-{name}"));
                let mut request = TrainRequest { dataset: Some(dataset([height, width])), ..request(&out, &[&size]) };
                if let Some(mut config) = config.clone() {
                    config.set(&size).unwrap();
                    config.set(&attention).unwrap();
                    request.config = Some(config);
                }
                (request, out)
            };
            let ((whole, a), (cut, b)) = (request_of("whole"), request_of("cut"));
            finish(whole);
            let again = || TrainRequest { dataset: Some(dataset([height, width])), ..resume(&b) };
            stop_after(cut, 3);
            finish(again());
            assert_same(&a, &b);
            let model = Model::load(&a, &Context::cpu(), DType::F32).unwrap();
            assert_eq!(model.image_shape(), [height, width, 3]);
            let mut request = model.request(vec![0; 3]);
            request.batch = 2;
            let together = model.sample(&request).unwrap();
            request.batch = 1;
            assert!(together == model.sample(&request).unwrap(), "an image depends on its batch");
            assert!(
                together.iter().all(|image| image.len() == height * width * 3 && image.iter().all(|x| x.is_finite()))
            );
            let (sheet, _) = engine::picture::read_png(a.join("samples/final.png")).unwrap();
            let rows = if config.is_none() { 10 } else { 1 };
            assert!(sheet.height() > rows * height * (96 / height.max(width)));
        }
    }
}

#[test]
fn the_emulator_trains_on_them_as_the_cpu_does() {
    let settings = ["training.precision=f32", "training.epsilon=1e-3", "model.image_size=[8, 16]", "data.crop=1"];
    let mut unet = tiny_unet(0.0);
    let dit = crate::train::tiny(&settings);
    ["model.image_size=[6, 4]", "model.attention_sizes=[3]", "training.epsilon=1e-3", "training.precision=f32"]
        .iter()
        .for_each(|setting| unet.set(setting).unwrap());
    for config in [dit, unet] {
        let [height, width, _] = config.model.image_shape();
        let run = |device: Device| {
            let recipe = Recipe::new(&config, device);
            let mut trainer = Trainer::new(&config.model, &dataset([height, width]), &recipe).unwrap();
            (0..3).for_each(|_| trainer.train_step().unwrap());
            let losses: Vec<f64> = trainer.drain_metrics().unwrap().iter().map(|metrics| metrics.loss).collect();
            (trainer.parameters().master().download::<f32>().unwrap(), losses)
        };
        let ((cpu, cpu_losses), (ours, losses)) = (run(Device::Cpu), run(Device::Accelerator(emulator::device())));
        let apart = crate::tiny::distance(&cpu, &ours);
        assert!(apart < 1e-6, "{:?} apart by {apart:.1e}", config.model.kind());
        assert!(cpu_losses.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{cpu_losses:?} {losses:?}");
    }
}

#[test]
fn a_size_that_cannot_be_is_refused_in_one_line() {
    let base = tempfile::tempdir().unwrap();
    let both = "a number of pixels such as 32, or [height, width] such as [48, 32]";
    let patches: &[&str] = &["model.patch_size", "the width of model.image_size, 20", "give 4"];
    let cases: [(&str, &[&str]); 6] = [
        ("model.image_size=[48]", &["model.image_size", "a list of 1", both]),
        ("model.image_size=[48, 32, 3]", &["a list of 3", both]),
        ("model.image_size=48x32", &["model.image_size", "48x32", both]),
        ("model.image_size=[48, -32]", &["a list that holds -32", both]),
        ("model.image_size=[24, 20]", patches),
        ("model.image_size=[48, 5000]", &["model.image_size", "5000 is outside 1…1024"]),
    ];
    for (setting, words) in cases {
        let all = with_tiny(&["--set", setting]);
        assert_refused(&engine(&all).current_dir(base.path()).output().unwrap(), words);
    }
    let all = with_tiny(&["--set", "model.image_size=[24, 16]", "--data", "builtin"]);
    let expected = ["its images are 32x32x3, the model's 24x16x3 (height x width x channels)", "model.image_size"];
    assert_refused(&engine(&all).current_dir(base.path()).output().unwrap(), &expected);
}

#[test]
fn a_square_is_written_as_a_number_and_both_forms_are_read() {
    let mut config = Config::preset("dit-cifar10").unwrap();
    assert!(config.to_json().unwrap().contains(r#""image_size":32,"#));
    assert!(config.to_yaml().unwrap().contains("image_size: 32\n"));
    config.set("model.image_size=[32, 32]").unwrap();
    assert_eq!(config, Config::preset("dit-cifar10").unwrap());
    config.set("model.image_size=[48, 32]").unwrap();
    assert!(config.to_json().unwrap().contains(r#""image_size":[48,32],"#));
    assert_eq!(Config::from_json(&config.to_json().unwrap(), "file").unwrap(), config);
    assert_eq!(Config::from_yaml(&config.to_yaml().unwrap(), "file").unwrap(), config);
    let yaml = "preset: ddpm-cifar10\nmodel:\n  image_size: [48, 32]\n  attention_sizes: [24, 12]\n";
    let config = Config::from_yaml(yaml, "file").unwrap();
    config.validate().unwrap();
    let ModelConfig::Unet(unet) = &config.model else { panic!("{:?}", config.model) };
    assert_eq!(unet.sizes().iter().map(|size| size.sides()).collect::<Vec<_>>(), [[48, 32], [24, 16], [12, 8]]);
    assert_eq!(unet.interface().image_shape(), [48, 32, 3]);
}
