//! Detection of hanging ranks: a rank whose control thread is alive but whose main thread makes no progress is detected by its beats.
//!
//! Each beat has the number of joint steps (exchanges, and commands of rank 0) that a rank has started, and of its own pieces of
//! work (batches, stages of a sampler). All ranks run the same joint steps. If no rank has progressed for some time and some are
//! behind, the others wait for those: they hang. A rank that works for long while no other waits for it (rank 0 that writes files,
//! and the ranks that wait for its next command) does not hang.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Number of pauses remembered per rank.
const PAUSES: usize = 64;
/// A rank may pause this many times as long as any recent pause.
const LENIENCE: u32 = 4;
/// Pieces of work after which a rank is watched: before, kernels are loaded and memory is touched for the first time.
const WARM_UP: u64 = 3;

/// The progress of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// Joint steps.
    pub course: u64,
    /// Its own pieces of work.
    pub work: u64,
}

impl Pulse {
    pub fn write(self) -> Vec<u8> {
        [self.course, self.work].map(u64::to_le_bytes).concat()
    }

    /// None for a beat without content.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (words, _) = payload.as_chunks::<8>();
        let [course, work] = words else { return None };
        Some(Self { course: u64::from_le_bytes(*course), work: u64::from_le_bytes(*work) })
    }
}

/// The state of a rank.
#[derive(Debug)]
struct Course {
    pulse: Pulse,
    moved: Instant,
    pauses: VecDeque<Duration>,
}

/// The state of all ranks, on rank 0.
#[derive(Debug)]
pub(super) struct Pulses {
    ranks: Vec<Course>,
    /// The shortest pause that counts as hanging.
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

    /// After a suspension of this rank, all count as having progressed now.
    pub fn forgive(&mut self, now: Instant) {
        self.ranks.iter_mut().for_each(|course| course.moved = now);
    }

    /// The longest allowed pause.
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

    /// Three ranks that progress together for some seconds, then rank 1 stays behind.
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
        // Old pauses are forgotten.
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
        // Rank 0 writes for an hour; the others have started its last command, and wait for the next.
        let now = Instant::now();
        let mut pulses = Pulses::new(2, 30 * SECOND, now);
        (0..2).for_each(|rank| pulses.hear(rank, Pulse { course: 9, work: 5 }, now));
        assert_eq!(pulses.standing_still(now + 3600 * SECOND), None);
        // Its first batch: kernels are compiled.
        pulses = Pulses::new(2, 30 * SECOND, now);
        pulses.hear(0, Pulse { course: 9, work: 5 }, now);
        pulses.hear(1, Pulse { course: 8, work: 1 }, now);
        assert_eq!(pulses.standing_still(now + 3600 * SECOND), None);
        // A rank that works does not hang, however far behind it is.
        pulses.hear(1, Pulse { course: 8, work: 4 }, now);
        pulses.hear(1, Pulse { course: 8, work: 5 }, now + 60 * SECOND);
        assert_eq!(pulses.standing_still(now + 89 * SECOND), None);
        // A machine that was suspended has heard nobody.
        pulses.forgive(now + 900 * SECOND);
        assert_eq!(pulses.standing_still(now + 901 * SECOND), None);
        assert_eq!(Pulse::read(&Pulse { course: 3, work: 4 }.write()), Some(Pulse { course: 3, work: 4 }));
        assert_eq!(Pulse::read(b""), None);
    }
}
