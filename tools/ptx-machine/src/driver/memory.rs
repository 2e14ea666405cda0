//! Device memory, pinned memory, copies and fills.

use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use super::code::{self, Code, Outcome};
use super::queue::{Host, Op};
use super::state::{Driver, Handle, handle};
use super::{call, put};
use crate::memory::AllocateError;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    call("cuMemAlloc_v2", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        let made = driver.memory_of(context)?.allocate(bytes as u64).map_err(|error| match error {
            AllocateError::Empty => code::INVALID_VALUE,
            AllocateError::OutOfMemory => code::OUT_OF_MEMORY,
        })?;
        put(address, made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Code {
    call("cuMemFree_v2", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        if address == 0 {
            return Ok(());
        }
        // Memory is given back when the device has done what uses it.
        driver.drain(context, None);
        driver.current()?;
        if driver.memory_of(context)?.release(address) { Ok(()) } else { Err(code::INVALID_VALUE) }
    })
}

fn pin(driver: &mut Driver, to: *mut *mut c_void, bytes: usize) -> Outcome {
    driver.current()?;
    driver.safe_in_capture()?;
    if bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| code::OUT_OF_MEMORY)?;
    memory.resize(bytes, 0u8);
    let mut memory = memory.into_boxed_slice();
    let at = memory.as_mut_ptr();
    driver.pinned.insert(at.expose_provenance() as u64, memory);
    put(to, at.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) -> Code {
    call("cuMemAllocHost_v2", |driver| pin(driver, to, bytes))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, flags: c_uint) -> Code {
    call("cuMemHostAlloc", |driver| if flags > 7 { Err(code::INVALID_VALUE) } else { pin(driver, to, bytes) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> Code {
    call("cuMemFreeHost", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        driver.drain(context, None);
        driver.pinned.remove(&handle(at)).map(|_| ()).ok_or(code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    call("cuMemGetInfo_v2", |driver| {
        let context = driver.current()?;
        let memory = driver.memory_of(context)?;
        let (available, all) = (memory.available() as usize, memory.total() as usize);
        put(free, available)?;
        put(total, all)
    })
}

/// A copy between the device and memory that is not pinned cannot be captured: what it moves would be whatever the host has there at
/// each replay. (A driver may take it; a program that does it is wrong in any case.)
fn pageable_in_capture(driver: &mut Driver, context: Handle, stream: Handle, pinned: bool) -> Outcome {
    match driver.stream(context, stream)?.and_then(|stream| stream.capture) {
        Some(capture) if !pinned => {
            driver.invalidate(capture);
            Err(code::STREAM_CAPTURE_UNSUPPORTED)
        }
        _ => Ok(()),
    }
}

/// A range that is the device's; a copy elsewhere is refused at once.
fn within(driver: &mut Driver, context: Handle, address: u64, bytes: u64) -> Outcome {
    if bytes == 0 || driver.memory_of(context)?.contains(address, bytes) { Ok(()) } else { Err(code::INVALID_VALUE) }
}

/// The synchronous forms are work of the legacy stream, and wait.
fn synchronous(driver: &mut Driver, op: Op) -> Outcome {
    let context = driver.current()?;
    driver.safe_in_capture()?;
    driver.legacy_is_free(context)?;
    driver.submit(context, 0, op)?;
    driver.drain(context, None);
    driver.current().map(|_| ())
}

fn to_device(driver: &mut Driver, to: u64, from: *const c_void, bytes: usize) -> Outcome<Op> {
    let context = driver.current()?;
    let size = bytes as u64;
    within(driver, context, to, size)?;
    if from.is_null() && bytes > 0 {
        return Err(code::INVALID_VALUE);
    }
    let address = from.expose_provenance() as u64;
    let from = if driver.pinned_contains(address, size) {
        Host::Address(address)
    } else {
        // SAFETY: cuda.h: the caller's bytes can be read; from pageable memory they are taken at once.
        let source = if bytes == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) } };
        Host::Bytes(Arc::from(source))
    };
    Ok(Op::ToDevice { to, from, bytes: size })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: *mut c_void) -> Code {
    call("cuMemcpyHtoDAsync_v2", |driver| {
        let context = driver.current()?;
        let op = to_device(driver, to, from, bytes)?;
        let pinned = bytes == 0 || matches!(op, Op::ToDevice { from: Host::Address(_), .. });
        pageable_in_capture(driver, context, handle(stream), pinned)?;
        driver.submit(context, handle(stream), op)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Code {
    call("cuMemcpyHtoD_v2", |driver| {
        let op = to_device(driver, to, from, bytes)?;
        synchronous(driver, op)
    })
}

fn to_host(driver: &mut Driver, to: *mut c_void, from: u64, bytes: usize) -> Outcome<Op> {
    let context = driver.current()?;
    within(driver, context, from, bytes as u64)?;
    if to.is_null() && bytes > 0 {
        return Err(code::INVALID_VALUE);
    }
    let (to, bytes) = (to.expose_provenance() as u64, bytes as u64);
    Ok(Op::ToHost { to, from, bytes, pinned: bytes > 0 && driver.pinned_contains(to, bytes) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: *mut c_void) -> Code {
    call("cuMemcpyDtoHAsync_v2", |driver| {
        let context = driver.current()?;
        let op = to_host(driver, to, from, bytes)?;
        let stream = handle(stream);
        let pinned = bytes == 0 || matches!(op, Op::ToHost { pinned: true, .. });
        pageable_in_capture(driver, context, stream, pinned)?;
        driver.submit(context, stream, op)?;
        // A copy to pageable memory returns when it is done.
        if !pinned {
            driver.drain(context, Some(stream));
            driver.current()?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Code {
    call("cuMemcpyDtoH_v2", |driver| {
        let op = to_host(driver, to, from, bytes)?;
        synchronous(driver, op)
    })
}

fn on_device(driver: &mut Driver, to: u64, from: u64, bytes: usize) -> Outcome<Op> {
    let context = driver.current()?;
    let bytes = bytes as u64;
    within(driver, context, from, bytes)?;
    within(driver, context, to, bytes)?;
    Ok(Op::OnDevice { to, from, bytes })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> Code {
    call("cuMemcpyDtoDAsync_v2", |driver| {
        let context = driver.current()?;
        let op = on_device(driver, to, from, bytes)?;
        driver.submit(context, handle(stream), op)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Code {
    call("cuMemcpyDtoD_v2", |driver| {
        let op = on_device(driver, to, from, bytes)?;
        synchronous(driver, op)
    })
}

fn set(driver: &mut Driver, to: u64, value: u32, width: u8, count: usize) -> Outcome<Op> {
    let context = driver.current()?;
    let bytes = (count as u64).checked_mul(u64::from(width)).ok_or(code::INVALID_VALUE)?;
    if !to.is_multiple_of(u64::from(width)) {
        return Err(code::INVALID_VALUE);
    }
    within(driver, context, to, bytes)?;
    Ok(Op::Set { to, value, width, count: count as u64 })
}

macro_rules! fills {
    ($($asynchronous:ident, $synchronous:ident, $type:ty, $width:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $asynchronous(to: u64, value: $type, count: usize, stream: *mut c_void) -> Code {
            call(stringify!($asynchronous), |driver| {
                let context = driver.current()?;
                let op = set(driver, to, u32::from(value), $width, count)?;
                driver.submit(context, handle(stream), op)
            })
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $synchronous(to: u64, value: $type, count: usize) -> Code {
            call(stringify!($synchronous), |driver| {
                let op = set(driver, to, u32::from(value), $width, count)?;
                synchronous(driver, op)
            })
        }
    )*};
}

fills! {
    cuMemsetD8Async, cuMemsetD8_v2, u8, 1;
    cuMemsetD16Async, cuMemsetD16_v2, u16, 2;
    cuMemsetD32Async, cuMemsetD32_v2, u32, 4;
}
