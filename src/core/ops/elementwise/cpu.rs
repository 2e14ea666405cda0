//! The elementwise family on the CPU.

use super::{Function, Gate, GateBackward};
use crate::ops::host::held::write_alone;
use crate::ops::host::{Float, Held, activation, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn unary<E: Held>(function: Function, x: &Tensor, y: &Tensor) {
    let (x, y) = (x.host::<E>(), y.host_mut::<E>());
    match function {
        Function::Gelu => vector::par_map(y, x, Accumulate::Write, activation::gelu),
        Function::Silu => vector::par_map(y, x, Accumulate::Write, activation::silu),
        Function::Relu => vector::par_map(y, x, Accumulate::Write, |x| if x < Float::ZERO { Float::ZERO } else { x }),
        Function::Relu6 => {
            let six = E::Float::from_f32(6.0);
            vector::par_map(y, x, Accumulate::Write, move |x| {
                let x = if x < Float::ZERO { Float::ZERO } else { x };
                if x > six { six } else { x }
            });
        }
    }
}

pub(super) fn unary_backward<E: Held>(function: Function, x: &Tensor, dy: &Tensor, dx: &Destination) {
    let (x, dy, to, mode) = (x.host::<E>(), dy.host::<E>(), dx.host_mut::<E>(), dx.mode);
    match function {
        Function::Gelu => vector::par_map2(to, dy, x, mode, |dy, x| dy * activation::gelu_derivative(x)),
        Function::Silu => vector::par_map2(to, dy, x, mode, |dy, x| dy * activation::silu_derivative(x)),
        Function::Relu => vector::par_map2(to, dy, x, mode, |dy, x| if x > Float::ZERO { dy } else { Float::ZERO }),
        Function::Relu6 => {
            let six = E::Float::from_f32(6.0);
            vector::par_map2(to, dy, x, mode, move |dy, x| if x > Float::ZERO && x < six { dy } else { Float::ZERO });
        }
    }
}

pub(super) fn add<E: Held>(a: &Tensor, b: &Tensor, y: &Tensor) {
    vector::par_map2(y.host_mut::<E>(), a.host(), b.host(), Accumulate::Write, |a, b| a + b);
}

pub(super) fn scale<E: Held>(to: &Destination, x: &Tensor, factor: f32) {
    let factor = E::Float::from_f32(factor);
    vector::par_map(to.host_mut::<E>(), x.host(), to.mode, |x| x * factor);
}

pub(super) fn gate<E: Held>(sizes: Gate, x: &Tensor, y: &Tensor, modulation: &Tensor, out: &Tensor) {
    let (x, y, modulation) = (x.host::<E>(), y.host::<E>(), modulation.host::<E>());
    parallel::for_rows(out.host_mut::<E>(), sizes.cols, |row, out| {
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

pub(super) fn gate_backward<E: Held>(call: &GateBackward) {
    let sizes = call.sizes;
    if sizes.rows * sizes.cols == 0 {
        return;
    }
    let len = sizes.rows_per_sample * sizes.cols;
    let (dout, matrix) = (call.dout.host::<E>(), call.matrix.host::<E>());
    let y = call.y.map(Tensor::host::<E>);
    let mode = call.dy.as_ref().map_or(Accumulate::Write, |dy| dy.mode);
    let mut dy = call.dy.as_ref().map(|dy| dy.host_mut::<E>().chunks_exact_mut(len));
    let mut dm = call.dm.as_ref().map(|dm| dm.host_mut::<E>().chunks_exact_mut(sizes.stride));
    let mut samples: Vec<Sample<E>> = (0..sizes.rows / sizes.rows_per_sample)
        .map(|number| Sample {
            number,
            dy: dy.as_mut().and_then(Iterator::next),
            dm: dm.as_mut().and_then(Iterator::next),
        })
        .collect();
    parallel::for_slots(&mut samples, dout.len(), |sample| {
        let gate = columns(matrix, sizes, sample.number);
        let rows = |row: usize| (row * sizes.cols..(row + 1) * sizes.cols, sample.number * len + row * sizes.cols);
        if let Some(dy) = &mut sample.dy {
            for (here, at) in (0..sizes.rows_per_sample).map(rows) {
                vector::map2(&mut dy[here], gate, &dout[at..][..sizes.cols], mode, |g, d| g * d);
            }
        }
        if let (Some(dm), Some(y)) = (&mut sample.dm, y) {
            write_alone(&mut dm[sizes.column..][..sizes.cols], true, |sums| {
                for (_, at) in (0..sizes.rows_per_sample).map(rows) {
                    let (dout, y) = (&dout[at..][..sizes.cols], &y[at..][..sizes.cols]);
                    vector::dispatch(
                        #[inline(always)]
                        || {
                            for ((sum, &d), &y) in sums.iter_mut().zip(dout).zip(y) {
                                *sum = d.get().mul_add(y.get(), *sum);
                            }
                        },
                    );
                }
            });
        }
    });
}
