//! A metric of samples in training: it equals that of `engine eval`, selects the best model, ends a run, and is logged identically
//! in an interrupted run.

use std::path::Path;
use std::process::Command;

use engine::config::Config;
use engine::model_file::ClassifierModel;
use engine::tensor::{Context, DType};
use engine::train::{TrainRequest, train};
use serde_json::Value;

use crate::train::{assert_same, finish, request, resume, stop_after};

/// An untrained classifier of 32x32 pictures.
fn classifier(path: &Path) {
    let mut config = Config::preset("resnet18-cifar10").unwrap();
    for set in ["model.blocks=[1, 1]", "model.widths=[8, 16]", "data.name=shapes"] {
        config.set(set).unwrap();
    }
    ClassifierModel::untrained(&config, &Context::cpu(), DType::F32, 2).unwrap().save(path).unwrap();
}

/// A run that evaluates, with its cache in the test's own folder.
fn evaluating(folder: &Path, out: &str, more: &[&str]) -> TrainRequest {
    let extractor = format!("training.evaluate_extractor={}", folder.join("classifier.safetensors").display());
    let mut settings = vec![
        extractor.as_str(),
        "training.evaluate_samples=20",
        "training.evaluate_every=4",
        "training.best_by=metric",
    ];
    settings.extend(more);
    TrainRequest { data_dir: folder.join("data"), ..request(&folder.join(out), &settings) }
}

/// Step, metric and value of each evaluation in a run's log.
fn evaluations(run: &Path) -> Vec<(u64, String, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["metric"].is_string())
        .map(|line| {
            let name = line["metric"].as_str().unwrap().to_string();
            (line["step"].as_u64().unwrap(), name, line["value"].as_f64().unwrap())
        })
        .collect()
}

#[test]
fn it_is_that_of_eval_and_makes_the_best_model() {
    let folder = tempfile::tempdir().unwrap();
    classifier(&folder.path().join("classifier.safetensors"));
    finish(evaluating(folder.path(), "run", &[]));
    let run = folder.path().join("run");
    let found = evaluations(&run);
    assert_eq!(found.iter().map(|line| line.0).collect::<Vec<u64>>(), [4, 8, 12]);
    assert!(found.iter().all(|line| line.1 == "FD-resnet-shapes"), "{found:?}");
    // The last model, and the best one, by the command.
    let best = found.iter().min_by(|a, b| a.2.total_cmp(&b.2)).unwrap();
    for (model, step, value) in [("model", 12, found[2].2), ("best", best.0, best.2)] {
        let output = Command::new(env!("CARGO_BIN_EXE_engine"))
            .current_dir(folder.path())
            .args([
                "eval",
                "--device",
                "cpu",
                // The run's own: without it the device's best.
                "--precision",
                "f32",
                "--extractor",
                "classifier.safetensors",
                "--metrics",
                "fid",
                "--draws",
                "0",
            ])
            .args(["--num-samples", "20", "--model", &format!("run/{model}.safetensors"), "--out", model])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json = std::fs::read(folder.path().join(model).join("evaluation_results.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((json["fd_score"].as_f64(), json["step"].as_u64()), (Some(value), Some(step)), "{model}");
    }
}

#[test]
fn interrupted_and_resumed_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    classifier(&folder.path().join("classifier.safetensors"));
    let [whole, cut] = ["whole", "cut"].map(|name| folder.path().join(name));
    finish(evaluating(folder.path(), "whole", &[]));
    stop_after(evaluating(folder.path(), "cut", &[]), 5);
    let goes_on = || TrainRequest { data_dir: folder.path().join("data"), ..resume(&cut) };
    // Interrupted during an evaluation, which is then repeated.
    stop_after(goes_on(), 8);
    finish(goes_on());
    assert_same(&whole, &cut);
    assert_eq!(evaluations(&whole), evaluations(&cut));
}

#[test]
fn a_run_that_gets_no_better_ends() {
    let folder = tempfile::tempdir().unwrap();
    classifier(&folder.path().join("classifier.safetensors"));
    let settings = [
        "training.lr_schedule=constant",
        "training.min_learning_rate=0",
        "training.learning_rate=1e-30",
        "training.evaluate_every=2",
        "training.patience=2",
    ];
    let summary = finish(evaluating(folder.path(), "run", &settings));
    assert_eq!(summary.steps, 6);
    assert!(summary.samples.is_file() && summary.model.is_file());
    let run = folder.path().join("run");
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(text.lines().any(|line| line.contains("\"step\":6") && line.contains("\"loss\"")), "{text}");
    // Resuming ends it again.
    let again = finish(TrainRequest { data_dir: folder.path().join("data"), ..resume(&run) });
    assert_eq!((again.steps, std::fs::read_to_string(run.join("metrics.jsonl")).unwrap()), (6, text));
}

#[test]
fn a_network_that_is_not_there_is_told_before_the_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (extractor, part) in [("inception", "engine fetch inception"), ("nowhere.pth", "nowhere.pth is not there")] {
        let extractor = format!("training.evaluate_extractor={extractor}");
        let request = request(&out, &["training.evaluate_every=4", &extractor]);
        let message = train(request, &mut |_| ()).unwrap_err().to_string();
        assert!(message.starts_with("training.evaluate_extractor: ") && message.contains(part), "{message}");
        assert!(!out.exists());
    }
}
