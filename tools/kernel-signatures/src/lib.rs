//! Reads the entry points of `kernels/*.cu` and writes a typed Rust launch for each.
//!
//! The kernel sources keep to a small dialect so that one text goes through nvcc, NVRTC and a host compiler. This crate
//! is its grammar: [`parse()`] refuses everything that the dialect lacks, with the file and line. [`generate()`] turns the
//! signatures into launch structs, and [`closure_hash`] says whether prebuilt PTX still belongs to its source.

#![warn(missing_docs)]

mod cubin;
mod expand;
mod generate;
mod grid_wait;
mod parse;
mod prebuilt;
mod source;

use std::fmt;

pub use cubin::{CUBIN_FLAGS, CUBINS, Cubin};
pub use generate::generate;
pub use grid_wait::{GRID_WAIT_CAPABILITY, GRID_WAITS_FLAG, ptx_with_grid_waits};
pub use parse::parse;
pub use prebuilt::{PREBUILT_ARCH, PREBUILT_COMPILER, PREBUILT_FLAGS, Prebuilt, hopper_requested, with_project_paths};
pub use source::{closure_hash, kernel_files, strip_comments};

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A fault and its place: prints as `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The source file, as it was named to the parser.
    pub file: String,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// The fault, and the expected form.
    pub message: String,
}

impl Error {
    pub(crate) fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { file: file.to_string(), line, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for Error {}

/// The target type of a pointer argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `f32`
    F32,
    /// `bf16`
    Bf16,
    /// `u8`
    U8,
    /// `u16`
    U16,
    /// `i32`
    I32,
    /// `u32`
    U32,
}

impl Element {
    /// The name in kernel sources.
    pub fn kernel_name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::I32 => "i32",
            Self::U32 => "u32",
        }
    }

    fn from_kernel_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::U8, Self::U16, Self::I32, Self::U32].into_iter().find(|e| e.kernel_name() == name)
    }

    fn rust_name(self) -> &'static str {
        match self {
            Self::Bf16 => "half::bf16",
            other => other.kernel_name(),
        }
    }
}

/// A scalar argument's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `i32`
    I32,
    /// `u32`
    U32,
    /// `u64`
    U64,
    /// `f32`
    F32,
}

impl Scalar {
    /// The name in kernel sources and in Rust.
    pub fn name(self) -> &'static str {
        match self {
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F32 => "f32",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::I32, Self::U32, Self::U64, Self::F32].into_iter().find(|s| s.name() == name)
    }
}

/// The type of one kernel argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentKind {
    /// `In<T>` (`const T* __restrict__`) or `Out<T>` (`T* __restrict__`).
    Pointer {
        /// Whether the kernel may write through it (it is not a pointer to `const`).
        writable: bool,
        /// The target type.
        element: Element,
    },
    /// Passed by value.
    Scalar(Scalar),
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name in the source, and of the launch's field.
    pub name: String,
    /// Its type.
    pub kind: ArgumentKind,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The entry's name.
    pub name: String,
    /// The source file's stem.
    pub module: String,
    /// The line of the macro's call that writes the entry, from 1.
    pub line: usize,
    /// From `__launch_bounds__`.
    pub max_threads: u32,
    /// In order.
    pub arguments: Vec<Argument>,
}
