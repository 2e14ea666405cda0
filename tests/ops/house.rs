//! House rules of ops: an op is a folder, a kernel file and a line in the registry, and both sides read the same control words.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The kernels of no op but of the tape: they end the gradients of many, and are tested by their cases.
const OF_THE_TAPE: &str = "gradient_sums";

#[test]
fn an_op_is_a_folder_a_kernel_and_a_line() {
    let registry: BTreeSet<String> = engine_core::ops::REGISTRY.iter().map(|op| op.name.to_string()).collect();
    let folders: BTreeSet<String> = fs::read_dir(root().join("src/core/ops"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("host"))
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_string())
        .collect();
    assert_eq!(registry, folders, "src/core/ops/mod.rs REGISTRY against the folders of src/core/ops");
    let kernels: BTreeSet<String> = fs::read_dir(root().join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    let with_the_tapes = registry.iter().map(String::as_str).chain([OF_THE_TAPE]).map(String::from).collect();
    assert_eq!(kernels, with_the_tapes, "kernels/*.cu against src/core/ops/mod.rs REGISTRY");
    for op in engine_core::ops::REGISTRY {
        for file in ["mod.rs", "cpu.rs", "cuda.rs", "cases.rs"] {
            assert!(root().join("src/core/ops").join(op.name).join(file).is_file(), "{} has no {file}", op.name);
        }
        let cases = (op.cases)();
        assert!(cases.iter().any(|case| !case.large), "{} has no case that the emulator can run", op.name);
        assert!(cases.iter().any(|case| case.large), "{} has no case that is worth timing", op.name);
        assert!(cases.iter().all(|case| case.op == op.name), "{} has a case of another op", op.name);
    }
}

#[test]
fn every_kernel_has_a_launch() {
    for kernel in engine_core::device::launches::ALL {
        let names = engine_core::ops::REGISTRY.iter().map(|op| op.name).chain([OF_THE_TAPE]);
        assert!(
            names.into_iter().any(|name| name == kernel.module && kernel.name.starts_with(name)),
            "{} of kernels/{}.cu belongs to no op",
            kernel.name,
            kernel.module
        );
    }
}

#[test]
fn the_control_words_are_the_same_on_both_sides() {
    use engine_core::ops::control::Control;
    let header = fs::read_to_string(root().join("kernels/common/control.cuh")).unwrap();
    let word = |name: &str| -> usize {
        let line = header.lines().find(|line| line.trim().starts_with(&format!("{name} ="))).unwrap();
        line.split('=').nth(1).unwrap().trim().trim_end_matches(',').parse().unwrap()
    };
    let marked = Control {
        step: 101,
        epoch: 102,
        cursor: 103,
        first_item: 104,
        learning_rate: 105.0,
        first_correction: 106.0,
        second_correction: 107.0,
        ema_decay: 108.0,
        row: 109,
        ..Control::default()
    };
    let words = marked.words();
    for (name, value) in [
        ("CONTROL_STEP", 101),
        ("CONTROL_EPOCH", 102),
        ("CONTROL_CURSOR", 103),
        ("CONTROL_FIRST_ITEM", 104),
        ("CONTROL_LEARNING_RATE", 105f32.to_bits()),
        ("CONTROL_FIRST_CORRECTION", 106f32.to_bits()),
        ("CONTROL_SECOND_CORRECTION", 107f32.to_bits()),
        ("CONTROL_EMA_DECAY", 108f32.to_bits()),
        ("CONTROL_ROW", 109),
    ] {
        assert_eq!(words[word(name)], value, "{name}");
    }
}
