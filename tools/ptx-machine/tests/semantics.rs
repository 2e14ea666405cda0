//! Instructions give what the ISA says.

mod common;

use common::{Kernel, THREAD};

/// Each lane's word through `body`, which takes %r10 (and %r11, the second buffer's) and leaves %r12.
fn through(body: &str, a: [u32; 32], b: [u32; 32]) -> Vec<u32> {
    let body = format!(
        "{THREAD}add.s64 %d2, %d20, %d0; add.s64 %d3, %d21, %d0; add.s64 %d4, %d22, %d0;\n\
         ld.global.u32 %r10, [%d2]; ld.global.u32 %r11, [%d3];\n{body}\nst.global.u32 [%d4], %r12;"
    );
    let mut kernel = Kernel::new(3, 0, &body).buffer(&a).buffer(&b).unwritten(128);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    kernel.read(2)
}

fn numbers() -> ([u32; 32], [u32; 32]) {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ (state >> 13)
    };
    let mut a: [u32; 32] = std::array::from_fn(|_| next());
    let mut b: [u32; 32] = std::array::from_fn(|_| next());
    a[..6].copy_from_slice(&[0, 1, !0, 0x8000_0000, 0x7fff_ffff, 31]);
    b[..6].copy_from_slice(&[1, 33, !0, 0x8000_0001, 0x7fff_ffff, 0]);
    (a, b)
}

#[test]
fn integers() {
    let (a, b) = numbers();
    type Two = fn(u32, u32) -> u32;
    let cases: &[(&str, Two)] = &[
        ("add.s32 %r12, %r10, %r11;", u32::wrapping_add),
        ("sub.s32 %r12, %r10, %r11;", u32::wrapping_sub),
        ("mul.lo.s32 %r12, %r10, %r11;", u32::wrapping_mul),
        ("mul.hi.u32 %r12, %r10, %r11;", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        ("mul.hi.s32 %r12, %r10, %r11;", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        ("min.s32 %r12, %r10, %r11;", |a, b| (a as i32).min(b as i32) as u32),
        ("max.u32 %r12, %r10, %r11;", u32::max),
        ("shl.b32 %r12, %r10, %r11;", |a, b| if b < 32 { a << b } else { 0 }),
        ("shr.u32 %r12, %r10, %r11;", |a, b| if b < 32 { a >> b } else { 0 }),
        ("shr.s32 %r12, %r10, %r11;", |a, b| ((a as i32) >> b.min(31)) as u32),
        ("and.b32 %r12, %r10, %r11;", |a, b| a & b),
        ("xor.b32 %r12, %r10, %r11;", |a, b| a ^ b),
        ("lop3.b32 %r12, %r10, %r11, 0x0ff0, 0x96;", |a, b| a ^ b ^ 0x0ff0),
        ("lop3.b32 %r12, %r10, 0x0ff0, %r11, 0xca;", |a, b| (a & 0x0ff0) | (!a & b)),
        ("lop3.b32 %r12, %r10, %r11, -2, 0xe8;", |a, b| (a & b) | (a & !1) | (b & !1)),
        ("lop3.b32 %r12, %r10, %r11, -2, 0x80;", |a, b| a & b & !1),
        ("lop3.b32 %r12, %r10, %r11, 1, 0xfe;", |a, b| a | b | 1),
        ("not.b32 %r12, %r10;", |a, _| !a),
        ("popc.b32 %r12, %r10;", |a, _| a.count_ones()),
        ("clz.b32 %r12, %r10;", |a, _| a.leading_zeros()),
        ("brev.b32 %r12, %r10;", |a, _| a.reverse_bits()),
        ("bfind.u32 %r12, %r10;", |a, _| if a == 0 { !0 } else { 31 - a.leading_zeros() }),
        ("bfe.u32 %r12, %r10, 5, 9;", |a, _| a >> 5 & 0x1ff),
        ("bfe.s32 %r12, %r10, 5, 9;", |a, _| (((a >> 5 & 0x1ff) << 23) as i32 >> 23) as u32),
        ("bfi.b32 %r12, %r10, %r11, 8, 12;", |a, b| (b & !0xf_ff00) | (a & 0xfff) << 8),
        ("prmt.b32 %r12, %r10, %r11, 0x5410;", |a, b| (a & 0xffff) | b << 16),
        ("shf.l.wrap.b32 %r12, %r10, %r11, 8;", |a, b| b << 8 | a >> 24),
        ("setp.lt.s32 %p1, %r10, %r11; selp.b32 %r12, 7, 9, %p1;", |a, b| if (a as i32) < b as i32 { 7 } else { 9 }),
        ("setp.lo.u32 %p1|%p2, %r10, %r11; selp.b32 %r12, 7, 9, %p2;", |a, b| if a >= b { 7 } else { 9 }),
        ("cvt.u16.u32 %h1, %r10; cvt.s32.s16 %r12, %h1;", |a, _| i32::from(a as i16) as u32),
        ("mov.b32 {%h1, %h2}, %r10; mov.b32 %r12, {%h2, %h1};", |a, _| a.rotate_left(16)),
        ("mul.wide.u32 %d5, %r10, %r11; shr.u64 %d5, %d5, 7; cvt.u32.u64 %r12, %d5;", |a, b| {
            ((u64::from(a) * u64::from(b)) >> 7) as u32
        }),
        ("or.b32 %r13, %r11, 1; div.u32 %r12, %r10, %r13;", |a, b| a / (b | 1)),
        ("or.b32 %r13, %r11, 1; rem.s32 %r12, %r10, %r13;", |a, b| (a as i32).wrapping_rem((b | 1) as i32) as u32),
        ("cvt.rn.f32.u32 %r12, %r10;", |a, _| (a as f32).to_bits()),
        ("mov.u32 %r12, 3; setp.gt.u32 %p1, %r10, %r11; @!%p1 mov.u32 %r12, 4;", |a, b| if a > b { 3 } else { 4 }),
    ];
    for (text, expected) in cases {
        let got = through(text, a, b);
        for lane in 0..32 {
            assert_eq!(got[lane], expected(a[lane], b[lane]), "{text} of {:#x}, {:#x}", a[lane], b[lane]);
        }
    }
}

#[test]
fn floats() {
    let specials = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-40,
        3.3e38,
        1e-30,
        0.1,
        7.7,
        -88.0,
        126.9,
    ];
    let a: [u32; 32] = std::array::from_fn(|i| (specials[i % 14] * if i < 14 { 1.0 } else { 1.7 }).to_bits());
    let b: [u32; 32] = std::array::from_fn(|i| (specials[(i * 5 + 2) % 14] * if i < 20 { 1.0 } else { 0.3 }).to_bits());
    type Two = fn(f32, f32) -> f32;
    let cases: &[(&str, Two)] = &[
        ("add.f32 %r12, %r10, %r11;", |a, b| a + b),
        ("mul.rn.f32 %r12, %r10, %r11;", |a, b| a * b),
        ("fma.rn.f32 %r12, %r10, %r11, %r10;", |a, b| a.mul_add(b, a)),
        ("div.rn.f32 %r12, %r10, %r11;", |a, b| a / b),
        ("sqrt.rn.f32 %r12, %r10;", |a, _| a.sqrt()),
        ("rcp.rn.f32 %r12, %r10;", |a, _| 1.0 / a),
        ("cvt.sat.f32.f32 %r12, %r10;", |a, _| if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) }),
        ("cvt.rmi.f32.f32 %r12, %r10;", |a, _| a.floor()),
        ("max.f32 %r12, %r10, %r11;", f32::max),
        ("min.f32 %r12, %r10, %r11;", f32::min),
        ("neg.f32 %r12, %r10;", |a, _| -a),
        ("abs.f32 %r12, %r10;", |a, _| a.abs()),
    ];
    for (text, expected) in cases {
        let got = through(text, a, b);
        for lane in 0..32 {
            let (x, y) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]));
            let (got, expected) = (f32::from_bits(got[lane]), expected(x, y));
            let same = got == expected || (got.is_nan() && expected.is_nan());
            assert!(same, "{text} of {x:e}, {y:e}: {got:e}, expected {expected:e}");
        }
    }
}

/// To bf16: ties to even, and every NaN the same, as single values and as pairs.
#[test]
fn conversions_to_bf16() {
    let (mut a, b) = numbers();
    let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f80_0001, 0xffc1_2345, 0x7f80_0000, 0xff7f_8000, 0x0000_8000];
    a[..8].copy_from_slice(&ties);
    let rounded = |x: u32| {
        let near = (x.wrapping_add(0x7fff + (x >> 16 & 1))) >> 16;
        if f32::from_bits(x).is_nan() { 0x7fff } else { near }
    };
    let one = through("cvt.rn.bf16.f32 %h1, %r10; cvt.u32.u16 %r12, %h1;", a, b);
    let two = through("cvt.rn.bf16x2.f32 %r12, %r11, %r10;", a, b);
    for lane in 0..32 {
        assert_eq!(one[lane], rounded(a[lane]), "{:#x}", a[lane]);
        assert_eq!(two[lane], rounded(b[lane]) << 16 | rounded(a[lane]), "{:#x} {:#x}", a[lane], b[lane]);
    }
}

/// The sigmoid that kernels make of the two approximations, over a grid: within 2^-18 where |x| <= 80.
#[test]
fn a_sigmoid_of_approximations() {
    // -log2 e in two parts, as `exp_minus` in kernels/common/activation.cuh has them.
    let body = "mul.f32 %r12, %r10, 0fB2A57060; fma.rn.f32 %r12, %r10, 0fBFB8AA3B, %r12; ex2.approx.ftz.f32 %r12, %r12;\n\
                add.f32 %r12, %r12, 0f3F800000; rcp.approx.ftz.f32 %r12, %r12;";
    for turn in 0..200u32 {
        let x: [f32; 32] = std::array::from_fn(|lane| (turn * 32 + lane as u32) as f32 * 0.025 - 80.0);
        for (x, s) in x.iter().zip(through(body, x.map(f32::to_bits), [0; 32])) {
            let exact = 1.0 / (1.0 + (-f64::from(*x)).exp());
            let error = (f64::from(f32::from_bits(s)) / exact - 1.0).abs();
            assert!(error <= 2f64.powi(-18), "{x}: {error:e}");
        }
    }
}

#[test]
fn directed_rounding_encloses_the_exact_value() {
    let (a, b) = numbers();
    let small = |x: u32| (x & 0x007f_ffff) | (120 + x % 17) << 23 | (x & 1) << 31;
    let (a, b) = (a.map(small), b.map(small));
    let [down, up, near, zero] =
        ["rm", "rp", "rn", "rz"].map(|mode| through(&format!("fma.{mode}.f32 %r12, %r10, %r11, %r10;"), a, b));
    for lane in 0..32 {
        let [d, u, n, z] = [&down, &up, &near, &zero].map(|values| f32::from_bits(values[lane]));
        // Products of two f32 are exact in f64; these sums are, too, for their exponents are near.
        let (x, y) = (f64::from(f32::from_bits(a[lane])), f64::from(f32::from_bits(b[lane])));
        let exact = x * y + x;
        assert!(f64::from(d) <= exact && exact <= f64::from(u), "{d:e} {exact:e} {u:e}");
        assert!(u == d || u == d.next_up());
        assert!(n == d || n == u);
        assert_eq!(z, if exact > 0.0 { d } else { u });
    }
}

#[test]
fn approximate_functions_keep_their_bounds() {
    let a: [u32; 32] = std::array::from_fn(|i| (i as f32 * 0.83 + 0.11).to_bits());
    type Bounded = (&'static str, fn(f64) -> f64, f64);
    let cases: &[Bounded] = &[
        ("ex2.approx.ftz.f32 %r12, %r10;", f64::exp2, 1.7e-7),
        ("rcp.approx.f32 %r12, %r10;", |x| 1.0 / x, 1.2e-7),
        ("rsqrt.approx.f32 %r12, %r10;", |x| 1.0 / x.sqrt(), 2e-7),
        ("sqrt.approx.f32 %r12, %r10;", f64::sqrt, 2e-7),
        ("tanh.approx.f32 %r12, %r10;", f64::tanh, 5e-4),
    ];
    for (text, exact, bound) in cases {
        for (lane, got) in through(text, a, a).into_iter().enumerate() {
            let expected = exact(f64::from(f32::from_bits(a[lane])));
            let apart = (f64::from(f32::from_bits(got)) / expected - 1.0).abs();
            assert!(apart < *bound, "{text}: {apart:e}");
        }
    }
    // Subnormal results are flushed with .ftz, and not without.
    let low: [u32; 32] = std::array::from_fn(|_| (-127.5f32).to_bits());
    assert_eq!(through("ex2.approx.ftz.f32 %r12, %r10;", low, low)[0], 0);
    assert_ne!(through("ex2.approx.f32 %r12, %r10;", low, low)[0], 0);
}

#[test]
fn shuffles_votes_and_reductions() {
    let a: [u32; 32] = std::array::from_fn(|lane| 100 + lane as u32);
    let b = [0; 32];
    let shuffled = |text: &str| through(text, a, b);
    let lanes = |f: fn(u32) -> u32| (0..32u32).map(f).collect::<Vec<_>>();
    assert_eq!(shuffled("shfl.sync.bfly.b32 %r12, %r10, 5, 31, -1;"), lanes(|l| 100 + (l ^ 5)));
    assert_eq!(
        shuffled("shfl.sync.down.b32 %r12, %r10, 4, 31, -1;"),
        lanes(|l| 100 + if l + 4 > 31 { l } else { l + 4 })
    );
    assert_eq!(shuffled("shfl.sync.up.b32 %r12|%p1, %r10, 3, 0, -1;"), lanes(|l| 100 + if l < 3 { l } else { l - 3 }));
    assert_eq!(shuffled("shfl.sync.idx.b32 %r12, %r10, 2, 31, -1;"), lanes(|_| 102));
    // Segments of 8 lanes.
    assert_eq!(shuffled("shfl.sync.idx.b32 %r12, %r10, 2, 0x1807, -1;"), lanes(|l| 100 + (l / 8 * 8 + 2)));
    let down = "shfl.sync.down.b32 %r13|%p1, %r10, 4, 31, -1; selp.b32 %r12, 1, 0, %p1;";
    assert_eq!(shuffled(down), lanes(|l| u32::from(l + 4 <= 31)));
    let odd = "and.b32 %r13, %r0, 1; setp.ne.s32 %p1, %r13, 0;";
    assert_eq!(shuffled(&format!("{odd} vote.sync.ballot.b32 %r12, %p1, -1;")), [0xaaaa_aaaa; 32]);
    assert_eq!(shuffled(&format!("{odd} vote.sync.any.pred %p2, %p1, -1; selp.b32 %r12, 1, 0, %p2;")), [1; 32]);
    assert_eq!(shuffled(&format!("{odd} vote.sync.all.pred %p2, %p1, -1; selp.b32 %r12, 1, 0, %p2;")), [0; 32]);
    assert_eq!(shuffled("redux.sync.add.u32 %r12, %r10, -1;"), [32 * 100 + 496; 32]);
    assert_eq!(shuffled("redux.sync.max.u32 %r12, %r10, -1;"), [131; 32]);
    assert_eq!(shuffled("shr.u32 %r13, %r0, 3; match.any.sync.b32 %r12, %r13, -1;")[9], 0xff00);
    // Both sides of a branch do the same shuffle: they do it together.
    let both = format!(
        "{odd} @%p1 bra A; shfl.sync.bfly.b32 %r12, %r10, 1, 31, -1; bra B; \
         A: shfl.sync.bfly.b32 %r12, %r10, 1, 31, -1; B:"
    );
    assert_eq!(shuffled(&both), lanes(|l| 100 + (l ^ 1)));
    // A half with its own mask.
    let half =
        "setp.lt.u32 %p1, %r0, 16; mov.u32 %r12, 0; @!%p1 bra B; shfl.sync.bfly.b32 %r12, %r10, 1, 31, 0xffff; B:";
    assert_eq!(shuffled(half), lanes(|l| if l < 16 { 100 + (l ^ 1) } else { 0 }));
}

#[test]
fn divergent_loops_meet_again() {
    // Each lane adds its number so often as it says; active lanes at the end are all.
    let body = "mov.u32 %r12, 0; mov.u32 %r13, 0; L: setp.ge.u32 %p1, %r13, %r0; @%p1 bra E; add.s32 %r12, %r12, %r0; \
                add.s32 %r13, %r13, 1; bra L; E: activemask.b32 %r14; xor.b32 %r14, %r14, -1; add.s32 %r12, %r12, %r14;";
    let got = through(body, [0; 32], [0; 32]);
    assert_eq!(got, (0..32).map(|l| l * l).collect::<Vec<u32>>());
}

#[test]
fn memory_of_every_space() {
    // Shared: reversed through a barrier; generic addresses of shared and local memory; vectors; bytes.
    let body = format!(
        "{THREAD}.shared .align 16 .b8 tile[256]; .local .align 16 .b8 stack[32];\n\
         mov.u32 %r5, tile; add.s32 %r6, %r5, %r0; add.s32 %r6, %r6, %r0; add.s32 %r6, %r6, %r0; add.s32 %r6, %r6, %r0;\n\
         st.shared.u32 [%r6], %r0; bar.sync 0;\n\
         mov.u64 %d2, tile; cvta.shared.u64 %d3, %d2; sub.s64 %d4, %d3, %d0; ld.u32 %r7, [%d4+252];\n\
         mov.u64 %d5, stack; st.local.v4.u32 [%d5], {{%r7, %r0, %r7, 9}}; cvta.local.u64 %d6, %d5;\n\
         ld.v2.u32 {{%r8, %r9}}, [%d6+8]; add.s32 %r10, %r8, %r9;\n\
         add.s64 %d7, %d20, %d0; st.global.u32 [%d7], %r10; cvt.u16.u32 %h1, %r0;\n\
         cvt.u64.u32 %d8, %r0; add.s64 %d9, %d21, %d8; st.global.u8 [%d9], %h1;"
    );
    let mut kernel = Kernel::new(2, 0, &body).grid(1, 64).unwritten(256).unwritten(64);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(kernel.read::<u32>(0), (0..64).map(|t| 63 - t + 9).collect::<Vec<u32>>());
    assert_eq!(kernel.read::<u8>(1), (0..64).collect::<Vec<u8>>());
}

#[test]
fn atomics() {
    let body = format!(
        "{THREAD}atom.global.add.u32 %r5, [%d20], 1; red.global.max.u32 [%d20+4], %r3; atom.global.inc.u32 %r6, [%d20+8], 6;\n\
         red.global.or.b32 [%d20+12], 5; add.s64 %d2, %d21, %d1; st.global.u32 [%d2], %r5;"
    );
    let mut kernel = Kernel::new(2, 0, &body).grid(7, 64).buffer(&[0u32; 4]).unwritten(7 * 256);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(kernel.read::<u32>(0), [448, 447, 0, 5]);
    let mut tickets = kernel.read::<u32>(1);
    tickets.sort_unstable();
    assert_eq!(tickets, (0..448).collect::<Vec<u32>>());
}

#[test]
fn asynchronous_copies_land_at_their_wait() {
    let body = format!(
        "{THREAD}.shared .align 16 .b8 tile[1024]; mov.u32 %r5, tile; shl.b32 %r6, %r0, 4; add.s32 %r7, %r5, %r6;\n\
         cvt.u64.u32 %d2, %r6; add.s64 %d3, %d20, %d2; mov.u32 %r8, 16; setp.eq.s32 %p1, %r0, 3; selp.b32 %r8, 6, 16, %p1;\n\
         cp.async.cg.shared.global [%r7], [%d3], 16, %r8; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n\
         xor.b32 %r9, %r6, 496; add.s32 %r10, %r5, %r9; ld.shared.v4.u32 {{%r11, %r12, %r13, %r14}}, [%r10];\n\
         add.s64 %d4, %d21, %d2; st.global.v4.u32 [%d4], {{%r11, %r12, %r13, %r14}};"
    );
    let values: Vec<u32> = (0..128).map(|i| 0x0101_0101 * (i + 1)).collect();
    let mut kernel = Kernel::new(2, 0, &body).buffer(&values).unwritten(512);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    let got = kernel.read::<u32>(1);
    for (i, &word) in got.iter().enumerate() {
        let from = ((i / 4) ^ 31) * 4 + i % 4;
        // The fourth thread copied 6 bytes and filled with zeros.
        let expected = match from {
            12 => values[12],
            13 => values[13] & 0xffff,
            14 | 15 => 0,
            _ => values[from],
        };
        assert_eq!(word, expected, "{i}");
    }
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// A [16, 16] and B [16, 8] through ldmatrix and mma, as the guide to the instruction says: C = A B.
#[test]
fn matrix_products() {
    let a: Vec<u16> = (0..256).map(|i| bf16(((i * 7) % 23) as f32 - 11.0)).collect();
    let b: Vec<u16> = (0..128).map(|i| bf16(((i * 5) % 13) as f32 - 6.0)).collect();
    // A row-major of 16 columns; B row-major [k, n] of 8 columns, loaded transposed.
    let body = format!(
        "{THREAD}.shared .align 16 .b8 left[512]; .shared .align 16 .b8 right[256];\n\
         shl.b32 %r4, %r0, 4; cvt.u64.u32 %d2, %r4; add.s64 %d3, %d20, %d2; mov.u32 %r5, left; add.s32 %r6, %r5, %r4;\n\
         ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d3]; st.shared.v4.u32 [%r6], {{%r10, %r11, %r12, %r13}};\n\
         setp.ge.u32 %p1, %r0, 16; @%p1 bra N; mov.u32 %r7, right; add.s32 %r8, %r7, %r4; add.s64 %d4, %d21, %d2;\n\
         ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d4]; st.shared.v4.u32 [%r8], {{%r10, %r11, %r12, %r13}};\n\
         N: bar.sync 0; and.b32 %r14, %r0, 15; shl.b32 %r15, %r14, 5; shr.u32 %r16, %r0, 4; shl.b32 %r17, %r16, 4;\n\
         mov.u32 %r5, left; add.s32 %r18, %r5, %r15; add.s32 %r18, %r18, %r17;\n\
         ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r18];\n\
         mov.u32 %r7, right; shl.b32 %r19, %r14, 4; add.s32 %r19, %r19, %r7;\n\
         ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{%r24, %r25}}, [%r19];\n\
         mov.u32 %r30, 0; mov.u32 %r31, 0; mov.u32 %r32, 0; mov.u32 %r33, 0;\n\
         mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%r30, %r31, %r32, %r33}}, {{%r20, %r21, %r22, %r23}}, \
         {{%r24, %r25}}, {{%r30, %r31, %r32, %r33}};\n\
         shr.u32 %r34, %r0, 2; and.b32 %r35, %r0, 3; shl.b32 %r36, %r34, 5; shl.b32 %r37, %r35, 3; add.s32 %r38, %r36, %r37;\n\
         cvt.u64.u32 %d5, %r38; add.s64 %d6, %d22, %d5; st.global.u32 [%d6], %r30; st.global.u32 [%d6+4], %r31;\n\
         st.global.u32 [%d6+256], %r32; st.global.u32 [%d6+260], %r33;"
    );
    let mut kernel = Kernel::new(3, 0, &body).buffer(&a).buffer(&b).unwritten(512);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    let value = |x: u16| f32::from_bits(u32::from(x) << 16);
    for (i, got) in kernel.read::<f32>(2).into_iter().enumerate() {
        let expected: f32 = (0..16).map(|k| value(a[i / 8 * 16 + k]) * value(b[k * 8 + i % 8])).sum();
        assert_eq!(got, expected, "row {}, column {}", i / 8, i % 8);
    }
}

#[test]
fn grids_of_three_dimensions() {
    let body = "mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.z; mov.u32 %r3, %nctaid.x; mov.u32 %r4, %nctaid.y;\n\
                mad.lo.s32 %r5, %r2, %r4, %r1; mad.lo.s32 %r5, %r5, %r3, %r0; mov.u32 %r6, %tid.x; mov.u32 %r7, %tid.y; mov.u32 %r8, %tid.z;\n\
                mov.u32 %r9, %ntid.x; mov.u32 %r10, %ntid.y; mad.lo.s32 %r11, %r8, %r10, %r7; mad.lo.s32 %r11, %r11, %r9, %r6;\n\
                mov.u32 %r12, %ntid.z; mul.lo.s32 %r13, %r9, %r10; mul.lo.s32 %r13, %r13, %r12; mad.lo.s32 %r14, %r5, %r13, %r11;\n\
                mul.wide.u32 %d0, %r14, 4; add.s64 %d1, %d20, %d0; st.global.u32 [%d1], %r14;";
    let mut kernel = Kernel::new(1, 0, body).unwritten(4 * 24 * 30);
    (kernel.grid, kernel.block) = ([2, 3, 4], [5, 3, 2]);
    kernel.run().unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(kernel.read::<u32>(0), (0..720).collect::<Vec<u32>>());
}
