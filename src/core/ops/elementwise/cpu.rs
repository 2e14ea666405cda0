//! The elementwise family on the CPU.

use super::Function;
use crate::ops::host::{Float, Held, activation, vector};
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
