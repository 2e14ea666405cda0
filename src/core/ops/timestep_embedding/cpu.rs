//! Sinusoidal features on the CPU.

use super::frequency;
use crate::ops::host::{Float, parallel};
use crate::tensor::Tensor;

pub(super) fn forward<T: Float>(time: &Tensor, y: &Tensor) {
    let width = y.shape().last();
    let half = width / 2;
    let frequencies: Vec<T> = (0..half).map(|i| T::from_f64(frequency(i, half))).collect();
    let time = time.host::<T>();
    parallel::for_rows(y.host_mut::<T>(), width, |b, y| {
        let (cosines, sines) = y.split_at_mut(half);
        for ((cosine, sine), &frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
            let angle = time[b] * frequency;
            (*cosine, *sine) = (angle.cos(), angle.sin());
        }
    });
}
