//! Faults of kernels: they stay with their context.

use std::ptr::null_mut;

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

use super::opened::{ADD, ONE, Opened, WARP, driver};

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
