//! Thread instructions a second, with checks, without, and without but counted: `cargo run --release -p ptx-machine --example speed [THREADS]`.
//!
//! Four kernels of one's own: arithmetic alone, a sum through shared memory, a copy, and a product of tiles as a GPU does it.

use std::time::Instant;

use ptx_machine::count::{Counts, Place, Sums, Touches};
use ptx_machine::exec::{Counter, Grid, Limits, MOST_CORES, run_observed};
use ptx_machine::ir::Program;
use ptx_machine::memory::DeviceMemory;
use ptx_machine::parse::parse;

const HEAD: &str = ".version 8.4\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b)\n{\n\
    .reg .pred %p<8>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %d<32>; .shared .align 16 .b8 tile[4096];\n\
    ld.param.u64 %d20, [a]; ld.param.u64 %d21, [b]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;\n\
    mad.lo.s32 %r2, %r1, 256, %r0; mul.wide.u32 %d0, %r2, 4; add.s64 %d1, %d20, %d0; add.s64 %d2, %d21, %d0;\n\
    shl.b32 %r3, %r0, 2; mov.u32 %r4, tile; add.s32 %r5, %r4, %r3;\n";

const KERNELS: &[(&str, &str)] = &[
    (
        "arithmetic",
        "mov.u32 %r10, 0; mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.f32 %f3, 0f00000000;\n\
         L: fma.rn.f32 %f3, %f1, %f2, %f3; mul.f32 %f4, %f3, %f2; add.f32 %f5, %f4, %f1; fma.rn.f32 %f6, %f5, %f2, %f3;\n\
         shl.b32 %r11, %r10, 2; and.b32 %r12, %r11, 255; add.s32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, 2000; @%p1 bra L;\n\
         st.global.f32 [%d2], %f6;",
    ),
    (
        "shared",
        "mov.u32 %r10, 0; cvt.rn.f32.u32 %f1, %r0; st.shared.f32 [%r5], %f1; bar.sync 0; mov.f32 %f2, 0f00000000;\n\
         L: and.b32 %r11, %r10, 1020; add.s32 %r12, %r4, %r11; ld.shared.f32 %f3, [%r12]; ld.shared.f32 %f4, [%r5];\n\
         fma.rn.f32 %f2, %f3, %f4, %f2; add.s32 %r10, %r10, 4; setp.lt.u32 %p1, %r10, 4000; @%p1 bra L;\n\
         st.global.f32 [%d2], %f2;",
    ),
    (
        "copy",
        "mov.u32 %r10, 0; L: ld.global.f32 %f1, [%d1]; add.f32 %f2, %f1, %f1; st.global.f32 [%d2], %f2;\n\
         add.s32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, 500; @%p1 bra L;",
    ),
    (
        "product",
        "mov.u32 %r10, 0; mov.f32 %f0, 0f3F800000; st.shared.v4.f32 [%r4], {%f0, %f0, %f0, %f0}; bra.uni S;\n\
         S: bar.sync 0; L: ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r4];\n\
         fma.rn.f32 %f10, %f1, %f1, %f0; fma.rn.f32 %f11, %f1, %f2, %f0; fma.rn.f32 %f12, %f1, %f3, %f0; fma.rn.f32 %f13, %f1, %f4, %f0;\n\
         fma.rn.f32 %f14, %f2, %f1, %f0; fma.rn.f32 %f15, %f2, %f2, %f0; fma.rn.f32 %f16, %f2, %f3, %f0; fma.rn.f32 %f17, %f2, %f4, %f0;\n\
         add.s32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, 1000; @%p1 bra L; st.global.f32 [%d2], %f17;",
    ),
];

fn main() {
    let cores = std::env::args().nth(1).map_or(Ok(1), |text| text.parse());
    let Some(cores) = cores.ok().filter(|cores| (1..=MOST_CORES).contains(cores)) else {
        eprintln!("speed [THREADS]: a number of host threads from 1 to {MOST_CORES}");
        std::process::exit(1);
    };
    let plural = if cores == 1 { "" } else { "s" };
    println!(
        "{:<12} {:>16} {:>16} {:>16}   million thread instructions a second, {cores} host thread{plural}",
        "kernel", "checked", "unchecked", "counted"
    );
    for (name, body) in KERNELS {
        // One thread writes the tile of the product.
        let body = body.replace("st.shared.v4", "setp.eq.s32 %p2, %r0, 0; @%p2 st.shared.v4");
        let text = format!("{HEAD}{body}\nret;\n}}\n");
        let module = parse("speed", &text).unwrap_or_else(|error| panic!("{error}"));
        let program = Program::build(&module, &module.entries[0], &[]).unwrap_or_else(|error| panic!("{error}"));
        let mut rates = Vec::new();
        for (checked, counts) in [(true, false), (false, false), (false, true)] {
            let mut memory = DeviceMemory::new(0, 64 << 20, checked).unwrap();
            let buffers = [(); 2].map(|()| memory.allocate(256 * 64 * 4).unwrap());
            memory.mark_written(buffers[0], 256 * 64 * 4);
            let params: Vec<u8> = buffers.iter().flat_map(|address| address.to_le_bytes()).collect();
            let touches = Touches::new(memory.span().1).unwrap();
            let mut best = 0f64;
            for launch in 1..4 {
                let limits = Limits { cores, ..Limits::default() };
                let (grid, block) = ([64, 1, 1], [256, 1, 1]);
                let params = &params;
                let grid = Grid {
                    program: &program,
                    memory: &memory,
                    grid,
                    block,
                    dynamic_shared: 0,
                    params,
                    launch,
                    beside: None,
                    limits,
                };
                let start = Instant::now();
                let count = if counts {
                    let place = Place { touches: &touches, base: memory.span().0, launch: launch as u32, first: 1 };
                    let counted = run_observed(&grid, || Counts::new(&program, Some(place)));
                    let (sums, _) = Sums::of(&program, counted.unwrap_or_else(|report| panic!("{report}")));
                    sums.total(&program).thread_instructions
                } else {
                    let counters = run_observed(&grid, Counter::default).unwrap_or_else(|report| panic!("{report}"));
                    counters.iter().map(|counter| counter.thread_instructions).sum()
                };
                best = best.max(count as f64 / start.elapsed().as_secs_f64() / 1e6);
            }
            rates.push(best);
        }
        println!("{name:<12} {:>16.0} {:>16.0} {:>16.0}", rates[0], rates[1], rates[2]);
    }
}
