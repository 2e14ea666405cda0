//! Loads, stores and atomics.

#![allow(clippy::needless_range_loop, reason = "a lane's number is meant, in several vectors")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::block::Worker;
use super::lanes::{ALL, LANES, Lanes, Slot};
use super::sync::lanes;
use super::warp::Warp;
use super::{Observer, Request};
use crate::fault::{Fault, FaultKind, counted};
use crate::ir::Inst;
use crate::ir::decode::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::ir::op::{Atomic, Memory, MemoryFlags};
use crate::memory::shadow::{Access, Conflict, WarpAccess, Who};
use crate::parse::{Space, Width};

/// Lanes whose addresses are in one space, as bytes from a base in the host's memory.
pub(super) struct Part {
    pub mask: u32,
    pub base: *mut u8,
    pub offsets: [u64; LANES],
}

impl<const CHECKED: bool, O: Observer> Worker<'_, CHECKED, O> {
    pub(super) fn load(&mut self, warp: &mut Warp, inst: &Inst, at: usize, memory: Memory) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let flags = memory.flags;
        let access = if flags.constant {
            Access::ReadConstant
        } else if flags.strong {
            Access::ReadStrong
        } else {
            Access::Read
        };
        let addresses = addresses(&warp.lanes, program.sources(inst)[0], flags.narrow, memory.offset);
        let bytes = u64::from(flags.bytes) * u64::from(flags.count);
        let destinations = program.destinations(inst);
        self.parts(warp, at, flags.space, bytes, access, &addresses, |lanes, part| {
            for (element, &to) in destinations.iter().enumerate() {
                // SAFETY: the part's bytes lie within one allocation; the slots have the registers' width.
                unsafe { read_lanes(lanes, to, part, element as u64 * u64::from(flags.bytes), flags) };
            }
        })
    }

    pub(super) fn store(&mut self, warp: &mut Warp, inst: &Inst, at: usize, memory: Memory) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let flags = memory.flags;
        let access = if flags.strong { Access::WriteStrong } else { Access::Write };
        let sources = program.sources(inst);
        let addresses = addresses(&warp.lanes, sources[0], flags.narrow, memory.offset);
        let bytes = u64::from(flags.bytes) * u64::from(flags.count);
        self.parts(warp, at, flags.space, bytes, access, &addresses, |lanes, part| {
            for (element, &from) in sources[1..].iter().enumerate() {
                // SAFETY: as in `load`.
                unsafe { write_lanes(lanes, from, part, element as u64 * u64::from(flags.bytes), flags) };
            }
        })
    }

    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        at: usize,
        memory: Memory,
        operation: Atomic,
        returns: bool,
    ) -> Result<(), Box<Fault>> {
        let program = self.grid.program;
        let flags = memory.flags;
        let sources = program.sources(inst);
        let addresses = addresses(&warp.lanes, sources[0], flags.narrow, memory.offset);
        let bytes = u64::from(flags.bytes);
        self.parts(warp, at, flags.space, bytes, Access::ReadStrong, &addresses, |_, _| ())?;
        let (value, second) = (sources[1], sources.get(2).copied());
        let to = returns.then_some(inst.slots.d);
        self.parts(warp, at, flags.space, bytes, Access::WriteStrong, &addresses, |lanes_, part| {
            for lane in lanes(part.mask) {
                let place = part.base.wrapping_add(part.offsets[lane as usize] as usize);
                // SAFETY: aligned bytes of an allocation; slots of the atomic's width.
                unsafe {
                    if bytes == 8 {
                        let own = lanes_.lane::<u64>(value, lane as usize);
                        let other = second.map_or(0, |slot| lanes_.lane::<u64>(slot, lane as usize));
                        let old = atomic64(&*place.cast::<AtomicU64>(), operation, own, other);
                        to.inspect(|&to| lanes_.set_lane(to, lane as usize, old));
                    } else {
                        let own = lanes_.lane::<u32>(value, lane as usize);
                        let other = second.map_or(0, |slot| lanes_.lane::<u32>(slot, lane as usize));
                        let old = atomic32(&*place.cast::<AtomicU32>(), operation, own, other);
                        to.inspect(|&to| lanes_.set_lane(to, lane as usize, old));
                    }
                }
            }
        })
    }

    /// Splits a warp's access by spaces, checks each part, shows it to the observer and hands it on.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "an access has this many sides")]
    pub(super) fn parts(
        &mut self,
        warp: &mut Warp,
        at: usize,
        space: Space,
        bytes: u64,
        access: Access,
        addresses: &[u64; LANES],
        mut act: impl FnMut(&mut Lanes, &Part),
    ) -> Result<(), Box<Fault>> {
        let mask = warp.lanes.mask;
        let mut low = 0;
        for lane in 0..LANES {
            low |= if mask >> lane & 1 != 0 { addresses[lane] } else { 0 };
        }
        if low & (bytes - 1) != 0 {
            return Err(misaligned(mask, bytes, addresses));
        }
        if space != Space::Generic {
            let part = self.part(warp, at, space, mask, bytes, access, addresses)?;
            self.observer.access(at, Request { space, access, bytes, mask, addresses });
            act(&mut warp.lanes, &part);
            return Ok(());
        }
        let within = |base: u64| {
            (0..LANES)
                .fold(0u32, |all, lane| all | u32::from(addresses[lane].wrapping_sub(base) < WINDOW_BYTES) << lane)
        };
        let (shared, local) = (mask & within(SHARED_WINDOW), mask & within(LOCAL_WINDOW));
        let spaces = [
            (Space::Global, mask & !shared & !local, 0),
            (Space::Shared, shared, SHARED_WINDOW),
            (Space::Local, local, LOCAL_WINDOW),
        ];
        for (space, part, base) in spaces.into_iter().filter(|(_, part, _)| *part != 0) {
            let moved = addresses.map(|address| address.wrapping_sub(base));
            warp.lanes.mask = part;
            let outcome = self.part(warp, at, space, part, bytes, access, &moved);
            let part = outcome?;
            self.observer.access(at, Request { space, access, bytes, mask: part.mask, addresses: &moved });
            act(&mut warp.lanes, &part);
            warp.lanes.mask = mask;
        }
        Ok(())
    }

    /// Checks an access within one space.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "an access has this many sides")]
    pub(super) fn part(
        &mut self,
        warp: &Warp,
        at: usize,
        space: Space,
        mask: u32,
        bytes: u64,
        access: Access,
        addresses: &[u64; LANES],
    ) -> Result<Part, Box<Fault>> {
        let moment = self.moment(warp);
        let what = WarpAccess { access, bytes, mask, moment, generation: self.grid.launch };
        match space {
            Space::Shared => {
                self.within(space, self.shared_bytes, mask, bytes, addresses)?;
                if CHECKED {
                    let outcome = self.shadow.access(what, addresses);
                    outcome
                        .map_err(|(lane, conflict)| self.conflict(space, access, bytes, addresses, lane, conflict))?;
                }
                Ok(Part { mask, base: self.shared.as_ptr(), offsets: *addresses })
            }
            Space::Local => {
                let each = u64::from(self.grid.program.local_bytes);
                self.within(space, each, mask, bytes, addresses)?;
                let mut offsets = [0; LANES];
                for lane in lanes(mask) {
                    let thread = u64::from(warp.index * 32 + lane);
                    offsets[lane as usize] = thread * each + addresses[lane as usize];
                }
                if CHECKED {
                    self.local_access(access, bytes, mask, &offsets)?;
                }
                Ok(Part { mask, base: self.local.as_ptr(), offsets })
            }
            _ => {
                self.in_allocation(at, mask, bytes, addresses)?;
                let memory = self.grid.memory;
                let start = memory.at(addresses[mask.trailing_zeros() as usize]);
                let first = memory.offset(addresses[mask.trailing_zeros() as usize]);
                let base = start.wrapping_sub(first as usize);
                let offsets = addresses.map(|address| memory.offset(address));
                if CHECKED && self.copies != 0 && !access.is_read() {
                    self.writes_source(warp, bytes, mask, addresses)?;
                }
                if CHECKED && let Some(shadow) = memory.shadow() {
                    if let Some(first) = self.grid.beside {
                        let early = if self.waited { 0 } else { mask & !warp.waited };
                        let outcome = shadow.beside(WarpAccess { mask: early, ..what }, &offsets, mask, first);
                        outcome.map_err(|lane| self.too_early(access, bytes, addresses, lane))?;
                    }
                    let outcome = shadow.access(what, &offsets);
                    outcome
                        .map_err(|(lane, conflict)| self.conflict(space, access, bytes, addresses, lane, conflict))?;
                }
                Ok(Part { mask, base, offsets })
            }
        }
    }

    #[inline(always)]
    fn within(&self, space: Space, size: u64, mask: u32, bytes: u64, offsets: &[u64; LANES]) -> Result<(), Box<Fault>> {
        let last = size.wrapping_sub(bytes);
        let mut outside = 0;
        for lane in 0..LANES {
            outside |= u32::from(offsets[lane] > last) << lane;
        }
        outside = if size < bytes { mask } else { outside & mask };
        if outside == 0 {
            return Ok(());
        }
        let lane = outside.trailing_zeros();
        let message = format!(
            "accesses {} at {} of {} of {} memory",
            counted(bytes, "byte"),
            offsets[lane as usize] as i64,
            counted(size, "byte"),
            space.name()
        );
        Err(Fault::new(FaultKind::OutOfBounds, lane, message))
    }

    /// Each lane's bytes lie within an allocation.
    #[inline(always)]
    fn in_allocation(&mut self, at: usize, mask: u32, bytes: u64, addresses: &[u64; LANES]) -> Result<(), Box<Fault>> {
        let (start, end) = self.caches[at];
        let last = end.wrapping_sub(bytes);
        let mut outside = 0u32;
        for lane in 0..LANES {
            outside |= u32::from(addresses[lane] < start || addresses[lane] > last) << lane;
        }
        if outside & mask == 0 && end != 0 {
            return Ok(());
        }
        self.find_allocation(at, mask, bytes, addresses)
    }

    #[cold]
    fn find_allocation(
        &mut self,
        at: usize,
        mask: u32,
        bytes: u64,
        addresses: &[u64; LANES],
    ) -> Result<(), Box<Fault>> {
        let memory = self.grid.memory;
        for lane in lanes(mask) {
            let address = addresses[lane as usize];
            match memory.allocation(address) {
                Some((start, end)) if bytes <= end - address => self.caches[at] = (start, end),
                found => {
                    let size = counted(bytes, "byte");
                    let message = match found {
                        Some((start, end)) => format!(
                            "accesses {size} at {address:#x}, {} of {} of its allocation",
                            address - start,
                            counted(end - start, "byte")
                        ),
                        None => format!("accesses {size} at {address:#x}, in no allocation"),
                    };
                    return Err(Fault::new(FaultKind::OutOfBounds, lane, message));
                }
            }
        }
        Ok(())
    }

    fn local_access(
        &mut self,
        access: Access,
        bytes: u64,
        mask: u32,
        offsets: &[u64; LANES],
    ) -> Result<(), Box<Fault>> {
        for lane in lanes(mask) {
            let from = offsets[lane as usize] as usize;
            let written = &mut self.local_written[from..from + bytes as usize];
            if matches!(access, Access::Write | Access::WriteStrong) {
                written.fill(1);
            } else if written.contains(&0) {
                let size = counted(bytes, "byte");
                let message = format!("reads {size} of local memory that it never wrote");
                return Err(Fault::new(FaultKind::UnwrittenMemory, lane, message));
            }
        }
        Ok(())
    }

    #[cold]
    pub(super) fn source_written(&self, bytes: u64, lane: u32, addresses: &[u64; LANES], reader: u32) -> Box<Fault> {
        let size = counted(bytes, "byte");
        let place = self.place(Space::Global, addresses[lane as usize]);
        let [bx, by, _] = self.grid.block;
        let (x, y, z) = (reader % bx, reader / bx % by, reader / (bx * by));
        let message = format!(
            "writes {size} at {place}, from which a cp.async of thread ({x},{y},{z}) is under way that nobody waited for"
        );
        Fault::new(FaultKind::AsyncCopy, lane, message)
    }

    #[cold]
    fn too_early(&self, access: Access, bytes: u64, addresses: &[u64; LANES], lane: u32) -> Box<Fault> {
        let size = counted(bytes, "byte");
        let place = self.place(Space::Global, addresses[lane as usize]);
        let (does, did) = if access.is_read() { ("reads", "wrote") } else { ("writes", "used") };
        let message = format!(
            "{does} {size} at {place}, which a launch before {did}; it may still run: no griddepcontrol.wait between"
        );
        Fault::new(FaultKind::DependentLaunch, lane, message)
    }

    /// An address in words.
    fn place(&self, space: Space, address: u64) -> String {
        match space {
            Space::Shared => format!("byte {address} of shared memory"),
            _ => match self.grid.memory.allocation(address) {
                Some((start, end)) => {
                    format!("byte {} of an allocation of {} ({address:#x})", address - start, end - start)
                }
                None => format!("{address:#x}"),
            },
        }
    }

    #[cold]
    pub(super) fn conflict(
        &self,
        space: Space,
        access: Access,
        bytes: u64,
        addresses: &[u64; LANES],
        lane: u32,
        conflict: Conflict,
    ) -> Box<Fault> {
        let size = counted(bytes, "byte");
        let place = self.place(space, addresses[lane as usize]);
        let does = if access.is_read() { "reads" } else { "writes" };
        let [gx, gy, _] = self.grid.grid.map(u64::from);
        let [bx, by, _] = self.grid.block;
        let name = |who: Who| match (who.block, who.thread) {
            (Some(block), _) if block != self.block_index => {
                format!("block ({},{},{})", block % gx, block / gx % gy, block / (gx * gy))
            }
            (_, Some(t)) => format!("thread ({},{},{})", t % bx, t / bx % by, t / (bx * by)),
            (Some(_), None) => "several threads of the block".into(),
            (None, _) => "several blocks".into(),
        };
        let (kind, message) = match conflict {
            Conflict::Unwritten => {
                (FaultKind::UnwrittenMemory, format!("{does} {size} at {place}, which nobody wrote"))
            }
            Conflict::Written(who) => (
                FaultKind::Race,
                format!("{does} {size} at {place}, which {} wrote without a barrier between", name(who)),
            ),
            Conflict::ReadBy(who) => (
                FaultKind::Race,
                format!("{does} {size} at {place}, which {} read without a barrier between", name(who)),
            ),
            Conflict::NotConstant(who) => (
                FaultKind::ReadOnlyPath,
                format!("{does} {size} at {place}: read by ld.global.nc and written ({}) in one grid", name(who)),
            ),
            Conflict::InFlight => (
                FaultKind::AsyncCopy,
                format!("{does} {size} at {place}, to which a cp.async is under way that nobody waited for"),
            ),
        };
        Fault::new(kind, lane, message)
    }
}

#[cold]
fn misaligned(mask: u32, bytes: u64, addresses: &[u64; LANES]) -> Box<Fault> {
    let lane = lanes(mask).find(|&lane| addresses[lane as usize] & (bytes - 1) != 0).unwrap_or(0);
    let size = counted(bytes, "byte");
    let message = format!("accesses {size} at {:#x}, which is not aligned to them", addresses[lane as usize]);
    Fault::new(FaultKind::Misaligned, lane, message)
}

#[inline(always)]
pub(super) fn addresses(lanes: &Lanes, slot: Slot, narrow: bool, offset: i64) -> [u64; LANES] {
    // SAFETY: decoded slots have the address's width.
    unsafe {
        if narrow {
            // The sum has 32 bits too.
            lanes.read::<u32>(slot).map(|address| u64::from(address.wrapping_add(offset as u32)))
        } else {
            lanes.read::<u64>(slot).map(|address| address.wrapping_add(offset as u64))
        }
    }
}

/// Reads one element of each lane of a part into a register.
///
/// # Safety
/// The bytes are allocated, and the slot is of `flags.width`.
#[inline(always)]
unsafe fn read_lanes(lanes_: &mut Lanes, to: Slot, part: &Part, shift: u64, flags: MemoryFlags) {
    macro_rules! case {
        ($memory:ty => $register:ty) => {{
            let base = part.base.wrapping_add(shift as usize);
            let size = size_of::<$memory>() as u64;
            let mut out = [<$register>::default(); LANES];
            if part.mask == ALL && flags.count == 1 && contiguous(&part.offsets, size) {
                let all = base.wrapping_add(part.offsets[0] as usize).cast::<[$memory; LANES]>();
                // SAFETY: the caller's promise.
                let all = unsafe { all.read_unaligned() };
                for lane in 0..LANES {
                    out[lane] = all[lane] as $register;
                }
            } else if part.mask == ALL {
                for lane in 0..LANES {
                    let from = base.wrapping_add(part.offsets[lane] as usize).cast::<$memory>();
                    // SAFETY: the caller's promise.
                    out[lane] = unsafe { from.read_unaligned() } as $register;
                }
            } else {
                for lane in lanes(part.mask) {
                    let from = base.wrapping_add(part.offsets[lane as usize] as usize).cast::<$memory>();
                    // SAFETY: the caller's promise.
                    out[lane as usize] = unsafe { from.read_unaligned() } as $register;
                }
            }
            // SAFETY: the caller's promise.
            unsafe { lanes_.write::<$register>(to, &out) }
        }};
    }
    match (flags.bytes, flags.signed, flags.width) {
        (4, _, Width::B32) => case!(u32 => u32),
        (2, _, Width::B16) => case!(u16 => u16),
        (8, _, Width::B64) => case!(u64 => u64),
        (1, false, Width::B16) => case!(u8 => u16),
        (1, true, Width::B16) => case!(i8 => i16),
        (1, false, Width::B32) => case!(u8 => u32),
        (1, true, Width::B32) => case!(i8 => i32),
        (1, false, Width::B64) => case!(u8 => u64),
        (1, true, Width::B64) => case!(i8 => i64),
        (2, false, Width::B32) => case!(u16 => u32),
        (2, true, Width::B32) => case!(i16 => i32),
        (2, false, Width::B64) => case!(u16 => u64),
        (2, true, Width::B64) => case!(i16 => i64),
        (4, false, Width::B64) => case!(u32 => u64),
        (4, true, Width::B64) => case!(i32 => i64),
        _ => {}
    }
}

/// Writes one element of each lane of a part.
///
/// # Safety
/// As for [`read_lanes`].
#[inline(always)]
unsafe fn write_lanes(lanes_: &Lanes, from: Slot, part: &Part, shift: u64, flags: MemoryFlags) {
    macro_rules! case {
        ($register:ty => $memory:ty) => {{
            let base = part.base.wrapping_add(shift as usize);
            let size = size_of::<$memory>() as u64;
            // SAFETY: the caller's promise.
            let values = unsafe { lanes_.read::<$register>(from) };
            if part.mask == ALL && flags.count == 1 && contiguous(&part.offsets, size) {
                let all = values.map(|value| value as $memory);
                // SAFETY: the caller's promise.
                unsafe { base.wrapping_add(part.offsets[0] as usize).cast::<[$memory; LANES]>().write_unaligned(all) };
            } else if part.mask == ALL {
                for lane in 0..LANES {
                    let to = base.wrapping_add(part.offsets[lane] as usize).cast::<$memory>();
                    // SAFETY: the caller's promise.
                    unsafe { to.write_unaligned(values[lane] as $memory) };
                }
            } else {
                for lane in lanes(part.mask) {
                    let to = base.wrapping_add(part.offsets[lane as usize] as usize).cast::<$memory>();
                    // SAFETY: the caller's promise.
                    unsafe { to.write_unaligned(values[lane as usize] as $memory) };
                }
            }
        }};
    }
    match (flags.bytes, flags.width) {
        (4, Width::B32) => case!(u32 => u32),
        (2, Width::B16) => case!(u16 => u16),
        (8, Width::B64) => case!(u64 => u64),
        (1, Width::B16) => case!(u16 => u8),
        (1, Width::B32) => case!(u32 => u8),
        (1, Width::B64) => case!(u64 => u8),
        (2, Width::B32) => case!(u32 => u16),
        (2, Width::B64) => case!(u64 => u16),
        (4, Width::B64) => case!(u64 => u32),
        _ => {}
    }
}

#[inline(always)]
fn contiguous(offsets: &[u64; LANES], size: u64) -> bool {
    let mut apart = 0;
    for lane in 1..LANES {
        apart |= offsets[lane].wrapping_sub(offsets[0]) ^ (lane as u64 * size);
    }
    apart == 0
}

macro_rules! atomics {
    ($name:ident, $atomic:ty, $value:ty, $signed:ty) => {
        fn $name(place: &$atomic, operation: Atomic, value: $value, second: $value) -> $value {
            let order = Ordering::SeqCst;
            let update = |f: &dyn Fn($value) -> $value| {
                place.fetch_update(order, order, |old| Some(f(old))).unwrap_or_else(|old| old)
            };
            match operation {
                Atomic::Add => place.fetch_add(value, order),
                Atomic::Min => place.fetch_min(value, order),
                Atomic::Max => place.fetch_max(value, order),
                Atomic::MinSigned => update(&|old| (old as $signed).min(value as $signed) as $value),
                Atomic::MaxSigned => update(&|old| (old as $signed).max(value as $signed) as $value),
                Atomic::And => place.fetch_and(value, order),
                Atomic::Or => place.fetch_or(value, order),
                Atomic::Xor => place.fetch_xor(value, order),
                Atomic::Exchange => place.swap(value, order),
                Atomic::Compare => place.compare_exchange(value, second, order, order).unwrap_or_else(|old| old),
                Atomic::Inc => update(&|old| if old >= value { 0 } else { old + 1 }),
                Atomic::Dec => update(&|old| if old == 0 || old > value { value } else { old - 1 }),
            }
        }
    };
}
atomics!(atomic32, AtomicU32, u32, i32);
atomics!(atomic64, AtomicU64, u64, i64);
