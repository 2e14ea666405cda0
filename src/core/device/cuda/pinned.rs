//! Asynchronous copies from pinned memory: an event after each shows when its source is free again.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

use cudarc::driver::sys;

use super::CudaDevice;
use super::api::{self, Code};
use super::driver::{advice, check, describe};
use crate::device::Ticket;
use crate::error::{Error, Result};

/// The events of copies, by ticket, and reusable ones.
#[derive(Default)]
pub(super) struct Uploads {
    pending: HashMap<u64, sys::CUevent>,
    free: Vec<sys::CUevent>,
    made: u64,
}

impl Uploads {
    /// # Safety
    /// The context is current, and the events are no longer used.
    pub unsafe fn destroy(&mut self) {
        for event in self.free.drain(..).chain(self.pending.drain().map(|(_, event)| event)) {
            // SAFETY: the caller's promise.
            unsafe { api::cuEventDestroy_v2(event) };
        }
    }
}

impl CudaDevice {
    pub(super) fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        let state = self.enter()?;
        self.refuse_in_capture(&state, "allocate pinned memory")?;
        let mut memory: *mut c_void = ptr::null_mut();
        // SAFETY: the context is current; the caller frees it.
        let code = unsafe { api::cuMemAllocHost_v2(&mut memory, bytes.max(1)) };
        check(code, &self.label, "allocate pinned memory")?;
        NonNull::new(memory.cast()).ok_or_else(|| {
            Error::device(&self.label, "the driver gave no pinned memory", "check `nvidia-smi`, or use `device = cpu`")
        })
    }

    pub(super) fn unpin(&self, memory: NonNull<u8>) {
        if self.enter().is_ok() {
            // SAFETY: the driver allocated it, and no copy from it is pending (the caller's promise).
            unsafe { api::cuMemFreeHost(memory.as_ptr().cast()) };
        }
    }

    /// # Safety
    /// That of [`Accelerator::submit_upload`](crate::device::Accelerator::submit_upload).
    pub(super) unsafe fn upload_pinned(&self, source: NonNull<u8>, bytes: usize, address: u64) -> Result<Ticket> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "copy from the host")?;
        let event = match state.uploads.free.pop() {
            Some(event) => event,
            None => {
                let mut event: sys::CUevent = ptr::null_mut();
                let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                // SAFETY: the context is current; kept in the state until `drop`.
                check(unsafe { api::cuEventCreate(&mut event, flags) }, &self.label, "create an event")?;
                event
            }
        };
        // SAFETY: both ranges are the caller's promise; the event is this device's and not in use.
        let code = unsafe {
            match api::cuMemcpyHtoDAsync_v2(address, source.as_ptr().cast(), bytes, self.stream) {
                Code::SUCCESS => api::cuEventRecord(event, self.stream),
                code => code,
            }
        };
        if code != Code::SUCCESS {
            state.uploads.free.push(event);
            // The copy may be pending all the same, and its source must not be freed before it is done.
            // SAFETY: the stream is this device's.
            unsafe { api::cuStreamSynchronize(self.stream) };
            check(code, &self.label, "copy to the device")?;
        }
        let ticket = state.uploads.made;
        state.uploads.made += 1;
        state.uploads.pending.insert(ticket, event);
        Ok(Ticket(ticket))
    }

    pub(super) fn wait_for_upload(&self, ticket: Ticket) -> Result<()> {
        let mut state = self.enter()?;
        let Some(event) = state.uploads.pending.remove(&ticket.0) else { return Ok(()) };
        state.uploads.free.push(event);
        // SAFETY: the event is this device's, and recorded.
        let code = unsafe { api::cuEventSynchronize(event) };
        if code == Code::SUCCESS {
            return Ok(());
        }
        let last = state.last_kernel.map_or(String::new(), |kernel| format!(" at or before kernel {kernel}"));
        Err(Error::device(&self.label, format!("the submitted work failed{last}: {}", describe(code)), advice(code)))
    }
}
