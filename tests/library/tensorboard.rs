//! The event files of a run, read with TensorBoard's own reader (the Python package `tensorboard`): killed, resumed and finished,
//! a run shows each step once.
//!
//! The interpreter is that of the environment `ENGINE_TENSORBOARD`, else of `tensorboard` in the build folder (made by `.ci/run`),
//! else `python3`. Without the package the test is skipped, unless `ENGINE_REQUIRE_TENSORBOARD` is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::config::Config;

const TINY: &[&str] = &[
    "model.hidden_dim=16",
    "model.depth=1",
    "model.patch_size=8",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "data.shapes_count=60",
    "training.num_steps=4000",
    "training.lr_schedule=constant",
    "training.batch_size=4",
    "training.log_every=3",
    "training.validate_every=20",
    "training.validation_batches=1",
    "training.sample_every=10",
    "training.histograms_every=25",
    "training.checkpoint_every=15",
    "sampling.num_steps=1",
    "sampling.count_per_class=1",
];

/// A Python interpreter that has TensorBoard.
fn python() -> Option<PathBuf> {
    let build = Path::new(env!("CARGO_BIN_EXE_engine")).ancestors().nth(2).unwrap();
    let environment = std::env::var_os("ENGINE_TENSORBOARD").map_or(build.join("tensorboard"), PathBuf::from);
    let candidates = [environment.join("bin/python"), "python3".into()];
    let has = |python: &&PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", "import tensorboard"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = candidates.iter().find(has).cloned();
    if found.is_none() {
        let skipped = "SKIPPED: no Python with TensorBoard; make one with `python3 -m venv target/tensorboard && \
                       target/tensorboard/bin/pip install tensorboard`";
        assert!(std::env::var_os("ENGINE_REQUIRE_TENSORBOARD").is_none(), "{skipped}");
        eprintln!("{skipped}");
    }
    found
}

fn read(python: &Path, run: &Path) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/tensorboard-check");
    let output = Command::new(python).arg(script).arg(run).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Steps of a tag.
fn steps(found: &serde_json::Value, kind: &str, tag: &str) -> Vec<u64> {
    let values = found[kind][tag].as_array().unwrap_or_else(|| panic!("no {tag} among {}", found[kind]));
    values.iter().map(|value| value[0].as_u64().unwrap()).collect()
}

/// Step and value of the lines of `metrics.jsonl` that have `key`.
fn lines(run: &Path, key: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()?))).collect()
}

fn event_files(run: &Path) -> usize {
    let names = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("events.out.tfevents.")).count()
}

fn engine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.args(["train", "--quiet", "--device", "cpu"]).args(arguments).env("ENGINE_THREADS", "1");
    command
}

#[test]
fn tensorboard_shows_each_step_of_a_killed_and_resumed_run_once() {
    let Some(python) = python() else { return };
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("run");
    let name = run.to_str().unwrap();
    let settings: Vec<&str> = TINY.iter().flat_map(|setting| ["--set", setting]).chain(["--out", name]).collect();
    let mut child = engine(&settings).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count() < 20 {
        assert!(started.elapsed() < Duration::from_secs(120), "no 20 lines in two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Killed immediately, without a chance to clean up.
    child.kill().unwrap();
    child.wait().unwrap();
    let found = read(&python, &run);
    let logged = steps(&found, "scalars", "train/loss");
    assert!(logged.len() >= 15 && logged.windows(2).all(|pair| pair[1] == pair[0] + 3), "{logged:?}");

    // To a length that the killed run had not reached, twice: the second time nothing is left to do.
    let length = logged.last().unwrap() + 41;
    for _ in 0..2 {
        let output = engine(&["--resume", name, "--steps", &length.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = read(&python, &run);
        for (tag, key) in [
            ("train/loss", "loss"),
            ("train/learning_rate", "learning_rate"),
            ("train/gradient_norm", "gradient_norm"),
            ("train/images_per_second", "images_per_second"),
            ("validation/loss", "validation_loss"),
        ] {
            let values = found["scalars"][tag].as_array().unwrap();
            let values: Vec<_> = values.iter().map(|v| (v[0].as_u64().unwrap(), v[1].as_f64().unwrap())).collect();
            let wanted = lines(&run, key);
            assert_eq!(values.iter().map(|v| v.0).collect::<Vec<_>>(), wanted.iter().map(|v| v.0).collect::<Vec<_>>());
            // An event's value is an f32.
            let near = |(a, b): (&(u64, f64), &(u64, f64))| (a.1 - b.1).abs() <= 1e-6 * b.1.abs();
            assert!(values.iter().zip(&wanted).all(near), "{tag}: {values:?} and {wanted:?}");
        }
        let mut samples: Vec<u64> = (1..=length / 10).map(|tenth| 10 * tenth).filter(|step| *step < length).collect();
        samples.push(length);
        assert_eq!(steps(&found, "images", "samples"), samples);
        // Each sheet of samples has a denoising sheet of the first of them.
        assert_eq!(steps(&found, "images", "denoising"), samples);
        let (sheet, _) = engine::picture::read_png(run.join("samples/final.png")).unwrap();
        let last = &found["images"]["samples"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (last[1].as_u64().unwrap() as usize, last[2].as_u64().unwrap() as usize),
            (sheet.width(), sheet.height())
        );
        let config = Config::from_file(run.join("config.yaml")).unwrap();
        let (_, builder) = engine::models::build(&config.model).unwrap();
        let context = engine::tensor::Context::shape_only();
        let parameters = engine::nn::Parameters::new(&context, builder, engine::tensor::DType::F32).unwrap();
        assert_eq!(found["histograms"].as_object().unwrap().len(), parameters.specs().len());
        for spec in parameters.specs() {
            let tag = format!("weights/{}", spec.name);
            assert_eq!(steps(&found, "histograms", &tag), (1..=length / 25).map(|n| 25 * n).collect::<Vec<_>>());
            assert_eq!(found["histograms"][&tag][0][1].as_f64(), Some(spec.shape.len() as f64), "{tag}");
        }
        assert_eq!(event_files(&run), 2);
    }
}
