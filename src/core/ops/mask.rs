//! Which elements dropout keeps: what [`dropout`](super::dropout) and the ops that end in it share.
//!
//! Element e of item b is kept where uniform number e mod 4 of Philox's call (e / 4, item = `control.first_item` + b,
//! step = `control.step`, purpose [`Dropout`](crate::rng::Purpose::Dropout) + 256 · layer) is at least p. So the mask depends
//! neither on an item's place in the batch nor on the device, nor on the op that applies it. On the CPU masks of 64 elements are drawn at
//! a time, sixteen Philox calls side by side.

use super::control::Control;
use super::host::{Float, Held, parallel, vector};
use crate::error::{Error, Result};
use crate::rng::{Purpose, philox4x32_10, uniform};
use crate::tensor::Tensor;

/// Philox calls side by side.
const WIDTH: usize = 16;
/// Elements of a task; a multiple of four, so that a task begins with a call of its own.
const TASK: usize = 1 << 13;

/// Which mask is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// With which an element is dropped; the others are divided by 1 − it.
    pub(super) probability: f32,
    pub(super) seed: u64,
    /// The last word of Philox's counter.
    pub(super) purpose: u32,
}

impl Mask {
    /// One that drops with `probability` (below 1); `layer` (below 2²⁴) numbers the masks of one model.
    ///
    /// # Errors
    /// [`Error::Shape`] for a probability outside [0, 1) or too large a layer.
    pub fn new(probability: f32, seed: u64, layer: u32) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) || layer >> 24 != 0 {
            let message = format!("probability {probability} in layer {layer}; below 1 and below 2^24");
            return Err(Error::shape("dropout", message));
        }
        Ok(Self { probability, seed, purpose: Purpose::Dropout as u32 | layer << 8 })
    }

    /// The factor of the elements that are kept.
    pub(super) fn scale(self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// The least of Philox's words whose uniform number is at least the probability. That number is (2 (word >> 9) + 1) / 2²⁴.
    pub(super) fn least(self) -> u32 {
        let cells = (f64::from(self.probability) * f64::from(1 << 24) - 1.0) / 2.0;
        (cells.ceil().max(0.0) as u32) << 9
    }

    /// `to` = keep · `from` / (1 − p), or `+=`; items of `elements`.
    pub(super) fn apply<E: Held>(self, control: &Tensor, elements: usize, from: &[E], to: &mut [E], add: bool) {
        let work = to.len();
        // Tasks are pieces of one item, whatever the items' size.
        let mut tasks: Vec<_> = (to.chunks_exact_mut(elements).enumerate())
            .flat_map(|(b, to)| {
                let pieces = to.chunks_mut(TASK).enumerate();
                pieces.map(move |(piece, to)| (b, piece * TASK, b * elements + piece * TASK, to))
            })
            .collect();
        let control = Control::from_words(control.host());
        parallel::for_slots(&mut tasks, work, |(b, first, at, to)| {
            self.apply_piece(&control, *b, *first, Some(&from[*at..][..to.len()]), to, add);
        });
    }

    /// The same for elements of item `b` from `first` on, a multiple of 4; without `from`, of what is there.
    pub(super) fn apply_piece<A: Held<Float = D::Float>, D: Held>(
        self,
        control: &Control,
        b: usize,
        first: usize,
        from: Option<&[A]>,
        to: &mut [D],
        add: bool,
    ) {
        let scale = D::Float::ONE / (D::Float::ONE - D::Float::from_f32(self.probability));
        let item = control.first_item.wrapping_add(b as u32);
        vector::dispatch(
            #[inline(always)]
            || {
                for (piece, to) in to.chunks_mut(4 * WIDTH).enumerate() {
                    let factors = self.factors([(first / 4 + piece * WIDTH) as u32, item, control.step], scale);
                    // Selected, not multiplied: what is dropped is zero even where it was infinite.
                    let kept =
                        |x: D::Float, factor: D::Float| if factor > Float::ZERO { x * factor } else { Float::ZERO };
                    match from {
                        None => {
                            to.iter_mut().zip(&factors).for_each(|(to, &factor)| *to = D::of(kept(to.get(), factor)))
                        }
                        Some(from) => {
                            let from = from[piece * 4 * WIDTH..].iter().zip(&factors);
                            for (to, (&x, &factor)) in to.iter_mut().zip(from) {
                                *to = D::of(kept(x.get(), factor) + if add { to.get() } else { Float::ZERO });
                            }
                        }
                    }
                }
            },
        );
    }

    /// `scale` or zero for the elements of 16 calls from `block` on.
    #[inline(always)]
    fn factors<T: Float>(self, [block, item, step]: [u32; 3], scale: T) -> [T; 4 * WIDTH] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let mut columns = [[T::ZERO; WIDTH]; 4];
        #[allow(clippy::needless_range_loop)] // lanes of four columns at once: this form vectorises
        for l in 0..WIDTH {
            let bits = philox4x32_10([block.wrapping_add(l as u32), item, step, self.purpose], key);
            for i in 0..4 {
                columns[i][l] = if uniform(bits[i]) >= self.probability { scale } else { T::ZERO };
            }
        }
        let mut factors = [T::ZERO; 4 * WIDTH];
        (0..4 * WIDTH).for_each(|e| factors[e] = columns[e % 4][e / 4]);
        factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_word_is_where_the_uniform_number_reaches_the_probability() {
        for probability in
            [0.0, 1e-8, 6e-8, 0.01, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0 - f32::EPSILON, 1.0 - f32::EPSILON / 2.0]
        {
            let least = Mask::new(probability, 1, 2).unwrap().least();
            for word in [0, least.saturating_sub(1), least, least.saturating_add(1 << 9), u32::MAX] {
                assert_eq!(word >= least, uniform(word) >= probability, "{probability} {word:x} {least:x}");
            }
        }
        assert!(
            Mask::new(1.0, 1, 0).is_err() && Mask::new(f32::NAN, 1, 0).is_err() && Mask::new(0.5, 1, 1 << 24).is_err()
        );
    }
}
