//! A stand-in for `libnccl.so.2`, for tests without GPUs.
//!
//! It has the calls that `engine` makes, with the real ones' arguments and results, and does them when they are made: it waits
//! for the stream, copies to the host, exchanges with the other processes by TCP through rank 0, copies back. It writes each
//! call to the file that `NCCL_DOUBLE_LOG` names, and refuses what NCCL would hang on or crash over: calls that differ from rank
//! to rank, and ones that come after the communicator is gone.

#![allow(clippy::missing_safety_doc, reason = "the contracts are those of nccl.h")]

use std::ffi::{c_char, c_int, c_void};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;

/// nccl.h's `ncclFloat32`, the one type that is added up here, and `ncclUint8`.
const FLOAT32: c_int = 7;
const UINT8: c_int = 1;
/// nccl.h's `ncclSum`.
const SUM: c_int = 0;

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(30);

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
}

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
    let made = Box::new(Communicator { rank, ranks, peers, calls: 0 });
    // SAFETY: nccl.h's contract.
    unsafe { communicator.write(Box::into_raw(made)) };
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

type Wait = unsafe extern "C" fn(*mut c_void) -> c_int;
type ToHost = unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int;
type ToDevice = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;

impl Driver {
    fn open() -> Option<Self> {
        // SAFETY: it is loaded already, by whoever made the buffers.
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.ok()?;
        Some(Self { library })
    }

    unsafe fn read(&self, stream: *mut c_void, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut host = vec![0u8; bytes];
        // SAFETY: cuda.h's signatures; the caller's addresses.
        unsafe {
            let wait = self.library.get::<Wait>(b"cuStreamSynchronize").ok()?;
            let copy = self.library.get::<ToHost>(b"cuMemcpyDtoH_v2").ok()?;
            (wait(stream) == 0 && copy(host.as_mut_ptr().cast(), address, bytes) == 0).then_some(host)
        }
    }

    unsafe fn write(&self, address: u64, host: &[u8]) -> Option<()> {
        // SAFETY: cuda.h's signature; the caller's addresses.
        let code = unsafe {
            let copy = self.library.get::<ToDevice>(b"cuMemcpyHtoD_v2").ok()?;
            copy(address, host.as_ptr().cast(), host.len())
        };
        (code == 0).then_some(())
    }
}

impl Communicator {
    /// What all ranks have, by rank, at rank 0; the answer is what it makes of it, on every rank. `call` must be the same on all.
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
    if communicator.is_null() || dtype != FLOAT32 || operation != SUM {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nccl.h's contract: it came from `ncclCommInitRank` and is used by one thread.
    let communicator = unsafe { &mut *communicator };
    log(&format!("{} all-reduce {count}", communicator.rank));
    let sum = |all: Vec<Vec<u8>>| {
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        };
        let mut sum = floats(&all[0]);
        for other in &all[1..] {
            sum.iter_mut().zip(floats(other)).for_each(|(sum, value)| *sum += value);
        }
        sum.into_iter().flat_map(f32::to_le_bytes).collect()
    };
    let mut done = || {
        let driver = Driver::open()?;
        // SAFETY: the caller's addresses and sizes.
        unsafe {
            let own = driver.read(stream, source as u64, 4 * count)?;
            let all = communicator.exchange(1, own, sum)?;
            driver.write(destination as u64, &all)
        }
    };
    done().map_or(SYSTEM_ERROR, |()| SUCCESS)
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
    // SAFETY: as above.
    let communicator = unsafe { &mut *communicator };
    log(&format!("{} all-gather {count} of {}", communicator.rank, communicator.ranks));
    let mut done = || {
        let driver = Driver::open()?;
        // SAFETY: the caller's addresses and sizes.
        unsafe {
            let own = driver.read(stream, source as u64, count)?;
            let all = communicator.exchange(2, own, |all| all.concat())?;
            driver.write(destination as u64, &all)
        }
    };
    done().map_or(SYSTEM_ERROR, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: *mut Communicator) -> c_int {
    if communicator.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nccl.h's contract: nobody uses it after this.
    let communicator = unsafe { Box::from_raw(communicator) };
    log(&format!("{} destroy", communicator.rank));
    SUCCESS
}
