//! Winograd's convolution against the definition, and the sameness of its bits.

use half::bf16;

use super::super::winograd_weight;
use super::*;
use crate::ops::host::Held;
use crate::ops::host::parallel::with_threads;
use crate::tape::Accumulate;

fn values(len: usize, salt: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + salt) % 4093) as f32 / 2046.0 - 1.0).collect()
}

fn sizes(batch: usize) -> Sizes {
    let size = [11, 14];
    Sizes { batch, source: size, size, out: size, cin: 32, cout: 48, kernel: [3, 3], stride: 1, pad: [1, 1] }
}

fn plain(data: &mut [f32]) -> Output<'_, f32> {
    Output { data, bias: None, channel_add: None, residual: None, add: false, fold: None }
}

/// y, dx and dw of the first images of a batch.
fn run(batch: usize) -> [Vec<f32>; 3] {
    let sizes = sizes(batch);
    let pixels = batch * sizes.out_pixels();
    let (x, dy) = (values(pixels * sizes.cin, 1), values(pixels * sizes.cout, 2));
    let weight = values(sizes.cout * sizes.depth(), 3);
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]);
    forward(&sizes, &x, &weight, None, plain(&mut y));
    input_gradient(&sizes, &dy, &weight, plain(&mut dx));
    winograd_weight::weight_gradient(&sizes, &mut dw, &dy, &x, Accumulate::Write);
    [y, dx, dw]
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_batch() {
    let all = with_threads(1, || run(5));
    for threads in [2, 3, 9] {
        assert_eq!(with_threads(threads, || run(5)), all);
        let few = with_threads(threads, || run(2));
        for (few, all) in few.iter().zip(&all).take(2) {
            assert_eq!(few[..], all[..few.len()]);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_vector_width() {
    let sizes = sizes(2);
    let pixels = 2 * sizes.out_pixels();
    let (x, weight) = (values(pixels * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
    let by = |scalar: bool| {
        let mut y = vec![0.0; pixels * sizes.cout];
        let run = Run::forward(&sizes, &x, &weight, plain(&mut y));
        if scalar {
            run.with_simd(pulp::Scalar::new())
        } else {
            f32::dispatch(run)
        }
        y
    };
    assert_eq!(by(true), by(false));
}

/// bf16 is widened where it is read: nothing else is different.
#[test]
fn a_gradient_from_bf16_has_the_bits_of_its_values_in_f32() {
    let sizes = sizes(2);
    let pixels = 2 * sizes.out_pixels();
    let round = |values: Vec<f32>| values.into_iter().map(bf16::of).collect::<Vec<_>>();
    let widen = |values: &[bf16]| values.iter().map(|value| value.get()).collect::<Vec<f32>>();
    let (x, dy) = (round(values(pixels * sizes.cin, 1)), round(values(pixels * sizes.cout, 2)));
    let (mut brief, mut single) = (vec![0.0; sizes.cout * sizes.depth()], vec![0.0; sizes.cout * sizes.depth()]);
    winograd_weight::weight_gradient(&sizes, &mut brief, &dy, &x, Accumulate::Write);
    winograd_weight::weight_gradient(&sizes, &mut single, &widen(&dy), &widen(&x), Accumulate::Write);
    assert!(brief == single);
}

#[test]
fn a_weight_transformed_before_gives_the_same_bits() {
    let [y, ..] = run(2);
    let sizes = sizes(2);
    let pixels = 2 * sizes.out_pixels();
    let (x, weight) = (values(pixels * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
    for threads in [1, 3] {
        let mut transformed = vec![f32::NAN; transformed_len(&sizes)];
        let mut ours = vec![0.0; y.len()];
        with_threads(threads, || {
            transform(&sizes, &weight, &mut transformed);
            forward(&sizes, &x, &[], Some(&transformed), plain(&mut ours));
        });
        assert_eq!(ours, y);
    }
}

#[test]
fn it_is_the_convolution() {
    let sizes = sizes(2);
    let [y, ..] = run(2);
    let [height, width] = sizes.size;
    let (x, weight) = (values(2 * height * width * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
    for (image, i, j, o) in [(0, 0, 0, 0), (0, 10, 13, 47), (1, 5, 6, 17), (1, 10, 0, 31), (1, 3, 13, 5)] {
        let mut exact = 0.0;
        for (ky, kx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            let (row, column) = (i + ky, j + kx);
            if (1..=height).contains(&row) && (1..=width).contains(&column) {
                let pixel = &x[((image * height + row - 1) * width + column - 1) * sizes.cin..];
                let tap = &weight[(o * 9 + 3 * ky + kx) * sizes.cin..][..sizes.cin];
                exact += tap.iter().zip(pixel).map(|(&w, &x)| w as f64 * x as f64).sum::<f64>();
            }
        }
        let value = y[((image * height + i) * width + j) * sizes.cout + o] as f64;
        assert!((value - exact).abs() < 2e-5, "{value} for {exact} at {image} {i} {j} {o}");
    }
}
