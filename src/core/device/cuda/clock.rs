//! The device's own clock: events before and after a graph.

use std::ptr;
use std::time::Duration;

use cudarc::driver::sys;

use super::api;
use super::{CudaDevice, State};
use crate::device::GraphId;
use crate::error::Result;

/// A timed event, destroyed on drop.
struct Mark(sys::CUevent);

impl Mark {
    fn new(device: &CudaDevice, state: &State) -> Result<Self> {
        let mut event: sys::CUevent = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: the context is current, because the caller has the state.
        device.check(state, unsafe { api::cuEventCreate(&mut event, flags) }, "create an event")?;
        Ok(Self(event))
    }

    fn record(&self, device: &CudaDevice, state: &State) -> Result<()> {
        // SAFETY: the event and the stream are this device's.
        device.check(state, unsafe { api::cuEventRecord(self.0, device.stream) }, "record an event")
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps pending records until they are done.
        unsafe { api::cuEventDestroy_v2(self.0) };
    }
}

impl CudaDevice {
    /// # Safety
    /// That of [`Accelerator::time`](crate::device::Accelerator::time).
    pub(super) unsafe fn time_graph(&self, graph: GraphId) -> Result<Duration> {
        let state = self.enter()?;
        self.refuse_in_capture(&state, "time a graph")?;
        let (before, behind) = (Mark::new(self, &state)?, Mark::new(self, &state)?);
        before.record(self, &state)?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_graph(&state, graph)? };
        behind.record(self, &state)?;
        self.wait(&state)?;
        let mut milliseconds = 0f32;
        // SAFETY: both events have a time and were waited for.
        let code = unsafe { api::cuEventElapsedTime(&mut milliseconds, before.0, behind.0) };
        self.check(&state, code, "read an event's time")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}
