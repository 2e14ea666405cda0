//! Tests without a GPU: its absence is an error, never a panic.

use std::path::Path;
use std::process::Command;

use super::*;

#[cfg(target_os = "linux")]
mod machine;

const OPENING: &str = "opening_without_a_driver_is_an_error";

/// Set in a child process that opens a device with any `libcuda` in its environment.
const CHILD: &str = "ENGINE_TEST_OPEN_CUDA";

#[test]
fn opening_without_a_driver_is_an_error() {
    if std::env::var_os(CHILD).is_some() {
        let outcome = match CudaDevice::open(0) {
            Ok(device) => format!("opened {}", device.name()),
            Err(error) => error.to_string(),
        };
        // A second call gives the same error.
        assert_eq!(CudaDevice::open(0).is_ok(), outcome.starts_with("opened"));
        println!("outcome: {outcome}");
        return;
    }
    match CudaDevice::open(0) {
        Ok(device) => println!("a GPU is here: {}", device.name()),
        Err(error) => assert!(matches!(error, Error::Device { .. }), "{error}"),
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = CudaDevice::open(1_000_000).unwrap_err().to_string();
    assert!(error.starts_with("cuda"), "{error}");
    assert_eq!(error.lines().count(), 1);
}

/// Runs one test as a child with `libcuda.so` in `folder` first on the loader's path, and returns its outcome.
fn child(test: &str, folder: &Path, environment: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("device::cuda::tests::{test}"), "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env(CHILD, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, outcome) = text.split_once("outcome: ").expect("the child ran");
    outcome.lines().next().unwrap_or_default().to_string()
}

/// Compiles C to a library; `false`, with a message, if there is no compiler.
fn compile(source: &str, library: &Path) -> bool {
    let code = library.with_extension("c");
    std::fs::write(&code, source).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).args([library, &code]).status();
    let done = compiled.is_ok_and(|status| status.success());
    if !done {
        eprintln!("SKIPPED: stand-ins for the driver need a C compiler (cc)");
    }
    done
}

/// The loader's path has the PTX machine's folder, but the PTX machine is not there yet.
#[cfg(target_os = "linux")]
#[test]
fn a_missing_machine_is_told_with_the_command_that_builds_it() {
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("ptx-machine");
    let wanted = format!(
        "cuda: no libcuda.so.1 in {0}; build the machine, `cargo run --release -p ptx-machine -- {0}`",
        machine.display()
    );
    let outcomes = [
        child(OPENING, &machine, &[]),
        child(OPENING, folder.path(), &[("ENGINE_PTX_MACHINE", machine.to_str().unwrap())]),
    ];
    // Or the real driver was found.
    let is = |outcome: &str, wanted: &str| outcome.starts_with("opened") || outcome.contains(wanted);
    assert!(outcomes.iter().all(|outcome| is(outcome, &wanted)), "{outcomes:?}");
    std::fs::create_dir(&machine).unwrap();
    std::fs::write(machine.join("libcuda.so.1"), "").unwrap();
    let outcome = child(OPENING, folder.path(), &[("ENGINE_PTX_MACHINE", machine.to_str().unwrap())]);
    assert!(is(&outcome, &format!("set LD_LIBRARY_PATH={}", machine.display())), "{outcome}");
}

#[cfg(target_os = "linux")]
#[test]
fn stub_libraries_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    // The real driver's library name: with the other one a stub is not loaded if there is a driver.
    let library = folder.path().join("libcuda.so.1");
    std::fs::write(&library, "not a library").unwrap();
    let outcome = child(OPENING, folder.path(), &[]);
    assert!(outcome.starts_with("opened") || outcome.starts_with("cuda: "), "{outcome}");

    let symbols = |init: u32, version: u32| {
        let mut source = String::new();
        for symbol in api::SYMBOLS {
            source += &match *symbol {
                "cuInit" => format!("unsigned cuInit(unsigned flags) {{ return {init}; }}\n"),
                "cuDriverGetVersion" => {
                    format!("unsigned cuDriverGetVersion(int* to) {{ *to = {version}; return 0; }}\n")
                }
                "cuDeviceGetCount" => "unsigned cuDeviceGetCount(int* to) { *to = 0; return 0; }\n".into(),
                other => format!("unsigned {other}() {{ return 34; }}\n"),
            };
        }
        source
    };
    for (source, expected) in [
        ("int nothing;\n".to_string(), "libcuda has no cuCtxSetCurrent: it is a stub"),
        (symbols(34, 12_040), "libcuda is a stub for linking"),
        (symbols(100, 12_040), "the driver sees no CUDA device"),
        (symbols(802, 12_040), "not ready yet; on a machine with NVSwitch start"),
        (symbols(803, 12_040), "differ in version; restart the machine"),
        (symbols(123_456, 12_040), "cuInit: error 123456"),
        (symbols(0, 11_080), "the driver supports CUDA 11.8, 12.4 is needed"),
        (symbols(0, 12_080), "cuda:0: this machine has 0 CUDA devices; use `device = cpu`"),
    ] {
        if !compile(&source, &library) {
            return;
        }
        let outcome = child(OPENING, folder.path(), &[]);
        assert!(outcome.starts_with("cuda") && outcome.contains(expected), "{outcome}");
    }
}
