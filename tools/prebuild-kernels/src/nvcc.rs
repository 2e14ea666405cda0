//! Every kernel through nvcc and ptxas for the architectures that people have.

use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_signatures::PREBUILT_FLAGS;

use crate::Result;

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
                let Usage { kernel, registers, spills, shared } = usage;
                println!("{kernel:<44} {arch:<8} {registers:>9} {spills:>12} {shared:>12}");
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    kernel: String,
    registers: u32,
    /// Bytes of spill stores and loads together.
    spills: u32,
    /// Static shared memory.
    shared: u32,
}

/// What `ptxas -v` says of each entry.
fn usages(text: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            all.push(Usage { kernel: rest.split('\'').next().unwrap_or_default().into(), ..Usage::default() });
        } else if let Some(usage) = all.last_mut() {
            // In front of each unit stands its number: `Used 32 registers, 64 bytes smem, …`.
            let before = |unit: &str| -> u32 {
                let number = line.split_once(unit).and_then(|(head, _)| head.split_whitespace().next_back());
                number.and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            usage.registers += before(" registers");
            usage.spills += before(" bytes spill stores") + before(" bytes spill loads");
            usage.shared += before(" bytes smem");
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ptxas() {
        let text = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a_fwd' for 'sm_80'\n\
            ptxas info    : Function properties for a_fwd\n    \
                0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem, 412 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
            ptxas info    : Used 12 registers, 380 bytes cmem[0]\n";
        let usage =
            |kernel: &str, registers, spills, shared| Usage { kernel: kernel.into(), registers, spills, shared };
        assert_eq!(usages(text), [usage("a_fwd", 40, 20, 512), usage("b", 12, 0, 0)]);
    }
}
