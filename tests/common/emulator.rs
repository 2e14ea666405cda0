//! The emulator for tests: compiled once per source, shared by all test binaries.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use engine_core::device::emulator::EmulatorDevice;

/// The compiled kernels' folder.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<std::path::PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // The tests of the ops belong to the crate in `src/core`, the others to the whole project.
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.ancestors().find(|folder| folder.join("kernels").is_dir()).unwrap_or(package);
        kernel_emulator::compile_cached(root).unwrap_or_else(|fault| panic!("{fault}"))
    })
}

/// A device of its own.
pub fn device() -> Arc<EmulatorDevice> {
    Arc::new(EmulatorDevice::load(library()).unwrap_or_else(|fault| panic!("{fault}")))
}
