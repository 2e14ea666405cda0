//! Sectors and wavefronts of one request. The rules stand in [`super`].

use crate::exec::lanes::{ALL, LANES};

/// Bytes of a sector, as a power of two.
pub const SECTOR_SHIFT: u32 = 5;
/// Bytes that the banks of shared memory deliver in a wavefront: 32 banks of 4.
pub const WAVEFRONT_BYTES: u64 = 128;

/// The different pieces of memory that a request touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Different addresses in rising order, the first so many.
    places: [u64; LANES],
    count: usize,
    bytes: u64,
}

impl Pieces {
    /// Of the lanes in `mask`, at addresses aligned to `bytes`.
    #[inline(always)]
    pub fn of(mask: u32, bytes: u64, addresses: &[u64; LANES]) -> Self {
        if mask == ALL {
            let (mut same, mut rises) = (0, true);
            for lane in 1..LANES {
                same |= addresses[lane] ^ addresses[0];
                rises &= addresses[lane] > addresses[lane - 1];
            }
            if same == 0 {
                let mut places = [0; LANES];
                places[0] = addresses[0];
                return Self { places, count: 1, bytes };
            }
            if rises {
                return Self { places: *addresses, count: LANES, bytes };
            }
        }
        Self::sorted(mask, bytes, addresses)
    }

    #[inline(never)]
    fn sorted(mask: u32, bytes: u64, addresses: &[u64; LANES]) -> Self {
        let mut places = [0; LANES];
        let (mut length, mut rest) = (0, mask);
        while rest != 0 {
            places[length] = addresses[rest.trailing_zeros() as usize];
            length += 1;
            rest &= rest - 1;
        }
        let used = &mut places[..length];
        if !used.is_sorted() {
            used.sort_unstable();
        }
        let mut count = 0;
        for index in 0..length {
            if index == 0 || places[index] != places[count - 1] {
                places[count] = places[index];
                count += 1;
            }
        }
        Self { places, count, bytes }
    }

    /// Different bytes.
    pub fn bytes(&self) -> u64 {
        self.count as u64 * self.bytes
    }

    /// The units of `size` bytes that its different bytes would fill, at least one.
    pub fn least(&self, size: u64) -> u64 {
        self.bytes().div_ceil(size).max(1)
    }

    /// Calls for each sector with its number, and returns how many there are. An aligned piece of up to 32 bytes lies in one.
    #[inline(always)]
    pub fn sectors(&self, mut act: impl FnMut(u64)) -> u64 {
        let (mut count, mut last) = (0, u64::MAX);
        for &place in &self.places[..self.count] {
            let sector = place >> SECTOR_SHIFT;
            if sector != last {
                act(sector);
                count += 1;
                last = sector;
            }
        }
        count
    }
}

/// Wavefronts of a request to shared memory. With `broadcasts`, lanes that want the same word get it together; otherwise (atomics) they
/// take turns.
#[inline(always)]
pub fn wavefronts(mask: u32, bytes: u64, addresses: &[u64; LANES], broadcasts: bool) -> u64 {
    // Pieces of a phase lie in groups of banks: 32 groups of one bank, 16 of two or 8 of four.
    let shift = bytes.max(4).trailing_zeros();
    let lanes = (WAVEFRONT_BYTES >> shift) as usize;
    let mut sum = 0;
    for first in (0..LANES).step_by(lanes) {
        let active = mask >> first & (u32::MAX >> (LANES - lanes));
        if active != 0 {
            sum += phase(active, shift, &addresses[first..first + lanes], broadcasts);
        }
    }
    sum
}

/// The most different pieces in one group of banks.
#[inline(always)]
fn phase(active: u32, shift: u32, addresses: &[u64], broadcasts: bool) -> u64 {
    let groups = addresses.len() as u64 - 1;
    let (mut taken, mut again, mut owner) = (0u32, false, [0u64; LANES]);
    for (lane, &address) in addresses.iter().enumerate() {
        let piece = address >> shift;
        let group = (piece & groups) as usize;
        let used = active >> lane & 1 != 0;
        let free = taken >> group & 1 == 0;
        again |= used && !free && !(broadcasts && owner[group] == piece);
        if used && free {
            taken |= 1 << group;
            owner[group] = piece;
        }
    }
    if again { conflicts(active, shift, addresses, broadcasts) } else { 1 }
}

#[inline(never)]
fn conflicts(active: u32, shift: u32, addresses: &[u64], broadcasts: bool) -> u64 {
    let groups = addresses.len() as u64 - 1;
    let mut counts = [0u64; LANES];
    let is_active = |lane: usize| active >> lane & 1 != 0;
    for lane in (0..addresses.len()).filter(|&lane| is_active(lane)) {
        let piece = addresses[lane] >> shift;
        let known = (0..lane).any(|other| is_active(other) && addresses[other] >> shift == piece);
        counts[(piece & groups) as usize] += u64::from(!(broadcasts && known));
    }
    counts.into_iter().max().unwrap_or(1)
}
