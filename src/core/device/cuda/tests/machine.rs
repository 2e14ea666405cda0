//! Tests of the back end on `tools/ptx-machine`, each in a child process with it as `libcuda`.

use std::ffi::CString;
use std::path::PathBuf;

use super::*;
use crate::device::launches::GradientSums;
use crate::device::{Capture, Slice, SliceMut, ptx};

/// Copies the PTX machine into a folder under these names.
fn install(names: &[&str]) -> tempfile::TempDir {
    // Cargo builds it as a dependency of the tests, next to them; nothing links it.
    let built = std::env::current_exe().unwrap().with_file_name("libptx_machine.so");
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::copy(&built, folder.path().join(name)).unwrap_or_else(|fault| panic!("{}: {fault}", built.display()));
    }
    folder
}

/// Runs `body` in a child process on the PTX machine.
fn on_machine(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        body();
        println!("outcome: done");
        return;
    }
    let folder = install(&["libcuda.so", "libcuda.so.1"]);
    assert_eq!(child(&format!("machine::{test}"), folder.path(), environment), "done");
}

/// Number of live allocations, graphs and other objects of the PTX machine.
fn live() -> c_int {
    // SAFETY: the PTX machine is loaded, and its function has this type.
    unsafe { api::machine::<unsafe extern "C" fn() -> c_int>("ptx_machine_live").unwrap()() }
}

/// Makes the next call of a function return a result and do nothing.
fn answer(function: &str, code: u32) {
    let name = CString::new(function).unwrap();
    // SAFETY: the PTX machine is loaded, and its function has this type.
    let set = unsafe { api::machine::<unsafe extern "C" fn(*const c_char, u32)>("ptx_machine_answer").unwrap() };
    // SAFETY: the name ends with a zero byte.
    unsafe { set(name.as_ptr(), code) };
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

/// A typed launch: `partial` [2, 3, 2] at `from` to two sums [2] at `to`.
#[rustfmt::skip]
fn sum(device: &CudaDevice, from: u64, to: u64, accumulate: u32, config: LaunchConfig) -> Result<()> {
    // SAFETY: the ranges lie in live allocations (or the PTX machine reports it) and do not overlap.
    let [(to0, partial0), (to1, partial1)] = unsafe {
        [(to, from), (to + 8, from + 24)].map(|(to, from)| (SliceMut::from_raw(to, 2), Slice::from_raw(from, 6)))
    };
    let ([to2, to3, to4, to5, to6], absent) = ([(); 5].map(|()| SliceMut::none()), Slice::none());
    let mode = 2 + accumulate;
    GradientSums {
        to0, partial0, parts0: 3, len0: 2, stride0: 2, mode0: mode,
        to1, partial1, parts1: 3, len1: 2, stride1: 2, mode1: mode,
        to2, partial2: absent, parts2: 0, len2: 0, stride2: 0, mode2: 0,
        to3, partial3: absent, parts3: 0, len3: 0, stride3: 0, mode3: 0,
        to4, partial4: absent, parts4: 0, len4: 0, stride4: 0, mode4: 0,
        to5, partial5: absent, parts5: 0, len5: 0, stride5: 0, mode5: 0,
        to6, partial6: absent, parts6: 0, len6: 0, stride6: 0, mode6: 0,
    }
    .launch(device, config)
}

/// Two allocations, the first with 1 to 12.
fn operands(device: &CudaDevice) -> (u64, u64) {
    let (from, to) = (device.allocate(48).unwrap(), device.allocate(16).unwrap());
    let partial: Vec<f32> = (1..=12u8).map(f32::from).collect();
    // SAFETY: 48 bytes within the allocation.
    unsafe { device.upload(bytemuck::cast_slice(&partial), from).unwrap() };
    (from, to)
}

fn floats(device: &CudaDevice, address: u64) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&read(device, address, 16))
}

const CONFIG: LaunchConfig = LaunchConfig { grid: [2, 1, 1], block: [256, 1, 1], shared_bytes: 0 };

#[test]
fn works() {
    on_machine("works", &[], exercise);
}

fn exercise() {
    let device = CudaDevice::open(0).unwrap();
    assert_eq!(device.name(), "PTX machine (A100) (cuda:0)");
    assert_eq!((device.capability(), device.multiprocessors()), ((8, 0), 108));
    assert_eq!(device.memory().unwrap(), (40 << 30, 40 << 30));
    assert!(matches!(device.allocate(41 << 30).unwrap_err(), Error::OutOfMemory { available: 0xa_0000_0000, .. }));

    let (first, second) = copies(&device);
    let partial: Vec<f32> = (1..=12u8).map(f32::from).collect();
    // SAFETY: 48 bytes within an allocation.
    unsafe { device.upload(bytemuck::cast_slice(&partial), first).unwrap() };
    let launch = |accumulate: u32, config: LaunchConfig| sum(&device, first, second, accumulate, config);
    let (config, sums) = (CONFIG, || floats(&device, second));

    // An unloaded module cannot be loaded in a capture, which ends with its guard.
    let capture = Capture::begin(&device).unwrap();
    fails(launch(0, config), "not loaded before the capture");
    drop(capture);
    device.preload(&["gradient_sums"]).unwrap();
    launch(0, config).unwrap();
    assert_eq!(sums(), [9.0, 12.0, 27.0, 30.0]);
    launch(0, config.with_shared(64 << 10)).unwrap();
    fails(launch(0, config.with_shared(164 << 10)), "167936 bytes of shared memory a block");
    fails(launch(0, LaunchConfig::linear(1, 257)), "257 threads in a block");

    // A capture records, and refuses operations that cannot be replayed.
    let third = device.allocate(4).unwrap();
    let before = live();
    let capture = Capture::begin(&device).unwrap();
    fails(Capture::begin(&device).map(drop), "cannot begin another capture");
    fails(device.allocate(4).map(drop), "cannot allocate while a graph is captured");
    fails(device.synchronize(), "cannot wait");
    fails(device.preload(&["gradient_sums"]), "cannot load kernels");
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
    // SAFETY: a dropped graph uses nothing.
    fails(unsafe { device.replay(graph) }, "this graph was dropped");

    // SAFETY: nothing uses them any more.
    unsafe {
        device.release(first);
        device.release(second);
    }
    drop(device);
    assert_eq!(live(), 0, "everything was given back");
}

/// Not a known result.
const UNKNOWN: u32 = 987_654;

#[test]
fn a_result_that_nobody_knows_is_an_error() {
    on_machine("a_result_that_nobody_knows_is_an_error", &[], || {
        let fails = |function: &str, outcome: Result<()>| {
            let error = outcome.expect_err(function).to_string();
            assert!(error.contains("error 987654") && error.lines().count() == 1, "{function}: {error}");
        };
        CudaDevice::count().unwrap();
        for function in [
            "cuDeviceGetCount",
            "cuDeviceGet",
            "cuDeviceGetName",
            "cuDeviceGetAttribute",
            "cuDevicePrimaryCtxRetain",
            "cuCtxSetCurrent",
            "cuStreamCreate",
        ] {
            answer(function, UNKNOWN);
            fails(function, CudaDevice::open(0).map(drop));
        }
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        let launch = |config| sum(&device, from, to, 0, config);
        for function in
            ["cuModuleLoadDataEx", "cuModuleGetFunction", "cuFuncLoad", "cuFuncGetAttribute", "cuLaunchKernel"]
        {
            answer(function, UNKNOWN);
            fails(function, launch(CONFIG));
        }
        answer("cuFuncSetAttribute", UNKNOWN);
        fails("cuFuncSetAttribute", launch(CONFIG.with_shared(64 << 10)));
        let mut bytes = [0u8; 16];
        // SAFETY: within the allocations.
        let calls: [(&str, &mut dyn FnMut() -> Result<()>); 8] = unsafe {
            [
                ("cuMemGetInfo_v2", &mut || device.memory().map(drop)),
                ("cuMemAlloc_v2", &mut || device.allocate(4).map(drop)),
                ("cuMemcpyHtoDAsync_v2", &mut || device.upload(&[0; 4], to)),
                ("cuMemcpyDtoHAsync_v2", &mut || device.download(to, &mut bytes)),
                ("cuMemcpyDtoDAsync_v2", &mut || device.copy(from, to, 4)),
                ("cuMemsetD32Async", &mut || device.zero(to, 4)),
                ("cuMemsetD8Async", &mut || device.zero(to, 3)),
                ("cuStreamSynchronize", &mut || device.synchronize()),
            ]
        };
        for (function, call) in calls {
            answer(function, UNKNOWN);
            fails(function, call());
        }
        let capture = || {
            let capture = Capture::begin(&device)?;
            launch(CONFIG)?;
            capture.finish()
        };
        for function in ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "cuGraphUpload"] {
            answer(function, UNKNOWN);
            fails(function, capture().map(drop));
        }
        let graph = capture().unwrap();
        answer("cuGraphLaunch", UNKNOWN);
        // SAFETY: its buffers are live.
        fails("cuGraphLaunch", unsafe { device.replay(graph) });
        // And everything still works.
        launch(CONFIG).unwrap();
        assert_eq!(floats(&device, to), [9.0, 12.0, 27.0, 30.0]);
    });
}

#[test]
fn wrong_settings_are_told() {
    for (variable, value) in [("PTX_MACHINE_DEVICE", "v100"), ("PTX_MACHINE_CHECK", "off")] {
        on_machine("wrong_settings_are_told", &[(variable, value)], || {
            let words = match std::env::var_os("PTX_MACHINE_CHECK") {
                Some(_) => "PTX_MACHINE_CHECK is no variable of the machine",
                None => "PTX_MACHINE_DEVICE=v100 is not known; it takes a100, rtx4090, h100, h200",
            };
            fails(CudaDevice::open(0).map(drop), &format!("cuda: the driver refuses its settings: {words}"));
        });
    }
}

#[test]
fn a_fault_stays_and_names_its_kernel() {
    on_machine("a_fault_stays_and_names_its_kernel", &[], || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        device.preload(&["gradient_sums"]).unwrap();
        // Behind the allocation's end.
        sum(&device, from + (1 << 20), to, 0, CONFIG).unwrap();
        let wrong = "a kernel is wrong: run `engine doctor`";
        fails(device.synchronize(), "at or before kernel gradient_sums: CUDA_ERROR_ILLEGAL_ADDRESS");
        fails(sum(&device, from, to, 0, CONFIG), "the fault is of earlier work, up to kernel gradient_sums");
        // SAFETY: within the allocations.
        unsafe {
            fails(device.zero(to, 4), "work up to kernel gradient_sums has failed");
            fails(device.upload(&[0; 4], to), wrong);
        }
        fails(device.allocate(4).map(drop), wrong);
        fails(Capture::begin(&device).map(drop), wrong);
    });
}

/// Calls of the driver so far, by name.
fn calls(name: &str) -> usize {
    let counts = std::fs::read_to_string(std::env::var("PTX_MACHINE_COUNT").unwrap()).unwrap();
    counts.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// A graph of two sums, the second on top of the first, and a third behind a fill.
fn sums(device: &CudaDevice, from: u64, to: u64) -> Result<()> {
    sum(device, from, to, 0, CONFIG)?;
    let capture = Capture::begin(device)?;
    sum(device, from, to, 0, CONFIG)?;
    sum(device, from, to, 1, CONFIG)?;
    // SAFETY: the range lies in the allocation.
    unsafe { device.zero(from, 4)? };
    sum(device, from, to, 1, CONFIG)?;
    let graph = capture.finish()?;
    // SAFETY: its buffers are live.
    unsafe { device.replay(graph)? };
    device.synchronize()
}

/// Launches of [`sums`] on a machine: those that begin early are `early`.
fn begins_early(test: &str, machine: &str, switch: &str, early: usize) {
    let counts = tempfile::NamedTempFile::new().unwrap();
    let count = ("PTX_MACHINE_COUNT", counts.path().to_str().unwrap());
    let variables = [("PTX_MACHINE_DEVICE", machine), ("ENGINE_DEPENDENT_LAUNCH", switch), count];
    on_machine(test, &variables, || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        sums(&device, from, to).unwrap();
        assert_eq!(floats(&device, to), [26.0, 36.0, 81.0, 90.0]);
        drop(device);
        assert_eq!((calls("cuLaunchKernelEx "), calls("cuLaunchKernel ")), (early, 4 - early));
    });
}

/// A kernel that follows a kernel begins early, and waits.
#[test]
fn a_kernel_after_a_kernel_begins_early() {
    begins_early("a_kernel_after_a_kernel_begins_early", "h100", "on", 1);
}

#[test]
fn no_kernel_begins_early_on_older_devices() {
    begins_early("no_kernel_begins_early_on_older_devices", "a100", "on", 0);
}

#[test]
fn early_launches_can_be_switched_off() {
    begins_early("early_launches_can_be_switched_off", "h100", "off", 0);
}

#[test]
fn an_unknown_switch_is_told() {
    on_machine("an_unknown_switch_is_told", &[("ENGINE_DEPENDENT_LAUNCH", "no")], || {
        let error = CudaDevice::open(0).unwrap_err().to_string();
        assert!(error.contains("ENGINE_DEPENDENT_LAUNCH") && error.contains("neither on nor off"), "{error}");
    });
}

/// A kernel that does not wait is found by the machine.
#[test]
fn a_kernel_that_does_not_wait_is_a_race() {
    let (folder, _) = replaced(|text| {
        let text = text.replace(".target sm_80", ".target sm_90");
        text.replace("{\n\t.reg", "{\n\tgriddepcontrol.launch_dependents;\n\t.reg")
    });
    let variables = [("PTX_MACHINE_DEVICE", "h100"), ("PTX_MACHINE_REPLACE", folder.path().to_str().unwrap())];
    on_machine("a_kernel_that_does_not_wait_is_a_race", &variables, || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        fails(sums(&device, from, to), "CUDA_ERROR_LAUNCH_FAILED");
    });
}

#[test]
fn other_threads_wait_for_a_capture() {
    on_machine("other_threads_wait_for_a_capture", &[], || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        sum(&device, from, to, 0, CONFIG).unwrap();
        let capture = Capture::begin(&device).unwrap();
        let graph = thread::scope(|scope| {
            // Would be recorded, and run at each replay.
            let other = scope.spawn(|| sum(&device, from, to, 1, CONFIG));
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(!other.is_finished(), "it waits");
            fails(scope.spawn(|| device.end_capture().map(drop)).join().unwrap(), "in the thread that began it");
            let graph = capture.finish().unwrap();
            other.join().unwrap().unwrap();
            graph
        });
        assert_eq!(floats(&device, to), [18.0, 24.0, 54.0, 60.0]);
        // SAFETY: it uses nothing.
        unsafe { device.replay(graph).unwrap() };
        assert_eq!(floats(&device, to), [18.0, 24.0, 54.0, 60.0], "nothing was recorded");
    });
}

/// Modified PTX of `gradient_sums`, in a folder from which the PTX machine loads it.
fn replaced(change: impl Fn(&str) -> String) -> (tempfile::TempDir, PathBuf) {
    let text = ptx::candidates("gradient_sums", (8, 0)).last().unwrap().text((8, 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gradient_sums.ptx");
    std::fs::write(&path, change(std::str::from_utf8(text.strip_suffix(&[0]).unwrap()).unwrap())).unwrap();
    (folder, path)
}

#[test]
fn refused_ptx_is_told_with_the_compilers_words() {
    let (folder, _) = replaced(|text| text.replacen("ld.param", "ld.parameter", 1));
    let folder = [("PTX_MACHINE_REPLACE", folder.path().to_str().unwrap())];
    on_machine("refused_ptx_is_told_with_the_compilers_words", &folder, || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        let error = sum(&device, from, to, 0, CONFIG).unwrap_err().to_string();
        let told = "kernel gradient_sums: the driver refuses its prebuilt PTX: CUDA_ERROR_INVALID_PTX";
        assert!(error.starts_with(told) && error.contains("ptxas fatal") && error.contains("ld.parameter"), "{error}");
    });
}

#[test]
fn static_shared_memory_counts() {
    let (folder, _) = replaced(|text| {
        let (before, entry) = text.split_once(".entry gradient_sums(").unwrap();
        let (parameters, body) = entry.split_once('{').unwrap();
        let array = ".shared .align 16 .b8 unused[40960];";
        format!("{before}.entry gradient_sums({parameters}{{\n{array}\n{body}")
    });
    let folder = [("PTX_MACHINE_REPLACE", folder.path().to_str().unwrap())];
    on_machine("static_shared_memory_counts", &folder, || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        // 40 KiB and 16 KiB are more than 48 KiB, which needs no opt-in.
        sum(&device, from, to, 0, CONFIG.with_shared(16 << 10)).unwrap();
        assert_eq!(floats(&device, to), [9.0, 12.0, 27.0, 30.0]);
    });
}

/// A toolkit's stub, with the name without a number, does not hide the driver.
#[test]
fn the_drivers_own_name_comes_first() {
    let folder = install(&["libcuda.so.1"]);
    std::fs::write(folder.path().join("libcuda.so"), "a stub").unwrap();
    assert!(child(OPENING, folder.path(), &[]).starts_with("opened PTX machine"));
}

/// Modules requested at the same time are loaded once each, by any thread; the error names one of those that cannot be loaded.
#[test]
fn loads_modules_at_once() {
    let counts = tempfile::NamedTempFile::new().unwrap();
    let file = counts.path().to_str().unwrap().to_string();
    on_machine("loads_modules_at_once", &[("PTX_MACHINE_COUNT", &file)], || {
        let device = CudaDevice::open(0).unwrap();
        device.preload(&["gradient_sums", "concat", "tokens", "assemble_batch"]).unwrap();
        let before = live();
        device.preload(&["concat", "assemble_batch", "concat"]).unwrap();
        assert_eq!(live(), before, "they are there");
        answer("cuModuleLoadDataEx", 209);
        fails(device.preload(&["mse_loss", "tokens", "dropout"]), "the driver refuses its");
        assert!(live() > before, "the other one stays");
        device.preload(&["mse_loss", "dropout"]).unwrap();
        let (from, to) = operands(&device);
        sum(&device, from, to, 0, CONFIG).unwrap();
        assert_eq!(floats(&device, to), [9.0, 12.0, 27.0, 30.0]);
        device.preload(&[]).unwrap();
        drop(device);
        let calls = std::fs::read_to_string(std::env::var("PTX_MACHINE_COUNT").unwrap()).unwrap();
        let has = |call: &str| calls.lines().any(|line| line == call);
        assert!(has("cuModuleLoadDataEx 7") && has("cuModuleUnload 6"), "six modules, one of them twice:\n{calls}");
    });
}

/// The PTX machine cannot run machine code: with PTX as a fallback the module loads, without it it is refused.
#[test]
fn refused_machine_code_falls_back_to_ptx() {
    on_machine("refused_machine_code_falls_back_to_ptx", &[], || {
        let device = CudaDevice::open(0).unwrap();
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, b"\x7fELF\x02\x01\x01").unwrap();
        let compressed = packed.finish().unwrap().leak();
        let origin = ptx::Origin::Cubin { capability: (8, 0) };
        let cubin = ptx::EmbeddedPtx { module: "gradient_sums", arch: "sm_80", origin, length: 7, compressed };
        let mut both = vec![&*Box::leak(Box::new(cubin))];
        both.extend(ptx::candidates("gradient_sums", device.capability()).iter().filter(|c| c.arch == "compute_80"));
        assert!(modules::load("gradient_sums", both.clone(), (8, 0)).is_ok());
        fails(modules::load("gradient_sums", both[..1].to_vec(), (8, 0)).map(drop), "the driver is too old");
    });
}

/// Each launch, copy and fill has its own time, and only while timing is on.
#[test]
fn work_is_timed_piece_by_piece() {
    on_machine("work_is_timed_piece_by_piece", &[], || {
        let device = CudaDevice::open(0).unwrap();
        let (from, to) = operands(&device);
        for _ in 0..2 {
            device.begin_timing().unwrap();
            sum(&device, from, to, 0, CONFIG).unwrap();
            // SAFETY: within the allocations, which do not overlap.
            unsafe {
                device.copy(from, to, 16).unwrap();
                device.zero(to, 16).unwrap();
                device.zero(to, 0).unwrap();
            }
            let times = device.end_timing().unwrap();
            assert!(times.len() == 3 && times.iter().all(|&seconds| (0.0..10.0).contains(&seconds)), "{times:?}");
            sum(&device, from, to, 0, CONFIG).unwrap();
            assert!(device.end_timing().unwrap().is_empty());
        }
        let capture = Capture::begin(&device).unwrap();
        fails(device.begin_timing(), "cannot begin to take times");
        drop(capture);
        // SAFETY: nothing uses them any more.
        unsafe { [from, to].into_iter().for_each(|address| device.release(address)) };
        drop(device);
        assert_eq!(live(), 0, "events were given back");
    });
}
