//! Exchanges between GPUs, concurrent with this one's computation.
//!
//! Exchanges are submitted to a separate stream. Each starts after the work of the main stream at the time of its submission (an
//! event recorded there, waited for here), and the main stream continues; to use the results, it waits for the last exchange
//! ([`CudaDevice::join_side`]). In a capture the same calls fork and join the graph, so a replay runs both concurrently.

use std::ptr;

use cudarc::driver::sys;

use super::nccl::{self, Communicator};
use super::{CudaDevice, State, api, check};
use crate::device::Summand;
use crate::error::{Error, Result};

/// These events are not timed, which makes them cheaper.
const UNTIMED: u32 = 2;

/// The stream of exchanges, with its events.
pub(super) struct Side {
    communicator: Communicator,
    stream: sys::CUstream,
    /// Recorded in the main stream: the start of an exchange.
    fork: sys::CUevent,
    /// Recorded in the side stream: the end of an exchange.
    done: sys::CUevent,
    /// Whether the main stream has not yet waited for submitted exchanges.
    open: bool,
}

impl Side {
    /// Connects to the others; the context is current.
    pub fn new(id: &[u8; nccl::ID], rank: usize, ranks: usize, label: &str) -> Result<Self> {
        let communicator = Communicator::new(id, rank, ranks)?;
        let (stream, event) = (ptr::null_mut(), ptr::null_mut());
        // From here on `drop` cleans up, also after an error.
        let mut side = Self { communicator, stream, fork: event, done: event, open: false };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the handles are kept here.
        unsafe {
            check(api::cuStreamCreate(&mut side.stream, flags), label, "create a stream")?;
            check(api::cuEventCreate(&mut side.fork, UNTIMED), label, "create an event")?;
            check(api::cuEventCreate(&mut side.done, UNTIMED), label, "create an event")?;
        }
        Ok(side)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // SAFETY: the handles are this side's and unused after this; the context is current. The work has ended: the device has
        // waited for its main stream, which is behind this one.
        unsafe {
            for event in [self.fork, self.done].into_iter().filter(|event| !event.is_null()) {
                api::cuEventDestroy_v2(event);
            }
            if !self.stream.is_null() {
                api::cuStreamSynchronize(self.stream);
                api::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}

impl CudaDevice {
    /// Submits work to the side stream with `submit`, after the main stream's current work.
    fn beside(&self, state: &mut State, submit: impl FnOnce(&Communicator, sys::CUstream) -> Result<()>) -> Result<()> {
        let none = || Error::device(&self.label, "it has met no other GPUs", "call communicate first");
        let side = state.side.as_mut().ok_or_else(none)?;
        // SAFETY: the handles are this device's.
        let (recorded, waits) =
            unsafe { (api::cuEventRecord(side.fork, self.stream), api::cuStreamWaitEvent(side.stream, side.fork, 0)) };
        side.open = true;
        submit(&side.communicator, side.stream)?;
        self.check(state, recorded, "record an event")?;
        self.check(state, waits, "let a stream wait")
    }

    /// # Safety
    /// As [`Accelerator::all_reduce`](crate::device::Accelerator::all_reduce); the context is current.
    pub(super) unsafe fn add_up_beside(&self, state: &mut State, address: u64, len: usize, of: Summand) -> Result<()> {
        // SAFETY: the caller's promise.
        self.beside(state, |communicator, stream| unsafe { communicator.all_reduce(address, len, of, stream) })
    }

    /// # Safety
    /// As [`Accelerator::all_gather`](crate::device::Accelerator::all_gather); the context is current.
    pub(super) unsafe fn gather_beside(&self, state: &mut State, source: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        self.beside(state, |communicator, stream| unsafe { communicator.all_gather(source, to, bytes, stream) })
    }

    /// Makes the main stream wait for exchanges since the last time, if any.
    pub(super) fn join_side(&self, state: &mut State) -> Result<()> {
        let Some(side) = state.side.as_mut().filter(|side| side.open) else { return Ok(()) };
        side.open = false;
        // SAFETY: the handles are this device's.
        let (recorded, waits) =
            unsafe { (api::cuEventRecord(side.done, side.stream), api::cuStreamWaitEvent(self.stream, side.done, 0)) };
        self.check(state, recorded, "record an event")?;
        self.check(state, waits, "let a stream wait")
    }

    /// A capture has ended: its forked work ended with it.
    pub(super) fn close_side(state: &mut State) {
        if let Some(side) = &mut state.side {
            side.open = false;
        }
    }
}
