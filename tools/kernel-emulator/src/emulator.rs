//! Launches compiled kernels.

use std::collections::HashMap;
use std::ffi::CStr;
use std::path::Path;

use libloading::Library;

use kernel_abi as abi;

/// An element type of a buffer argument: plain numbers, for which every pattern of bits is a value.
pub trait Element: Copy + sealed::Plain {}

mod sealed {
    pub trait Plain {}
}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Plain for $t {} impl Element for $t {})* };
}
elements!(u8, u16, u32, u64, i32, f32);

/// A kernel argument.
#[derive(Debug)]
pub enum Argument<'a> {
    /// A tensor that the kernel reads, as bytes at its own alignment.
    Read(&'a [u8]),
    /// A tensor that the kernel writes (and may read).
    Write(&'a mut [u8]),
    /// A pointer that is null because an option is absent: of extent 0.
    Null,
    /// `i32`
    I32(i32),
    /// `u32`
    U32(u32),
    /// `u64`
    U64(u64),
    /// `f32`
    F32(f32),
}

impl<'a> Argument<'a> {
    /// A tensor that the kernel reads. bf16 is passed as `u16`.
    pub fn read<T: Element>(data: &'a [T]) -> Self {
        // SAFETY: plain numbers are bytes.
        Self::Read(unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) })
    }

    /// A tensor that the kernel writes (and may read).
    pub fn write<T: Element>(data: &'a mut [T]) -> Self {
        // SAFETY: plain numbers are bytes, and any bytes are such numbers.
        Self::Write(unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) })
    }
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block in x, y, z.
    pub threads: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
}

impl Grid {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    /// With `bytes` of dynamic shared memory.
    pub fn with_shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// In which order blocks, warps and lanes run. A correct kernel gives the same bits in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By rising index.
    #[default]
    Forward,
    /// By falling index.
    Reverse,
    /// Shuffled by this seed, anew at every barrier and warp collective.
    Random(u64),
}

/// How to run a launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The order of blocks and threads.
    pub order: Order,
    /// Whether to look for elements that no thread wrote: [`Report::unwritten`].
    pub find_unwritten: bool,
}

/// Elements of an output that no thread of a launch wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// How many.
    pub count: u64,
    /// The index of the first.
    pub first: u64,
}

/// The record of a successful launch.
#[derive(Clone, Debug)]
pub struct Report {
    /// Memory accesses checked.
    pub accesses: u64,
    /// Barriers passed, summed over blocks.
    pub barriers: u64,
    unwritten: Vec<Option<Unwritten>>,
}

impl Report {
    /// The elements of a writable argument that no thread wrote; `None` if it has none, or if
    /// [`Options::find_unwritten`] was off.
    pub fn unwritten(&self, argument: usize) -> Option<Unwritten> {
        self.unwritten.get(argument).copied().flatten()
    }
}

/// A folder of compiled kernels.
#[derive(Debug)]
pub struct Emulator {
    kernels: HashMap<String, KernelPointer>,
    launch: Option<abi::LaunchFunction>,
    // Kept until the pointers above are gone.
    _libraries: Vec<Library>,
}

#[derive(Clone, Copy, Debug)]
struct KernelPointer(*const abi::Kernel);

// SAFETY: it points to constant data of a library that stays loaded as long as the `Emulator`.
unsafe impl Send for KernelPointer {}
// SAFETY: as above.
unsafe impl Sync for KernelPointer {}

impl Emulator {
    /// Opens every module in a folder that [`crate::compile()`] made.
    ///
    /// # Errors
    /// Where the folder or a library in it cannot be read, or was made by another version of this crate.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let at = |e: &dyn std::fmt::Display| format!("{}: {e}; compile the kernels again", folder.display());
        let mut emulator = Self { kernels: HashMap::new(), launch: None, _libraries: Vec::new() };
        for entry in std::fs::read_dir(folder).map_err(|e| at(&e))? {
            let path = entry.map_err(|e| at(&e))?.path();
            let library = path.extension().is_some_and(|e| e == "so");
            if !library || path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libemulator-")) {
                continue;
            }
            // SAFETY: the folder's libraries are this crate's own, and their initialisers do nothing.
            unsafe { emulator.open(&path) }.map_err(|e| at(&e))?;
        }
        Ok(emulator)
    }

    /// # Safety
    /// `path` is a module's library.
    unsafe fn open(&mut self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        // SAFETY: promised by the caller; the interface is compared before anything else is used.
        unsafe {
            let library = Library::new(path)?;
            let module = &*library.get::<abi::ModuleFunction>(b"emulator_module")?();
            if module.abi != abi::VERSION {
                return Err(format!("interface version {}, expected {}", module.abi, abi::VERSION).into());
            }
            self.launch = Some(*library.get::<abi::LaunchFunction>(b"emulator_launch")?);
            for index in 0..module.kernel_count as usize {
                let kernel = module.kernels.add(index);
                let name = CStr::from_ptr((*kernel).name).to_string_lossy().into_owned();
                if self.kernels.insert(name.clone(), KernelPointer(kernel)).is_some() {
                    return Err(format!("two kernels are called {name}").into());
                }
            }
            self._libraries.push(library);
        }
        Ok(())
    }

    /// The kernels' names, sorted.
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Runs a kernel to its end on the calling thread.
    ///
    /// # Errors
    /// One line that names the kernel, the block, the thread, the argument and element, what went wrong and, if `addr2line`
    /// is installed, the source line. The buffers are unchanged then.
    pub fn launch<'a>(
        &self,
        kernel: &str,
        grid: Grid,
        arguments: impl IntoIterator<Item = Argument<'a>>,
        options: &Options,
    ) -> Result<Report, String> {
        let (Some(&KernelPointer(pointer)), Some(launch)) = (self.kernels.get(kernel), self.launch) else {
            return Err(format!("{kernel}: no such kernel; there are {}", self.kernels().join(", ")));
        };
        let buffer = |writable, address: *const u8, bytes: usize| abi::Argument {
            kind: abi::BUFFER,
            writable,
            value: if bytes == 0 { 0 } else { address as u64 },
            bytes: bytes as u64,
            ..Default::default()
        };
        let scalar = |kind, value| abi::Argument { kind, value, ..Default::default() };
        let mut raw: Vec<abi::Argument> = arguments
            .into_iter()
            .map(|argument| match argument {
                Argument::Read(data) => buffer(0, data.as_ptr(), data.len()),
                Argument::Write(data) => buffer(1, data.as_mut_ptr(), data.len()),
                Argument::Null => buffer(1, std::ptr::null(), 0),
                Argument::I32(v) => scalar(abi::I32, u64::from(v as u32)),
                Argument::U32(v) => scalar(abi::U32, u64::from(v)),
                Argument::U64(v) => scalar(abi::U64, v),
                Argument::F32(v) => scalar(abi::F32, u64::from(v.to_bits())),
            })
            .collect();
        let (order, seed) = match options.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let config = abi::Config {
            grid: grid.blocks,
            block: grid.threads,
            shared_bytes: grid.shared_bytes,
            order,
            seed,
            find_unwritten: u32::from(options.find_unwritten),
            reserved: 0,
        };
        let mut report = abi::Report { accesses: 0, barriers: 0, message: [0; 2040] };
        // SAFETY: the buffers are borrowed as the flags say for the length of the call, and the library copies what it
        // writes back into those lent for writing only.
        let failed = unsafe { launch(pointer, &config, raw.as_mut_ptr(), raw.len() as u32, &mut report) } != 0;
        if failed {
            let end = report.message.iter().position(|&b| b == 0).unwrap_or(report.message.len());
            return Err(format!("{kernel}: {}", String::from_utf8_lossy(&report.message[..end])));
        }
        let unwritten =
            |a: &abi::Argument| (a.unwritten > 0).then_some(Unwritten { count: a.unwritten, first: a.first_unwritten });
        Ok(Report {
            accesses: report.accesses,
            barriers: report.barriers,
            unwritten: raw.iter().map(unwritten).collect(),
        })
    }
}
