//! What GPUs exchange, beside what this one computes.
//!
//! Exchanges are submitted to a stream of their own. Each begins behind the work that the main stream had when it was submitted (an
//! event recorded there, waited for here), and the main stream goes on; whoever needs the result lets it wait for the last of them
//! ([`CudaDevice::join_side`]). In a capture the same calls fork the graph and join it again, so that a replay runs both at once.

use std::ptr;

use cudarc::driver::sys;

use super::nccl::{self, Communicator};
use super::{CudaDevice, State, api, check};
use crate::device::Summand;
use crate::error::{Error, Result};

/// No time is taken of these events, which makes them cheaper.
const UNTIMED: u32 = 2;

/// The stream of exchanges, and the way there and back.
pub(super) struct Side {
    communicator: Communicator,
    stream: sys::CUstream,
    /// Recorded in the main stream: where an exchange begins.
    fork: sys::CUevent,
    /// Recorded in the side stream: where the main one goes on.
    done: sys::CUevent,
    /// Something was submitted that the main stream has not waited for.
    open: bool,
}

impl Side {
    /// Meets the others; the context is current.
    pub fn new(id: &[u8; nccl::ID], rank: usize, ranks: usize, label: &str) -> Result<Self> {
        let communicator = Communicator::new(id, rank, ranks)?;
        let (stream, event) = (ptr::null_mut(), ptr::null_mut());
        // From here on `drop` cleans up, also behind an error.
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
    /// Lets `submit` submit to the side stream, behind the work that the main one has by now.
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

    /// The main stream waits for what was exchanged, where anything was since the last time.
    pub(super) fn join_side(&self, state: &mut State) -> Result<()> {
        let Some(side) = state.side.as_mut().filter(|side| side.open) else { return Ok(()) };
        side.open = false;
        // SAFETY: the handles are this device's.
        let (recorded, waits) =
            unsafe { (api::cuEventRecord(side.done, side.stream), api::cuStreamWaitEvent(self.stream, side.done, 0)) };
        self.check(state, recorded, "record an event")?;
        self.check(state, waits, "let a stream wait")
    }

    /// A capture is over: what it forked ended with it.
    pub(super) fn close_side(state: &mut State) {
        if let Some(side) = &mut state.side {
            side.open = false;
        }
    }
}
