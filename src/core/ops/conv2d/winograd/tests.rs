//! Winograd's convolution against the definition, and the sameness of its bits.

use half::bf16;

use super::*;
use crate::ops::host::Held;
use crate::ops::host::parallel::with_threads;
use crate::tape::Accumulate;

fn values(len: usize, salt: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + salt) % 4093) as f32 / 2046.0 - 1.0).collect()
}

/// Sides of tiles, and images that take them.
const IMAGES: [(usize, [usize; 2]); 2] = [(2, [11, 14]), (4, [14, 17])];

fn sizes(batch: usize, size: [usize; 2]) -> Sizes {
    Sizes { batch, source: size, size, out: size, cin: 32, cout: 48, kernel: [3, 3], stride: 1, pad: [1, 1] }
}

fn plain<E: Held>(data: &mut [E]) -> Output<'_, E> {
    Output { data, bias: None, channel_add: None, residual: None, add: false, fold: None }
}

/// y, dx and dw of the first images of a batch.
fn run(batch: usize, (side, image): (usize, [usize; 2])) -> [Vec<f32>; 3] {
    let sizes = sizes(batch, image);
    let pixels = batch * sizes.out_pixels();
    let (x, dy) = (values(pixels * sizes.cin, 1), values(pixels * sizes.cout, 2));
    let weight = values(sizes.cout * sizes.depth(), 3);
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]);
    forward(&sizes, side, &x, &weight, None, plain(&mut y));
    input_gradient(&sizes, side, &dy, &weight, plain(&mut dx));
    weight_gradient(&sizes, side, &mut dw, (&dy, &x), Accumulate::Write);
    [y, dx, dw]
}

#[test]
fn images_of_enough_tiles_take_those_of_four() {
    let fitting = |sizes: Sizes| (fits(&sizes), fits_large(&sizes));
    assert_eq!(IMAGES.map(|(_, image)| fitting(sizes(1, image))), [(true, false), (true, true)]);
    assert_eq!(fitting(Sizes { cin: 24, ..sizes(1, [14, 17]) }), (false, false));
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_batch() {
    for way in IMAGES {
        let all = with_threads(1, || run(5, way));
        for threads in [2, 3, 9] {
            assert_eq!(with_threads(threads, || run(5, way)), all);
            let few = with_threads(threads, || run(2, way));
            for (few, all) in few.iter().zip(&all).take(2) {
                assert_eq!(few[..], all[..few.len()]);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_vector_width() {
    for (side, image) in IMAGES {
        let sizes = sizes(2, image);
        let pixels = 2 * sizes.out_pixels();
        let (x, weight) = (values(pixels * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
        let by = |scalar: bool| {
            let mut y = vec![0.0; pixels * sizes.cout];
            let images = Images { values: &x, source: image, size: image, channels: sizes.cin };
            let kernel = Kernel::forward(&sizes, &weight);
            let run = Run { batch: 2, images, kernel, transformed: None, output: plain(&mut y) };
            match (side, scalar) {
                (4, true) => Tiled::<_, 4, 6>(run).with_simd(pulp::Scalar::new()),
                (4, false) => f32::dispatch(Tiled::<_, 4, 6>(run)),
                (_, true) => Tiled::<_, 2, 4>(run).with_simd(pulp::Scalar::new()),
                (_, false) => f32::dispatch(Tiled::<_, 2, 4>(run)),
            }
            y
        };
        assert_eq!(by(true), by(false));
    }
}

/// bf16 is widened where it is read, and rounded where it is written: nothing else is different.
#[test]
fn bf16_has_the_bits_of_its_values_in_f32() {
    let round = |values: &[f32]| values.iter().map(|&value| bf16::of(value)).collect::<Vec<_>>();
    let widen = |values: &[bf16]| values.iter().map(|value| value.get()).collect::<Vec<f32>>();
    for (side, image) in IMAGES {
        let sizes = sizes(2, image);
        let pixels = 2 * sizes.out_pixels();
        let (x, dy) = (round(&values(pixels * sizes.cin, 1)), round(&values(pixels * sizes.cout, 2)));
        let weight = values(sizes.cout * sizes.depth(), 3);
        let (mut brief, mut single) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        weight_gradient(&sizes, side, &mut brief, (&dy, &x), Accumulate::Write);
        weight_gradient(&sizes, side, &mut single, (&widen(&dy), &widen(&x)), Accumulate::Write);
        assert!(brief == single, "dw of {image:?}");

        let (residual, add) = (round(&values(dy.len(), 4)), round(&values(2 * sizes.cout, 5)));
        let (mut brief, mut single) = (vec![bf16::ZERO; dy.len()], vec![0.0; dy.len()]);
        let output = Output { residual: Some(&residual), channel_add: Some(&add), ..plain(&mut brief) };
        forward(&sizes, side, &x, &weight, None, output);
        let (residual, add) = (widen(&residual), widen(&add));
        let output = Output { residual: Some(&residual), channel_add: Some(&add), ..plain(&mut single) };
        forward(&sizes, side, &widen(&x), &weight, None, output);
        assert!(brief == round(&single), "y of {image:?}");
    }
}

#[test]
fn a_weight_transformed_before_gives_the_same_bits() {
    for (side, image) in IMAGES {
        let [y, ..] = run(2, (side, image));
        let sizes = sizes(2, image);
        let pixels = 2 * sizes.out_pixels();
        let (x, weight) = (values(pixels * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
        for threads in [1, 3] {
            let mut transformed = vec![f32::NAN; transformed_len(&sizes, side)];
            let mut ours = vec![0.0; y.len()];
            with_threads(threads, || {
                transform(&sizes, side, &weight, &mut transformed);
                forward(&sizes, side, &x, &[], Some(&transformed), plain(&mut ours));
            });
            assert_eq!(ours, y);
        }
    }
}

#[test]
fn it_is_the_convolution() {
    for (side, image) in IMAGES {
        let sizes = sizes(2, image);
        let [y, ..] = run(2, (side, image));
        let [height, width] = sizes.size;
        let (x, weight) = (values(2 * height * width * sizes.cin, 1), values(sizes.cout * sizes.depth(), 3));
        for (number, i, j, o) in [(0, 0, 0, 0), (0, 10, 13, 47), (1, 5, 6, 17), (1, 10, 0, 31), (1, 3, 13, 5)] {
            let mut exact = 0.0;
            for (ky, kx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
                let (row, column) = (i + ky, j + kx);
                if (1..=height).contains(&row) && (1..=width).contains(&column) {
                    let pixel = &x[((number * height + row - 1) * width + column - 1) * sizes.cin..];
                    let tap = &weight[(o * 9 + 3 * ky + kx) * sizes.cin..][..sizes.cin];
                    exact += tap.iter().zip(pixel).map(|(&w, &x)| w as f64 * x as f64).sum::<f64>();
                }
            }
            let value = y[((number * height + i) * width + j) * sizes.cout + o] as f64;
            assert!((value - exact).abs() < 2e-5, "{value} for {exact} at {number} {i} {j} {o} of {image:?}");
        }
    }
}

/// dx of a doubled image is summed over the four pixels that show one, within a tile.
#[test]
fn a_folded_gradient_is_the_sum_of_four() {
    let image = [14, 18];
    let sizes = sizes(2, image);
    let (dy, weight) = (values(2 * sizes.out_pixels() * sizes.cout, 2), values(sizes.cout * sizes.depth(), 3));
    let mut all = vec![0.0; 2 * 14 * 18 * sizes.cin];
    input_gradient(&sizes, 4, &dy, &weight, plain(&mut all));
    let doubled = Sizes { source: [7, 9], ..sizes };
    let mut folded = vec![0.0; all.len() / 4];
    input_gradient(&doubled, 4, &dy, &weight, Output { fold: Some([7, 9]), ..plain(&mut folded) });
    for (pixel, folded) in folded.chunks(sizes.cin).enumerate() {
        let (number, row, column) = (pixel / 63, pixel / 9 % 7, pixel % 9);
        let at = |row: usize, column: usize| &all[((number * 14 + row) * 18 + column) * sizes.cin..];
        let (upper, lower) = (at(2 * row, 2 * column), at(2 * row + 1, 2 * column));
        for (channel, &folded) in folded.iter().enumerate() {
            let pair = |row: &[f32]| row[channel] + row[sizes.cin + channel];
            assert_eq!(folded, pair(upper) + pair(lower));
        }
    }
}
