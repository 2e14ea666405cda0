//! The host models of what CUDA supplies or PTX defines, and the parts of `kernels/common` with known answers.

use std::path::Path;
use std::sync::OnceLock;

use kernel_emulator::{Argument, Emulator, Grid, Options, Order, compile_sources};

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(5)];

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = ["products", "philox"].map(|name| root.join(format!("tests/kernels/{name}.cu")));
        let folder =
            compile_sources(&files, &root.join("../../kernels"), Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        Emulator::load(&folder).unwrap()
    })
}

fn launch<'a>(kernel: &str, grid: Grid, order: Order, arguments: impl IntoIterator<Item = Argument<'a>>) {
    emulator().launch(kernel, grid, arguments, &Options { order, find_unwritten: true }).unwrap();
}

/// Small integers, which bf16 and their products in f32 hold exactly.
fn integers(n: usize, factor: usize) -> (Vec<f32>, Vec<u16>) {
    let values: Vec<f32> = (0..n).map(|i| ((i * factor + i / 7) % 17) as f32 - 8.0).collect();
    let halves = values.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    (values, halves)
}

#[test]
fn tensor_core_fragments_give_the_matrix_product() {
    let ((a, a_half), (b, b_half)) = (integers(256, 5), integers(256, 11));
    let transpose = |x: &[u16]| -> Vec<u16> { (0..256).map(|i| x[i % 16 * 16 + i / 16]).collect() };
    let expected: Vec<f32> = (0..256).map(|i| (0..16).map(|k| a[i / 16 * 16 + k] * b[k * 16 + i % 16]).sum()).collect();
    assert_ne!(b_half, transpose(&b_half));
    for order in ORDERS {
        for transposed in [0, 1] {
            let mut d = vec![f32::NAN; 256];
            let arguments =
                [Argument::write(&mut d), Argument::read(&a_half), Argument::read(&b_half), Argument::U32(transposed)];
            launch("products_mma_product", Grid::linear(1, 32), order, arguments);
            assert_eq!(d, expected, "{order:?}, B transposed: {transposed}");
        }
    }
}

/// To nearest, ties away from zero, by f64; beyond the largest finite value to infinity. What is not finite loses its lower bits.
fn tf32(x: f32) -> u32 {
    if !x.is_finite() {
        return x.to_bits() & !0x1fff;
    }
    // Subnormal numbers have the steps of the least normal ones.
    let exponent = (x.abs().to_bits() >> 23).max(1) as i32 - 127;
    let step = 2f64.powi(exponent - 10);
    let rounded = (f64::from(x) / step).abs().round() * step;
    let rounded = if rounded >= 2f64.powi(128) { f32::INFINITY } else { rounded as f32 };
    rounded.copysign(x).to_bits()
}

#[test]
fn tf32_fragments_give_the_product_of_rounded_matrices() {
    let values = |n: usize, factor: u32| -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(factor) % 8191) as f32 / 4096.0 - 1.0).collect()
    };
    let (a, b) = (values(128, 3001), values(64, 1277));
    let rounded = |x: f32| f32::from_bits(tf32(x));
    assert!(a.iter().any(|&x| rounded(x) != x));
    let dot = |i: usize| (0..8).fold(0f32, |sum, k| sum + rounded(a[i / 8 * 8 + k]) * rounded(b[k * 8 + i % 8]));
    let expected: Vec<f32> = (0..128).map(dot).collect();
    for order in ORDERS {
        let mut d = vec![f32::NAN; 128];
        let arguments = [Argument::write(&mut d), Argument::read(&a), Argument::read(&b)];
        launch("products_mma_tf32", Grid::linear(1, 32), order, arguments);
        assert_eq!(d, expected, "{order:?}");
    }
}

#[test]
fn two_matrices_of_fragments() {
    let x: Vec<u16> = (0..128).collect();
    for transposed in [0u32, 1] {
        let mut words = vec![0u32; 64];
        let arguments = [Argument::write(&mut words), Argument::read(&x), Argument::U32(transposed)];
        launch("products_fragments_x2", Grid::linear(1, 32), Order::Forward, arguments);
        for (lane, pair) in words.chunks(2).enumerate() {
            let (group, t) = (lane / 4, lane % 4);
            for (matrix, word) in pair.iter().enumerate() {
                let [low, high] = match transposed {
                    0 => [0, 1].map(|i| x[(matrix * 8 + group) * 8 + 2 * t + i]),
                    _ => [0, 1].map(|i| x[(matrix * 8 + 2 * t + i) * 8 + group]),
                };
                assert_eq!(*word, u32::from(high) << 16 | u32::from(low), "lane {lane}, matrix {matrix}");
            }
        }
    }
}

/// Round to nearest, ties to even, by exact comparison with the two neighbours; a NaN as the GPU's instruction gives it.
fn bf16(x: f32) -> u16 {
    let below = (x.to_bits() >> 16) as u16;
    if x.is_nan() {
        return 0x7fff;
    }
    let value = |bits: u32| f64::from(f32::from_bits(bits << 16));
    if value(u32::from(below)).is_infinite() {
        return below;
    }
    // Beyond the largest finite value the next step of the grid stands for infinity.
    let above = u32::from(below) + 1;
    let above_value = match value(above) {
        v if v.is_infinite() => 2f64.powi(128).copysign(f64::from(x)),
        v => v,
    };
    let (down, up) = ((f64::from(x) - value(u32::from(below))).abs(), (above_value - f64::from(x)).abs());
    match down.partial_cmp(&up) {
        Some(std::cmp::Ordering::Less) => below,
        Some(std::cmp::Ordering::Greater) => above as u16,
        _ => below + (below & 1),
    }
}

#[test]
fn conversions_round_to_nearest() {
    let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let ties = [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x0000_8000, 0x0001_8000, 0xff7f_8000];
    let of_tf32 = [0x3f80_1000u32, 0x3f80_3000, 0xbf80_1000, 0x3f80_0fff, 0x0000_1000, 0x0000_0fff, 0x7f7f_f000];
    let x: Vec<f32> = special
        .into_iter()
        .chain(ties.into_iter().chain(of_tf32).map(f32::from_bits))
        .chain((0..20_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))))
        .collect();
    let mut words = vec![0u32; x.len()];
    let arguments = [Argument::write(&mut words), Argument::read(&x), Argument::U32(x.len() as u32)];
    launch("products_to_tf32", Grid::linear(x.len().div_ceil(256) as u32, 256), Order::Forward, arguments);
    for (x, word) in x.iter().zip(&words) {
        assert_eq!(*word, tf32(*x), "{x} {:#x}", x.to_bits());
    }
    let mut y = vec![0u16; x.len()];
    let arguments = [Argument::write(&mut y), Argument::read(&x), Argument::U32(x.len() as u32)];
    launch("products_to_bf16", Grid::linear(x.len().div_ceil(256) as u32, 256), Order::Forward, arguments);
    for (x, y) in x.iter().zip(&y) {
        assert_eq!(*y, bf16(*x), "{x} {:#x}", x.to_bits());
    }
    let high: Vec<f32> = x.iter().rev().copied().collect();
    let mut pairs = vec![0u32; x.len()];
    let arguments =
        [Argument::write(&mut pairs), Argument::read(&x), Argument::read(&high), Argument::U32(x.len() as u32)];
    launch("products_pairs_to_bf16", Grid::linear(x.len().div_ceil(256) as u32, 256), Order::Forward, arguments);
    for ((low, high), pair) in x.iter().zip(&high).zip(&pairs) {
        assert_eq!(*pair, u32::from(bf16(*high)) << 16 | u32::from(bf16(*low)), "{low} {high}");
    }
}

/// Within what `common/activation.cuh` derives, for results in bf16 and in f32.
#[test]
fn activations_are_as_exact_as_derived() {
    let x: Vec<f32> = (-80_000..=80_000).map(|i| i as f32 * 1e-3).chain([-80.0, 80.0, 1e-30, -0.0]).collect();
    let blocks = Grid::linear(x.len().div_ceil(256) as u32, 256);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (narrow, bound) in [(1, 2f64.powi(-18)), (0, 2f64.powi(-21))] {
        let (mut s, mut g) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        let arguments = [Argument::write(&mut s), Argument::write(&mut g), Argument::read(&x)];
        let sizes = [Argument::U32(x.len() as u32), Argument::U32(narrow)];
        launch("products_activations", blocks, Order::Forward, arguments.into_iter().chain(sizes));
        for ((&x, &s), &g) in x.iter().zip(&s).zip(&g) {
            let x = f64::from(x);
            let error = (f64::from(s) / sigmoid(x) - 1.0).abs();
            assert!(error <= bound, "sigmoid({x}): {error:e}");
            let two_u = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * x * (1.0 + 0.044715 * x * x);
            let exact = x * sigmoid(two_u);
            if two_u < -80.0 {
                assert!(g.abs() < 1e-30, "gelu({x}) = {g}");
                continue;
            }
            let error = (f64::from(g) - exact).abs();
            let bound = (bound + 2f64.powi(-22) * two_u.abs()) * exact.abs();
            assert!(error <= bound + 1e-37, "gelu({x}): {error:e}");
        }
    }
    // Where f32 ends: neither NaN nor a sigmoid that leaves [0, 1].
    let x = [-1e30f32, -104.0, -88.5, 88.5, 104.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for narrow in [0, 1] {
        let (mut s, mut g) = ([f32::NAN; 9], [f32::NAN; 9]);
        let arguments = [Argument::write(&mut s), Argument::write(&mut g), Argument::read(&x)];
        let sizes = [Argument::U32(9), Argument::U32(narrow)];
        launch("products_activations", Grid::linear(1, 32), Order::Forward, arguments.into_iter().chain(sizes));
        assert!(s[..3].iter().chain(&s[7..8]).all(|&s| (0.0..1e-38).contains(&s)), "{s:?}");
        assert!(s[3..7].iter().all(|&s| s == 1.0) && s[8].is_nan() && g[8].is_nan(), "{s:?} {g:?}");
        assert_eq!(g[5], 1e30);
    }
}

#[test]
fn philox_known_answers() {
    let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
    let cases: [([u32; 4], u64, [u32; 4]); 3] = [
        ([0; 4], 0, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([u32::MAX; 4], u64::MAX, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (pi, 0x299f31d0_a4093822, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]),
    ];
    for (counter, seed, answer) in cases {
        let mut y = [0u32; 4];
        let arguments = [Argument::write(&mut y)].into_iter().chain(counter.map(Argument::U32));
        launch("philox_bits", Grid::linear(1, 1), Order::Forward, arguments.chain([Argument::U64(seed)]));
        assert_eq!(y, answer);
    }
}

#[test]
fn normal_numbers_have_the_moments() {
    let n = 40_000;
    let mut y = vec![f32::NAN; n];
    let arguments = [Argument::write(&mut y), Argument::U32(n as u32), Argument::U64(42)];
    launch("philox_normals", Grid::linear(n.div_ceil(1024) as u32, 256), Order::Random(1), arguments);
    let moment = |k: i32| y.iter().map(|v| f64::from(*v).powi(k)).sum::<f64>() / n as f64;
    // Four standard deviations of each mean: 4 sqrt((1, 2, 15, 96) / n).
    for (k, expected, bound) in [(1, 0.0, 0.02), (2, 1.0, 0.0283), (3, 0.0, 0.0775), (4, 3.0, 0.196)] {
        assert!((moment(k) - expected).abs() < bound, "moment {k}: {}", moment(k));
    }
    // Neighbours come of one Box-Muller pair, and are independent all the same.
    let product = y.chunks(2).map(|p| f64::from(p[0] * p[1])).sum::<f64>() / (n / 2) as f64;
    assert!(product.abs() < 0.0283, "{product}");
}

#[test]
fn the_permutation_is_a_bijection() {
    for n in [1u32, 2, 3, 100, 257, 1000] {
        let mut y = vec![u32::MAX; n as usize];
        let arguments = [Argument::write(&mut y), Argument::U32(n), Argument::U64(7), Argument::U32(3)];
        launch("philox_permutation", Grid::linear(n.div_ceil(256), 256), Order::Reverse, arguments);
        y.sort_unstable();
        assert!(y.iter().enumerate().all(|(i, &v)| v == i as u32), "{n}");
    }
}

#[test]
fn launches_run_on_several_threads_at_once() {
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut y = vec![0u32; 300];
                    let arguments =
                        [Argument::write(&mut y), Argument::U32(300), Argument::U64(seed), Argument::U32(0)];
                    launch("philox_permutation", Grid::linear(2, 256), Order::Random(seed), arguments);
                    y.sort_unstable();
                    assert!(y.iter().enumerate().all(|(i, &v)| v == i as u32));
                }
            });
        }
    });
}
