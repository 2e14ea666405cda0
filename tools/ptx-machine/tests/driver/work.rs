//! What is done when: order of submission, streams and events, dependent launches.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

use super::common;
use super::opened::{ADD, ONE, Opened, WARP, driver};

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
