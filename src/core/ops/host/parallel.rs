//! Threads: how many, and how work is cut so that no result depends on that number.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use std::sync::OnceLock;

/// Elements below which elementwise work stays on the calling thread: waking a thread costs some 10 µs.
pub const GRAIN: usize = 1 << 14;

/// A buffer that tasks write to, each its own elements.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: to use the pointer is unsafe; who does so keeps tasks to disjoint elements.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(buffer: &mut [T]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// Of a buffer that begins there.
    pub(crate) fn of(buffer: *mut T) -> Self {
        Self(buffer)
    }

    pub(crate) fn get(&self) -> *mut T {
        self.0
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// They lie in the buffer, and nobody else uses them while the result lives.
    #[inline(always)]
    pub(crate) unsafe fn row<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Sets the number of threads for the rest of the process. `None` takes `ENGINE_THREADS`, or else what the machine has.
/// The first call decides (it builds rayon's global pool); the answer is the number in force.
///
/// # Errors
/// `ENGINE_THREADS` that is not a positive number; an `ENGINE_CPU` that is [refused](crate::device::instructions::chosen).
pub fn set_threads(threads: Option<usize>) -> crate::Result<usize> {
    static DONE: OnceLock<()> = OnceLock::new();
    crate::device::instructions::chosen()?;
    let threads = match threads {
        Some(n) => n,
        None => match std::env::var("ENGINE_THREADS") {
            Ok(text) => text.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| {
                crate::Error::config(
                    "ENGINE_THREADS",
                    format!("`{text}` is not a number of threads"),
                    "set it to 1 or more, or unset it to use every core",
                )
            })?,
            Err(_) => 0,
        },
    };
    DONE.get_or_init(|| {
        // Fails only where someone else (a program that uses us as a library) built the pool: theirs is used.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    });
    Ok(self::threads())
}

/// The number of threads that parallel work here uses.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `f` on a thread of the pool, where starting parallel work is cheaper than from outside: wrap a whole training or
/// sampling run in it.
pub fn install<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() { f() } else { rayon::scope(|_| f()) }
}

/// Runs `f` with exactly `threads` threads, in a pool of its own.
pub fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    match rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build() {
        Ok(pool) => pool.install(f),
        Err(error) => panic!("the system refuses {threads} threads: {error}"),
    }
}

/// Runs `work(i)` for `i` in `0..threads`, each on a thread of its own where there are as many. The one place that
/// starts rayon: its machinery is compiled once, not anew for each closure, which would be a quarter of this crate.
fn on_threads(threads: usize, work: &(dyn Fn(usize) + Sync)) {
    (0..threads).into_par_iter().with_max_len(1).for_each(work);
}

/// `f(i)` for `i` in `0..count`, in parallel where `work` (about one element's worth each, all of them together) pays.
///
/// Each thread takes the next number that nobody has taken, so that none waits for a share that another was given: with
/// few tasks of equal size, halving the range would leave a thread idle for a whole task.
pub fn for_each(count: usize, work: usize, f: impl Fn(usize) + Send + Sync) {
    let threads = threads().min(count);
    if threads <= 1 || work < GRAIN {
        return (0..count).for_each(f);
    }
    let next = AtomicUsize::new(0);
    on_threads(threads, &|_| take_all(&next, count, &f));
}

/// As [`for_each`], for many small tasks: thread `t` begins with part `t` of them, so that the part of a buffer that it wrote last
/// time is still in its cache, and then helps with the others' parts.
fn for_each_near(count: usize, work: usize, f: impl Fn(usize) + Send + Sync) {
    let threads = threads().min(count);
    if threads <= 1 || work < GRAIN {
        return (0..count).for_each(f);
    }
    let end = |part: usize| (part + 1) * count / threads;
    let next: Vec<AtomicUsize> = (0..threads).map(|part| AtomicUsize::new(part * count / threads)).collect();
    on_threads(threads, &|thread| {
        for part in (thread..threads).chain(0..thread) {
            take_all(&next[part], end(part), &f);
        }
    });
}

/// Takes tasks of `count`, one at a time, as long as there are any.
fn take_all(next: &AtomicUsize, count: usize, f: impl Fn(usize)) {
    loop {
        let task = next.fetch_add(1, Ordering::Relaxed);
        if task >= count {
            break;
        }
        f(task);
    }
}

/// Counts a task as done when it ends.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// `f(phase, task)` for each task of each phase, on at most `threads` threads; no task of a phase begins before all of the phase
/// before have ended. `tasks(phase)` is how many the phase has. `f` must not start parallel work of its own.
///
/// One start of the threads serves all phases. Between two of them a thread waits, spinning, only for tasks that running threads
/// have taken: so it does not matter how many threads come, and when.
pub(crate) fn for_phases(
    threads: usize,
    phases: usize,
    tasks: impl Fn(usize) -> usize + Send + Sync,
    f: impl Fn(usize, usize) + Send + Sync,
) {
    if threads <= 1 {
        (0..phases).for_each(|phase| (0..tasks(phase)).for_each(|task| f(phase, task)));
        return;
    }
    let counters: Vec<(AtomicUsize, AtomicUsize)> = (0..phases).map(|_| Default::default()).collect();
    on_threads(threads, &|_| {
        for (phase, (taken, done)) in counters.iter().enumerate() {
            let count = tasks(phase);
            take_all(taken, count, |task| {
                // Counted also where the task panics: nobody must wait for it.
                let _done = Done(done);
                f(phase, task);
            });
            let mut spins = 0;
            while done.load(Ordering::Acquire) < count {
                spins += 1;
                // The other thread's processor may be somebody else's for a while.
                if spins < 1 << 12 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
    });
}

/// `f(row_index, row)` for each row of `dst` (`[rows, row_len]`).
///
/// # Panics
/// Where `dst` is not a whole number of rows.
pub fn for_rows<T: Send>(dst: &mut [T], row_len: usize, f: impl Fn(usize, &mut [T]) + Send + Sync) {
    if dst.is_empty() {
        return;
    }
    assert!(row_len > 0 && dst.len().is_multiple_of(row_len), "{} elements are no rows of {row_len}", dst.len());
    for_row_blocks(dst, row_len, rows_per_block(row_len), |first, block| {
        block.chunks_exact_mut(row_len).enumerate().for_each(|(i, row)| f(first + i, row));
    });
}

/// `f(first_row, rows)` for blocks of `block` rows of `dst` (`[rows, row_len]`; the last block may be shorter). The cut
/// depends on `block` alone, so partial sums by block are the same for every thread count.
pub fn for_row_blocks<T: Send>(dst: &mut [T], row_len: usize, block: usize, f: impl Fn(usize, &mut [T]) + Send + Sync) {
    if dst.is_empty() {
        return;
    }
    let (len, chunk) = (dst.len(), block.max(1) * row_len);
    if len < GRAIN || len <= chunk || threads() == 1 {
        dst.chunks_mut(chunk).enumerate().for_each(|(i, rows)| f(i * block, rows));
    } else {
        let shared = Shared::new(dst);
        for_each_near(len.div_ceil(chunk), len, |i| {
            // SAFETY: chunk `i` is this task's alone, and the last one ends where the buffer does.
            f(i * block, unsafe { shared.row(i * chunk, chunk.min(len - i * chunk)) });
        });
    }
}

/// As [`for_row_blocks`], with a row of zeros for each block, of `sums` (`[blocks, sums_len]`): `f(first_row, rows, sums)`. The
/// first half of a sum over rows; [`column_sums`](super::vector::column_sums) is the second.
///
/// # Panics
/// Where `sums` does not have a row for each block.
pub fn for_row_blocks_with_sums<D: Send, T: Copy + Default + Send>(
    (dst, row_len): (&mut [D], usize),
    (sums, sums_len): (&mut [T], usize),
    block: usize,
    f: impl Fn(usize, &mut [D], &mut [T]) + Send + Sync,
) {
    let blocks = dst.len().div_ceil((block * row_len).max(1));
    assert_eq!(sums.len(), blocks * sums_len, "a row of sums for each block of rows is needed");
    let sums = Shared::new(sums);
    for_row_blocks(dst, row_len, block, |first, rows| {
        // SAFETY: the row of sums of this block is this task's alone.
        let sums = unsafe { sums.row(first / block * sums_len, sums_len) };
        sums.fill(T::default());
        f(first, rows, sums);
    });
}

/// `f(row, a_row, b_row)` over two buffers with the same number of rows, such as an output and what it saves.
///
/// # Panics
/// Where the buffers are not whole rows, as many in one as in the other.
pub fn for_rows2<A: Send, B: Send>(
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Send + Sync,
) {
    if a.is_empty() && b.is_empty() {
        return;
    }
    assert!(
        a_len > 0 && b_len > 0 && a.len().is_multiple_of(a_len) && b.len().is_multiple_of(b_len),
        "whole rows are needed"
    );
    assert_eq!(a.len() / a_len, b.len() / b_len, "the buffers have different numbers of rows");
    let block = rows_per_block(a_len.max(b_len));
    let (rows, work) = (a.len() / a_len, a.len().max(b.len()));
    let (a, b) = (Shared::new(a), Shared::new(b));
    for_each_near(rows.div_ceil(block), work, |i| {
        for row in i * block..rows.min((i + 1) * block) {
            // SAFETY: the rows of block `i` are this task's alone.
            unsafe { f(row, a.row(row * a_len, a_len), b.row(row * b_len, b_len)) };
        }
    });
}

/// Rows per task: about half a [`GRAIN`] of elements.
fn rows_per_block(row_len: usize) -> usize {
    (GRAIN / 2).div_ceil(row_len).max(1)
}

/// `f(slot)` for each slot, in parallel where `work` elements in all pay: for pieces that do not come as rows.
pub fn for_slots<T: Send>(slots: &mut [T], work: usize, f: impl Fn(&mut T) + Send + Sync) {
    let (count, slots) = (slots.len(), Shared::new(slots));
    // SAFETY: slot `i` is this task's alone.
    for_each_near(count, work, |i| f(unsafe { &mut *slots.get().add(i) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_index() {
        for (rows, row_len) in [(1, 1), (7, 3), (1000, 65), (3, 20_000)] {
            for threads in [1, 2, 4] {
                with_threads(threads, || {
                    let mut a = vec![0usize; rows * row_len];
                    for_rows(&mut a, row_len, |i, row| row.iter_mut().for_each(|x| *x += i + 1));
                    assert!(a.iter().enumerate().all(|(i, &x)| x == i / row_len + 1));
                    let mut b = vec![0usize; rows];
                    for_rows2((&mut a, row_len), (&mut b, 1), |i, a, b| b[0] = a[0] * 10 + i);
                    assert!(b.iter().enumerate().all(|(i, &x)| x == (i + 1) * 10 + i));
                    for_each(rows, GRAIN, |i| assert!(i < rows));
                });
            }
        }
        for_rows(&mut [0u8; 0], 0, |_, _| unreachable!());
    }

    #[test]
    fn a_block_of_rows_has_sums_of_its_own() {
        for threads in [1, 2, 4] {
            with_threads(threads, || {
                let (mut rows, mut sums) = (vec![1u32; 1000 * 65], vec![7; 16 * 2]);
                for_row_blocks_with_sums((&mut rows, 65), (&mut sums, 2), 64, |first, rows, sums| {
                    sums[0] += first as u32;
                    sums[1] += rows.iter().sum::<u32>();
                });
                for (block, sums) in sums.chunks_exact(2).enumerate() {
                    assert_eq!(*sums, [64 * block as u32, 65 * if block < 15 { 64 } else { 40 }]);
                }
            });
        }
        for_row_blocks_with_sums((&mut [0u8; 0], 0), (&mut [0u8; 0], 1), 8, |_, _, _| unreachable!());
    }

    #[test]
    fn a_phase_begins_when_the_one_before_has_ended() {
        let counts = [5, 0, 64, 1, 33];
        for threads in [1, 2, 4] {
            let ended: Vec<AtomicUsize> = counts.iter().map(|_| AtomicUsize::new(0)).collect();
            with_threads(threads, || {
                for_phases(
                    threads,
                    counts.len(),
                    |phase| counts[phase],
                    |phase, task| {
                        assert!(task < counts[phase]);
                        for (before, &count) in ended.iter().zip(&counts[..phase]) {
                            assert_eq!(before.load(Ordering::Relaxed), count, "phase {phase}, {threads} threads");
                        }
                        ended[phase].fetch_add(1, Ordering::Relaxed);
                    },
                );
            });
            assert!(ended.iter().zip(counts).all(|(ended, count)| ended.load(Ordering::Relaxed) == count));
        }
    }

    #[test]
    fn a_task_that_panics_stops_nobody() {
        let run = || for_phases(3, 2, |_| 8, |phase, task| assert!((phase, task) != (0, 3), "task three"));
        let panic = std::panic::catch_unwind(|| with_threads(3, run)).expect_err("the panic arrives");
        assert!(panic.downcast_ref::<&str>().is_some_and(|text| text.contains("task three")));
    }

    #[test]
    fn nested_work_finishes() {
        let total = with_threads(2, || {
            let mut sums = vec![0usize; 64];
            for_slots(&mut sums, GRAIN, |slot| {
                let mut inner = vec![1usize; 40_000];
                for_rows(&mut inner, 10, |i, row| row[0] = i);
                *slot = inner.iter().sum();
            });
            sums.iter().sum::<usize>()
        });
        assert_eq!(total, 64 * (3999 * 4000 / 2 + 36_000));
        assert_eq!(install(|| 7), 7);
    }
}
