//! Convolutions of bf16 as products of pairs: a row of the left side is a window of the image, read where it lies, and the weight is the
//! right side as it stands.
//!
//! The gradient of the input is a convolution of dy with the taps mirrored and the channels' roles exchanged. With stride 2 it is four, one
//! for each parity of the pixel's row and column, of the taps that meet it. Of an image resized to twice its size a pixel sums
//! what its four copies would, 36 taps.
//!
//! An element of the result is one sum over taps, then channels, rounded once with what is added to it.

use half::bf16;

use super::{Operands, Sizes};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::product::{self, Kernel, Matrix, Windows};
use crate::ops::host::{Float, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Whether the forward pass can go this way: input channels are whole pairs.
pub(super) fn fits_forward(sizes: &Sizes) -> bool {
    sizes.cin.is_multiple_of(2)
}

/// Whether the input gradient can: output channels are whole pairs, and the image is as it is, or of stride 1 and doubled.
pub(super) fn fits_input_gradient(sizes: &Sizes) -> bool {
    let is_doubled = sizes.size == sizes.source.map(|side| 2 * side) && sizes.stride == 1;
    sizes.cout.is_multiple_of(2) && (sizes.source == sizes.size || is_doubled)
}

/// Whether the weight gradient can: a window is a pixel.
pub(super) fn fits_weight_gradient(sizes: &Sizes) -> bool {
    sizes.taps() == 1 && sizes.stride == 1 && sizes.source == sizes.out
}

/// Elements of the weight that [`prepare`] packs.
pub(super) fn packed_len(sizes: &Sizes) -> usize {
    product::packed_len::<bf16>(sizes.cout, sizes.depth())
}

/// Packs the weight for many calls of [`forward`].
pub(super) fn prepare(sizes: &Sizes, weight: &[bf16], packed: &mut [bf16]) {
    product::pack_weight(packed, weight, (sizes.cout, sizes.depth()));
}

pub(super) fn forward(
    sizes: &Sizes,
    &Operands { x, weight, prepared, bias, channel_add, residual }: &Operands,
    y: &Tensor,
) {
    let Sizes { batch, source, size, out, cin, cout, kernel, stride, pad } = *sizes;
    let (zeros, taps) = (vec![bf16::ZERO; cin], product::taps(kernel, pad));
    let windows =
        Windows { images: x.host(), zeros: &zeros, batch, source, size, out, taps: &taps, stride, channels: cin };
    let weight = match prepared {
        Some(packed) => Kernel::Packed(packed.host()),
        None => Kernel::Plain(Matrix::new(weight.host(), cout, sizes.depth()).t()),
    };
    let (bias, pixels) = (bias.map(Tensor::host::<f32>), sizes.out_pixels());
    let (channel_add, residual) = (channel_add.map(Tensor::host::<bf16>), residual.map(Tensor::host::<bf16>));
    product::convolve(y.host_mut(), windows, weight, cout, Accumulate::Write, |row, first, values| {
        let len = values.len();
        if let Some(bias) = bias {
            vector::map(values, &bias[first..][..len], Accumulate::Add, |x| x);
        }
        if let Some(add) = channel_add {
            vector::map(values, &add[row / pixels * cout + first..][..len], Accumulate::Add, |x| x);
        }
        if let Some(residual) = residual {
            vector::map(values, &residual[row * cout + first..][..len], Accumulate::Add, |x| x);
        }
    });
}

/// Pixels of dx that meet the same taps of dy's windows: those of one parity of the row and the column, or all.
struct Class {
    /// The first, and how many there are.
    first: [usize; 2],
    count: [usize; 2],
    /// By term of the sum: the weight's tap, and where it meets dy.
    terms: Vec<(usize, [isize; 2])>,
}

/// By axis: the taps that meet pixel `first` of x, with dy's pixel; from pixel to pixel of the class dy's grows by one, or by
/// `copies`, the number of pixels of x̂ that show one of x.
fn terms(sizes: &Sizes, axis: usize, first: usize, copies: usize) -> Vec<(usize, isize)> {
    let met = |at: usize, tap: usize| (at + sizes.pad[axis]).cast_signed() - tap.cast_signed();
    let all = (0..copies)
        .flat_map(|copy| (0..sizes.kernel[axis]).rev().map(move |tap| (tap, met(first * copies + copy, tap))));
    let stride = sizes.stride.cast_signed();
    all.filter(|(_, at)| at.rem_euclid(stride) == 0).map(|(tap, at)| (tap, at / stride)).collect()
}

fn classes(sizes: &Sizes) -> Vec<Class> {
    let (stride, copies) = (sizes.stride, [0, 1].map(|axis| sizes.size[axis] / sizes.source[axis].max(1)));
    let firsts = (0..stride).flat_map(|y| (0..stride).map(move |x| [y, x]));
    let class = |first: [usize; 2]| {
        let [rows, columns] = [0, 1].map(|axis| terms(sizes, axis, first[axis], copies[axis]));
        let term = |&(ky, y): &(usize, isize)| columns.iter().map(move |&(kx, x)| (ky * sizes.kernel[1] + kx, [y, x]));
        Class {
            first,
            count: [0, 1].map(|axis| (sizes.source[axis] - first[axis].min(sizes.source[axis])).div_ceil(stride)),
            terms: rows.iter().flat_map(term).collect(),
        }
    };
    firsts.map(class).filter(|class| class.count.iter().all(|&count| count > 0)).collect()
}

pub(super) fn input_gradient(sizes: &Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    let Sizes { batch, source, size, out, cin, cout, stride, .. } = *sizes;
    let (zeros, weight) = (vec![bf16::ZERO; cout], weight.host::<bf16>());
    for class in classes(sizes) {
        let taps: Vec<_> = class.terms.iter().map(|term| term.1).collect();
        let windows = Windows {
            images: dy.host(),
            zeros: &zeros,
            batch,
            source: out,
            size: out,
            out: class.count,
            taps: &taps,
            stride: size[0] / source[0],
            channels: cout,
        };
        if taps.is_empty() {
            // No window meets these pixels.
            if dx.mode == Accumulate::Write {
                let all = Shared::new(dx.host_mut::<bf16>());
                // SAFETY: each call has a pixel of its own.
                each_pixel(sizes, &class, |_, pixel| unsafe { all.row(pixel * cin, cin) }.fill(bf16::ZERO));
            }
            continue;
        }
        let elements = taps.len() * cout * cin;
        let pixels = if stride > 1 { windows.rows() * cin } else { 0 };
        f32::with_scratch(elements.div_ceil(2) + pixels.div_ceil(2), |scratch| {
            let scratch: &mut [bf16] = bytemuck::cast_slice_mut(scratch);
            let (kernel, some) = scratch.split_at_mut(elements.next_multiple_of(2));
            // By terms, then output channels: `[k, cin]`.
            parallel::for_rows(&mut kernel[..elements], cin, |k, to| {
                let (tap, channel) = (class.terms[k / cout].0, k % cout);
                to.copy_from_slice(&weight[(channel * sizes.taps() + tap) * cin..][..cin]);
            });
            let kernel = Kernel::Plain(Matrix::new(&kernel[..elements], taps.len() * cout, cin));
            if stride == 1 {
                return product::convolve(dx.host_mut(), windows, kernel, cin, dx.mode, |_, _, _| ());
            }
            let (some, all) = (Shared::new(&mut some[..pixels]), Shared::new(dx.host_mut::<bf16>()));
            // SAFETY: each call has pixels of its own, and both have room for all of the class.
            let part = |nth: usize, pixel: usize| unsafe { (some.row(nth * cin, cin), all.row(pixel * cin, cin)) };
            if dx.mode == Accumulate::Add {
                each_pixel(sizes, &class, |nth, pixel| {
                    let (some, all) = part(nth, pixel);
                    some.copy_from_slice(all);
                });
            }
            // SAFETY: nothing else uses it now.
            let result = unsafe { some.row(0, pixels) };
            product::convolve(result, windows, kernel, cin, dx.mode, |_, _, _| ());
            each_pixel(sizes, &class, |nth, pixel| {
                let (some, all) = part(nth, pixel);
                all.copy_from_slice(some);
            });
        });
    }
}

/// Calls `f(number in the class, pixel of all images)` for each pixel of a class, in parallel.
fn each_pixel(sizes: &Sizes, class: &Class, f: impl Fn(usize, usize) + Send + Sync) {
    let ([height, width], [rows, columns]) = (sizes.source, class.count);
    parallel::for_each(sizes.batch * rows, sizes.batch * rows * columns * sizes.cin, |row| {
        let start = (row / rows * height + row % rows * sizes.stride + class.first[0]) * width + class.first[1];
        (0..columns).for_each(|column| f(row * columns + column, start + column * sizes.stride));
    });
}

/// Where a window is a pixel: a linear layer's.
pub(super) fn weight_gradient(sizes: &Sizes, dw: &mut [f32], dy: &[bf16], x: &[bf16], mode: Accumulate) {
    let pixels = sizes.batch * sizes.out_pixels();
    product::linear_backward_weight(dw, dy, x, (pixels, sizes.cout, sizes.cin), mode);
}

#[cfg(test)]
mod tests {
    use super::super::{Geometry, conv2d};
    use super::*;
    use crate::ops::host::Held;
    use crate::ops::host::parallel::with_threads;
    use crate::tape::Tape;
    use crate::tensor::{Context, DType};

    /// A convolution's result and input gradient, of the first `batch` images.
    fn run(batch: usize, [cin, cout, side, kernel]: [usize; 4], geometry: Geometry) -> [Vec<bf16>; 2] {
        let context = Context::cpu();
        let values = |len: usize, salt: usize| -> Vec<bf16> {
            (0..len).map(|i| bf16::of(((i * 7919 + salt) % 4093) as f32 / 2046.0 - 1.0)).collect()
        };
        let tape = Tape::new(&context);
        let x = context.tensor(&values(batch * side * side * cin, 1), [batch, side, side, cin]).unwrap();
        let weight = context.tensor(&values(cout * kernel * kernel * cin, 2), [cout, kernel, kernel, cin]).unwrap();
        let bias = context.tensor(&[0.25f32].repeat(cout), [cout]).unwrap();
        let (x, weight, bias) = (tape.leaf(&x), tape.constant(&weight), tape.constant(&bias));
        let y = conv2d(&tape, &x, &weight, Some(&bias), geometry, None, None).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        let cotangent = context.tensor(&values(y.shape().len(), 3), y.shape()).unwrap();
        let result = y.tensor().download().unwrap();
        tape.backward(&y, cotangent).unwrap();
        [result, tape.gradient(&x).unwrap().download().unwrap()]
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_batch() {
        for (sizes, geometry) in [
            ([32, 48, 9, 3], Geometry::same(3)),
            ([6, 10, 7, 5], Geometry::same(5)),
            ([16, 2, 8, 1], Geometry::same(1)),
            ([16, 2, 7, 1], Geometry::same(1).strided(2)),
            ([8, 8, 10, 3], Geometry::same(3).strided(2)),
            ([8, 6, 5, 3], Geometry { resize: Some([10, 10]), ..Geometry::same(3) }),
            ([8, 32, 9, 3], Geometry::same(3).strided(2)),
        ] {
            let all = with_threads(1, || run(5, sizes, geometry));
            for threads in [2, 3] {
                assert!(with_threads(threads, || run(5, sizes, geometry)) == all, "{sizes:?} {threads} threads");
                let few = with_threads(threads, || run(2, sizes, geometry));
                for (few, all) in few.iter().zip(&all) {
                    assert!(few[..] == all[..few.len()], "{sizes:?} {threads} threads, two images");
                }
            }
        }
    }
}
