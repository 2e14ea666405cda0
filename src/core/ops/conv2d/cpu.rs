//! The convolution on the CPU: Winograd's where it fits, else a direct convolution each way and products over pixels for the
//! weight. The choice depends on shapes and dtype alone, never on the batch.

use super::direct::{Direct, Output};
use super::weight::weight_gradient;
use super::{Added, Sizes, Sums, doubled, winograd, winograd_weight};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{DType, Element, Tensor};

/// Elements of the form of a weight that a forward pass may be given besides; None where there is no such form.
pub(super) fn prepared_len(sizes: Sizes, dtype: DType) -> Option<usize> {
    by_winograd(&sizes, dtype).then(|| winograd::transformed_len(&sizes))
}

/// Makes that form.
pub(super) fn prepare(sizes: Sizes, weight: &Tensor, prepared: &Tensor) {
    winograd::transform(&sizes, weight.host(), prepared.host_mut());
}

fn by_winograd(sizes: &Sizes, dtype: DType) -> bool {
    dtype == DType::F32 && sizes.source == sizes.size && winograd::fits(sizes)
}

pub(super) fn forward<T: Float + Element>(
    sizes: Sizes,
    x: &Tensor,
    (weight, prepared): (&Tensor, Option<&Tensor>),
    added: Added,
    y: &Tensor,
) {
    if by_winograd(&sizes, T::DTYPE) {
        let output = forward_output(&added, y);
        return winograd::forward(&sizes, x.host(), weight.host(), prepared.map(Tensor::host), output);
    }
    let output = forward_output::<T>(&added, y);
    if doubled::fits(&sizes) {
        return doubled::forward(&sizes, x.host(), weight.host(), output);
    }
    Direct::forward(&sizes).run(sizes.batch, x.host(), weight.host(), output);
}

fn forward_output<'a, T: Element>(added: &Added<'a>, y: &'a Tensor) -> Output<'a, T> {
    Output {
        data: y.host_mut(),
        bias: added.bias.map(Tensor::host),
        channel_add: added.channel_add.map(Tensor::host),
        residual: added.residual.map(Tensor::host),
        add: false,
        fold: None,
    }
}

/// Each image's sum over its pixels, then the sum of these in order.
pub(super) fn sums_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, partial: &Tensor, to: Sums) {
    let (dy, image) = (dy.host::<T>(), sizes.out_pixels() * sizes.cout);
    parallel::for_rows(partial.host_mut::<T>(), sizes.cout, |b, sums| {
        vector::column_sums(sums, &dy[b * image..][..image], Accumulate::Write);
    });
    if let Some(to) = to.channel_add {
        vector::map(to.tensor.host_mut(), partial.host::<T>(), to.mode, |sum| sum);
    }
    if let Some(to) = to.bias {
        vector::column_sums(to.tensor.host_mut::<T>(), partial.host::<T>(), to.mode);
    }
}

pub(super) fn input_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    if by_winograd(&sizes, T::DTYPE) {
        return winograd::input_gradient(&sizes, dy.host(), weight.host(), input_output(dx, None));
    }
    if doubled::fits(&sizes) {
        return doubled::input_gradient::<T>(&sizes, dy.host(), weight.host(), input_output(dx, None));
    }
    let fold = (sizes.source != sizes.size).then_some(sizes.source);
    Direct::input_gradient(&sizes).run::<T>(sizes.batch, dy.host(), weight.host(), input_output(dx, fold));
}

fn input_output<T: Element>(dx: &Destination, fold: Option<[usize; 2]>) -> Output<'_, T> {
    Output {
        data: dx.tensor.host_mut(),
        bias: None,
        channel_add: None,
        residual: None,
        add: dx.mode == Accumulate::Add,
        fold,
    }
}

pub(super) fn weight_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, x: &Tensor, dw: &Destination) {
    if T::DTYPE == DType::F32 && winograd::fits(&sizes) {
        return winograd_weight::weight_gradient(&sizes, dw.tensor.host_mut(), dy.host(), x.host(), dw.mode);
    }
    weight_gradient::<T>(&sizes, dw.tensor.host_mut(), dy.host(), x.host(), dw.mode);
}
