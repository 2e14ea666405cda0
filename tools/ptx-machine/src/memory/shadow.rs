//! Who wrote and read each piece of memory last, and which bytes anybody wrote at all.
//!
//! Memory is looked at in pages. A page's pieces are of 4 bytes until somebody accesses less, then of as little. For each piece the last
//! write and the reads since are kept as a word each: block, thread, and how many barriers of the block and of the warp had passed.
//! Two accesses are ordered where they are one thread's, or a barrier that both threads passed lies between them. A launch begins
//! anew: what an earlier grid did is before all that a later one does.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Through the read-only path.
    ReadConstant,
    /// Ordered with others of its kind.
    ReadStrong,
    Write,
    WriteStrong,
    /// The destination of a copy that has not landed.
    WriteLater,
    /// Such a copy lands.
    Land,
}

impl Access {
    pub fn is_read(self) -> bool {
        matches!(self, Access::Read | Access::ReadConstant | Access::ReadStrong)
    }
}

/// A thread at a moment, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

const VALID: u64 = 1 << 63;
/// In a write: it was strong. In a read: it was through the read-only path.
const FLAG: u64 = 1 << 62;
const BLOCK_SHIFT: u32 = 40;
const BLOCKS: u64 = (1 << 22) - 1;
const THREAD_SHIFT: u32 = 29;
const THREADS: u64 = (1 << 11) - 1;
const EPOCH_SHIFT: u32 = 11;
const EPOCHS: u64 = (1 << 18) - 1;
const WARP_EPOCHS: u64 = (1 << 11) - 1;

/// More than one thread of warp `w` is thread `WARP_MANY + w`.
const WARP_MANY: u64 = 1024;
const BLOCK_MANY: u64 = THREADS;
const PENDING: u64 = THREADS - 1;

impl Moment {
    /// `epoch` counts the block's barriers, `warp_epoch` the warp's own since.
    pub fn new(block: u64, thread: u32, epoch: u32, warp_epoch: u32) -> Self {
        Self(
            VALID
                | (block % BLOCKS) << BLOCK_SHIFT
                | u64::from(thread & 1023) << THREAD_SHIFT
                | (u64::from(epoch) & EPOCHS) << EPOCH_SHIFT
                | u64::from(warp_epoch) & WARP_EPOCHS,
        )
    }

    /// This moment for another thread of the warp.
    #[inline(always)]
    pub fn of_lane(self, lane: u32) -> Self {
        Self(self.0 + (u64::from(lane) << THREAD_SHIFT))
    }
}

#[inline(always)]
fn block(word: u64) -> u64 {
    word >> BLOCK_SHIFT & BLOCKS
}
#[inline(always)]
fn thread(word: u64) -> u64 {
    word >> THREAD_SHIFT & THREADS
}
#[inline(always)]
fn epoch(word: u64) -> u64 {
    word >> EPOCH_SHIFT & EPOCHS
}

/// Whether what `before` says came before `now`, for sure.
#[inline(always)]
fn ordered(before: u64, now: u64) -> bool {
    if block(before) != block(now) {
        return false;
    }
    let who = thread(before);
    if who == thread(now) || epoch(before) != epoch(now) {
        return true;
    }
    let same_warp = who != BLOCK_MANY && who != PENDING && warp(who) == thread(now) / 32;
    same_warp && before & WARP_EPOCHS != now & WARP_EPOCHS
}

#[inline(always)]
fn warp(who: u64) -> u64 {
    if who >= WARP_MANY { who - WARP_MANY } else { who / 32 }
}

/// Why an access is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    Unwritten,
    /// Somebody wrote it; without order.
    Written(Who),
    /// Somebody reads it; without order.
    ReadBy(Who),
    /// Written in the same launch, and read through the read-only path.
    NotConstant(Who),
    /// A copy to it has not landed.
    InFlight,
}

/// The other thread: its block's number, and its own within it where it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub block: Option<u64>,
    pub thread: Option<u32>,
}

fn who(word: u64) -> Who {
    let many_blocks = block(word) == BLOCKS;
    let thread = thread(word);
    Who {
        block: (!many_blocks).then_some(block(word)),
        thread: (!many_blocks && thread < WARP_MANY).then_some(thread as u32),
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    write: u64,
    read: u64,
}

impl Cell {
    #[inline(always)]
    fn access(&mut self, access: Access, now: u64) -> Result<(), Conflict> {
        let Self { write, read } = *self;
        if write != 0 && thread(write) == PENDING && access != Access::Land {
            return Err(Conflict::InFlight);
        }
        match access {
            Access::Read | Access::ReadConstant | Access::ReadStrong => {
                if write != 0 {
                    if access == Access::ReadConstant {
                        return Err(Conflict::NotConstant(who(write)));
                    }
                    let both = access == Access::ReadStrong && write & FLAG != 0;
                    if !both && !ordered(write, now) {
                        return Err(Conflict::Written(who(write)));
                    }
                }
                if access != Access::ReadStrong {
                    let flag = if access == Access::ReadConstant { FLAG } else { 0 };
                    self.read = joined(read, now) | flag;
                }
            }
            Access::Write | Access::WriteStrong | Access::WriteLater => {
                let strong = access == Access::WriteStrong;
                if write != 0 && !(strong && write & FLAG != 0) && !ordered(write, now) {
                    return Err(Conflict::Written(who(write)));
                }
                if read != 0 {
                    if read & FLAG != 0 {
                        return Err(Conflict::NotConstant(who(read)));
                    }
                    if !ordered(read, now) {
                        return Err(Conflict::ReadBy(who(read)));
                    }
                }
                self.read = 0;
                self.write = match access {
                    Access::WriteStrong => now | FLAG,
                    Access::WriteLater => (now & !(THREADS << THREAD_SHIFT)) | PENDING << THREAD_SHIFT,
                    _ => now,
                };
            }
            Access::Land => *self = Cell { write: now, read: 0 },
        }
        Ok(())
    }
}

/// All readers so far and one more.
#[inline(always)]
fn joined(read: u64, now: u64) -> u64 {
    let flag = read & FLAG;
    let read = read & !FLAG;
    if read == 0 || read == now {
        return now | flag;
    }
    if block(read) != block(now) {
        return read | BLOCKS << BLOCK_SHIFT | flag;
    }
    if ordered(read, now) {
        return now | flag;
    }
    let who = thread(read);
    let many =
        if who != BLOCK_MANY && warp(who) == thread(now) / 32 { WARP_MANY + thread(now) / 32 } else { BLOCK_MANY };
    (now & !(THREADS << THREAD_SHIFT)) | many << THREAD_SHIFT | flag
}

/// The shadow of one page.
#[derive(Default)]
struct Page {
    /// The launch or block that its cells are of.
    generation: u64,
    /// Bytes of a cell, as a power of two.
    shift: u32,
    cells: Vec<Cell>,
    /// One bit a byte: somebody wrote it.
    written: Vec<u64>,
    /// The accesses of an earlier launch, kept for one that may run beside it.
    earlier: Option<Box<Earlier>>,
}

struct Earlier {
    generation: u64,
    shift: u32,
    cells: Vec<Cell>,
}

impl Page {
    fn written(&mut self) -> &mut [u64] {
        if self.written.is_empty() {
            self.written.resize(PAGE as usize / 64, 0);
        }
        &mut self.written
    }

    fn mark(&mut self, from: u64, bytes: u64, value: bool) {
        let words = self.written();
        let mut at = from;
        while at < from + bytes {
            let length = (64 - at % 64).min(from + bytes - at);
            let bits = if length == 64 { !0 } else { ((1u64 << length) - 1) << (at % 64) };
            let word = &mut words[(at / 64) as usize];
            *word = if value { *word | bits } else { *word & !bits };
            at += length;
        }
    }

    /// Makes the cells those of `generation`, and as small as `bytes`.
    #[inline(always)]
    fn prepare(&mut self, generation: u64, bytes: u64) {
        if self.generation != generation || self.cells.is_empty() {
            self.generation = generation;
            if self.cells.is_empty() {
                self.shift = 2;
                self.cells.resize(PAGE as usize >> 2, Cell::default());
            } else {
                self.cells.fill(Cell::default());
            }
        }
        if bytes < 1 << self.shift {
            self.split(bytes.trailing_zeros());
        }
    }

    /// Whether a launch from `first` on used these bytes in a way that an access of `generation` has to wait for.
    fn is_beside(&mut self, at: u64, what: &WarpAccess, first: u64) -> bool {
        let Some(earlier) = self.earlier.as_deref().filter(|earlier| earlier.generation >= first) else {
            return false;
        };
        let from = (at >> earlier.shift) as usize;
        let to = ((at + what.bytes - 1) >> earlier.shift) as usize;
        earlier.cells[from..=to].iter().any(|cell| cell.write != 0 || !what.access.is_read() && cell.read != 0)
    }

    /// Keeps what a launch before `generation` did here.
    fn keep(&mut self, generation: u64) {
        if self.generation != generation && !self.cells.is_empty() {
            let cells = std::mem::take(&mut self.cells);
            self.earlier = Some(Box::new(Earlier { generation: self.generation, shift: self.shift, cells }));
        }
    }

    #[cold]
    fn split(&mut self, shift: u32) {
        let times = 1 << (self.shift - shift);
        self.cells = self.cells.iter().flat_map(|&cell| std::iter::repeat_n(cell, times)).collect();
        self.shift = shift;
    }

    /// One aligned access within the page.
    #[inline(always)]
    fn access(&mut self, at: u64, bytes: u64, access: Access, now: u64) -> Result<(), Conflict> {
        let bits = ((1u64 << bytes) - 1) << (at % 64);
        let word = &mut self.written()[(at / 64) as usize];
        match access {
            Access::Read | Access::ReadConstant | Access::ReadStrong if *word & bits != bits => {
                // Data on its way is the better explanation.
                let first = (at >> self.shift) as usize;
                let pending =
                    self.cells.get(first).is_some_and(|cell| cell.write != 0 && thread(cell.write) == PENDING);
                return Err(if pending { Conflict::InFlight } else { Conflict::Unwritten });
            }
            Access::Write | Access::WriteStrong | Access::Land => *word |= bits,
            _ => {}
        }
        let first = (at >> self.shift) as usize;
        let count = (bytes >> self.shift) as usize;
        let cells = &mut self.cells[first..first + count];
        // Bytes that are accessed together mostly have one history.
        let (head, rest) = cells.split_at_mut(1);
        if rest.iter().all(|cell| *cell == head[0]) {
            head[0].access(access, now)?;
            rest.fill(head[0]);
            return Ok(());
        }
        cells.iter_mut().try_for_each(|cell| cell.access(access, now))
    }
}

/// The lanes of a read that have to be looked at: where two lanes of a warp read one place, the others' reads of it change nothing
/// and are in order if those of the two are.
#[inline(always)]
fn looked_at(what: &WarpAccess, offsets: &[u64; 32]) -> u32 {
    if !matches!(what.access, Access::Read | Access::ReadConstant) {
        return what.mask;
    }
    let shift = what.bytes.trailing_zeros();
    let mut seen = [(0u64, 0u8); 64];
    let mut kept = 0;
    for lane in 0..32 {
        let place = offsets[lane] + 1;
        let entry = &mut seen[(offsets[lane] >> shift & 63) as usize];
        let wanted = what.mask >> lane & 1;
        let again = entry.0 == place;
        kept |= if again && entry.1 >= 2 { 0 } else { wanted << lane };
        let count = if again { entry.1.saturating_add(wanted as u8) } else { wanted as u8 };
        *entry = if wanted != 0 { (place, count) } else { *entry };
    }
    kept
}

/// The access of a warp to memory in one instruction.
#[derive(Clone, Copy, Debug)]
pub struct WarpAccess {
    pub access: Access,
    /// Bytes of each lane.
    pub bytes: u64,
    pub mask: u32,
    /// Of lane 0.
    pub moment: Moment,
    /// The launch; for shared memory the block.
    pub generation: u64,
}

/// The shadow of a device's memory. Pages lock themselves.
pub struct Shadow {
    /// One a page: a lock and a pointer.
    pages: *mut Entry,
    count: usize,
}

struct Entry {
    lock: AtomicU32,
    page: AtomicPtr<Page>,
}

// SAFETY: entries are reached under their locks.
unsafe impl Send for Shadow {}
// SAFETY: as above.
unsafe impl Sync for Shadow {}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").field("pages", &self.count).finish()
    }
}

/// A page that is locked.
struct Locked<'s> {
    entry: &'s Entry,
    page: &'s mut Page,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.entry.lock.store(0, Ordering::Release);
    }
}

impl Shadow {
    pub(super) fn new(bytes: u64) -> io::Result<Self> {
        let count = bytes.div_ceil(PAGE) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let length = count * size_of::<Entry>();
        // SAFETY: a new anonymous mapping of zeros, which are valid entries: unlocked, without a page.
        let at = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { pages: at.cast(), count })
    }

    fn entry(&self, index: u64) -> &Entry {
        assert!((index as usize) < self.count, "a page outside the device");
        // SAFETY: within the mapping.
        unsafe { &*self.pages.add(index as usize) }
    }

    fn lock(&self, index: u64) -> Locked<'_> {
        let entry = self.entry(index);
        while entry.lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        let mut page = entry.page.load(Ordering::Relaxed);
        if page.is_null() {
            page = Box::into_raw(Box::default());
            entry.page.store(page, Ordering::Relaxed);
        }
        // SAFETY: the lock is held, so nobody else has a reference; the page lives as long as the shadow.
        Locked { entry, page: unsafe { &mut *page } }
    }

    /// A warp's access; the addresses are offsets within the device. Aligned accesses only.
    ///
    /// # Errors
    /// The first lane whose access is refused, and why.
    #[inline(always)]
    pub fn access(&self, what: WarpAccess, offsets: &[u64; 32]) -> Result<(), (u32, Conflict)> {
        let mut held: Option<(u64, Locked<'_>)> = None;
        let mut rest = looked_at(&what, offsets);
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let at = offsets[lane as usize];
            let index = at / PAGE;
            let page = match &mut held {
                Some((current, locked)) if *current == index => locked,
                _ => {
                    drop(held.take());
                    let locked = self.lock(index);
                    locked.page.prepare(what.generation, what.bytes);
                    &mut held.insert((index, locked)).1
                }
            };
            let now = what.moment.of_lane(lane).0;
            page.page.access(at % PAGE, what.bytes, what.access, now).map_err(|conflict| (lane, conflict))?;
        }
        Ok(())
    }

    /// An access of a launch that launches from `first` on may run beside: keeps what they did to the pages that lanes of `all` are
    /// on, and looks whether lanes of `what.mask` touch it.
    ///
    /// # Errors
    /// The first lane that does.
    #[cold]
    pub fn beside(&self, what: WarpAccess, offsets: &[u64; 32], all: u32, first: u64) -> Result<(), u32> {
        for lane in (0..32u32).filter(|lane| all >> lane & 1 != 0) {
            let at = offsets[lane as usize];
            let locked = self.lock(at / PAGE);
            locked.page.keep(what.generation);
            if what.mask >> lane & 1 != 0 && locked.page.is_beside(at % PAGE, &what, first) {
                return Err(lane);
            }
        }
        Ok(())
    }

    fn each_page(&self, at: u64, bytes: u64, mut what: impl FnMut(u64, u64, u64)) {
        let mut from = at;
        while from < at + bytes {
            let length = (PAGE - from % PAGE).min(at + bytes - from);
            what(from / PAGE, from % PAGE, length);
            from += length;
        }
    }

    /// The bytes were written from outside.
    pub fn mark(&self, at: u64, bytes: u64) {
        self.each_page(at, bytes, |page, from, length| self.lock(page).page.mark(from, length, true));
    }

    /// Nothing is known of the bytes any more.
    pub fn forget(&self, at: u64, bytes: u64) {
        self.each_page(at, bytes, |page, from, length| {
            if !self.entry(page).page.load(Ordering::Acquire).is_null() {
                let locked = self.lock(page);
                locked.page.mark(from, length, false);
                locked.page.generation = 0;
                locked.page.earlier = None;
            }
        });
    }

    /// The bytes at `to` are as much written as those at `from`.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) {
        let mut done = 0;
        while done < bytes {
            let length = (PAGE - (from + done) % PAGE).min(PAGE - (to + done) % PAGE).min(bytes - done);
            let at = (from + done) % PAGE;
            let known: Vec<bool> = {
                let locked = self.lock((from + done) / PAGE);
                let words = locked.page.written();
                (at..at + length).map(|byte| words[(byte / 64) as usize] >> (byte % 64) & 1 != 0).collect()
            };
            let locked = self.lock((to + done) / PAGE);
            let start = (to + done) % PAGE;
            if known.iter().all(|&known| known) {
                locked.page.mark(start, length, true);
            } else {
                for (byte, known) in known.into_iter().enumerate() {
                    locked.page.mark(start + byte as u64, 1, known);
                }
            }
            done += length;
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        for index in 0..self.count as u64 {
            // Pages come in runs: a whole unused page of entries is not touched page by page by the system either.
            let page = self.entry(index).page.load(Ordering::Relaxed);
            if !page.is_null() {
                // SAFETY: made by `Box::into_raw`, and nobody is left.
                drop(unsafe { Box::from_raw(page) });
            }
        }
        // SAFETY: the mapping is this one's.
        unsafe { libc::munmap(self.pages.cast(), self.count * size_of::<Entry>()) };
    }
}

/// The shadow of a block's shared memory: one owner, no locks.
#[derive(Default)]
pub struct SharedShadow {
    pages: Vec<Page>,
    generation: u64,
}

impl std::fmt::Debug for SharedShadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedShadow").field("pages", &self.pages.len()).finish()
    }
}

impl SharedShadow {
    /// Begins a block with so many bytes, of which nobody wrote any.
    pub fn begin(&mut self, bytes: u64) {
        self.generation += 1;
        self.pages.resize_with(bytes.div_ceil(PAGE) as usize, Page::default);
        for page in &mut self.pages {
            page.written().fill(0);
        }
    }

    /// As [`Shadow::access`]; the generation is the block's own.
    ///
    /// # Errors
    /// As [`Shadow::access`].
    #[inline(always)]
    pub fn access(&mut self, what: WarpAccess, offsets: &[u64; 32]) -> Result<(), (u32, Conflict)> {
        let mut rest = looked_at(&what, offsets);
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let at = offsets[lane as usize];
            let page = &mut self.pages[(at / PAGE) as usize];
            page.prepare(self.generation, what.bytes);
            page.access(at % PAGE, what.bytes, what.access, what.moment.of_lane(lane).0)
                .map_err(|conflict| (lane, conflict))?;
        }
        Ok(())
    }
}
