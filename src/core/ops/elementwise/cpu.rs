//! The elementwise family on the CPU.

use super::{Function, Gate, GateBackward};
use crate::ops::host::{Float, activation, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn unary<T: Float>(function: Function, x: &Tensor, y: &Tensor) {
    let (x, y) = (x.host::<T>(), y.host_mut::<T>());
    match function {
        Function::Gelu => vector::par_map(y, x, Accumulate::Write, activation::gelu),
        Function::Silu => vector::par_map(y, x, Accumulate::Write, activation::silu),
        Function::Relu => vector::par_map(y, x, Accumulate::Write, |x| if x < T::ZERO { T::ZERO } else { x }),
        Function::Relu6 => {
            let six = T::from_f32(6.0);
            vector::par_map(y, x, Accumulate::Write, move |x| {
                let x = if x < T::ZERO { T::ZERO } else { x };
                if x > six { six } else { x }
            });
        }
    }
}

pub(super) fn unary_backward<T: Float>(function: Function, x: &Tensor, dy: &Tensor, dx: &Destination) {
    let (x, dy, to, mode) = (x.host::<T>(), dy.host::<T>(), dx.host_mut::<T>(), dx.mode);
    match function {
        Function::Gelu => vector::par_map2(to, dy, x, mode, |dy, x| dy * activation::gelu_derivative(x)),
        Function::Silu => vector::par_map2(to, dy, x, mode, |dy, x| dy * activation::silu_derivative(x)),
        Function::Relu => vector::par_map2(to, dy, x, mode, |dy, x| if x > T::ZERO { dy } else { T::ZERO }),
        Function::Relu6 => {
            let six = T::from_f32(6.0);
            vector::par_map2(to, dy, x, mode, move |dy, x| if x > T::ZERO && x < six { dy } else { T::ZERO });
        }
    }
}

pub(super) fn add<T: Float>(a: &Tensor, b: &Tensor, y: &Tensor) {
    vector::par_map2(y.host_mut::<T>(), a.host(), b.host(), Accumulate::Write, |a, b| a + b);
}

pub(super) fn scale<T: Float>(to: &Destination, x: &Tensor, factor: f32) {
    let factor = T::from_f32(factor);
    vector::par_map(to.host_mut::<T>(), x.host(), to.mode, |x| x * factor);
}

pub(super) fn gate<T: Float>(sizes: Gate, x: &Tensor, y: &Tensor, modulation: &Tensor, out: &Tensor) {
    let (x, y, modulation) = (x.host::<T>(), y.host::<T>(), modulation.host::<T>());
    parallel::for_rows(out.host_mut::<T>(), sizes.cols, |row, out| {
        let at = row * sizes.cols..(row + 1) * sizes.cols;
        let gate = columns(modulation, sizes, row / sizes.rows_per_sample);
        vector::map3(out, &x[at.clone()], &y[at], gate, Accumulate::Write, |x, y, g| g.mul_add(y, x));
    });
}

/// A sample's gate.
fn columns<T>(modulation: &[T], sizes: Gate, sample: usize) -> &[T] {
    &modulation[sample * sizes.stride + sizes.column..][..sizes.cols]
}

/// One sample's part of the backward.
struct Sample<'a, T> {
    number: usize,
    dy: Option<&'a mut [T]>,
    dm: Option<&'a mut [T]>,
}

pub(super) fn gate_backward<T: Float>(call: &GateBackward) {
    let sizes = call.sizes;
    if sizes.rows * sizes.cols == 0 {
        return;
    }
    let len = sizes.rows_per_sample * sizes.cols;
    let (dout, matrix) = (call.dout.host::<T>(), call.matrix.host::<T>());
    let y = call.y.map(Tensor::host::<T>);
    let mode = call.dy.as_ref().map_or(Accumulate::Write, |dy| dy.mode);
    let mut dy = call.dy.as_ref().map(|dy| dy.host_mut::<T>().chunks_exact_mut(len));
    let mut dm = call.dm.as_ref().map(|dm| dm.host_mut::<T>().chunks_exact_mut(sizes.stride));
    let mut samples: Vec<Sample<T>> = (0..sizes.rows / sizes.rows_per_sample)
        .map(|number| Sample {
            number,
            dy: dy.as_mut().and_then(Iterator::next),
            dm: dm.as_mut().and_then(Iterator::next),
        })
        .collect();
    parallel::for_slots(&mut samples, dout.len(), |sample| {
        let gate = columns(matrix, sizes, sample.number);
        for row in 0..sizes.rows_per_sample {
            let here = row * sizes.cols..(row + 1) * sizes.cols;
            let at = sample.number * len + here.start;
            let dout = &dout[at..][..sizes.cols];
            if let Some(dy) = &mut sample.dy {
                vector::map2(&mut dy[here], gate, dout, mode, |g, d| g * d);
            }
            if let (Some(dm), Some(y)) = (&mut sample.dm, y) {
                let sums = &mut dm[sizes.column..][..sizes.cols];
                let y = &y[at..][..sizes.cols];
                vector::dispatch(|| {
                    for ((sum, &d), &y) in sums.iter_mut().zip(dout).zip(y) {
                        *sum = d.mul_add(y, *sum);
                    }
                });
            }
        }
    });
}
