//! The PTX machine in place of a GPU: a test that requests it runs in a child process that loads it as its driver.

use std::path::Path;
use std::process::Command;

/// The folder with the PTX machine's `libcuda.so.1`.
const FOLDER: &str = "ENGINE_PTX_MACHINE";

/// Set in the child.
const CHILD: &str = "ENGINE_ON_PTX_MACHINE";

/// A file in which the child process records the number of driver calls, whenever a device is closed.
pub const COUNTS: &str = "PTX_MACHINE_COUNT";

/// Whether `test` has just run on the PTX machine, in a child process with these variables; false if it is not requested, and in
/// the child process itself.
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

/// Whether this is a child process on the PTX machine.
pub fn is_here() -> bool {
    std::env::var_os(CHILD).is_some()
}
