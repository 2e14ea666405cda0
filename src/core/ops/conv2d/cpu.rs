//! The convolution on the CPU, by the way that [`path`] chooses.

use half::bf16;

use super::direct::{Direct, Output};
use super::path::{Pass, Path, path};
use super::weight::weight_gradient;
use super::{Operands, Sizes, Sums, doubled, pairs, pairs_weight, winograd};
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{DType, Tensor};

/// Elements and dtype of the form of a weight that a forward pass may be given besides; None where there is no such form.
pub(super) fn prepared_form(sizes: Sizes, dtype: DType) -> Option<(usize, DType)> {
    match path(Pass::Forward, &sizes, dtype) {
        Path::Pairs => Some((pairs::packed_len(&sizes), DType::BF16)),
        Path::Winograd(side) => Some((winograd::transformed_len(&sizes, side), DType::F32)),
        Path::ShiftedPairs | Path::Doubled | Path::Direct => None,
    }
}

/// Makes that form.
pub(super) fn prepare(sizes: Sizes, weight: &Tensor, prepared: &Tensor) {
    match path(Pass::Forward, &sizes, weight.dtype()) {
        Path::Winograd(side) => winograd::transform(&sizes, side, weight.host(), prepared.host_mut()),
        _ => pairs::prepare(&sizes, weight.host(), prepared.host_mut()),
    }
}

pub(super) fn forward<T: Float>(sizes: Sizes, operands: &Operands, y: &Tensor) {
    let &Operands { x, weight, prepared, .. } = operands;
    match path(Pass::Forward, &sizes, y.dtype()) {
        Path::Pairs => pairs::forward(&sizes, operands, y),
        Path::Winograd(side) => {
            let transformed = prepared.map(Tensor::host);
            // The weight is not read where its transform is there.
            let weight = if transformed.is_some() { &[] } else { weight.host() };
            match y.dtype() {
                DType::BF16 => {
                    let output = forward_output(operands, y);
                    winograd::forward::<bf16>(&sizes, side, x.host(), weight, transformed, output);
                }
                _ => winograd::forward::<f32>(&sizes, side, x.host(), weight, transformed, forward_output(operands, y)),
            }
        }
        Path::Doubled => doubled::forward::<T>(&sizes, x.host(), weight.host(), forward_output(operands, y)),
        Path::ShiftedPairs | Path::Direct => {
            Direct::forward(&sizes).run::<T>(sizes.batch, x.host(), weight.host(), forward_output(operands, y));
        }
    }
}

fn forward_output<'a, T: Held>(operands: &Operands<'a>, y: &'a Tensor) -> Output<'a, T> {
    Output {
        data: y.host_mut(),
        bias: operands.bias.map(Tensor::host),
        channel_add: operands.channel_add.map(Tensor::host),
        residual: operands.residual.map(Tensor::host),
        add: false,
        fold: None,
    }
}

/// Each image's sum over its pixels, then the sum of these in order.
pub(super) fn sums_backward<E: Held>(sizes: Sizes, dy: &Tensor, partial: &Tensor, to: &Sums) {
    let (dy, image) = (dy.host::<E>(), sizes.out_pixels() * sizes.cout);
    parallel::for_rows(partial.host_mut::<E::Float>(), sizes.cout, |b, sums| {
        vector::column_sums(sums, &dy[b * image..][..image], Accumulate::Write);
    });
    if let Some(to) = &to.channel_add {
        vector::map(to.host_mut::<E>(), partial.host::<E::Float>(), to.mode, |sum| sum);
    }
    if let Some(to) = &to.bias {
        vector::column_sums(to.host_mut::<E::Float>(), partial.host::<E::Float>(), to.mode);
    }
}

pub(super) fn input_backward<T: Float>(sizes: Sizes, dy: &Tensor, weight: &Tensor, dx: &Destination) {
    match path(Pass::InputGradient, &sizes, dy.dtype()) {
        Path::Pairs => pairs::input_gradient(&sizes, dy, weight, dx),
        Path::Winograd(side) => {
            let fold = (sizes.source != sizes.size).then_some(sizes.source);
            match dy.dtype() {
                DType::BF16 => {
                    winograd::input_gradient::<bf16>(&sizes, side, dy.host(), weight.host(), input_output(dx, fold));
                }
                _ => winograd::input_gradient::<f32>(&sizes, side, dy.host(), weight.host(), input_output(dx, fold)),
            }
        }
        Path::Doubled => doubled::input_gradient::<T>(&sizes, dy.host(), weight.host(), input_output(dx, None)),
        Path::ShiftedPairs | Path::Direct => {
            let fold = (sizes.source != sizes.size).then_some(sizes.source);
            let output = input_output(dx, fold);
            Direct::input_gradient(&sizes).run::<T>(sizes.batch, dy.host(), weight.host(), output);
        }
    }
}

fn input_output<T: Held>(dx: &Destination, fold: Option<[usize; 2]>) -> Output<'_, T> {
    Output { data: dx.host_mut(), bias: None, channel_add: None, residual: None, add: dx.mode == Accumulate::Add, fold }
}

pub(super) fn weight_backward<T: Float>(
    sizes: Sizes,
    _partial: Option<&Tensor>,
    dy: &Tensor,
    x: &Tensor,
    [dw, _db]: [Option<&Destination>; 2],
) {
    let Some(dw) = dw else { return };
    match path(Pass::WeightGradient, &sizes, dy.dtype()) {
        Path::Winograd(side) if dy.dtype() == DType::BF16 => {
            winograd::weight_gradient::<bf16>(&sizes, side, dw.host_mut(), (dy.host(), x.host()), dw.mode);
        }
        Path::Winograd(side) => {
            winograd::weight_gradient::<f32>(&sizes, side, dw.host_mut(), (dy.host(), x.host()), dw.mode);
        }
        Path::Pairs => pairs::weight_gradient(&sizes, dw.host_mut(), dy.host(), x.host(), dw.mode),
        Path::ShiftedPairs => pairs_weight::weight_gradient(&sizes, dw.host_mut(), dy.host(), x.host(), dw.mode),
        Path::Doubled | Path::Direct => weight_gradient::<T>(&sizes, dw.host_mut(), dy.host(), x.host(), dw.mode),
    }
}
