//! Compiles `kernels/*.cu` for the host and checks them thread by thread.
//!
//! [`compile()`] turns a folder of kernel sources into a folder of shared libraries with the host's C++ compiler; it needs
//! neither CUDA nor a GPU. [`Emulator`] launches the kernels in them. A block's threads are fibers that meet at barriers
//! and warp collectives, and the kernels are compiled with `-fsanitize=thread,undefined` against the emulator's own
//! callbacks, so that *every* access to memory is checked:
//!
//! - against the exact extent and constness of the tensor argument or shared array that it means to touch;
//! - for order: `__syncthreads` orders a block, `__syncwarp` the lanes it names, nothing else does (shuffles, `ldmatrix`
//!   and `mma` meet without ordering memory); blocks are ordered only through `__threadfence` and an integer atomic;
//! - for shared memory that no thread of the block has written, and for asynchronous copies that have not landed;
//! - for undefined behaviour: integer overflow, bad shifts, indices outside local arrays, misaligned vector accesses.
//!
//! Barriers that not all threads reach are reported, and so are elements that a kernel never wrote, if asked for
//! ([`Options::find_unwritten`]). Threads and blocks run forward, in reverse and in seeded random order.
//!
//! ```
//! use kernel_emulator::{Argument, Emulator, Grid, Options};
//! # let folder = std::env::temp_dir().join(format!("kernel-emulator-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! # let kernels = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
//! let source = folder.join("scale.cu");
//! std::fs::write(
//!     &source,
//!     r#"
//!     #include "common/entry.cuh"
//!     KERNEL(scale_fwd, (32), (Out<f32> y), (y)) { y[threadIdx.x] *= 2; }
//!     "#,
//! )?;
//! let emulator = Emulator::load(&kernel_emulator::compile_sources(&[source], &kernels, &folder.join("out"))?)?;
//! let mut y = [1.0f32, 2.0, 3.0];
//! emulator.launch("scale_fwd", Grid::linear(1, 3), [Argument::write(&mut y)], &Options::default())?;
//! assert_eq!(y, [2.0, 4.0, 6.0]);
//! let error = emulator.launch("scale_fwd", Grid::linear(1, 4), [Argument::write(&mut y)], &Options::default()).unwrap_err();
//! assert!(error.contains("thread (3,0,0)") && error.contains("y[3]"), "{error}");
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(missing_docs)]

mod compile;
mod emulator;

pub use compile::{advice, compile, compile_cached, compile_sources};
pub use emulator::{Argument, Element, Emulator, Grid, Options, Order, Report, Unwritten};
