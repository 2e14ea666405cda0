//! Which launch touched each sector of a device's memory last.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rules::SECTOR_SHIFT;

/// In a sector's word: the latest launch has read it, or written it.
const READ: u64 = 1;
const WRITTEN: u64 = 2;
const FLAGS: u64 = READ | WRITTEN;
/// The latest launch, and the one before.
const LATEST_SHIFT: u32 = 2;
const BEFORE_SHIFT: u32 = 33;
const NUMBERS: u64 = (1 << 31) - 1;

/// One word a sector, in memory that the system gives when a word is first written.
pub struct Touches {
    words: *mut AtomicU64,
    count: usize,
}

// SAFETY: atomics in a mapping that is owned.
unsafe impl Send for Touches {}
// SAFETY: as above.
unsafe impl Sync for Touches {}

impl std::fmt::Debug for Touches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Touches").field("sectors", &self.count).finish()
    }
}

/// The state of a sector at a launch's first read or write of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The launch has done that before.
    Known,
    /// The launch that touched it before this one; 0 for none.
    First { before: u32 },
}

impl Touches {
    /// For addresses of `bytes` bytes.
    ///
    /// # Errors
    /// Where the system does not reserve the addresses.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let count = bytes.div_ceil(1 << SECTOR_SHIFT) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let length = count * size_of::<AtomicU64>();
        // SAFETY: a new anonymous mapping of zeros: nobody touched anything.
        let at = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { words: at.cast(), count })
    }

    /// Launch `launch` (1 or more, larger than those before) reads or writes a sector. Whatever the order in which host threads come
    /// here, exactly one of a launch's reads, and one of its writes, is the first, and all find the same launch before.
    #[inline(always)]
    pub fn touch(&self, sector: u64, launch: u32, writes: bool) -> Touch {
        if sector >= self.count as u64 {
            return Touch::Known;
        }
        // SAFETY: within the mapping.
        let word = unsafe { &*self.words.add(sector as usize) };
        let flag = if writes { WRITTEN } else { READ };
        let own = u64::from(launch) << LATEST_SHIFT;
        let now = word.load(Ordering::Relaxed);
        if now & (NUMBERS << LATEST_SHIFT) == own && now & flag != 0 {
            return Touch::Known;
        }
        Self::first(word, now, own, flag)
    }

    #[inline(never)]
    fn first(word: &AtomicU64, mut now: u64, own: u64, flag: u64) -> Touch {
        loop {
            let latest = now & (NUMBERS << LATEST_SHIFT);
            let next = if latest == own {
                if now & flag != 0 {
                    return Touch::Known;
                }
                now | flag
            } else {
                debug_assert!(latest < own && now & FLAGS != 0 || now == 0, "launches are numbered in order");
                latest >> LATEST_SHIFT << BEFORE_SHIFT | own | flag
            };
            match word.compare_exchange_weak(now, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Touch::First { before: (next >> BEFORE_SHIFT) as u32 },
                Err(other) => now = other,
            }
        }
    }
}

impl Drop for Touches {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's.
        unsafe { libc::munmap(self.words.cast(), self.count * size_of::<AtomicU64>()) };
    }
}
