//! NumPy's legacy shuffle: `RandomState(seed).permutation(count)`, by which torch-fidelity shuffles images for the Inception Score.

/// Words of the state.
const WORDS: usize = 624;

/// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998).
struct Mersenne {
    state: [u32; WORDS],
    next: usize,
}

impl Mersenne {
    /// As the authors' `init_genrand`.
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for at in 1..WORDS {
            let before = state[at - 1];
            state[at] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        Self { state, next: WORDS }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            for at in 0..WORDS {
                let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % WORDS] & 0x7fff_ffff);
                let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[at] = self.state[(at + 397) % WORDS] ^ (joined >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A uniform number from 0 to `most`, by rejection.
    fn up_to(&mut self, most: u32) -> u32 {
        let mask = most.checked_ilog2().map_or(0, |bits| u32::MAX >> (31 - bits));
        loop {
            let word = self.word() & mask;
            if word <= most {
                return word;
            }
        }
    }
}

/// `numpy.random.RandomState(seed).permutation(count)`.
pub(super) fn permutation(seed: u32, count: usize) -> Vec<usize> {
    let mut random = Mersenne::new(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.up_to(last as u32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and the ten-thousandth word of the authors' default seed, which C++ requires of `std::mt19937`.
    #[test]
    fn words_are_the_authors() {
        let mut random = Mersenne::new(5489);
        assert_eq!(random.word(), 3_499_211_612);
        (1..9999).for_each(|_| {
            random.word();
        });
        assert_eq!(random.word(), 4_123_659_995);
    }

    #[test]
    fn permutations_are_numpys() {
        assert_eq!(permutation(0, 10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
        assert_eq!(permutation(42, 10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
        let of_torch_fidelity = [6, 9, 12, 4, 5, 14, 1, 2, 15, 10, 19, 18, 7, 16, 13, 11, 17, 3, 8, 0];
        assert_eq!(permutation(2020, 20), of_torch_fidelity);
        assert_eq!((permutation(1, 1), permutation(1, 0)), (vec![0], vec![]));
    }
}
