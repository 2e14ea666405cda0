//! The house rules that a machine can check: imports run downwards, and an op is a folder, a kernel file and a line in
//! the registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Top-level modules, highest first; those of one row never import each other. `data` stands on `tensor`, `picture` and
/// `weights` on `error` alone.
const ROWS: &[&[&str]] = &[
    &["cli"],
    &["train"],
    &["eval"],
    &["config"],
    &["models"],
    &["diffusion"],
    &["nn"],
    &["ops"],
    &["tape"],
    &["data"],
    &["tensor"],
    &["device"],
    &["picture", "weights"],
    &["names"],
    &["rng", "error", "files"],
];

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files
}

/// The top-level modules that a source names by `crate::`.
fn imports(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            // `$crate::` of a macro is the same crate; `kernel_crate::` and the like are not.
            if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &line[at + "crate::".len()..];
            let group = rest.strip_prefix('{').and_then(|group| group.split('}').next());
            for path in group.map_or(vec![rest], |group| group.split(',').collect()) {
                let name: String = path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.insert(name);
            }
        }
    }
    found
}

#[test]
fn imports_run_downwards() {
    let row = |name: &str| ROWS.iter().position(|row| row.contains(&name));
    let mut faults = Vec::new();
    let modules: BTreeSet<&str> = ROWS.iter().flat_map(|row| row.iter().copied()).collect();
    for file in rust_files(&root().join("src")) {
        let within = file.strip_prefix(root().join("src")).unwrap();
        let module = within.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        assert!(modules.contains(module), "{} belongs to no row: add it to ROWS and to lib.rs", within.display());
        let source = fs::read_to_string(&file).unwrap();
        for import in imports(&source).iter().filter(|name| modules.contains(name.as_str()) && *name != module) {
            let up = row(import) <= row(module);
            let data =
                module == "data" && !["tensor", "device", "names", "rng", "error", "files"].contains(&import.as_str());
            let picture = ["picture", "weights"].contains(&module) && !["error", "files"].contains(&import.as_str());
            let uses_data = import == "data" && !["cli", "train", "eval"].contains(&module);
            if up || data || picture || uses_data {
                faults.push(format!("{} imports {import}", within.display()));
            }
        }
    }
    assert!(faults.is_empty(), "imports run downwards only:\n{}", faults.join("\n"));
}

#[test]
fn an_op_is_a_folder_a_kernel_and_a_line() {
    let registry: BTreeSet<String> = engine::ops::REGISTRY.iter().map(|op| op.name.to_string()).collect();
    let folders: BTreeSet<String> = fs::read_dir(root().join("src/ops"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("host"))
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_string())
        .collect();
    assert_eq!(registry, folders, "src/ops/mod.rs REGISTRY against the folders of src/ops");
    let kernels: BTreeSet<String> = fs::read_dir(root().join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    assert_eq!(registry, kernels, "src/ops/mod.rs REGISTRY against kernels/*.cu");
    for op in engine::ops::REGISTRY {
        for file in ["mod.rs", "cpu.rs", "cuda.rs", "cases.rs"] {
            assert!(root().join("src/ops").join(op.name).join(file).is_file(), "{} has no {file}", op.name);
        }
        let cases = (op.cases)();
        assert!(cases.iter().any(|case| !case.large), "{} has no case that the emulator can run", op.name);
        assert!(cases.iter().any(|case| case.large), "{} has no case that is worth timing", op.name);
        assert!(cases.iter().all(|case| case.op == op.name), "{} has a case of another op", op.name);
    }
}

#[test]
fn every_kernel_has_a_launch() {
    for kernel in engine::device::launches::ALL {
        assert!(
            engine::ops::REGISTRY.iter().any(|op| op.name == kernel.module && kernel.name.starts_with(op.name)),
            "{} of kernels/{}.cu belongs to no op",
            kernel.name,
            kernel.module
        );
    }
}

#[test]
fn the_control_words_are_the_same_on_both_sides() {
    use engine::ops::control::Control;
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

/// A model reads beside its paper's equations.
#[test]
fn a_model_is_short() {
    for file in rust_files(&root().join("src/models")) {
        let (name, source) = (file.strip_prefix(root()).unwrap().display(), fs::read_to_string(&file).unwrap());
        let lines: Vec<&str> = source.lines().collect();
        assert!(lines.len() <= 200, "{name} has {} lines; a part of the model wants a file of its own", lines.len());
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("fn forward(")) {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let length = 1 + lines[at..].iter().position(|line| *line == end).unwrap();
            assert!(length <= 40, "{name}: the forward at line {} has {length} lines", at + 1);
        }
    }
}
