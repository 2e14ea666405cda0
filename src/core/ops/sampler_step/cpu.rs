//! Sampling on the CPU: rows in parallel.

use super::{Row, STAGE_WORDS, SamplerState};
use crate::ops::host::normal::fill_normal_as;
use crate::ops::host::{Float, parallel, vector};
use crate::rng::{Philox, Purpose};
use crate::tensor::Tensor;

const BASE_IS_SAVED: u32 = 1;
const USES_SAVED: u32 = 2;
const NEEDS_NOISE: u32 = 4;
const SAVES_STATE: u32 = 8;
const SAVES: u32 = 16;

impl Row {
    fn has(&self, flag: u32) -> bool {
        self.stage[STAGE_WORDS - 1] & flag != 0
    }

    fn fill_normal<T: Float>(&self, x: &mut [T]) {
        let seed = u64::from(self.seed[1]) << 32 | u64::from(self.seed[0]);
        fill_normal_as(x, Philox::new(seed), self.item, self.step, Purpose::Noise);
    }
}

/// The rows of a table.
fn rows(table: &Tensor) -> &[Row] {
    bytemuck::cast_slice(table.host::<u32>())
}

/// A row that owns an image, with its part of every buffer.
struct Owner<'a, T> {
    row: &'a Row,
    x: &'a mut [T],
    /// The partner's state and prediction.
    twin: Option<(&'a mut [T], &'a [T])>,
    conditional: &'a [T],
    saved_state: Option<&'a mut [T]>,
    saved: Option<&'a mut [T]>,
}

/// The rows of a buffer, none where it is not there.
fn parts<T: Float>(tensor: Option<&Tensor>, rows: usize, elements: usize) -> Vec<Option<&mut [T]>> {
    match tensor {
        Some(tensor) => tensor.host_mut::<T>().chunks_exact_mut(elements).map(Some).collect(),
        None => (0..rows).map(|_| None).collect(),
    }
}

/// The rows of `x` with `flag`, each with its number, and with its partner's number and part where it has one.
type Claimed<'a, T> = Vec<(usize, &'a mut [T], Option<(usize, &'a mut [T])>)>;

fn claim<'a, T>(x: &'a mut [T], elements: usize, rows: &[Row], flag: u32) -> Claimed<'a, T> {
    let mut parts: Vec<Option<&mut [T]>> = x.chunks_exact_mut(elements).map(Some).collect();
    let mut claimed = Vec::with_capacity(rows.len());
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| row.has(flag)) {
        let partner = (row.partner as usize).min(rows.len() - 1);
        let Some(own) = parts[number].take() else { continue };
        let twin = if partner == number { None } else { parts[partner].take().map(|twin| (partner, twin)) };
        claimed.push((number, own, twin));
    }
    claimed
}

pub(super) fn fill_noise<T: Float>(x: &Tensor, table: &Tensor) {
    let (rows, elements) = (rows(table), x.len() / x.sizes()[0]);
    let mut beginning = claim(x.host_mut::<T>(), elements, rows, Row::BEGINS);
    let work = beginning.len() * elements;
    parallel::for_slots(&mut beginning, work, |(number, x, twin)| {
        let row = &rows[*number];
        row.fill_normal(x);
        x.iter_mut().for_each(|x| *x *= T::from_f32(row.scale));
        if let Some((_, twin)) = twin {
            twin.copy_from_slice(x);
        }
    });
}

pub(super) fn time<T: Float>(time: &Tensor, table: &Tensor) {
    for (time, row) in time.host_mut::<T>().iter_mut().zip(rows(table)) {
        *time = T::from_f32(f32::from_bits(row.stage[0]));
    }
}

pub(super) fn advance<T: Float>(state: &SamplerState, table: &Tensor) {
    let (rows, elements) = (rows(table), state.x.len() / state.x.sizes()[0]);
    let prediction = state.prediction.host::<T>();
    let predicted = |number: usize| &prediction[number * elements..][..elements];
    let parts = |tensor| parts::<T>(tensor, rows.len(), elements);
    let (mut saved_state, mut saved) = (parts(state.saved_state), parts(state.saved));
    let claimed = claim(state.x.host_mut::<T>(), elements, rows, Row::OWNS);
    let mut owners: Vec<Owner<T>> = claimed
        .into_iter()
        .map(|(number, x, twin)| Owner {
            row: &rows[number],
            x,
            twin: twin.map(|(partner, x)| (x, predicted(partner))),
            conditional: predicted(number),
            saved_state: saved_state[number].take(),
            saved: saved[number].take(),
        })
        .collect();
    let work = owners.len() * elements;
    parallel::for_slots(&mut owners, work, |owner| {
        T::with_scratch(3 * elements, |scratch| {
            let (noise, rest) = scratch.split_at_mut(elements);
            if owner.row.has(NEEDS_NOISE) {
                owner.row.fill_normal(noise);
            }
            // A buffer that is not there: NaN shows where a stage reads it.
            rest.fill(T::from_f32(f32::NAN));
            let (state, combination) = rest.split_at_mut(elements);
            let state = owner.saved_state.as_deref_mut().unwrap_or(state);
            let combination = owner.saved.as_deref_mut().unwrap_or(combination);
            let unconditional = owner.twin.as_ref().map(|(_, prediction)| *prediction);
            update(&owner.row.stage, owner.x, owner.conditional, unconditional, state, combination, noise);
        });
        if let Some((twin, _)) = &mut owner.twin {
            twin.copy_from_slice(owner.x);
        }
    });
}

/// The update of one item, in the order of operations that `diffusion`'s samplers state.
fn update<T: Float>(
    words: &[u32; STAGE_WORDS],
    x: &mut [T],
    conditional: &[T],
    unconditional: Option<&[T]>,
    saved_state: &mut [T],
    saved: &mut [T],
    noise: &[T],
) {
    let flags = words[STAGE_WORDS - 1];
    let has = |flag: u32| flags & flag != 0;
    let [_, guidance, x0_x, x0_pred, eps_x, eps_pred, eps_clip, clip, rest @ ..] =
        words.map(|word| T::from_f32(f32::from_bits(word)));
    let [next_base, next_x0, next_eps, next_saved, next_noise, save_x0, save_eps, _] = rest;
    let without = T::ONE - guidance;
    let (guided, unconditional) = (unconditional.is_some(), unconditional.unwrap_or(conditional));
    let n = x.len();
    vector::dispatch(
        #[inline(always)]
        || {
            let (conditional, unconditional, noise) = (&conditional[..n], &unconditional[..n], &noise[..n]);
            let (saved_state, saved) = (&mut saved_state[..n], &mut saved[..n]);
            for i in 0..n {
                let (state, uncond) = (x[i], unconditional[i]);
                let pred = if guided { guidance.mul_add(conditional[i], without * uncond) } else { conditional[i] };
                let raw = x0_x * state + x0_pred * pred;
                // Comparisons, so that NaN passes.
                let x0 = if raw > clip { clip } else { raw };
                let x0 = if raw < -clip { -clip } else { x0 };
                let eps = eps_x * state + eps_pred * pred + eps_clip * (x0 - raw);
                let base = if has(BASE_IS_SAVED) { saved_state[i] } else { state };
                let mut next = next_base * base + next_x0 * x0 + next_eps * eps;
                if has(USES_SAVED) {
                    next += next_saved * saved[i];
                }
                if has(NEEDS_NOISE) {
                    next += next_noise * noise[i];
                }
                if has(SAVES_STATE) {
                    saved_state[i] = state;
                }
                if has(SAVES) {
                    saved[i] = save_x0 * x0 + save_eps * eps;
                }
                x[i] = next;
            }
        },
    );
}

pub(super) fn pixels<T: Float>(x: &Tensor, pixels: &Tensor) {
    let x = x.host::<T>();
    parallel::for_row_blocks(pixels.host_mut::<u8>(), 1, parallel::GRAIN, |first, pixels| {
        let x = &x[first..][..pixels.len()];
        vector::dispatch(
            #[inline(always)]
            || {
                for (pixel, &x) in pixels.iter_mut().zip(x) {
                    // In this order NaN becomes black, as on accelerators.
                    let value = if x > -T::ONE { x } else { -T::ONE };
                    let value = if value < T::ONE { value } else { T::ONE };
                    *pixel = ((value + T::ONE) * T::from_f64(127.5) + T::from_f64(0.5)).to_f32() as u8;
                }
            },
        );
    });
}
