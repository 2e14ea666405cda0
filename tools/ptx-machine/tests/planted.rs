//! The test of the checks: kernels with one fault each, and a twin without it.

mod common;

use common::{Kernel, THREAD};
use ptx_machine::fault::FaultKind::{self, *};
use ptx_machine::fault::Report;

/// Runs a body with a barrier, tile and addresses at hand: `%d2`, `%d3` this thread's words of the two buffers, `%r5` its word of `tile`.
fn kernel(body: &str) -> Kernel {
    let body = format!(
        "{THREAD}.shared .align 16 .b8 tile[1024];\n\
         add.s64 %d2, %d20, %d1; add.s64 %d3, %d21, %d1; mov.u32 %r4, tile; shl.b32 %r5, %r0, 2; add.s32 %r5, %r4, %r5;\n\
         setp.lt.u32 %p1, %r0, 16; and.b32 %r6, %r0, 1; setp.eq.s32 %p2, %r6, 0; setp.eq.s32 %p3, %r0, 0;\n\
         .loc 1 7 1\n{body}\n.loc 1 8 1\n"
    );
    Kernel::new(2, 0, &body)
}

fn words(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

/// On 2 blocks of 64 threads, with 128 words in and 128 unwritten words out.
fn outcome(body: &str) -> Result<(), Box<Report>> {
    kernel(body).grid(2, 64).buffer(&words(128)).unwritten(512).run()
}

/// Name, kind, faulty body, and the same mended.
const FAULTS: &[(&str, FaultKind, &str, &str)] = &[
    (
        "read beyond an allocation",
        OutOfBounds,
        "ld.global.u32 %r7, [%d2+4]; st.global.u32 [%d3], %r7;",
        "ld.global.u32 %r7, [%d2]; st.global.u32 [%d3], %r7;",
    ),
    ("write before an allocation", OutOfBounds, "st.global.u32 [%d3+-4], %r0;", "st.global.u32 [%d3], %r0;"),
    ("a null pointer", OutOfBounds, "mov.u64 %d4, 0; ld.global.u32 %r7, [%d4];", "mov.u64 %d4, 0;"),
    (
        "a vector that ends outside",
        OutOfBounds,
        "shl.b32 %r7, %r3, 3; cvt.u64.u32 %d4, %r7; add.s64 %d4, %d20, %d4; ld.global.v4.u16 {%h1, %h2, %h3, %h4}, [%d4];",
        "shl.b32 %r7, %r3, 3; and.b32 %r7, %r7, 511; cvt.u64.u32 %d4, %r7; add.s64 %d4, %d20, %d4; \
         ld.global.v4.u16 {%h1, %h2, %h3, %h4}, [%d4];",
    ),
    ("shared memory beyond the block's", OutOfBounds, "st.shared.u32 [%r5+800], %r0;", "st.shared.u32 [%r5+768], %r0;"),
    (
        "a generic address beyond shared memory",
        OutOfBounds,
        "mov.u64 %d4, tile; cvta.shared.u64 %d5, %d4; st.u32 [%d5+1024], %r0;",
        "mov.u64 %d4, tile; cvta.shared.u64 %d5, %d4; @%p3 st.u32 [%d5+1020], %r0;",
    ),
    (
        "local memory beyond the thread's",
        OutOfBounds,
        ".local .align 4 .b8 own[16]; mov.u64 %d4, own; st.local.u32 [%d4+16], %r0;",
        ".local .align 4 .b8 own[16]; mov.u64 %d4, own; st.local.u32 [%d4+12], %r0;",
    ),
    ("a misaligned word", Misaligned, "ld.global.u32 %r7, [%d20+2];", "ld.global.u16 %h1, [%d20+2];"),
    (
        "a misaligned vector",
        Misaligned,
        "ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%d20+8];",
        "ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%d20+16];",
    ),
    (
        "unwritten global memory",
        UnwrittenMemory,
        "ld.global.u32 %r7, [%d3];",
        "st.global.u32 [%d3], 1; ld.global.u32 %r7, [%d3];",
    ),
    (
        "unwritten shared memory",
        UnwrittenMemory,
        "ld.shared.u32 %r7, [%r5];",
        "st.shared.u32 [%r5], 1; ld.shared.u32 %r7, [%r5];",
    ),
    (
        "half a word of shared memory unwritten",
        UnwrittenMemory,
        "mov.u16 %h1, 1; st.shared.u16 [%r5], %h1; ld.shared.u32 %r7, [%r5];",
        "mov.u16 %h1, 1; st.shared.u16 [%r5], %h1; st.shared.u16 [%r5+2], %h1; ld.shared.u32 %r7, [%r5];",
    ),
    (
        "unwritten local memory",
        UnwrittenMemory,
        ".local .align 4 .b8 own[16]; mov.u64 %d4, own; st.local.u32 [%d4], %r0; ld.local.u32 %r7, [%d4+4];",
        ".local .align 4 .b8 own[16]; mov.u64 %d4, own; st.local.u32 [%d4], %r0; ld.local.u32 %r7, [%d4];",
    ),
    (
        "a store of a register that nobody wrote",
        UnwrittenRegister,
        "add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
        "mov.u32 %r30, 1; add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
    ),
    (
        "a selection of a value that nobody computed",
        UnwrittenRegister,
        "add.s32 %r7, %r30, 1; selp.b32 %r8, %r7, 3, %p3; st.global.u32 [%d3], %r8;",
        "add.s32 %r7, %r30, 1; setp.lt.u32 %p4, %r0, 64; selp.b32 %r8, 3, %r7, %p4; st.global.u32 [%d3], %r8;",
    ),
    (
        "a jump by a predicate that nobody computed",
        UnwrittenRegister,
        "setp.eq.s32 %p4, %r30, 1; @%p4 bra E; E:",
        "setp.eq.s32 %p4, %r30, 1; setp.ne.s32 %p5, %r0, %r0; and.pred %p6, %p5, %p4; @%p6 bra E; E:",
    ),
    (
        "an address that nobody computed",
        UnwrittenRegister,
        "add.s64 %d5, %d9, %d20; ld.global.u32 %r7, [%d5];",
        "mov.u64 %d9, 4; add.s64 %d5, %d9, %d20; ld.global.u32 %r7, [%d5];",
    ),
    (
        "a register written on one side of a branch",
        UnwrittenRegister,
        "@%p1 bra N; mov.u32 %r30, 1; N: add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
        "mov.u32 %r30, 2; @%p1 bra N; mov.u32 %r30, 1; N: add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
    ),
    (
        "a register written under a guard",
        UnwrittenRegister,
        "@%p1 mov.u32 %r30, 1; add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
        "@%p1 mov.u32 %r30, 1; @!%p1 mov.u32 %r30, 2; add.s32 %r7, %r30, 1; st.global.u32 [%d3], %r7;",
    ),
    (
        "threads of two warps exchange without a barrier",
        Race,
        "st.shared.u32 [%r5], 0; bar.sync 0; st.shared.u32 [%r5], %r0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7];",
        "st.shared.u32 [%r5], %r0; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7];",
    ),
    (
        "lanes exchange without a warp barrier",
        Race,
        "st.shared.u32 [%r5], %r0; xor.b32 %r7, %r5, 4; ld.shared.u32 %r8, [%r7];",
        "st.shared.u32 [%r5], %r0; bar.warp.sync -1; xor.b32 %r7, %r5, 4; ld.shared.u32 %r8, [%r7];",
    ),
    (
        "a tile written while others read it",
        Race,
        "st.shared.u32 [%r5], %r0; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7]; st.shared.u32 [%r5], %r8;",
        "st.shared.u32 [%r5], %r0; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7]; bar.sync 0; \
         st.shared.u32 [%r5], %r8;",
    ),
    (
        "all threads write one word of shared memory",
        Race,
        "st.shared.u32 [%r4], %r0;",
        "@%p3 st.shared.u32 [%r4], %r0;",
    ),
    ("two blocks write one word", Race, "@%p3 st.global.u32 [%d21], 7;", "@%p3 st.global.u32 [%d3], 7;"),
    (
        "a block reads what another writes",
        Race,
        "@%p3 st.global.u32 [%d3], 7; setp.eq.s32 %p4, %r3, 64; @%p4 ld.global.u32 %r7, [%d3+-256];",
        "@%p3 st.global.u32 [%d3], 7; setp.eq.s32 %p4, %r3, 64; @%p4 ld.global.u32 %r7, [%d3];",
    ),
    (
        "neighbouring halves of a word do not race, the same half does",
        Race,
        "mov.u16 %h1, 1; cvt.u64.u32 %d4, %r3; mul.lo.s64 %d4, %d4, 2; add.s64 %d4, %d21, %d4; st.global.u16 [%d4], %h1; \
         xor.b32 %r7, %r3, 64; cvt.u64.u32 %d5, %r7; mul.lo.s64 %d5, %d5, 2; add.s64 %d5, %d21, %d5; st.global.u16 [%d5], %h1;",
        "mov.u16 %h1, 1; cvt.u64.u32 %d4, %r3; mul.lo.s64 %d4, %d4, 2; add.s64 %d4, %d21, %d4; st.global.u16 [%d4], %h1;",
    ),
    (
        "an atomic and a plain write",
        Race,
        "atom.global.add.u32 %r7, [%d20], 1; @%p3 st.global.u32 [%d20], 0;",
        "atom.global.add.u32 %r7, [%d20], 1;",
    ),
    (
        "the read-only path of what the thread itself wrote",
        ReadOnlyPath,
        "st.global.u32 [%d3], 1; ld.global.nc.u32 %r7, [%d3];",
        "st.global.u32 [%d3], 1; ld.global.nc.u32 %r7, [%d2];",
    ),
    (
        "a write behind the read-only path",
        ReadOnlyPath,
        "ld.global.nc.u32 %r7, [%d2]; bar.sync 0; st.global.u32 [%d2], %r7;",
        "ld.global.u32 %r7, [%d2]; bar.sync 0; st.global.u32 [%d2], %r7;",
    ),
    (
        "an asynchronous copy that nobody waits for",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; ld.shared.u32 %r7, [%r5];",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r7, [%r5];",
    ),
    (
        "a wait that leaves the newest group",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r7, [%r5];",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1; \
         ld.shared.u32 %r7, [%r5];",
    ),
    (
        "a copy of another thread, waited for and without a barrier",
        Race,
        "st.shared.u32 [%r5], 0; bar.sync 0; cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all; xor.b32 %r7, %r5, 128; \
         ld.shared.u32 %r8, [%r7];",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7];",
    ),
    (
        "a copy into what others still read",
        AsyncCopy,
        "st.shared.u32 [%r5], %r0; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7]; \
         cp.async.ca.shared.global [%r5], [%d2], 4;",
        "st.shared.u32 [%r5], %r0; bar.sync 0; xor.b32 %r7, %r5, 128; ld.shared.u32 %r8, [%r7]; bar.sync 0; \
         cp.async.ca.shared.global [%r5], [%d2], 4;",
    ),
    (
        "a store into what a copy is under way to",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; st.shared.u32 [%r5], 1; cp.async.wait_all;",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all; st.shared.u32 [%r5], 1;",
    ),
    (
        "two copies to one place",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all;",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all; cp.async.ca.shared.global [%r5], [%d2], 4; \
         cp.async.wait_all;",
    ),
    (
        "a copy's source written by its thread before its wait",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; st.global.u32 [%d2], 1; cp.async.wait_group 0;",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.commit_group; cp.async.wait_group 0; st.global.u32 [%d2], 1;",
    ),
    (
        "a copy's source written by another warp behind a barrier, before its wait",
        AsyncCopy,
        "cp.async.ca.shared.global [%r5], [%d2], 4; bar.sync 0; xor.b32 %r7, %r3, 32; mul.wide.u32 %d4, %r7, 4; \
         add.s64 %d4, %d20, %d4; atom.global.add.u32 %r8, [%d4], 1; cp.async.wait_all;",
        "cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all; bar.sync 0; xor.b32 %r7, %r3, 32; \
         mul.wide.u32 %d4, %r7, 4; add.s64 %d4, %d20, %d4; st.global.u32 [%d4], 1;",
    ),
    (
        "the part of a source that a short copy reads",
        AsyncCopy,
        "mov.u32 %r7, 4; cp.async.ca.shared.global [%r5], [%d2], 4, %r7; st.global.u32 [%d2], 1; cp.async.wait_all;",
        "mov.u32 %r7, 2; cp.async.ca.shared.global [%r5], [%d2], 4, %r7; mov.u16 %h1, 1; st.global.u16 [%d2+2], %h1; \
         cp.async.wait_all;",
    ),
    (
        "an integer division by zero",
        DivisionByZero,
        "div.u32 %r7, 100, %r0;",
        "add.s32 %r8, %r0, 1; div.u32 %r7, 100, %r8;",
    ),
    (
        "a signed remainder by zero",
        DivisionByZero,
        "cvt.s64.s32 %d4, %r0; rem.s64 %d5, 100, %d4;",
        "cvt.s64.s32 %d4, %r0; @!%p3 rem.s64 %d5, 100, %d4;",
    ),
    (
        "a short division by a constant zero",
        DivisionByZero,
        "mov.u16 %h1, 9; div.s16 %h2, %h1, 0;",
        "mov.u16 %h1, 9; div.s16 %h2, %h1, 2; mov.u32 %r31, %r30; div.u32 %r7, 100, %r31;",
    ),
    (
        "a copy of more than its size",
        OutOfBounds,
        "mov.u32 %r7, 5; cp.async.ca.shared.global [%r5], [%d2], 4, %r7;",
        "mov.u32 %r7, 3; cp.async.ca.shared.global [%r5], [%d2], 4, %r7;",
    ),
    ("half a warp at a matrix product", Diverged, "@!%p1 bra E; MMA E:", "MMA"),
    ("a matrix product on both sides of a branch", Diverged, "@%p1 bra A; MMA bra E; A: MMA E:", "@%p1 bra A; A: MMA"),
    (
        "half a warp loads a matrix",
        Diverged,
        "@%p3 st.shared.v4.u32 [%r4], {0, 0, 0, 0}; bar.sync 0; @!%p1 bra E; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r7}, [%r4]; E:",
        "@%p3 st.shared.v4.u32 [%r4], {0, 0, 0, 0}; bar.sync 0; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r7}, [%r4];",
    ),
    (
        "a barrier in a branch within a warp",
        Diverged,
        "@%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:",
        "bar.sync 0;",
    ),
    (
        "a barrier that a warp leaves out",
        Barrier,
        "setp.ge.u32 %p4, %r0, 32; @%p4 bra E; bar.sync 0; E:",
        "bar.sync 0;",
    ),
    ("a barrier behind an early exit", Barrier, "@%p3 exit; bar.sync 0;", "bar.sync 0; @%p3 exit;"),
    (
        "a barrier for fewer threads than come",
        Barrier,
        "setp.lt.u32 %p4, %r0, 32; @%p4 bra A; bar.sync 1, 32; bra E; A: bar.sync 1, 64; E:",
        "setp.lt.u32 %p4, %r0, 32; @%p4 bra A; bar.sync 1, 32; bra E; A: bar.sync 2, 32; E:",
    ),
    (
        "lanes of different masks at a shuffle",
        WarpSync,
        "mov.u32 %r7, -1; @%p1 mov.u32 %r7, 0xffff; shfl.sync.bfly.b32 %r8, %r0, 1, 31, %r7; bar.warp.sync -1;",
        "and.b32 %r9, %r0, 16; shl.b32 %r7, 0xffff, %r9; shfl.sync.bfly.b32 %r8, %r0, 1, 31, %r7; bar.warp.sync -1;",
    ),
    (
        "a shuffle that half a warp skips",
        WarpSync,
        "@!%p1 bra E; shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1; bra F; E: bar.warp.sync -1; F:",
        "shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1;",
    ),
    (
        "different shuffles on the sides of a branch",
        WarpSync,
        "@!%p1 bra E; shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1; bra F; E: shfl.sync.down.b32 %r8, %r0, 1, 31, -1; F:",
        "@!%p1 bra E; shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1; bra F; E: shfl.sync.bfly.b32 %r8, %r0, 1, 31, -1; F:",
    ),
    (
        "a shuffle from a lane outside its mask",
        WarpSync,
        "@!%p1 bra E; shfl.sync.bfly.b32 %r8, %r0, 16, 31, 0xffff; E:",
        "@!%p1 bra E; shfl.sync.bfly.b32 %r8, %r0, 8, 31, 0xffff; E:",
    ),
    ("a loop without an end", Endless, "L: add.s32 %r0, %r0, 1; bra L;", "setp.eq.s32 %p4, %r0, -1; L: @%p4 bra L;"),
    (
        "a wait for another block that never comes",
        Endless,
        "L: ld.volatile.global.u32 %r7, [%d20]; setp.eq.s32 %p4, %r7, 0; @%p4 bra L;",
        "L: ld.volatile.global.u32 %r7, [%d20]; setp.eq.s32 %p4, %r7, 9; @%p4 bra L;",
    ),
    ("a trap", Trap, "@%p3 trap;", "@%p3 exit;"),
];

const MMA: &str = "mov.u32 %r10, 0; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r11, %r12, %r13, %r14}, \
                   {%r10, %r10, %r10, %r10}, {%r10, %r10}, {%r10, %r10, %r10, %r10};";

#[test]
fn planted_faults_are_found_and_their_twins_pass() {
    assert!(FAULTS.len() >= 40);
    let mut wrong = Vec::new();
    for (name, kind, faulty, mended) in FAULTS {
        match outcome(&faulty.replace("MMA", MMA)) {
            Ok(()) => wrong.push(format!("{name}: not found")),
            Err(report) if report.kind != *kind => wrong.push(format!("{name}: found as {report}")),
            Err(report) => {
                let text = report.to_string();
                let source = report.source.as_deref() == Some("kernels/body.cu:7");
                if report.line == 0 || !source || report.thread.is_none() || text.lines().count() != 1 {
                    wrong.push(format!("{name}: no place in {text}"));
                }
            }
        }
        if let Err(report) = outcome(&mended.replace("MMA", MMA)) {
            wrong.push(format!("{name}: the mended twin: {report}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_report_names_line_block_thread_and_source() {
    let text = "\
.version 8.4
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out)
{
.reg .b32 %r<4>; .reg .b64 %d<4>;
.loc 1 17 3
.loc 1 18 3
.loc 2 30 9, function_name $L__info_string0, inlined_at 1 18 3
ld.param.u64 %d0, [out];
mov.u32 %r0, %tid.x;
mul.wide.u32 %d1, %r0, 4;
add.s64 %d2, %d0, %d1;
.loc 3 40 5, function_name $L__info_string0, inlined_at 2 30 9
st.global.u32 [%d2], %r0;
ret;
}
.file 1 \"/somewhere/project/kernels/my_op.cu\"
.file 2 \"/somewhere/project/kernels/common/vec.cuh\"
.file 3 \"kernels/common/types.cuh\"
.section .debug_str
{
$L__info_string0:
.b8 95,90,0
}
";
    let report = Kernel::of(text).grid(1, 64).unwritten(40 * 4).run().unwrap_err();
    assert_eq!((report.kind, report.line), (OutOfBounds, 15));
    assert_eq!((report.block, report.thread), ([0; 3], Some([40, 0, 0])));
    assert_eq!(
        report.to_string().split("; at test.ptx").nth(1).unwrap(),
        ":15 (kernels/common/types.cuh:40, called at kernels/common/vec.cuh:30, called at kernels/my_op.cu:18)"
    );
}

#[test]
fn a_second_grid_may_use_what_the_first_wrote() {
    let mut kernel =
        kernel("ld.global.nc.u32 %r7, [%d2]; st.global.u32 [%d3], %r7;").grid(2, 64).buffer(&words(128)).unwritten(512);
    kernel.run().unwrap();
    kernel.buffers.swap(0, 1);
    kernel.run().unwrap();
    assert_eq!(kernel.read::<u32>(0), words(128));
}

#[test]
fn freed_memory_is_nobodys() {
    let mut kernel = kernel("ld.global.u32 %r7, [%d2];").grid(1, 32).buffer(&words(128)).unwritten(512);
    kernel.run().unwrap();
    let address = kernel.buffers[0].0;
    assert!(kernel.memory.release(address));
    assert!(!kernel.memory.release(address));
    assert_eq!(kernel.run().unwrap_err().kind, OutOfBounds);
}
