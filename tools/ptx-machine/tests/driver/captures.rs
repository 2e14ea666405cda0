//! What a capture forbids, where it ends, and what its graph does at each replay.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

use super::common;
use super::opened::{ADD, ONE, Opened, WARP, driver};

/// Calls that a capture forbids, and whether they invalidate it.
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

/// A fork is done where it is joined, so that who joins it too late, or not at all, does not find its work; a function of the host runs
/// at each replay, between the copies that it was captured between.
#[test]
fn forks_are_done_late_and_host_functions_at_each_replay() {
    unsafe extern "C" fn add_ten(data: *mut c_void) {
        // SAFETY: the first word of pinned memory that lives as long as the graph.
        unsafe { *data.cast::<u32>() += 10 };
    }
    let _guard = driver();
    let opened = Opened::new(0);
    let function = opened.function(ADD);
    let (counted, moved, seen) = (opened.alloc(128), opened.alloc(128), opened.alloc(128));
    let (mut side, mut fork, mut done, mut host) = (null_mut(), null_mut(), null_mut(), null_mut());
    unsafe {
        assert_eq!(cuMemsetD8Async(counted, 0, 128, opened.stream), SUCCESS);
        assert_eq!(cuStreamCreate(&mut side, 1), SUCCESS);
        assert_eq!((cuEventCreate(&mut fork, 2), cuEventCreate(&mut done, 2)), (SUCCESS, SUCCESS));
        assert_eq!(cuMemHostAlloc(&mut host, 128, 0), SUCCESS);
        opened.capture(1);
        assert_eq!(opened.launch(function, ONE, WARP, 0, counted, 1), SUCCESS);
        assert_eq!((cuEventRecord(fork, opened.stream), cuStreamWaitEvent(side, fork, 0)), (SUCCESS, SUCCESS));
        assert_eq!(cuMemcpyDtoHAsync_v2(host, counted, 128, side), SUCCESS);
        assert_eq!(cuLaunchHostFunc(side, None, host), INVALID_VALUE);
        assert_eq!(cuLaunchHostFunc(side, Some(add_ten), host), SUCCESS);
        assert_eq!(cuMemcpyHtoDAsync_v2(moved, host, 128, side), SUCCESS);
        // Beside the fork, which reads what this writes: on the machine the fork comes later.
        assert_eq!(opened.launch(function, ONE, WARP, 0, counted, 5), SUCCESS);
        assert_eq!((cuEventRecord(done, side), cuStreamWaitEvent(opened.stream, done, 0)), (SUCCESS, SUCCESS));
        assert_eq!(cuMemcpyDtoDAsync_v2(seen, moved, 128, opened.stream), SUCCESS);
        let (code, graph) = opened.end();
        assert_eq!(code, SUCCESS);
        let mut executable = null_mut();
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
        for replay in 1..4 {
            assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
            assert_eq!(opened.synchronize(), SUCCESS);
            assert_eq!(
                (opened.words(seen, 2), opened.words(counted, 1)),
                (vec![6 * replay + 10, 6 * replay], vec![6 * replay])
            );
        }
        // Not captured; and it comes to be done though nobody waits: another process may.
        assert_eq!(cuLaunchHostFunc(opened.stream, Some(add_ten), host), SUCCESS);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while host.cast::<u32>().read_volatile() != 38 {
            assert!(std::time::Instant::now() < until, "nobody does it");
            std::thread::yield_now();
        }
    }
}
