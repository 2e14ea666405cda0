//! Classifiers are trained, resumed and used as the backbone of a diffusion transformer, which does not change them.

use crate::emulator;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use engine::config::{Config, ModelConfig};
use engine::data::{Dataset, Parts, shapes};
use engine::device::DeviceChoice;
use engine::model_file::ClassifierModel;
use engine::models::efficientnet::EfficientNetWeights;
use engine::nn::Parameters;
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Device};
use engine::train::{DataSizes, Estimate, Event, Recipe, TrainRequest, Trainer, train};
use engine::{Error, Result};
use safetensors::SafeTensors;

/// A classifier of the built-in shapes with two narrow layers.
fn classifier(more: &[&str]) -> Config {
    const TINY: [&str; 11] = [
        "model.blocks=[2, 1]",
        "model.widths=[6, 10]",
        "data.name=shapes",
        "data.shapes_count=80",
        "training.num_steps=6",
        "training.batch_size=4",
        "training.warmup_steps=2",
        "training.log_every=2",
        "training.validate_every=3",
        "training.checkpoint_every=2",
        "training.ema_decay=0.5",
    ];
    set("resnet18-cifar10", &TINY, more)
}

/// A transformer on its first two layers.
fn transformer(more: &[&str]) -> Config {
    const TINY: [&str; 15] = [
        "model.hidden_dim=16",
        "model.depth=1",
        "model.num_heads=2",
        "model.mlp_ratio=2",
        "model.time_embedding_dim=8",
        "model.decoder_channels=8",
        "model.norm_groups=2",
        "data.name=shapes",
        "data.shapes_count=80",
        "training.num_steps=4",
        "training.batch_size=4",
        "training.log_every=2",
        "training.sample_every=never",
        "training.checkpoint_every=2",
        "sampling.num_steps=2",
    ];
    set("resnet-dit", &TINY, more)
}

fn set(preset: &str, tiny: &[&str], more: &[&str]) -> Config {
    let mut config = Config::preset(preset).unwrap();
    for assignment in tiny.iter().chain(more) {
        config.set(assignment).unwrap_or_else(|error| panic!("{assignment}: {error}"));
    }
    config
}

fn request(out: &Path, config: Config) -> TrainRequest {
    let mut request = TrainRequest::new("tiny", config);
    (request.out, request.device) = (Some(out.to_path_buf()), DeviceChoice::Cpu);
    request
}

fn run(out: &Path, config: Config) -> engine::train::Summary {
    train(request(out, config), &mut |_| ()).unwrap()
}

fn fault(out: &Path, config: Config) -> String {
    let message = train(request(out, config), &mut |_| ()).unwrap_err().to_string();
    assert!(!out.exists(), "a refused run leaves nothing behind");
    message
}

#[test]
fn a_classifier_reports_its_accuracy_and_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let summary = run(&whole, classifier(&[]));
    let accuracy = summary.validation_accuracy.unwrap();
    assert!((0.0..=1.0).contains(&accuracy) && summary.samples.is_file());
    let config = std::fs::read_to_string(whole.join("config.yaml")).unwrap();
    assert!(
        config.contains("training:") && !config.contains("diffusion:") && !config.contains("sampling:"),
        "{config}"
    );
    let lines = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let trained: Vec<_> = lines.iter().filter(|line| line["loss"].is_number()).collect();
    assert!(trained.iter().all(|line| (0.0..=1.0).contains(&line["accuracy"].as_f64().unwrap())), "{lines:?}");
    assert_eq!(lines.last().unwrap()["validation_accuracy"].as_f64(), Some(accuracy));

    let interrupted = request(&cut, classifier(&[]));
    let stop = interrupted.stop.clone();
    let outcome = train(interrupted, &mut |event| {
        if matches!(event, Event::Step { step: 3, .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(outcome, Err(Error::Interrupted { .. })), "{outcome:?}");
    let resumed = TrainRequest { device: DeviceChoice::Cpu, ..TrainRequest::resume(&cut) };
    assert_eq!(train(resumed, &mut |_| ()).unwrap().validation_accuracy, Some(accuracy));
    for file in ["model.safetensors", "best.safetensors"] {
        assert_same(&whole.join(file), &cut.join(file));
    }
    // A checkpoint is a model too: the average of trained weights, and the running statistics.
    let load = |file: &Path| {
        let model = ClassifierModel::load(file, &Context::cpu(), DType::F32).unwrap();
        model.parameters.download().unwrap()
    };
    assert!(load(&whole.join("checkpoints/step-6.safetensors")) == load(&whole));
    // It classifies the eight held-out images, and so does a file of half the size.
    let program = |arguments: &[&str]| {
        let run =
            Command::new(env!("CARGO_BIN_EXE_engine")).args(arguments).current_dir(folder.path()).output().unwrap();
        (run.status.success(), String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned())
    };
    assert!(program(&["convert", "whole", "half.safetensors", "--dtype", "bf16"]).0);
    for model in ["whole", "half.safetensors"] {
        let (well, text) =
            program(&["classify", "--model", model, "--data", "builtin", "--device", "cpu", "--out", "-"]);
        assert!(well, "{text}");
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let images = found["images"].as_array().unwrap();
        assert!(images.len() == 8 && images[0]["errors"].is_null(), "{text}");
        let sum: f64 = images[7]["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9 && found["settings"]["levels"].is_null());
        let right = images.iter().filter(|image| image["label"] == image["prediction"]).count();
        assert_eq!(found["accuracy"].as_f64(), Some(right as f64 / 8.0));
    }
    for (more, told) in [
        (["--levels", "4"], "--levels: the model is a classifier"),
        (["--classes", "star,star"], "--classes: star is given twice"),
        (["--classes", "star"], "--classes: 1 class"),
    ] {
        let (well, text) = program(&[&["classify", "--model", "whole", "--data", "builtin"][..], &more].concat());
        assert!(!well && text.contains(told), "{text}");
    }
    // And a diffusion model's commands report its kind.
    let message = Model::load(&whole, &Context::cpu(), DType::F32).err().unwrap().to_string();
    assert!(message.contains("it is a classifier (resnet)"), "{message}");
}

/// The arrays of a safetensors file under `prefix`, by the rest of their names.
fn arrays(file: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut arrays: Vec<_> = tensors
        .iter()
        .filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_string(), view.data().to_vec())))
        .collect();
    arrays.sort();
    arrays
}

/// Two safetensors files hold the same bits.
fn assert_same(one: &Path, other: &Path) {
    let differing: Vec<String> =
        arrays(one, "").into_iter().zip(arrays(other, "")).filter_map(|(a, b)| (a != b).then_some(a.0)).collect();
    assert!(differing.is_empty(), "{}: {differing:?}", one.display());
}

#[test]
fn a_frozen_backbone_stays_bit_identical_and_has_no_optimizer_state() {
    let folder = tempfile::tempdir().unwrap();
    let (teacher, frozen, thawed) = ("teacher", "frozen", "thawed");
    let at = |name: &str| folder.path().join(name);
    run(&at(teacher), classifier(&[]));
    let backbone = format!("model.backbone={}", at(teacher).display());
    run(&at(frozen), transformer(&[&backbone]));
    run(&at(thawed), transformer(&[&backbone, "model.freeze_backbone=false"]));

    // Depth, widths and weights are the teacher's, found without being given.
    let original = arrays(&at(teacher).join("model.safetensors"), "");
    let of_backbone = |name: &str| arrays(&at(name).join("model.safetensors"), "backbone.");
    let kept = of_backbone(frozen);
    assert!(kept.len() == 40 && kept.iter().all(|array| original.contains(array)));
    let moved = of_backbone(thawed);
    let is_buffer = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
    for (before, after) in kept.iter().zip(&moved) {
        assert_eq!(before.0, after.0);
        assert_eq!(before.1 == after.1, is_buffer(&before.0), "{}", before.0);
    }
    let checkpoint = at(frozen).join("checkpoints/step-4.safetensors");
    assert_eq!(arrays(&checkpoint, "weights.backbone."), kept);
    for state in ["first.", "second.", "ema."] {
        assert!(arrays(&checkpoint, &format!("{state}backbone.")).is_empty(), "{state}");
        assert!(!arrays(&checkpoint, state).is_empty());
    }
    // The model file is self-contained: it has no path of this machine, and the teacher is no longer needed.
    let model = Model::load(at(frozen), &Context::cpu(), DType::F32).unwrap();
    assert!(!model.info.config.to_json().unwrap().contains(&at(teacher).display().to_string()));
    std::fs::remove_dir_all(at(teacher)).unwrap();
    let longer = TrainRequest { steps: Some(6), device: DeviceChoice::Cpu, ..TrainRequest::resume(at(frozen)) };
    train(longer, &mut |_| ()).unwrap();
    assert_eq!(of_backbone(frozen), kept);
}

#[test]
fn freezing_saves_memory_and_work() {
    let sizes = DataSizes { training: 50_000, validation: 10_000 };
    let of = |freeze: bool| {
        let mut config = Config::preset("resnet-dit").unwrap();
        config.set(&format!("model.freeze_backbone={freeze}")).unwrap();
        Estimate::new(&config, sizes).unwrap()
    };
    let (frozen, thawed) = (of(true), of(false));
    assert_eq!(frozen.parameters, thawed.parameters);
    assert!(frozen.total_bytes() < thawed.total_bytes());
    assert!(frozen.training.total().flops < 0.9 * thawed.training.total().flops);
}

/// EfficientNet-lite0's stages under a transformer: planned as built, trained or not.
#[test]
fn efficientnet_is_a_backbone() {
    for (size, channels, layers, freeze) in [(28, 1, 3, true), (32, 3, 2, true), (32, 3, 2, false)] {
        let mut config = transformer(&["training.batch_size=2", "model.backbone=efficientnet-lite0"]);
        let more = format!(
            "model.image_size={size} model.image_channels={channels} model.backbone_layers={layers} \
             model.freeze_backbone={freeze}"
        );
        more.split(' ').for_each(|assignment| config.set(assignment).unwrap());
        let ModelConfig::ResnetDit(model) = &mut config.model else { unreachable!("the preset's kind") };
        model.follow_backbone();
        let plan = Estimate::new(&config, DataSizes { training: 4, validation: 2 }).unwrap();
        let mut trainer =
            Trainer::new(&config.model, &noise(size, channels), &Recipe::new(&config, Device::Cpu)).unwrap();
        let before = trainer.parameters().download().unwrap();
        // The last convolution starts at zero: the first step's gradient ends there.
        (0..3).for_each(|_| trainer.train_step().unwrap());
        let metrics = trainer.drain_metrics().unwrap();
        assert!(metrics[0].loss.is_finite() && metrics[0].gradient_norm > 0.0, "{size}x{channels}");
        assert_eq!(plan.parameters, trainer.parameters().count());
        let after = trainer.parameters().download().unwrap();
        let backbone: Vec<_> =
            trainer.parameters().specs().iter().filter(|spec| spec.name.starts_with("backbone.")).collect();
        let moved = backbone.iter().filter(|spec| {
            let part = spec.offset..spec.offset + spec.shape.len();
            before[part.clone()] != after[part]
        });
        match (freeze, moved.count()) {
            (true, moved) => assert_eq!(moved, 0),
            (false, moved) => assert!(moved > backbone.len() / 2, "{moved} of {}", backbone.len()),
        }
    }
}

/// The real network's features of real pictures, as a backbone at its own size, equal those as a classifier; and a run can use its
/// file.
#[test]
fn a_run_stands_on_the_real_efficientnet() {
    let Some(folder) = std::env::var_os("ENGINE_EFFICIENTNET").map(std::path::PathBuf::from) else {
        assert!(std::env::var("ENGINE_REQUIRE_EFFICIENTNET").is_err(), "ENGINE_EFFICIENTNET names no folder");
        eprintln!("SKIPPED: ENGINE_EFFICIENTNET names no folder with efficientnet-lite0-57934424.pth");
        return;
    };
    let file = folder.join("efficientnet-lite0-57934424.pth");
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("run");
    run(&out, transformer(&[&format!("model.backbone={}", file.display())]));
    let kept = arrays(&out.join("model.safetensors"), "backbone.");
    // Stem and blocks 0 to 2: the first has two convolutions, the others three; each a weight and a bias.
    assert_eq!(kept.len(), 2 * (1 + 2 + 3 + 3));
    let weights = EfficientNetWeights::open(&file).unwrap();
    for (name, bytes) in &kept {
        assert!(bytemuck::cast_slice::<f32, u8>(&weights.array(name, 3).unwrap()) == &bytes[..], "{name}");
    }
    Model::load(&out, &Context::cpu(), DType::F32).unwrap();
}

fn noise(size: usize, channels: usize) -> Dataset {
    let count = 6;
    let pixel = |i: usize| Philox::new(1).bits4(i as u32, 0, 0, Purpose::Probe)[0] as u8;
    Dataset::from_parts(Parts {
        name: "noise".into(),
        height: size,
        width: size,
        channels,
        class_names: ["a", "b"].map(String::from).to_vec(),
        images: (0..count * size * size * channels).map(pixel).collect(),
        labels: (0..count).map(|k| (k % 2) as u16).collect(),
        train: 4,
        ..Parts::default()
    })
    .unwrap()
}

#[test]
fn other_sizes_colours_and_depths_build_plan_and_learn_without_edits() {
    for (size, channels) in [(28, 1), (32, 3), (64, 3)] {
        for more in [
            &["model.backbone_widths=[4, 6, 8, 8]"][..],
            &["model.backbone_widths=[4, 6, 8]", "model.backbone_blocks=[1, 3, 2]", "model.backbone_layers=3"],
            &["model.backbone_widths=[4, 6, 8, 8]", "model.backbone_stem=imagenet", "model.backbone_layers=1"],
        ] {
            let mut config = transformer(&["training.batch_size=2"]);
            config.set(&format!("model.image_size={size}")).unwrap();
            config.set(&format!("model.image_channels={channels}")).unwrap();
            more.iter().for_each(|assignment| config.set(assignment).unwrap());
            let plan = Estimate::new(&config, DataSizes { training: 4, validation: 2 }).unwrap();
            let mut trainer =
                Trainer::new(&config.model, &noise(size, channels), &Recipe::new(&config, Device::Cpu)).unwrap();
            trainer.train_step().unwrap();
            let metrics = trainer.drain_metrics().unwrap();
            assert!(metrics[0].loss.is_finite() && metrics[0].gradient_norm > 0.0, "{size}x{channels} {more:?}");
            assert_eq!(plan.parameters, trainer.parameters().count());
        }
    }
}

#[test]
fn a_backbone_that_is_not_there_or_not_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (out, other) = (folder.path().join("out"), folder.path().join("other"));
    let message = fault(&out, transformer(&["model.backbone=null"]));
    assert!(message.contains("model.backbone") && message.contains("resnet18-cifar10"), "{message}");
    let message = fault(&out, transformer(&["model.backbone=nowhere.pth"]));
    assert!(message.contains("nowhere.pth is not there"), "{message}");
    let message = fault(&out, transformer(&[]));
    assert!(message.contains("engine fetch resnet18"), "{message}");
    run(
        &other,
        set(
            "quickstart",
            &["data.shapes_count=80", "model.depth=1", "model.hidden_dim=16"],
            &["training.num_steps=1", "training.batch_size=2", "sampling.num_steps=1", "sampling.count_per_class=1"],
        ),
    );
    let message = fault(&out, transformer(&[&format!("model.backbone={}", other.display())]));
    assert!(message.contains("it is a diffusion model (dit)"), "{message}");
    let text = folder.path().join("text.pth");
    std::fs::write(&text, "<html>").unwrap();
    let message = fault(&out, transformer(&[&format!("model.backbone={}", text.display())]));
    assert!(message.contains("text.pth") && message.contains("web page"), "{message}");
    // Settings that a classifier does not use are errors.
    for (assignment, told) in [
        ("sampling.num_steps=7", "sampling: "),
        ("diffusion.num_steps=7", "diffusion: "),
        ("training.label_dropout=0.1", "training.label_dropout: "),
        ("training.sample_every=5", "training.sample_every: "),
    ] {
        let message = fault(&out, classifier(&[assignment]));
        assert!(message.starts_with(told), "{message}");
    }
    let message = fault(&out, transformer(&["training.label_smoothing=0.1"]));
    assert!(message.contains("for classifiers"), "{message}");
}

/// Losses and the final state of a few steps.
fn steps(config: &Config, set: &Dataset, device: Device, graphs: bool) -> Result<(Vec<f64>, Vec<f32>)> {
    let mut trainer = Trainer::new(&config.model, set, &Recipe::new(config, device))?;
    trainer.set_graphs(graphs);
    (0..3).try_for_each(|_| trainer.train_step())?;
    let losses = trainer.drain_metrics()?.iter().map(|metrics| metrics.loss).collect();
    let parameters: &Parameters = trainer.parameters();
    Ok((losses, parameters.download()?))
}

#[test]
fn running_statistics_move_in_replayed_steps_as_in_others() {
    let settings = ["model.image_size=8", "model.num_classes=2", "training.batch_size=2", "training.precision=f32"];
    let config = classifier(&settings);
    let set = noise(8, 3);
    let emulated = |graphs| steps(&config, &set, Device::Accelerator(emulator::device()), graphs).unwrap();
    let (captured, submitted) = (emulated(true), emulated(false));
    assert!(captured == submitted);
    let cpu = steps(&config, &set, Device::Cpu, true).unwrap();
    let error = |a: &f32, b: &f32| f64::from((a - b).abs());
    let largest = captured.1.iter().zip(&cpu.1).map(|(a, b)| error(a, b)).fold(0.0, f64::max);
    assert!(largest < 2e-3, "the emulator's weights and statistics differ by {largest:.1e} from the CPU's");
    assert!(captured.0.iter().zip(&cpu.0).all(|(a, b)| (a - b).abs() < 1e-3), "{:?} {:?}", captured.0, cpu.0);
    // The built-in set works too.
    let config = classifier(&[]);
    let mut trainer = Trainer::new(&config.model, &shapes(0, 80), &Recipe::new(&config, Device::Cpu)).unwrap();
    trainer.train_step().unwrap();
    assert!(trainer.validate().unwrap().unwrap().accuracy.is_some());
}
