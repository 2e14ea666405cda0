//! `ldmatrix` and `mma.sync`, with the fragments of the PTX ISA ("Matrix Fragments for mma.m16n8k16 …").
//!
//! With `group = lane / 4` and `t = lane % 4`: C and D [16, 8] have rows group and group + 8, columns 2t and 2t + 1. A word of A or B
//! holds two 16-bit elements that follow each other along k. Products are exact in f32 and are added in the order of k.

use super::Observer;
use super::access::addresses;
use super::approx::{bf16_to, f16_to};
use super::block::Worker;
use super::lanes::{LANES, Slot};
use super::warp::Warp;
use crate::fault::{Fault, FaultKind};
use crate::ir::Inst;
use crate::ir::op::{Kind, MmaType};
use crate::memory::shadow::Access;
use crate::parse::Space;

impl<const CHECKED: bool, O: Observer> Worker<'_, CHECKED, O> {
    /// Lane `8 i + r` gives the address of row r of matrix i; each lane receives of every matrix the pair (group, 2t), (group, 2t + 1),
    /// or transposed (2t, group), (2t + 1, group).
    pub(super) fn load_matrix(&mut self, warp: &mut Warp, inst: &Inst, at: usize) -> Result<(), Box<Fault>> {
        let Kind::LoadMatrix { count, transposed, narrow, offset } = inst.kind else { return Ok(()) };
        let program = self.grid.program;
        let mut rows = addresses(&warp.lanes, program.sources(inst)[0], narrow, offset);
        if !narrow {
            // A generic address into shared memory is allowed too.
            use crate::ir::decode::{SHARED_WINDOW, WINDOW_BYTES};
            rows =
                rows.map(|row| if row.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES { row - SHARED_WINDOW } else { row });
        }
        let all = warp.lanes.mask;
        let used = 8 * u32::from(count);
        warp.lanes.mask = if used == 32 { all } else { (1 << used) - 1 };
        let reading = warp.lanes.mask;
        let mut tile = [[0u16; 8]; LANES];
        let outcome = self.parts(warp, at, Space::Shared, 16, Access::Read, &rows, |_, part| {
            for lane in super::sync::lanes(reading) {
                let from = part.base.wrapping_add(part.offsets[lane as usize] as usize).cast::<[u16; 8]>();
                // SAFETY: bytes within shared memory, as `parts` has found.
                tile[lane as usize] = unsafe { from.read_unaligned() };
            }
        });
        warp.lanes.mask = all;
        // The rows belong to lanes, but every lane receives what they hold.
        outcome.map_err(|mut fault| {
            if fault.kind == FaultKind::Misaligned {
                fault.message = format!("a matrix row: {}", fault.message);
            }
            fault
        })?;
        for (matrix, &to) in program.destinations(inst).iter().enumerate() {
            let mut words = [0u32; LANES];
            for (lane, word) in words.iter_mut().enumerate() {
                let (group, t) = (lane / 4, lane % 4);
                let (low, high) = if transposed {
                    (tile[8 * matrix + 2 * t][group], tile[8 * matrix + 2 * t + 1][group])
                } else {
                    (tile[8 * matrix + group][2 * t], tile[8 * matrix + group][2 * t + 1])
                };
                *word = u32::from(low) | u32::from(high) << 16;
            }
            // SAFETY: a word's slot.
            unsafe { warp.lanes.write(to, &words) };
        }
        Ok(())
    }

    pub(super) fn mma(&mut self, warp: &mut Warp, inst: &Inst) {
        let Kind::Mma { kind, k } = inst.kind else { return };
        let program = self.grid.program;
        let (k, sources) = (usize::from(k), program.sources(inst));
        let read = |slot: Slot| -> [u32; LANES] {
            // SAFETY: words' slots.
            unsafe { warp.lanes.read(slot) }
        };
        let (a_words, b_words) = (sources.len() - 4 - (sources.len() - 4) / 3, (sources.len() - 4) / 3);
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        let value = |word: u32, half: usize| match kind {
            MmaType::Bf16 => bf16_to((word >> (16 * half)) as u16),
            MmaType::F16 => f16_to((word >> (16 * half)) as u16),
            // The lower 13 bits are not looked at.
            MmaType::Tf32 => f32::from_bits(word & !0x1fff),
        };
        let halves = if kind == MmaType::Tf32 { 1 } else { 2 };
        for (index, &slot) in sources[..a_words].iter().enumerate() {
            let words = read(slot);
            for (lane, &word) in words.iter().enumerate() {
                let (group, t) = (lane / 4, lane % 4);
                for half in 0..halves {
                    // Words go down the rows first, then along k by half of it.
                    let (row, column) = (group + 8 * (index % 2), halves * t + half + 4 * halves * (index / 2));
                    a[row][column] = value(word, half);
                }
            }
        }
        for (index, &slot) in sources[a_words..a_words + b_words].iter().enumerate() {
            let words = read(slot);
            for (lane, &word) in words.iter().enumerate() {
                let (group, t) = (lane / 4, lane % 4);
                for half in 0..halves {
                    b[halves * t + half + 4 * halves * index][group] = value(word, half);
                }
            }
        }
        let mut c = [[0f32; 8]; 16];
        for (index, &slot) in sources[a_words + b_words..].iter().enumerate() {
            let words = read(slot);
            for (lane, &word) in words.iter().enumerate() {
                c[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2] = f32::from_bits(word);
            }
        }
        for (row, sums) in c.iter_mut().enumerate() {
            for (a, b) in a[row][..k].iter().zip(&b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        for (index, &to) in program.destinations(inst).iter().enumerate() {
            let words: [u32; LANES] =
                std::array::from_fn(|lane| c[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2].to_bits());
            // SAFETY: a word's slot.
            unsafe { warp.lanes.write(to, &words) };
        }
    }
}
