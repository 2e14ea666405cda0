//! Stateless random numbers: Philox4x32-10 and a keyed permutation, with the same bits on every device.
//!
//! A number is a pure function of the 64-bit seed and of its *position* (element, item, step, purpose), so nothing has to be saved
//! for an exact resume, and sample `k` of seed `s` is the same for any batch size, number of threads and number of devices.
//! Everything here is 32-bit integer arithmetic followed by one exact conversion; `kernels/common` has the same code.
//!
//! Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits of a 128-bit counter and a 64-bit key.
///
/// ```
/// // The first of Random123's known answers.
/// assert_eq!(engine_core::rng::philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
/// ```
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
    }
    [c0, c1, c2, c3]
}

/// The purpose of a random number: the last word of the counter, so that two uses never share a number.
///
/// Checkpoints and kernels depend on the values: never renumber them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// The Gaussian noise of a training step or a sampler.
    Noise = 0,
    /// The diffusion time of a training example.
    Timestep = 1,
    /// Whether an example's label is replaced by the null label.
    LabelDropout = 2,
    /// Whether an example is mirrored.
    Flip = 3,
    /// The order of an epoch (see [`permute`]).
    Epoch = 4,
    /// Initial values of parameters.
    Initialisation = 5,
    /// The built-in procedural data set.
    Shapes = 6,
    /// Which examples of an unsplit data set are held out.
    Split = 7,
    /// Dropout inside a model.
    Dropout = 8,
    /// Test inputs and finite-difference cotangents.
    Probe = 9,
    /// The random shift of an example.
    Crop = 10,
}

/// A uniform number in the open interval (0, 1): the upper 23 bits, centred in their cells.
///
/// `(bits >> 9) * 2^-23 + 2^-24` is exact in `f32`, so it needs no rounding and is never 0 or 1. (With 24 bits the largest value
/// would round to 1, and an index computed from it would be out of bounds.)
#[inline]
pub fn uniform(bits: u32) -> f32 {
    const CELL: f32 = 1.0 / (1 << 23) as f32;
    (bits >> 9) as f32 * CELL + 0.5 * CELL
}

/// The random numbers of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    /// The key: its low word first.
    pub seed: u64,
}

impl Philox {
    /// The random numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// 128 random bits of the counter `(element_block, item, step, purpose)`.
    ///
    /// `element_block` is the element's index divided by four: a call serves elements `4 * element_block ..+ 4`.
    /// `item` is the example's or the sample's own index, never its place in a batch.
    #[inline]
    pub fn bits4(&self, element_block: u32, item: u32, step: u32, purpose: Purpose) -> [u32; 4] {
        philox4x32_10([element_block, item, step, purpose as u32], [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Four [`uniform`] numbers in (0, 1); the arguments are those of [`Philox::bits4`].
    #[inline]
    pub fn uniform4(&self, element_block: u32, item: u32, step: u32, purpose: Purpose) -> [f32; 4] {
        self.bits4(element_block, item, step, purpose).map(uniform)
    }
}

/// Number of Feistel rounds of [`permute`].
const ROUNDS: usize = 8;

/// The place of `index` in the shuffled order of `len` items: a bijection of `0..len` for each `(seed, epoch)`.
///
/// No table is needed: a thread computes the example of its own place. A balanced Feistel network of eight rounds permutes the
/// smallest domain of `2^(2h)` ≥ `len` numbers, h ≥ 1, and is applied until its value is below `len` (cycle walking; fewer than
/// four times on average). Exactly, in 32-bit unsigned arithmetic:
///
/// ```text
/// k[0..4] = philox4x32_10(counter = (0, 0, epoch, Purpose::Epoch), key = (low, high word of seed))
/// k[4..8] = philox4x32_10(counter = (1, 0, epoch, Purpose::Epoch), key = (low, high word of seed))
/// h = 1; while (h < 16 && (1 << 2h) < len) h += 1;        mask = (1 << h) - 1
/// x = index
/// do {
///     l = x >> h;  r = x & mask
///     for i in 0..8 { (l, r) = (r, l ^ (mix(r ^ k[i]) & mask)) }
///     x = l << h | r
/// } while (x >= len)
/// mix(v): v ^= v >> 16; v *= 0x85ebca6b; v ^= v >> 13; v *= 0xc2b2ae35; v ^= v >> 16     (MurmurHash3's finaliser)
/// ```
///
/// # Panics
///
/// If `index` is not below `len`, for which the walk might not end.
#[inline]
pub fn permute(index: u32, len: u32, seed: u64, epoch: u32) -> u32 {
    Permutation::new(len, seed, epoch).apply(index)
}

/// [`permute`] with precomputed round keys, for many places of one epoch.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u32,
    half_bits: u32,
    keys: [u32; ROUNDS],
}

impl Permutation {
    /// The order of `len` items in `epoch` of `seed`.
    pub fn new(len: u32, seed: u64, epoch: u32) -> Self {
        let philox = Philox::new(seed);
        let mut keys = [0; ROUNDS];
        for (block, keys) in keys.chunks_exact_mut(4).enumerate() {
            keys.copy_from_slice(&philox.bits4(block as u32, 0, epoch, Purpose::Epoch));
        }
        let mut half_bits = 1;
        while half_bits < 16 && (1u32 << (2 * half_bits)) < len {
            half_bits += 1;
        }
        Self { len, half_bits, keys }
    }

    /// The place of `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below the number of items.
    #[inline]
    pub fn apply(&self, index: u32) -> u32 {
        assert!(index < self.len, "index {index} of {} items", self.len);
        let mask = (1 << self.half_bits) - 1;
        let mut x = index;
        loop {
            let (mut l, mut r) = (x >> self.half_bits, x & mask);
            for key in self.keys {
                (l, r) = (r, l ^ (mix(r ^ key) & mask));
            }
            x = l << self.half_bits | r;
            if x < self.len {
                return x;
            }
        }
    }
}

/// MurmurHash3's finaliser: a bijection in which each input bit flips half of the output bits.
#[inline]
fn mix(mut v: u32) -> u32 {
    v ^= v >> 16;
    v = v.wrapping_mul(0x85EB_CA6B);
    v ^= v >> 13;
    v = v.wrapping_mul(0xC2B2_AE35);
    v ^ v >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random123_known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([ones; 4], [ones; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (pi, [0xa4093822, 0x299f31d0], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32_10(counter, key), answer, "counter {counter:x?} key {key:x?}");
        }
    }

    #[test]
    fn the_counter_and_the_key_are_where_they_should_be() {
        let seed = 0x299f31d0_a4093822;
        assert_eq!(
            Philox::new(seed).bits4(1, 2, 3, Purpose::Shapes),
            philox4x32_10([1, 2, 3, 6], [0xa4093822, 0x299f31d0])
        );
    }

    #[test]
    fn uniform_numbers_are_exact_and_inside_the_open_interval() {
        for bits in [0, 1, 511, 512, 1 << 31, u32::MAX - 512, u32::MAX] {
            let exact = f64::from(bits >> 9) / f64::from(1 << 23) + 1.0 / f64::from(1 << 24);
            assert_eq!(f64::from(uniform(bits)), exact);
            assert!(exact > 0.0 && exact < 1.0);
        }
        let philox = Philox::new(7);
        let mean: f64 =
            (0..25_000).flat_map(|block| philox.uniform4(block, 0, 0, Purpose::Probe)).map(f64::from).sum::<f64>()
                / 1e5;
        // Standard deviation of the mean: sqrt(1/12 / 1e5) = 9e-4.
        assert!((mean - 0.5).abs() < 4e-3, "{mean}");
    }

    #[test]
    fn a_permutation_is_a_bijection() {
        for len in (1..70).chain([100, 255, 256, 257, 1000, 4095, 4097, 50_000, 65_536, 65_537]) {
            for (seed, epoch) in [(0, 0), (1, 0), (u64::MAX, 3)] {
                let permutation = Permutation::new(len, seed, epoch);
                let mut seen = vec![false; len as usize];
                for index in 0..len {
                    let place = permutation.apply(index);
                    assert!(!std::mem::replace(&mut seen[place as usize], true), "{place} twice of {len}");
                }
            }
        }
        for len in [u32::MAX, u32::MAX - 1, 1 << 31] {
            assert!(permute(len - 1, len, 5, 0) < len);
        }
    }

    /// Expected values from an independent implementation in Python.
    #[test]
    fn a_permutation_is_the_documented_one() {
        let places: Vec<u32> = (0..8).map(|index| permute(index, 1000, 42, 3)).collect();
        assert_eq!(places, [686, 553, 276, 903, 737, 29, 250, 834]);
        assert_eq!(permute(49_999, 50_000, u64::MAX, 0), 41_861);
    }

    #[test]
    fn every_item_comes_first_equally_often() {
        let (len, epochs) = (10, 20_000);
        for index in [0, 1, 9] {
            let mut count = [0f64; 10];
            for epoch in 0..epochs {
                count[permute(index, len, 42, epoch) as usize] += 1.0;
            }
            let expected = f64::from(epochs) / f64::from(len);
            let chi2: f64 = count.iter().map(|c| (c - expected).powi(2) / expected).sum();
            // Nine degrees of freedom: beyond 33 once in ten thousand.
            assert!(chi2 < 33.0, "index {index}: chi2 {chi2}");
        }
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        let len = 50_000;
        let permutation = Permutation::new(len, 1, 0);
        let close = (0..len - 1).filter(|&i| permutation.apply(i).abs_diff(permutation.apply(i + 1)) <= 50).count();
        // 2 * 50 / 50,000 of them by chance: 100 ± 10.
        assert!((50..150).contains(&close), "{close}");
        let fixed = (0..len).filter(|&i| permute(i, len, 1, 1) == permutation.apply(i)).count();
        assert!(fixed < 10, "{fixed} items in the same place in two epochs");
    }

    #[test]
    #[should_panic(expected = "index 5 of 5 items")]
    fn an_index_out_of_range_panics() {
        permute(5, 5, 0, 0);
    }
}
