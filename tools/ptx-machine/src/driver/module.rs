//! Modules, functions and launches.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::code::{self, Code, Outcome};
use super::model::{
    BLOCK_LIMITS, GRID_LIMITS, LEAST_REGISTERS, MOST_REGISTERS, REGISTER_STEP, REGISTERS, SHARED_FREE,
    THREADS_PER_BLOCK, WARPS_AT_ONCE,
};
use super::queue::{Launch, Op};
use super::state::{Driver, Function, Handle, Module, handle, pointer};
use super::{call, put};
use crate::ir::Program;
use crate::parse::{self, Space};

/// The log that a caller wants of what is wrong with its PTX.
#[derive(Default)]
struct Log {
    at: Option<*mut u8>,
    size: usize,
}

impl Log {
    fn write(&self, message: &str) {
        let Some(at) = self.at.filter(|_| self.size > 0) else { return };
        let bytes = &message.as_bytes()[..message.len().min(self.size - 1)];
        // SAFETY: cuda.h: so many bytes can be written.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
            at.add(bytes.len()).write(0);
        }
    }
}

/// Reads the options; only those of the error log change anything here.
fn options(count: c_uint, names: *const c_uint, values: *const *mut c_void) -> Outcome<Log> {
    let mut log = Log::default();
    if count > 0 && (names.is_null() || values.is_null()) {
        return Err(code::INVALID_VALUE);
    }
    for index in 0..count as usize {
        // SAFETY: cuda.h: so many of both can be read.
        let (name, value) = unsafe { (*names.add(index), *values.add(index)) };
        match name {
            5 => log.at = (!value.is_null()).then_some(value.cast()),
            6 => log.size = value as usize,
            0..=17 => {}
            _ => return Err(code::INVALID_VALUE),
        }
    }
    Ok(log)
}

/// The CUDA version that first knew a PTX version, as the driver counts: 12040 for PTX 8.4.
fn known_since((major, minor): (u32, u32)) -> i32 {
    match major {
        0..=6 => 10_000,
        7 => 11_000 + 10 * minor as i32,
        8 => 12_000 + 10 * minor as i32,
        _ => 13_000 + 10 * minor as i32,
    }
}

fn load(driver: &mut Driver, image: *const c_void, log: &Log) -> Outcome<Handle> {
    let context = driver.current()?;
    driver.safe_in_capture()?;
    if image.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: cuda.h: PTX ends with a zero byte; another image begins with bytes that are none of a text.
    let text = unsafe { CStr::from_ptr(image.cast::<c_char>()) };
    let Ok(text) = text.to_str() else { return Err(code::INVALID_IMAGE) };
    if !text.contains(".version") {
        return Err(code::INVALID_IMAGE);
    }
    let refuse = |message: String| {
        log.write(&format!("ptxas fatal   : {message}"));
        code::INVALID_PTX
    };
    let source = text.lines().find_map(|line| line.strip_prefix("// source: "));
    // Lines are those of the PTX made from the source.
    let name = source.map_or("ptx".into(), |source| format!("ptx of {source}"));
    let waits = text.contains("griddepcontrol.wait");
    let replaced = replacement(driver, source, waits);
    let text = replaced.as_deref().unwrap_or(text);
    let stated = text
        .split_once(".version")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|version| version.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if let Some(version) = stated
        && known_since(version) > driver.version
    {
        return Err(code::UNSUPPORTED_PTX_VERSION);
    }
    let module = parse::parse(&name, text).map_err(|error| refuse(error.to_string()))?;
    let (major, minor) = driver.device_of(context)?.model.capability;
    let capability = (major * 10 + minor) as u32;
    let fits = if module.specific { module.target == capability } else { module.target <= capability };
    if !fits {
        return Err(refuse(format!("{name}: .target sm_{} on a device of sm_{capability}", module.target)));
    }
    let addresses = globals(driver, context, &module)?;
    let mut programs = Vec::new();
    for entry in &module.entries {
        let program = Program::build(&module, entry, &addresses).map_err(|error| refuse(error.to_string()))?;
        if program.static_shared > SHARED_FREE {
            return Err(refuse(format!("{}: {} bytes of static shared memory", entry.name, program.static_shared)));
        }
        programs.push(program);
    }
    let made = driver.fresh();
    let mut functions = HashMap::new();
    for program in programs {
        let function = driver.fresh();
        functions.insert(program.name.clone(), function);
        let dynamic_limit = SHARED_FREE - program.static_shared;
        let ptx_version = module.version.0 * 10 + module.version.1;
        let program = Arc::new(program);
        driver.functions.insert(function, Function { context, module: made, program, dynamic_limit, ptx_version });
    }
    let named = module.variables.iter().zip(&addresses).filter(|(variable, _)| variable.space != Space::Shared);
    let globals = named.map(|(variable, &address)| (variable.name.clone(), address, variable.size)).collect();
    driver.modules.insert(made, Module { context, functions, globals });
    Ok(made)
}

/// Another text for the module that was made from `source`, where one is there. Its kernels wait for the grids before where those
/// of the module do (`waits`).
fn replacement(driver: &Driver, source: Option<&str>, waits: bool) -> Option<String> {
    let folder = driver.replace.as_ref()?;
    let stem = std::path::Path::new(source?).file_stem()?;
    let text = std::fs::read_to_string(folder.join(stem).with_extension("ptx")).ok()?;
    let added = waits && !text.contains("griddepcontrol");
    let with_waits = if added { kernel_signatures::ptx_with_grid_waits(&text) } else { None };
    Some(with_waits.unwrap_or(text))
}

/// Memory for the module's variables, with their initial values.
fn globals(driver: &mut Driver, context: Handle, module: &parse::Module) -> Outcome<Vec<u64>> {
    let memory = driver.memory_of(context)?;
    let mut addresses = Vec::new();
    for variable in &module.variables {
        if variable.space == Space::Shared {
            addresses.push(0);
            continue;
        }
        let address = memory.allocate(variable.size.max(1)).map_err(|_| code::OUT_OF_MEMORY)?;
        // Variables without an initial value are zero.
        let zeros = vec![0; variable.size as usize];
        let bytes = variable.init.as_deref().unwrap_or(&zeros);
        // SAFETY: so many bytes were allocated.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.at(address), bytes.len()) };
        memory.mark_written(address, bytes.len() as u64);
        addresses.push(address);
    }
    Ok(addresses)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    count: c_uint,
    names: *const c_uint,
    values: *const *mut c_void,
) -> Code {
    call("cuModuleLoadDataEx", |driver| {
        driver.current()?;
        let log = options(count, names, values)?;
        let made = load(driver, image, &log)?;
        put(module, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> Code {
    call("cuModuleLoadData", |driver| {
        let made = load(driver, image, &Log::default())?;
        put(module, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> Code {
    call("cuModuleUnload", |driver| {
        let context = driver.current()?;
        driver.safe_in_capture()?;
        let handle = handle(module);
        if driver.modules.get(&handle).is_none_or(|module| module.context != context) {
            return Err(code::INVALID_HANDLE);
        }
        driver.drain(context, None);
        let Some(gone) = driver.modules.remove(&handle) else { return Err(code::INVALID_HANDLE) };
        driver.functions.retain(|_, function| function.module != handle);
        let memory = driver.memory_of(context)?;
        for (_, address, _) in gone.globals {
            memory.release(address);
        }
        Ok(())
    })
}

fn name<'n>(text: *const c_char) -> Outcome<&'n str> {
    if text.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: cuda.h: a name ends with a zero byte.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| code::NOT_FOUND)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut *mut c_void, module: *mut c_void, text: *const c_char) -> Code {
    call("cuModuleGetFunction", |driver| {
        driver.current()?;
        let found = driver.modules.get(&handle(module)).ok_or(code::INVALID_HANDLE)?;
        let function = *found.functions.get(name(text)?).ok_or(code::NOT_FOUND)?;
        put(to, pointer(function))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: *mut c_void,
    text: *const c_char,
) -> Code {
    call("cuModuleGetGlobal_v2", |driver| {
        driver.current()?;
        let found = driver.modules.get(&handle(module)).ok_or(code::INVALID_HANDLE)?;
        let wanted = name(text)?;
        let (_, at, size) = found.globals.iter().find(|(name, ..)| name == wanted).ok_or(code::NOT_FOUND)?;
        if !address.is_null() {
            put(address, *at)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, *size as usize) }
    })
}

fn function(driver: &mut Driver, function: *mut c_void) -> Outcome<&mut Function> {
    let context = driver.current()?;
    driver.functions.get_mut(&handle(function)).filter(|found| found.context == context).ok_or(code::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncLoad(of: *mut c_void) -> Code {
    call("cuFuncLoad", |driver| {
        driver.safe_in_capture()?;
        function(driver, of).map(|_| ())
    })
}

/// The threads of a block that the kernel itself allows.
fn bound(program: &Program) -> Option<u32> {
    let sizes = program.required_threads.or(program.max_threads)?;
    Some(sizes.iter().fold(1u32, |all, &size| all.saturating_mul(size)).clamp(1, THREADS_PER_BLOCK))
}

/// The most registers that threads of such blocks can have, in the steps in which warps get them.
fn registers_that_fit(threads: u32, blocks: u32) -> u32 {
    let threads = threads.next_multiple_of(WARPS_AT_ONCE * 32).saturating_mul(blocks.max(1));
    REGISTERS / threads / REGISTER_STEP * REGISTER_STEP
}

/// Registers a thread. A compiler saves them, by spilling, only where the kernel says how many threads there will be or how many
/// registers: without that it takes what it needs, and a large block does not launch.
pub(super) fn registers(program: &Program) -> u32 {
    let fit = bound(program).map_or(MOST_REGISTERS, |threads| registers_that_fit(threads, program.min_blocks));
    let stated = program.max_registers.unwrap_or(MOST_REGISTERS);
    program.registers.min(MOST_REGISTERS).min(fit).min(stated).max(LEAST_REGISTERS)
}

/// The most threads of a block: as the kernel says, and as its registers allow.
fn max_threads(program: &Program) -> u32 {
    let each = registers(program).next_multiple_of(REGISTER_STEP);
    let warps = REGISTERS / (each * 32) / WARPS_AT_ONCE * WARPS_AT_ONCE;
    bound(program).unwrap_or(THREADS_PER_BLOCK).min(32 * warps)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(of: *mut c_void, which: c_int, value: c_int) -> Code {
    call("cuFuncSetAttribute", |driver| {
        let context = driver.current()?;
        let limit = driver.device_of(context)?.model.shared_optin;
        let found = function(driver, of)?;
        match which {
            8 => {
                let value = u32::try_from(value).map_err(|_| code::INVALID_VALUE)?;
                if value > limit.saturating_sub(found.program.static_shared) {
                    return Err(code::INVALID_VALUE);
                }
                found.dynamic_limit = value;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(code::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, which: c_int, of: *mut c_void) -> Code {
    call("cuFuncGetAttribute", |driver| {
        let context = driver.current()?;
        let (major, minor) = driver.device_of(context)?.model.capability;
        let found = function(driver, of)?;
        let program = &found.program;
        put(
            value,
            match which {
                0 => max_threads(program) as c_int,
                1 => program.static_shared as c_int,
                2 | 7 => 0,
                3 => program.local_bytes as c_int,
                4 => registers(program) as c_int,
                5 => found.ptx_version as c_int,
                6 => major * 10 + minor,
                8 => found.dynamic_limit as c_int,
                9 => -1,
                _ => return Err(code::INVALID_VALUE),
            },
        )
    })
}

/// The resources of a launch.
struct Request {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: Handle,
    /// As [`Launch::dependent`].
    dependent: bool,
}

fn launch(
    driver: &mut Driver,
    of: *mut c_void,
    request: &Request,
    params: *const *mut c_void,
    extra: *const *mut c_void,
) -> Outcome {
    let context = driver.current()?;
    let found = function(driver, of)?;
    let (program, dynamic_limit) = (Arc::clone(&found.program), found.dynamic_limit);
    driver.stream(context, request.stream)?;
    let Request { grid, block, dynamic_shared, stream, dependent } = *request;
    let beyond =
        |sizes: [u32; 3], limits: [u32; 3]| sizes.iter().zip(limits).any(|(&size, limit)| size == 0 || size > limit);
    let threads = block.iter().map(|&size| u64::from(size)).product::<u64>();
    if beyond(grid, GRID_LIMITS) || beyond(block, BLOCK_LIMITS) || threads > u64::from(THREADS_PER_BLOCK) {
        return Err(code::INVALID_VALUE);
    }
    if dynamic_shared > dynamic_limit {
        return Err(code::INVALID_VALUE);
    }
    if program.required_threads.is_some_and(|required| required != block) {
        return Err(code::INVALID_VALUE);
    }
    if threads > u64::from(max_threads(&program)) {
        return Err(code::LAUNCH_OUT_OF_RESOURCES);
    }
    let params = parameters(&program, params, extra)?;
    driver.trace(|| format!("launch {stream:#x} {}", program.name));
    let launch = Launch { program, grid, block, dynamic_shared, params, dependent };
    driver.submit(context, stream, Op::Launch(Arc::new(launch)))
}

/// The parameters' bytes, by an array of pointers or as one buffer.
fn parameters(program: &Program, params: *const *mut c_void, extra: *const *mut c_void) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0u8; program.param_bytes as usize];
    if !params.is_null() && !extra.is_null() {
        return Err(code::INVALID_VALUE);
    }
    if !params.is_null() {
        for (index, &(offset, size)) in program.param_list.iter().enumerate() {
            // SAFETY: cuda.h: one pointer for each parameter, to as many bytes as it has.
            unsafe {
                let from = *params.add(index);
                if from.is_null() {
                    return Err(code::INVALID_VALUE);
                }
                let to = &mut bytes[offset as usize..][..size as usize];
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.as_mut_ptr(), to.len());
            }
        }
        return Ok(bytes);
    }
    if extra.is_null() {
        return if program.param_list.is_empty() { Ok(bytes) } else { Err(code::INVALID_VALUE) };
    }
    let (mut buffer, mut size) = (None, None);
    // SAFETY: cuda.h: pairs of a word and a value, and a zero at the end.
    unsafe {
        let mut at = extra;
        loop {
            match (*at) as usize {
                0 => break,
                1 => buffer = Some((*at.add(1)).cast::<u8>()),
                2 => size = Some(*(*at.add(1)).cast::<usize>()),
                _ => return Err(code::INVALID_VALUE),
            }
            at = at.add(2);
        }
    }
    match (buffer, size) {
        (Some(buffer), Some(size)) if size == bytes.len() && !buffer.is_null() => {
            // SAFETY: cuda.h: the buffer has so many bytes.
            unsafe { std::ptr::copy_nonoverlapping(buffer, bytes.as_mut_ptr(), size) };
            Ok(bytes)
        }
        _ => Err(code::INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    of: *mut c_void,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    params: *const *mut c_void,
    extra: *const *mut c_void,
) -> Code {
    call("cuLaunchKernel", |driver| {
        let stream = handle(stream);
        let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
        let request = Request { grid, block, dynamic_shared: shared, stream, dependent: false };
        launch(driver, of, &request, params, extra)
    })
}

/// cuda.h's `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub pad: [u8; 4],
    pub value: [u32; 16],
}

/// cuda.h's `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub stream: *mut c_void,
    pub attributes: *const LaunchAttribute,
    pub attribute_count: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    of: *mut c_void,
    params: *const *mut c_void,
    extra: *const *mut c_void,
) -> Code {
    call("cuLaunchKernelEx", |driver| {
        driver.current()?;
        if config.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: cuda.h: a configuration, with as many attributes as it says.
        let config = unsafe { *config };
        if config.attribute_count > 0 && config.attributes.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let mut dependent = false;
        for index in 0..config.attribute_count as usize {
            // SAFETY: as above.
            let attribute = unsafe { *config.attributes.add(index) };
            match attribute.id {
                // Nothing, a window of the cache, a priority: they change no result.
                0 | 1 | 8 => {}
                // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION; older devices take it and do not use it.
                6 => dependent = attribute.value[0] != 0,
                // Clusters of one block are no clusters; larger ones have instructions that are not known.
                4 if attribute.value[..3] == [1, 1, 1] => {}
                2 if attribute.value[0] == 0 => {}
                // Cooperative grids, clusters, events of blocks, domains of memory.
                2 | 4 | 5 | 7 | 9 | 10 => return Err(code::NOT_SUPPORTED),
                // The synchronisation policy, 3, is a stream's attribute: drivers refuse it here.
                _ => return Err(code::INVALID_VALUE),
            }
        }
        let (grid, block, stream) = (config.grid, config.block, handle(config.stream));
        let request = Request { grid, block, dynamic_shared: config.shared, stream, dependent };
        launch(driver, of, &request, params, extra)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    of: *mut c_void,
    threads: c_int,
    shared: usize,
) -> Code {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |driver| {
        let context = driver.current()?;
        let model = driver.device_of(context)?.model;
        let found = function(driver, of)?;
        let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(code::INVALID_VALUE)?;
        let threads = threads.next_multiple_of(32);
        // One kilobyte of each block's shared memory is the system's.
        let bytes = shared as u64 + u64::from(found.program.static_shared) + 1024;
        let by_threads = model.threads_per_multiprocessor as u32 / threads;
        let each = registers(&found.program).next_multiple_of(REGISTER_STEP);
        let by_registers = REGISTERS / (each * threads.next_multiple_of(WARPS_AT_ONCE * 32));
        let by_shared = (model.shared_per_multiprocessor as u64 / bytes) as u32;
        put(blocks, by_threads.min(by_registers).min(by_shared).min(model.blocks_per_multiprocessor as u32) as c_int)
    })
}
