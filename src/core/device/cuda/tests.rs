//! What can be shown without a GPU: that there is none is an error, never a panic.

use std::path::Path;
use std::process::Command;

use super::*;

const OPENING: &str = "opening_without_a_driver_is_an_error";

/// Set in a child process that is to open a device with whatever `libcuda` its environment has.
const CHILD: &str = "ENGINE_TEST_OPEN_CUDA";

#[test]
fn opening_without_a_driver_is_an_error() {
    if std::env::var_os(CHILD).is_some() {
        let outcome = match CudaDevice::open(0) {
            Ok(device) => format!("opened {}", device.name()),
            Err(error) => error.to_string(),
        };
        // Asked again, it says the same.
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
fn child(test: &str, folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("device::cuda::tests::{test}"), "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, outcome) = text.split_once("outcome: ").expect("the child ran");
    outcome.lines().next().unwrap_or_default().to_string()
}

/// Compiles C to a library; `false` (and a word about it) where there is no compiler.
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

#[cfg(target_os = "linux")]
#[test]
fn stub_libraries_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libcuda.so");
    std::fs::write(&library, "not a library").unwrap();
    let outcome = child(OPENING, folder.path());
    assert!(outcome.starts_with("opened") || outcome.starts_with("cuda: "), "{outcome}");

    let symbols = |init: u32, version: u32| {
        let mut source = String::new();
        for symbol in driver::SYMBOLS {
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
        (symbols(803, 12_040), "differ in version; restart the machine"),
        (symbols(123_456, 12_040), "cuInit: error 123456"),
        (symbols(0, 11_080), "the driver supports CUDA 11.8, 12.4 is needed"),
        (symbols(0, 12_080), "cuda:0: this machine has 0 CUDA devices; use --device cpu"),
    ] {
        if !compile(&source, &library) {
            return;
        }
        let outcome = child(OPENING, folder.path());
        assert!(outcome.starts_with("cuda") && outcome.contains(expected), "{outcome}");
    }
}

/// The whole back end against the machine of `tools/ptx-machine`, in a child whose `libcuda` that is.
#[cfg(target_os = "linux")]
#[test]
fn works_against_the_ptx_machine() {
    if std::env::var_os(CHILD).is_some() {
        exercise();
        println!("outcome: exercised");
        return;
    }
    // Cargo builds it, for it is a dependency of the tests, and puts it beside them; nothing links it.
    let own = std::env::current_exe().unwrap();
    let built = own.with_file_name("libptx_machine.so");
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::copy(&built, folder.path().join(name)).unwrap_or_else(|fault| panic!("{}: {fault}", built.display()));
    }
    assert_eq!(child("works_against_the_ptx_machine", folder.path()), "exercised");
}

/// Allocations, graphs and the like that the machine has given out and not got back.
fn live() -> c_int {
    // SAFETY: the machine is loaded by now.
    unsafe { sys::culib().get::<unsafe extern "C" fn() -> c_int>(b"ptx_machine_live").unwrap()() }
}

fn read(device: &CudaDevice, address: u64, length: usize) -> Vec<u8> {
    let mut back = vec![0u8; length];
    // SAFETY: callers read within an allocation.
    unsafe { device.download(address, &mut back).unwrap() };
    back
}

fn fails(outcome: Result<()>, words: &str) {
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(words) && error.lines().count() == 1, "{error}");
}

/// Uploads, copies and zeroes; the two allocations.
fn copies(device: &CudaDevice) -> (u64, u64) {
    // Copies longer than the pinned buffer, and not a multiple of it.
    let bytes: Vec<u8> = (0..2 * STAGING_BYTES + 5).map(|i| (i * 7 % 251) as u8).collect();
    let (first, second) = (device.allocate(bytes.len()).unwrap(), device.allocate(bytes.len()).unwrap());
    // SAFETY: within the two allocations.
    unsafe {
        device.upload(&bytes, first).unwrap();
        device.copy(first, second, bytes.len()).unwrap();
        device.zero(second + 4, 8).unwrap();
        device.zero(second + 13, 3).unwrap();
    }
    let mut expected = bytes.clone();
    expected[4..12].fill(0);
    expected[13..16].fill(0);
    assert!(read(device, first, bytes.len()) == bytes && read(device, second, bytes.len()) == expected);
    (first, second)
}

fn exercise() {
    use crate::device::launches::LayerNormBwdAffineFinal;
    use crate::device::{Capture, Slice, SliceMut};

    let device = CudaDevice::open(0).unwrap();
    assert_eq!(device.name(), "PTX machine (A100) (cuda:0)");
    assert_eq!((device.capability(), device.multiprocessors()), ((8, 0), 108));
    assert_eq!(device.memory().unwrap(), (40 << 30, 40 << 30));
    assert!(matches!(device.allocate(41 << 30).unwrap_err(), Error::OutOfMemory { available: 0xa_0000_0000, .. }));

    let (first, second) = copies(&device);
    // A typed launch: partial [2, 3, 2] to dgamma and dbeta [2].
    let partial: Vec<f32> = (1..=12u8).map(f32::from).collect();
    // SAFETY: 48 and 16 bytes within allocations.
    unsafe { device.upload(bytemuck::cast_slice(&partial), first).unwrap() };
    let launch = |accumulate: u32, config: LaunchConfig| {
        // SAFETY: the ranges lie in live allocations and do not overlap.
        let (dgamma, dbeta, partial) =
            unsafe { (SliceMut::from_raw(second, 2), SliceMut::from_raw(second + 8, 2), Slice::from_raw(first, 12)) };
        LayerNormBwdAffineFinal { dgamma, dbeta, partial, parts: 3, cols: 2, accumulate }.launch(&device, config)
    };
    let config = LaunchConfig::linear(1, 256);
    let sums = || bytemuck::pod_collect_to_vec::<u8, f32>(&read(&device, second, 16));

    // A module that was not loaded cannot be loaded in a capture, which ends with its guard.
    let capture = Capture::begin(&device).unwrap();
    fails(launch(0, config), "not loaded before the capture");
    drop(capture);
    device.preload(&["layer_norm"]).unwrap();
    launch(0, config).unwrap();
    assert_eq!(sums(), [9.0, 12.0, 27.0, 30.0]);
    launch(0, config.with_shared(64 << 10)).unwrap();
    fails(launch(0, config.with_shared(164 << 10)), "167936 bytes of shared memory a block");
    fails(launch(0, LaunchConfig::linear(1, 257)), "257 threads in a block");

    // A capture records, and refuses what cannot be replayed.
    let third = device.allocate(4).unwrap();
    let before = live();
    let capture = Capture::begin(&device).unwrap();
    fails(Capture::begin(&device).map(drop), "cannot begin another capture");
    fails(device.allocate(4).map(drop), "cannot allocate while a graph is captured");
    fails(device.synchronize(), "cannot wait");
    fails(device.preload(&["layer_norm"]), "cannot load kernels");
    // SAFETY: within the allocations; nothing else uses `third`.
    unsafe {
        fails(device.upload(&[0; 4], first), "cannot copy from the host");
        device.zero(second, 8).unwrap();
        device.release(third);
    }
    launch(1, config).unwrap();
    assert_eq!(live(), before, "the allocation is given back behind the capture");
    let graph = capture.finish().unwrap();
    assert_eq!(live(), before, "a graph more, an allocation less");
    assert_eq!(sums(), [9.0, 12.0, 27.0, 30.0], "nothing was executed");
    for expected in [[9.0, 12.0, 54.0, 60.0], [9.0, 12.0, 81.0, 90.0]] {
        // SAFETY: its buffers are live.
        unsafe { device.replay(graph).unwrap() };
        assert_eq!(sums(), expected);
    }
    device.forget(graph);
    // SAFETY: a graph that is gone uses nothing.
    fails(unsafe { device.replay(graph) }, "this graph was dropped");

    // SAFETY: nothing uses them any more.
    unsafe {
        device.release(first);
        device.release(second);
    }
    drop(device);
    assert_eq!(live(), 0, "everything was given back");
}
