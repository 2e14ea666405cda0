//! `engine classify`, and the library call: a model of three kinds of images classifies them.

use crate::tiny;
use std::process::{Command, Output};

use engine::config::Config;
use engine::data::{Dataset, Parts, Split};
use engine::eval::{Classification, Classifier, Confusion, ErrorSpec};
use engine::picture::{Image, write_png};
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, Trainer};

const CLASSES: [&str; 3] = ["red", "Green", "blue"];
const TRAINING: usize = 180;
const HELD_OUT: usize = 60;

/// Image `k` of 8x8 RGB, of class `k % 3`: a ramp from dark to light, mostly in the class's colour.
fn pixels(k: usize) -> Vec<u8> {
    let random = Philox::new(5).uniform4(0, k as u32, 0, Purpose::Probe);
    let value = |at: usize| {
        let (row, column, channel) = (at / 24, at / 3 % 8, at % 3);
        let place = random[3] * column as f32 / 7.0 + (1.0 - random[3]) * row as f32 / 7.0;
        let (dark, light) = (0.3 * random[0], 0.6 + 0.4 * random[1]);
        let colour = if channel == k % 3 { 1.0 } else { 0.3 + 0.4 * random[2] };
        (dark + (light - dark) * place) * 255.0 * colour
    };
    (0..192).map(|at| value(at) as u8).collect()
}

fn dataset() -> Dataset {
    let count = TRAINING + HELD_OUT;
    Dataset::from_parts(Parts {
        name: "ramps".into(),
        height: 8,
        width: 8,
        channels: 3,
        images: (0..count).flat_map(pixels).collect(),
        labels: (0..count).map(|k| (k % 3) as u16).collect(),
        class_names: CLASSES.map(String::from).to_vec(),
        train: TRAINING,
        ..Parts::default()
    })
    .unwrap()
}

const LESSON: [&str; 6] = [
    "training.num_steps=400",
    "training.learning_rate=3e-3",
    "training.batch_size=16",
    "training.ema_decay=0.98",
    "training.label_dropout=0.1",
    "data.flip=false",
];

/// A folder with `model.safetensors` and `ramps.safetensors`.
fn trained(settings: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny::config(&[&LESSON[..], &tiny::TOKEN, settings].concat());
    let whole = dataset();
    let set = whole.arranged(&config.data.classes, config.data.validation_fraction, config.data.split_seed).unwrap();
    let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(&config, Device::Cpu)).unwrap();
    for _ in 0..config.training.num_steps.unwrap() {
        trainer.train_step().unwrap();
        trainer.drain_metrics().unwrap();
    }
    trainer.save_model(&folder.path().join("model.safetensors"), set.class_names()).unwrap();
    whole.write(folder.path().join("ramps.safetensors"), false).unwrap();
    folder
}

fn load(folder: &tempfile::TempDir) -> Model {
    Model::load(folder.path().join("model.safetensors"), &Context::cpu(), DType::F32).unwrap()
}

fn classify(model: &Model, labels: &[usize], images: &[u8], spec: ErrorSpec) -> Vec<Classification> {
    let signed: Vec<f32> = images.iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    Classifier::new(model, labels, spec).unwrap().classify(&signed, |_, _| ()).unwrap()
}

#[test]
fn held_out_images_are_told_apart_whatever_the_model_predicts() {
    // v, ε and a flow's velocity: the errors are comparable.
    let flow = ["diffusion.schedule=flow", "diffusion.prediction=flow", "training.num_steps=800"];
    for settings in [&[][..], &["diffusion.prediction=epsilon"], &flow] {
        let folder = trained(settings);
        let model = load(&folder);
        let set = dataset();
        let images = set.split_images(Split::Validation);
        let found = classify(&model, &[0, 1, 2], images, ErrorSpec { levels: 6, batch: 64, ..ErrorSpec::default() });
        let mut confusion = Confusion::new(3);
        for (found, label) in found.iter().zip(set.split_labels(Split::Validation)) {
            confusion.add(usize::from(*label), found.prediction);
            assert!((found.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(found.errors.iter().all(|error| error.is_finite() && *error > 0.0));
            let most = found.probabilities.iter().copied().fold(0.0, f64::max);
            assert_eq!(found.probabilities[found.prediction], most);
        }
        let [low, high] = confusion.interval();
        assert!(low > 0.5 && high >= confusion.accuracy(), "{settings:?}: {:?}", confusion.counts());
    }
}

#[test]
fn a_result_is_the_images_own() {
    let folder = trained(&[]);
    let model = load(&folder);
    let images: Vec<u8> = (300..312).flat_map(pixels).collect();
    let spec = ErrorSpec { levels: 3, draws: 2, seed: 9, batch: 64 };
    let all = classify(&model, &[0, 1, 2], &images, spec);
    for batch in [1, 7, 36] {
        assert_eq!(classify(&model, &[0, 1, 2], &images, ErrorSpec { batch, ..spec }), all, "batch {batch}");
    }
    // Alone, and on one thread.
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let path = folder.path().join("model.safetensors");
    let last = alone.install(|| {
        let model = Model::load(&path, &Context::cpu(), DType::F32).unwrap();
        classify(&model, &[0, 1, 2], &images[11 * 192..], spec)
    });
    assert_eq!(last, all[11..]);
    // A class's error does not depend on the other classes.
    let pair = classify(&model, &[2, 0], &images, spec);
    assert!(pair.iter().zip(&all).all(|(pair, all)| pair.errors == [all.errors[2], all.errors[0]]));
    // Noise depends on the seed, and draws are averaged: at one level, (first + second) / 2.
    assert_ne!(classify(&model, &[0, 1, 2], &images, ErrorSpec { seed: 10, ..spec }), all);
    let one = |draws: usize| classify(&model, &[0, 1], &images, ErrorSpec { levels: 1, draws, seed: 9, batch: 5 });
    assert_ne!(one(1)[0].errors, one(2)[0].errors);
}

struct Commands(tempfile::TempDir);

impl Commands {
    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(self.0.path()).args(["classify", "--device", "cpu"]);
        command.args(arguments.split(' ')).output().unwrap()
    }

    fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.succeed(&format!("{arguments} --out -"))).unwrap()
    }
}

const MODEL: &str = "--model model.safetensors --data ramps.safetensors";

#[test]
fn the_command_line_measures_a_split() {
    let run = Commands(trained(&[]));
    let text = run.succeed(&format!("{MODEL} --levels 4 --out all.json"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("accuracy ") && lines[0].contains(" of 60), 95% interval "), "{text}");
    assert_eq!(lines[2], "is \\ taken for  red  Green  blue  accuracy");
    assert!(lines[3].starts_with("red             ") && lines[3].ends_with('%'), "{text}");
    assert!(text.contains("60 images of ramps (test) in ") && text.contains("3 classes x 4 levels x 1 draw, 720"));

    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.0.path().join("all.json")).unwrap()).unwrap();
    let accuracy = json["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.6 && json["interval"][0].as_f64().unwrap() < accuracy, "{json}");
    assert!((json["mean_class_accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-9, "equally many of each class");
    assert_eq!(json["classes"], serde_json::json!(CLASSES));
    let count = |truth: usize, found: usize| json["confusion"][truth][found].as_u64().unwrap();
    assert_eq!((0..3).map(|class| (0..3).map(|found| count(class, found)).sum()).collect::<Vec<u64>>(), [20, 20, 20]);
    let settings = &json["settings"];
    assert_eq!((settings["data"].as_str(), settings["split"].as_str()), (Some("ramps"), Some("test")));
    assert_eq!((settings["levels"].as_u64(), settings["draws"].as_u64()), (Some(4), Some(1)));
    assert_eq!((settings["seed"].as_u64(), settings["count"].as_u64()), (Some(0), Some(60)));
    assert_eq!(settings["times"].as_array().unwrap().len(), 4);
    let weights: Vec<f64> =
        settings["level_weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect();
    assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12 && weights.is_sorted(), "{weights:?}");
    let images = json["images"].as_array().unwrap();
    let right = images.iter().filter(|image| image["label"] == image["prediction"]).count();
    assert_eq!((images.len(), right as f64), (60, accuracy * 60.0));
    assert_eq!(images[4]["label"], "Green");
    let sum: f64 = images[4]["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9);

    // The same bits in every configuration.
    let file = |name: &str| std::fs::read(run.0.path().join(name)).unwrap();
    for (name, how) in [("b.json", "--batch 5 --threads 1"), ("c.json", "--batch 100 --threads 3 --quiet")] {
        assert_eq!(run.succeed(&format!("{MODEL} --levels 4 --out {name} {how}")).is_empty(), how.ends_with("quiet"));
        assert!(file(name) == file("all.json"), "{how}");
    }
    let taken = run.run(&format!("{MODEL} --levels 4 --out b.json"));
    let told = String::from_utf8_lossy(&taken.stderr);
    assert!(!taken.status.success() && told.contains("b.json: already exists") && told.contains("--force"), "{told}");
    // Fewer images and fewer classes.
    let json = run.json(&format!("{MODEL} --levels 2 --count 9 --split train --classes blue,GREEN"));
    assert_eq!(
        (&json["classes"], json["images"].as_array().unwrap().len()),
        (&serde_json::json!(["blue", "Green"]), 9)
    );
    assert!(json["images"].as_array().unwrap().iter().all(|image| image["label"] != "red"));
    assert_eq!(json["images"][0]["image"], "training 0");
}

#[test]
fn single_files_are_classified_as_images_of_a_set_are() {
    let run = Commands(trained(&[]));
    for k in [TRAINING, TRAINING + 1] {
        let image = Image::new(8, 8, 3, pixels(k)).unwrap();
        write_png(run.0.path().join(format!("{k}.png")), &image, &[]).unwrap();
    }
    let text = run.succeed("--model model.safetensors 181.png 180.png --levels 4");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("class  probability  next ") && lines[1].ends_with("%  181.png"), "{text}");
    assert!(!text.contains("accuracy") && lines[3].starts_with("2 images in "), "{text}");
    let files = run.json("--model model.safetensors 181.png 180.png --levels 4");
    let all = run.json(&format!("{MODEL} --levels 4"));
    for (k, place) in [(1, 0), (0, 1)] {
        for key in ["probabilities", "errors", "prediction"] {
            assert_eq!(files["images"][place][key], all["images"][k][key]);
        }
    }
    assert!(files["accuracy"].is_null() && files["images"][0]["label"].is_null(), "{files}");
}

#[test]
fn what_a_model_was_trained_on_is_what_it_is_measured_on() {
    let settings =
        ["data.classes=[green, red]", "model.num_classes=2", "data.validation_fraction=0.25", "data.split_seed=3"];
    let run = Commands(trained(&settings));
    for (split, name, count) in
        [("", "test", 40), ("--split validation", "validation", 30), ("--split train", "training", 90)]
    {
        let json = run.json(format!("{MODEL} --levels 3 {split}").trim());
        assert_eq!(json["classes"], serde_json::json!(["Green", "red"]));
        let images = json["images"].as_array().unwrap().len();
        assert_eq!((json["settings"]["split"].as_str(), images), (Some(name), count));
        assert!(json["interval"][0].as_f64().unwrap() > 0.5, "{split}: {}", json["confusion"]);
    }
}

#[test]
fn what_cannot_be_classified_is_told_in_one_line() {
    let run = Commands(trained(&[]));
    let path = |name: &str| run.0.path().join(name);
    let untrained = |settings: &[&str], name: &str| {
        let config = tiny::config(settings);
        Model::untrained(&config, &Context::cpu(), DType::F32, 0).unwrap().save(path(name)).unwrap();
    };
    untrained(&["model.num_classes=1"], "one.safetensors");
    untrained(&["model.null_label=false", "training.label_dropout=0", "sampling.guidance=1"], "bare.safetensors");
    let mut config = Config::preset("ddpm-cifar10").unwrap();
    for setting in ["model.image_size=8", "model.channels=[8]", "model.attention_sizes=[]", "model.norm_groups=4"] {
        config.set(setting).unwrap();
    }
    Model::untrained(&config, &Context::cpu(), DType::F32, 0).unwrap().save(path("none.safetensors")).unwrap();
    write_png(path("large.png"), &Image::filled(9, 8, [0; 3]), &[]).unwrap();
    let mut parts = Parts { height: 8, width: 8, channels: 3, train: 2, ..Parts::default() };
    (parts.name, parts.labels, parts.images) = ("unsplit".into(), vec![0, 1, 2], vec![0; 3 * 192]);
    (parts.class_names, parts.train) = (CLASSES.map(String::from).to_vec(), 3);
    Dataset::from_parts(parts.clone()).unwrap().write(path("unsplit.safetensors"), false).unwrap();
    (parts.name, parts.class_names) = ("foreign".into(), ["x", "y", "z"].map(String::from).to_vec());
    Dataset::from_parts(parts).unwrap().write(path("foreign.safetensors"), false).unwrap();

    for (arguments, told) in [
        ("--model none.safetensors --data ramps.safetensors", "--model: the model was trained without classes"),
        ("--model one.safetensors --data ramps.safetensors", "--classes: 1 class: there is nothing to classify"),
        (
            "--model model.safetensors --data builtin",
            "its images are 32x32x3, the model's 8x8x3; give another with --data",
        ),
        ("--model model.safetensors --data unsplit.safetensors", "it has no test images; give --split train"),
        ("--model model.safetensors --data foreign.safetensors", "--data: foreign has no class `red`; use one of x, y"),
        ("--model model.safetensors absent.png", "absent.png: cannot open"),
        ("--model absent.safetensors large.png", "there is no such model file"),
    ] {
        faulty(&run, arguments, told);
    }
    for (arguments, told) in [
        ("--classes blue", "--classes: 1 class"),
        ("--classes blue,gren", "--classes: the model has no class `gren`; did you mean Green?"),
        ("--classes blue,none", "--classes: label 3 of a model of 3 classes"),
        ("--classes blue,BLUE", "--classes: blue is given twice"),
        ("--count 0", "--count: 0 images"),
        ("--levels 0", "--levels: 0 noise levels"),
        ("--draws 0", "--draws: 0 draws of noise"),
        ("--batch 0", "--batch: 0 images in a batch"),
    ] {
        faulty(&run, &format!("{MODEL} {arguments}"), told);
    }
    let output = run.run(&format!("{MODEL} --split all"));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("invalid value 'all'") && text.contains("[possible values: test, validation, train]"),
        "{text}"
    );
    // A model without a null label can classify too.
    run.succeed("--model bare.safetensors --data ramps.safetensors --levels 1 --count 3");
}

fn faulty(run: &Commands, arguments: &str, told: &str) {
    let output = run.run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains(told), "{arguments}: {text}");
    assert!(
        !text.contains("panicked") && text.lines().filter(|line| line.starts_with("error: ")).count() == 1,
        "{text}"
    );
}
