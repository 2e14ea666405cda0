//! Mean squared error on the CPU: items in parallel, then their sum.

use super::Call;
use crate::ops::host::{Float, parallel, vector};
use crate::tape::Destination;
use crate::tensor::Tensor;

pub(super) fn forward<T: Float>(call: &Call, partial: &Tensor, loss: &Tensor) {
    let (prediction, target) = (call.prediction.host::<T>(), call.target.host::<T>());
    let weight = call.weight.as_ref().map(Tensor::host::<T>);
    let elements = call.elements;
    let inverse = T::ONE / T::from_f64(elements as f64);
    let partial = partial.host_mut::<T>();
    let mut items: Vec<(usize, &mut T)> = partial.iter_mut().enumerate().collect();
    parallel::for_slots(&mut items, prediction.len(), |(b, partial)| {
        let within = *b * elements..(*b + 1) * elements;
        let squares = vector::sum_by2(&prediction[within.clone()], &target[within], |p, t| (p - t) * (p - t));
        **partial = squares * inverse * weight.map_or(T::ONE, |weight| weight[*b]);
    });
    let mean = vector::sum(partial) / T::from_f64(call.batch as f64);
    loss.host_mut::<T>()[0] = T::from_f32(call.scale) * mean;
}

pub(super) fn backward<T: Float>(call: &Call, dloss: &Tensor, destination: &Destination) {
    let (prediction, target) = (call.prediction.host::<T>(), call.target.host::<T>());
    let weight = call.weight.as_ref().map(Tensor::host::<T>);
    let count = T::from_f64(call.batch as f64) * T::from_f64(call.elements as f64);
    let common = dloss.host::<T>()[0] * T::from_f64(2.0 * f64::from(call.scale)) / count;
    let (elements, mode) = (call.elements, destination.mode);
    parallel::for_rows(destination.host_mut::<T>(), elements, |b, row| {
        let within = b * elements..(b + 1) * elements;
        let factor = common * weight.map_or(T::ONE, |weight| weight[b]);
        vector::map2(row, &prediction[within.clone()], &target[within], mode, |p, t| factor * (p - t));
    });
}
