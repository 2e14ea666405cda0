//! The optimizer's step on the CPU: one parallel pass, a cache-sized chunk at a time.

use half::bf16;

use super::{AdamW, AdamWState, CLIP_EPSILON, PART};
use crate::ops::control::Control;
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tensor::{DType, Tensor};

/// Elements of a chunk: its five buffers fit into a core's second-level cache, so that the average's pass costs no memory
/// traffic of its own.
const CHUNK: usize = 8192;

pub(super) fn gradient_norm<T: Float>(
    gradients: &Tensor,
    partial: &Tensor,
    statistics: &Tensor,
    max_norm: Option<f32>,
) {
    let gradients = gradients.host::<T>();
    let partial = partial.host_mut::<T>();
    let mut parts: Vec<(&mut T, &[T])> = partial.iter_mut().zip(gradients.chunks(PART)).collect();
    parallel::for_slots(&mut parts, gradients.len(), |(partial, part)| **partial = vector::sum_of_squares(part));
    let norm = vector::sum(partial).sqrt();
    let scale = max_norm.map_or(T::ONE, |max_norm| {
        let scale = T::from_f32(max_norm) / (norm + T::from_f64(CLIP_EPSILON));
        // NaN stays NaN.
        if scale > T::ONE { T::ONE } else { scale }
    });
    statistics.host_mut::<T>().copy_from_slice(&[norm, scale, T::ZERO, T::ZERO]);
}

/// One chunk of every buffer.
struct Chunk<'a, T> {
    parameters: &'a mut [T],
    first: &'a mut [T],
    second: &'a mut [T],
    gradients: &'a [T],
    ema: Option<&'a mut [T]>,
    compute: Option<&'a mut [T]>,
    rounded: Option<&'a mut [bf16]>,
}

pub(super) fn update<T: Float>(state: &AdamWState, control: &Tensor, statistics: &Tensor, hyper: AdamW) {
    let control = Control::from_words(control.host());
    let clip = statistics.host::<T>()[1];
    let [rate, correction1, correction2, ema_decay] =
        [control.learning_rate, control.first_correction, control.second_correction, control.ema_decay]
            .map(T::from_f32);
    let [rest1, beta2, rest2, epsilon, decay] =
        [1.0 - hyper.beta1, hyper.beta2, 1.0 - hyper.beta2, hyper.epsilon, hyper.weight_decay].map(T::from_f64);
    let (kept, penalty) = if hyper.decoupled { (T::ONE - rate * decay, T::ZERO) } else { (T::ONE, decay) };
    let rate = rate * correction1;

    let mut chunks = Vec::with_capacity(state.parameters.len().div_ceil(CHUNK));
    let masters = (state.parameters.host_mut::<T>().chunks_mut(CHUNK))
        .zip(state.first.host_mut::<T>().chunks_mut(CHUNK))
        .zip(state.second.host_mut::<T>().chunks_mut(CHUNK))
        .zip(state.gradients.host::<T>().chunks(CHUNK));
    let mut ema = state.ema.map(|ema| ema.host_mut::<T>().chunks_mut(CHUNK));
    let copy = |is_bf16| state.compute.filter(|copy| (copy.dtype() == DType::BF16) == is_bf16);
    let mut compute = copy(false).map(|compute| compute.host_mut::<T>().chunks_mut(CHUNK));
    let mut rounded = copy(true).map(|compute| compute.host_mut::<bf16>().chunks_mut(CHUNK));
    for (((parameters, first), second), gradients) in masters {
        let ema = ema.as_mut().and_then(Iterator::next);
        let compute = compute.as_mut().and_then(Iterator::next);
        let rounded = rounded.as_mut().and_then(Iterator::next);
        chunks.push(Chunk { parameters, first, second, gradients, ema, compute, rounded });
    }
    parallel::for_slots(&mut chunks, state.parameters.len(), |chunk| {
        vector::dispatch(
            #[inline(always)]
            || {
                let masters = chunk.parameters.iter_mut().zip(chunk.first.iter_mut());
                for (((p, m), v), &g) in masters.zip(chunk.second.iter_mut()).zip(chunk.gradients) {
                    let gradient = penalty.mul_add(*p, g * clip);
                    *m = rest1.mul_add(gradient - *m, *m);
                    *v = (rest2 * gradient).mul_add(gradient, beta2 * *v);
                    let step = rate * *m / ((*v * correction2).sqrt() + epsilon);
                    *p = p.mul_add(kept, -step);
                }
            },
        );
        if let Some(ema) = &mut chunk.ema {
            vector::dispatch(
                #[inline(always)]
                || ema.iter_mut().zip(&*chunk.parameters).for_each(|(e, &p)| *e = ema_decay.mul_add(*e - p, p)),
            );
        }
        if let Some(compute) = &mut chunk.compute {
            compute.copy_from_slice(chunk.parameters);
        }
        if let Some(rounded) = &mut chunk.rounded {
            vector::dispatch(
                #[inline(always)]
                || rounded.iter_mut().zip(&*chunk.parameters).for_each(|(to, &p)| *to = bf16::of(p.to_f32())),
            );
        }
    });
}

pub(super) fn record<T: Float>(
    ring: &Tensor,
    loss: &Tensor,
    terms: Option<&Tensor>,
    statistics: &Tensor,
    control: &Tensor,
) {
    let control = Control::from_words(control.host());
    let &[rows, width] = ring.sizes() else { return };
    let row = &mut ring.host_mut::<T>()[width * (control.row as usize % rows)..][..width];
    let add = |sum: &mut T, value: T| *sum = if control.micro == 0 { value } else { *sum + value };
    let (fixed, sums) = row.split_at_mut(2);
    add(&mut fixed[0], loss.host::<T>()[0]);
    fixed[1] = statistics.host::<T>()[0];
    if let Some(terms) = terms {
        sums.iter_mut().zip(terms.host::<T>()).for_each(|(sum, &term)| add(sum, term));
    }
}
