//! Executes kernels: whole warps at a time, blocks spread over cores.

mod access;
pub mod approx;
mod async_copy;
mod block;
pub mod lanes;
mod matrix;
mod sync;
mod warp;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fault::{FaultKind, Report};
use crate::ir::Program;
use crate::memory::DeviceMemory;
use crate::memory::shadow::Access;
use crate::parse::Space;
use block::Worker;

/// A request: the access of a warp to one memory in one instruction. Every address is one of the space and aligned to `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub space: Space,
    pub access: Access,
    /// Bytes of each lane, a power of two.
    pub bytes: u64,
    pub mask: u32,
    /// Of the lanes in `mask`; offsets in shared and local memory.
    pub addresses: &'a [u64; 32],
}

/// Sees what a kernel does. An observer whose methods are empty costs nothing.
pub trait Observer: Send {
    /// A warp executes the operation `index` of the program with these lanes, none where its guard holds in no lane. An operation at
    /// which lanes wait for others is seen when it is executed.
    #[inline(always)]
    fn issue(&mut self, index: usize, mask: u32) {
        let _ = (index, mask);
    }

    /// It accesses memory. An atomic reads and writes, which are two calls; a `cp.async` reads global memory and writes shared memory.
    #[inline(always)]
    fn access(&mut self, index: usize, request: Request<'_>) {
        let _ = (index, request);
    }
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// Counts executed thread instructions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    pub warp_instructions: u64,
    pub thread_instructions: u64,
}

impl Observer for Counter {
    #[inline(always)]
    fn issue(&mut self, _index: usize, mask: u32) {
        self.warp_instructions += 1;
        self.thread_instructions += u64::from(mask.count_ones());
    }
}

/// One launch.
#[derive(Debug)]
pub struct Grid<'g> {
    pub program: &'g Program,
    pub memory: &'g DeviceMemory,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters' bytes.
    pub params: &'g [u8],
    /// A number that no other launch on this memory has, larger than those of earlier ones; not 0.
    pub launch: u64,
    /// The first launch that may still run until `griddepcontrol.wait`; none where all have ended.
    pub beside: Option<u64>,
    pub limits: Limits,
}

/// The most host threads that blocks are spread over.
pub const MOST_CORES: usize = 64;

/// Bounds on an execution.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Warp instructions of a block, after which a kernel counts as endless.
    pub steps: u64,
    /// Host threads that blocks are spread over.
    pub cores: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 1 << 30, cores: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// Runs a grid to its end.
///
/// # Errors
/// The first fault that is found; the kernel has then run in part.
pub fn run(grid: &Grid<'_>) -> Result<(), Box<Report>> {
    run_observed(grid, || NoObserver).map(|_| ())
}

/// Runs a grid with an observer for each core, and returns them.
///
/// # Errors
/// As [`run`].
pub fn run_observed<O: Observer>(grid: &Grid<'_>, observer: impl Fn() -> O) -> Result<Vec<O>, Box<Report>> {
    if grid.memory.is_checked() { spread::<true, O>(grid, observer) } else { spread::<false, O>(grid, observer) }
}

/// Runs one block of a grid, by its linear index, on this thread, and returns the observer.
///
/// # Errors
/// As [`run`].
pub fn run_block<O: Observer>(grid: &Grid<'_>, index: u64, observer: O) -> Result<O, Box<Report>> {
    fn alone<const CHECKED: bool, O: Observer>(grid: &Grid<'_>, index: u64, observer: O) -> Result<O, Box<Report>> {
        let constants = block::constants(grid)?;
        let mut worker = Worker::<CHECKED, O>::new(grid, &constants, observer);
        worker.run(index)?;
        Ok(worker.into_observer())
    }
    if grid.memory.is_checked() {
        alone::<true, O>(grid, index, observer)
    } else {
        alone::<false, O>(grid, index, observer)
    }
}

fn spread<const CHECKED: bool, O: Observer>(grid: &Grid<'_>, observer: impl Fn() -> O) -> Result<Vec<O>, Box<Report>> {
    let blocks = grid.grid.iter().map(|&size| u64::from(size)).product::<u64>();
    let cores = grid.limits.cores.clamp(1, MOST_CORES).min(blocks.max(1) as usize);
    let constants = block::constants(grid)?;
    let next = AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let fault: Mutex<Option<(u64, Box<Report>)>> = Mutex::new(None);
    let work = |observer: O| -> O {
        let mut worker = Worker::<CHECKED, O>::new(grid, &constants, observer);
        while !stopped.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= blocks {
                break;
            }
            if let Err(report) = worker.run(index) {
                stopped.store(true, Ordering::Relaxed);
                let mut first = fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if first.as_ref().is_none_or(|(other, _)| index < *other) {
                    *first = Some((index, report));
                }
            }
        }
        worker.into_observer()
    };
    // A thread is not worth starting for a few blocks.
    let threads = grid.block.iter().map(|&size| u64::from(size)).product::<u64>() * blocks;
    let observers = if cores == 1 || threads <= 256 {
        vec![work(observer())]
    } else {
        let observers: Vec<O> = (0..cores).map(|_| observer()).collect();
        std::thread::scope(|scope| {
            let running: Vec<_> = observers.into_iter().map(|observer| scope.spawn(|| work(observer))).collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).collect()
        })
    };
    if let Some((_, report)) = fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(report);
    }
    if observers.len() < cores.min(if threads <= 256 { 1 } else { cores }) {
        return Err(Box::new(Report {
            kind: FaultKind::Trap,
            kernel: grid.program.name.clone(),
            module: grid.program.module.clone(),
            line: 0,
            source: None,
            block: [0; 3],
            thread: None,
            message: "the machine itself failed; this is a defect of the machine".into(),
        }));
    }
    Ok(observers)
}
