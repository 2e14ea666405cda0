//! Registers that hold matrices: those of Intel's AMX, and a scalar model of them.
//!
//! Eight registers of 16 rows of 64 bytes; here 0 to 3 hold 16 x 16 sums in f32, 4 and 5 the rows of a left side, `[16][chunk]`
//! pairs of bf16, 6 and 7 a right side, `[chunk][16]` pairs. A product (`tdpbf16ps`, "Intel 64 and IA-32 Architectures Software
//! Developer's Manual", volume 2) sums the first elements' products over the chunk from zero, each step one fused multiply-add,
//! likewise the second elements'; then adds the two sums, and that to what the register holds. Denormals are zero, on the way in and out.

use std::cell::RefCell;

use crate::device::instructions;

/// Rows of a register, and lanes of a row.
pub(crate) const SIDE: usize = 16;

/// Matrix registers of the calling thread.
pub trait MatrixRegisters: Copy + Send + Sync {
    /// Whether there are any.
    const EXIST: bool = true;

    /// Takes them into use, for chunks of so many steps, 1 to 16, a pair each. What they hold is unspecified.
    ///
    /// # Safety
    /// They are closed before the thread runs foreign code.
    unsafe fn open(self, chunk: usize);

    /// Gives them back.
    ///
    /// # Safety
    /// They are open.
    unsafe fn close(self);

    /// Fills a register with zeros.
    ///
    /// # Safety
    /// They are open.
    unsafe fn zero<const REGISTER: u8>(self);

    /// Loads a register's rows, `stride` bytes apart.
    ///
    /// # Safety
    /// They are open, and each row's bytes are readable.
    unsafe fn load<const REGISTER: u8>(self, from: *const u8, stride: usize);

    /// Stores a register of sums, its rows `stride` bytes apart.
    ///
    /// # Safety
    /// They are open, and each row's 64 bytes may be written.
    unsafe fn store<const REGISTER: u8>(self, to: *mut u8, stride: usize);

    /// `SUMS += LEFT · RIGHT`.
    ///
    /// # Safety
    /// They are open.
    unsafe fn multiply_add<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(self);
}

/// Of processors that have none.
#[derive(Clone, Copy)]
pub struct NoRegisters;

impl MatrixRegisters for NoRegisters {
    const EXIST: bool = false;

    unsafe fn open(self, _chunk: usize) {
        unreachable!("no matrix registers")
    }
    unsafe fn close(self) {}
    unsafe fn zero<const REGISTER: u8>(self) {}
    unsafe fn load<const REGISTER: u8>(self, _from: *const u8, _stride: usize) {}
    unsafe fn store<const REGISTER: u8>(self, _to: *mut u8, _stride: usize) {}
    unsafe fn multiply_add<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(self) {}
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;

    use super::{MatrixRegisters, SIDE};
    use crate::device::instructions::TileProducts;

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    // The compiler uses no tile register by itself. Each block is volatile, so that they stay in order.
    impl MatrixRegisters for TileProducts {
        #[inline(always)]
        unsafe fn open(self, chunk: usize) {
            let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
            shapes.row_bytes[..8].fill(64);
            shapes.rows[..8].fill(SIDE as u8);
            shapes.row_bytes[4..6].fill(4 * chunk as u16);
            shapes.rows[6..8].fill(chunk as u8);
            // SAFETY: the processor has tiles of these shapes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, preserves_flags, readonly)) };
        }
        #[inline(always)]
        unsafe fn close(self) {
            // SAFETY: the processor has tiles.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
        #[inline(always)]
        unsafe fn zero<const REGISTER: u8>(self) {
            // SAFETY: the caller opened the registers.
            unsafe { asm!("tilezero tmm{}", const REGISTER, options(nostack, preserves_flags, nomem)) };
        }
        #[inline(always)]
        unsafe fn load<const REGISTER: u8>(self, from: *const u8, stride: usize) {
            // SAFETY: as the caller promises.
            unsafe {
                asm!("tileloadd tmm{}, [{} + 1*{}]", const REGISTER, in(reg) from, in(reg) stride,
                    options(nostack, preserves_flags, readonly));
            }
        }
        #[inline(always)]
        unsafe fn store<const REGISTER: u8>(self, to: *mut u8, stride: usize) {
            // SAFETY: as the caller promises.
            unsafe {
                asm!("tilestored [{} + 1*{}], tmm{}", in(reg) to, in(reg) stride, const REGISTER,
                    options(nostack, preserves_flags));
            }
        }
        #[inline(always)]
        unsafe fn multiply_add<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(self) {
            // SAFETY: the caller opened the registers.
            unsafe {
                asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const LEFT, const RIGHT,
                    options(nostack, preserves_flags, nomem));
            }
        }
    }
}

/// A scalar model of them, bit for bit.
#[derive(Clone, Copy)]
pub struct Model;

/// The model's registers: each `[16][16]` words, whatever their shapes.
struct State {
    chunk: usize,
    words: [[u32; SIDE * SIDE]; 8],
}

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State { chunk: 0, words: [[0; SIDE * SIDE]; 8] }) };
}

impl State {
    /// Rows of a register, and words of a row.
    fn shape(&self, register: u8) -> (usize, usize) {
        match register {
            0..4 => (SIDE, SIDE),
            4..6 => (SIDE, self.chunk),
            _ => (self.chunk, SIDE),
        }
    }
}

impl MatrixRegisters for Model {
    unsafe fn open(self, chunk: usize) {
        assert!((1..=SIDE).contains(&chunk), "a chunk of {chunk} steps");
        STATE.with_borrow_mut(|state| {
            assert_eq!(state.chunk, 0, "matrix registers are opened twice");
            state.chunk = chunk;
        });
    }
    unsafe fn close(self) {
        STATE.with_borrow_mut(|state| state.chunk = 0);
    }
    unsafe fn zero<const REGISTER: u8>(self) {
        STATE.with_borrow_mut(|state| state.words[usize::from(REGISTER)].fill(0));
    }
    unsafe fn load<const REGISTER: u8>(self, from: *const u8, stride: usize) {
        STATE.with_borrow_mut(|state| {
            let (rows, words) = state.shape(REGISTER);
            for (i, row) in state.words[usize::from(REGISTER)].chunks_exact_mut(SIDE).enumerate().take(rows) {
                // SAFETY: as the caller promises.
                unsafe { std::ptr::copy_nonoverlapping(from.add(i * stride), row.as_mut_ptr().cast(), 4 * words) };
            }
        });
    }
    unsafe fn store<const REGISTER: u8>(self, to: *mut u8, stride: usize) {
        STATE.with_borrow_mut(|state| {
            let (rows, words) = state.shape(REGISTER);
            for (i, row) in state.words[usize::from(REGISTER)].chunks_exact(SIDE).enumerate().take(rows) {
                // SAFETY: as the caller promises.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr().cast(), to.add(i * stride), 4 * words) };
            }
        });
    }
    unsafe fn multiply_add<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(self) {
        STATE.with_borrow_mut(|state| {
            let [left, right] = [LEFT, RIGHT].map(|register| state.words[usize::from(register)]);
            let (sums, chunk) = (&mut state.words[usize::from(SUMS)], state.chunk);
            instructions::dispatch(
                #[inline(always)]
                || multiply_add(sums, &left, &right, chunk),
            );
        });
    }
}

/// Denormals become zero, with their sign.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// The first and the second of a pair.
#[inline(always)]
fn elements(pair: u32) -> [f32; 2] {
    [pair << 16, pair & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
}

/// `sums += left · right` of whole registers.
#[inline(always)]
pub(super) fn multiply_add(sums: &mut [u32; 256], left: &[u32; 256], right: &[u32; 256], chunk: usize) {
    for (sums, left) in sums.chunks_exact_mut(SIDE).zip(left.chunks_exact(SIDE)) {
        let mut totals = [[0.0f32; SIDE]; 2];
        for (&left, right) in left.iter().zip(right.chunks_exact(SIDE)).take(chunk) {
            let left = elements(left);
            for (lane, &right) in right.iter().enumerate() {
                let right = elements(right);
                for ((total, left), right) in totals.iter_mut().zip(left).zip(right) {
                    total[lane] = flushed(left.mul_add(right, total[lane]));
                }
            }
        }
        for ((sum, first), second) in sums.iter_mut().zip(totals[0]).zip(totals[1]) {
            *sum = flushed(flushed(f32::from_bits(*sum)) + flushed(first + second)).to_bits();
        }
    }
}
