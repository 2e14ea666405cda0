//! A training batch's draws on the CPU: the items' levels first, then the items in parallel.

use super::{Draw, FLOW_TIME_SCALE, NoiseStep, Noised, Target, TimeGrid};
use crate::ops::control::Control;
use crate::ops::host::normal::{fill_normal_as, normal4};
use crate::ops::host::{Float, parallel, vector};
use crate::rng::{Philox, Purpose};
use crate::tensor::Tensor;

/// 2⁻²⁴: the uniform numbers' own range; a saturated sigmoid would leave it.
const TIME_MARGIN: f32 = 0.5 / (1 << 23) as f32;

/// An item's coefficients.
struct Weights<T> {
    a: T,
    s: T,
    c_x: T,
    c_n: T,
}

/// A time in (0, 1), and under [`Draw::Adaptive`] its bin and the bin's probability.
fn draw_time<T: Float>(draw: &Draw, philox: Philox, item: u32, step: u32) -> (f32, Option<(usize, T)>) {
    let uniform = || philox.uniform4(0, item, step, Purpose::Timestep)[0];
    match draw {
        Draw::Uniform => (uniform(), None),
        Draw::LogitNormal { mean, std } => {
            let normal = normal4(philox.bits4(0, item, step, Purpose::Timestep))[0];
            (Float::sigmoid(std.mul_add(normal, *mean)).clamp(TIME_MARGIN, 1.0 - TIME_MARGIN), None)
        }
        Draw::Adaptive(state) => {
            let (bins, state) = (state.sizes()[1], state.host::<T>());
            let (shares, ends) = state[bins..].split_at(bins);
            let u = uniform();
            let bin = ends.iter().position(|end| u < end.to_f64() as f32).unwrap_or(bins - 1);
            let share = shares[bin].to_f64() as f32;
            let within = ((u - ends[bin].to_f64() as f32) / share + 1.0).clamp(0.0, 1.0);
            let t = (bin as f32 + within) / bins as f32;
            (t.clamp(TIME_MARGIN, 1.0 - TIME_MARGIN), Some((bin, shares[bin])))
        }
    }
}

pub(super) fn forward<T: Float>(x0: &Tensor, labels: &Tensor, control: &Tensor, config: &NoiseStep, noised: &Noised) {
    let control = Control::from_words(control.host());
    let philox = Philox::new(config.seed);
    let item = |b: usize| control.first_item.wrapping_add(b as u32);
    let (times, weights) = (noised.time.host_mut::<T>(), noised.weight.host_mut::<T>());
    let items = times.iter_mut().zip(weights).enumerate();
    let bins = if let Draw::Adaptive(state) = &config.draw { state.sizes()[1] } else { 0 };
    let levels: Vec<Weights<T>> = items
        .map(|(b, (time, weight))| {
            let (t, level) = draw_time::<T>(&config.draw, philox, item(b), control.step);
            let (a, s) = match &config.times {
                TimeGrid::Flow => {
                    *time = T::from_f32(FLOW_TIME_SCALE) * T::from_f32(t);
                    (T::ONE - T::from_f32(t), T::from_f32(t))
                }
                TimeGrid::Table { a, s } => {
                    let index = ((t * a.len() as f32) as usize).min(a.len() - 1);
                    *time = T::from_f64(index as f64);
                    (a.host::<T>()[index], s.host::<T>()[index])
                }
            };
            let (c_x, c_n) = match config.target {
                Target::Epsilon => (T::ZERO, T::ONE),
                Target::X0 => (T::ONE, T::ZERO),
                Target::V => (-s, a),
                Target::Flow => (-T::ONE, T::ONE),
            };
            *weight = config.min_snr_gamma.map_or(T::ONE, |gamma| {
                let (signal, bound) = (a * a, T::from_f32(gamma) * s * s);
                let determinant = a * c_n - s * c_x;
                (if signal < bound { signal } else { bound }) / (determinant * determinant)
            });
            if let (Some((bin, share)), Some(levels)) = (level, &noised.level) {
                levels.host_mut::<i32>()[b] = bin as i32;
                *weight /= T::from_f64(bins as f64) * share;
            }
            Weights { a, s, c_x, c_n }
        })
        .collect();
    let given = labels.host::<i32>();
    for (b, label) in noised.labels.host_mut::<i32>().iter_mut().enumerate() {
        let dropped = philox.uniform4(0, item(b), control.step, Purpose::LabelDropout)[0] < config.label_dropout;
        *label = if dropped { config.null_label } else { given[b] };
    }
    let elements = x0.len() / levels.len();
    let x0 = x0.host::<T>();
    let (x_t, target) = (noised.x_t.host_mut::<T>(), noised.target.host_mut::<T>());
    parallel::for_rows2((x_t, elements), (target, elements), |b, x_t, target| {
        let (level, x0) = (&levels[b], &x0[b * elements..][..elements]);
        // The noise stands in the target until the target does.
        fill_normal_as(target, philox, item(b), control.step, Purpose::Noise);
        vector::dispatch(
            #[inline(always)]
            || {
                for ((x_t, target), &x0) in x_t.iter_mut().zip(target.iter_mut()).zip(x0) {
                    let noise = *target;
                    *x_t = level.a.mul_add(x0, level.s * noise);
                    *target = level.c_x.mul_add(x0, level.c_n * noise);
                }
            },
        );
    });
}
