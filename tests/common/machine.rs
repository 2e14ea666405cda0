//! The machine that executes PTX in the place of a GPU: a test that asks for it runs in a child that loads it as its driver.

use std::path::Path;
use std::process::Command;

/// The folder with the machine's `libcuda.so.1`.
const FOLDER: &str = "ENGINE_PTX_MACHINE";

/// Set in the child.
const CHILD: &str = "ENGINE_ON_PTX_MACHINE";

/// A file that receives, in the child, how often each call of the driver was made, whenever a device is given back.
pub const COUNTS: &str = "PTX_MACHINE_COUNT";

/// Whether `test` was run on the machine just now, in a child with these variables besides; false where none is asked for, and in the
/// child itself.
pub fn ran(test: &str, environment: &[(&str, &str)]) -> bool {
    let Some(folder) = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()) else { return false };
    if is_here() {
        return false;
    }
    let named = Path::new(&folder).display();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder);
    assert!(
        folder.join("libcuda.so.1").exists(),
        "{FOLDER}: no libcuda.so.1 in {}; run `cargo run --release -p ptx-machine -- {named}`",
        folder.display()
    );
    let counts = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("ENGINE_REQUIRE_GPU", "1")
        .env(CHILD, "1")
        .env(COUNTS, counts.path())
        .envs(environment.iter().copied())
        .status()
        .unwrap();
    assert!(status.success(), "{test} fails on the machine");
    true
}

/// Whether this is a child on the machine.
pub fn is_here() -> bool {
    std::env::var_os(CHILD).is_some()
}
