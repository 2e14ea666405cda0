//! Cross-entropy on the CPU: items in parallel, then their sums.

use super::{Call, Results};
use crate::ops::host::{Float, parallel, vector};
use crate::tape::Destination;
use crate::tensor::Tensor;

/// The label as an index, where it is one.
fn inside(label: i32, classes: usize) -> Option<usize> {
    usize::try_from(label).ok().filter(|&label| label < classes)
}

pub(super) fn forward<T: Float>(call: &Call, results: &Results) {
    let (logits, labels, classes) = (call.logits.host::<T>(), call.labels.host::<i32>(), call.classes);
    let smoothing = T::from_f32(call.smoothing);
    let each = smoothing / T::from_f64(classes as f64);
    let (items, right, statistics) =
        (results.items.host_mut::<T>(), results.right.host_mut::<T>(), call.statistics.host_mut::<T>());
    let outputs = items.iter_mut().zip(right.iter_mut()).zip(statistics.chunks_exact_mut(2)).enumerate();
    let mut slots: Vec<_> = outputs.map(|(b, ((item, right), kept))| (b, item, right, kept)).collect();
    parallel::for_slots(&mut slots, logits.len(), |(b, item, right, kept)| {
        let z = &logits[*b * classes..][..classes];
        // About the largest logit, so that no exponential overflows and no digit is lost.
        let most = vector::max(z);
        let rest = vector::sum_by(z, |z| (z - most).exp()).ln();
        let label = inside(labels[*b], classes);
        kept.copy_from_slice(&[most, rest]);
        **item = label.map_or(T::ZERO, |label| {
            rest - (T::ONE - smoothing) * (z[label] - most) - each * vector::sum_by(z, |z| z - most)
        });
        let first = z.iter().position(|&z| z == most);
        **right = if label.is_some() && label == first { T::ONE } else { T::ZERO };
    });
    let mean = vector::sum(items) / T::from_f64(call.batch as f64);
    results.loss.host_mut::<T>()[0] = T::from_f32(call.scale) * mean;
    results.correct.host_mut::<T>()[0] = vector::sum(right);
}

pub(super) fn backward<T: Float>(call: &Call, dloss: &Tensor, destination: &Destination) {
    let (logits, labels, classes) = (call.logits.host::<T>(), call.labels.host::<i32>(), call.classes);
    let statistics = call.statistics.host::<T>();
    let factor = dloss.host::<T>()[0] * T::from_f32(call.scale) / T::from_f64(call.batch as f64);
    let smoothing = T::from_f32(call.smoothing);
    let (each, mode) = (smoothing / T::from_f64(classes as f64), destination.mode);
    parallel::for_rows(destination.host_mut::<T>(), classes, |b, row| {
        let (most, rest, label) = (statistics[2 * b], statistics[2 * b + 1], inside(labels[b], classes));
        let factor = if label.is_some() { factor } else { T::ZERO };
        vector::map(row, &logits[b * classes..][..classes], mode, |z| factor * ((z - most - rest).exp() - each));
        if let Some(label) = label {
            row[label] -= factor * (T::ONE - smoothing);
        }
    });
}
