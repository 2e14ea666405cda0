//! Every kernel through nvcc and ptxas for the architectures that people have.

use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_signatures::PREBUILT_FLAGS;

use crate::Result;
use crate::usage::{Usage, usages};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

/// Compiles each kernel for each architecture and prints registers, spills and shared memory; fails where nvcc does, or
/// warns.
pub fn compile_all(nvcc: &Path, kernels: &Path, files: &[PathBuf]) -> Result<()> {
    println!("{:<44} {:<8} {:>9} {:>12} {:>12}", "kernel", "arch", "registers", "spill bytes", "shared bytes");
    let mut failed = Vec::new();
    for file in files {
        for arch in ARCHITECTURES {
            let output = Command::new(nvcc)
                .arg("-cubin")
                .args(PREBUILT_FLAGS)
                .arg(format!("-arch={arch}"))
                .args(["-Xptxas", "-v", "-Werror", "all-warnings", "-I"])
                .arg(kernels)
                .args(["-o", if cfg!(windows) { "NUL" } else { "/dev/null" }])
                .arg(file)
                .output()
                .map_err(|error| format!("{}: cannot run: {error}", nvcc.display()))?;
            let text = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                failed.push(format!("{} for {arch}:\n{}", file.display(), text.trim_end()));
                continue;
            }
            for usage in usages(&text) {
                let Usage { kernel, registers, spills, shared, .. } = usage;
                println!("{kernel:<44} {arch:<8} {registers:>9} {spills:>12} {shared:>12}");
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}
