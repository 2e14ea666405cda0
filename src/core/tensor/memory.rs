//! Host memory: large allocations use huge pages, for fewer page faults and TLB misses.

use std::alloc::Layout;
use std::ptr::NonNull;

/// Alignment of every allocation in bytes: a cache line on the CPU, a memory transaction on a GPU.
pub(crate) const ALIGNMENT: usize = 256;
/// Bytes of a huge page, and the alignment of allocations that use them.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

fn layout(bytes: usize) -> Option<Layout> {
    let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
    Layout::from_size_align(bytes.max(1), alignment).ok()
}

/// `bytes` of memory with unspecified contents, aligned to at least [`ALIGNMENT`]; `None` if out of memory.
pub(crate) fn allocate(bytes: usize) -> Option<NonNull<u8>> {
    let layout = layout(bytes)?;
    // SAFETY: the layout's size is not zero.
    let pointer = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
    #[cfg(target_os = "linux")]
    if bytes >= HUGE_PAGE {
        // Only a hint, so a refusal changes nothing.
        // SAFETY: the range was just allocated, and the advice does not change its contents.
        unsafe { libc::madvise(pointer.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    Some(pointer)
}

/// Frees an allocation.
///
/// # Safety
/// It came from [`allocate`] with the same size, and is no longer used.
pub(crate) unsafe fn release(pointer: NonNull<u8>, bytes: usize) {
    if let Some(layout) = layout(bytes) {
        // SAFETY: allocated with this very layout.
        unsafe { std::alloc::dealloc(pointer.as_ptr(), layout) };
    }
}
