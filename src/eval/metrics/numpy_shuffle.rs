//! NumPy's legacy shuffle: `RandomState(seed).permutation(count)`, by which torch-fidelity shuffles images for the Inception Score.

use rand_mt::Mt;

/// A uniform number from 0 to `most`, by rejection, as NumPy's legacy generator draws it.
fn up_to(random: &mut Mt, most: u32) -> u32 {
    let mask = most.checked_ilog2().map_or(0, |bits| u32::MAX >> (31 - bits));
    loop {
        let word = random.next_u32() & mask;
        if word <= most {
            return word;
        }
    }
}

/// `numpy.random.RandomState(seed).permutation(count)`.
pub(super) fn permutation(seed: u32, count: usize) -> Vec<usize> {
    let mut random = Mt::new(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, up_to(&mut random, last as u32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_numpys() {
        assert_eq!(permutation(0, 10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
        assert_eq!(permutation(42, 10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
        let of_torch_fidelity = [6, 9, 12, 4, 5, 14, 1, 2, 15, 10, 19, 18, 7, 16, 13, 11, 17, 3, 8, 0];
        assert_eq!(permutation(2020, 20), of_torch_fidelity);
        assert_eq!((permutation(1, 1), permutation(1, 0)), (vec![0], vec![]));
    }
}
