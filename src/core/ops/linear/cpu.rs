//! The linear layer on the CPU: products with bias, activation and residual applied while a row is in the cache.

use half::bf16;

use super::{Activation, BiasSum, Call, Operands, ROWS_PER_PART, Sizes};
use crate::ops::host::product::{self, Factor, Weight};
use crate::ops::host::{self, Float, Held, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::{DType, Tensor};

/// The saved z, written piece by piece as the product finishes its rows.
struct Pieces<T>(*mut T, usize);
// SAFETY: the product hands each piece of a row to its follow-up once, so no two threads write the same element.
unsafe impl<T> Sync for Pieces<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Pieces<T> {}

impl<T: Held> Pieces<T> {
    fn write(&self, at: usize, values: &[T::Float]) {
        assert!(at + values.len() <= self.1, "a piece outside z");
        // SAFETY: in bounds, and this thread's alone: see above.
        let z = unsafe { std::slice::from_raw_parts_mut(self.0.add(at), values.len()) };
        vector::dispatch(
            #[inline(always)]
            || z.iter_mut().zip(values).for_each(|(z, &value)| *z = T::of(value)),
        );
    }
}

/// Elements of a packed weight.
pub(super) fn packed_len(Sizes { n, k, .. }: Sizes, dtype: DType) -> usize {
    if dtype == DType::BF16 { product::packed_len::<bf16>(n, k) } else { product::packed_len::<f32>(n, k) }
}

/// Packs a weight, once for many calls.
pub(super) fn pack<T: Factor>(Sizes { n, k, .. }: Sizes, weight: &Tensor, packed: &Tensor) {
    product::pack_weight(packed.host_mut::<T>(), weight.host(), (n, k));
}

pub(super) fn forward<T: Factor>(call: &Call, &Operands { x, weight, packed, bias, residual }: &Operands, y: &Tensor) {
    let (Sizes { m, n, k }, activation) = (call.sizes, call.activation);
    let z = call.z.as_ref().map(|z| z.host_mut::<T>()).map(|z| Pieces(z.as_mut_ptr(), z.len()));
    let residual = residual.map(Tensor::host::<T>);
    let finish = |row: usize, first: usize, values: &mut [T::Float]| {
        let at = row * n + first;
        if let Some(z) = &z {
            z.write(at, values);
        }
        match activation {
            Activation::None => {}
            Activation::Gelu => vector::map_in_place(values, host::activation::gelu),
            Activation::Silu => vector::map_in_place(values, host::activation::silu),
        }
        if let Some(residual) = residual {
            vector::map(values, &residual[at..][..values.len()], Accumulate::Add, |r| r);
        }
    };
    let bias = bias.map(Tensor::host::<T::Float>);
    let weight = match packed {
        Some(packed) => Weight::Packed(packed.host::<T>()),
        None => Weight::Rows(weight.host::<T>()),
    };
    product::linear_forward(y.host_mut(), x.host(), weight, bias, (m, n, k), finish);
    if let Some(z) = &call.z {
        z.round_declared();
    }
}

/// A few rows of dz and the bias's partial sum over them.
struct Part<'a, T: Held> {
    dz: Option<&'a mut [T]>,
    dy: &'a [T],
    sum: Option<&'a mut [T::Float]>,
}

/// z becomes dz; the bias's gradient is summed within parts of fixed size, then over the parts in order.
pub(super) fn activation_backward<T: Held>(call: &Call, dy: &Tensor, bias: Option<&BiasSum>) {
    let (n, activation) = (call.sizes.n, call.activation);
    let mut dz = call.z.as_ref().map(|z| z.host_mut::<T>().chunks_mut(ROWS_PER_PART * n));
    let mut sums = bias.map(|bias| bias.partial.host_mut::<T::Float>().chunks_mut(n));
    let rows = dy.host::<T>().chunks(ROWS_PER_PART * n.max(1));
    let mut parts: Vec<Part<T>> = rows
        .map(|dy| Part { dz: dz.as_mut().and_then(Iterator::next), dy, sum: sums.as_mut().and_then(Iterator::next) })
        .collect();
    // Kernels sum what they have stored.
    let rounded = call.z.as_ref().is_some_and(Tensor::is_rounded);
    parallel::for_slots(&mut parts, dy.len(), |part| {
        if let Some(sum) = &mut part.sum {
            sum.fill(T::Float::ZERO);
        }
        for (row, dy) in part.dy.chunks_exact(n).enumerate() {
            let row = match &mut part.dz {
                Some(dz) => {
                    let dz = &mut dz[row * n..][..n];
                    match activation {
                        Activation::None => dz.copy_from_slice(dy),
                        Activation::Gelu => bend(dz, dy, host::activation::gelu_derivative),
                        Activation::Silu => bend(dz, dy, host::activation::silu_derivative),
                    }
                    if rounded {
                        dz.iter_mut()
                            .for_each(|d| *d = T::of(Float::from_f64(bf16::from_f64(d.get().to_f64()).to_f64())));
                    }
                    &*dz
                }
                None => dy,
            };
            if let Some(sum) = &mut part.sum {
                vector::map(sum, row, Accumulate::Add, |d| d);
            }
        }
    });
    if let Some(BiasSum { to, partial }) = bias {
        vector::column_sums(to.host_mut::<T::Float>(), partial.host::<T::Float>(), to.mode);
    }
}

/// z becomes dy · derivative(z).
#[inline(always)]
fn bend<T: Held>(z: &mut [T], dy: &[T], derivative: impl Fn(T::Float) -> T::Float) {
    vector::dispatch(
        #[inline(always)]
        || z.iter_mut().zip(dy).for_each(|(z, &dy)| *z = T::of(dy.get() * derivative(z.get()))),
    );
}

pub(super) fn input_backward<T: Factor>(Sizes { m, n, k }: Sizes, dz: &Tensor, weight: &Tensor, dx: &Destination) {
    product::linear_backward_input(dx.host_mut::<T>(), dz.host(), weight.host(), (m, n, k), dx.mode);
}

pub(super) fn weight_backward<T: Factor>(
    Sizes { m, n, k }: Sizes,
    _partial: Option<&Tensor>,
    dz: &Tensor,
    x: &Tensor,
    dw: &Destination,
    _db: Option<&Destination>,
) {
    product::linear_backward_weight(dw.host_mut::<T::Float>(), dz.host::<T>(), x.host(), (m, n, k), dw.mode);
}

/// The bias's gradient alone: [`activation_backward`] has made it.
pub(super) fn bias_backward<T: Held>(_sizes: Sizes, _partial: Option<&Tensor>, dz: &Tensor, db: &Destination) {
    vector::column_sums(db.host_mut::<T::Float>(), dz.host::<T>(), db.mode);
}
