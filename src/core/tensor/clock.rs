//! Times of the CPU's ops: wall time by op and function, on the thread that runs them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// By op and the function of its `cpu.rs`: calls and their time.
pub type Times = BTreeMap<(&'static str, &'static str), (usize, Duration)>;

thread_local! {
    static TIMES: RefCell<Option<Times>> = const { RefCell::new(None) };
}

/// Times the ops that run in `work` on this thread.
pub fn of<R>(work: impl FnOnce() -> R) -> (R, Times) {
    TIMES.set(Some(Times::new()));
    let result = work();
    (result, TIMES.take().unwrap_or_default())
}

/// Runs an op's function, and adds its time where it is wanted.
#[inline]
pub(crate) fn time<R>(op: &'static str, function: &'static str, work: impl FnOnce() -> R) -> R {
    let start = TIMES.with_borrow(|times| times.is_some()).then(Instant::now);
    let result = work();
    if let Some(start) = start {
        TIMES.with_borrow_mut(|times| {
            if let Some(times) = times {
                let (calls, sum) = times.entry((op, function)).or_default();
                *calls += 1;
                *sum += start.elapsed();
            }
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_where_they_are_wanted() {
        assert_eq!(time("a", "forward", || 3), 3);
        let (result, times) =
            of(|| time("a", "forward", || 3) + time("a", "forward", || 4) + time("b", "update", || 5));
        assert_eq!(result, 12);
        let calls: Vec<_> = times.iter().map(|(name, (calls, _))| (*name, *calls)).collect();
        assert_eq!(calls, [(("a", "forward"), 2), (("b", "update"), 1)]);
        time("a", "forward", || ());
        assert!(of(|| ()).1.is_empty());
    }
}
