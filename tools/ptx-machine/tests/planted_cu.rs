//! Faults planted in CUDA C++, through the real compilers: each is caught, and the report names its line of the `.cu`.
//!
//! `.ci/toolchain` brings the compilers; without them this is skipped, loudly. `ENGINE_TOOLCHAIN` names another environment that
//! holds them.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Kernel;
use prebuild_kernels::Nvrtc;
use ptx_machine::fault::FaultKind::{self, *};
use ptx_machine::parse::parse;

const FAULTS: &[(&str, FaultKind)] = &[
    ("read_beyond", OutOfBounds),
    ("write_beyond", OutOfBounds),
    ("shared_beyond", OutOfBounds),
    ("local_beyond", OutOfBounds),
    ("misaligned", Misaligned),
    ("unwritten_global", UnwrittenMemory),
    ("unwritten_shared", UnwrittenMemory),
    ("unwritten_register", UnwrittenRegister),
    ("read_only_path", ReadOnlyPath),
    ("race_in_global", Race),
    ("race_in_shared", Race),
    ("race_between_lanes", Race),
    ("parted_mma", Diverged),
    ("half_a_warp_loads", Diverged),
    ("divergent_barrier", Barrier),
    ("forgotten_barrier", Barrier),
    ("shuffle_without_itself", WarpSync),
    ("shuffle_of_half", WarpSync),
    ("endless", Endless),
    ("copy_not_waited_for", AsyncCopy),
    ("copy_without_barrier", Race),
    ("misaligned_copy", Misaligned),
    ("copy_source_written", AsyncCopy),
    ("copied_onto_twice", AsyncCopy),
    ("divided_by_zero", DivisionByZero),
    ("remainder_by_zero", DivisionByZero),
    ("trap", Trap),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/planted.cu")
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels").canonicalize().unwrap()
}

/// Where `.ci/toolchain` puts the compilers.
fn toolchain() -> PathBuf {
    match std::env::var_os("ENGINE_TOOLCHAIN") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("toolchain"),
    }
}

fn skipped(test: &str, why: &str) {
    // Not by a macro, whose output a passing test keeps to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}; `.ci/toolchain` brings the compilers");
}

/// The lines of the source between one entry's name and the next that are marked.
fn marked(text: &str, entry: &str) -> Vec<usize> {
    let lines = text.lines().enumerate().skip_while(|(_, line)| !line.contains(&format!(" {entry}(u32*")));
    let body = lines.take_while(|(_, line)| *line != "}");
    body.filter(|(_, line)| line.ends_with("// fault")).map(|(at, _)| at + 1).collect()
}

/// Runs an entry on 2 blocks of 64 threads.
fn kernel(ptx: &str, entry: &str) -> Kernel {
    let module = parse("planted.ptx", ptx).unwrap_or_else(|error| panic!("{error}"));
    let number = module.entries.iter().position(|found| found.name == entry).unwrap_or_else(|| panic!("no {entry}"));
    let mut words: Vec<u32> = (0..128).collect();
    if entry == "trap" {
        words[100] = 77;
    }
    let mut kernel = Kernel::entry(ptx, number).grid(2, 64).unwritten(512).buffer(&words);
    if entry == "read_only_path" {
        kernel.buffers[0] = kernel.buffers[1];
    }
    kernel
}

fn every_fault_is_caught(ptx: &str) {
    let text = std::fs::read_to_string(source()).unwrap();
    kernel(ptx, "clean").run().unwrap_or_else(|report| panic!("{report}"));
    let mut wrong = Vec::new();
    for &(entry, kind) in FAULTS {
        let lines = marked(&text, entry);
        assert!(!lines.is_empty(), "{entry}: no line is marked");
        match kernel(ptx, entry).run() {
            Ok(()) => wrong.push(format!("{entry}: not caught")),
            Err(report) => {
                println!("{report}");
                let named = |line: &usize| {
                    let place = format!("kernels/planted.cu:{line}");
                    report
                        .source
                        .as_deref()
                        .is_some_and(|source| source == place || source.ends_with(&format!(" {place}")))
                };
                if report.kind != kind || !lines.iter().any(named) {
                    wrong.push(format!("{entry}: {kind:?} in line {lines:?} expected: {:?}, {report}", report.kind));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn faults_in_what_nvrtc_compiles() {
    match Nvrtc::find(Some(&toolchain())) {
        Ok(nvrtc) => {
            let ptx = nvrtc.compile(&source(), &kernels(), "compute_80").unwrap_or_else(|error| panic!("{error}"));
            every_fault_is_caught(&ptx);
        }
        Err(error) => skipped("faults_in_what_nvrtc_compiles", &error.to_string()),
    }
}

/// A file of this name below a folder.
fn search(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => search(&entry.path(), name),
        Ok(kind) => (kind.is_file() && entry.file_name() == name).then(|| entry.path()),
        Err(_) => None,
    })
}

#[test]
fn faults_in_what_nvcc_compiles() {
    let Some(nvcc) = search(&toolchain(), "nvcc") else {
        return skipped("faults_in_what_nvcc_compiles", "no nvcc there");
    };
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted_nvcc.ptx");
    let output = Command::new(nvcc)
        .args(["-ptx", "--std=c++17", "-lineinfo", "-arch=compute_80", "-I"])
        .arg(kernels())
        .arg("-o")
        .args([&target, &source()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    every_fault_is_caught(&std::fs::read_to_string(target).unwrap());
}
