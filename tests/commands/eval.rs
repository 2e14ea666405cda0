//! `engine eval`: pictures and models against data sets, statistics in and out, interruption, invalid input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use engine::config::Config;
use engine::eval::Statistics;
use engine::model_file::ClassifierModel;
use engine::picture::{Image, write_png};
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType};
use serde_json::Value;

use crate::tiny;

/// A folder with a data set, a model and a classifier of 8x8 pictures, both untrained.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        tiny::dataset().write(at("noise.safetensors"), false).unwrap();
        let config = tiny::config(&["sampling.num_steps=3", "sampling.sampler=ddim"]);
        let mut model = Model::untrained(&config, &Context::cpu(), DType::F32, 1).unwrap();
        model.info.classes = tiny::dataset().class_names().to_vec();
        model.save(at("model.safetensors")).unwrap();
        classifier(at("classifier.safetensors"), 8);
        for (name, first, count) in [("a", 0, 40), ("b", 100, 40), ("few", 0, 1), ("two", 0, 2)] {
            std::fs::create_dir(at(name)).unwrap();
            (0..count).for_each(|k| write_png(at(name).join(format!("{k:03}.png")), &picture(first + k), &[]).unwrap());
        }
        Self { folder }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(self.folder.path()).args(["eval", "--device", "cpu"]).args(arguments.split(' '));
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn succeed(&self, arguments: &str) -> (String, String) {
        let output = self.run(arguments);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{arguments}: {err}");
        (out, err)
    }

    pub fn refused(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn json(&self, out: &str) -> Value {
        let bytes = std::fs::read(self.at(out).join("evaluation_results.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }
}

/// Writes an untrained classifier of the data set's classes, for square pictures.
fn classifier(path: PathBuf, size: usize) {
    let mut config = Config::preset("resnet18-cifar10").unwrap();
    for set in ["model.blocks=[1, 1]", "model.widths=[8, 16]", "model.num_classes=3", "data.name=noise"] {
        config.set(set).unwrap();
    }
    config.set(&format!("model.image_size={size}")).unwrap();
    let mut classifier = ClassifierModel::untrained(&config, &Context::cpu(), DType::F32, 2).unwrap();
    classifier.info.classes = tiny::dataset().class_names().to_vec();
    classifier.save(path).unwrap();
}

fn picture(k: u32) -> Image {
    let philox = Philox::new(5);
    let pixels = (0..192).map(|at| philox.bits4(at, k, 0, Purpose::Probe)[0] as u8).collect();
    Image::new(8, 8, 3, pixels).unwrap()
}

#[test]
fn a_model_is_measured_and_says_what_by() {
    let place = Place::new();
    let call = "--checkpoint model.safetensors --data noise.safetensors --extractor classifier.safetensors --num-samples 40 --draws 4";
    let (out, err) = place.succeed(call);
    // Never FID with another network.
    assert!(out.contains("FD-resnet-noise") && !out.contains("FID"), "{out}");
    assert!(
        out.contains("real held-out")
            || err.contains("held-out")
            || place.json("outputs")["metrics"][0]["floor"].is_null()
    );
    assert!(err.contains("40 samples are few"), "{err}");
    let json = place.json("outputs");
    assert_eq!((json["num_samples"].as_u64(), json["checkpoint"].as_str()), (Some(40), Some("model.safetensors")));
    for key in ["fd_score", "kd_mean", "score_mean", "score_std", "precision", "recall", "density", "coverage"] {
        assert!(json[key].is_f64(), "{key}: {json}");
    }
    for key in ["fid_score", "kid_mean", "inception_score_mean", "inception_score_std"] {
        assert!(json[key].is_null(), "{key}: {json}");
    }
    assert!(
        out.contains("seed 0, ddim, 3 steps, guidance") && out.contains("reference: ") && out.contains("std "),
        "{out}"
    );
    let accuracy =
        json["metrics"].as_array().unwrap().iter().find(|metric| metric["name"] == "class accuracy").unwrap();
    assert_eq!(accuracy["more"]["classes"], serde_json::json!(tiny::dataset().class_names()));
    assert_eq!(json["class_accuracy"].as_f64().map(|share| (0.0..=1.0).contains(&share)), Some(true));
    assert_eq!(json["extractor"]["network"].as_str(), Some("resnet-noise"));
    assert_eq!(json["sampling"]["num_steps"].as_u64(), Some(3));
    assert!(
        json["reference"]["sha256"].as_str().unwrap().len() == 64 && json["model_sha256"].as_str().unwrap().len() == 64
    );
    for picture in ["real_vs_fake.png", "nearest.png"] {
        assert!(place.at("outputs").join(picture).is_file(), "{picture}");
    }
    // Again: from the cache, to the last digit.
    place.succeed(&format!("{call} --out again --batch 7 --feature-batch 5"));
    let mut again = place.json("again");
    assert_eq!(again["fd_score"], json["fd_score"]);
    again["name"] = json["name"].clone();
    assert_eq!(again, json);
    // A table over steps and guidance.
    let (out, _) = place.succeed(
        "--model model.safetensors --data noise.safetensors --extractor classifier.safetensors --num-samples 20 --steps 1,2 \
         --guidance 1,2 --metrics fid --draws 0 --out table",
    );
    assert_eq!(out.lines().filter(|line| line.starts_with("| model.safetensors, ")).count(), 4, "{out}");
    let json = place.json("table");
    let of = |key: &str| {
        json["models"].as_array().unwrap().iter().map(|model| model[key].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    // Guidance takes two evaluations a step.
    assert_eq!(of("evaluations_per_image"), [1.0, 2.0, 2.0, 4.0]);
    assert!(of("seconds_per_image").iter().all(|&seconds| seconds > 0.0));
    assert!(out.contains("| evaluations | FD-resnet-noise | s/image |"), "{out}");
    assert!(place.at("table/ablation.md").is_file() && place.at("table/ablation.png").is_file());
}

#[test]
fn seeds_come_together_and_checkpoints_make_a_table() {
    let place = Place::new();
    let by = "--data noise.safetensors --extractor classifier.safetensors --num-samples 20 --metrics fid --draws 0";
    let (out, _) = place.succeed(&format!("--model model.safetensors --seeds 0,1,2 {by}"));
    assert!(out.contains("| model.safetensors, 3 seeds |"), "{out}");
    let json = place.json("outputs");
    let values: Vec<f64> =
        json["models"].as_array().unwrap().iter().map(|model| model["fd_score"].as_f64().unwrap()).collect();
    let mean = json["over_seeds"][0]["metrics"][0]["value"].as_f64().unwrap();
    assert!((mean - values.iter().sum::<f64>() / 3.0).abs() < 1e-12 * mean && values[0] != values[1], "{json}");
    assert!(json["over_seeds"][0]["metrics"][0]["standard_error"].as_f64().unwrap() > 0.0);
    assert!(place.at("outputs/real_vs_fake.png").is_file() && place.at("outputs/real_vs_fake-3.png").is_file());
    // All checkpoints of a run.
    std::fs::create_dir_all(place.at("run/checkpoints")).unwrap();
    for step in [5, 20, 100] {
        let to = place.at(&format!("run/checkpoints/step-{step}.safetensors"));
        std::fs::copy(place.at("model.safetensors"), to).unwrap();
    }
    let (out, _) = place.succeed(&format!("--checkpoints run --out ablation {by}"));
    let steps = ["step-5.", "step-20.", "step-100."].map(|step| out.rfind(step).unwrap());
    assert!(steps.is_sorted(), "{out}");
    assert!(place.refused(&format!("--checkpoints nowhere {by}")).contains("nowhere"));
}

/// An evaluation that is killed and restarted gives the same digits as an uninterrupted one.
#[test]
fn killed_and_restarted_it_ends_with_the_same_digits() {
    let place = Place::new();
    let call = |out: &str| {
        format!(
            "--model model.safetensors --data noise.safetensors --extractor classifier.safetensors --num-samples 400 \
             --batch 4 --feature-batch 4 --metrics fid,kid,is --draws 4 --cache {out}-cache --out {out}"
        )
    };
    place.succeed(&call("whole"));
    for kind in ["samples", "features"] {
        let mut child = place.command(&call("killed")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        // A few rows after the header of 8 KiB, for the evaluated pictures.
        let under_way = || {
            let files = std::fs::read_dir(place.at("killed-cache")).into_iter().flatten().flatten();
            let mut long = files.filter(|file| {
                let name = file.file_name();
                let row = if kind == "samples" { 192 } else { 64 };
                let enough = if kind == "samples" { 20 } else { 60 };
                Path::new(&name).extension().is_some_and(|ending| ending == kind)
                    && file.metadata().is_ok_and(|data| data.len() > 8192 + enough * row)
            });
            long.next().is_some()
        };
        while !under_way() && child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.succeed(&call("killed"));
    assert_eq!(place.json("killed")["metrics"], place.json("whole")["metrics"]);
}

/// The digits do not depend on the number of processes, nor on which of them was killed.
#[test]
fn by_several_processes_it_ends_with_the_digits_of_one() {
    let place = Place::new();
    let call = |out: &str, more: &str| {
        format!(
            "--model model.safetensors --data noise.safetensors --extractor classifier.safetensors --classifier \
             classifier.safetensors --num-samples 61 --batch 4 --feature-batch 4 --steps 2,3 --draws 4 --threads 1 \
             --cache {out}-cache --out {out}{more}"
        )
    };
    place.succeed(&call("one", ""));
    let (_, err) = place.succeed(&call("two", " --processes 2"));
    assert!(err.contains("2 processes, by TCP"), "{err}");
    place.succeed(&call("three", " --processes 3"));
    // Rank 0 is killed while samples are drawn; another number of processes resumes.
    let mut child =
        place.command(&call("killed", " --processes 2")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let drawn = || {
        let files = std::fs::read_dir(place.at("killed-cache")).into_iter().flatten().flatten();
        let mut samples =
            files.filter(|file| Path::new(&file.file_name()).extension().is_some_and(|end| end == "samples"));
        samples.any(|file| file.metadata().is_ok_and(|data| data.len() >= 8192 + 8 * 192))
    };
    while !drawn() && child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    place.succeed(&call("killed", " --processes 3"));
    for out in ["two", "three", "killed"] {
        // All but the time that drawing took, which is the last column.
        let json = |out: &str| {
            let mut json = place.json(out);
            for model in json["models"].as_array_mut().unwrap() {
                assert!(model.as_object_mut().unwrap().remove("seconds_per_image").unwrap().as_f64().unwrap() > 0.0);
            }
            json
        };
        assert!(json(out) == json("one"), "{out}");
        let table = |out: &str| {
            let text = std::fs::read_to_string(place.at(out).join("ablation.md")).unwrap();
            let columns = |line: &str| line.rsplitn(3, '|').nth(2).map(String::from).unwrap_or_else(|| line.into());
            text.lines().map(columns).collect::<Vec<String>>()
        };
        assert_eq!(table(out), table("one"), "{out}");
    }
}

#[test]
fn pictures_are_compared_and_statistics_go_in_and_out() {
    let place = Place::new();
    let call = "--samples a --extractor classifier.safetensors --draws 0 --metrics";
    place.succeed(&format!("{call} fid --reference b --write-statistics b.npz"));
    let direct = place.json("outputs")["fd_score"].as_f64().unwrap();
    let statistics = Statistics::read(place.at("b.npz")).unwrap();
    assert_eq!((statistics.mean.len(), statistics.count), (16, Some(40)));
    place.succeed(&format!("{call} fid --reference b.npz --out by-statistics"));
    let by_statistics = place.json("by-statistics")["fd_score"].as_f64().unwrap();
    assert!((direct / by_statistics - 1.0).abs() < 1e-6, "{direct} {by_statistics}");
    let message = place.refused(&format!("{call} kid --reference b.npz --out no"));
    assert!(message.contains("more than mean and covariance") && !message.contains("features by"), "{message}");
    // A set against itself.
    place.succeed(&format!("{call} fid,precision-recall,authenticity --reference a --out same"));
    let json = place.json("same");
    assert!(json["fd_score"].as_f64().unwrap() < 1e-9, "{json}");
    assert_eq!(
        (json["precision"].as_f64(), json["recall"].as_f64(), json["auth_pct"].as_f64()),
        (Some(1.0), Some(1.0), Some(0.0))
    );
    // Nested by class: all are used, with a note.
    std::fs::create_dir(place.at("nested")).unwrap();
    std::fs::rename(place.at("b"), place.at("nested/b")).unwrap();
    let (_, err) = place.succeed(&format!("{call} fid --reference nested --out nested-out"));
    assert!(err.contains("40 of 40 pictures of nested are in subfolders"), "{err}");
    assert!((place.json("nested-out")["fd_score"].as_f64().unwrap() / direct - 1.0).abs() < 1e-9);
}

#[test]
fn wrong_input_is_one_clear_error() {
    let place = Place::new();
    std::fs::create_dir(place.at("empty")).unwrap();
    std::fs::create_dir(place.at("mixed")).unwrap();
    write_png(place.at("mixed/a.png"), &picture(0), &[]).unwrap();
    write_png(place.at("mixed/b.png"), &Image::filled(9, 9, [1; 3]), &[]).unwrap();
    let wide =
        Statistics { mean: vec![0.0; 3], covariance: vec![0.0; 9], rule: None, network: None, count: None, data: None };
    wide.write(place.at("wide.npz")).unwrap();
    let bytes = std::fs::read(place.at("wide.npz")).unwrap();
    std::fs::write(place.at("cut.npz"), &bytes[..bytes.len() / 2]).unwrap();
    let by = "--extractor classifier.safetensors --draws 0 --metrics";
    for (arguments, part) in [
        (format!("--samples empty --reference b {by} fid"), "empty: has no pictures"),
        (format!("--samples few --reference b {by} fid"), "1 image has no covariance"),
        (format!("--samples two --reference b {by} precision-recall"), "2 and 40 images"),
        (format!("--samples two --reference b {by} is"), "2 images for 10 splits"),
        (format!("--samples mixed --reference b {by} fid"), "a picture of 9x9 for a classifier of 8x8"),
        (format!("--samples a --reference wide.npz {by} fid"), "statistics of 3 features"),
        (format!("--samples a --reference cut.npz {by} fid"), "cut.npz"),
        (
            format!("--samples a --reference b {by} accuracy"),
            "class accuracy needs a classifier of the samples' classes",
        ),
        (format!("--samples a {by} fid"), "a distance needs a reference"),
        (format!("--reference b {by} fid"), "nothing to evaluate"),
        ("--samples a --reference b --inception model.safetensors".into(), "not InceptionV3 of 2015"),
        ("--samples a --reference b".into(), "engine fetch inception"),
        ("--samples a --reference b --extractor model.safetensors".into(), "classif"),
    ] {
        let message = place.refused(&arguments);
        assert!(message.contains(part), "{arguments}: {message}");
        assert_eq!(message.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{message}");
    }
    // Before anything is drawn.
    classifier(place.at("larger.safetensors"), 16);
    let call = "--checkpoint model.safetensors --data noise.safetensors --num-samples 4";
    for (networks, named) in [
        ("--extractor classifier.safetensors --classifier larger.safetensors", "--classifier"),
        ("--extractor larger.safetensors", "--extractor"),
    ] {
        let message = place.refused(&format!("{call} {networks}"));
        assert!(message.contains("a picture of 8x8 for a classifier of 16x16"), "{message}");
        assert!(message.contains(named) && !message.contains("features by"), "{message}");
    }
    // Two pictures have a covariance, of rank 1.
    place.succeed(&format!("--samples two --reference b {by} fid"));
}
