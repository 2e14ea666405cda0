//! A table of misuses, and the error that cuda.h documents for each.

use std::ptr::{null, null_mut};

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

use super::common;
use super::opened::{ADD, ONE, Opened, WARP, driver};

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
    with_capability_9(&mut table, &opened, &other);
    unsafe {
        table.expect("a stream of another context", cuStreamSynchronize(opened.stream), INVALID_HANDLE);
        cuCtxSetCurrent(opened.context);
        table.expect("a function of another context", opened.launch(foreign, ONE, WARP, 0, 0, 0), INVALID_HANDLE);
    }
    with_memory(&mut table, &opened);
    with_modules(&mut table, &opened);
    with_launches(&mut table, &opened);
    with_registers(&mut table, &opened);
    with_streams_and_events(&mut table, &opened);
    drop((opened, other));
    assert!(table.wrong.is_empty(), "{}", table.wrong.join("\n"));
    assert!(table.asked >= 50, "{}", table.asked);
}

/// Calls that a device of capability 9.0 takes and one of 8.0 does not.
fn with_capability_9(table: &mut Table, older: &Opened, newer: &Opened) {
    let own = common::module(1, 1, ADD).replace("sm_80", "sm_90a");
    unsafe {
        for (opened, what, most, expected) in
            [(older, "8.0", 163 << 10, INVALID_PTX), (newer, "9.0", 227 << 10, SUCCESS)]
        {
            assert_eq!(cuCtxSetCurrent(opened.context), SUCCESS);
            let loaded = opened.load(&own).map_or_else(|(code, _)| code, |_| SUCCESS);
            table.expect(&format!("PTX of sm_90a on {what}"), loaded, expected);
            let function = opened.function(ADD);
            table.expect(&format!("shared memory of {what}"), cuFuncSetAttribute(function, 8, most), SUCCESS);
            let beyond = cuFuncSetAttribute(function, 8, most + 1);
            table.expect(&format!("shared memory beyond that of {what}"), beyond, INVALID_VALUE);
        }
    }
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

/// A kernel with 200 values alive at once, each of a register.
fn hungry(directives: &str) -> String {
    let load = |i: usize| format!("ld.global.u32 %w{i}, [%d20+{}];\n", i % 32 * 4);
    let sum = |i: usize| format!("add.s32 %r1, %r1, %w{i};\n");
    let (loads, sums): (String, String) = ((0..200).map(load).collect(), (0..200).map(sum).collect());
    let only = "mov.u32 %r0, %tid.x; setp.eq.s32 %p1, %r0, 0; @%p1 st.global.u32 [%d20+128], %r1;";
    let body = format!(".reg .b32 %w<200>;\n{loads}mov.u32 %r1, 0;\n{sums}{only}");
    common::module(1, 1, &body).replacen("\n{\n", &format!("\n{directives}\n{{\n"), 1)
}

/// Registers limit a block's threads, unless the kernel tells the compiler in time how many there will be.
fn with_registers(table: &mut Table, opened: &Opened) {
    let memory = opened.alloc(256);
    assert_eq!(unsafe { cuMemsetD32Async(memory, 1, 32, opened.stream) }, SUCCESS);
    let mut launch = |what: &str, directives: &str, threads: u32, expected: Code| {
        let module = opened.load(&hungry(directives)).unwrap_or_else(|fault| panic!("{what}: {fault:?}"));
        let (mut of, mut most, mut each, mut blocks) = (null_mut(), 0, 0, 0);
        unsafe {
            assert_eq!(cuModuleGetFunction(&mut of, module, c"k".as_ptr()), SUCCESS);
            assert_eq!(cuFuncGetAttribute(&mut most, 0, of), SUCCESS);
            assert_eq!(cuFuncGetAttribute(&mut each, 4, of), SUCCESS);
            let threads = threads as i32;
            assert_eq!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, of, threads, 0), SUCCESS);
        }
        let code = opened.launch(of, ONE, [threads, 1, 1], 0, memory, 0);
        table.expect(what, code, expected);
        assert_eq!(
            (most >= threads as i32, blocks > 0),
            (code == SUCCESS, code == SUCCESS),
            "{what}: {most}, {blocks}"
        );
        each
    };
    assert!(launch("many registers", "", 256, SUCCESS) > 200);
    launch("more registers than a multiprocessor has", "", 512, LAUNCH_OUT_OF_RESOURCES);
    launch("more registers than it has, by one warp", "", 288, LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(launch("a compiler that knows the threads", ".maxntid 1024, 1, 1", 1024, SUCCESS), 64);
    assert_eq!(launch("one that knows them exactly", ".reqntid 512, 1, 1", 512, SUCCESS), 128);
    assert_eq!(launch("one that may use 32 registers", ".maxnreg 32", 1024, SUCCESS), 32);
    launch("one that may use 72", ".maxnreg 72", 1024, LAUNCH_OUT_OF_RESOURCES);
    let two = ".maxntid 256, 1, 1 .minnctapersm 2";
    assert_eq!(launch("two blocks at once", two, 256, SUCCESS), 128);
    assert_eq!(opened.synchronize(), SUCCESS);
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
