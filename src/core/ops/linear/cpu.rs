//! The linear layer on the CPU: products with bias, activation or gate, and residual applied while a row is in the cache.

use half::bf16;

use super::gate::GateBackward;
use super::{Activation, BiasSum, Call, Operands, ROWS_PER_PART, Sizes};
use crate::ops::host::held::write_alone;
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
    let gate = call.gated.as_ref().map(|gated| (gated.sizes, gated.matrix.host::<T>()));
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
        if let Some((gate, matrix)) = gate {
            let factors = &gate.columns(matrix, row / gate.rows_per_sample, n)[first..][..values.len()];
            bend(values, factors, |z| z);
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

/// z becomes factor · f(z).
#[inline(always)]
fn bend<T: Float, Z: Held<Float = T>, A: Held<Float = T>>(z: &mut [Z], factors: &[A], f: impl Fn(T) -> T) {
    vector::dispatch(
        #[inline(always)]
        || z.iter_mut().zip(factors).for_each(|(z, &factor)| *z = Z::of(factor.get() * f(z.get()))),
    );
}

/// One sample's part of the gradients behind a gate.
struct Sample<'a, T> {
    number: usize,
    dz: Option<&'a mut [T]>,
    dmodulation: Option<&'a mut [T]>,
}

pub(super) fn gate_backward<T: Held>(call: &GateBackward, dy: &Tensor) {
    let GateBackward { sizes: Sizes { m, n, .. }, gate, matrix, ref z, dz, ref dmodulation } = *call;
    let len = gate.rows_per_sample * n;
    let (dy, matrix, z) = (dy.host::<T>(), matrix.host::<T>(), z.as_ref().map(Tensor::host::<T>));
    let mut dz_of = dz.map(|dz| dz.host_mut::<T>().chunks_exact_mut(len));
    let mut sums_of = dmodulation.as_ref().map(|dm| dm.host_mut::<T>().chunks_exact_mut(gate.stride));
    let mut samples: Vec<Sample<T>> = (0..m / gate.rows_per_sample)
        .map(|number| Sample {
            number,
            dz: dz_of.as_mut().and_then(Iterator::next),
            dmodulation: sums_of.as_mut().and_then(Iterator::next),
        })
        .collect();
    parallel::for_slots(&mut samples, dy.len(), |sample| {
        let at = sample.number * len;
        let dy = &dy[at..][..len];
        if let Some(dz) = &mut sample.dz {
            let factors = gate.columns(matrix, sample.number, n);
            for (dz, dy) in dz.chunks_exact_mut(n).zip(dy.chunks_exact(n)) {
                vector::map2(dz, factors, dy, Accumulate::Write, |g, d| g * d);
            }
        }
        if let (Some(dmodulation), Some(z)) = (&mut sample.dmodulation, z) {
            write_alone(&mut dmodulation[gate.column..][..n], true, |sums| {
                for (dy, z) in dy.chunks_exact(n).zip(z[at..][..len].chunks_exact(n)) {
                    vector::dispatch(
                        #[inline(always)]
                        || {
                            for ((sum, &d), &z) in sums.iter_mut().zip(dy).zip(z) {
                                *sum = d.get().mul_add(z.get(), *sum);
                            }
                        },
                    );
                }
            });
        }
    });
    if let Some(dz) = dz {
        dz.round_declared();
    }
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
