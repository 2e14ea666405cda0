//! Times of single launches, copies and fills: an event before and after each.

use std::ptr;

use cudarc::driver::sys;

use super::api::{self, Code};
use super::driver::check;
use super::{CudaDevice, State};
use crate::error::Result;

/// The events around submitted work, while timing is on, and reusable ones.
#[derive(Default)]
pub(super) struct Timing {
    wanted: bool,
    around: Vec<[sys::CUevent; 2]>,
    free: Vec<sys::CUevent>,
}

impl Timing {
    /// # Safety
    /// The context is current, and the events are no longer used.
    pub unsafe fn destroy(&mut self) {
        for event in self.free.drain(..).chain(self.around.drain(..).flatten()) {
            // SAFETY: the caller's promise.
            unsafe { api::cuEventDestroy_v2(event) };
        }
    }
}

impl CudaDevice {
    /// Submits work, between two events if timing is on.
    pub(super) fn timed(&self, state: &mut State, submit: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        if !state.timing.wanted || state.capturing.is_some() {
            return submit(state);
        }
        let before = self.record(state)?;
        let outcome = submit(state);
        let after = self.record(state)?;
        state.timing.around.push([before, after]);
        outcome
    }

    fn record(&self, state: &mut State) -> Result<sys::CUevent> {
        state.follows_kernel = false;
        let event = match state.timing.free.pop() {
            Some(event) => event,
            None => {
                let mut event: sys::CUevent = ptr::null_mut();
                // SAFETY: the context is current; kept in the state until `drop`.
                check(unsafe { api::cuEventCreate(&mut event, 0) }, &self.label, "create an event")?;
                event
            }
        };
        // SAFETY: event and stream are this device's.
        let code = unsafe { api::cuEventRecord(event, self.stream) };
        if code != Code::SUCCESS {
            state.timing.free.push(event);
        }
        self.check(state, code, "record an event").map(|()| event)
    }

    pub(super) fn start_timing(&self) -> Result<()> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "begin to take times")?;
        let Timing { wanted, around, free } = &mut state.timing;
        *wanted = true;
        free.extend(around.drain(..).flatten());
        Ok(())
    }

    pub(super) fn stop_timing(&self) -> Result<Vec<f64>> {
        let mut state = self.enter()?;
        self.refuse_in_capture(&state, "read times")?;
        self.wait(&state)?;
        state.timing.wanted = false;
        let around = std::mem::take(&mut state.timing.around);
        let seconds = around
            .iter()
            .map(|&[before, after]| {
                let mut milliseconds = 0f32;
                // SAFETY: both were recorded, and the stream was waited for.
                let code = unsafe { api::cuEventElapsedTime(&mut milliseconds, before, after) };
                self.check(&state, code, "read a time").map(|()| f64::from(milliseconds) * 1e-3)
            })
            .collect();
        state.timing.free.extend(around.into_iter().flatten());
        seconds
    }
}
