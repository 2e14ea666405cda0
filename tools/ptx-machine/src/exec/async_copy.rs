//! `cp.async`: a copy lands where its thread waits for its group.

use super::access::addresses;
use super::block::Worker;
use super::lanes::LANES;
use super::sync::lanes;
use super::warp::{Copy, Warp};
use super::{Observer, Request};
use crate::fault::{Fault, FaultKind};
use crate::ir::Inst;
use crate::ir::op::Kind;
use crate::memory::shadow::{Access, WarpAccess};
use crate::parse::Space;

impl<const CHECKED: bool, O: Observer> Worker<'_, CHECKED, O> {
    pub(super) fn async_copy(&mut self, warp: &mut Warp, inst: &Inst, at: usize) -> Result<(), Box<Fault>> {
        let Kind::AsyncCopy { bytes, sized, narrow, to_offset, from_offset } = inst.kind else { return Ok(()) };
        let sources = self.grid.program.sources(inst);
        let to = addresses(&warp.lanes, sources[0], narrow, to_offset);
        let from = addresses(&warp.lanes, sources[1], false, from_offset);
        let size = u64::from(bytes);
        let all = warp.lanes.mask;
        let mut read = [size; LANES];
        if sized {
            for lane in lanes(all) {
                // SAFETY: a word's slot.
                let wanted = u64::from(unsafe { warp.lanes.lane::<u32>(sources[2], lane as usize) });
                if wanted > size {
                    let message = format!("a copy of {size} bytes that reads {wanted}");
                    return Err(Fault::new(FaultKind::OutOfBounds, lane, message));
                }
                read[lane as usize] = wanted;
            }
        }
        if let Some(lane) =
            lanes(all).find(|&lane| read[lane as usize] != 0 && !from[lane as usize].is_multiple_of(size))
        {
            let message = format!("copies {size} bytes from {:#x}, which is not aligned to them", from[lane as usize]);
            return Err(Fault::new(FaultKind::Misaligned, lane, message));
        }
        let mut data = [[0u8; 16]; LANES];
        // The source: byte by byte where a copy ends within.
        for step in [size, 1] {
            let mut byte = 0;
            while byte < size {
                let whole = step == size;
                let mask = lanes(all)
                    .filter(|&lane| {
                        if whole {
                            read[lane as usize] == size
                        } else {
                            byte < read[lane as usize] && read[lane as usize] < size
                        }
                    })
                    .fold(0u32, |all, lane| all | 1 << lane);
                if mask != 0 {
                    let places = from.map(|address| address.wrapping_add(byte));
                    let part = self.part(warp, at, Space::Global, mask, step, Access::Read, &places)?;
                    for lane in lanes(part.mask) {
                        let source = part.base.wrapping_add(part.offsets[lane as usize] as usize);
                        let target = &mut data[lane as usize][byte as usize..(byte + step) as usize];
                        // SAFETY: bytes of an allocation, as `part` has found.
                        unsafe { std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len()) };
                    }
                }
                byte += step;
            }
        }
        // One request, whatever part of its bytes a lane wants.
        let mask = lanes(all).filter(|&lane| read[lane as usize] != 0).fold(0u32, |all, lane| all | 1 << lane);
        if mask != 0 {
            let request = Request { space: Space::Global, access: Access::Read, bytes: size, mask, addresses: &from };
            self.observer.access(at, request);
        }
        self.parts(warp, at, Space::Shared, size, Access::WriteLater, &to, |_, _| ())?;
        for lane in lanes(all) {
            let index = lane as usize;
            let read = read[index] as u8;
            let (group, data) = (warp.groups[index], data[index]);
            warp.copies.push(Copy { lane, group, from: from[index], read, to: to[index], bytes, data });
        }
        self.copies += warp.lanes.mask.count_ones();
        Ok(())
    }

    pub(super) fn async_commit(warp: &mut Warp) {
        for lane in lanes(warp.lanes.mask) {
            warp.groups[lane as usize] += 1;
        }
    }

    /// Lets land what the executing lanes wait for: all groups but the newest so many, or everything.
    pub(super) fn async_wait(&mut self, warp: &mut Warp, newest: Option<u32>) -> Result<(), Box<Fault>> {
        let copies = std::mem::take(&mut warp.copies);
        let mut rest = Vec::with_capacity(copies.len());
        for copy in copies {
            let lane = copy.lane as usize;
            let waits = warp.lanes.mask >> lane & 1 != 0
                && newest.is_none_or(|newest| copy.group.saturating_add(newest) < warp.groups[lane]);
            if !waits {
                rest.push(copy);
                continue;
            }
            self.copies -= 1;
            if CHECKED {
                let mut offsets = [0; LANES];
                offsets[lane] = copy.to;
                let what = WarpAccess {
                    access: Access::Land,
                    bytes: u64::from(copy.bytes),
                    mask: 1 << lane,
                    moment: self.moment(warp),
                    generation: 0,
                };
                let outcome = self.shadow.access(what, &offsets);
                outcome.map_err(|(lane, conflict)| {
                    self.conflict(Space::Shared, Access::Land, u64::from(copy.bytes), &offsets, lane, conflict)
                })?;
            }
            let bytes = usize::from(copy.bytes);
            // SAFETY: the place was looked at when the copy began.
            unsafe {
                let to = self.shared.as_ptr().add(copy.to as usize);
                std::ptr::copy_nonoverlapping(copy.data.as_ptr(), to, bytes);
            }
        }
        warp.copies = rest;
        Ok(())
    }

    /// Refuses a write to what a copy of this block is still to read. Other blocks' accesses are ordered by nothing: those are races.
    pub(super) fn writes_source(
        &self,
        warp: &Warp,
        bytes: u64,
        mask: u32,
        addresses: &[u64; LANES],
    ) -> Result<(), Box<Fault>> {
        let written = lanes(mask).map(|lane| addresses[lane as usize]);
        let (first, last) = written.fold((u64::MAX, 0), |(low, high), at| (low.min(at), high.max(at)));
        let copies = self.warps.iter().chain([warp]).flat_map(|warp| warp.copies.iter().map(move |copy| (warp, copy)));
        for (of, copy) in copies {
            let (start, end) = (copy.from, copy.from + u64::from(copy.read));
            if copy.read == 0 || start >= last + bytes || end <= first {
                continue;
            }
            let hits = |lane: &u32| start < addresses[*lane as usize] + bytes && addresses[*lane as usize] < end;
            if let Some(lane) = lanes(mask).find(hits) {
                return Err(self.source_written(bytes, lane, addresses, 32 * of.index + copy.lane));
            }
        }
        Ok(())
    }
}
