//! A stand-in for `libnccl.so.2`, for tests without GPUs.
//!
//! It has the calls that `engine` makes, with the real ones' arguments and results. Like those they are submitted to a stream, where they
//! may be captured: a copy to the host, a function of the host that exchanges with the other processes by TCP through rank 0, a
//! copy back. It writes each call to the file that `NCCL_DOUBLE_LOG` names, and refuses what NCCL would hang on or crash over:
//! calls that differ from rank to rank, and ones that come after the communicator is gone. Where another process is gone it hangs,
//! as NCCL does.

#![allow(clippy::missing_safety_doc, reason = "the contracts are those of nccl.h")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;

/// nccl.h's `ncclFloat32` and `ncclBfloat16`, which are added up here, and `ncclUint8`.
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
const UINT8: c_int = 1;
/// nccl.h's `ncclSum`.
const SUM: c_int = 0;

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a rank hangs that another one has left alone, before it ends its process.
const HANGS: Duration = Duration::from_secs(300);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId {
    bytes: [c_char; 128],
}

/// One rank's end: rank 0 has a connection to each other rank, they have one to it.
pub struct Communicator {
    rank: usize,
    ranks: usize,
    peers: Vec<TcpStream>,
    calls: u64,
    /// The submitted calls: a captured one is made again at each replay.
    submitted: Vec<*mut Call>,
    /// Calls that were not captured, to be made again: by bytes, kind and dtype.
    eager: HashMap<(usize, u64), *mut Call>,
}

/// A call in a stream, with pinned memory for what this rank gives and for what it gets.
struct Call {
    communicator: *mut Communicator,
    kind: u64,
    own: *mut u8,
    bytes: usize,
    all: *mut u8,
}

/// Kinds of calls.
const SUM_FLOAT32: u64 = 1;
const GATHER: u64 = 2;
const SUM_BFLOAT16: u64 = 3;

/// The listeners behind the ids that this process gave out: of several, one is used.
static LISTENERS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

fn log(line: &str) {
    let Some(path) = std::env::var_os("NCCL_DOUBLE_LOG") else { return };
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: nccl.h's contract.
    unsafe { version.write(22_703) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        SUCCESS => c"no error",
        SYSTEM_ERROR => c"unhandled system error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    let Ok(listener) = TcpListener::bind(("127.0.0.1", 0)) else { return SYSTEM_ERROR };
    let Ok(address) = listener.local_addr() else { return SYSTEM_ERROR };
    let mut bytes = [0 as c_char; 128];
    let port = address.port().to_le_bytes();
    (bytes[0], bytes[1]) = (port[0] as c_char, port[1] as c_char);
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    // SAFETY: nccl.h's contract.
    unsafe { id.write(UniqueId { bytes }) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    communicator: *mut *mut Communicator,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
) -> c_int {
    if ranks < 1 || !(0..ranks).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let (rank, ranks) = (rank as usize, ranks as usize);
    let port = u16::from_le_bytes([id.bytes[0] as u8, id.bytes[1] as u8]);
    let Some(peers) = connect(rank, ranks, port) else { return SYSTEM_ERROR };
    log(&format!("{rank} init {ranks}"));
    let made = Communicator { rank, ranks, peers, calls: 0, submitted: Vec::new(), eager: HashMap::new() };
    // SAFETY: nccl.h's contract.
    unsafe { communicator.write(Box::into_raw(Box::new(made))) };
    SUCCESS
}

fn connect(rank: usize, ranks: usize, port: u16) -> Option<Vec<TcpStream>> {
    let until = Instant::now() + PATIENCE;
    if rank > 0 {
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() > until => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        (&stream).write_all(&(rank as u64).to_le_bytes()).ok()?;
        return Some(vec![stream]);
    }
    let listener = {
        let mut all = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.iter().position(|listener| listener.local_addr().is_ok_and(|address| address.port() == port))?;
        all.swap_remove(own)
    };
    listener.set_nonblocking(true).ok()?;
    let mut peers: Vec<Option<TcpStream>> = (1..ranks).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if Instant::now() > until => return None,
            Err(_) => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
        };
        stream.set_nonblocking(false).ok()?;
        let mut theirs = [0; 8];
        (&stream).read_exact(&mut theirs).ok()?;
        let theirs = u64::from_le_bytes(theirs) as usize;
        *peers.get_mut(theirs.checked_sub(1)?)? = Some(stream);
    }
    peers.into_iter().collect()
}

/// The driver that the process has loaded.
struct Driver {
    library: libloading::Library,
}

type Stream = *mut c_void;
type Function = unsafe extern "C" fn(*mut c_void);

impl Driver {
    fn open() -> Option<Self> {
        // SAFETY: it is loaded already, by whoever made the buffers.
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.ok()?;
        Some(Self { library })
    }

    /// A function of the driver.
    ///
    /// # Safety
    /// `T` is its signature.
    unsafe fn find<T>(&self, name: &CStr) -> Option<libloading::Symbol<'_, T>> {
        // SAFETY: the caller's promise.
        unsafe { self.library.get(name.to_bytes_with_nul()) }.ok()
    }

    fn is_capturing(&self, stream: Stream) -> Option<bool> {
        let mut status = 0u32;
        // SAFETY: cuda.h's signature; the status outlives the call.
        let code = unsafe {
            self.find::<unsafe extern "C" fn(Stream, *mut u32) -> c_int>(c"cuStreamIsCapturing")?(stream, &mut status)
        };
        (code == 0).then_some(status == 1)
    }

    /// Pinned memory, in a capture too.
    fn pin(&self, bytes: usize) -> Option<*mut u8> {
        let mut memory = std::ptr::null_mut();
        let mut mode = 2u32;
        // SAFETY: cuda.h's signatures; both outlive the calls, and the mode is put back.
        let code = unsafe {
            let exchange =
                self.find::<unsafe extern "C" fn(*mut u32) -> c_int>(c"cuThreadExchangeStreamCaptureMode")?;
            let allocate =
                self.find::<unsafe extern "C" fn(*mut *mut c_void, usize, u32) -> c_int>(c"cuMemHostAlloc")?;
            exchange(&mut mode);
            let code = allocate(&mut memory, bytes.max(1), 0);
            exchange(&mut mode);
            code
        };
        (code == 0).then_some(memory.cast())
    }

    fn unpin(&self, memory: *mut u8) {
        // SAFETY: cuda.h's signature; the memory came from `pin`, and nothing uses it any more.
        unsafe {
            if let Some(free) = self.find::<unsafe extern "C" fn(*mut c_void) -> c_int>(c"cuMemFreeHost") {
                free(memory.cast());
            }
        }
    }

    /// Submits a call: this rank's bytes to the host, the exchange there, the answer to the device.
    ///
    /// # Safety
    /// The call and the addresses live for as long as the stream's work, or the graph that records it.
    unsafe fn submit(
        &self,
        call: *mut Call,
        source: u64,
        destination: u64,
        answer: usize,
        stream: Stream,
    ) -> Option<()> {
        type ToHost = unsafe extern "C" fn(*mut c_void, u64, usize, Stream) -> c_int;
        type ToDevice = unsafe extern "C" fn(u64, *const c_void, usize, Stream) -> c_int;
        type Launch = unsafe extern "C" fn(Stream, Function, *mut c_void) -> c_int;
        // SAFETY: cuda.h's signatures; the caller's promise.
        unsafe {
            let to_host = self.find::<ToHost>(c"cuMemcpyDtoHAsync_v2")?;
            let launch = self.find::<Launch>(c"cuLaunchHostFunc")?;
            let to_device = self.find::<ToDevice>(c"cuMemcpyHtoDAsync_v2")?;
            let done = to_host((*call).own.cast(), source, (*call).bytes, stream) == 0
                && launch(stream, exchange, call.cast()) == 0
                && to_device(destination, (*call).all.cast(), answer, stream) == 0;
            done.then_some(())
        }
    }
}

/// Exchanges with the other processes: what a stream calls between the copies.
unsafe extern "C" fn exchange(call: *mut c_void) {
    // SAFETY: it was submitted with a call that lives as long as its communicator.
    let call = unsafe { &mut *call.cast::<Call>() };
    // SAFETY: as above; one stream at a time has the communicator.
    let communicator = unsafe { &mut *call.communicator };
    // SAFETY: pinned memory of so many bytes, which the copy in front has filled.
    let own = unsafe { std::slice::from_raw_parts(call.own, call.bytes) }.to_vec();
    let answer = communicator.exchange(call.kind, own, |all| match call.kind {
        GATHER => all.concat(),
        kind => sum(&all, kind == SUM_BFLOAT16),
    });
    let Some(answer) = answer else {
        log(&format!("{} hangs", communicator.rank));
        std::thread::sleep(HANGS);
        eprintln!("nccl-double: another process is gone");
        std::process::exit(70);
    };
    // SAFETY: pinned memory for all of it.
    unsafe { std::ptr::copy_nonoverlapping(answer.as_ptr(), call.all, answer.len()) };
}

fn sum(all: &[Vec<u8>], brief: bool) -> Vec<u8> {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        match brief {
            true => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|half| f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16))
                .collect(),
            false => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        }
    };
    let mut sum = floats(&all[0]);
    for other in &all[1..] {
        sum.iter_mut().zip(floats(other)).for_each(|(sum, value)| *sum += value);
    }
    match brief {
        // Rounded to the nearest, of two the even one.
        true => sum
            .iter()
            .map(|value| (value.to_bits().wrapping_add(0x7fff + (value.to_bits() >> 16 & 1)) >> 16) as u16)
            .flat_map(u16::to_le_bytes)
            .collect(),
        false => sum.into_iter().flat_map(f32::to_le_bytes).collect(),
    }
}

impl Communicator {
    /// Collects the data of all ranks, by rank, at rank 0; every rank gets the answer that rank 0 computes. `call` must be the same on all.
    fn exchange(&mut self, call: u64, own: Vec<u8>, join: impl FnOnce(Vec<Vec<u8>>) -> Vec<u8>) -> Option<Vec<u8>> {
        self.calls += 1;
        let head = [self.calls << 8 | call, own.len() as u64].map(u64::to_le_bytes).concat();
        if self.rank > 0 {
            let stream = &mut self.peers[0];
            stream.write_all(&head).ok()?;
            stream.write_all(&own).ok()?;
            return received(stream);
        }
        let mut all = vec![own];
        for stream in &mut self.peers {
            let mut theirs = [0; 16];
            stream.read_exact(&mut theirs).ok()?;
            if theirs[..] != head[..] {
                log("0 differs");
                return None;
            }
            let mut bytes = vec![0; all[0].len()];
            stream.read_exact(&mut bytes).ok()?;
            all.push(bytes);
        }
        let answer = join(all);
        for stream in &mut self.peers {
            stream.write_all(&(answer.len() as u64).to_le_bytes()).ok()?;
            stream.write_all(&answer).ok()?;
        }
        Some(answer)
    }
}

fn received(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len).ok()?;
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(len)).ok()?.min(1 << 32)];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Submits a call to a stream.
///
/// # Safety
/// nccl.h's contract: the communicator came from `ncclCommInitRank` and is used by one thread; the addresses are the device's.
unsafe fn submit(
    communicator: *mut Communicator,
    kind: u64,
    bytes: usize,
    (source, destination): (*const c_void, *mut c_void),
    stream: Stream,
) -> c_int {
    let done = || {
        let driver = Driver::open()?;
        let captured = driver.is_capturing(stream)?;
        // SAFETY: the caller's promise.
        let own = unsafe { &mut *communicator };
        let answer = if kind == GATHER { own.ranks * bytes } else { bytes };
        let call = match own.eager.get(&(bytes, kind)).filter(|_| !captured) {
            Some(call) => *call,
            None => {
                let (memory, all) = (driver.pin(bytes)?, driver.pin(answer)?);
                let call = Box::into_raw(Box::new(Call { communicator, kind, own: memory, bytes, all }));
                own.submitted.push(call);
                if !captured {
                    own.eager.insert((bytes, kind), call);
                }
                call
            }
        };
        // SAFETY: the call is the communicator's, the addresses are the caller's.
        unsafe { driver.submit(call, source as u64, destination as u64, answer, stream) }
    };
    done().map_or(SYSTEM_ERROR, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    source: *const c_void,
    destination: *mut c_void,
    count: usize,
    dtype: c_int,
    operation: c_int,
    communicator: *mut Communicator,
    stream: *mut c_void,
) -> c_int {
    let (kind, size, name) = match dtype {
        FLOAT32 => (SUM_FLOAT32, 4, "f32"),
        BFLOAT16 => (SUM_BFLOAT16, 2, "bf16"),
        _ => return INVALID_ARGUMENT,
    };
    if communicator.is_null() || operation != SUM {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nccl.h's contract.
    let rank = unsafe { (*communicator).rank };
    log(&format!("{rank} all-reduce {count} {name} {:#x}", stream as usize));
    // SAFETY: nccl.h's contract.
    unsafe { submit(communicator, kind, size * count, (source, destination), stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    source: *const c_void,
    destination: *mut c_void,
    count: usize,
    dtype: c_int,
    communicator: *mut Communicator,
    stream: *mut c_void,
) -> c_int {
    if communicator.is_null() || dtype != UINT8 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nccl.h's contract.
    let (rank, ranks) = unsafe { ((*communicator).rank, (*communicator).ranks) };
    log(&format!("{rank} all-gather {count} of {ranks} {:#x}", stream as usize));
    // SAFETY: nccl.h's contract.
    unsafe { submit(communicator, GATHER, count, (source, destination), stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: *mut Communicator) -> c_int {
    if communicator.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nccl.h's contract: nobody uses it after this.
    let communicator = unsafe { Box::from_raw(communicator) };
    log(&format!("{} destroy", communicator.rank));
    let driver = Driver::open();
    for call in &communicator.submitted {
        // SAFETY: made by `submit`, and given back once; nccl.h's contract: no graph that would call it is left.
        let call = unsafe { Box::from_raw(*call) };
        if let Some(driver) = &driver {
            driver.unpin(call.own);
            driver.unpin(call.all);
        }
    }
    SUCCESS
}
