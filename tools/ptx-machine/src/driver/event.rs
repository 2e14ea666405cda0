//! Events.

use std::ffi::{c_uint, c_void};

use super::code::{self, Code};
use super::queue::Op;
use super::state::{Event, handle, pointer};
use super::{call, put};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, flags: c_uint) -> Code {
    call("cuEventCreate", |driver| {
        let context = driver.current()?;
        if flags & !7 != 0 {
            return Err(code::INVALID_VALUE);
        }
        let made = driver.fresh();
        let timed = flags & 2 == 0;
        driver.events.insert(made, Event { context, timed, submitted: 0, done: 0, at: None, capture: None });
        put(event, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Code {
    call("cuEventDestroy_v2", |driver| {
        driver.current()?;
        driver.events.remove(&handle(event)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Code {
    call("cuEventRecord", |driver| {
        let context = driver.current()?;
        let (event, stream) = (handle(event), handle(stream));
        driver.trace(|| format!("record {event:#x} {stream:#x}"));
        let capture = driver.stream(context, stream)?.and_then(|stream| stream.capture);
        let found =
            driver.events.get_mut(&event).filter(|event| event.context == context).ok_or(code::INVALID_HANDLE)?;
        if let Some(capture) = capture {
            found.capture = Some((capture, stream));
            return Ok(());
        }
        found.capture = None;
        found.submitted += 1;
        let number = found.submitted;
        driver.submit(context, stream, Op::Record { event, number })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, flags: c_uint) -> Code {
    call("cuStreamWaitEvent", |driver| {
        let context = driver.current()?;
        let (stream, event) = (handle(stream), handle(event));
        driver.trace(|| format!("wait {stream:#x} {event:#x}"));
        if flags > 1 {
            return Err(code::INVALID_VALUE);
        }
        let own = driver.stream(context, stream)?.map(|stream| stream.capture);
        let from = driver.events.get(&event).ok_or(code::INVALID_HANDLE)?.capture;
        match (own.flatten(), from) {
            // Work is done in the order of its submission, so that there is nothing to wait for.
            (None, None) => Ok(()),
            (Some(capture), None) => {
                driver.invalidate(capture);
                Err(code::STREAM_CAPTURE_ISOLATION)
            }
            (None, Some((capture, _))) => {
                let alive = driver.captures.contains_key(&capture);
                let joined = driver.streams.get_mut(&stream).filter(|_| alive).ok_or(code::CAPTURED_EVENT)?;
                joined.capture = Some(capture);
                joined.loose = true;
                Ok(())
            }
            (Some(own), Some((other, _))) if own != other => {
                driver.invalidate(own);
                driver.invalidate(other);
                Err(code::STREAM_CAPTURE_MERGE)
            }
            (Some(own), Some((_, recorded))) => {
                if let Some(capture) = driver.captures.get_mut(&own) {
                    capture.join(recorded, stream);
                }
                // The fork is joined where its last work is waited for.
                if let Some(fork) = driver.streams.get_mut(&recorded) {
                    fork.loose = false;
                }
                Ok(())
            }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: *mut c_void) -> Code {
    call("cuEventQuery", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        let found = driver.events.get(&handle(event)).ok_or(code::INVALID_HANDLE)?;
        if found.capture.is_some() {
            return Err(code::CAPTURED_EVENT);
        }
        if found.done < found.submitted {
            driver.progress(context);
            driver.current()?;
            return Err(code::NOT_READY);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: *mut c_void) -> Code {
    call("cuEventSynchronize", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        let event = handle(event);
        driver.trace(|| format!("synchronize-event {event:#x}"));
        loop {
            let found = driver.events.get(&event).ok_or(code::INVALID_HANDLE)?;
            if found.capture.is_some() {
                return Err(code::CAPTURED_EVENT);
            }
            if found.done >= found.submitted || !driver.progress(context) {
                break;
            }
        }
        driver.current().map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) -> Code {
    call("cuEventElapsedTime", |driver| {
        driver.current()?;
        let find = |event| driver.events.get(&handle(event)).filter(|event| event.timed).ok_or(code::INVALID_HANDLE);
        let (first, last) = (find(start)?, find(end)?);
        if first.submitted == 0 || last.submitted == 0 {
            return Err(code::INVALID_HANDLE);
        }
        if first.done < first.submitted || last.done < last.submitted {
            return Err(code::NOT_READY);
        }
        let (Some(from), Some(to)) = (first.at, last.at) else { return Err(code::NOT_READY) };
        put(milliseconds, to.saturating_duration_since(from).as_secs_f32() * 1e3)
    })
}
