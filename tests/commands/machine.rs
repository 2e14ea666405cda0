//! What a command says of the processor: instruction sets by name, and bf16 where nothing multiplies it.

use std::process::{Command, Output};

fn engine(set: &str, line: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.current_dir(folder.path()).env("ENGINE_CPU", set).args(line.split_whitespace()).output().unwrap()
}

#[test]
fn an_instruction_set_that_is_not_there_is_one_error_of_every_command() {
    let sample = "sample --model unet-fashion-small --count 1 --steps 1 --out one.png";
    for line in ["plan --on cpu", "doctor", "presets", "train --steps 1", sample] {
        let output = engine("sse9", line);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{line}: {text}");
        for part in ["error: ENGINE_CPU: `sse9` is none of plain,", "or unset it to use the best"] {
            assert!(text.contains(part), "{line}: no `{part}` in {text}");
        }
    }
}

#[test]
fn a_plan_of_this_cpu_is_for_the_threads_of_a_run() {
    let plan = |threads: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.env("ENGINE_THREADS", threads).args(["plan", "--on", "cpu"]).output().unwrap()
    };
    let text = String::from_utf8(plan("1").stdout).unwrap();
    assert!(text.contains("on this cpu, 1 thread, "), "{text}");
    let refused = plan("none");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && text.starts_with("error: ENGINE_THREADS: `none`"), "{text}");
}

#[test]
fn bf16_is_the_default_only_where_it_is_multiplied_and_slow_bf16_is_told() {
    let sample = "sample --model unet-fashion-small --count 1 --steps 1 --device cpu --out one.png";
    let text = |line: &str| {
        let output = engine("plain", line);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let own = text(sample);
    assert!(own.contains(", on cpu in f32") && !own.contains("warning: "), "{own}");
    let asked = text(&format!("{sample} --precision bf16"));
    assert!(asked.contains(", on cpu in bf16"), "{asked}");
    assert!(asked.contains("warning: this processor has no instruction for products of bf16"), "{asked}");
    // TF32 is of GPUs: the pictures are those of f32, and it is said.
    let asked = text(&format!("{sample} --precision tf32"));
    assert!(asked.contains(", on cpu in f32") && asked.contains("warning: TF32 is of GPUs' tensor cores"), "{asked}");
    // As training says it.
    let settings = [
        "training.precision=bf16",
        "training.batch_size=2",
        "training.validation_batches=1",
        "model.depth=1",
        "model.hidden_dim=64",
        "data.shapes_count=60",
        "sampling.num_steps=1",
        "sampling.count_per_class=1",
    ];
    let run = text(&format!("train --steps 1 --device cpu --set {}", settings.join(" --set ")));
    assert!(run.contains("this processor has no instruction for products of bf16"), "{run}");
}
