//! The binary itself, not the library: a run of a few steps and its pictures, by default in bf16, which is printed, recorded and
//! used again.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::MutexGuard;

use engine::config::Precision;
use engine::pipeline::Model;

use super::{choice, device};

/// The program, in a folder of its own.
struct Engine {
    _guard: MutexGuard<'static, ()>,
    path: &'static Path,
    folder: tempfile::TempDir,
    device: String,
}

impl Engine {
    /// None, with a message, if there is no device, or no binary, as when only this test binary was copied.
    fn new(test: &str) -> Option<Self> {
        let (guard, _) = device(test)?;
        let path = Path::new(env!("CARGO_BIN_EXE_engine"));
        if !path.exists() {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no {}", path.display());
            return None;
        }
        Some(Self { _guard: guard, path, folder: tempfile::tempdir().unwrap(), device: choice() })
    }

    /// Runs it; `DEVICE` stands for the device. Returns whether it succeeded, and its output.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let arguments = arguments.iter().map(|word| if *word == "DEVICE" { self.device.as_str() } else { word });
        let output: Output = Command::new(self.path).args(arguments).current_dir(&self.folder).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (done, said) = self.run(arguments);
        assert!(done, "{arguments:?}: {said}");
        said
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Trains a small model for a few steps.
    fn train(&self, device: &str, out: &str, more: &[&str]) -> String {
        let short = ["training.validation_batches=1", "sampling.num_steps=2", "sampling.count_per_class=1"];
        let run = ["train", "--preset", "quickstart", "--batch", "4", "--device", device, "--out", out];
        let settings = short.into_iter().chain(["training.checkpoint_every=2"]).flat_map(|setting| ["--set", setting]);
        self.ok(&run.into_iter().chain(settings).chain(more.iter().copied()).collect::<Vec<_>>())
    }
}

/// Whether the output reports this precision.
fn tells(said: &str, precision: &str) -> bool {
    said.lines().any(|line| line.starts_with("device ") && line.ends_with(&format!(", {precision}")))
}

#[test]
fn three_steps_from_the_command_line() {
    let Some(engine) = Engine::new("command::three_steps_from_the_command_line") else { return };
    let said = engine.train("DEVICE", "run", &["--steps", "3"]);
    assert!(tells(&said, "bf16"), "{said}");
    for file in ["run/model.safetensors", "run/samples/final.png"] {
        assert!(engine.file(file).exists(), "no {file}: {said}");
    }
    let yaml = std::fs::read_to_string(engine.file("run/config.yaml")).unwrap();
    assert!(yaml.contains("precision: bf16"), "{yaml}");
    let info = Model::inspect(engine.file("run/model.safetensors")).unwrap();
    assert_eq!(info.config.training.precision, Precision::Bf16);

    let draw = ["sample", "--model", "run", "--count", "1", "--class", "0", "--device", "DEVICE", "--out"];
    let said = engine.ok(&[&draw[..], &["bf16.png"]].concat());
    assert!(said.contains(" in bf16\n"), "{said}");
    engine.ok(&[&draw[..], &["f32.png", "--precision", "f32"]].concat());
    engine.ok(&[&draw[..], &["tf32.png", "--precision", "tf32"]].concat());
    // A picture is reproduced in its own precision, whatever the device's default; or an error says why not.
    for own in ["bf16", "tf32", "f32"] {
        let (picture, again) = (format!("{own}.png"), format!("{own} again.png"));
        let said = engine.ok(&["sample", "--like", &picture, "--device", "DEVICE", "--out", &again]);
        assert!(said.contains(&format!(" in {own}\n")), "{said}");
        let [first, second] = [&picture, &again].map(|name| engine::picture::read_png(engine.file(name)).unwrap().0);
        assert!(first.pixels() == second.pixels(), "{own}: other pixels");
    }
    // So it is on another device, which says that the pixels are not the same.
    let like = ["sample", "--like", "bf16.png", "--device", "cpu"];
    for (own, more) in [("bf16", &[][..]), ("f32", &["--precision", "f32"])] {
        let said = engine.ok(&[&like[..], more, &["--out", &format!("near in {own}.png")]].concat());
        assert!(said.contains("agree within rounding") && said.contains(&format!(" in {own}\n")), "{said}");
    }
}

#[test]
fn a_run_goes_on_in_its_precision() {
    let Some(engine) = Engine::new("command::a_run_goes_on_in_its_precision") else { return };
    for (device, out, precision) in [("DEVICE", "half", "auto"), ("cpu", "whole", "f32")] {
        engine.train(device, out, &["--steps", "4", "--set", &format!("training.precision={precision}")]);
        // As if it had been killed after the second step.
        for file in ["model.safetensors", "checkpoints/step-4.safetensors"] {
            std::fs::remove_file(engine.file(out).join(file)).unwrap();
        }
    }
    for (out, device, precision) in [("half", "cpu", "bf16"), ("whole", "DEVICE", "f32")] {
        let said = engine.ok(&["train", "--resume", out, "--device", device]);
        assert!(tells(&said, precision), "{said}");
    }
}
