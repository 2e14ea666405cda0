//! `engine plan` against the actual allocations of a run, and the commands that only print.

use std::process::{Command, Output};

use engine::config::Config;
use engine::data::{Split, shapes};
use engine::tensor::Device;
use engine::train::{DataSizes, Estimate, Recipe, Residency, Trainer};

fn engine(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine")).args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = engine(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fault(arguments: &[&str]) -> String {
    let output = engine(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "succeeded: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

/// The allocations of a run on the CPU: 2 steps and a validation.
fn allocated(config: &Config, images: usize) -> (usize, Estimate) {
    let set = shapes(0, images);
    let sizes = DataSizes { training: set.split_len(Split::Train), validation: set.split_len(Split::Validation) };
    let estimate = Estimate::with(config, sizes, Residency::InPlace).unwrap();
    let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(config, Device::Cpu)).unwrap();
    for _ in 0..2 {
        trainer.train_step().unwrap();
    }
    trainer.validate().unwrap();
    (trainer.context().persistent_bytes() + trainer.context().arena_bytes(), estimate)
}

#[test]
fn planned_memory_is_what_a_run_allocates() {
    let shapes = ["data.name=shapes", "model.image_channels=3", "model.image_size=32", "training.batch_size=2"];
    for (preset, changes) in [
        ("quickstart", &["model.depth=2", "model.conditioning=token", "training.batch_size=8"][..]),
        (
            "quickstart",
            &[
                "model.depth=2",
                "model.hidden_dim=64",
                "training.batch_size=4",
                "training.gradient_accumulation=3",
                "model.qk_norm=true",
            ],
        ),
        ("ddpm-cifar10", &shapes),
        ("unet-fashion-small", &shapes),
        ("unet-fashion", &[&shapes[..], &["model.channels=[32, 64]", "training.num_epochs=1"]].concat()),
    ] {
        let mut config = Config::preset(preset).unwrap();
        for change in [changes, &["training.validation_batches=1"]].concat() {
            config.set(change).unwrap();
        }
        for precision in ["f32", "tf32", "bf16"] {
            config.set(&format!("training.precision={precision}")).unwrap();
            let (allocated, estimate) = allocated(&config, 200);
            let planned = estimate.total_bytes();
            let off = 100.0 * (planned as f64 / allocated as f64 - 1.0).abs();
            let what = format!("{preset} {changes:?} {precision}");
            assert!(off < 5.0, "{what}: planned {planned}, allocated {allocated}: {off:.1} % off");
            let is_there =
                |(kind, bytes): &(&str, usize)| *bytes > 0 || (*kind == "bf16 copies" && precision != "bf16");
            assert!(estimate.memory.iter().all(is_there), "{what}: {:?}", estimate.memory);
        }
    }
}

#[test]
fn the_cifar_plan_is_printed() {
    let plan = text(&["plan", "--preset", "dit-cifar10", "--batch", "256", "--on", "h100"]);
    for part in [
        "19,108,048 parameters (19.1 M)",
        "batch 256",
        "NVIDIA H100",
        "weights",
        "gradients",
        "optimizer state",
        "moving average",
        "data set",
        "arena",
        "total",
        "FLOPs",
        "training step, 256 images",
        "sampling step",
        "roofline: ",
        "bound by ",
        "images/s",
    ] {
        assert!(plan.contains(part), "`{part}` is missing in\n{plan}");
    }
    let half =
        text(&["plan", "--preset", "dit-cifar10", "--on", "h200", "--precision", "bf16", "--set", "model.depth=6"]);
    assert!(half.contains("bf16 copies") && half.contains("batch 64"), "{half}");
    assert!(text(&["plan"]).contains("quickstart: dit"));
}

#[test]
fn the_plan_says_where_images_lie() {
    let plan = |on: &str, more: &[&str]| text(&[&["plan", "--preset", "dit-cifar10", "--on", on][..], more].concat());
    let line = |plan: String| {
        let line = plan.lines().find(|line| line.contains("data set")).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line(plan("l4", &[])), "data set 176 MiB 60,000 images");
    let streamed = line(plan("l4", &["--set", "data.device_memory=100"]));
    let start = "data set 192 KiB 60,000 images: a batch; 176 MiB stream from the mapped file through 38";
    assert!(streamed.starts_with(start) && streamed.ends_with(" KiB of pinned host memory"), "{streamed}");
    let in_place = "data set 234 KiB 60,000 images: their labels; 176 MiB are read in place, from the mapped file";
    assert_eq!(line(plan("cpu", &[])), in_place);
    let divided = line(plan("cpu", &["--set", "data.validation_fraction=0.1"]));
    assert!(divided.starts_with("data set 192 KiB 50,000 images: a batch; "), "{divided}");
    // A run that fits only without its images streams them: 1.5 million of them on the smallest device.
    let many = ["--set", "data.name=shapes", "--set", "data.shapes_count=9000000"];
    let plan = plan("l4", &many);
    assert!(plan.contains("stream from the mapped file") && !plan.contains("TOO MUCH"), "{plan}");
}

/// A run that evaluates holds the feature extractor meanwhile.
#[test]
fn the_plan_counts_the_network_of_evaluations() {
    let total = |text: &str, row: &str| -> String {
        let line =
            text.lines().find(|line| line.trim_start().starts_with(row)).unwrap_or_else(|| panic!("{row}: {text}"));
        line.trim_start()[row.len()..].trim().to_string()
    };
    let run = ["plan", "--on", "h100", "--set", "training.evaluate_every=100"];
    for name in ["inception", "efficientnet-lite0"] {
        let extractor = format!("training.evaluate_extractor={name}");
        let planned = text(&[&run[..], &["--set", &extractor]].concat());
        let alone = text(&["plan", "--extractor", name, "--on", "h100"]);
        assert_eq!(total(&planned, "evaluation network"), total(&alone, "total"));
    }
    assert!(!text(&["plan", "--on", "h100"]).contains("evaluation network"));
    let fault = fault(&[&run[..], &["--set", "training.evaluate_extractor=nowhere.pth"]].concat());
    assert!(fault.contains("training.evaluate_extractor: nowhere.pth is not there"), "{fault}");
}

#[test]
fn plans_that_cannot_be_made_are_told() {
    assert!(fault(&["plan", "--preset", "dit-cifr10"]).contains("did you mean dit-cifar10?"));
    assert!(fault(&["plan", "--on", "abacus"]).contains("use one of h100"));
    assert!(fault(&["plan", "--batch", "0"]).contains("--batch"));
    assert!(fault(&["plan", "--config", "missing.yaml"]).contains("missing.yaml"));
    assert!(fault(&["plan", "--set", "model.deep=3"]).contains("depth"));
}

#[test]
fn presets_are_listed_and_printed() {
    let list = text(&["presets"]);
    for name in ["quickstart", "dit-cifar10", "dit-fashion"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
        let yaml = text(&["presets", name]);
        assert_eq!(Config::from_yaml(&yaml, name).unwrap(), Config::preset(name).unwrap());
    }
    assert!(fault(&["presets", "quick"]).contains("quickstart"));
}

#[test]
fn the_doctor_tests_the_cpu_and_says_what_it_skipped() {
    let report = text(&["doctor", "--device", "cpu", "--op", "layer_norm"]);
    for part in ["vector instructions", "kernels", "cuda", "SKIPPED", "layer_norm", "pass"] {
        assert!(report.contains(part), "`{part}` is missing in\n{report}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["doctor", "--device", "cpu", "--op", "layer_norm"])
        .env("ENGINE_REQUIRE_GPU", "1")
        .output()
        .unwrap();
    assert!(!output.status.success(), "a GPU that is required and missing is a failure");
}

#[test]
fn a_step_is_measured_as_json() {
    let output = text(&[
        "bench-step",
        "--model",
        "quickstart",
        "--batch",
        "2",
        "--warmup",
        "1",
        "--repeat",
        "2",
        "--threads",
        "1",
    ]);
    let result: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    for key in ["images_per_second", "peak_mib", "ddim_step_ms", "step_ms", "parameters"] {
        assert!(result[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {result}");
    }
}
