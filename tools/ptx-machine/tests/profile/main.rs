//! `PTX_MACHINE_PROFILE`: the file, sections, launches that are only listed. Each test is a child with settings of its own.

#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of the driver with pointers to live values throughout")]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the driver's tests use the rest")]
#[path = "../driver/opened.rs"]
mod opened;

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::ptr::null_mut;

use opened::{ADD, ONE, Opened, WARP};
use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

/// Set in a child.
const CHILD: &str = "PTX_TEST_PROFILE";

/// In a child nothing; otherwise runs the test in a child with these settings, and returns the file that it wrote.
fn child(test: &str, settings: &[(&str, &str)], file: &str) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{file}.json"));
    let _ = std::fs::remove_file(&path);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, "1")
        .env("PTX_MACHINE_PROFILE", &path)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(std::fs::read_to_string(&path).unwrap_or_default())
}

fn started() -> Opened {
    assert_eq!(unsafe { cuInit(0) }, SUCCESS);
    Opened::new(0)
}

fn mark(section: &str) {
    let section = CString::new(section).unwrap();
    assert_eq!(unsafe { ptxMachineMark(section.as_ptr()) }, SUCCESS);
}

fn replay(opened: &Opened) {
    let (code, graph) = opened.end();
    let mut executable = null_mut::<c_void>();
    unsafe {
        assert_eq!((code, cuGraphInstantiateWithFlags(&mut executable, graph, 0)), (SUCCESS, SUCCESS));
        assert_eq!(cuGraphLaunch(executable, opened.stream), SUCCESS);
    }
}

/// The launches of a file, one a line.
fn launches(file: &str) -> Vec<&str> {
    let (_, list) = file.split_once("\"launches\": [\n").expect("launches");
    list.lines().take_while(|line| *line != "]").map(|line| line.trim_end_matches(',')).collect()
}

const FILL: &str = "mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 4; add.s64 %d1, %d20, %d0;\n\
                    .loc 1 20 1\n.loc 1 9 3, function_name $L__info_string0, inlined_at 1 20 1\nst.global.u32 [%d1], %r40;";

/// The whole file of two launches in one section and one in another.
#[test]
fn the_file_as_it_is_written() {
    let Some(file) = child("the_file_as_it_is_written", &[("PTX_MACHINE_DEVICE", "h100")], "whole") else {
        let opened = started();
        let (fill, add) = (opened.function(FILL), opened.function(ADD));
        let memory = opened.alloc(128);
        assert_eq!(opened.launch(fill, ONE, WARP, 0, memory, 1), SUCCESS);
        mark("training");
        assert_eq!(opened.launch(fill, ONE, WARP, 0, memory, 2), SUCCESS);
        assert_eq!(opened.launch(add, ONE, [16, 1, 1], 0, memory, 3), SUCCESS);
        mark("sampling");
        assert_eq!(opened.launch(add, ONE, WARP, 1024, memory, 4), SUCCESS);
        mark("");
        assert_eq!(opened.launch(add, ONE, WARP, 0, memory, 5), SUCCESS);
        assert_eq!(opened.words(memory, 32)[15..17], [14, 11]);
        return;
    };
    let expected = include_str!("whole.json");
    assert_eq!(file, expected, "{file}");
}

#[test]
fn launches_of_a_graph_are_listed_in_order() {
    let settings = [("PTX_MACHINE_DEVICE", "a100"), ("PTX_MACHINE_CHECKS", "off")];
    let Some(file) = child("launches_of_a_graph_are_listed_in_order", &settings, "graph") else {
        let opened = started();
        let (fill, add) = (opened.function(FILL), opened.function(ADD));
        let memory = opened.alloc(4096);
        mark("step");
        opened.capture(1);
        for (function, blocks) in [(fill, 3), (add, 1), (fill, 2), (add, 5)] {
            assert_eq!(opened.launch(function, [blocks, 1, 1], WARP, 64, memory, 1), SUCCESS);
            assert_eq!(unsafe { cuMemsetD32Async(memory, 0, 32, opened.stream) }, SUCCESS);
        }
        replay(&opened);
        // Given back with work that nobody waited for.
        return;
    };
    let shown: Vec<String> = launches(&file)
        .iter()
        .map(|line| line.split(", \"block\"").next().unwrap().replace("{\"section\": \"step\", \"kernel\": ", ""))
        .collect();
    let expected =
        ["0, \"grid\": [3, 1, 1]", "1, \"grid\": [1, 1, 1]", "0, \"grid\": [2, 1, 1]", "1, \"grid\": [5, 1, 1]"];
    assert_eq!(shown, expected);
    assert!(
        file.contains("\"device\": \"a100\", \"capability\": [8, 0], \"multiprocessors\": 108, \"l2_bytes\": 41943040")
    );
}

/// Overlaps, conflicts, divergence and atomics over many blocks: the same file, byte for byte.
#[test]
fn the_file_is_the_same_for_any_number_of_host_threads() {
    let run = |cores: &str, file: &str| {
        let settings = [("PTX_MACHINE_CORES", cores), ("PTX_MACHINE_CHECKS", "off"), ("PTX_MACHINE_DEVICE", "b200")];
        child("the_file_is_the_same_for_any_number_of_host_threads", &settings, file)
    };
    let Some(first) = run("1", "cores-1") else {
        let opened = started();
        let body = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0;\n\
                    mad.lo.u32 %r4, %r3, 20, %r40; and.b32 %r4, %r4, 65532; cvt.u64.u32 %d0, %r4; add.s64 %d1, %d20, %d0;\n\
                    ld.global.u32 %r5, [%d1];\n and.b32 %r6, %r3, 7; mov.u32 %r7, 0;\n\
                    L: setp.ge.u32 %p1, %r7, %r6; @%p1 bra E;\n add.u32 %r7, %r7, 1; red.global.add.u32 [%d20+65536], 1;\n bra L;\n\
                    E: mul.lo.u32 %r8, %r0, 24; mov.u32 %r9, dynamic; add.u32 %r8, %r8, %r9;\n st.shared.u32 [%r8], %r7;\n\
                    add.s64 %d2, %d1, 131072;\n st.global.u32 [%d2], %r7;";
        let function = opened.function(body);
        let memory = opened.alloc(1 << 18);
        for (section, times) in [("one", 4), ("two", 3), ("one", 2)] {
            mark(section);
            for time in 0..times {
                let grid = [29 + time, 1, 1];
                assert_eq!(opened.launch(function, grid, [160, 1, 1], 4096, memory, 5000 * time), SUCCESS);
            }
        }
        return;
    };
    assert_eq!(launches(&first).len(), 9);
    assert!(launches(&first)[1].contains("\"reused\": [[0, "), "{}", launches(&first)[1]);
    // Memory that an earlier section touched is older than the section.
    assert!(launches(&first)[4].contains("\"reused\": []") && launches(&first)[7].contains("\"reused\": []"));
    for (cores, file) in [("1", "cores-1-again"), ("2", "cores-2"), ("3", "cores-3"), ("8", "cores-8")] {
        assert_eq!(run(cores, file).as_ref(), Some(&first), "{cores} host threads");
    }
}

/// A launch that is not executed is listed, and 60 GB for it cost nothing.
#[test]
fn launches_can_be_listed_without_being_executed() {
    let settings = [("PTX_MACHINE_DEVICE", "h100"), ("PTX_MACHINE_CHECKS", "off")];
    let Some(file) = child("launches_can_be_listed_without_being_executed", &settings, "listed") else {
        let opened = started();
        let add = opened.function(ADD);
        let small = opened.alloc(128);
        unsafe { assert_eq!(cuMemsetD32_v2(small, 7, 32), SUCCESS) };
        assert_eq!(opened.launch(add, ONE, WARP, 0, small, 1), SUCCESS);
        // Work submitted before is done.
        assert_eq!(ptxMachineExecute(0), SUCCESS);
        assert_eq!(opened.words(small, 1), [8]);
        // Outside a section nothing is listed, nor executed.
        assert_eq!(opened.launch(add, ONE, WARP, 0, small, 1), SUCCESS);
        assert_eq!(opened.words(small, 1), [8]);
        mark("training");
        let bytes = 60usize << 30;
        let large = opened.alloc(bytes);
        unsafe { assert_eq!(cuMemsetD8Async(large + 5, 0, bytes - 10, opened.stream), SUCCESS) };
        assert_eq!(opened.launch(add, [1 << 30, 1, 1], [256, 1, 1], 48 << 10, large, 1), SUCCESS);
        unsafe { assert_eq!(cuMemsetD32Async(small, 3, 32, opened.stream), SUCCESS) };
        assert_eq!(opened.words(small, 1), [3], "fills are done");
        assert_eq!(opened.words(large, 1), [0]);
        assert_eq!(ptxMachineExecute(1), SUCCESS);
        assert_eq!(opened.launch(add, ONE, WARP, 0, small, 1), SUCCESS);
        assert_eq!(opened.words(small, 1), [4]);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kilobytes: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes < 500_000, "{kilobytes} KB");
        return;
    };
    let found = launches(&file);
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[0],
        "{\"section\": \"training\", \"kernel\": 0, \"grid\": [1073741824, 1, 1], \"block\": [256, 1, 1], \
         \"dynamic_shared\": 49152, \"dependent\": false, \"counters\": null, \"footprint\": null}"
    );
    assert!(found[1].contains("\"warp_instructions\": ") && found[1].contains("\"reused\": []"), "{}", found[1]);
}

/// Some blocks of a launch stand for all: exactly where blocks are alike, and told where they are not.
#[test]
fn some_blocks_stand_for_all() {
    let run = |cores: &str, file: &str| {
        let settings = [("PTX_MACHINE_CORES", cores), ("PTX_MACHINE_CHECKS", "off"), ("PTX_MACHINE_DEVICE", "h100")];
        child("some_blocks_stand_for_all", &settings, file)
    };
    let Some(file) = run("1", "sampled") else {
        let opened = started();
        // In every third block a loop goes round as often as the block's number says.
        let uneven = "mov.u32 %r1, %ctaid.x; rem.u32 %r2, %r1, 3; setp.ne.u32 %p1, %r2, 0; @%p1 bra E;\n\
                      mov.u32 %r7, 0;\nL: add.u32 %r7, %r7, 1; setp.lt.u32 %p2, %r7, %r1; @%p2 bra L;\nE: ret;";
        let (even, uneven) = (opened.function(ADD), opened.function(uneven));
        let memory = opened.alloc(128);
        mark("training");
        let grid = [1000, 1, 1];
        for function in [even, uneven] {
            assert_eq!(opened.launch(function, grid, WARP, 0, memory, 1), SUCCESS);
        }
        assert_eq!(ptxMachineSample(7), SUCCESS);
        for function in [even, uneven] {
            assert_eq!(opened.launch(function, grid, WARP, 0, memory, 1), SUCCESS);
        }
        assert_eq!(opened.launch(even, [7, 1, 1], WARP, 0, memory, 1), SUCCESS);
        assert_eq!(ptxMachineSample(0), SUCCESS);
        assert_eq!(opened.launch(even, grid, WARP, 0, memory, 1), SUCCESS);
        return;
    };
    let found = launches(&file);
    let counters = |launch: &str| {
        let (_, rest) = launch.split_once("\"counters\": ").unwrap();
        rest.split_once('}').unwrap().0.to_string()
    };
    assert_eq!(counters(found[2]), counters(found[0]));
    assert!(
        found[2].contains("\"executed_blocks\": 7, \"block_slots\": [") && found[2].ends_with("\"footprint\": null}"),
        "{}",
        found[2]
    );
    let slots = |launch: &str| {
        let (_, rest) = launch.split_once("\"block_slots\": [").unwrap();
        let (least, most) = rest.split_once(']').unwrap().0.split_once(", ").unwrap();
        (least.parse::<u64>().unwrap(), most.parse::<u64>().unwrap())
    };
    let ((least, most), (fewest, largest)) = (slots(found[2]), slots(found[3]));
    assert!(least == most && fewest < largest, "{} {}", found[2], found[3]);
    // As many blocks as may be executed are all of them; so are all behind a call with 0.
    for launch in &found[4..] {
        assert!(!launch.contains("executed_blocks") && launch.contains("\"footprint\": {"), "{launch}");
    }
    assert_eq!(counters(found[5]), counters(found[0]));
    for (cores, file) in [("2", "sampled-2"), ("5", "sampled-5")] {
        assert!(run(cores, file).is_some_and(|other| launches(&other) == found), "{cores} host threads");
    }
}

/// A fault ends it as it does without counting, and is told by the next mark.
#[test]
fn wrong_calls_and_faults() {
    let Some(file) = child("wrong_calls_and_faults", &[], "wrong") else {
        let opened = started();
        unsafe {
            assert_eq!(ptxMachineMark(std::ptr::null()), INVALID_VALUE);
            assert_eq!(ptxMachineMark(c"\xff".as_ptr()), INVALID_VALUE);
        }
        assert_eq!((ptxMachineExecute(2), ptxMachineExecute(-1)), (INVALID_VALUE, INVALID_VALUE));
        mark("a \"name\"");
        let add = opened.function(ADD);
        assert_eq!(opened.launch(add, ONE, WARP, 0, 64, 1), SUCCESS);
        assert_eq!(unsafe { ptxMachineMark(c"next".as_ptr()) }, ILLEGAL_ADDRESS);
        assert_eq!(ptxMachineExecute(0), ILLEGAL_ADDRESS);
        return;
    };
    assert!(file.contains("\"kernels\": [\n],\n\"launches\": [\n]\n"), "{file}");
}

#[test]
fn without_the_variable_there_is_nothing_to_mark() {
    let settings = [("PTX_MACHINE_PROFILE", "")];
    if child("without_the_variable_there_is_nothing_to_mark", &settings, "none").is_none() {
        let _opened = started();
        assert_eq!(unsafe { ptxMachineMark(c"training".as_ptr()) }, ILLEGAL_STATE);
        assert_eq!(ptxMachineExecute(0), ILLEGAL_STATE);
    }
}
