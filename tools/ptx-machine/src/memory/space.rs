//! A device's memory: a range of addresses of its own, reserved at once and used as it is allocated.

use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;

use super::shadow::Shadow;

/// The first address of device 0; the next device's are [`DEVICE_STRIDE`] further.
const DEVICE_BASE: u64 = 0x7000_0000_0000;
const DEVICE_STRIDE: u64 = 1 << 40;

/// Allocations begin at multiples of this.
const ALIGNMENT: u64 = 512;

/// Bytes between allocations that belong to none.
const GAP: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateError {
    Empty,
    OutOfMemory,
}

/// Memory of one device.
#[derive(Debug)]
pub struct DeviceMemory {
    host: NonNull<u8>,
    base: u64,
    reserved: u64,
    capacity: u64,
    used: u64,
    /// Start to end.
    allocations: BTreeMap<u64, u64>,
    /// Unused ranges, start to end.
    free: BTreeMap<u64, u64>,
    shadow: Option<Shadow>,
}

// SAFETY: the mapping is owned; who reads and writes it through `host` is the kernels' business.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above; what changes through `&self` (the shadow) locks.
unsafe impl Sync for DeviceMemory {}

fn map(bytes: u64) -> io::Result<NonNull<u8>> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping, wherever the system likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("a mapping at address zero"))
}

impl DeviceMemory {
    /// Memory of `capacity` bytes; with `checked`, each byte has a shadow.
    ///
    /// # Errors
    /// Where the system does not reserve the addresses.
    pub fn new(ordinal: u32, capacity: u64, checked: bool) -> io::Result<Self> {
        let capacity = capacity.next_multiple_of(4096);
        // Room for the gaps.
        let reserved = capacity + capacity / 4 + (1 << 20);
        let host = map(reserved)?;
        let base = DEVICE_BASE + u64::from(ordinal) * DEVICE_STRIDE;
        let shadow = if checked { Some(Shadow::new(reserved)?) } else { None };
        let free = BTreeMap::from([(base, base + reserved)]);
        Ok(Self { host, base, reserved, capacity, used: 0, allocations: BTreeMap::new(), free, shadow })
    }

    /// The first address, and the bytes that are reserved from there on.
    pub fn span(&self) -> (u64, u64) {
        (self.base, self.reserved)
    }

    pub fn total(&self) -> u64 {
        self.capacity
    }

    pub fn available(&self) -> u64 {
        self.capacity - self.used
    }

    /// Allocations that were not given back.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    pub fn is_checked(&self) -> bool {
        self.shadow.is_some()
    }

    pub fn shadow(&self) -> Option<&Shadow> {
        self.shadow.as_ref()
    }

    /// Allocates.
    ///
    /// # Errors
    /// For no bytes, and where they are not there.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64, AllocateError> {
        if bytes == 0 {
            return Err(AllocateError::Empty);
        }
        if bytes > self.available() {
            return Err(AllocateError::OutOfMemory);
        }
        let needed = bytes.next_multiple_of(ALIGNMENT) + GAP;
        let fit = self.free.iter().find(|&(start, end)| end - start >= needed).map(|(&start, &end)| (start, end));
        let Some((start, end)) = fit else { return Err(AllocateError::OutOfMemory) };
        self.free.remove(&start);
        if end > start + needed {
            self.free.insert(start + needed, end);
        }
        self.allocations.insert(start, start + bytes);
        self.used += bytes;
        if let Some(shadow) = &self.shadow {
            shadow.forget(start - self.base, bytes);
        }
        Ok(start)
    }

    /// Gives an allocation back; false where none begins there.
    pub fn release(&mut self, address: u64) -> bool {
        let Some(end) = self.allocations.remove(&address) else { return false };
        let bytes = end - address;
        self.used -= bytes;
        let (mut from, mut to) = (address, address + bytes.next_multiple_of(ALIGNMENT) + GAP);
        if let Some((&start, &stop)) = self.free.range(..from).next_back()
            && stop == from
        {
            self.free.remove(&start);
            from = start;
        }
        if let Some(stop) = self.free.remove(&to) {
            to = stop;
        }
        self.free.insert(from, to);
        self.give_back(address, end);
        true
    }

    /// Whole pages of a range go back to the system; what is read there next is zero. Returns the range of the pages.
    fn give_back(&self, from: u64, to: u64) -> (u64, u64) {
        let (first, last) = (from.next_multiple_of(4096), to / 4096 * 4096);
        if first >= last {
            return (to, to);
        }
        // SAFETY: within the mapping, whose owner does not want the bytes any more.
        unsafe { libc::madvise(self.at(first).cast(), (last - first) as usize, libc::MADV_DONTNEED) };
        (first, last)
    }

    /// Fills a range that [`DeviceMemory::contains`] has allowed with zeros, and gives its pages back: it costs no memory.
    pub fn clear(&self, address: u64, bytes: u64) {
        let end = address + bytes;
        let (first, last) = self.give_back(address, end);
        for (from, to) in [(address, first), (last, end)] {
            // SAFETY: within the range.
            unsafe { std::ptr::write_bytes(self.at(from), 0, (to - from) as usize) };
        }
    }

    /// The allocation that an address lies in.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.allocations.range(..=address).next_back()?;
        (address < end).then_some((start, end))
    }

    /// Whether a range lies within one allocation.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        self.allocation(address).is_some_and(|(_, end)| bytes <= end - address)
    }

    /// Whether an address is one of this device's.
    pub fn is_own(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.reserved
    }

    /// Where an address is in the host's memory.
    ///
    /// # Panics
    /// For an address of another device: callers look at [`DeviceMemory::contains`] first.
    #[inline(always)]
    pub fn at(&self, address: u64) -> *mut u8 {
        let offset = address.wrapping_sub(self.base);
        assert!(offset < self.reserved, "an address outside the device");
        // SAFETY: within the mapping.
        unsafe { self.host.as_ptr().add(offset as usize) }
    }

    /// Offset of an address in the device's range, as the shadow counts.
    #[inline(always)]
    pub fn offset(&self, address: u64) -> u64 {
        address.wrapping_sub(self.base)
    }

    /// The bytes of a range that [`DeviceMemory::contains`] has allowed count as written.
    pub fn mark_written(&self, address: u64, bytes: u64) {
        if let Some(shadow) = &self.shadow {
            shadow.mark(self.offset(address), bytes);
        }
    }

    /// Copies, with what is known about the bytes, from one range of this device to another.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) {
        // SAFETY: callers have looked that both ranges are allocated; `copy` allows them to overlap.
        unsafe { std::ptr::copy(self.at(from), self.at(to), bytes as usize) };
        if let Some(shadow) = &self.shadow {
            shadow.copy(self.offset(from), self.offset(to), bytes);
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.reserved as usize) };
    }
}
