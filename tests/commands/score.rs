//! `engine score`, and the library call: a model trained on simple images finds the odd ones among others.

use crate::tiny;
use std::process::{Command, Output};

use engine::data::{Dataset, Parts, Split};
use engine::eval::{DenoisingErrors, ErrorSpec, Reference};
use engine::picture::{Image, write_png};
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, Trainer};

/// Number `k` of a kind of 8x8 RGB images: smooth ramps, or the same colours in disorder.
fn pixels(k: usize, odd: bool) -> Vec<u8> {
    let philox = Philox::new(21);
    let random = philox.uniform4(0, k as u32, 0, Purpose::Probe);
    let value = |at: usize| {
        let (row, column, channel) = (at / 24, at / 3 % 8, at % 3);
        let (left, right) = (0.4 * random[0], 0.6 + 0.4 * random[1]);
        let ramp = left + (right - left) * column as f32 / 7.0 + 0.2 * random[2] * row as f32 / 7.0;
        ramp * (255.0 - 20.0 * channel as f32) / 1.2
    };
    let place = |at: usize| if odd { (at * 89 + 31 * k) % 192 } else { at };
    (0..192).map(|at| value(place(at)) as u8).collect()
}

fn dataset() -> Dataset {
    let (training, validation) = (160, 40);
    let count = training + validation;
    Dataset::from_parts(Parts {
        name: "ramps".into(),
        height: 8,
        width: 8,
        channels: 3,
        images: (0..count).flat_map(|k| pixels(k, false)).collect(),
        labels: (0..count).map(|k| (k % 3) as u16).collect(),
        class_names: ["a", "b", "c"].map(String::from).to_vec(),
        train: training,
        ..Parts::default()
    })
    .unwrap()
}

fn trained() -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny::config(&[
        "training.num_steps=400",
        "training.learning_rate=3e-3",
        "training.batch_size=16",
        "training.ema_decay=0.98",
    ]);
    let set = dataset();
    let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(&config, Device::Cpu)).unwrap();
    for _ in 0..400 {
        trainer.train_step().unwrap();
        trainer.drain_metrics().unwrap();
    }
    trainer.save_model(&folder.path().join("model.safetensors"), set.class_names()).unwrap();
    set.write(folder.path().join("ramps.safetensors"), false).unwrap();
    (folder, set)
}

fn signed(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect()
}

#[test]
fn strange_images_score_higher_than_held_out_ones() {
    let (folder, set) = trained();
    let model = Model::load(folder.path().join("model.safetensors"), &Context::cpu(), DType::F32).unwrap();
    let null = model.default_label().unwrap();
    let mut errors = DenoisingErrors::new(&model, ErrorSpec { batch: 16, ..ErrorSpec::default() }).unwrap();
    let mut measure = |images: &[f32]| errors.measure(images, &vec![null; images.len() / 192], |_, _| ()).unwrap();
    let normal = measure(&signed(set.split_images(Split::Train)));
    let held_out = measure(&signed(set.split_images(Split::Validation)));
    let odd: Vec<f32> = (1000..1040).flat_map(|k| signed(&pixels(k, true))).collect();
    let strange = measure(&odd);
    let reference = Reference::new(&normal).unwrap();
    let scores = |errors: &[Vec<f64>]| -> Vec<f64> { errors.iter().map(|e| reference.score(e).score).collect() };
    let (held_out, strange) = (scores(&held_out), scores(&strange));
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
    assert!(mean(&scores(&normal)).abs() < 1e-9, "the reference scores 0 by itself");
    assert!(mean(&held_out).abs() < 1.0, "{held_out:?}");
    // The share of pairs in which the unusual image scores higher.
    let pairs = held_out.iter().flat_map(|a| strange.iter().map(move |b| f64::from(u8::from(b > a))));
    let share = pairs.sum::<f64>() / (held_out.len() * strange.len()) as f64;
    assert!(share > 0.95 && mean(&strange) > 2.0, "{share}: {held_out:?} and {strange:?}");
    assert!(reference.score(&normal[0]).percentile < 1.0);

    // An image's errors do not depend on the other images.
    let all = measure(&odd);
    let mut small = DenoisingErrors::new(&model, ErrorSpec { batch: 3, ..ErrorSpec::default() }).unwrap();
    let mut calls = (0, 0);
    let few = small.measure(&odd[5 * 192..10 * 192], &[null; 5], |done, total| calls = (done, total)).unwrap();
    assert!(few[..] == all[5..10]);
    assert_eq!((calls, small.times().len()), ((14, 14), 8));
    assert!(small.measure(&odd[..100], &[null], |_, _| ()).unwrap_err().to_string().contains("100 values"));
    assert!(Reference::new(&normal[..1]).is_err());
    for spec in [ErrorSpec { levels: 0, ..ErrorSpec::default() }, ErrorSpec { batch: 0, ..ErrorSpec::default() }] {
        assert!(DenoisingErrors::new(&model, spec).is_err());
    }
}

#[test]
fn the_command_line_scores_pictures_and_data_sets() {
    let (folder, set) = trained();
    let path = |name: &str| folder.path().join(name);
    for (name, k, odd) in [("fine.png", 170, false), ("odd.png", 1000, true)] {
        write_png(path(name), &Image::new(8, 8, 3, pixels(k, odd)).unwrap(), &[]).unwrap();
    }
    write_png(path("large.png"), &Image::filled(9, 8, [0; 3]), &[]).unwrap();
    let score = |arguments: &str| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(folder.path()).args(["score", "--model", "model.safetensors", "--device", "cpu"]);
        command.args(arguments.split(' ')).output().unwrap()
    };
    let succeed = |arguments: &str| -> String {
        let output = score(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };

    let table = succeed("fine.png odd.png --reference ramps.safetensors --json scores.json");
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].ends_with("odd.png") && lines[1].contains("100.0%"), "the strangest first: {table}");
    assert!(lines[2].ends_with("fine.png") && lines[3].contains("160 training images of ramps"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path("scores.json")).unwrap()).unwrap();
    let of = |k: usize, key: &str| json["images"][k][key].as_f64().unwrap();
    assert!(of(1, "score") > of(0, "score") + 2.0 && of(1, "percentile") == 1.0, "{json}");
    assert_eq!((json["times"].as_array().unwrap().len(), json["reference"].as_str()), (8, Some("ramps")));
    assert_eq!(json["images"][0]["errors"].as_array().unwrap().len(), 8);

    let printed = succeed(
        "--data ramps.safetensors --reference ramps.safetensors --count 12 --levels 3 --class b --quiet --json -",
    );
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let images = json["images"].as_array().unwrap();
    assert_eq!((images.len(), json["reference_images"].as_u64()), (12, Some(53)));
    assert!(images.iter().all(|image| image["image"].as_str().unwrap().ends_with("(b)")), "{json}");
    assert_eq!(set.labels().iter().filter(|label| **label == 1).count(), 67);

    // A folder, of pictures of another size.
    std::fs::create_dir(path("more")).unwrap();
    std::fs::copy(path("large.png"), path("more/large.png")).unwrap();
    let output = score("more --reference ramps.safetensors");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("large.png: resized from 8x9 (height x width) to 8x8"), "{text}");

    for (arguments, told) in [
        ("absent.png --reference ramps.safetensors", "absent.png: cannot open"),
        ("fine.png --reference absent.safetensors", "absent.safetensors: cannot open"),
        ("fine.png --reference builtin", "its images are 32x32x3, the model's 8x8x3"),
        ("fine.png --reference ramps.safetensors --class z", "--class: the model has no class `z`"),
        ("fine.png --reference ramps.safetensors --levels 0", "--levels: 0 noise levels"),
        ("fine.png --reference ramps.safetensors --reference-count 1", "--reference-count: 1 image to compare with"),
        ("fine.png --reference ramps.safetensors --batch 0", "--batch: 0 images"),
        ("fine.png --reference ramps.safetensors --json scores.json", "scores.json: already exists; give another file"),
    ] {
        let output = score(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(told), "{arguments}: {text}");
        assert!(!text.contains("panicked") && text.lines().filter(|line| line.starts_with("error: ")).count() == 1);
    }
}
