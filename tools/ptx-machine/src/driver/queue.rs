//! Submitted work and how it is done.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::code::{self, Code};
use super::profile::{Profile, Way};
use super::state::{self, Driver, Handle};
use crate::exec::{self, Grid};
use crate::fault::{FaultKind, Report, counted};
use crate::ir::Program;

/// A place on the host.
#[derive(Clone, Debug)]
pub enum Host {
    /// Pinned: read when the copy is done.
    Address(u64),
    /// The bytes when the copy was submitted.
    Bytes(Arc<[u8]>),
}

/// One piece of work.
#[derive(Clone, Debug)]
pub enum Op {
    ToDevice {
        to: u64,
        from: Host,
        bytes: u64,
    },
    ToHost {
        to: u64,
        from: u64,
        bytes: u64,
        /// To pinned memory, which has to be there still when the copy is done.
        pinned: bool,
    },
    OnDevice {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Set {
        to: u64,
        value: u32,
        width: u8,
        count: u64,
    },
    Launch(Arc<Launch>),
    Record {
        event: Handle,
        number: u64,
    },
    /// A graph's work in its order, from this piece on.
    Graph(Arc<Vec<Op>>, usize),
    Host(HostFunction),
}

/// A function of the host that was submitted.
#[derive(Clone, Copy, Debug)]
pub struct HostFunction {
    pub function: unsafe extern "C" fn(*mut c_void),
    /// The address that it is called with.
    pub data: usize,
}

/// The calls that do pending work.
pub const DOES_WORK: [&str; 11] = [
    "cuCtxSynchronize",
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemcpyDtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoD_v2",
    "cuStreamQuery",
    "cuStreamSynchronize",
];

/// Where a graph's next host function is.
fn next_host_function(ops: &[Op], from: usize) -> Option<usize> {
    ops[from..].iter().position(|op| matches!(op, Op::Host(_))).map(|next| from + next)
}

/// Whether it is a host function, or has one.
pub fn is_host_function(op: &Op) -> bool {
    match op {
        Op::Host(_) => true,
        Op::Graph(ops, from) => next_host_function(ops, *from).is_some(),
        _ => false,
    }
}

pub fn has_host_function(queue: &VecDeque<(Handle, Op)>) -> bool {
    queue.iter().any(|(_, op)| is_host_function(op))
}

/// How long a context's host functions wait for somebody who waits for them.
const DELAY: Duration = Duration::from_millis(10);

/// From here on a context's host functions are done though nobody in this process waits for them: another process may.
pub fn do_in_background(context: Handle) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(DELAY);
            let mut driver = state::lock();
            if driver.context(context).is_err() {
                return;
            }
            drop(do_host_functions(driver, context));
        }
    });
}

/// Does a context's work up to its last host function. Those run without the lock: one may wait for another device's, which another
/// thread drives.
pub fn do_host_functions(mut driver: MutexGuard<'static, Driver>, context: Handle) -> MutexGuard<'static, Driver> {
    loop {
        let Ok(found) = driver.context(context) else { return driver };
        if found.in_host_function {
            drop(driver);
            std::thread::sleep(Duration::from_millis(1));
            driver = state::lock();
            continue;
        }
        if !has_host_function(&found.queue) {
            return driver;
        }
        let Some(host) = driver.up_to_host_function(context) else { return driver };
        drop(driver);
        // SAFETY: cuda.h: it may be called once with its data at each place where it was submitted.
        unsafe { (host.function)(std::ptr::with_exposed_provenance_mut(host.data)) };
        driver = state::lock();
        if let Ok(found) = driver.context(context) {
            found.in_host_function = false;
        }
    }
}

#[derive(Debug)]
pub struct Launch {
    pub program: Arc<Program>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub params: Vec<u8>,
    /// It may begin before the launch in front of it in its stream has ended (programmatic dependent launch).
    pub dependent: bool,
}

/// The launch that a stream has done last, if nothing else came behind it.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    number: u64,
    /// The first launch that ran beside it.
    beside: Option<u64>,
}

fn code_of(report: &Report) -> Code {
    match report.kind {
        FaultKind::OutOfBounds => code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => code::MISALIGNED_ADDRESS,
        FaultKind::Endless => code::LAUNCH_TIMEOUT,
        FaultKind::Trap => code::ILLEGAL_INSTRUCTION,
        // Faults that hardware would not notice, or answer with any value.
        _ => code::LAUNCH_FAILED,
    }
}

impl Driver {
    /// Does a context's work, up to the last of a stream where one is named. A fault stays with the context.
    pub fn drain(&mut self, context: Handle, stream: Option<Handle>) {
        let Some(found) = self.contexts.get_mut(&context) else { return };
        let count = match stream {
            Some(stream) => found.queue.iter().rposition(|(of, _)| *of == stream).map_or(0, |last| last + 1),
            None => found.queue.len(),
        };
        for _ in 0..count {
            let Some(found) = self.contexts.get_mut(&context) else { return };
            let Some((stream, op)) = found.queue.pop_front() else { return };
            // Nothing is done behind a fault, but whoever waits for an event comes back.
            self.attempt(context, stream, &op);
        }
    }

    /// Does one piece of pending work; false where none is there.
    pub fn progress(&mut self, context: Handle) -> bool {
        let Some((stream, op)) = self.contexts.get_mut(&context).and_then(|found| found.queue.pop_front()) else {
            return false;
        };
        self.attempt(context, stream, &op);
        true
    }

    /// Does a piece of work, unless the context has a fault already; a fault of it stays.
    fn attempt(&mut self, context: Handle, stream: Handle, op: &Op) {
        let faulty = self.contexts.get(&context).is_some_and(|found| found.fault.is_some());
        if !faulty
            && let Err(code) = self.perform(context, stream, op)
            && let Some(found) = self.contexts.get_mut(&context)
        {
            found.fault = Some(code);
        }
    }

    /// Does a context's work up to its next host function, which is taken out; None behind a fault.
    fn up_to_host_function(&mut self, context: Handle) -> Option<HostFunction> {
        loop {
            let (stream, op) = self.context(context).ok()?.queue.pop_front()?;
            let host = match &op {
                Op::Host(host) => Some(*host),
                Op::Graph(ops, from) => next_host_function(ops, *from).and_then(|next| {
                    ops[*from..next].iter().for_each(|op| self.attempt(context, stream, op));
                    let rest = (stream, Op::Graph(Arc::clone(ops), next + 1));
                    self.context(context).ok()?.queue.push_front(rest);
                    match ops[next] {
                        Op::Host(host) => Some(host),
                        _ => None,
                    }
                }),
                _ => None,
            };
            let Some(host) = host else {
                self.attempt(context, stream, &op);
                continue;
            };
            let found = self.context(context).ok()?;
            if found.fault.is_none() {
                found.in_host_function = true;
                return Some(host);
            }
        }
    }

    fn perform(&mut self, context: Handle, stream: Handle, op: &Op) -> Result<(), Code> {
        if !matches!(op, Op::Launch(_) | Op::Record { .. }) {
            self.context(context)?.last.remove(&stream);
        }
        match op {
            Op::Record { event, number } => {
                if let Some(event) = self.events.get_mut(event) {
                    event.done = event.done.max(*number);
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Op::Graph(ops, from) => {
                ops[*from..].iter().try_for_each(|op| self.perform(context, stream, op))?;
                self.context(context)?.last.remove(&stream);
                Ok(())
            }
            // Those that nobody has waited for, of a context that is closed.
            Op::Host(host) => {
                // SAFETY: as in `do_host_functions`.
                unsafe { (host.function)(std::ptr::with_exposed_provenance_mut(host.data)) };
                Ok(())
            }
            Op::Launch(launch) => self.launch_now(context, stream, launch),
            Op::ToDevice { to, from, bytes } => {
                self.reaches(context, *to, *bytes)?;
                if let Host::Address(address) = from
                    && !self.pinned_contains(*address, *bytes)
                {
                    eprintln!("ptx-machine: a copy from pinned memory {address:#x} that was freed before it was done");
                    return Err(code::ILLEGAL_ADDRESS);
                }
                let memory = self.memory_of(context)?;
                let source = match from {
                    Host::Address(address) => std::ptr::with_exposed_provenance::<u8>(*address as usize),
                    Host::Bytes(bytes) => bytes.as_ptr(),
                };
                // SAFETY: both ranges were looked at.
                unsafe { std::ptr::copy_nonoverlapping(source, memory.at(*to), *bytes as usize) };
                memory.mark_written(*to, *bytes);
                Ok(())
            }
            Op::ToHost { to, from, bytes, pinned } => {
                self.reaches(context, *from, *bytes)?;
                if *pinned && !self.pinned_contains(*to, *bytes) {
                    eprintln!("ptx-machine: a copy to pinned memory {to:#x} that was freed before it was done");
                    return Err(code::ILLEGAL_ADDRESS);
                }
                let memory = self.memory_of(context)?;
                let target = std::ptr::with_exposed_provenance_mut::<u8>(*to as usize);
                // SAFETY: the device's range was looked at; the host's is the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(memory.at(*from), target, *bytes as usize) };
                Ok(())
            }
            Op::OnDevice { to, from, bytes } => {
                self.reaches(context, *from, *bytes)?;
                self.reaches(context, *to, *bytes)?;
                self.memory_of(context)?.copy(*from, *to, *bytes);
                Ok(())
            }
            Op::Set { to, value, width, count } => self.fill(context, (*to, *count), *value, *width),
        }
    }

    /// Sets `count` values of `width` bytes from an address on.
    fn fill(&mut self, context: Handle, (to, count): (u64, u64), value: u32, width: u8) -> Result<(), Code> {
        let bytes = count * u64::from(width);
        self.reaches(context, to, bytes)?;
        let lists = self.profile.as_ref().is_some_and(|profile| profile.way() == Way::Skip);
        let memory = self.memory_of(context)?;
        if lists && value == 0 {
            memory.clear(to, bytes);
            memory.mark_written(to, bytes);
            return Ok(());
        }
        let pattern = value.to_le_bytes();
        // SAFETY: the range was looked at.
        let range = unsafe { std::slice::from_raw_parts_mut(memory.at(to), bytes as usize) };
        if pattern.iter().all(|&byte| byte == pattern[0]) || width == 1 {
            range.fill(pattern[0]);
        } else {
            range.chunks_exact_mut(usize::from(width)).for_each(|part| {
                part.copy_from_slice(&pattern[..usize::from(width)]);
            });
        }
        memory.mark_written(to, bytes);
        Ok(())
    }

    fn reaches(&mut self, context: Handle, address: u64, bytes: u64) -> Result<(), Code> {
        if self.memory_of(context)?.contains(address, bytes) {
            return Ok(());
        }
        eprintln!("ptx-machine: a copy of {} at {address:#x}, which is not allocated any more", counted(bytes, "byte"));
        Err(code::ILLEGAL_ADDRESS)
    }

    pub fn pinned_contains(&self, address: u64, bytes: u64) -> bool {
        self.pinned.range(..=address).next_back().is_some_and(|(&start, memory)| {
            address - start <= memory.len() as u64 && bytes <= start + memory.len() as u64 - address
        })
    }

    fn launch_now(&mut self, context: Handle, stream: Handle, launch: &Launch) -> Result<(), Code> {
        let limits = self.limits;
        let index = self.context(context)?.device;
        let device = self.devices.get_mut(index).ok_or(code::INVALID_DEVICE)?;
        device.launches += 1;
        let number = device.launches;
        // Before 9.0 the wish is not granted.
        let granted = launch.dependent && device.model.capability >= (9, 0);
        let last = &mut self.contexts.get_mut(&context).ok_or(code::INVALID_CONTEXT)?.last;
        let beside = last.get(&stream).filter(|_| granted).map(|last| last.beside.unwrap_or(last.number));
        last.insert(stream, Last { number, beside });
        let way = self.profile.as_ref().map_or(Way::Execute, Profile::way);
        if way == Way::Skip {
            self.profile.iter_mut().for_each(|profile| profile.list(launch, granted));
            return Ok(());
        }
        let device = self.devices.get_mut(index).ok_or(code::INVALID_DEVICE)?;
        let memory = device.memory.as_ref().ok_or(code::INVALID_CONTEXT)?;
        let grid = Grid {
            program: &launch.program,
            memory,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared,
            params: &launch.params,
            launch: number,
            beside,
            limits,
        };
        let outcome = if way == Way::Count
            && let Some(profile) = &mut self.profile
        {
            profile.count(&grid, launch, granted, device.touches.as_ref()).map(|lines| {
                if let Some(executed) = &mut self.executed {
                    executed.entry(launch.program.module.clone()).or_default().extend(lines);
                }
            })
        } else if self.executed.is_some() {
            let length = launch.program.code.len();
            exec::run_observed(&grid, || Executed(vec![false; length])).map(|observers| {
                if let Some(executed) = &mut self.executed {
                    let lines = executed.entry(launch.program.module.clone()).or_default();
                    for Executed(seen) in observers {
                        lines.extend(
                            seen.iter().zip(&launch.program.lines).filter(|(seen, _)| **seen).map(|(_, l)| l.ptx),
                        );
                    }
                }
            })
        } else {
            exec::run(&grid)
        };
        outcome.map_err(|report| {
            eprintln!("ptx-machine: {report}");
            code_of(&report)
        })
    }
}

/// Whether each operation was executed.
struct Executed(Vec<bool>);

impl exec::Observer for Executed {
    #[inline(always)]
    fn issue(&mut self, index: usize, mask: u32) {
        self.0[index] |= mask != 0;
    }
}
