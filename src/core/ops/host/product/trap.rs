//! Runs the instructions of AMX on processors without it: a handler of the signal that they raise decodes each from its bytes, as the
//! processor would, and does what it says to a state of its own. So the `asm!` blocks are tested everywhere: their operands, shapes,
//! strides and order.

use std::cell::UnsafeCell;
use std::sync::Once;

use super::registers::{SIDE, multiply_add};
use crate::device::instructions;

/// The processor's state as the instructions see it.
struct Tiles {
    /// Rows of each tile and bytes of a row; zero where none are configured.
    shapes: [(usize, usize); 8],
    words: [[u32; SIDE * SIDE]; 8],
    /// Products so far, so that a test can tell that they ran.
    products: usize,
}

struct OfThread(UnsafeCell<Tiles>);

thread_local! {
    // Neither lazy nor dropped, so that the handler may use it.
    static TILES: OfThread = const { OfThread(UnsafeCell::new(Tiles { shapes: [(0, 0); 8], words: [[0; 256]; 8], products: 0 })) };
}

/// Products that this thread has trapped.
pub(super) fn products() -> usize {
    // SAFETY: the handler runs on this thread, not now.
    TILES.with(|tiles| unsafe { (*tiles.0.get()).products })
}

/// Installs the handler.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The model's arithmetic asks for it: not for the first time in a handler.
        instructions::instruction_set();
        // SAFETY: the handler is of the kind that the flag names, and calls nothing that a handler may not.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the thread, whose instruction pointer is at the instruction.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as *const u8;
        let done = TILES.with(|tiles| Instruction::decode(at, registers)?.run(&mut *tiles.0.get()));
        match done {
            Some(length) => registers[libc::REG_RIP as usize] += length as i64,
            // Not ours: it is raised again, without this handler.
            None => {
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

/// An instruction with a VEX prefix of three bytes.
struct Instruction {
    /// Prefix in the low two bits of the third byte, opcode, and whether its operand is a register.
    kind: (u8, u8, bool),
    /// The fields `reg`, `rm` and `vvvv`.
    operands: [usize; 3],
    /// Base with displacement, and scaled index.
    address: (usize, usize),
    length: usize,
}

impl Instruction {
    /// # Safety
    /// There is an instruction at `at`.
    unsafe fn decode(at: *const u8, registers: &[i64; 23]) -> Option<Self> {
        use libc::*;
        const ORDER: [c_int; 16] = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        let value = |number: usize| registers[ORDER[number] as usize] as usize;
        // SAFETY: its bytes are readable.
        let byte = |i: usize| unsafe { *at.add(i) };
        // The map 0F38, W and L zero.
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
            return None;
        }
        let high = |bit: u8| usize::from(byte(1) >> bit & 1 ^ 1) * 8;
        let (mode, reg, rm) = (byte(4) >> 6, usize::from(byte(4) >> 3 & 7) + high(7), usize::from(byte(4) & 7));
        let mut length = 5;
        let mut address = (0, 0);
        if mode != 3 {
            let mut base = rm + high(5);
            if rm == 4 {
                let sib = byte(5);
                length += 1;
                base = usize::from(sib & 7) + high(5);
                let index = usize::from(sib >> 3 & 7) + high(6);
                address.1 = if index == 4 { 0 } else { value(index) << (sib >> 6) };
            }
            let displacement = match mode {
                0 if base & 7 == 5 => return None,
                0 => 0,
                1 => isize::from(byte(length).cast_signed()),
                // SAFETY: as above.
                _ => unsafe { at.add(length).cast::<i32>().read_unaligned() as isize },
            };
            length += [0, 1, 4][usize::from(mode)];
            address.0 = value(base).wrapping_add_signed(displacement);
        }
        let third = usize::from(byte(2) >> 3 & 15 ^ 15);
        Some(Self { kind: (byte(2) & 3, byte(3), mode == 3), operands: [reg, rm, third], address, length })
    }

    /// Does it; returns its length. None where it is no instruction of AMX, or one that the processor would refuse.
    ///
    /// # Safety
    /// What it reads and writes is there.
    unsafe fn run(self, tiles: &mut Tiles) -> Option<usize> {
        let [reg, rm, third] = self.operands;
        // SAFETY: as the caller promises.
        unsafe {
            match self.kind {
                (0, 0x49, false) => tiles.configure(self.address.0 as *const u8)?,
                (0, 0x49, true) => tiles.shapes = [(0, 0); 8],
                (3, 0x49, true) => {
                    tiles.shape(reg)?;
                    tiles.words[reg].fill(0);
                }
                (3, 0x4b, false) => tiles.transfer(reg, self.address, false)?,
                (2, 0x4b, false) => tiles.transfer(reg, self.address, true)?,
                (2, 0x5c, true) => tiles.multiply(reg, rm, third)?,
                _ => return None,
            }
        }
        Some(self.length)
    }
}

impl Tiles {
    fn shape(&self, tile: usize) -> Option<(usize, usize)> {
        self.shapes.get(tile).copied().filter(|&(rows, bytes)| rows > 0 && bytes > 0)
    }

    unsafe fn configure(&mut self, from: *const u8) -> Option<()> {
        // SAFETY: as the caller promises.
        let bytes = unsafe { &*from.cast::<[u8; 64]>() };
        let rest_is_zero = bytes[1..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]).all(|&byte| byte == 0);
        (bytes[0] == 1 && rest_is_zero).then_some(())?;
        for (tile, shape) in self.shapes.iter_mut().enumerate() {
            let row_bytes = u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]);
            *shape = (usize::from(bytes[48 + tile]), usize::from(row_bytes));
            (shape.0 <= 16 && shape.1 <= 64).then_some(())?;
        }
        self.words = [[0; 256]; 8];
        Some(())
    }

    unsafe fn transfer(&mut self, tile: usize, (base, stride): (usize, usize), stores: bool) -> Option<()> {
        let (rows, bytes) = self.shape(tile)?;
        if !stores {
            self.words[tile].fill(0);
        }
        for (i, row) in self.words[tile].chunks_exact_mut(SIDE).enumerate().take(rows) {
            let (memory, row) = ((base + i * stride) as *mut u8, row.as_mut_ptr().cast::<u8>());
            let (from, to) = if stores { (row, memory) } else { (memory, row) };
            // SAFETY: as the caller promises.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        }
        Some(())
    }

    fn multiply(&mut self, sums: usize, left: usize, right: usize) -> Option<()> {
        let (to, a, b) = (self.shape(sums)?, self.shape(left)?, self.shape(right)?);
        let fits = a.1 == 4 * b.0 && to.0 == a.0 && to.1 == b.1 && sums != left && sums != right && left != right;
        fits.then_some(())?;
        let [left, right] = [left, right].map(|tile| self.words[tile]);
        let sums = &mut self.words[sums];
        instructions::dispatch(
            #[inline(always)]
            || multiply_add(sums, &left, &right, b.0),
        );
        self.products += 1;
        Some(())
    }
}
