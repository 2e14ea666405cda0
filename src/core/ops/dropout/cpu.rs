//! Dropout on the CPU: masks of 64 elements at a time, sixteen Philox calls side by side.

use super::Mask;
use crate::ops::control::Control;
use crate::ops::host::{Float, parallel, vector};
use crate::rng::{philox4x32_10, uniform};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

/// Philox calls side by side.
const WIDTH: usize = 16;
/// Elements of a task; a multiple of four, so that a task begins with a call of its own.
const TASK: usize = 1 << 13;

pub(super) fn apply<T: Float>(mask: Mask, from: &Tensor, control: &Tensor, to: &Destination) {
    let control = Control::from_words(control.host());
    let elements = from.len() / from.sizes()[0];
    let scale = T::ONE / (T::ONE - T::from_f32(mask.probability));
    let key = [mask.seed as u32, (mask.seed >> 32) as u32];
    let add = to.mode == Accumulate::Add;
    // Tasks are pieces of one item, whatever the items' size.
    let from = from.host::<T>().chunks_exact(elements).enumerate();
    let mut tasks: Vec<_> = (to.host_mut::<T>().chunks_exact_mut(elements).zip(from))
        .flat_map(|(to, (b, from))| {
            let pieces = to.chunks_mut(TASK).zip(from.chunks(TASK)).enumerate();
            pieces.map(move |(piece, (to, from))| (b as u32, (piece * TASK / 4) as u32, to, from))
        })
        .collect();
    let work: usize = tasks.iter().map(|(.., from)| from.len()).sum();
    parallel::for_slots(&mut tasks, work, |(b, first, to, from)| {
        let item = control.first_item.wrapping_add(*b);
        vector::dispatch(
            #[inline(always)]
            || {
                let chunks = to.chunks_mut(4 * WIDTH).zip(from.chunks(4 * WIDTH));
                for ((to, from), block) in chunks.zip((*first..).step_by(WIDTH)) {
                    let mut columns = [[T::ZERO; WIDTH]; 4];
                    #[allow(clippy::needless_range_loop)] // lanes of four columns at once: this form vectorises
                    for l in 0..WIDTH {
                        let counter = [block.wrapping_add(l as u32), item, control.step, mask.purpose];
                        let bits = philox4x32_10(counter, key);
                        for i in 0..4 {
                            columns[i][l] = if uniform(bits[i]) >= mask.probability { scale } else { T::ZERO };
                        }
                    }
                    let mut factors = [T::ZERO; 4 * WIDTH];
                    (0..4 * WIDTH).for_each(|e| factors[e] = columns[e % 4][e / 4]);
                    // Selected, not multiplied: what is dropped is zero even where it was infinite.
                    let kept = |x: T, factor: T| if factor > T::ZERO { x * factor } else { T::ZERO };
                    for ((to, &x), &factor) in to.iter_mut().zip(from.iter()).zip(&factors) {
                        *to = kept(x, factor) + if add { *to } else { T::ZERO };
                    }
                }
            },
        );
    });
}
