//! Scratch memory of the CPU ops: each thread keeps the pieces that it used, and lends them again.

use std::cell::RefCell;
use std::ptr::NonNull;

use crate::tensor::memory::{self, HUGE_PAGE};

/// Pieces that one thread keeps between calls.
const KEPT: usize = 4;

/// One piece of memory, initialised.
struct Piece {
    pointer: NonNull<u8>,
    bytes: usize,
}

impl Piece {
    /// At least `bytes`; from a quarter of a huge page on, whole ones.
    ///
    /// # Panics
    /// Where there is no more memory.
    fn new(bytes: usize) -> Self {
        let bytes = if bytes >= HUGE_PAGE / 4 { bytes.next_multiple_of(HUGE_PAGE) } else { bytes };
        let pointer = memory::allocate(bytes).unwrap_or_else(|| panic!("no memory for {bytes} bytes of scratch"));
        // SAFETY: just allocated. Zeros, because the lent slices must be initialised.
        unsafe { pointer.write_bytes(0, bytes) };
        Self { pointer, bytes }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the piece owns it.
        unsafe { memory::release(self.pointer, self.bytes) };
    }
}

thread_local! {
    static PIECES: RefCell<Vec<Piece>> = const { RefCell::new(Vec::new()) };
}

/// Lends `bytes` initialised bytes (contents unspecified) to `f`. Calls may nest, and `f` may run parallel work.
pub(super) fn with<R>(bytes: usize, f: impl FnOnce(NonNull<u8>) -> R) -> R {
    // Nothing stays borrowed while `f` runs: parallel work in `f` may bring this thread back here.
    let kept = PIECES.with_borrow_mut(|pieces| {
        let best = (0..pieces.len()).filter(|&i| pieces[i].bytes >= bytes).min_by_key(|&i| pieces[i].bytes);
        // Where all are too small, one makes room for a larger one.
        best.map(|i| pieces.swap_remove(i)).or_else(|| pieces.pop())
    });
    let piece = kept.filter(|piece| piece.bytes >= bytes).unwrap_or_else(|| Piece::new(bytes));
    let result = f(piece.pointer);
    PIECES.with_borrow_mut(|pieces| {
        if pieces.len() < KEPT {
            pieces.push(piece);
        }
    });
    result
}
