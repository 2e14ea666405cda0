//! Whole runs of a tiny model: their files, the same bits after any interruption, and one-line errors without side effects for
//! every bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::Error;
use engine::config::Config;
use engine::device::DeviceChoice;
use engine::models::ModelConfig;
use engine::models::unet::UnetConfig;
use engine::pipeline::Model;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType};
use engine::train::{Event, RunFolder, Summary, TrainRequest, list_checkpoints, train};
use safetensors::SafeTensors;

/// Some ten thousand parameters on the built-in shapes; a step takes about a millisecond.
const TINY: &[&str] = &[
    "training.precision=f32",
    "model.hidden_dim=16",
    "model.depth=1",
    "model.patch_size=8",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.mlp_ratio=2",
    "model.time_embedding_dim=8",
    "model.condition_hidden_dim=16",
    "model.class_embedding_dim=8",
    "data.shapes_count=60",
    "data.flip=true",
    "data.crop=4",
    "training.num_steps=12",
    "training.batch_size=4",
    "training.warmup_steps=3",
    "training.log_every=3",
    "training.validate_every=5",
    "training.validation_batches=1",
    "training.sample_every=never",
    "training.checkpoint_every=2",
    "training.label_dropout=0.3",
    "sampling.num_steps=2",
    "sampling.count_per_class=1",
];

pub fn tiny(more: &[&str]) -> Config {
    let mut config = Config::preset("quickstart").unwrap();
    for assignment in TINY.iter().chain(more) {
        config.set(assignment).unwrap();
    }
    config
}

pub fn request(out: &Path, more: &[&str]) -> TrainRequest {
    let mut request = TrainRequest::new("tiny", tiny(more));
    (request.out, request.device) = (Some(out.to_path_buf()), DeviceChoice::Cpu);
    request
}

pub fn resume(out: &Path) -> TrainRequest {
    TrainRequest { device: DeviceChoice::Cpu, ..TrainRequest::resume(out) }
}

pub fn finish(request: TrainRequest) -> Summary {
    train(request, &mut |_| ()).unwrap()
}

/// Runs until `step` is done and then requests a stop.
pub fn stop_after(request: TrainRequest, step: u64) {
    let stop = request.stop.clone();
    let outcome = train(request, &mut |event| {
        if matches!(event, Event::Step { step: done, .. } if *done == step) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    match outcome {
        Err(Error::Interrupted { message }) => {
            assert!(
                message.contains(&format!("step {step} is saved")) && message.contains("train(resume = "),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Every tensor of a file with its bits; metadata may differ in times.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

/// Models, best model, last checkpoint: the same bits.
pub fn assert_same(a: &Path, b: &Path) {
    let last = |root: &Path| list_checkpoints(&root.join("checkpoints")).unwrap()[0].clone();
    let ((step_a, checkpoint_a), (step_b, checkpoint_b)) = (last(a), last(b));
    assert_eq!(step_a, step_b);
    assert!(tensors(&checkpoint_a) == tensors(&checkpoint_b), "checkpoints differ: {} {}", a.display(), b.display());
    for name in ["model.safetensors", "best.safetensors"] {
        assert!(tensors(&a.join(name)) == tensors(&b.join(name)), "{name} differs: {} {}", a.display(), b.display());
    }
    for name in ["final.png", "timesteps.png"] {
        let read = |root: &Path| fs::read(root.join("samples").join(name)).unwrap();
        assert!(read(a) == read(b), "{name} differs: {} {}", a.display(), b.display());
    }
    assert_eq!(losses(a), losses(b));
}

/// The log without its times.
fn losses(root: &Path) -> Vec<[f64; 6]> {
    let text = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let number = |value: &serde_json::Value, key: &str| value.get(key).map_or(-1.0, |value| value.as_f64().unwrap());
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .map(|line: serde_json::Value| {
            ["step", "epoch", "loss", "gradient_norm", "validation_loss", "value"].map(|key| number(&line, key))
        })
        .collect()
}

fn parts(root: &Path) -> Vec<PathBuf> {
    let folders = [root.to_path_buf(), root.join("checkpoints"), root.join("samples"), root.join("plots")];
    let all = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().ends_with(".part")).collect()
}

/// `engine train` with the tiny configuration and `more` arguments.
pub fn engine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.arg("train").args(arguments).args(["--device", "cpu"]).env("ENGINE_THREADS", "1");
    command
}

pub fn with_tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TINY.iter().flat_map(|assignment| ["--set", assignment]).chain(more.iter().copied()).collect()
}

/// Checks an error: one line on standard error, exit code 1, each of `words` in it.
pub fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = text.lines().filter(|line| !line.starts_with("step ")).collect();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(errors.len(), 1, "{text}");
    assert!(errors[0].starts_with("error: "), "{text}");
    for word in words {
        assert!(errors[0].contains(word), "{text} does not name {word}");
    }
}

#[test]
fn a_run_leaves_its_folder_behind() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("run");
    // 54 training images, so 13 steps an epoch.
    let more = ["training.num_steps=30", "training.milestone_epochs=[1, 9]", "training.sample_every=1 epoch"];
    let mut epochs = Vec::new();
    let mut started = None;
    let summary = train(request(&out, &more), &mut |event| match event {
        Event::Epoch { epoch, loss, seconds } => {
            assert!(loss.is_finite() && *seconds > 0.0);
            epochs.push(*epoch);
        }
        Event::Start(start) => started = Some(start.clone()),
        _ => {}
    })
    .unwrap();
    assert_eq!(epochs, [1, 2]);
    let start = started.unwrap();
    assert_eq!((start.steps, start.steps_per_epoch, start.from), (30, 13, 0));
    assert!(start.memory.needed() > 4 * start.parameters as u64);
    assert_eq!((summary.steps, &summary.folder), (30, &out));
    for name in ["final", "timesteps", "step-13", "step-13-denoising", "step-26"] {
        let (image, words) = engine::picture::read_png(out.join(format!("samples/{name}.png"))).unwrap();
        assert!(image.height() > 10 * 32 && words.iter().any(|(key, _)| key == "Software"), "{name}");
    }
    assert!(out.join("plots/loss.png").is_file());
    assert_eq!(Config::from_file(out.join("config.yaml")).unwrap(), tiny(&more));
    // The newest two, the milestone, and possibly the best one.
    let steps: Vec<u64> =
        list_checkpoints(&out.join("checkpoints")).unwrap().into_iter().map(|(step, _)| step).collect();
    assert!(steps.starts_with(&[30, 28]) && steps.contains(&13) && steps.len() <= 4, "{steps:?}");
    let lines = losses(&out);
    assert_eq!(lines.iter().filter(|line| line[2] > 0.0).count(), 10);
    assert_eq!(
        lines.iter().filter(|line| line[4] > 0.0).map(|line| line[0] as u64).collect::<Vec<_>>(),
        [5, 10, 15, 20, 25, 30]
    );
    let model = Model::load(&out, &Context::cpu(), DType::F32).unwrap();
    assert_eq!((model.info.step, model.info.epoch, model.info.classes.len()), (30, 2, 10));
    assert!(parts(&out).is_empty());
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let base = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("plain", &[][..]),
        // Steps of three batches, with three lengths of everything.
        (
            "learning-of-its-loss",
            &[
                "diffusion.prediction=x0",
                "diffusion.timestep_sampling=adaptive",
                "diffusion.loss=balanced",
                "diffusion.loss_weighting=min_snr",
                "training.num_steps=11",
                "training.log_every=5",
            ],
        ),
        ("accumulated", &["training.gradient_accumulation=3", "training.log_every=5", "training.num_steps=11"]),
    ] {
        let (whole, cut) = (base.path().join(name), base.path().join(format!("{name}-cut")));
        finish(request(&whole, more));
        stop_after(request(&cut, more), 1);
        for step in [4, 5, 9] {
            stop_after(resume(&cut), step);
        }
        finish(resume(&cut));
        assert_same(&whole, &cut);
        // Resuming after its end changes nothing.
        finish(resume(&cut));
        assert_same(&whole, &cut);
    }
}

/// A tiny U-Net without classes, with dropout, which depends only on the step and the items.
pub fn tiny_unet(dropout: f64) -> Config {
    let model = UnetConfig {
        image_size: tiny(&[]).model.image_size(),
        image_channels: tiny(&[]).model.image_channels(),
        channels: vec![4, 8],
        res_blocks: 1,
        attention_sizes: vec![],
        num_heads: 2,
        norm_groups: 2,
        time_embedding_dim: 8,
        time_hidden_dim: 8,
        time_output_dim: 8,
        dropout,
        ..UnetConfig::default()
    };
    let more =
        ["training.label_dropout=0", "sampling.guidance=1", "training.optimizer=adam", "training.weight_decay=0"];
    Config { model: ModelConfig::Unet(model), ..tiny(&more) }
}

#[test]
fn a_unet_in_training_goes_on_to_the_same_bits() {
    let base = tempfile::tempdir().unwrap();
    let run = |name: &str, dropout| {
        let out = base.path().join(name);
        (TrainRequest { config: Some(tiny_unet(dropout)), ..request(&out, &[]) }, out)
    };
    let ((first, whole), (second, cut), (third, kept)) = (run("whole", 0.3), run("cut", 0.3), run("kept", 0.0));
    finish(first);
    stop_after(second, 1);
    stop_after(resume(&cut), 5);
    finish(resume(&cut));
    assert_same(&whole, &cut);
    assert!(whole.join("samples/final.png").exists());
    finish(third);
    assert_ne!(losses(&whole), losses(&kept), "dropout drops nothing");
}

#[test]
fn a_run_grows_longer_under_a_constant_learning_rate_alone() {
    let base = tempfile::tempdir().unwrap();
    let constant = "training.lr_schedule=constant";
    let (long, short) = (base.path().join("long"), base.path().join("short"));
    finish(request(&long, &[constant]));
    finish(request(&short, &[constant, "training.num_steps=6"]));
    finish(TrainRequest { steps: Some(12), ..resume(&short) });
    assert!(tensors(&long.join("model.safetensors")) == tensors(&short.join("model.safetensors")));
    assert_eq!(Config::from_file(short.join("config.yaml")).unwrap().training.num_steps, Some(12));
    let message = |request| train(request, &mut |_| ()).unwrap_err().to_string();
    assert!(message(TrainRequest { steps: Some(8), ..resume(&short) }).contains("already has 12 steps"));
    let cosine = base.path().join("cosine");
    finish(request(&cosine, &[]));
    assert!(message(TrainRequest { steps: Some(20), ..resume(&cosine) }).contains("training.lr_schedule"));
}

/// Killed at twenty random moments, a run ends with the same bits as an uninterrupted one.
#[test]
fn killed_at_random_moments_a_run_ends_with_the_same_bits() {
    const KILLS: usize = 20;
    let base = tempfile::tempdir().unwrap();
    let more = ["--steps", "80", "--set", "training.checkpoint_every=1", "--set", "training.sample_every=30"];
    let arguments = with_tiny(&more);
    let begin = |out: &Path| {
        let mut command = engine(&arguments);
        command.arg("--quiet").arg("--out").arg(out);
        command
    };
    let whole = base.path().join("whole");
    let clock = Instant::now();
    assert!(begin(&whole).status().unwrap().success());
    let duration = clock.elapsed();

    let philox = Philox::new(20);
    let (mut kills, mut number) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(180);
    while kills < KILLS {
        number += 1;
        let out = base.path().join(format!("killed-{number}"));
        loop {
            let mut command = if out.join("config.yaml").exists() {
                engine(&["--quiet", "--resume", out.to_str().unwrap()])
            } else {
                begin(&out)
            };
            let mut child = command.stderr(Stdio::null()).spawn().unwrap();
            if kills < KILLS {
                let share = philox.bits4(0, kills as u32, 0, Purpose::Probe)[0] as f64 / u32::MAX as f64;
                std::thread::sleep(duration.mul_f64(0.6 * share));
                // `kill` is SIGKILL on Unix.
                child.kill().unwrap();
                kills += usize::from(!child.wait().unwrap().success());
            } else {
                assert!(child.wait().unwrap().success());
            }
            if out.join("samples/timesteps.png").exists() {
                break;
            }
        }
        // Whatever moment the last kill hit, resuming leaves a complete run.
        assert!(engine(&["--quiet", "--resume", out.to_str().unwrap()]).status().unwrap().success());
        assert_same(&whole, &out);
        assert!(parts(&out).is_empty());
        assert!(Instant::now() < deadline, "{kills} kills took more than three minutes");
    }
}

#[test]
fn an_interrupt_saves_and_says_how_to_go_on() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("run");
    let arguments = with_tiny(&["--steps", "1000000", "--set", "training.checkpoint_every=1000000"]);
    let mut child =
        engine(&arguments).arg("--out").arg(&out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    use std::io::{BufRead, Read};
    while !text.contains("step 3/") {
        assert!(stderr.read_line(&mut text).unwrap() > 0, "{text}");
    }
    // Standard error must still be read, or the child blocks.
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        rest
    });
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let rest = reader.join().unwrap();
    assert!(rest.contains("is saved; resume with `engine train --resume"), "{rest}");
    assert_eq!(list_checkpoints(&out.join("checkpoints")).unwrap().len(), 1);
}

#[test]
fn one_folder_takes_one_run() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("run");
    let name = out.to_str().unwrap();
    finish(request(&out, &[]));
    let before = tensors(&out.join("model.safetensors"));
    let again = engine(&with_tiny(&["--out", name])).output().unwrap();
    assert_refused(&again, &[name, "already holds a run", "--resume"]);
    let held = RunFolder::resume(&out).unwrap();
    assert_refused(&engine(&["--resume", name]).output().unwrap(), &[name, "another process"]);
    drop(held);
    assert!(tensors(&out.join("model.safetensors")) == before);
    // Without --out, runs count up.
    for expected in ["runs/quickstart", "runs/quickstart-2"] {
        let output = engine(&with_tiny(&["--steps", "2"])).current_dir(base.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(base.path().join(expected).join("samples/final.png").is_file());
    }
}

#[test]
fn damaged_checkpoints_are_passed_over_and_never_trusted() {
    let base = tempfile::tempdir().unwrap();
    let (whole, out) = (base.path().join("whole"), base.path().join("run"));
    finish(request(&whole, &[]));
    stop_after(request(&out, &[]), 7);
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    let found = list_checkpoints(&out.join("checkpoints")).unwrap();
    assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>()[..2], [7, 6]);
    flip(&found[0].1);
    let mut warnings = Vec::new();
    let stopped = resume(&out);
    let stop = stopped.stop.clone();
    stop.store(true, Ordering::Relaxed);
    let _ = train(stopped, &mut |event| {
        if let Event::Warning(text) = event {
            warnings.push(text.clone());
        }
    });
    assert!(warnings.len() == 1 && warnings[0].contains("step-7") && warnings[0].contains("checksum"), "{warnings:?}");
    // All of them: refused, and nothing is changed.
    let found = list_checkpoints(&out.join("checkpoints")).unwrap();
    let sound: Vec<_> = found.iter().map(|(_, path)| (path.clone(), fs::read(path).unwrap())).collect();
    for (_, path) in found.iter().filter(|(step, _)| *step != 7) {
        flip(path);
    }
    let before: Vec<_> = found.iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    let refused = engine(&["--quiet", "--resume", out.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("none of its") && text.contains("start a new run"), "{text}");
    assert!(found.iter().zip(&before).all(|((_, path), bytes)| fs::read(path).unwrap() == *bytes));
    // Repaired, it resumes from step 6.
    for (path, bytes) in sound {
        fs::write(path, bytes).unwrap();
    }
    finish(resume(&out));
    assert_same(&whole, &out);
}

#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let base = tempfile::tempdir().unwrap();
    let (whole, out) = (base.path().join("whole"), base.path().join("run"));
    finish(request(&whole, &[]));
    stop_after(request(&out, &[]), 5);
    let before = tensors(&out.join("checkpoints/step-5.safetensors"));
    // Files are limited to a few KiB, which stops every checkpoint; the resulting signal is ignored.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" train --quiet --device cpu --resume \"$1\"";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_engine")]).arg(&out).output().unwrap();
    assert_refused(&output, &["step-6.safetensors", "cannot write", "all up to step 5 is saved", "--resume"]);
    assert!(tensors(&out.join("checkpoints/step-5.safetensors")) == before);
    assert!(parts(&out).is_empty());
    finish(resume(&out));
    assert_same(&whole, &out);
}

#[test]
fn a_run_that_diverges_says_so_and_overwrites_nothing() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("run");
    let more = ["training.learning_rate=1e30", "training.checkpoint_every=1", "training.warmup_steps=0"];
    let error = train(request(&out, &more), &mut |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("step ") && error.contains("diverged") && error.contains("learning_rate"), "{error}");
    for (_, path) in list_checkpoints(&out.join("checkpoints")).unwrap() {
        engine::train::checkpoint_config(&path).unwrap();
    }
}

#[test]
fn bad_inputs_are_refused_in_one_line() {
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name).to_str().unwrap().to_string();
    let (torn, cut, foreign) = (path("torn.yaml"), path("cut.safetensors"), path("small.safetensors"));
    fs::write(&torn, "training:\n  batch_size: [1,\n").unwrap();
    engine::data::shapes(0, 20).write(&foreign, false).unwrap();
    let bytes = fs::read(&foreign).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let empty = path("empty");
    fs::create_dir(&empty).unwrap();
    let absent = path("absent");
    // Explicit settings are kept, whatever the data are.
    const SIZE: &str = "--set=model.image_size=28";
    let cases: &[(&[&str], &[&str])] = &[
        (&["--preset", "quickstrat"], &["--preset", "quickstrat", "did you mean quickstart?"]),
        (&["--set", "training.batchsize=4"], &["training.batchsize", "did you mean training.batch_size?"]),
        (&["--set", "training.batch_size"], &["--set", "SECTION.KEY=VALUE"]),
        (&["--set", "model.num_heads=3"], &["model.num_heads", "divide"]),
        (&["--batch", "0"], &["training.batch_size", "0 is outside"]),
        (&["--batch", "1000000"], &["out of memory", "--batch", "would fit"]),
        (&["--steps", "0"], &["training.num_steps", "at least one"]),
        (&["--threads", "0"], &["--threads"]),
        (&["--config", &torn], &[&torn]),
        (&["--config", &absent], &[&absent, "cannot open"]),
        (&["--data", &absent], &[&absent, "cannot open"]),
        (&["--data", &cut], &[&cut]),
        (&["--preset", "dit-fashion", SIZE, "--data", "builtin"], &["32x32x3", "28x28x3", "--data"]),
        (&["--preset", "dit-fashion", SIZE, "--data", &foreign], &[&foreign, "28x28x3"]),
        (&["--set", "model.num_classes=3"], &["model.num_classes", "set it to 10"]),
        (&["--resume", &absent], &[&absent, "no such run folder"]),
        (&["--resume", &empty], &[&empty, "holds no run"]),
        (&["--resume", &empty, "--batch", "4"], &["--batch", "keeps its configuration"]),
        (&["--out", &torn], &[&torn, "is a file"]),
    ];
    for (arguments, words) in cases {
        let mut all = vec!["--set", "data.shapes_count=40"];
        if arguments.contains(&"--resume") {
            all.clear();
        }
        all.extend(*arguments);
        let output = engine(&all).current_dir(base.path()).output().unwrap();
        assert_refused(&output, words);
    }
    let mut device = Command::new(env!("CARGO_BIN_EXE_engine"));
    device.args(["train", "--set", "data.shapes_count=40", "--device"]).current_dir(base.path());
    let output = device.arg("cuda:4000000").output().unwrap();
    assert_refused(&output, &["cuda", "--device cpu"]);
    assert!(!base.path().join("runs").exists());
    // Errors of the command line's syntax are usage errors.
    let usage = engine(&["--no-such-option"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn a_run_goes_on_only_as_it_began() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("run");
    stop_after(request(&out, &[]), 3);
    let message = |request| train(request, &mut |_| ()).unwrap_err().to_string();
    let other = TrainRequest { dataset: Some(engine::data::shapes(1, 60)), ..resume(&out) };
    let text = message(other);
    assert!(text.starts_with("data: ") && text.contains("checksum"), "{text}");
    let yaml = fs::read_to_string(out.join("config.yaml")).unwrap();
    let mut config = Config::from_file(out.join("config.yaml")).unwrap();
    config.training.learning_rate *= 2.0;
    fs::write(out.join("config.yaml"), config.to_yaml().unwrap()).unwrap();
    assert!(message(resume(&out)).contains("changed after the start"));
    // A lost configuration is no problem: checkpoints have it.
    fs::remove_file(out.join("config.yaml")).unwrap();
    stop_after(resume(&out), 4);
    fs::write(out.join("config.yaml"), yaml).unwrap();
    finish(resume(&out));
}
