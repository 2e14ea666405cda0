//! Convolutions of bf16 as products of pairs: a row of the left side is a window of the image, read where it lies, and the weight is the
//! right side as it stands. The gradient of the input is the convolution of dy with the taps mirrored and the channels' roles
//! exchanged.
//!
//! An element of the result is one sum over taps, then channels, rounded once with what is added to it.

use half::bf16;

use super::{Operands, Sizes};
use crate::ops::host::product::{self, Kernel, Matrix, Windows};
use crate::ops::host::{Float, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Whether the forward pass can go this way: input channels are whole pairs.
pub(super) fn fits_forward(sizes: &Sizes) -> bool {
    sizes.cin.is_multiple_of(2)
}

/// Whether the input gradient can: output channels are whole pairs, and every window shows the next pixels of the image as it is.
pub(super) fn fits_input_gradient(sizes: &Sizes) -> bool {
    sizes.cout.is_multiple_of(2) && sizes.stride == 1 && sizes.source == sizes.size
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
    let zeros = vec![bf16::ZERO; cin];
    let windows =
        Windows { images: x.host(), zeros: &zeros, batch, source, size, out, kernel, stride, pad, channels: cin };
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

pub(super) fn input_gradient(sizes: &Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    let Sizes { batch, size, out, cin, cout, kernel, stride, pad, .. } = *sizes;
    let (zeros, taps, weight) = (vec![bf16::ZERO; cout], sizes.taps(), weight.host::<bf16>());
    let windows = Windows {
        images: dy.host(),
        zeros: &zeros,
        batch,
        source: out,
        size: out,
        out: size,
        kernel,
        stride,
        pad: [0, 1].map(|axis| kernel[axis] - 1 - pad[axis]),
        channels: cout,
    };
    f32::with_scratch(weight.len().div_ceil(2), |scratch| {
        // By mirrored taps, then output channels: `[k, cin]`.
        let mirrored: &mut [bf16] = &mut bytemuck::cast_slice_mut(scratch)[..weight.len()];
        for (k, to) in mirrored.chunks_exact_mut(cin).enumerate() {
            let (tap, channel) = (taps - 1 - k / cout, k % cout);
            to.copy_from_slice(&weight[(channel * taps + tap) * cin..][..cin]);
        }
        let kernel = Kernel::Plain(Matrix::new(mirrored, taps * cout, cin));
        product::convolve(dx.host_mut(), windows, kernel, cin, dx.mode, |_, _, _| ());
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
            ([8, 8, 10, 3], Geometry::same(3).strided(2)),
            ([8, 6, 5, 3], Geometry { resize: Some([10, 10]), ..Geometry::same(3) }),
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
