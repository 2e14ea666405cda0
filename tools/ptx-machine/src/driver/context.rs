//! The driver itself, devices and contexts.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::code::{self, Code, Outcome};
use super::state::{CURRENT, Context, Driver, Handle, handle, pointer};
use super::{call, put};
use crate::count::Touches;
use crate::memory::DeviceMemory;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Code {
    call("cuInit", |driver| {
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        if let Some(fault) = &driver.fault {
            code::explain(fault);
            return Err(code::INVALID_VALUE);
        }
        driver.initialised = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    call("cuDriverGetVersion", |driver| put(version, driver.version))
}

fn started(driver: &Driver) -> Outcome {
    if driver.initialised { Ok(()) } else { Err(code::NOT_INITIALIZED) }
}

fn device(driver: &Driver, number: c_int) -> Outcome<usize> {
    started(driver)?;
    usize::try_from(number).ok().filter(|&index| index < driver.devices.len()).ok_or(code::INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    call("cuDeviceGetCount", |driver| {
        started(driver)?;
        put(count, driver.devices.len() as c_int)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Code {
    call("cuDeviceGet", |driver| {
        device(driver, ordinal)?;
        put(to, ordinal)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, number: c_int) -> Code {
    call("cuDeviceGetName", |driver| {
        let index = device(driver, number)?;
        let length = usize::try_from(length).ok().filter(|&length| length > 0).ok_or(code::INVALID_VALUE)?;
        if name.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let text = driver.devices[index].model.name.as_bytes();
        let shown = &text[..text.len().min(length - 1)];
        // SAFETY: cuda.h: so many bytes can be written.
        unsafe {
            std::ptr::copy_nonoverlapping(shown.as_ptr(), name.cast(), shown.len());
            name.add(shown.len()).write(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, number: c_int) -> Code {
    call("cuDeviceGetAttribute", |driver| {
        let index = device(driver, number)?;
        put(value, driver.devices[index].model.attribute(which).ok_or(code::INVALID_VALUE)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> Code {
    call("cuDeviceTotalMem_v2", |driver| {
        let index = device(driver, number)?;
        put(bytes, driver.devices[index].model.memory as usize)
    })
}

fn open(driver: &mut Driver, index: usize) -> Outcome<Handle> {
    let (checked, counts) = (driver.checked, driver.profile.is_some());
    let found = &mut driver.devices[index];
    if found.memory.is_none() {
        let refused = |error: std::io::Error| {
            eprintln!("ptx-machine: cannot reserve the addresses of a device: {error}");
            code::OUT_OF_MEMORY
        };
        let memory = DeviceMemory::new(index as u32, found.model.memory, checked).map_err(refused)?;
        found.touches = counts.then(|| Touches::new(memory.span().1)).transpose().map_err(refused)?;
        found.memory = Some(memory);
    }
    let made = driver.fresh();
    let context = Context {
        device: index,
        references: 1,
        fault: None,
        queue: Default::default(),
        last: Default::default(),
        in_host_function: false,
        in_background: false,
    };
    driver.contexts.insert(made, context);
    Ok(made)
}

/// Destroys a context with all that belongs to it.
fn close(driver: &mut Driver, context: Handle) {
    driver.drain(context, None);
    let Some(closed) = driver.contexts.remove(&context) else { return };
    let captures: Vec<Handle> =
        driver.streams.values().filter(|stream| stream.context == context).filter_map(|s| s.capture).collect();
    driver.captures.retain(|handle, _| !captures.contains(handle));
    driver.streams.retain(|_, stream| stream.context != context);
    driver.events.retain(|_, event| event.context != context);
    driver.modules.retain(|_, module| module.context != context);
    driver.functions.retain(|_, function| function.context != context);
    driver.graphs.retain(|_, graph| graph.context != context);
    driver.executables.retain(|_, graph| graph.context != context);
    let last = !driver.contexts.values().any(|other| other.device == closed.device);
    let device = &mut driver.devices[closed.device];
    if device.primary == Some(context) {
        device.primary = None;
    }
    if last {
        (device.memory, device.touches) = (None, None);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, number: c_int) -> Code {
    call("cuDevicePrimaryCtxRetain", |driver| {
        let index = device(driver, number)?;
        let made = match driver.devices[index].primary {
            Some(primary) => {
                driver.context(primary)?.references += 1;
                primary
            }
            None => {
                let made = open(driver, index)?;
                driver.devices[index].primary = Some(made);
                made
            }
        };
        put(context, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> Code {
    call("cuDevicePrimaryCtxRelease_v2", |driver| {
        let index = device(driver, number)?;
        let primary = driver.devices[index].primary.ok_or(code::INVALID_CONTEXT)?;
        let context = driver.context(primary)?;
        context.references -= 1;
        if context.references == 0 {
            close(driver, primary);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(number: c_int) -> Code {
    call("cuDevicePrimaryCtxReset_v2", |driver| {
        let index = device(driver, number)?;
        if let Some(primary) = driver.devices[index].primary {
            close(driver, primary);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(context: *mut *mut c_void, flags: c_uint, number: c_int) -> Code {
    call("cuCtxCreate_v2", |driver| {
        let index = device(driver, number)?;
        if flags & !0xff != 0 {
            return Err(code::INVALID_VALUE);
        }
        let made = open(driver, index)?;
        CURRENT.with_borrow_mut(|stack| stack.push(made));
        put(context, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(context: *mut c_void) -> Code {
    call("cuCtxDestroy_v2", |driver| {
        started(driver)?;
        let context = handle(context);
        let primary = driver.devices.iter().any(|device| device.primary == Some(context));
        if primary || !driver.contexts.contains_key(&context) {
            return Err(code::INVALID_CONTEXT);
        }
        close(driver, context);
        CURRENT.with_borrow_mut(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    call("cuCtxSetCurrent", |driver| {
        started(driver)?;
        let context = handle(context);
        if context != 0 && !driver.contexts.contains_key(&context) {
            return Err(code::INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> Code {
    call("cuCtxGetCurrent", |driver| {
        started(driver)?;
        put(context, pointer(CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0))))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPushCurrent_v2(context: *mut c_void) -> Code {
    call("cuCtxPushCurrent_v2", |driver| {
        started(driver)?;
        if !driver.contexts.contains_key(&handle(context)) {
            return Err(code::INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|stack| stack.push(handle(context)));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut *mut c_void) -> Code {
    call("cuCtxPopCurrent_v2", |driver| {
        started(driver)?;
        let popped = CURRENT.with_borrow_mut(Vec::pop).ok_or(code::INVALID_CONTEXT)?;
        if context.is_null() { Ok(()) } else { put(context, pointer(popped)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(number: *mut c_int) -> Code {
    call("cuCtxGetDevice", |driver| {
        let context = driver.current()?;
        let index = driver.context(context)?.device;
        put(number, index as c_int)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Code {
    call("cuCtxSynchronize", |driver| {
        let context = driver.current()?;
        let capturing = driver.streams.values().filter(|stream| stream.context == context).find_map(|s| s.capture);
        if let Some(capture) = capturing {
            driver.invalidate(capture);
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        driver.drain(context, None);
        driver.current().map(|_| ())
    })
}

/// No call of cuda.h: what was made and not given back, for tests that look for leaks.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_machine_live() -> c_int {
    let driver = super::state::lock();
    let handles = driver.contexts.len()
        + driver.streams.len()
        + driver.events.len()
        + driver.modules.len()
        + driver.graphs.len()
        + driver.executables.len()
        + driver.pinned.len();
    let memory = driver.devices.iter().filter_map(|device| device.memory.as_ref());
    (handles + memory.map(DeviceMemory::allocations).sum::<usize>()) as c_int
}

/// No call of cuda.h: the next call of `name` returns `code` and does nothing, so that it can be seen how a caller takes a result that no
/// driver of today has.
///
/// # Safety
/// `name` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_machine_answer(name: *const c_char, code: Code) {
    // SAFETY: the caller's promise.
    let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
    super::state::lock().answers.insert(name, code);
}
