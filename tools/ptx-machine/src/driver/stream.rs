//! Streams and what is captured on them.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::code::{self, Code, Outcome};
use super::queue::{HostFunction, Op};
use super::state::{Capture, Driver, Graph, Handle, INTERACTION, Mode, Stream, handle, pointer};
use super::{call, put};

fn create(driver: &mut Driver, to: *mut *mut c_void, flags: c_uint) -> Outcome {
    let context = driver.current()?;
    if flags > 1 {
        return Err(code::INVALID_VALUE);
    }
    let made = driver.fresh();
    driver.streams.insert(made, Stream { context, non_blocking: flags == 1, capture: None, loose: false });
    put(to, pointer(made))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> Code {
    call("cuStreamCreate", |driver| create(driver, stream, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut *mut c_void, flags: c_uint, _priority: c_int) -> Code {
    call("cuStreamCreateWithPriority", |driver| create(driver, stream, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Code {
    call("cuStreamDestroy_v2", |driver| {
        let context = driver.current()?;
        let stream = handle(stream);
        let capture = driver.stream(context, stream)?.ok_or(code::INVALID_HANDLE)?.capture;
        if let Some(capture) = capture {
            driver.invalidate(capture);
        }
        // Its work is still done.
        driver.streams.remove(&stream);
        Ok(())
    })
}

/// Refuses on a stream that is captured, whose capture is then lost.
pub(super) fn not_captured(driver: &mut Driver, context: Handle, stream: Handle) -> Outcome {
    match driver.stream(context, stream)?.and_then(|stream| stream.capture) {
        Some(capture) => {
            driver.invalidate(capture);
            Err(code::STREAM_CAPTURE_UNSUPPORTED)
        }
        None if stream <= 1 => driver.legacy_is_free(context),
        None => Ok(()),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Code {
    call("cuStreamSynchronize", |driver| {
        let context = driver.current()?;
        let stream = handle(stream);
        driver.trace(|| format!("synchronize {stream:#x}"));
        not_captured(driver, context, stream)?;
        // The legacy stream is behind all blocking streams.
        driver.drain(context, (stream > 1).then_some(stream));
        driver.current().map(|_| ())
    })
}

/// A function of the host behind the work before it. It runs in the thread that waits for it, and may call nothing of the driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: *mut c_void,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> Code {
    call("cuLaunchHostFunc", |driver| {
        let (context, stream) = (driver.current()?, handle(stream));
        let function = function.ok_or(code::INVALID_VALUE)?;
        driver.trace(|| format!("host-function {stream:#x}"));
        driver.submit(context, stream, Op::Host(HostFunction { function, data: data.expose_provenance() }))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: *mut c_void) -> Code {
    call("cuStreamQuery", |driver| {
        let context = driver.current()?;
        let stream = handle(stream);
        not_captured(driver, context, stream)?;
        let pending = driver.context(context)?.queue.iter().any(|(of, _)| stream <= 1 || *of == stream);
        if pending {
            driver.progress(context);
            driver.current()?;
            return Err(code::NOT_READY);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, mode: c_uint) -> Code {
    call("cuStreamBeginCapture_v2", |driver| {
        let context = driver.current()?;
        let stream = handle(stream);
        let mode = Mode::from(mode)?;
        let found = driver.stream(context, stream)?.ok_or(code::STREAM_CAPTURE_UNSUPPORTED)?;
        if found.capture.is_some() {
            return Err(code::ILLEGAL_STATE);
        }
        let made = driver.fresh();
        let thread = std::thread::current().id();
        let (ops, forks) = Default::default();
        driver.captures.insert(made, Capture { origin: stream, mode, thread, ops, forks, invalid: false });
        driver.trace(|| format!("begin-capture {stream:#x}"));
        if let Some(found) = driver.streams.get_mut(&stream) {
            found.capture = Some(made);
            found.loose = false;
        }
        Ok(())
    })
}

fn end(driver: &mut Driver, context: Handle, stream: Handle) -> Outcome<Handle> {
    let capture = driver.stream(context, stream)?.and_then(|stream| stream.capture).ok_or(code::ILLEGAL_STATE)?;
    let found = driver.captures.get(&capture).ok_or(code::STREAM_CAPTURE_INVALIDATED)?;
    if found.origin != stream {
        driver.invalidate(capture);
        return Err(code::STREAM_CAPTURE_UNMATCHED);
    }
    if found.mode != Mode::Relaxed && found.thread != std::thread::current().id() {
        return Err(code::STREAM_CAPTURE_WRONG_THREAD);
    }
    let mut loose = false;
    for (_, stream) in driver.streams.iter_mut().filter(|(_, stream)| stream.capture == Some(capture)) {
        loose |= stream.loose;
        stream.capture = None;
        stream.loose = false;
    }
    let done = driver.captures.remove(&capture).ok_or(code::STREAM_CAPTURE_INVALIDATED)?;
    if done.invalid {
        return Err(code::STREAM_CAPTURE_INVALIDATED);
    }
    if loose {
        return Err(code::STREAM_CAPTURE_UNJOINED);
    }
    let made = driver.fresh();
    driver.graphs.insert(made, Graph { context, ops: Arc::new(done.ops) });
    Ok(made)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) -> Code {
    call("cuStreamEndCapture", |driver| {
        let context = driver.current()?;
        put(graph, std::ptr::null_mut())?;
        driver.trace(|| format!("end-capture {:#x}", handle(stream)));
        let made = end(driver, context, handle(stream))?;
        put(graph, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: *mut c_void, status: *mut c_uint) -> Code {
    call("cuStreamIsCapturing", |driver| {
        let context = driver.current()?;
        let capture = driver.stream(context, handle(stream))?.and_then(|stream| stream.capture);
        let state = match capture.map(|capture| driver.captures.get(&capture).is_none_or(|capture| capture.invalid)) {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        put(status, state)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> Code {
    call("cuThreadExchangeStreamCaptureMode", |_| {
        if mode.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: cuda.h: a pointer that is not null can be read and written.
        let wanted = Mode::from(unsafe { mode.read() })?;
        let old = INTERACTION.with_borrow_mut(|own| std::mem::replace(own, wanted));
        put(mode, old as c_uint)
    })
}
