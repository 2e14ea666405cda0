//! The traffic of a step between the second-level cache and memory.
//!
//! The rule, over the tensor arguments of launches, in the order of the step:
//!
//! - a read range hits if it and everything accessed since its last access fit into the cache, else it misses;
//! - written bytes go to memory once, unless the same range is overwritten before the cache's size has been accessed: the earlier
//!   write then never left the cache;
//! - the step is simulated twice and the second pass counts, because steps follow each other.
//!
//! This is a least-recently-used cache of whole ranges. A real one has sets, two halves and its own policy: it keeps somewhat less.

use std::collections::BTreeMap;

/// The accesses of a piece of work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Touch {
    /// `(address, bytes)` that it reads.
    pub reads: Vec<(u64, u64)>,
    /// The share of them that is actually read, 0 to 1: a gather reads few rows of its table.
    pub share: f64,
    /// `(address, bytes)` that it writes.
    pub writes: Vec<(u64, u64)>,
}

/// The traffic of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes read, once each.
    pub read: f64,
    /// Bytes written, once each.
    pub written: f64,
    /// Bytes read from memory.
    pub missed: f64,
    /// Bytes written to memory.
    pub stored: f64,
}

impl Traffic {
    /// Total bytes from and to memory.
    pub fn dram(&self) -> f64 {
        self.missed + self.stored
    }
}

/// An accessed range: its end, its time, and the work whose write is not yet stored.
#[derive(Clone, Copy, Debug)]
struct Range {
    end: u64,
    clock: f64,
    writer: Option<usize>,
}

struct Cache {
    size: f64,
    /// By first address; never overlapping.
    ranges: BTreeMap<u64, Range>,
    /// Bytes accessed so far.
    clock: f64,
}

impl Cache {
    /// Splits ranges at `address`.
    fn cut(&mut self, address: u64) {
        let Some((&start, &range)) = self.ranges.range(..address).next_back() else { return };
        if range.end > address {
            self.ranges.insert(start, Range { end: address, ..range });
            self.ranges.insert(address, range);
        }
    }

    /// The known ranges within one, as `(first, range)`.
    fn within(&mut self, (address, bytes): (u64, u64)) -> Vec<(u64, Range)> {
        self.cut(address);
        self.cut(address + bytes);
        self.ranges.range(address..address + bytes).map(|(&start, &range)| (start, range)).collect()
    }

    /// Whether a range accessed at `start` is still cached after `clock` accessed bytes.
    fn is_near(&self, start: u64, range: &Range, clock: f64) -> bool {
        clock - range.clock + ((range.end - start) as f64) < self.size
    }

    /// Bytes of a range that are not in the cache.
    fn missing(&mut self, range: (u64, u64)) -> f64 {
        let found = self.within(range);
        let near: u64 = found
            .iter()
            .filter(|(start, range)| self.is_near(*start, range, self.clock))
            .map(|(start, r)| r.end - start)
            .sum();
        (range.1 - near) as f64
    }

    /// Accesses a range in work that started when `before` bytes had been accessed.
    fn read(&mut self, (address, bytes): (u64, u64), before: f64) {
        let mut at = address;
        for (start, range) in self.within((address, bytes)) {
            if start > at {
                self.ranges.insert(at, Range { end: start, clock: self.clock, writer: None });
            }
            // Evicted data has been stored, and returns clean.
            let writer = range.writer.filter(|_| self.is_near(start, &range, before));
            self.ranges.insert(start, Range { clock: self.clock, writer, ..range });
            at = range.end;
        }
        if at < address + bytes {
            self.ranges.insert(at, Range { end: address + bytes, clock: self.clock, writer: None });
        }
    }
}

/// The traffic of each piece of work, with a cache of `size` bytes.
pub fn traffic(work: &[Touch], size: u64) -> Vec<Traffic> {
    let mut cache = Cache { size: size as f64, ranges: BTreeMap::new(), clock: 0.0 };
    let mut moved = vec![Traffic::default(); work.len()];
    // Bytes of each piece that are overwritten before they are evicted.
    let mut saved = vec![0.0; work.len()];
    for _ in 0..2 {
        saved.fill(0.0);
        for (number, touch) in work.iter().enumerate() {
            let extent = |ranges: &[(u64, u64)]| ranges.iter().map(|range| range.1 as f64).sum::<f64>();
            let (read, written) = (touch.share * extent(&touch.reads), extent(&touch.writes));
            let missed = touch.share * touch.reads.iter().map(|&range| cache.missing(range)).sum::<f64>();
            moved[number] = Traffic { read, written, missed, stored: written };
            let before = cache.clock;
            cache.clock += read + written;
            touch.reads.iter().for_each(|&range| cache.read(range, before));
            for &(address, bytes) in &touch.writes {
                for (start, range) in cache.within((address, bytes)) {
                    if let Some(writer) = range.writer.filter(|_| cache.is_near(start, &range, before)) {
                        saved[writer] += (range.end - start) as f64;
                    }
                    cache.ranges.remove(&start);
                }
                let range = Range { end: address + bytes, clock: cache.clock, writer: Some(number) };
                cache.ranges.insert(address, range);
            }
        }
    }
    moved.iter_mut().zip(saved).for_each(|(moved, saved)| moved.stored = (moved.stored - saved).max(0.0));
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(reads: &[(u64, u64)], writes: &[(u64, u64)]) -> Touch {
        Touch { reads: reads.to_vec(), share: 1.0, writes: writes.to_vec() }
    }

    #[test]
    fn what_is_near_hits_and_what_is_far_does_not() {
        let work = [
            touch(&[], &[(0, 100)]),
            touch(&[(0, 100)], &[(1000, 50)]),
            touch(&[(5000, 1000)], &[]),
            touch(&[(0, 100)], &[]),
        ];
        let small = traffic(&work, 500);
        assert_eq!(small[1], Traffic { read: 100.0, written: 50.0, missed: 0.0, stored: 50.0 });
        // Larger than the cache: always evicted before it is read.
        assert_eq!(small[2].missed, 1000.0);
        assert_eq!(small[3].missed, 100.0);
        let large = traffic(&work, 5000);
        assert_eq!(large.iter().map(|traffic| traffic.missed).sum::<f64>(), 0.0);
    }

    #[test]
    fn parts_of_ranges_are_told_apart() {
        // Written: the middle of the next read.
        let work = [touch(&[], &[(40, 20)]), touch(&[(0, 100)], &[]), touch(&[(1000, 4000)], &[])];
        assert_eq!(traffic(&work, 1000)[1].missed, 80.0);
    }

    #[test]
    fn what_is_soon_overwritten_never_leaves_the_cache() {
        let work = [touch(&[], &[(0, 100)]), touch(&[], &[(0, 60)]), touch(&[(1000, 4000)], &[])];
        let moved = traffic(&work, 1000);
        assert_eq!([moved[0].stored, moved[1].stored], [40.0, 60.0]);
    }

    /// Data that was stored before it was reloaded is not saved by overwriting it.
    #[test]
    fn what_left_the_cache_was_stored() {
        let work = [touch(&[], &[(0, 100)]), touch(&[(1000, 4000)], &[]), touch(&[(0, 100)], &[])];
        assert_eq!(traffic(&work, 1000)[0].stored, 100.0);
    }

    #[test]
    fn a_gather_reads_a_share() {
        let work = [Touch { share: 0.25, ..touch(&[(0, 400)], &[]) }, touch(&[(1000, 4000)], &[])];
        assert_eq!(traffic(&work, 1000)[0], Traffic { read: 100.0, written: 0.0, missed: 100.0, stored: 0.0 });
    }
}
