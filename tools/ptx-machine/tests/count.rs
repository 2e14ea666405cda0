//! Counts that are known by hand.

mod common;

use common::{Kernel, THREAD, module};
use std::collections::{BTreeMap, BTreeSet};

use ptx_machine::count::rules::{Pieces, wavefronts as waves};
use ptx_machine::count::{Counters, SECTOR, Sums, Touches};

/// Behind the instruction that a test looks at.
const HERE: &str = "// here";

/// A kernel of one warp on two buffers of 64 KB: `%r0` the lane, `%d20` and `%d21` the buffers, `tile` 8 KB of shared memory from `%r4` on.
fn kernel(body: &str) -> (Kernel, u32) {
    let body = format!(
        "{THREAD}.shared .align 1024 .b8 tile[8192]; .local .align 16 .b8 own[64];\nmov.u32 %r4, tile;\n\
         mov.u32 %r20, 7; mov.u32 %r21, 7; mov.u32 %r22, 7; mov.u32 %r23, 7; cvt.u16.u32 %h1, %r0;\n{body}"
    );
    let text = module(2, 0, &body);
    let line = text.lines().position(|line| line.contains(HERE)).expect("a line to look at") as u32 + 1;
    let values = vec![0u32; 1 << 14];
    (Kernel::of(&text).buffer(&values).buffer(&values), line)
}

/// The counters of the line marked with [`HERE`].
fn counted(body: &str) -> Counters {
    let (mut kernel, line) = kernel(body);
    let (sums, _) = kernel.count(None);
    kernel.of_line(&sums, line)
}

/// Requests, sectors and the least of them for an instruction on `[%d2]`, the first buffer's address plus what `offset` leaves in `%r5`.
fn sectors(offset: &str, instruction: &str) -> [u64; 3] {
    let body = format!("{offset} cvt.u64.u32 %d3, %r5; add.s64 %d2, %d20, %d3;\n{instruction} {HERE}\n");
    let all = counted(&body);
    assert_eq!(all.warp_instructions, 1, "{instruction}");
    [all.global_requests, all.global_sectors, all.global_sectors_least]
}

/// Lanes that lie so many bytes apart.
fn apart(bytes: u32) -> String {
    format!("mul.lo.u32 %r5, %r0, {bytes};")
}

#[test]
fn sectors_of_global_memory() {
    let load = "ld.global.u32 %r10, [%d2];";
    let cases: &[(&str, String, &str, [u64; 3])] = &[
        ("stride 1", apart(4), load, [1, 4, 4]),
        ("stride 2", apart(8), load, [1, 8, 4]),
        ("stride 8", apart(32), load, [1, 32, 4]),
        ("stride 32", apart(128), load, [1, 32, 4]),
        ("misaligned by 4", apart(4), "ld.global.u32 %r10, [%d2+4];", [1, 5, 4]),
        ("one address", "mov.u32 %r5, 64;".into(), load, [1, 1, 1]),
        ("backwards", "sub.u32 %r6, 31, %r0; shl.b32 %r5, %r6, 2;".into(), load, [1, 4, 4]),
        ("any order", "mul.lo.u32 %r6, %r0, 11; and.b32 %r6, %r6, 31; shl.b32 %r5, %r6, 2;".into(), load, [1, 4, 4]),
        ("pairs", "shr.u32 %r6, %r0, 1; shl.b32 %r5, %r6, 2;".into(), load, [1, 2, 2]),
        (
            "two rows",
            "and.b32 %r6, %r0, 15; shl.b32 %r6, %r6, 2; shr.u32 %r7, %r0, 4; mad.lo.u32 %r5, %r7, 256, %r6;".into(),
            load,
            [1, 4, 4],
        ),
        (
            "two rows, misaligned",
            "and.b32 %r6, %r0, 15; mad.lo.u32 %r6, %r6, 4, 16; shr.u32 %r7, %r0, 4; \
            mad.lo.u32 %r5, %r7, 256, %r6;"
                .into(),
            load,
            [1, 6, 4],
        ),
        ("bytes", apart(1), "ld.global.u8 %h2, [%d2];", [1, 1, 1]),
        ("16 bits", apart(2), "ld.global.u16 %h2, [%d2];", [1, 2, 2]),
        ("16 bits stored", apart(2), "st.global.u16 [%d2], %h1;", [1, 2, 2]),
        ("16 bits stored with stride 2", apart(4), "st.global.u16 [%d2], %h1;", [1, 4, 2]),
        ("16 bits stored in rows of 256 bytes", apart(256), "st.global.u16 [%d2], %h1;", [1, 32, 2]),
        ("64 bits", apart(8), "ld.global.u64 %d4, [%d2];", [1, 8, 8]),
        ("v2 of 32 bits", apart(8), "ld.global.v2.u32 {%r10, %r11}, [%d2];", [1, 8, 8]),
        ("v4 of 32 bits", apart(16), "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d2];", [1, 16, 16]),
        (
            "v4 through the read-only path",
            apart(16),
            "ld.global.nc.v4.u32 {%r10, %r11, %r12, %r13}, [%d2];",
            [1, 16, 16],
        ),
        ("v4 in rows of 32 bytes", apart(32), "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d2];", [1, 32, 16]),
        ("v4 stored", apart(16), "st.global.v4.u32 [%d2], {%r20, %r21, %r22, %r23};", [1, 16, 16]),
        ("v4 stored in rows of 64 bytes", apart(64), "st.global.v4.u32 [%d2], {%r20, %r21, %r22, %r23};", [1, 32, 16]),
        ("v4 of 16 bits stored", apart(8), "st.global.v4.u16 [%d2], {%h1, %h1, %h1, %h1};", [1, 8, 8]),
        (
            "half the lanes",
            format!("setp.lt.u32 %p1, %r0, 16; {}", apart(4)),
            "@%p1 ld.global.u32 %r10, [%d2];",
            [1, 2, 2],
        ),
        (
            "every second lane",
            format!("and.b32 %r6, %r0, 1; setp.eq.u32 %p1, %r6, 0; {}", apart(4)),
            "@%p1 st.global.u32 [%d2], %r0;",
            [1, 4, 2],
        ),
        ("no lane", format!("setp.gt.u32 %p1, %r0, 31; {}", apart(4)), "@%p1 ld.global.u32 %r10, [%d2];", [0, 0, 0]),
        ("a generic address", apart(4), "ld.u32 %r10, [%d2];", [1, 4, 4]),
        ("an atomic on each word", apart(4), "red.global.add.u32 [%d2], 1;", [1, 4, 4]),
        ("an atomic on one word", "mov.u32 %r5, 0;".into(), "atom.global.add.u32 %r10, [%d2], 1;", [1, 1, 1]),
    ];
    for (name, offset, instruction, expected) in cases {
        assert_eq!(sectors(offset, instruction), *expected, "{name}");
    }
}

/// Requests, wavefronts and the least of them for an instruction on `[%r6]`, the tile's address plus what `offset` leaves in `%r5`.
fn wavefronts(offset: &str, instruction: &str) -> [u64; 3] {
    // All of the tile is written before.
    let body = format!(
        "shl.b32 %r7, %r0, 4; add.s32 %r7, %r7, %r4; mov.u32 %r8, 0;\n\
         L: st.shared.v4.u32 [%r7], {{%r20, %r21, %r22, %r23}}; add.s32 %r7, %r7, 512; add.s32 %r8, %r8, 1;\n\
         setp.lt.u32 %p3, %r8, 16; @%p3 bra L; bar.sync 0;\n\
         mov.u64 %d2, tile; cvta.shared.u64 %d3, %d2;\n\
         {offset} add.s32 %r6, %r5, %r4; cvt.u64.u32 %d4, %r5; add.s64 %d5, %d3, %d4;\n{instruction} {HERE}\n"
    );
    let all = counted(&body);
    assert_eq!((all.warp_instructions, all.global_requests), (1, 0), "{instruction}");
    [all.shared_requests, all.shared_wavefronts, all.shared_wavefronts_least]
}

#[test]
fn wavefronts_of_shared_memory() {
    let load = "ld.shared.u32 %r10, [%r6];";
    let four = "ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r6];";
    let matrices = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];";
    // Rows of 128 bytes, whose 16-byte pieces are exchanged by the row's number.
    let swizzled = "and.b32 %r7, %r0, 7; shl.b32 %r7, %r7, 4; mad.lo.u32 %r5, %r0, 128, %r7;";
    let cases: &[(&str, String, &str, [u64; 3])] = &[
        ("no conflict", apart(4), load, [1, 1, 1]),
        ("misaligned by 4", apart(4), "ld.shared.u32 %r10, [%r6+4];", [1, 1, 1]),
        ("backwards", "sub.u32 %r7, 31, %r0; shl.b32 %r5, %r7, 2;".into(), load, [1, 1, 1]),
        ("rows of 33 words", apart(132), load, [1, 1, 1]),
        ("2-way", apart(8), load, [1, 2, 1]),
        ("4-way", apart(16), load, [1, 4, 1]),
        ("32-way", apart(128), load, [1, 32, 1]),
        ("32-way stored", apart(128), "st.shared.u32 [%r6], %r0;", [1, 32, 1]),
        ("one word", "mov.u32 %r5, 12;".into(), load, [1, 1, 1]),
        ("one word of 8 lanes each", "shr.u32 %r7, %r0, 3; shl.b32 %r5, %r7, 7;".into(), load, [1, 4, 1]),
        ("16 bits", apart(2), "ld.shared.u16 %h2, [%r6];", [1, 1, 1]),
        ("16 bits across banks", apart(2), "ld.shared.u16 %h2, [%r6+2];", [1, 1, 1]),
        ("16 bits in rows of 64 bytes", apart(64), "st.shared.u16 [%r6], %h1;", [1, 16, 1]),
        ("bytes", apart(1), "ld.shared.u8 %h2, [%r6];", [1, 1, 1]),
        ("64 bits", apart(8), "ld.shared.u64 %d6, [%r6];", [1, 2, 2]),
        ("64 bits, 2-way", apart(16), "ld.shared.u64 %d6, [%r6];", [1, 4, 2]),
        ("v2 of one place", "mov.u32 %r5, 16;".into(), "ld.shared.v2.u32 {%r10, %r11}, [%r6];", [1, 2, 1]),
        ("v4", apart(16), four, [1, 4, 4]),
        ("v4, 2-way", apart(32), four, [1, 8, 4]),
        ("v4, 8-way", apart(128), four, [1, 32, 4]),
        ("v4 in rows of 144 bytes", apart(144), four, [1, 4, 4]),
        ("v4 stored", apart(16), "st.shared.v4.u32 [%r6], {%r20, %r21, %r22, %r23};", [1, 4, 4]),
        ("v4 stored, 4-way", apart(64), "st.shared.v4.u32 [%r6], {%r20, %r21, %r22, %r23};", [1, 16, 4]),
        ("v4 of one place", "mov.u32 %r5, 16;".into(), four, [1, 4, 1]),
        (
            "v4 of 8 lanes",
            format!("setp.lt.u32 %p1, %r0, 8; {}", apart(16)),
            "@%p1 ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r6];",
            [1, 1, 1],
        ),
        (
            "half the lanes, 2-way",
            format!("setp.lt.u32 %p1, %r0, 16; {}", apart(8)),
            "@%p1 ld.shared.u32 %r10, [%r6];",
            [1, 1, 1],
        ),
        (
            "half the lanes, 4-way",
            format!("setp.lt.u32 %p1, %r0, 16; {}", apart(16)),
            "@%p1 ld.shared.u32 %r10, [%r6];",
            [1, 2, 1],
        ),
        ("no lane", format!("setp.gt.u32 %p1, %r0, 31; {}", apart(8)), "@%p1 ld.shared.u32 %r10, [%r6];", [0, 0, 0]),
        ("a generic address, 2-way", apart(8), "ld.u32 %r10, [%d5];", [1, 2, 1]),
        ("matrices of rows side by side", apart(16), matrices, [1, 4, 4]),
        ("matrices of rows of 128 bytes", apart(128), matrices, [1, 32, 4]),
        ("matrices of rows of 64 bytes", apart(64), matrices, [1, 16, 4]),
        ("matrices swizzled", swizzled.into(), matrices, [1, 4, 4]),
        ("two matrices", apart(128), "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r10, %r11}, [%r6];", [1, 16, 2]),
        ("a matrix", swizzled.into(), "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r10}, [%r6];", [1, 1, 1]),
        ("an atomic on each word", apart(4), "red.shared.add.u32 [%r6], 1;", [1, 1, 1]),
        ("an atomic on one word", "mov.u32 %r5, 0;".into(), "atom.shared.add.u32 %r10, [%r6], 1;", [1, 32, 1]),
        (
            "an atomic on pairs",
            "shr.u32 %r7, %r0, 1; shl.b32 %r5, %r7, 2;".into(),
            "red.shared.max.u32 [%r6], 1;",
            [1, 2, 1],
        ),
    ];
    for (name, offset, instruction, expected) in cases {
        assert_eq!(wavefronts(offset, instruction), *expected, "{name}");
    }
}

/// Requests of every pattern, against the rules done naively.
#[test]
fn the_rules_on_requests_of_every_kind() {
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..20_000 {
        let bytes = 1u64 << random(5);
        let (base, stride, range) = (random(1 << 20), random(80), 1 << random(12));
        let addresses: [u64; 32] = std::array::from_fn(|lane| {
            let place = match round % 4 {
                0 => base + lane as u64 * stride,
                1 => base + random(range),
                2 => base + (lane as u64 ^ stride) * 8,
                _ => base + lane as u64 / (stride + 1),
            };
            place * bytes
        });
        let mask = if random(2) == 0 { !0 } else { random(1 << 32) as u32 | 1 << random(32) };
        let active: Vec<usize> = (0..32).filter(|lane| mask >> lane & 1 != 0).collect();
        let touched: BTreeSet<u64> = active.iter().flat_map(|&lane| addresses[lane]..addresses[lane] + bytes).collect();
        let sectors: BTreeSet<u64> = touched.iter().map(|byte| byte / 32).collect();
        let pieces = Pieces::of(mask, bytes, &addresses);
        let mut seen = Vec::new();
        assert_eq!(pieces.sectors(|sector| seen.push(sector)), sectors.len() as u64);
        assert!(seen.iter().eq(&sectors));
        assert_eq!((pieces.bytes(), pieces.least(SECTOR)), (touched.len() as u64, touched.len().div_ceil(32) as u64));
        // Words of each bank, by phase; with atomics each lane's own.
        let phase_lanes = 128 / bytes.max(4) as usize;
        let (mut together, mut in_turn) = (0, 0);
        for phase in active.chunk_by(|a, b| a / phase_lanes == b / phase_lanes) {
            let mut words: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
            let mut lanes: BTreeMap<u64, u64> = BTreeMap::new();
            for &lane in phase {
                for word in addresses[lane] / 4..(addresses[lane] + bytes).div_ceil(4) {
                    words.entry(word % 32).or_default().insert(word);
                    *lanes.entry(word % 32).or_default() += 1;
                }
            }
            together += words.values().map(BTreeSet::len).max().unwrap_or(0) as u64;
            in_turn += lanes.into_values().max().unwrap_or(0);
        }
        let found = (waves(mask, bytes, &addresses, true), waves(mask, bytes, &addresses, false));
        assert_eq!(found, (together, in_turn), "{bytes} bytes, {mask:#x}, {addresses:?}");
    }
}

#[test]
fn asynchronous_copies_count_on_both_sides() {
    let copy = |size: &str, to: u32, instruction: &str| {
        let body = format!(
            "{size} mul.lo.u32 %r5, %r0, {to}; add.s32 %r6, %r4, %r5; mul.lo.u32 %r7, %r0, 16; cvt.u64.u32 %d3, %r7;\n\
             add.s64 %d2, %d20, %d3;\n{instruction} {HERE}\ncp.async.wait_all;"
        );
        let all = counted(&body);
        assert_eq!((all.warp_instructions, all.async_copy, all.global_load_sectors), (1, 1, all.global_sectors));
        [
            all.global_requests,
            all.global_sectors,
            all.global_sectors_least,
            all.shared_requests,
            all.shared_wavefronts,
            all.shared_wavefronts_least,
        ]
    };
    let whole = "cp.async.cg.shared.global [%r6], [%d2], 16;";
    assert_eq!(copy("", 16, whole), [1, 16, 16, 1, 4, 4]);
    assert_eq!(copy("", 64, whole), [1, 16, 16, 1, 16, 4]);
    let sized = "cp.async.cg.shared.global [%r6], [%d2], 16, %r8;";
    // Half of the lanes read nothing; they write zeros.
    let half = "setp.lt.u32 %p1, %r0, 16; selp.b32 %r8, 16, 0, %p1;";
    assert_eq!(copy(half, 16, sized), [1, 8, 8, 1, 4, 4]);
    assert_eq!(copy("mov.u32 %r8, 0;", 16, sized), [0, 0, 0, 1, 4, 4]);
    // One that reads a part asks for the whole.
    assert_eq!(copy("mov.u32 %r8, 6;", 16, sized), [1, 16, 16, 1, 4, 4]);
    assert_eq!(copy("", 4, "cp.async.ca.shared.global [%r6], [%d2], 4;"), [1, 16, 4, 1, 1, 1]);
}

/// Each instruction by its class, with what else it counts.
#[test]
fn instructions_by_class() {
    type Pick = fn(&Counters) -> u64;
    let cases: &[(&str, Pick)] = &[
        ("add.s32 %r10, %r0, 1;", |c| c.integer),
        ("mad.lo.s32 %r10, %r0, 3, %r0;", |c| c.integer),
        ("mul.wide.u32 %d4, %r0, 4;", |c| c.integer),
        ("shl.b32 %r10, %r0, 3;", |c| c.integer),
        ("and.b32 %r10, %r0, 3;", |c| c.integer),
        ("div.u32 %r10, %r0, %r20;", |c| c.integer),
        ("cvt.u64.u32 %d4, %r0;", |c| c.integer),
        ("add.f32 %r10, %r20, %r21;", |c| c.float),
        ("fma.rn.ftz.f32 %r10, %r20, %r21, %r22;", |c| c.float),
        ("max.f32 %r10, %r20, %r21;", |c| c.float),
        ("add.f64 %d4, %d5, %d5;", |c| c.float),
        ("cvt.rn.f32.u32 %r10, %r0;", |c| c.conversion),
        ("cvt.rn.bf16x2.f32 %r10, %r20, %r21;", |c| c.conversion),
        ("ex2.approx.ftz.f32 %r10, %r20;", |c| c.special),
        ("rsqrt.approx.f32 %r10, %r20;", |c| c.special),
        ("div.rn.f32 %r10, %r20, %r21;", |c| c.special),
        ("shfl.sync.bfly.b32 %r10, %r0, 1, 31, -1;", |c| c.shuffle),
        ("vote.sync.any.pred %p1, %p2, -1;", |c| c.shuffle),
        ("redux.sync.add.u32 %r10, %r0, -1;", |c| c.shuffle),
        ("ld.global.u32 %r10, [%d20];", |c| c.global_load),
        ("st.global.u32 [%d4], %r0;", |c| c.global_store),
        ("ld.shared.u32 %r10, [%r6];", |c| c.shared_load),
        ("st.shared.u32 [%r6], %r0;", |c| c.shared_store),
        ("red.global.add.u32 [%d20], 1;", |c| c.atomic),
        ("atom.shared.add.u32 %r10, [%r6], 1;", |c| c.atomic),
        ("bar.sync 0;", |c| c.barrier),
        ("bar.warp.sync -1;", |c| c.barrier),
        ("membar.gl;", |c| c.barrier),
        ("bra.uni N; N:", |c| c.branch),
        ("ret;", |c| c.branch),
        ("mov.u32 %r10, %r0;", |c| c.other),
        ("mov.b32 {%h2, %h3}, %r0;", |c| c.other),
        ("setp.lt.f32 %p1, %r20, %r21;", |c| c.other),
        ("setp.lt.and.u32 %p1|%p3, %r20, %r21, %p2;", |c| c.other),
        ("selp.b32 %r10, 1, 2, %p2;", |c| c.other),
        ("and.pred %p1, %p2, %p2;", |c| c.other),
        ("ld.param.u64 %d4, [p0];", |c| c.other),
        ("cp.async.commit_group;", |c| c.other),
    ];
    for (instruction, pick) in cases {
        let body = format!(
            "setp.lt.u32 %p2, %r0, 99; shl.b32 %r5, %r0, 2; add.s32 %r6, %r5, %r4; st.shared.u32 [%r6], %r0;\n\
             add.s64 %d4, %d20, %d0; mov.f64 %d5, 0d3FF0000000000000;\n{instruction} {HERE}\n"
        );
        let all = counted(&body);
        assert_eq!((pick(&all), all.warp_instructions, all.thread_instructions), (1, 1, 32), "{instruction}");
        let classes = all.named().skip(2).take(17).map(|(_, count)| count).sum::<u64>();
        assert_eq!(classes, 1, "{instruction} is of one class");
    }
}

#[test]
fn operations_on_floats_and_matrices() {
    let flops = |instruction: &str| {
        let all = counted(&format!("setp.lt.u32 %p1, %r0, 5;\n{instruction} {HERE}\n"));
        (all.float_flops, all.mma_flops, all.mma)
    };
    assert_eq!(flops("add.f32 %r10, %r20, %r21;"), (32, 0, 0));
    assert_eq!(flops("sub.rn.f32 %r10, %r20, %r21;"), (32, 0, 0));
    assert_eq!(flops("mul.ftz.f32 %r10, %r20, %r21;"), (32, 0, 0));
    assert_eq!(flops("fma.rn.f32 %r10, %r20, %r21, %r22;"), (64, 0, 0));
    assert_eq!(flops("@%p1 fma.rn.f32 %r10, %r20, %r21, %r22;"), (10, 0, 0));
    assert_eq!(flops("max.f32 %r10, %r20, %r21;"), (0, 0, 0));
    let product = |name: &str, a: &str, b: &str| {
        let sums = "{%r20, %r21, %r22, %r23}";
        flops(&format!("mma.sync.aligned.{name}.f32 {sums}, {{{a}}}, {{{b}}}, {sums};"))
    };
    let (four, two, one) = ("%r20, %r21, %r22, %r23", "%r20, %r21", "%r20");
    assert_eq!(product("m16n8k16.row.col.f32.bf16.bf16", four, two), (0, 4096, 1));
    assert_eq!(product("m16n8k8.row.col.f32.f16.f16", two, one), (0, 2048, 1));
    assert_eq!(product("m16n8k8.row.col.f32.tf32.tf32", four, two), (0, 2048, 1));
    assert_eq!(product("m16n8k4.row.col.f32.tf32.tf32", two, one), (0, 1024, 1));
}

#[test]
fn local_memory_atomics_and_barriers() {
    let all = counted(&format!("mov.u64 %d4, own;\nst.local.v2.u32 [%d4], {{%r0, %r0}}; {HERE}\n"));
    assert_eq!((all.local_access, all.local_bytes, all.global_requests, all.shared_requests), (1, 256, 0, 0));
    let all = counted(&format!("setp.lt.u32 %p1, %r0, 5;\n@%p1 red.global.add.u32 [%d20], 1; {HERE}\n"));
    assert_eq!((all.atomic, all.atomics, all.global_load_sectors, all.global_store_sectors), (1, 5, 0, 0));
    // Three warps, the last one of 8 lanes.
    let (mut block, line) = kernel(&format!("bar.sync 0; {HERE}\n"));
    block.block = [72, 1, 1];
    let (sums, _) = block.count(None);
    let all = block.of_line(&sums, line);
    assert_eq!((all.barrier, all.barrier_waits, all.warp_instructions, all.thread_instructions), (3, 3, 3, 72));
    let all = counted(&format!("bar.warp.sync -1; {HERE}\n"));
    assert_eq!((all.barrier, all.barrier_waits), (1, 0));
}

/// Issues and active lanes of the marked line.
fn issued(body: &str) -> (u64, u64) {
    let all = counted(body);
    (all.warp_instructions, all.thread_instructions)
}

#[test]
fn divergence_and_guards() {
    // A lane adds as often as its number says: 32 rounds for the warp.
    let divergent =
        "mov.u32 %r10, 0; L: setp.ge.u32 %p1, %r10, %r0; @%p1 bra E;\n add.s32 %r10, %r10, 1; // here\n bra L; E:";
    assert_eq!(issued(divergent), (31, 496));
    let sides = |here: &str| {
        format!(
            "setp.lt.u32 %p1, %r0, 8; @%p1 bra A;\n add.s32 %r10, %r0, 1; {}\n bra B;\n A: add.s32 %r10, %r0, 2; {}\n B: \n",
            if here == "far" { HERE } else { "" },
            if here == "near" { HERE } else { "" }
        )
    };
    assert_eq!((issued(&sides("far")), issued(&sides("near"))), ((1, 24), (1, 8)));
    // Behind the branch all are together again.
    assert_eq!(
        issued("setp.lt.u32 %p1, %r0, 8; @%p1 bra A; add.s32 %r10, %r0, 1;\n A: add.s32 %r11, %r0, 2; // here\n"),
        (1, 32)
    );
    let guarded = |bound: u32, rest: &str| format!("setp.lt.u32 %p1, %r0, {bound};\n{rest} {HERE}\n");
    assert_eq!(issued(&guarded(5, "@%p1 add.s32 %r10, %r0, 1;")), (1, 5));
    assert_eq!(issued(&guarded(5, "@!%p1 add.s32 %r10, %r0, 1;")), (1, 27));
    assert_eq!(issued(&guarded(0, "@%p1 add.s32 %r10, %r0, 1;")), (1, 0));
    assert_eq!(issued(&guarded(0, "@%p1 st.global.u32 [%d20], %r0;")), (1, 0));
    assert_eq!(issued(&guarded(0, "@%p1 bar.sync 0;")), (1, 0));
    // Lanes that come to a shuffle one after the other do it once, together.
    let late = "setp.lt.u32 %p1, %r0, 8; mov.u32 %r10, 3; @%p1 bra A; add.s32 %r10, %r10, 1;\n\
                A: shfl.sync.bfly.b32 %r11, %r10, 1, 31, -1; // here\n";
    assert_eq!(issued(late), (1, 32));
    let wait = "setp.lt.u32 %p1, %r0, 8; @%p1 bra A; bra B;\n B: shfl.sync.bfly.b32 %r11, %r0, 1, 31, -1; // here\n bra C;\n A: bra B; C: \n";
    assert_eq!(issued(wait), (1, 32));
    // At two places at once, each counts its own lanes.
    let apart = |first: &str, second: &str| {
        format!(
            "setp.lt.u32 %p1, %r0, 8; @%p1 bra A;\n shfl.sync.bfly.b32 %r11, %r0, 16, 31, -1; {first}\n bra B;\n\
             A: shfl.sync.bfly.b32 %r11, %r0, 16, 31, -1; {second}\n B: \n"
        )
    };
    assert_eq!((issued(&apart(HERE, "")), issued(&apart("", HERE))), ((1, 24), (1, 8)));
}

#[test]
fn slots_of_a_loop() {
    let body = "mov.u32 %r10, 0;\nL: add.s32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, 100; @%p1 bra L; // here\n";
    let (mut kernel, line) = kernel(body);
    kernel.grid = [7, 1, 1];
    kernel.block = [64, 1, 1];
    let (sums, _) = kernel.count(None);
    let all = kernel.of_line(&sums, line);
    // Of the last jump no lane makes use.
    assert_eq!((all.warp_instructions, all.thread_instructions), (7 * 2 * 300, 7 * 64 * 299));
    assert_eq!((all.integer, all.other, all.branch), (1400, 1400, 1400));
    let total = sums.total(&kernel.program);
    assert!(total.warp_instructions > all.warp_instructions);
}

/// Adds 1 to each word of a range of the first buffer: `%r40` is its first byte.
const TOUCH: &str = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r3, %r1, %r2, %r0;\n\
    mad.lo.u32 %r4, %r3, 4, %r40; cvt.u64.u32 %d1, %r4; add.s64 %d2, %d20, %d1; ld.global.u32 %r5, [%d2];\n\
    setp.eq.u32 %p1, %r41, 1; @%p1 st.global.u32 [%d2], %r5;";

#[test]
fn the_footprint_of_launches() {
    let touches = |cores: usize| -> Vec<(u64, u64, Vec<u64>)> {
        let mut kernel = Kernel::new(1, 2, TOUCH).grid(8, 64).buffer(&vec![0u32; 4096]);
        kernel.limits.cores = cores;
        let table = Touches::new(kernel.memory.span().1).unwrap();
        // 512 words each: reads 0 to 2048, writes them; reads 1024 to 3072; the same again; reads 2048 to 4096.
        [(0, 1), (1024, 0), (1024, 0), (2048, 0), (0, 1)]
            .iter()
            .enumerate()
            .map(|(index, &(first, writes))| {
                kernel.words = vec![first, writes];
                let (_, found) = kernel.count(Some((&table, index as u32 + 1)));
                (found.read, found.written, found.reused)
            })
            .collect()
    };
    let expected = [
        (64, 64, vec![]),
        (64, 0, vec![32]),
        (64, 0, vec![0, 64]),
        (64, 0, vec![0, 0, 32]),
        (64, 64, vec![32, 0, 32, 0]),
    ];
    for cores in [1, 2, 3] {
        assert_eq!(touches(cores), expected, "{cores}");
    }
}

#[test]
fn counts_do_not_depend_on_the_number_of_host_threads() {
    // Conflicts, divergence, atomics and an overlap of blocks in one kernel.
    let body = "mul.lo.u32 %r5, %r3, 76; and.b32 %r5, %r5, 65532; cvt.u64.u32 %d3, %r5; add.s64 %d2, %d20, %d3; \
                ld.global.u32 %r6, [%d2];\n add.s32 %r6, %r6, %r3; and.b32 %r7, %r6, 31; mov.u32 %r8, 0;\n\
                L: setp.ge.u32 %p1, %r8, %r7; @%p1 bra E; add.s32 %r8, %r8, 1; red.global.add.u32 [%d21], 1; bra L;\n\
                E: mul.lo.u32 %r9, %r0, 12; add.s32 %r9, %r9, %r4; st.shared.u32 [%r9], %r8; // here\n";
    let counted = |cores: usize| -> (Counters, u64, u64, Sums) {
        let (mut kernel, _) = kernel(body);
        (kernel.grid, kernel.block, kernel.limits.cores) = ([37, 1, 1], [96, 1, 1], cores);
        let table = Touches::new(kernel.memory.span().1).unwrap();
        let (sums, found) = kernel.count(Some((&table, 1)));
        (sums.total(&kernel.program), found.read, found.written, sums)
    };
    let (total, read, written, sums) = counted(1);
    assert!(total.shared_wavefronts > total.shared_requests || total.atomics > 0);
    for cores in [2, 3, 8] {
        let (other, r, w, all) = counted(cores);
        assert_eq!((other, r, w), (total, read, written));
        let (program, _) = kernel(body);
        assert!(all.operations(&program.program).eq(sums.operations(&program.program)));
    }
}
