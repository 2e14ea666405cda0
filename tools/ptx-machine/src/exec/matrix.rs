//! `ldmatrix` and `mma.sync`, with the fragments of the PTX ISA ("Matrix Fragments for mma.m16n8k16 …").
//!
//! With `group = lane / 4` and `t = lane % 4`: C and D [16, 8] have rows group and group + 8, columns 2t and 2t + 1. A word of A or B
//! holds two 16-bit elements that follow each other along k. Products are exact in f32 and are added in the order of k.

use super::Observer;
use super::access::addresses;
use super::approx::{bf16_to, f16_to};
use super::block::Worker;
use super::lanes::{LANES, level};
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
        let sources = program.sources(inst);
        // A has twice the words of B, and C four.
        let b_words = (sources.len() - 4) / 3;
        let (a_slots, rest) = sources.split_at(2 * b_words);
        let (b_slots, c_slots) = rest.split_at(b_words);
        let (mut a, mut b, mut c) = ([[0; LANES]; 4], [[0; LANES]; 2], [[0; LANES]; 4]);
        for (words, slots) in [(&mut a[..], a_slots), (&mut b[..], b_slots), (&mut c[..], c_slots)] {
            for (words, &slot) in words.iter_mut().zip(slots) {
                // SAFETY: words' slots.
                *words = unsafe { warp.lanes.read(slot) };
            }
        }
        // SAFETY: the processor has the instructions of its level.
        unsafe { PRODUCTS[level()](kind, usize::from(k), &a[..2 * b_words], &b[..b_words], &mut c) };
        for (words, &to) in c.iter().zip(program.destinations(inst)) {
            // SAFETY: a word's slot.
            unsafe { warp.lanes.write(to, words) };
        }
    }
}

type Words = [u32; LANES];

/// C becomes A B + C.
type Product = unsafe fn(MmaType, usize, &[Words], &[Words], &mut [Words; 4]);

/// By [`level`].
const PRODUCTS: [Product; 3] = [product, wide, widest];

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt"))]
unsafe fn wide(kind: MmaType, k: usize, a: &[Words], b: &[Words], c: &mut [Words; 4]) {
    product(kind, k, a, b, c);
}

#[cfg_attr(
    target_arch = "x86_64",
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")
)]
unsafe fn widest(kind: MmaType, k: usize, a: &[Words], b: &[Words], c: &mut [Words; 4]) {
    product(kind, k, a, b, c);
}

#[inline(always)]
fn product(kind: MmaType, k: usize, a: &[Words], b: &[Words], c: &mut [Words; 4]) {
    match kind {
        MmaType::Bf16 => product_of::<2>(k, a, b, c, |word, half| bf16_to((word >> (16 * half)) as u16)),
        MmaType::F16 => product_of::<2>(k, a, b, c, |word, half| f16_to((word >> (16 * half)) as u16)),
        // The lower 13 bits are not looked at.
        MmaType::Tf32 => product_of::<1>(k, a, b, c, |word, _| f32::from_bits(word & !0x1fff)),
    }
}

/// For `ELEMENTS` a word, each of which `value` takes out.
#[inline(always)]
fn product_of<const ELEMENTS: usize>(
    k: usize,
    a: &[Words],
    b: &[Words],
    c: &mut [Words; 4],
    value: impl Fn(u32, usize) -> f32,
) {
    let (mut left, mut right, mut sums) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    for (index, words) in a.iter().enumerate() {
        for (lane, &word) in words.iter().enumerate() {
            // Words go down the rows first, then along k by half of it.
            let (row, column) = (lane / 4 + 8 * (index % 2), ELEMENTS * (lane % 4 + 4 * (index / 2)));
            for element in 0..ELEMENTS {
                left[row][column + element] = value(word, element);
            }
        }
    }
    for (index, words) in b.iter().enumerate() {
        for (lane, &word) in words.iter().enumerate() {
            for element in 0..ELEMENTS {
                right[ELEMENTS * (lane % 4 + 4 * index) + element][lane / 4] = value(word, element);
            }
        }
    }
    for (index, words) in c.iter().enumerate() {
        for (lane, &word) in words.iter().enumerate() {
            sums[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2] = f32::from_bits(word);
        }
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        for (a, b) in left[row][..k].iter().zip(&right) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (index, words) in c.iter_mut().enumerate() {
        for (lane, word) in words.iter_mut().enumerate() {
            *word = sums[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2].to_bits();
        }
    }
}
