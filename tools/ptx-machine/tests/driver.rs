//! The driver's rules: what is done wrong, and the error that cuda.h documents for it.

#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of the driver with pointers to live values throughout")]

mod common;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, Once};

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

/// One test at a time: the driver is the process's.
fn driver() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static SET: Once = Once::new();
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    SET.call_once(|| unsafe {
        std::env::set_var("PTX_MACHINE_DEVICE", "a100,h100");
        std::env::set_var("PTX_MACHINE_STEPS", "100000");
        let mut count = 0;
        assert_eq!(cuDeviceGetCount(&mut count), NOT_INITIALIZED);
        assert_eq!(cuInit(1), INVALID_VALUE);
        assert_eq!(cuInit(0), SUCCESS);
    });
    guard
}

/// A device's primary context, made current; released when dropped.
struct Opened {
    device: i32,
    context: *mut c_void,
    stream: *mut c_void,
}

impl Opened {
    fn new(device: i32) -> Self {
        let (mut context, mut stream) = (null_mut(), null_mut());
        unsafe {
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), SUCCESS);
            assert_eq!(cuCtxSetCurrent(context), SUCCESS);
            assert_eq!(cuStreamCreate(&mut stream, 1), SUCCESS);
        }
        Self { device, context, stream }
    }

    fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, SUCCESS);
        address
    }

    fn load(&self, text: &str) -> Result<*mut c_void, (Code, String)> {
        let text = CString::new(text).unwrap();
        let mut log = vec![0u8; 512];
        let names = [5u32, 6];
        let values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
        let mut module = null_mut();
        match unsafe { cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, names.as_ptr(), values.as_ptr()) } {
            SUCCESS => Ok(module),
            code => {
                let end = log.iter().position(|&byte| byte == 0).unwrap();
                Err((code, String::from_utf8_lossy(&log[..end]).into_owned()))
            }
        }
    }

    fn function(&self, body: &str) -> *mut c_void {
        let module = self.load(&common::module(1, 1, body)).unwrap_or_else(|fault| panic!("{fault:?}"));
        let mut function = null_mut();
        assert_eq!(unsafe { cuModuleGetFunction(&mut function, module, c"k".as_ptr()) }, SUCCESS);
        assert_eq!(unsafe { cuFuncLoad(function) }, SUCCESS);
        function
    }

    fn launch(
        &self,
        function: *mut c_void,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        address: u64,
        word: u32,
    ) -> Code {
        let (mut address, mut word) = (address, word);
        let params = [(&raw mut address).cast::<c_void>(), (&raw mut word).cast()];
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        unsafe { cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, self.stream, params.as_ptr(), null()) }
    }

    fn synchronize(&self) -> Code {
        unsafe { cuStreamSynchronize(self.stream) }
    }

    fn capture(&self, mode: u32) {
        assert_eq!(unsafe { cuStreamBeginCapture_v2(self.stream, mode) }, SUCCESS);
    }

    fn end(&self) -> (Code, *mut c_void) {
        let mut graph = null_mut();
        let code = unsafe { cuStreamEndCapture(self.stream, &mut graph) };
        (code, graph)
    }

    fn words(&self, address: u64, count: usize) -> Vec<u32> {
        let mut values = vec![0u32; count];
        assert_eq!(unsafe { cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 4 * count) }, SUCCESS);
        values
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        unsafe {
            cuCtxSetCurrent(null_mut());
            cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Adds `word` to each of the first 32 words.
const ADD: &str = "mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 4; add.s64 %d1, %d20, %d0; ld.global.u32 %r1, [%d1];\n\
                   add.s32 %r1, %r1, %r40; st.global.u32 [%d1], %r1;";

const ONE: [u32; 3] = [1, 1, 1];
const WARP: [u32; 3] = [32, 1, 1];

#[test]
fn devices_have_their_models_numbers() {
    let _guard = driver();
    unsafe {
        let mut count = 0;
        assert_eq!((cuDeviceGetCount(&mut count), count), (SUCCESS, 2));
        let attribute = |which, device| {
            let mut value = -1;
            assert_eq!(cuDeviceGetAttribute(&mut value, which, device), SUCCESS);
            value
        };
        assert_eq!([75, 76, 16, 97].map(|which| attribute(which, 0)), [8, 0, 108, 163 << 10]);
        assert_eq!([75, 76, 16, 97].map(|which| attribute(which, 1)), [9, 0, 132, 227 << 10]);
        let mut name = [1i8; 8];
        assert_eq!(cuDeviceGetName(name.as_mut_ptr().cast(), 8, 0), SUCCESS);
        assert_eq!(name[7], 0);
    }
}

#[test]
fn work_is_done_in_order_and_late() {
    let _guard = driver();
    let opened = Opened::new(0);
    let function = opened.function(ADD);
    let address = opened.alloc(128);
    let mut pinned = null_mut();
    unsafe {
        assert_eq!(cuMemAllocHost_v2(&mut pinned, 128), SUCCESS);
        let host = std::slice::from_raw_parts_mut(pinned.cast::<u32>(), 32);
        host.fill(5);
        assert_eq!(cuMemcpyHtoDAsync_v2(address, pinned, 128, opened.stream), SUCCESS);
        // Written too early: the copy has not been made yet.
        host.fill(7);
        assert_eq!(opened.launch(function, ONE, WARP, 0, address, 3), SUCCESS);
        assert_eq!(cuMemcpyDtoHAsync_v2(pinned, address, 128, opened.stream), SUCCESS);
        // Read too early.
        assert_eq!(host[0], 7);
        assert_eq!(opened.synchronize(), SUCCESS);
        assert_eq!(host[31], 10);
    }
    // A graph replays what was captured.
    opened.capture(1);
    assert_eq!(opened.launch(function, ONE, WARP, 0, address, 1), SUCCESS);
    let (code, graph) = opened.end();
    assert_eq!(code, SUCCESS);
    let mut executable = null_mut();
    unsafe {
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
        assert_eq!(cuGraphDestroy(graph), SUCCESS);
        assert_eq!(cuGraphUpload(executable, opened.stream), SUCCESS);
        for _ in 0..3 {
            assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
        }
    }
    assert_eq!(opened.words(address, 32), [13; 32]);
    // By cuLaunchKernelEx, with an attribute.
    let (mut a, mut w) = (address, 2u32);
    let params = [(&raw mut a).cast::<c_void>(), (&raw mut w).cast()];
    let mut attribute = LaunchAttribute { id: 6, pad: [0; 4], value: [0; 16] };
    attribute.value[0] = 1;
    let config = LaunchConfig {
        grid: ONE,
        block: WARP,
        shared: 0,
        stream: opened.stream,
        attributes: &attribute,
        attribute_count: 1,
    };
    assert_eq!(unsafe { cuLaunchKernelEx(&config, function, params.as_ptr(), null()) }, SUCCESS);
    assert_eq!(opened.words(address, 32), [15; 32]);
    // Two streams and events.
    unsafe {
        let (mut other, mut start, mut end) = (null_mut(), null_mut(), null_mut());
        assert_eq!(cuStreamCreate(&mut other, 1), SUCCESS);
        assert_eq!(cuEventCreate(&mut start, 0), SUCCESS);
        assert_eq!(cuEventCreate(&mut end, 0), SUCCESS);
        assert_eq!(cuEventRecord(start, opened.stream), SUCCESS);
        assert_eq!(cuEventQuery(start), NOT_READY);
        assert_eq!(cuStreamWaitEvent(other, start, 0), SUCCESS);
        assert_eq!(cuEventRecord(end, other), SUCCESS);
        assert_eq!(cuEventSynchronize(end), SUCCESS);
        assert_eq!(cuEventQuery(start), SUCCESS);
        let mut time = -1.0;
        assert_eq!(cuEventElapsedTime(&mut time, start, end), SUCCESS);
        assert!(time >= 0.0);
        // A fork of a capture that is joined.
        opened.capture(0);
        assert_eq!(cuEventRecord(start, opened.stream), SUCCESS);
        assert_eq!(cuStreamWaitEvent(other, start, 0), SUCCESS);
        assert_eq!(cuMemsetD32Async(address, 0, 32, other), SUCCESS);
        assert_eq!(cuEventRecord(end, other), SUCCESS);
        assert_eq!(cuStreamWaitEvent(opened.stream, end, 0), SUCCESS);
        assert_eq!(opened.end().0, SUCCESS);
    }
}

/// Misuses that were asked for, and those that gave another error.
#[derive(Default)]
struct Table {
    asked: usize,
    wrong: Vec<String>,
}

impl Table {
    fn expect(&mut self, what: &str, code: Code, expected: Code) {
        self.asked += 1;
        if code != expected {
            self.wrong.push(format!("{what}: {code}, expected {expected}"));
        }
    }
}

/// Each misuse gives its error; the driver is usable behind it.
#[test]
fn misuses_give_the_documented_errors() {
    let _guard = driver();
    let mut table = Table::default();
    without_a_context(&mut table);
    let opened = Opened::new(0);
    let other = Opened::new(1);
    let foreign = other.function(ADD);
    unsafe {
        table.expect("a stream of another context", cuStreamSynchronize(opened.stream), INVALID_HANDLE);
        cuCtxSetCurrent(opened.context);
        table.expect("a function of another context", opened.launch(foreign, ONE, WARP, 0, 0, 0), INVALID_HANDLE);
    }
    with_memory(&mut table, &opened);
    with_modules(&mut table, &opened);
    with_launches(&mut table, &opened);
    with_streams_and_events(&mut table, &opened);
    drop((opened, other));
    assert!(table.wrong.is_empty(), "{}", table.wrong.join("\n"));
    assert!(table.asked >= 50, "{}", table.asked);
}

fn without_a_context(table: &mut Table) {
    unsafe {
        let mut pointer = null_mut();
        let mut address = 0;
        table.expect("a device that is not there", cuDeviceGet(&mut 0, 2), INVALID_DEVICE);
        table.expect("a negative device", cuDevicePrimaryCtxRetain(&mut pointer, -1), INVALID_DEVICE);
        table.expect("an unknown attribute", cuDeviceGetAttribute(&mut 0, 9999, 0), INVALID_VALUE);
        table.expect("a result to nowhere", cuDeviceGetCount(null_mut()), INVALID_VALUE);
        table.expect("an unknown error's name", cuGetErrorName(12345, &mut null()), INVALID_VALUE);
        table.expect("no context: allocate", cuMemAlloc_v2(&mut address, 16), INVALID_CONTEXT);
        table.expect("no context: stream", cuStreamCreate(&mut pointer, 0), INVALID_CONTEXT);
        table.expect(
            "a context that is none",
            cuCtxSetCurrent(std::ptr::without_provenance_mut(0x1234)),
            INVALID_CONTEXT,
        );
        table.expect("pop of an empty stack", cuCtxPopCurrent_v2(&mut pointer), INVALID_CONTEXT);
        table.expect("release of what was not retained", cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
    }
}

fn with_memory(table: &mut Table, opened: &Opened) {
    unsafe {
        let mut pointer = null_mut();
        let mut address = 0;
        table.expect("stream flags", cuStreamCreate(&mut pointer, 4), INVALID_VALUE);
        table.expect("no bytes", cuMemAlloc_v2(&mut address, 0), INVALID_VALUE);
        table.expect("too many bytes", cuMemAlloc_v2(&mut address, 41 << 30), OUT_OF_MEMORY);
        table.expect("free of what is none", cuMemFree_v2(0x7000_0000_1234), INVALID_VALUE);
        table.expect("free of null", cuMemFree_v2(0), SUCCESS);
        let memory = opened.alloc(128);
        table.expect("free of the middle", cuMemFree_v2(memory + 16), INVALID_VALUE);
        table.expect("a copy beyond", cuMemcpyDtoDAsync_v2(memory, memory + 64, 65, opened.stream), INVALID_VALUE);
        table.expect("a copy from null", cuMemcpyHtoDAsync_v2(memory, null(), 4, opened.stream), INVALID_VALUE);
        table.expect("a fill beyond", cuMemsetD8Async(memory, 0, 129, opened.stream), INVALID_VALUE);
        table.expect("a misaligned fill", cuMemsetD32Async(memory + 2, 0, 1, opened.stream), INVALID_VALUE);
        table.expect("pinned memory of no bytes", cuMemAllocHost_v2(&mut pointer, 0), INVALID_VALUE);
        table.expect("pinned memory that is none", cuMemFreeHost((&raw mut address).cast()), INVALID_VALUE);
        table.expect("pinned memory of unknown flags", cuMemHostAlloc(&mut pointer, 16, 8), INVALID_VALUE);
        assert_eq!(cuMemHostAlloc(&mut pointer, 16, 0), SUCCESS);
        table.expect("the middle of pinned memory", cuMemFreeHost(pointer.wrapping_byte_add(4)), INVALID_VALUE);
        table.expect("pinned memory", cuMemFreeHost(pointer), SUCCESS);
        table.expect("pinned memory freed twice", cuMemFreeHost(pointer), INVALID_VALUE);
        let gone = opened.alloc(16);
        assert_eq!(cuMemFree_v2(gone), SUCCESS);
        table.expect("freed twice", cuMemFree_v2(gone), INVALID_VALUE);
        table.expect("a copy to freed memory", cuMemcpyDtoDAsync_v2(gone, memory, 16, opened.stream), INVALID_VALUE);
    }
}

fn with_modules(table: &mut Table, opened: &Opened) {
    let mut module = |what: &str, text: &str, expected: Code, words: &str| {
        let (code, log) = opened.load(text).expect_err(what);
        table.expect(what, code, expected);
        assert!(log.contains(words), "{what}: {log}");
    };
    let good = common::module(1, 1, ADD);
    module("no PTX", "\u{7f}ELF", INVALID_IMAGE, "");
    module("PTX of a newer toolchain", &good.replace("8.4", "9.0"), UNSUPPORTED_PTX_VERSION, "");
    module(
        "an unknown instruction",
        &good.replace("add.s32", "addd.s32"),
        INVALID_PTX,
        "addd.s32: unknown instruction",
    );
    module("an unknown modifier", &good.replace("add.s32", "add.fast.s32"), INVALID_PTX, "unknown modifier .fast");
    module("a newer device's PTX", &good.replace("sm_80", "sm_90"), INVALID_PTX, "sm_90 on a device of sm_80");
    let waits = good.replace("st.global", "griddepcontrol.wait; st.global");
    module("an instruction of 9.0", &waits, INVALID_PTX, "griddepcontrol.wait: needs .target sm_90 or newer");
    module("another device's own PTX", &good.replace("sm_80", "sm_80a1"), INVALID_PTX, "unknown target");
    let function = opened.function(ADD);
    unsafe {
        let mut pointer = null_mut();
        let loaded = opened.load(&good).unwrap();
        table.expect(
            "a function that is not there",
            cuModuleGetFunction(&mut pointer, loaded, c"nothing".as_ptr()),
            NOT_FOUND,
        );
        table.expect(
            "a global that is not there",
            cuModuleGetGlobal_v2(&mut 0, null_mut(), loaded, c"x".as_ptr()),
            NOT_FOUND,
        );
        let mut stale = null_mut();
        assert_eq!(cuModuleGetFunction(&mut stale, loaded, c"k".as_ptr()), SUCCESS);
        assert_eq!(cuModuleUnload(loaded), SUCCESS);
        table.expect("unloaded twice", cuModuleUnload(loaded), INVALID_HANDLE);
        table.expect("a function of an unloaded module", opened.launch(stale, ONE, WARP, 0, 0, 0), INVALID_HANDLE);
        table.expect("an unknown function attribute", cuFuncSetAttribute(function, 99, 0), INVALID_VALUE);
        table.expect("an attribute that cannot be set", cuFuncSetAttribute(function, 0, 64), INVALID_VALUE);
        table.expect(
            "more shared memory than there is",
            cuFuncSetAttribute(function, 8, (163 << 10) + 1),
            INVALID_VALUE,
        );
    }
}

fn with_launches(table: &mut Table, opened: &Opened) {
    let function = opened.function(ADD);
    let good = common::module(1, 1, ADD);
    let memory = opened.alloc(128);
    let mut launch = |what: &str, grid, block, shared, expected| {
        table.expect(what, opened.launch(function, grid, block, shared, memory, 0), expected);
    };
    launch("an empty grid", [0, 1, 1], WARP, 0, INVALID_VALUE);
    launch("a grid too high", [1, 65_536, 1], WARP, 0, INVALID_VALUE);
    launch("an empty block", ONE, [0, 1, 1], 0, INVALID_VALUE);
    launch("a block of too many threads", ONE, [32, 33, 1], 0, INVALID_VALUE);
    launch("a block too deep", ONE, [1, 1, 65], 0, INVALID_VALUE);
    launch("shared memory without asking", ONE, WARP, (48 << 10) + 1, INVALID_VALUE);
    let bounded = opened.load(&good.replace("\n{\n", "\n.maxntid 64, 1, 1\n{\n")).unwrap();
    let required = opened.load(&good.replace("\n{\n", "\n.reqntid 64, 1, 1\n{\n")).unwrap();
    unsafe {
        let mut of = null_mut();
        assert_eq!(cuModuleGetFunction(&mut of, bounded, c"k".as_ptr()), SUCCESS);
        table.expect(
            "more threads than its bound",
            opened.launch(of, ONE, [96, 1, 1], 0, memory, 0),
            LAUNCH_OUT_OF_RESOURCES,
        );
        assert_eq!(cuModuleGetFunction(&mut of, required, c"k".as_ptr()), SUCCESS);
        table.expect("another block than it requires", opened.launch(of, ONE, WARP, 0, memory, 0), INVALID_VALUE);
        let nothing = cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, opened.stream, null(), null());
        table.expect("no parameters", nothing, INVALID_VALUE);
        let mut config = LaunchConfig {
            grid: ONE,
            block: WARP,
            shared: 0,
            stream: opened.stream,
            attributes: null(),
            attribute_count: 1,
        };
        table.expect("attributes at null", cuLaunchKernelEx(&config, function, null(), null()), INVALID_VALUE);
        let mut attribute = LaunchAttribute { id: 4, pad: [0; 4], value: [0; 16] };
        attribute.value[..3].copy_from_slice(&[2, 1, 1]);
        config.attributes = &attribute;
        table.expect("a cluster on 8.0", cuLaunchKernelEx(&config, function, null(), null()), NOT_SUPPORTED);
        attribute.id = 3;
        config.attributes = &attribute;
        table.expect("a stream's attribute", cuLaunchKernelEx(&config, function, null(), null()), INVALID_VALUE);
        attribute.id = 2;
        attribute.value[0] = 1;
        config.attributes = &attribute;
        table.expect("a cooperative grid", cuLaunchKernelEx(&config, function, null(), null()), NOT_SUPPORTED);
        attribute.id = 77;
        config.attributes = &attribute;
        table.expect("an unknown launch attribute", cuLaunchKernelEx(&config, function, null(), null()), INVALID_VALUE);
    }
}

fn with_streams_and_events(table: &mut Table, opened: &Opened) {
    unsafe {
        table.expect("a stream that is none", cuStreamQuery(std::ptr::without_provenance_mut(0x99)), INVALID_HANDLE);
        let mut stream = null_mut();
        assert_eq!(cuStreamCreate(&mut stream, 1), SUCCESS);
        assert_eq!(cuStreamDestroy_v2(stream), SUCCESS);
        table.expect("a destroyed stream", cuStreamSynchronize(stream), INVALID_HANDLE);
        table.expect("an event that is none", cuEventRecord(null_mut(), opened.stream), INVALID_HANDLE);
        let mut event = null_mut();
        assert_eq!(cuEventCreate(&mut event, 2), SUCCESS);
        table.expect("times of an event without", cuEventElapsedTime(&mut 0.0, event, event), INVALID_HANDLE);
        assert_eq!(cuEventDestroy_v2(event), SUCCESS);
        table.expect("a destroyed event", cuEventDestroy_v2(event), INVALID_HANDLE);
    }
}

/// What a capture forbids, and whether the capture is lost by it.
#[test]
fn captures_are_invalidated_by_what_they_forbid() {
    let _guard = driver();
    let opened = Opened::new(0);
    let function = opened.function(ADD);
    let memory = opened.alloc(128);
    let mut free = null_mut();
    assert_eq!(unsafe { cuEventCreate(&mut free, 0) }, SUCCESS);
    assert_eq!(opened.end().0, ILLEGAL_STATE, "no capture to end");
    unsafe {
        assert_eq!(cuStreamBeginCapture_v2(opened.stream, 3), INVALID_VALUE);
        assert_eq!(cuStreamBeginCapture_v2(null_mut(), 1), STREAM_CAPTURE_UNSUPPORTED, "the legacy stream");
    }
    type Act<'a> = &'a dyn Fn() -> Code;
    let good = CString::new(common::module(1, 1, ADD)).unwrap();
    let forbidden: &[(&str, Code, Act<'_>)] = &[
        ("allocate", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuMemAlloc_v2(&mut 0, 16) }),
        ("free", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuMemFree_v2(memory) }),
        ("pin", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuMemAllocHost_v2(&mut null_mut(), 16) }),
        ("load", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuModuleLoadData(&mut null_mut(), good.as_ptr().cast()) }),
        ("load a function", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuFuncLoad(function) }),
        ("copy and wait", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuMemcpyDtoD_v2(memory, memory, 4) }),
        ("copy from pageable memory", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe {
            cuMemcpyHtoDAsync_v2(memory, [1u32].as_ptr().cast(), 4, opened.stream)
        }),
        ("copy to pageable memory", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe {
            cuMemcpyDtoHAsync_v2([1u32].as_mut_ptr().cast(), memory, 4, opened.stream)
        }),
        ("ask an event", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuEventQuery(free) }),
        ("wait for the stream", STREAM_CAPTURE_UNSUPPORTED, &|| opened.synchronize()),
        ("ask the stream", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuStreamQuery(opened.stream) }),
        ("wait for the context", STREAM_CAPTURE_UNSUPPORTED, &|| unsafe { cuCtxSynchronize() }),
        ("wait for what is not captured", STREAM_CAPTURE_ISOLATION, &|| unsafe {
            cuStreamWaitEvent(opened.stream, free, 0)
        }),
    ];
    for (what, expected, act) in forbidden {
        opened.capture(1);
        assert_eq!(act(), *expected, "{what}");
        assert_eq!(opened.launch(function, ONE, WARP, 0, memory, 0), STREAM_CAPTURE_INVALIDATED, "{what}");
        let (code, graph) = opened.end();
        assert_eq!((code, graph.is_null()), (STREAM_CAPTURE_INVALIDATED, true), "{what}");
        assert_eq!(opened.synchronize(), SUCCESS);
    }
}

#[test]
fn captures_end_where_and_as_they_began() {
    let _guard = driver();
    let opened = Opened::new(0);
    let memory = opened.alloc(128);
    let (mut other, mut event) = (null_mut(), null_mut());
    unsafe {
        assert_eq!(cuStreamCreate(&mut other, 0), SUCCESS);
        assert_eq!(cuEventCreate(&mut event, 0), SUCCESS);
    }
    unsafe {
        // A second capture of the stream; an event of a capture.
        opened.capture(1);
        assert_eq!(cuStreamBeginCapture_v2(opened.stream, 1), ILLEGAL_STATE);
        assert_eq!(cuEventRecord(event, opened.stream), SUCCESS);
        let mut status = 9;
        assert_eq!((cuStreamIsCapturing(opened.stream, &mut status), status), (SUCCESS, 1));
        assert_eq!(opened.end().0, SUCCESS);
        assert_eq!(cuEventQuery(event), CAPTURED_EVENT);
        // A fork that nobody joins.
        opened.capture(1);
        assert_eq!(cuEventRecord(event, opened.stream), SUCCESS);
        assert_eq!(cuStreamWaitEvent(other, event, 0), SUCCESS);
        assert_eq!(cuMemsetD8Async(memory, 0, 4, other), SUCCESS);
        let mut graph = null_mut();
        assert_eq!(opened.end().0, STREAM_CAPTURE_UNJOINED);
        // Ended where it did not begin.
        opened.capture(1);
        assert_eq!(cuEventRecord(event, opened.stream), SUCCESS);
        assert_eq!(cuStreamWaitEvent(other, event, 0), SUCCESS);
        assert_eq!(cuStreamEndCapture(other, &mut graph), STREAM_CAPTURE_UNMATCHED);
        assert_eq!(opened.end().0, STREAM_CAPTURE_INVALIDATED);
        // The legacy stream waits for blocking streams.
        assert_eq!(cuStreamBeginCapture_v2(other, 2), SUCCESS);
        assert_eq!(cuMemsetD8Async(memory, 0, 4, null_mut()), STREAM_CAPTURE_IMPLICIT);
        assert_eq!(cuStreamEndCapture(other, &mut graph), STREAM_CAPTURE_INVALIDATED);
        // Relaxed: anything goes that is not the stream's own.
        opened.capture(2);
        assert_eq!(cuMemAlloc_v2(&mut 0, 16), SUCCESS);
        assert_eq!(opened.end().0, SUCCESS);
        // A thread that asks for it may do more; its capture is its own.
        let mut mode = 2;
        assert_eq!((cuThreadExchangeStreamCaptureMode(&mut mode), mode), (SUCCESS, 0));
        opened.capture(0);
        assert_eq!(cuMemAlloc_v2(&mut 0, 16), SUCCESS);
        assert_eq!(cuThreadExchangeStreamCaptureMode(&mut mode), SUCCESS);
        let (context, stream) = (opened.context as usize, opened.stream as usize);
        let codes = std::thread::spawn(move || {
            let mut graph = null_mut();
            cuCtxSetCurrent(context as *mut c_void);
            (cuStreamEndCapture(stream as *mut c_void, &mut graph), cuMemAlloc_v2(&mut 0, 16))
        });
        assert_eq!(codes.join().unwrap(), (STREAM_CAPTURE_WRONG_THREAD, STREAM_CAPTURE_UNSUPPORTED));
        assert_eq!(opened.end().0, STREAM_CAPTURE_INVALIDATED);
        // Graphs that are gone.
        opened.capture(1);
        let (code, graph) = opened.end();
        assert_eq!(code, SUCCESS);
        assert_eq!(cuGraphDestroy(graph), SUCCESS);
        assert_eq!(cuGraphDestroy(graph), INVALID_VALUE);
        let mut executable = null_mut();
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), INVALID_VALUE);
        assert_eq!(cuGraphLaunch(executable, opened.stream), INVALID_VALUE);
        assert_eq!(cuGraphUpload(executable, opened.stream), INVALID_VALUE);
        assert_eq!(cuGraphExecDestroy(executable), INVALID_VALUE);
    }
}

#[test]
fn a_fault_stays_with_its_context() {
    let _guard = driver();
    let other = Opened::new(1);
    let faults: &[(&str, &str, Code)] = &[
        ("an address that is none", "mov.u64 %d1, 64; st.global.u32 [%d1], 1;", ILLEGAL_ADDRESS),
        ("a misaligned one", "st.global.u32 [%d20+2], 1;", MISALIGNED_ADDRESS),
        ("a trap", "trap;", ILLEGAL_INSTRUCTION),
        ("no end", "L: bra L;", LAUNCH_TIMEOUT),
        ("a race", "mov.u32 %r0, %tid.x; st.global.u32 [%d20], %r0;", LAUNCH_FAILED),
    ];
    for (what, body, code) in faults {
        let opened = Opened::new(0);
        let function = opened.function(body);
        let memory = opened.alloc(128);
        assert_eq!(opened.launch(function, ONE, WARP, 0, memory, 0), SUCCESS, "{what}");
        assert_eq!(opened.synchronize(), *code, "{what}");
        unsafe {
            assert_eq!(opened.synchronize(), *code, "{what}");
            assert_eq!(cuMemAlloc_v2(&mut 0, 16), *code, "{what}");
            assert_eq!(cuMemFree_v2(memory), *code, "{what}");
            assert_eq!(opened.launch(function, ONE, WARP, 0, memory, 0), *code, "{what}");
            // The other device's context is not touched.
            assert_eq!(cuCtxSetCurrent(other.context), SUCCESS);
            assert_eq!(cuMemAlloc_v2(&mut 0, 16), SUCCESS);
        }
    }
    // A graph that uses memory which is gone.
    let opened = Opened::new(0);
    let function = opened.function(ADD);
    let memory = opened.alloc(128);
    opened.capture(1);
    assert_eq!(opened.launch(function, ONE, WARP, 0, memory, 0), SUCCESS);
    let (_, graph) = opened.end();
    let mut executable = null_mut();
    unsafe {
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), SUCCESS);
        assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
        assert_eq!(opened.synchronize(), ILLEGAL_ADDRESS);
    }
}

/// Copies between the device and pinned memory, captured: each replay moves what is there then.
#[test]
fn captured_copies_read_pinned_memory_at_each_replay() {
    let _guard = driver();
    let opened = Opened::new(0);
    let function = opened.function(ADD);
    let memory = opened.alloc(128);
    let (mut input, mut output, mut done) = (null_mut(), null_mut(), null_mut());
    unsafe {
        assert_eq!(cuMemHostAlloc(&mut input, 128, 4), SUCCESS);
        assert_eq!(cuMemHostAlloc(&mut output, 128, 0), SUCCESS);
        assert_eq!(cuEventCreate(&mut done, 2), SUCCESS);
        opened.capture(1);
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, input, 128, opened.stream), SUCCESS);
        assert_eq!(opened.launch(function, ONE, WARP, 0, memory, 1), SUCCESS);
        assert_eq!(cuMemcpyDtoHAsync_v2(output, memory, 128, opened.stream), SUCCESS);
        let (code, graph) = opened.end();
        assert_eq!(code, SUCCESS);
        let mut executable = null_mut();
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
        for step in 0..3u32 {
            std::slice::from_raw_parts_mut(input.cast::<u32>(), 32).fill(10 * step);
            assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
            assert_eq!(cuEventRecord(done, opened.stream), SUCCESS);
            while cuEventQuery(done) == NOT_READY {}
            assert_eq!(std::slice::from_raw_parts(output.cast::<u32>(), 32), [10 * step + 1; 32]);
        }
        // Freed, and replayed all the same.
        assert_eq!(cuMemFreeHost(output), SUCCESS);
        assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
        assert_eq!(opened.synchronize(), ILLEGAL_ADDRESS);
    }
}

/// A launch that may begin before the one in front of it has ended, on both capabilities.
#[test]
fn dependent_launches_wait_for_what_they_read() {
    let _guard = driver();
    let wait = ADD.replace("ld.global", "griddepcontrol.launch_dependents; griddepcontrol.wait; ld.global");
    for (device, target, body, expected) in
        [(0, "sm_80", ADD, SUCCESS), (1, "sm_80", ADD, LAUNCH_FAILED), (1, "sm_90", wait.as_str(), SUCCESS)]
    {
        let opened = Opened::new(device);
        let module = opened.load(&common::module(1, 1, body).replace("sm_80", target)).unwrap();
        let mut function = null_mut();
        assert_eq!(unsafe { cuModuleGetFunction(&mut function, module, c"k".as_ptr()) }, SUCCESS);
        let memory = opened.alloc(128);
        let dependent = || {
            let (mut a, mut w) = (memory, 1u32);
            let params = [(&raw mut a).cast::<c_void>(), (&raw mut w).cast()];
            let mut attribute = LaunchAttribute { id: 6, pad: [0; 4], value: [0; 16] };
            attribute.value[0] = 1;
            let (attributes, attribute_count) = (&raw const attribute, 1);
            let config =
                LaunchConfig { grid: ONE, block: WARP, shared: 0, stream: opened.stream, attributes, attribute_count };
            unsafe { cuLaunchKernelEx(&config, function, params.as_ptr(), null()) }
        };
        unsafe { assert_eq!(cuMemsetD32Async(memory, 0, 32, opened.stream), SUCCESS) };
        // Behind a fill there is no launch to begin before.
        assert_eq!(dependent(), SUCCESS);
        assert_eq!(opened.synchronize(), SUCCESS, "{device} {target}");
        // Twice in a graph.
        opened.capture(1);
        assert_eq!((dependent(), dependent()), (SUCCESS, SUCCESS));
        let (_, graph) = opened.end();
        let mut executable = null_mut();
        unsafe {
            assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
            assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
        }
        assert_eq!(opened.synchronize(), expected, "{device} {target}");
        if expected == SUCCESS {
            assert_eq!(opened.words(memory, 32), [3; 32]);
        }
    }
}
