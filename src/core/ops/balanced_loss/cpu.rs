//! The balanced loss on the CPU: items in parallel, then their sums.
//!
//! An item's differences lie in scratch with a border of a pixel, so that neighbours are slices and every loop is one of
//! vector code.

use super::{COSINE_GUARD, Call, EDGE_EPSILON, Image, LARGEST_RATIO, Results, STATISTICS, TERMS};
use crate::ops::host::vector::{self, dispatch};
use crate::ops::host::{Float, parallel};
use crate::tape::Destination;
use crate::tensor::Tensor;

/// An image with a border of a pixel on each side.
#[derive(Clone, Copy)]
struct Bordered {
    image: Image,
    /// Elements from a row to the next.
    stride: usize,
}

impl Bordered {
    fn new(image: Image) -> Self {
        Self { image, stride: (image.width + 2) * image.channels }
    }

    fn len(self) -> usize {
        (self.image.height + 2) * self.stride
    }

    /// Where row `y` begins, behind its border.
    fn start(self, y: usize) -> usize {
        (y + 1) * self.stride + self.image.channels
    }

    /// Row `y`, and what lies left, right, above and below of each of its elements.
    #[inline(always)]
    fn around<T>(self, of: &[T], y: usize) -> [&[T]; 5] {
        let (at, row, channels) = (self.start(y), self.image.row(), self.image.channels);
        [at, at - channels, at + channels, at - self.stride, at + self.stride].map(|at| &of[at..][..row])
    }

    /// Fills the border (but for its corners, which nobody reads) with the pixels next to it.
    #[inline(always)]
    fn replicate<T: Copy>(self, of: &mut [T]) {
        let (row, channels, height) = (self.image.row(), self.image.channels, self.image.height);
        for y in 0..height {
            let at = self.start(y);
            of.copy_within(at..at + channels, at - channels);
            of.copy_within(at + row - channels..at + row, at + row);
        }
        let (first, last) = (self.start(0), self.start(height - 1));
        of.copy_within(first..first + row, first - self.stride);
        of.copy_within(last..last + row, last + self.stride);
    }

    /// prediction − target, with its border.
    #[inline(always)]
    fn difference<T: Float>(self, d: &mut [T], prediction: &[T], target: &[T]) {
        let row = self.image.row();
        for y in 0..self.image.height {
            let (p, t) = (&prediction[y * row..][..row], &target[y * row..][..row]);
            let d = &mut d[self.start(y)..][..row];
            for i in 0..row {
                d[i] = p[i] - t[i];
            }
        }
        self.replicate(d);
    }
}

/// The item's terms, α and β.
fn item<T: Float>(bordered: Bordered, prediction: &[T], target: &[T], statistics: &mut [T]) {
    let (elements, row) = (bordered.image.elements(), bordered.image.row());
    let (quarter, epsilon) = (T::from_f64(0.25), T::from_f64(EDGE_EPSILON));
    let count = T::from_f64(elements as f64);
    T::with_scratch(bordered.len() + 2 * elements, |scratch| {
        let (d, fields) = scratch.split_at_mut(bordered.len());
        let (high, edge) = fields.split_at_mut(elements);
        dispatch(
            #[inline(always)]
            || {
                bordered.difference(d, prediction, target);
                for y in 0..bordered.image.height {
                    let [d, left, right, up, down] = bordered.around(d, y);
                    let (high, edge) = (&mut high[y * row..][..row], &mut edge[y * row..][..row]);
                    for i in 0..row {
                        high[i] = d[i] - quarter * ((left[i] + right[i]) + (up[i] + down[i]));
                        let (x, y) = (right[i] - d[i], down[i] - d[i]);
                        let square = x * x + y * y;
                        // √(square + ε²) − ε without the cancellation.
                        edge[i] = square / ((square + epsilon * epsilon).sqrt() + epsilon);
                    }
                }
            },
        );
        statistics[0] = vector::sum_by2(prediction, target, |p, t| (p - t) * (p - t)) / count;
        statistics[1] = vector::sum_by2(prediction, target, |p, t| (p - t).abs()) / count;
        statistics[3] = vector::sum_of_squares(high) / count;
        statistics[4] = vector::sum(edge) / count;
    });
    let (product, square) = (vector::dot(prediction, target), vector::sum_of_squares(prediction));
    let norms = square.sqrt() * vector::sum_of_squares(target).sqrt();
    // NaN is left to be seen.
    let (cosine, alpha, beta) = if norms <= T::from_f64(COSINE_GUARD) {
        (T::ZERO, T::ZERO, T::ZERO)
    } else {
        let cosine = product / norms;
        (cosine, T::ONE / norms, cosine / square)
    };
    (statistics[2], statistics[5], statistics[6]) = (T::ONE - cosine, alpha, beta);
}

/// factor_i of the term's λ and the running means.
fn factor<T: Float>(lambda: f32, state: Option<&[T]>, term: usize) -> T {
    let lambda = T::from_f32(lambda);
    let Some(state) = state.filter(|state| !(state[TERMS] <= T::ZERO || state[term] <= T::ZERO)) else {
        return lambda;
    };
    // Bias correction divides both means by state[5]. Comparisons leave NaN to be seen.
    let (ratio, largest) = (state[0] / state[term], T::from_f64(LARGEST_RATIO));
    let smallest = T::from_f64(1.0 / LARGEST_RATIO);
    lambda
        * if ratio > largest {
            largest
        } else if ratio < smallest {
            smallest
        } else {
            ratio
        }
}

pub(super) fn forward<T: Float>(call: &Call, results: &Results, state: Option<&Tensor>) {
    let (prediction, target) = (call.prediction.host::<T>(), call.target.host::<T>());
    let weight = call.weight.as_ref().map(Tensor::host::<T>);
    let (bordered, elements) = (Bordered::new(call.image), call.image.elements());
    let statistics = call.statistics.host_mut::<T>();
    let mut items: Vec<(usize, &mut [T])> = statistics.chunks_exact_mut(STATISTICS).enumerate().collect();
    parallel::for_slots(&mut items, prediction.len(), |(b, statistics)| {
        let within = *b * elements..(*b + 1) * elements;
        item(bordered, &prediction[within.clone()], &target[within], statistics);
    });
    let factors = call.factors.host_mut::<T>();
    for (term, (to, &lambda)) in factors.iter_mut().zip(&call.config.weights).enumerate() {
        *to = factor(lambda, state.map(Tensor::host::<T>), term);
    }
    let (items, terms) = (results.items.host_mut::<T>(), results.terms.host_mut::<T>());
    terms.fill(T::ZERO);
    for (b, (to, of)) in items.iter_mut().zip(statistics.chunks_exact(STATISTICS)).enumerate() {
        let mut sum = T::ZERO;
        for ((total, &term), &factor) in terms.iter_mut().zip(of).zip(&*factors) {
            *total += term;
            sum += factor * term;
        }
        *to = sum * weight.map_or(T::ONE, |weight| weight[b]);
    }
    let batch = T::from_f64(call.batch as f64);
    terms.iter_mut().for_each(|term| *term /= batch);
    results.loss.host_mut::<T>()[0] = T::from_f32(call.config.scale) * (vector::sum(items) / batch);
}

/// −1, 0 or 1.
#[inline(always)]
fn sign<T: Float>(x: T) -> T {
    let above = if x > T::ZERO { T::ONE } else { T::ZERO };
    let below = if x < T::ZERO { T::ONE } else { T::ZERO };
    above - below
}

/// The gradient of Σ factor_i · T_i, but for the cosine: `gradient` `[H, W, C]`. `scratch`: four bordered images.
fn local_gradient<T: Float>(bordered: Bordered, d: &[T], factors: &[T], gradient: &mut [T], scratch: &mut [T]) {
    let (row, stride, channels) = (bordered.image.row(), bordered.stride, bordered.image.channels);
    let (quarter, epsilon) = (T::from_f64(0.25), T::from_f64(EDGE_EPSILON));
    let inverse = T::ONE / T::from_f64(bordered.image.elements() as f64);
    let two = T::from_f64(2.0) * inverse;
    let [of_mse, of_l1, of_high, of_edge] =
        [two * factors[0], inverse * factors[1], two * factors[3], inverse * factors[4]];
    let (high, edges) = scratch.split_at_mut(bordered.len());
    let (edge_x, edge_y) = edges.split_at_mut(bordered.len());
    dispatch(
        #[inline(always)]
        || {
            for y in 0..bordered.image.height {
                let at = bordered.start(y);
                // No edge reaches in over the left border; none over the upper, below.
                edge_x[at - channels..at].fill(T::ZERO);
                let [d, left, right, up, down] = bordered.around(d, y);
                let high = &mut high[at..][..row];
                let (edge_x, edge_y) = (&mut edge_x[at..][..row], &mut edge_y[at..][..row]);
                for i in 0..row {
                    high[i] = d[i] - quarter * ((left[i] + right[i]) + (up[i] + down[i]));
                    let (x, y) = (right[i] - d[i], down[i] - d[i]);
                    let factor = of_edge / (x * x + y * y + epsilon * epsilon).sqrt();
                    (edge_x[i], edge_y[i]) = (factor * x, factor * y);
                }
            }
            bordered.replicate(high);
            edge_y[bordered.start(0) - stride..][..row].fill(T::ZERO);
            for y in 0..bordered.image.height {
                let [high, left, right, up, down] = bordered.around(high, y);
                let [x, x_left, ..] = bordered.around(edge_x, y);
                let [y_, _, _, y_up, _] = bordered.around(edge_y, y);
                let d = &d[bordered.start(y)..][..row];
                let gradient = &mut gradient[y * row..][..row];
                for i in 0..row {
                    let high = high[i] - quarter * ((left[i] + right[i]) + (up[i] + down[i]));
                    let edge = (x_left[i] - x[i]) + (y_up[i] - y_[i]);
                    gradient[i] = (of_mse * d[i] + of_l1 * sign(d[i])) + (of_high * high + edge);
                }
            }
        },
    );
}

pub(super) fn backward<T: Float>(call: &Call, dloss: &Tensor, destination: &Destination) {
    let (prediction, target) = (call.prediction.host::<T>(), call.target.host::<T>());
    let weight = call.weight.as_ref().map(Tensor::host::<T>);
    let (statistics, factors) = (call.statistics.host::<T>(), call.factors.host::<T>());
    let (bordered, elements, mode) = (Bordered::new(call.image), call.image.elements(), destination.mode);
    let common = dloss.host::<T>()[0] * T::from_f32(call.config.scale) / T::from_f64(call.batch as f64);
    parallel::for_rows(destination.host_mut::<T>(), elements, |b, to| {
        let within = b * elements..(b + 1) * elements;
        let (p, t) = (&prediction[within.clone()], &target[within]);
        let of = &statistics[b * STATISTICS..][..STATISTICS];
        let common = common * weight.map_or(T::ONE, |weight| weight[b]);
        let (alpha, beta) = (factors[2] * of[5], factors[2] * of[6]);
        T::with_scratch(elements + 4 * bordered.len(), |scratch| {
            let (gradient, scratch) = scratch.split_at_mut(elements);
            let (d, scratch) = scratch.split_at_mut(bordered.len());
            dispatch(
                #[inline(always)]
                || bordered.difference(d, p, t),
            );
            local_gradient(bordered, d, factors, gradient, scratch);
            let local = &*gradient;
            vector::map3(to, local, p, t, mode, |g, p, t| common * (g + (beta * p - alpha * t)));
        });
    });
}

pub(super) fn update<T: Float>(state: &Tensor, terms: &Tensor, decay: f32) {
    let decay = T::from_f32(decay);
    let (state, values) = (state.host_mut::<T>(), terms.host::<T>().iter().copied().chain([T::ONE]));
    state.iter_mut().zip(values).for_each(|(state, value)| *state = decay * *state + (T::ONE - decay) * value);
}
