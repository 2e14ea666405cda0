//! The emulator for tests: compiled once per source, shared by all test binaries.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use engine::device::emulator::EmulatorDevice;

/// The compiled kernels' folder.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<std::path::PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        kernel_emulator::compile_cached(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_or_else(|fault| panic!("{fault}"))
    })
}

/// A device of its own.
pub fn device() -> Arc<EmulatorDevice> {
    Arc::new(EmulatorDevice::load(library()).unwrap_or_else(|fault| panic!("{fault}")))
}
