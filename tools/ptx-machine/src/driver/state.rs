//! All that the driver knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use super::code::{self, Code, Outcome};
use super::model::Model;
use super::profile::Profile;
use super::queue::{self, Last, Op};
use super::settings::Settings;
use crate::count::Touches;
use crate::exec::Limits;
use crate::ir::Program;
use crate::memory::DeviceMemory;

/// A handle's number; the caller sees it as a pointer that leads nowhere.
pub type Handle = u64;

pub fn handle(pointer: *const c_void) -> Handle {
    pointer as usize as u64
}

pub fn pointer(handle: Handle) -> *mut c_void {
    std::ptr::without_provenance_mut(handle as usize)
}

pub struct Device {
    pub model: Model,
    pub primary: Option<Handle>,
    /// Made with the first context.
    pub memory: Option<DeviceMemory>,
    /// Beside the memory, where launches are counted.
    pub touches: Option<Touches>,
    pub launches: u64,
}

pub struct Context {
    pub device: usize,
    pub references: u32,
    /// A fault that stays.
    pub fault: Option<Code>,
    /// Work that is submitted and not done, with its stream.
    pub queue: VecDeque<(Handle, Op)>,
    /// By stream; captured work counts as the launching stream's.
    pub last: HashMap<Handle, Last>,
    /// A host function of it is under way: nothing behind it is done.
    pub in_host_function: bool,
    /// It has had host functions, which a thread of its own does where nobody waits for them.
    pub in_background: bool,
}

pub struct Stream {
    pub context: Handle,
    pub non_blocking: bool,
    pub capture: Option<Handle>,
    /// Its part of the capture that no other stream waits for.
    pub loose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub fn from(number: u32) -> Outcome<Self> {
        match number {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(code::INVALID_VALUE),
        }
    }
}

/// A capture under way.
pub struct Capture {
    pub origin: Handle,
    pub mode: Mode,
    pub thread: ThreadId,
    pub ops: Vec<Op>,
    /// Work submitted to the streams that joined it, which runs when somebody waits for it.
    pub forks: HashMap<Handle, Vec<Op>>,
    pub invalid: bool,
}

impl Capture {
    /// A stream waits for another one: what that one did comes before what this one does next. It is done no earlier, so that whoever
    /// waits too late, or for nothing, does not find it.
    pub fn join(&mut self, from: Handle, to: Handle) {
        if from == to {
            return;
        }
        let work = self.forks.remove(&from).unwrap_or_default();
        match to == self.origin {
            true => self.ops.extend(work),
            false => self.forks.entry(to).or_default().extend(work),
        }
    }
}

pub struct Event {
    pub context: Handle,
    pub timed: bool,
    /// Records that were submitted, and done.
    pub submitted: u64,
    pub done: u64,
    pub at: Option<Instant>,
    /// The capture and the stream that it was recorded in last.
    pub capture: Option<(Handle, Handle)>,
}

pub struct Module {
    pub context: Handle,
    pub functions: HashMap<String, Handle>,
    /// Name, address, bytes.
    pub globals: Vec<(String, u64, u64)>,
}

pub struct Function {
    pub context: Handle,
    pub module: Handle,
    pub program: Arc<Program>,
    pub dynamic_limit: u32,
    pub ptx_version: u32,
}

pub struct Graph {
    pub context: Handle,
    pub ops: Arc<Vec<Op>>,
}

pub struct Driver {
    pub initialised: bool,
    /// The fault of the environment's settings: the driver does not start.
    pub fault: Option<String>,
    pub version: i32,
    pub checked: bool,
    pub limits: Limits,
    pub devices: Vec<Device>,
    pub contexts: HashMap<Handle, Context>,
    pub streams: HashMap<Handle, Stream>,
    pub captures: HashMap<Handle, Capture>,
    pub events: HashMap<Handle, Event>,
    pub modules: HashMap<Handle, Module>,
    pub functions: HashMap<Handle, Function>,
    pub graphs: HashMap<Handle, Graph>,
    pub executables: HashMap<Handle, Graph>,
    /// Pinned memory: address to bytes.
    pub pinned: BTreeMap<u64, Box<[u8]>>,
    /// A folder with texts that are taken in the place of a module's own.
    pub replace: Option<std::path::PathBuf>,
    /// Executed lines of each module's text, where somebody wants them.
    pub executed: Option<BTreeMap<String, BTreeSet<u32>>>,
    /// The record of launches, if one is wanted.
    pub profile: Option<Profile>,
    /// The result of the next call of a name, which then does nothing: for tests of callers.
    pub answers: HashMap<String, Code>,
    /// Whether the work of captured forks is done where it was submitted.
    pub early_forks: bool,
    trace: Option<std::fs::File>,
    next: Handle,
    counts: BTreeMap<&'static str, u64>,
    count_file: Option<std::path::PathBuf>,
    executed_file: Option<std::path::PathBuf>,
}

thread_local! {
    /// The thread's stack of contexts.
    pub static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    /// The calls that the thread allows itself during a capture.
    pub static INTERACTION: RefCell<Mode> = const { RefCell::new(Mode::Global) };
}

pub fn lock() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    fn new() -> Self {
        let (settings, fault) = match Settings::read(std::env::vars_os()) {
            Ok(settings) => (settings, None),
            Err(message) => (Settings::default(), Some(message)),
        };
        let profile = settings.profile.as_ref().zip(settings.models.first());
        let profile = profile.map(|(file, &model)| Profile::new(file, model));
        let device = |model| Device { model, primary: None, memory: None, touches: None, launches: 0 };
        Self {
            initialised: false,
            fault,
            version: settings.version,
            checked: settings.checked,
            limits: settings.limits,
            devices: settings.models.into_iter().map(device).collect(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            captures: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            pinned: BTreeMap::new(),
            replace: settings.replace,
            answers: HashMap::new(),
            early_forks: settings.early_forks,
            trace: settings.trace.and_then(|path| std::fs::File::options().create(true).append(true).open(path).ok()),
            next: 0x1_0000,
            counts: BTreeMap::new(),
            count_file: settings.count,
            executed: settings.executed.as_ref().map(|_| BTreeMap::new()),
            profile,
            executed_file: settings.executed,
        }
    }

    /// A handle that none had before.
    pub fn fresh(&mut self) -> Handle {
        self.next += 16;
        self.next
    }

    pub fn count(&mut self, name: &'static str) {
        if self.count_file.is_some() {
            *self.counts.entry(name).or_default() += 1;
        }
    }

    /// Writes a call down, where somebody wants to know.
    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        use std::io::Write;
        if let Some(file) = &mut self.trace {
            // A full disk is no reason to change what a program does.
            let _ = file.write_all((line() + "\n").as_bytes());
        }
    }

    pub fn write_files(&self) {
        let write = |path: &std::path::Path, text: String| {
            if let Err(error) = std::fs::write(path, text) {
                eprintln!("ptx-machine: cannot write {}: {error}; name another file", path.display());
            }
        };
        if let Some(path) = &self.count_file {
            write(path, self.counts.iter().map(|(name, count)| format!("{name} {count}\n")).collect());
        }
        if let (Some(path), Some(executed)) = (&self.executed_file, &self.executed) {
            let lines =
                executed.iter().flat_map(|(module, lines)| lines.iter().map(move |line| format!("{line} {module}\n")));
            write(path, lines.collect());
        }
        if let Some(profile) = &self.profile {
            write(&profile.file, profile.json());
        }
    }

    /// The thread's context, which has to be there and without a fault.
    pub fn current(&self) -> Outcome<Handle> {
        if !self.initialised {
            return Err(code::NOT_INITIALIZED);
        }
        let current = CURRENT.with_borrow(|stack| stack.last().copied()).filter(|&handle| handle != 0);
        let handle = current.ok_or(code::INVALID_CONTEXT)?;
        let context = self.contexts.get(&handle).ok_or(code::CONTEXT_IS_DESTROYED)?;
        match context.fault {
            Some(code) => Err(code),
            None => Ok(handle),
        }
    }

    pub fn context(&mut self, handle: Handle) -> Outcome<&mut Context> {
        self.contexts.get_mut(&handle).ok_or(code::INVALID_CONTEXT)
    }

    pub fn device_of(&mut self, context: Handle) -> Outcome<&mut Device> {
        let index = self.context(context)?.device;
        self.devices.get_mut(index).ok_or(code::INVALID_DEVICE)
    }

    pub fn memory_of(&mut self, context: Handle) -> Outcome<&mut DeviceMemory> {
        self.device_of(context)?.memory.as_mut().ok_or(code::INVALID_CONTEXT)
    }

    /// A stream of the current context; 0, 1 and 2 are the default ones.
    pub fn stream(&mut self, context: Handle, stream: Handle) -> Outcome<Option<&mut Stream>> {
        if stream <= 2 {
            return Ok(None);
        }
        match self.streams.get_mut(&stream) {
            Some(found) if found.context == context => Ok(Some(found)),
            _ => Err(code::INVALID_HANDLE),
        }
    }

    /// Refuses what may not be done while a capture is under way that forbids it, and invalidates that capture.
    pub fn safe_in_capture(&mut self) -> Outcome {
        let own = std::thread::current().id();
        let interaction = INTERACTION.with_borrow(|mode| *mode);
        let mut refused = false;
        for capture in self.captures.values_mut() {
            let forbids = match (interaction, capture.mode) {
                (Mode::Relaxed, _) | (_, Mode::Relaxed) => false,
                (Mode::Global, Mode::Global) => true,
                _ => capture.thread == own,
            };
            if forbids {
                capture.invalid = true;
                refused = true;
            }
        }
        if refused { Err(code::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Ends a capture that cannot succeed any more.
    pub fn invalidate(&mut self, capture: Handle) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.invalid = true;
        }
    }

    /// Hands work to a stream: to its capture, or to the queue.
    pub fn submit(&mut self, context: Handle, stream: Handle, op: Op) -> Outcome {
        let capture = self.stream(context, stream)?.and_then(|stream| stream.capture);
        if let Some(handle) = capture {
            let capture = self.captures.get_mut(&handle).ok_or(code::STREAM_CAPTURE_INVALIDATED)?;
            if capture.invalid {
                return Err(code::STREAM_CAPTURE_INVALIDATED);
            }
            let origin = capture.origin;
            match stream == origin || self.early_forks {
                true => capture.ops.push(op),
                false => capture.forks.entry(stream).or_default().push(op),
            }
            if let Some(stream) = self.streams.get_mut(&stream).filter(|_| stream != origin) {
                stream.loose = true;
            }
            return Ok(());
        }
        if stream <= 1 {
            self.legacy_is_free(context)?;
        }
        let found = self.context(context)?;
        if queue::is_host_function(&op) && !std::mem::replace(&mut found.in_background, true) {
            queue::do_in_background(context);
        }
        let queue = &mut self.context(context)?.queue;
        queue.push_back((stream, op));
        if queue.len() > 4096 && !queue::has_host_function(queue) {
            self.drain(context, None);
        }
        Ok(())
    }

    /// The legacy stream waits for blocking streams, which may not be captured then.
    pub fn legacy_is_free(&mut self, context: Handle) -> Outcome {
        let caught: Vec<Handle> = self
            .streams
            .values()
            .filter(|stream| stream.context == context && !stream.non_blocking)
            .filter_map(|stream| stream.capture)
            .collect();
        for &capture in &caught {
            self.invalidate(capture);
        }
        if caught.is_empty() { Ok(()) } else { Err(code::STREAM_CAPTURE_IMPLICIT) }
    }
}
