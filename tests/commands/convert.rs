//! `engine convert`, and model files in every dtype: written files can be sampled from, and unreadable ones leave everything
//! unchanged.

use crate::tiny;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use engine::model_file::{Storage, Weights};
use engine::pipeline::Model;
use engine::tensor::{Context, DType, Device};
use engine::train::RunState;

fn convert(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.current_dir(folder).arg("convert").args(arguments).output().unwrap()
}

/// The one error line.
fn fault(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "succeeded: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn flat(path: &Path) -> Vec<f32> {
    Model::load(path, &Context::cpu(), DType::F32).unwrap().parameters.master().download().unwrap()
}

/// A folder with `step-3.safetensors`, a checkpoint, and `model.safetensors`; the raw weights and the averaged ones.
fn trained() -> (tempfile::TempDir, Vec<f32>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = tiny::trainer(&tiny::config(&[]), &Device::Cpu);
    for _ in 0..5 {
        trainer.train_step().unwrap();
    }
    let classes = ["a", "b", "c"].map(String::from).to_vec();
    let progress = RunState { classes: classes.clone(), ..RunState::default() };
    trainer.save_checkpoint(&folder.path().join("step-5.safetensors"), &progress).unwrap();
    trainer.save_model(&folder.path().join("model.safetensors"), &classes).unwrap();
    let raw = trainer.parameters().master().download().unwrap();
    let ema = flat(&folder.path().join("model.safetensors"));
    assert_ne!(raw, ema);
    (folder, raw, ema)
}

#[test]
fn every_dtype_and_either_weights_can_be_sampled_from() {
    let (folder, raw, ema) = trained();
    let path = |name: &str| folder.path().join(name);
    let of_run = Model::inspect(path("model.safetensors")).unwrap();
    for (input, weights, wanted, name) in [
        ("model.safetensors", None, &ema, "ema"),
        ("model.safetensors", Some("ema"), &ema, "ema"),
        (".", None, &ema, "ema"),
        ("step-5.safetensors", None, &ema, "ema"),
        ("step-5.safetensors", Some("raw"), &raw, "raw"),
    ] {
        for dtype in ["f32", "bf16", "f16"] {
            let mut arguments = vec![input, "out/converted.safetensors", "--dtype", dtype, "--force"];
            arguments.extend(weights.map(|weights| ["--weights", weights]).iter().flatten());
            let output = convert(&arguments, folder.path());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.contains(&format!("({name} weights) in {dtype}, ")), "{said}");

            let out = path("out/converted.safetensors");
            let rounded: Vec<f32> = match dtype {
                "bf16" => wanted.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
                "f16" => wanted.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect(),
                _ => wanted.clone(),
            };
            assert!(flat(&out) == rounded, "{arguments:?}");
            let model = Model::load(&out, &Context::cpu(), DType::F32).unwrap();
            assert_eq!(model.info, engine::model_file::ModelInfo { weights: name.into(), ..of_run.clone() });
            let mut request = model.request([0, 1, 2, 3]);
            request.sampling.num_steps = 2;
            let images = model.sample(&request).unwrap();
            assert!(images.iter().flatten().all(|x| x.is_finite()));
            if dtype == "f32" && name == "ema" {
                let original = Model::load(path("model.safetensors"), &Context::cpu(), DType::F32).unwrap();
                assert_eq!(original.sample(&request).unwrap(), images);
            }
            // Converting the result again loses nothing more.
            model.save_as(path("again.safetensors"), Storage::F32).unwrap();
            assert!(flat(&path("again.safetensors")) == rounded);
        }
    }
    let size = |name: &str| fs::metadata(path(name)).unwrap().len() as f64;
    convert(&["model.safetensors", "half.safetensors", "--dtype", "bf16", "--quiet"], folder.path());
    assert!(size("half.safetensors") < 0.62 * size("model.safetensors"), "the header stays, the weights are half");
}

#[test]
fn what_cannot_be_converted_is_one_error_and_overwrites_nothing() {
    let (folder, ..) = trained();
    let path = |name: &str| folder.path().join(name);
    let whole = fs::read(path("model.safetensors")).unwrap();
    fs::write(path("cut.safetensors"), &whole[..whole.len() - 100]).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() - 100;
    damaged[middle] ^= 1;
    fs::write(path("damaged.safetensors"), &damaged).unwrap();
    fs::write(path("text.safetensors"), b"hello, this is no model at all").unwrap();
    fs::write(path("empty.safetensors"), b"").unwrap();
    let foreign = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    fs::write(path("foreign.safetensors"), safetensors::serialize([("weight", foreign)], None).unwrap()).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("taken.safetensors"), b"precious").unwrap();

    for (input, told) in [
        ("missing.safetensors", "missing.safetensors: there is no such model file"),
        ("cut.safetensors", "cut.safetensors: damaged or cut short"),
        ("damaged.safetensors", "do not match their checksum"),
        ("text.safetensors", "damaged or cut short"),
        ("empty.safetensors", "too short to be a model"),
        ("foreign.safetensors", "not a model of this engine"),
        ("empty", "a folder without model.safetensors"),
    ] {
        let message = fault(&convert(&[input, "taken.safetensors", "--force"], folder.path()));
        assert!(message.contains(told), "{input}: {message}");
        let message = fault(&convert(&[input, "new.safetensors"], folder.path()));
        assert!(message.contains(told) && !path("new.safetensors").exists(), "{input}: {message}");
    }
    let message = fault(&convert(&["model.safetensors", "taken.safetensors"], folder.path()));
    assert!(message.contains("taken.safetensors: already exists") && message.contains("--force"), "{message}");
    let message = fault(&convert(&["model.safetensors", "empty", "--force"], folder.path()));
    assert!(message.contains("is a folder"), "{message}");
    let message = fault(&convert(&["model.safetensors", "new.safetensors", "--weights", "raw"], folder.path()));
    assert!(message.contains("holds only the ema weights") && message.contains("checkpoint"), "{message}");
    assert_eq!(fs::read(path("taken.safetensors")).unwrap(), b"precious");
    assert_eq!(fs::read(path("model.safetensors")).unwrap(), whole);

    // A weight beyond the range of f16.
    let model =
        Model::load_weights(path("step-5.safetensors"), &Context::cpu(), DType::F32, Some(Weights::Raw)).unwrap();
    let mut weights = model.parameters.master().download::<f32>().unwrap();
    weights[3] = 1e5;
    model.parameters.set_flat(&weights).unwrap();
    let error = model.save_as(path("taken.safetensors"), Storage::F16).unwrap_err().to_string();
    assert!(error.contains("holds 100000, which does not fit f16") && !error.contains('\n'), "{error}");
    assert_eq!(fs::read(path("taken.safetensors")).unwrap(), b"precious");
    model.save_as(path("taken.safetensors"), Storage::Bf16).unwrap();
    assert_eq!(
        fs::read_dir(folder.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension() == Some("part".as_ref()))
            .count(),
        0
    );
}

/// Files with both kinds of weights are sampled with the moving average, and record which they hold.
#[test]
fn samples_come_of_the_moving_average_unless_the_file_says_raw() {
    let (folder, _, ema) = trained();
    let path = |name: &str| folder.path().join(name);
    let output = convert(&["step-5.safetensors", "raw.safetensors", "--weights", "raw"], folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sample = |name: &str, weights: &str| {
        let model = Model::load(path(name), &Context::cpu(), DType::F32).unwrap();
        assert_eq!(model.info.weights, weights, "{name}");
        assert_eq!(model.parameters.master().download::<f32>().unwrap() == ema, weights == "ema", "{name}");
        let mut request = model.request([0, 1]);
        request.sampling.num_steps = 2;
        model.sample(&request).unwrap()
    };
    let averaged = sample("model.safetensors", "ema");
    assert_eq!(sample(".", "ema"), averaged);
    assert_eq!(sample("step-5.safetensors", "ema"), averaged);
    assert_ne!(sample("raw.safetensors", "raw"), averaged);
}
