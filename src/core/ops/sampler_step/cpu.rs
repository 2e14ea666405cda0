//! Sampling on the CPU: items in parallel.

use super::{STAGE_WORDS, SamplerState};
use crate::ops::control::Control;
use crate::ops::host::normal::fill_normal_as;
use crate::ops::host::{Float, parallel, vector};
use crate::rng::{Philox, Purpose};
use crate::tensor::Tensor;

const BASE_IS_SAVED: u32 = 1;
const USES_SAVED: u32 = 2;
const NEEDS_NOISE: u32 = 4;
const SAVES_STATE: u32 = 8;
const SAVES: u32 = 16;

/// The number of the row that this step uses, and its words.
fn stage(table: &Tensor, control: &Control) -> (u32, [u32; STAGE_WORDS]) {
    let (rows, _) = table.host::<u32>().as_chunks();
    let row = (control.row as usize).min(rows.len() - 1);
    (row as u32, rows[row])
}

/// Copies the first `len` elements over the rest, which is as many several times.
fn repeat<T: Copy>(x: &mut [T], len: usize) {
    let (first, rest) = x.split_at_mut(len);
    rest.chunks_exact_mut(len).for_each(|copy| copy.copy_from_slice(first));
}

pub(super) fn fill_noise<T: Float>(x: &Tensor, batch: usize, control: &Tensor, seed: u64, scale: f32) {
    let control = Control::from_words(control.host());
    let elements = x.len() / x.sizes()[0];
    let x = x.host_mut::<T>();
    parallel::for_rows(&mut x[..batch * elements], elements, |b, x| {
        fill_normal_as(x, Philox::new(seed), control.first_item.wrapping_add(b as u32), 0, Purpose::Noise);
        x.iter_mut().for_each(|x| *x *= T::from_f32(scale));
    });
    repeat(x, batch * elements);
}

pub(super) fn time<T: Float>(time: &Tensor, table: &Tensor, control: &Tensor) {
    let (_, words) = stage(table, &Control::from_words(control.host()));
    time.host_mut::<T>().fill(T::from_f32(f32::from_bits(words[0])));
}

/// One item's part of every buffer.
struct Item<'a, T> {
    number: usize,
    x: &'a mut [T],
    conditional: &'a [T],
    unconditional: Option<&'a [T]>,
    saved_state: Option<&'a mut [T]>,
    saved: Option<&'a mut [T]>,
}

pub(super) fn advance<T: Float>(state: &SamplerState, table: &Tensor, control: &Tensor, seed: u64) {
    let control = Control::from_words(control.host());
    let (row, words) = stage(table, &control);
    let (len, elements) = (state.x.len() / state.copies, state.x.len() / state.x.sizes()[0]);
    let x = state.x.host_mut::<T>();
    let (conditional, unconditional) = state.prediction.host::<T>().split_at(len);
    let mut unconditional = unconditional.chunks_exact(elements);
    let mut saved_state = state.saved_state.map(|tensor| tensor.host_mut::<T>().chunks_exact_mut(elements));
    let mut saved = state.saved.map(|tensor| tensor.host_mut::<T>().chunks_exact_mut(elements));
    let items = x[..len].chunks_exact_mut(elements).zip(conditional.chunks_exact(elements)).enumerate();
    let mut items: Vec<Item<T>> = items
        .map(|(number, (x, conditional))| Item {
            number,
            x,
            conditional,
            unconditional: unconditional.next(),
            saved_state: saved_state.as_mut().and_then(Iterator::next),
            saved: saved.as_mut().and_then(Iterator::next),
        })
        .collect();
    parallel::for_slots(&mut items, len, |item| {
        T::with_scratch(3 * elements, |scratch| {
            let (noise, rest) = scratch.split_at_mut(elements);
            if words[STAGE_WORDS - 1] & NEEDS_NOISE != 0 {
                let number = control.first_item.wrapping_add(item.number as u32);
                fill_normal_as(noise, Philox::new(seed), number, row + 1, Purpose::Noise);
            }
            // A buffer that is not there: NaN shows where a stage reads it.
            rest.fill(T::from_f32(f32::NAN));
            let (state, combination) = rest.split_at_mut(elements);
            let state = item.saved_state.as_deref_mut().unwrap_or(state);
            let combination = item.saved.as_deref_mut().unwrap_or(combination);
            update(&words, item.x, item.conditional, item.unconditional, state, combination, noise);
        });
    });
    repeat(x, len);
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
