//! Whether the ranks go on: a rank whose control thread lives and whose main thread stands still is found by what its beats say.
//!
//! Each beat tells how many steps of the job's course (exchanges, and commands of rank 0) a rank has begun, and how many pieces of work
//! of its own (batches, stages of a sampler). All ranks go through the same course. Where no rank has moved at all for some time and
//! some are behind, the others wait for those: they hang. A rank that works for long while nobody waits for it in the course (rank 0
//! that writes files, and whoever listens to it) is no hang.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pauses that are remembered of a rank.
const PAUSES: usize = 64;
/// A rank may pause so many times as long as any did lately.
const LENIENCE: u32 = 4;
/// Pieces of work after which a rank counts: before, kernels are loaded and memory is touched for the first time.
const WARM_UP: u64 = 3;

/// How far a rank is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// Steps of the job's course.
    pub course: u64,
    /// Pieces of work of its own.
    pub work: u64,
}

impl Pulse {
    pub fn write(self) -> Vec<u8> {
        [self.course, self.work].map(u64::to_le_bytes).concat()
    }

    /// None for a beat that tells nothing.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (words, _) = payload.as_chunks::<8>();
        let [course, work] = words else { return None };
        Some(Self { course: u64::from_le_bytes(*course), work: u64::from_le_bytes(*work) })
    }
}

/// What is known of a rank.
#[derive(Debug)]
struct Course {
    pulse: Pulse,
    moved: Instant,
    pauses: VecDeque<Duration>,
}

/// What rank 0 knows of all.
#[derive(Debug)]
pub(super) struct Pulses {
    ranks: Vec<Course>,
    /// The shortest time after which a standstill is one.
    patience: Duration,
}

impl Pulses {
    pub fn new(ranks: usize, patience: Duration, now: Instant) -> Self {
        let fresh = || Course { pulse: Pulse::default(), moved: now, pauses: VecDeque::new() };
        Self { ranks: (0..ranks).map(|_| fresh()).collect(), patience }
    }

    /// A rank's beat.
    pub fn hear(&mut self, rank: usize, pulse: Pulse, now: Instant) {
        let Some(course) = self.ranks.get_mut(rank) else { return };
        if course.pulse == pulse {
            return;
        }
        if course.pulse.work >= WARM_UP {
            if course.pauses.len() == PAUSES {
                course.pauses.pop_front();
            }
            course.pauses.push_back(now.saturating_duration_since(course.moved));
        }
        (course.pulse, course.moved) = (pulse, now);
    }

    /// All have moved by now, as far as this rank can tell: it was suspended itself.
    pub fn forgive(&mut self, now: Instant) {
        self.ranks.iter_mut().for_each(|course| course.moved = now);
    }

    /// How long a standstill may last.
    fn bound(&self) -> Duration {
        let longest = self.ranks.iter().flat_map(|course| &course.pauses).max().copied().unwrap_or_default();
        self.patience.max(LENIENCE * longest)
    }

    /// The ranks for which all others wait, and since when.
    pub fn standing_still(&self, now: Instant) -> Option<(Vec<usize>, Duration)> {
        if self.ranks.iter().any(|course| course.pulse.work < WARM_UP) {
            return None;
        }
        let last = self.ranks.iter().map(|course| course.moved).max()?;
        let still = now.saturating_duration_since(last);
        if still <= self.bound() {
            return None;
        }
        let of = |course: &Course| course.pulse.course;
        let (least, most) = (self.ranks.iter().map(of).min()?, self.ranks.iter().map(of).max()?);
        let behind = (0..self.ranks.len()).filter(|rank| of(&self.ranks[*rank]) == least).collect();
        (least < most).then_some((behind, still))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Three ranks that go on together for some seconds, of which rank 1 then stays behind.
    fn after(seconds: u32, each: Duration) -> (Pulses, Instant) {
        let mut now = Instant::now();
        let mut pulses = Pulses::new(3, 30 * SECOND, now);
        for step in 1..=u64::from(seconds) {
            now += each;
            (0..3).for_each(|rank| pulses.hear(rank, Pulse { course: 2 * step, work: step }, now));
        }
        for rank in [0, 2] {
            pulses.hear(rank, Pulse { course: 2 * u64::from(seconds) + 1, work: u64::from(seconds) + 1 }, now + SECOND);
        }
        (pulses, now + SECOND)
    }

    #[test]
    fn whoever_is_waited_for_too_long_is_named() {
        let (pulses, now) = after(10, SECOND);
        assert_eq!(pulses.standing_still(now + 30 * SECOND), None);
        assert_eq!(pulses.standing_still(now + 31 * SECOND), Some((vec![1], 31 * SECOND)));
    }

    #[test]
    fn steps_that_are_long_may_take_longer() {
        let (pulses, now) = after(10, 20 * SECOND);
        assert_eq!(pulses.standing_still(now + 80 * SECOND), None);
        assert_eq!(pulses.standing_still(now + 81 * SECOND), Some((vec![1], 81 * SECOND)));
        // Long ago is forgotten.
        let (mut pulses, mut now) = after(10, 20 * SECOND);
        for step in 100..200 {
            now += SECOND;
            (0..3).for_each(|rank| pulses.hear(rank, Pulse { course: step, work: step }, now));
        }
        pulses.hear(2, Pulse { course: 200, work: 200 }, now);
        assert_eq!(pulses.standing_still(now + 31 * SECOND), Some((vec![0, 1], 31 * SECOND)));
    }

    #[test]
    fn work_that_nobody_waits_for_and_the_first_batches_take_as_long_as_they_take() {
        // Rank 0 writes for an hour; the others have begun what it told them last, and listen.
        let now = Instant::now();
        let mut pulses = Pulses::new(2, 30 * SECOND, now);
        (0..2).for_each(|rank| pulses.hear(rank, Pulse { course: 9, work: 5 }, now));
        assert_eq!(pulses.standing_still(now + 3600 * SECOND), None);
        // Its first batch: kernels are compiled.
        pulses = Pulses::new(2, 30 * SECOND, now);
        pulses.hear(0, Pulse { course: 9, work: 5 }, now);
        pulses.hear(1, Pulse { course: 8, work: 1 }, now);
        assert_eq!(pulses.standing_still(now + 3600 * SECOND), None);
        // A rank that works is no standstill, however far behind it is.
        pulses.hear(1, Pulse { course: 8, work: 4 }, now);
        pulses.hear(1, Pulse { course: 8, work: 5 }, now + 60 * SECOND);
        assert_eq!(pulses.standing_still(now + 89 * SECOND), None);
        // A machine that slept has heard nobody.
        pulses.forgive(now + 900 * SECOND);
        assert_eq!(pulses.standing_still(now + 901 * SECOND), None);
        assert_eq!(Pulse::read(&Pulse { course: 3, work: 4 }.write()), Some(Pulse { course: 3, work: 4 }));
        assert_eq!(Pulse::read(b""), None);
    }
}
