//! The convolution on the CPU: a direct convolution each way, and products over pixels for the weight.

use super::direct::{Direct, Output};
use super::weight::weight_gradient;
use super::{Added, Sizes, Sums, doubled};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{Element, Tensor};

pub(super) fn forward<T: Float + Element>(sizes: Sizes, x: &Tensor, weight: &Tensor, added: Added, y: &Tensor) {
    let output = Output {
        data: y.host_mut::<T>(),
        bias: added.bias.map(Tensor::host),
        channel_add: added.channel_add.map(Tensor::host),
        residual: added.residual.map(Tensor::host),
        add: false,
        fold: None,
    };
    if doubled::fits(&sizes) {
        return doubled::forward(&sizes, x.host(), weight.host(), output);
    }
    Direct::forward(&sizes).run(sizes.batch, x.host(), weight.host(), output);
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
    let doubled = doubled::fits(&sizes);
    let output = Output {
        data: dx.tensor.host_mut::<T>(),
        bias: None,
        channel_add: None,
        residual: None,
        add: dx.mode == Accumulate::Add,
        fold: (sizes.source != sizes.size && !doubled).then_some(sizes.source),
    };
    if doubled {
        return doubled::input_gradient(&sizes, dy.host(), weight.host(), output);
    }
    Direct::input_gradient(&sizes).run(sizes.batch, dy.host(), weight.host(), output);
}

pub(super) fn weight_backward<T: Float + Element>(sizes: Sizes, dy: &Tensor, x: &Tensor, dw: &Destination) {
    weight_gradient::<T>(&sizes, dw.tensor.host_mut(), dy.host(), x.host(), dw.mode);
}
