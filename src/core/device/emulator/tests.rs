//! The adapter: memory, errors, capture and replay. The checker itself is tested in `tools/kernel-emulator`.

use std::path::Path;
use std::sync::OnceLock;

use super::*;

static ADVANCE: Kernel = Kernel { name: "steps_advance", module: "steps", max_threads: 32 };
static COUNT: Kernel = Kernel { name: "steps_count", module: "steps", max_threads: 32 };
static ROW_SUMS: Kernel = Kernel { name: "planted_row_sums_f32", module: "planted", max_threads: 64 };
static ABSENT: Kernel = Kernel { name: "steps_absent", module: "steps", max_threads: 32 };

fn device() -> EmulatorDevice {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let files =
            ["planted", "steps"].map(|name| root.join(format!("tools/kernel-emulator/tests/kernels/{name}.cu")));
        let out = Path::new(env!("OUT_DIR")).join("emulator");
        kernel_emulator::compile_sources(&files, &root.join("kernels"), &out).unwrap()
    });
    EmulatorDevice::load(folder).unwrap()
}

fn buffer<T>(device: &EmulatorDevice, values: &[T]) -> u64
where
    T: bytemuck::Pod,
{
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let address = device.allocate(bytes.len()).unwrap();
    // SAFETY: as large as the allocation.
    unsafe { device.upload(bytes, address) }.unwrap();
    address
}

fn values<T: bytemuck::Pod>(device: &EmulatorDevice, address: u64, len: usize) -> Vec<T> {
    let mut out = vec![T::zeroed(); len];
    // SAFETY: the ranges are allocated by the tests; a range that is not live is an error.
    unsafe { device.download(address, bytemuck::cast_slice_mut(&mut out)) }.unwrap();
    out
}

fn writable(address: u64, bytes: usize) -> KernelArgument {
    KernelArgument::Buffer { address, bytes, writable: true }
}

fn readable(address: u64, bytes: usize) -> KernelArgument {
    KernelArgument::Buffer { address, bytes, writable: false }
}

fn advance(device: &EmulatorDevice, w: u64, control: u64, baked: u32) -> Result<()> {
    let arguments = [writable(w, 40), readable(control, 4), KernelArgument::U32(10), KernelArgument::U32(baked)];
    // SAFETY: the arguments are the kernel's.
    unsafe { device.launch(&ADVANCE, LaunchConfig::linear(1, 32), &arguments) }
}

#[test]
fn a_kernel_runs_on_device_memory() {
    let device = device();
    let (w, control) = (buffer(&device, &[1.0f32; 10]), buffer(&device, &[5u32]));
    for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
        device.set_order(order);
        advance(&device, w, control, 0).unwrap();
    }
    assert_eq!(values::<f32>(&device, w, 10), [16.0; 10]);
    assert_eq!(device.launches(), 3);
    device.synchronize().unwrap();
}

#[test]
fn fresh_memory_is_poisoned_and_counted() {
    let device = device();
    device.set_capacity(1000);
    let address = device.allocate(600).unwrap();
    assert_eq!(address % 256, 0);
    assert!(values::<f32>(&device, address, 150).iter().all(|v| v.is_nan()));
    assert_eq!(device.memory().unwrap(), (400, 1000));
    assert!(matches!(device.allocate(401), Err(Error::OutOfMemory { needed: 401, available: 400, .. })));
    // SAFETY: nothing uses it any more.
    unsafe { device.release(address) };
    assert_eq!((device.memory().unwrap().0, device.live_allocations()), (1000, 0));
}

#[test]
fn dead_memory_is_refused() {
    let device = device();
    let (w, control) = (buffer(&device, &[1.0f32; 10]), buffer(&device, &[1u32]));
    // SAFETY: refused before anything is touched.
    unsafe {
        assert!(device.upload(&[0; 41], w).is_err());
        assert!(device.zero(w + 4, 40).is_err());
        assert!(device.copy(control, w, 8).is_err());
        device.release(control);
    }
    let error = advance(&device, w, control, 0).unwrap_err().to_string();
    assert!(error.contains("steps_advance") && error.contains("argument control"), "{error}");
}

#[test]
fn a_wrong_launch_is_a_kernel_error() {
    let device = device();
    let (x, y) = (buffer(&device, &[1.0f32; 12]), buffer(&device, &[0.0f32; 4]));
    let launch = |bug: u32| {
        let sizes = [4, 3, bug].map(KernelArgument::U32);
        let arguments = [[writable(y, 16), readable(x, 48)].as_slice(), &sizes].concat();
        // SAFETY: the arguments are the kernel's.
        unsafe { device.launch(&ROW_SUMS, LaunchConfig::linear(1, 32), &arguments) }
    };
    launch(0).unwrap();
    assert_eq!(values::<f32>(&device, y, 4), [3.0; 4]);
    let Err(Error::Kernel { kernel, message }) = launch(1) else { panic!("one row too many") };
    assert_eq!(kernel, "planted_row_sums_f32");
    assert!(message.contains("reads x[12]") && message.contains("thread (4,0,0)"), "{message}");

    let sizes = [4, 3, 0].map(KernelArgument::U32);
    let in_place = [[writable(x + 32, 16), readable(x, 48)].as_slice(), &sizes].concat();
    // SAFETY: refused before anything runs.
    let error = unsafe { device.launch(&ROW_SUMS, LaunchConfig::linear(1, 32), &in_place) }.unwrap_err().to_string();
    assert!(error.contains("argument x overlaps argument y"), "{error}");

    device.set_find_unwritten(true);
    launch(3).unwrap();
    let unwritten = Unwritten { kernel: "planted_row_sums_f32", argument: "y".into(), count: 1, first: 3 };
    assert_eq!(device.take_unwritten(), [unwritten]);
    launch(0).unwrap();
    assert_eq!(device.take_unwritten(), []);

    // SAFETY: refused before anything runs.
    let error = unsafe { device.launch(&ABSENT, LaunchConfig::linear(1, 32), &[]) }.unwrap_err().to_string();
    assert!(error.contains("steps_absent") && error.contains("compile them again"), "{error}");
    assert!(device.preload(&["steps", "planted"]).is_ok());
    assert!(device.preload(&["nothing"]).unwrap_err().to_string().contains("nothing.so"));
}

/// Three steps, captured once and replayed, or submitted each time. `baked` passes the step's number as an argument.
fn three_steps(captured: bool, baked: bool) -> Vec<f32> {
    let device = device();
    let (w, control) = (buffer(&device, &[f32::NAN; 10]), buffer(&device, &[1u32]));
    let submit = |step: u32| {
        advance(&device, w, control, if baked { step } else { 0 }).unwrap();
        // SAFETY: the argument is the kernel's.
        unsafe { device.launch(&COUNT, LaunchConfig::linear(1, 32), &[writable(control, 4)]) }.unwrap();
    };
    // SAFETY: live, and within the allocation.
    unsafe { device.zero(w, 40) }.unwrap();
    if captured {
        device.begin_capture().unwrap();
        submit(1);
        let graph = device.end_capture().unwrap();
        assert_eq!(values::<f32>(&device, w, 10), [0.0; 10], "a capture runs nothing");
        // SAFETY: the buffers are live.
        (0..3).for_each(|_| unsafe { device.replay(graph) }.unwrap());
        device.forget(graph);
        // SAFETY: refused.
        assert!(unsafe { device.replay(graph) }.is_err());
    } else {
        (1..=3).for_each(submit);
    }
    values(&device, w, 10)
}

#[test]
fn replays_equal_plain_steps_unless_a_value_is_baked_in() {
    assert_eq!(three_steps(true, false), three_steps(false, false));
    assert_eq!(three_steps(true, false), [6.0; 10]);
    assert_ne!(three_steps(true, true), three_steps(false, true));
}

#[test]
fn what_a_capture_refuses() {
    let device = device();
    let (a, b) = (buffer(&device, &[1u32, 2]), buffer(&device, &[3u32, 4]));
    assert!(device.end_capture().is_err());
    device.begin_capture().unwrap();
    assert!(device.begin_capture().is_err());
    assert!(device.synchronize().is_err());
    // SAFETY: refused, or within live allocations.
    unsafe {
        assert!(device.upload(&[0; 4], a).unwrap_err().to_string().contains("during a capture"));
        assert!(device.download(a, &mut [0; 4]).is_err());
        device.copy(a, b, 4).unwrap();
        device.zero(a, 4).unwrap();
        let graph = device.end_capture().unwrap();
        assert_eq!(values::<u32>(&device, b, 2), [3, 4]);
        device.replay(graph).unwrap();
        assert_eq!((values::<u32>(&device, a, 2), values::<u32>(&device, b, 2)), (vec![0, 2], vec![1, 4]));
        // A graph does not outlive its buffers.
        device.release(b);
        assert!(device.replay(graph).unwrap_err().to_string().contains("not in a live allocation"));
    }
}

#[test]
fn a_missing_folder_is_named() {
    let error = EmulatorDevice::load("/no/such/folder").unwrap_err().to_string();
    assert!(error.contains("/no/such/folder") && error.contains("kernel_emulator::compile"), "{error}");
}

/// A buffer of pinned memory, and its content.
fn pinned(device: &EmulatorDevice, values: [u8; 4]) -> (NonNull<u8>, &'static mut [u8]) {
    let memory = device.allocate_pinned(4).unwrap();
    // SAFETY: just allocated, and freed at the end of the test.
    let slice = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), 4) };
    assert_eq!(slice, [0xff; 4], "poisoned");
    slice.copy_from_slice(&values);
    (memory, slice)
}

#[test]
fn a_copy_that_nobody_waited_for_reads_as_late_as_it_may() {
    let device = device();
    let (target, kept) = (buffer(&device, &[0u8; 4]), buffer(&device, &[0u8; 4]));
    let ((early, _), (late, written)) = (pinned(&device, [1; 4]), pinned(&device, [2; 4]));
    // SAFETY: both are as long as the copy; the second source is changed on purpose.
    let (first, second) = unsafe {
        let first = device.submit_upload(early, 4, target).unwrap();
        device.copy(target, kept, 4).unwrap();
        (first, device.submit_upload(late, 4, target).unwrap())
    };
    // The host writes before it has waited: the device reads that.
    written.fill(3);
    device.wait_for(first).unwrap();
    device.wait_for(second).unwrap();
    assert_eq!((values::<u8>(&device, target, 4), values::<u8>(&device, kept, 4)), (vec![3; 4], vec![1; 4]));
    // A wait covers a copy and the work before it, not later work.
    // SAFETY: as above.
    let (first, _) =
        unsafe { (device.submit_upload(early, 4, target).unwrap(), device.submit_upload(late, 4, target).unwrap()) };
    device.wait_for(first).unwrap();
    written.fill(4);
    assert_eq!(values::<u8>(&device, target, 4), [4; 4]);
    // SAFETY: nothing is copied from them any more, after the download's wait.
    unsafe {
        let forgotten = device.submit_upload(early, 4, target).unwrap();
        device.release_pinned(early, 4);
        let error = device.wait_for(forgotten).unwrap_err().to_string();
        assert!(error.contains("given back before it was done"), "{error}");
        device.release_pinned(late, 4);
        device.release(target);
        device.release(kept);
    }
    assert_eq!(device.live_allocations(), 0);
}
