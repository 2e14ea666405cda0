//! What kernels do, counted: issue slots by class, sectors of global memory, wavefronts of shared memory, and which launch touched each
//! sector before. Every count is exact and is the same in each run and on any number of host threads.
//!
//! **Instructions.** A warp instruction is one of the PTX that a warp executes with at least one lane there; one whose guard holds in no
//! lane counts too. Its active lanes are those in which the guard holds (of a jump, those that make it). What several places of a warp
//! do together (`shfl` in both sides of a branch) counts once a place.
//! Classes are those of [`Class`](crate::ir::Class); an instruction by a generic address counts as one on global memory, its requests as
//! those of the memory that they reach.
//!
//! **Global memory** moves in sectors of 32 bytes, as many as a warp's lanes touch together (CUDA C++ Best Practices Guide, "Coalesced
//! Access to Global Memory", capability 6.0 and newer). A load, store, atomic or `cp.async` of a warp is one request, whatever the bytes of its lanes; its sectors are the different ones that
//! its active lanes touch. The least is what its different bytes would fill, `ceil(bytes / 32)`. Each lane of a `cp.async` asks for
//! the whole copy's bytes, unless it reads none.
//!
//! **Shared memory** has 32 banks of 4 bytes, and lanes that want the same word get it together (CUDA C++ Programming Guide, "Shared Memory"
//! of the capabilities from 5.x on). A request is done in phases: all lanes for accesses of up to 4 bytes, half warps for 8, quarter warps
//! for 16 (NVIDIA at GTC 2019, session S9593, on accesses of shared memory; NVIDIA/cutlass issue 328). A phase takes as many wavefronts
//! as the most different words that it wants of one bank. `ldmatrix` is a phase for each matrix, of 8 rows of 16 bytes; `cp.async`
//! writes as a store does. For an atomic, lanes at the same word take turns: a phase takes as many wavefronts as lanes come to one
//! bank. The least is what the different bytes would fill, `ceil(bytes / 128)`. Hardware may join phases that want the same words; that
//! is not counted here, so wide loads of few places take one wavefront a phase.
//!
//! **Local memory** counts in bytes: the system lays it out so that a warp's lanes lie side by side.
//!
//! **The footprint** of a launch: sectors that it reads, sectors that it writes, and for those that it reads the launch that touched
//! them (by reading or writing) last before it. Copies and fills are no launches: they touch nothing.

mod counters;
pub mod rules;
mod touch;

use crate::exec::lanes::{ALL, LANES};
use crate::exec::{Observer, Request};
use crate::ir::Program;
use crate::parse::Space;

pub use counters::Counters;
use rules::{Pieces, SECTOR_SHIFT, WAVEFRONT_BYTES, wavefronts};
pub use touch::{Touch, Touches};

/// Bytes of a sector.
pub const SECTOR: u64 = 1 << SECTOR_SHIFT;

/// Executions of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Issued {
    pub issues: u64,
    /// Active lanes.
    pub lanes: u64,
    /// Executions without an active lane.
    pub skipped: u64,
}

/// Their accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accessed {
    pub global_requests: u64,
    pub global_sectors: u64,
    pub global_sectors_least: u64,
    pub shared_requests: u64,
    pub shared_wavefronts: u64,
    pub shared_wavefronts_least: u64,
    pub local_bytes: u64,
}

/// The unique sectors of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    pub read: u64,
    pub written: u64,
    /// Of those that are read: by the number of the launch that touched them before, from [`Place::first`] on.
    pub reused: Vec<u64>,
}

/// A launch among those of a device, for its footprint.
#[derive(Clone, Copy, Debug)]
pub struct Place<'t> {
    pub touches: &'t Touches,
    /// The device's first address.
    pub base: u64,
    /// The launch's number, 1 or more, larger than those before.
    pub launch: u32,
    /// The first launch that counts as one before.
    pub first: u32,
}

/// Counts what a host thread executes of a launch.
#[derive(Debug)]
pub struct Counts<'t> {
    program: &'t Program,
    place: Option<Place<'t>>,
    issued: Vec<Issued>,
    accessed: Vec<Accessed>,
    footprint: Footprint,
}

impl<'t> Counts<'t> {
    pub fn new(program: &'t Program, place: Option<Place<'t>>) -> Self {
        let length = program.code.len();
        let before = place.map_or(0, |place| place.launch.saturating_sub(place.first) as usize);
        let footprint = Footprint { reused: vec![0; before], ..Footprint::default() };
        Self {
            program,
            place,
            issued: vec![Issued::default(); length],
            accessed: vec![Accessed::default(); length],
            footprint,
        }
    }

    fn global(&mut self, index: usize, request: &Request<'_>) {
        let writes = !request.access.is_read();
        let pieces = Pieces::of(request.mask, request.bytes, request.addresses);
        let (place, footprint) = (self.place, &mut self.footprint);
        let sectors = pieces.sectors(|sector| {
            let Some(place) = place else { return };
            let Touch::First { before } =
                place.touches.touch(sector - (place.base >> SECTOR_SHIFT), place.launch, writes)
            else {
                return;
            };
            if writes {
                footprint.written += 1;
                return;
            }
            footprint.read += 1;
            if let Some(reused) = footprint.reused.get_mut(before.wrapping_sub(place.first) as usize) {
                *reused += 1;
            }
        });
        // The second half of an atomic.
        if writes && self.is_atomic(index) {
            return;
        }
        let all = &mut self.accessed[index];
        all.global_requests += 1;
        all.global_sectors += sectors;
        all.global_sectors_least += pieces.least(SECTOR);
    }

    fn is_atomic(&self, index: usize) -> bool {
        matches!(self.program.code[index].kind, crate::ir::Kind::Atomic(..))
    }

    fn shared(&mut self, index: usize, request: &Request<'_>) {
        let Request { mask, bytes, addresses, .. } = *request;
        let atomic = self.is_atomic(index);
        if atomic && !request.access.is_read() {
            return;
        }
        let all = &mut self.accessed[index];
        all.shared_requests += 1;
        all.shared_wavefronts += wavefronts(mask, bytes, addresses, !atomic);
        all.shared_wavefronts_least += Pieces::of(mask, bytes, addresses).least(WAVEFRONT_BYTES);
    }
}

impl Observer for Counts<'_> {
    #[inline(always)]
    fn issue(&mut self, index: usize, mask: u32) {
        let all = &mut self.issued[index];
        all.issues += 1;
        all.lanes += u64::from(if mask == ALL { LANES as u32 } else { mask.count_ones() });
        all.skipped += u64::from(mask == 0);
    }

    fn access(&mut self, index: usize, request: Request<'_>) {
        match request.space {
            Space::Global => self.global(index, &request),
            Space::Shared => self.shared(index, &request),
            Space::Local => self.accessed[index].local_bytes += request.bytes * u64::from(request.mask.count_ones()),
            Space::Const | Space::Param | Space::Generic => {}
        }
    }
}

/// The sum over several host threads, or several launches of one program.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    issued: Vec<Issued>,
    accessed: Vec<Accessed>,
}

impl Sums {
    pub fn new(program: &Program) -> Self {
        let length = program.code.len();
        Self { issued: vec![Issued::default(); length], accessed: vec![Accessed::default(); length] }
    }

    /// The sums of one launch, and its footprint.
    pub fn of(program: &Program, counted: Vec<Counts<'_>>) -> (Self, Footprint) {
        let mut all = Self::new(program);
        let mut footprint = Footprint::default();
        for one in counted {
            all.add(&Self { issued: one.issued, accessed: one.accessed });
            footprint.read += one.footprint.read;
            footprint.written += one.footprint.written;
            let length = footprint.reused.len().max(one.footprint.reused.len());
            footprint.reused.resize(length, 0);
            footprint.reused.iter_mut().zip(&one.footprint.reused).for_each(|(sum, part)| *sum += part);
        }
        (all, footprint)
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, part) in self.issued.iter_mut().zip(&other.issued) {
            sum.issues += part.issues;
            sum.lanes += part.lanes;
            sum.skipped += part.skipped;
        }
        for (sum, part) in self.accessed.iter_mut().zip(&other.accessed) {
            sum.global_requests += part.global_requests;
            sum.global_sectors += part.global_sectors;
            sum.global_sectors_least += part.global_sectors_least;
            sum.shared_requests += part.shared_requests;
            sum.shared_wavefronts += part.shared_wavefronts;
            sum.shared_wavefronts_least += part.shared_wavefronts_least;
            sum.local_bytes += part.local_bytes;
        }
    }

    /// Multiplied by `all / part`, and rounded.
    pub fn scale(&mut self, all: u64, part: u64) {
        let scaled = |count: &mut u64| {
            let product = u128::from(*count) * u128::from(all) + u128::from(part / 2);
            *count = u64::try_from(product / u128::from(part.max(1))).unwrap_or(u64::MAX);
        };
        for Issued { issues, lanes, skipped } in &mut self.issued {
            [issues, lanes, skipped].into_iter().for_each(scaled);
        }
        for one in &mut self.accessed {
            let Accessed { global_requests, global_sectors, global_sectors_least, .. } = one;
            [global_requests, global_sectors, global_sectors_least].into_iter().for_each(scaled);
            let Accessed { shared_requests, shared_wavefronts, shared_wavefronts_least, local_bytes, .. } = one;
            [shared_requests, shared_wavefronts, shared_wavefronts_least, local_bytes].into_iter().for_each(scaled);
        }
    }

    /// The counters of each operation that was executed, with its index.
    pub fn operations<'s>(&'s self, program: &'s Program) -> impl Iterator<Item = (usize, Counters)> + 's {
        self.issued.iter().zip(&self.accessed).enumerate().filter(|(_, (issued, _))| issued.issues > 0).map(
            |(index, (issued, accessed))| {
                (index, Counters::of(program.costs[index], program.code[index].kind, issued, accessed))
            },
        )
    }

    /// Indices of the operations that any lane executed.
    pub fn executed(&self) -> impl Iterator<Item = usize> {
        self.issued.iter().enumerate().filter(|(_, issued)| issued.lanes > 0).map(|(index, _)| index)
    }

    pub fn total(&self, program: &Program) -> Counters {
        let mut total = Counters::default();
        self.operations(program).for_each(|(_, counters)| total += counters);
        total
    }
}
