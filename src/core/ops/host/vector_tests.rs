use super::*;
use crate::ops::host::activation::{gelu, gelu_derivative, silu, silu_derivative};
use crate::ops::host::parallel::with_threads;

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 13) % 4093) as f32 / 250.0 - 8.0).collect()
}

/// The documented order, written plainly.
fn plain_sum(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; 32];
    terms.enumerate().for_each(|(i, x)| lanes[i % 32] += x);
    for width in [16, 8, 4, 2, 1] {
        (0..width).for_each(|l| lanes[l] += lanes[l + width]);
    }
    lanes[0]
}

#[test]
fn vector_code_has_the_bits_of_scalar_code() {
    type Named = (&'static str, fn(f32) -> f32);
    let functions: [Named; 11] = [
        ("exp", Float::exp),
        ("ln", Float::ln),
        ("tanh", Float::tanh),
        ("sigmoid", Float::sigmoid),
        ("sin", Float::sin),
        ("cos", Float::cos),
        ("sqrt", Float::sqrt),
        ("gelu", gelu),
        ("gelu'", gelu_derivative),
        ("silu", silu),
        ("silu'", silu_derivative),
    ];
    let src: Vec<f32> = (0..20_011).map(|i| (i as f32 - 10_000.0) * 0.011).chain([f32::INFINITY, 0.0, -0.0]).collect();
    macro_rules! check {
        ($($index:literal $function:expr),*) => {$(
            let (name, scalar) = functions[$index];
            let mut dst = vec![0.0_f32; src.len()];
            map(&mut dst, &src, Accumulate::Write, $function);
            for (&x, &y) in src.iter().zip(&dst) {
                // Through a pointer that the compiler cannot see through: one value at a time.
                let expected = std::hint::black_box(scalar)(x);
                assert!(y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan()), "{name}({x}): {y} not {expected}");
            }
        )*};
    }
    check!(
        0 Float::exp, 1 Float::ln, 2 Float::tanh, 3 Float::sigmoid, 4 Float::sin, 5 Float::cos, 6 Float::sqrt, 7 gelu,
        8 gelu_derivative, 9 silu, 10 silu_derivative
    );
}

#[test]
fn sums_run_in_the_documented_order() {
    for len in [0, 1, 5, 31, 32, 33, 65, 384, 1000] {
        let (a, b) = (values(len), values(2 * len).split_off(len));
        assert_eq!(sum(&a), plain_sum(a.iter().copied()));
        assert_eq!(sum_by(&a, |x| x * 3.0), plain_sum(a.iter().map(|x| x * 3.0)));
        assert_eq!(sum_by2(&a, &b, |a, b| (a - b) * a), plain_sum(a.iter().zip(&b).map(|(a, b)| (a - b) * a)));
        assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        assert!((f64::from(dot(&a, &b)) - exact).abs() <= 1e-6 * 64.0 * len as f64);
        let exact: f64 = a.iter().map(|&a| f64::from(a).powi(2)).sum();
        assert!((f64::from(sum_of_squares(&a)) - exact).abs() <= 1e-6 * exact);
        let exact: f64 = a.iter().map(|&a| (f64::from(a) - 0.25).powi(2)).sum();
        assert!((f64::from(sum_of_squares_about(&a, 0.25)) - exact).abs() <= 1e-6 * exact);
    }
}

#[test]
fn column_sums_do_not_depend_on_threads() {
    for (rows, cols) in [(1, 1), (130, 64), (455, 100), (2080, 65)] {
        let a = values(rows * cols);
        let run = || {
            let mut sums = vec![1.0; cols];
            column_sums(&mut sums, &a, Accumulate::Add);
            sums
        };
        let one = with_threads(1, run);
        assert!(one == with_threads(2, run) && one == with_threads(4, run));
        for (j, &found) in one.iter().enumerate() {
            let column = || a.iter().skip(j).step_by(cols).map(|&x| f64::from(x));
            let (sum, sizes) = (1.0 + column().sum::<f64>(), column().map(|a| a.abs() * 8.0).sum::<f64>());
            assert!((f64::from(found) - sum).abs() <= 1e-6 * sizes.max(1.0), "{rows} {cols} {j}");
        }
    }
}

#[test]
fn parallel_maps_equal_serial_ones() {
    let (a, b, c) = (values(50_001), values(50_002).split_off(1), values(50_003).split_off(2));
    let f = |a: f32, b: f32, c: f32| a.mul_add(b, c);
    let (mut serial, mut parallel) = (c.clone(), c.clone());
    map3(&mut serial, &a, &b, &c, Accumulate::Add, f);
    with_threads(3, || par_map3(&mut parallel, &a, &b, &c, Accumulate::Add, f));
    assert_eq!(serial, parallel);
    map2(&mut serial, &a, &b, Accumulate::Write, |a, b| a * b);
    with_threads(3, || par_map2(&mut parallel, &a, &b, Accumulate::Write, |a, b| a * b));
    assert_eq!(serial, parallel);
    map(&mut serial, &a, Accumulate::Add, silu);
    with_threads(3, || par_map(&mut parallel, &a, Accumulate::Add, silu));
    assert_eq!(serial, parallel);
}
