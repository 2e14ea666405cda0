//! The law of the bins on the CPU: a few hundred numbers, one thread.

use super::Law;
use crate::ops::host::Float;
use crate::tensor::Tensor;

pub(super) fn update<T: Float>(state: &Tensor, losses: &Tensor, levels: &Tensor, law: Law) {
    let bins = state.sizes()[1];
    let (moments, rest) = state.host_mut::<T>().split_at_mut(bins);
    let (shares, ends) = rest.split_at_mut(bins);
    let (losses, levels) = (losses.host::<T>(), levels.host::<i32>());
    let (decay, uniform) = (T::from_f32(law.decay), T::from_f32(law.uniform));
    let count = T::from_f64(bins as f64);
    for (k, moment) in moments.iter_mut().enumerate() {
        let (mut sum, mut items) = (T::ZERO, T::ZERO);
        for (&loss, _) in losses.iter().zip(levels).filter(|(_, level)| **level == k as i32) {
            // Without the importance weight that the old shares gave it.
            let loss = loss * count * shares[k];
            sum = loss.mul_add(loss, sum);
            items += T::ONE;
        }
        if items > T::ZERO {
            let mean = sum / items;
            *moment = if *moment < T::ZERO { mean } else { decay.mul_add(*moment - mean, mean) };
        }
    }
    let (mut known, mut total) = (T::ZERO, T::ZERO);
    for &moment in moments.iter().filter(|moment| **moment >= T::ZERO) {
        known += T::ONE;
        total += moment.sqrt();
    }
    let unseen = if known > T::ZERO { total / known } else { T::ONE };
    total += (count - known) * unseen;
    let mut end = T::ZERO;
    for ((&moment, share), upper) in moments.iter().zip(shares).zip(ends.iter_mut()) {
        let root = if moment < T::ZERO { unseen } else { moment.sqrt() };
        // All losses zero: every bin alike.
        let part = if total > T::ZERO { root / total } else { T::ONE / count };
        *share = (T::ONE - uniform).mul_add(part, uniform / count);
        end += *share;
        *upper = end;
    }
    ends[bins - 1] = T::ONE;
}
