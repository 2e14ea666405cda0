//! Machine code in `kernels/cubins/`, which is not committed: what a driver need not compile at a first start.

use std::path::{Path, PathBuf};

use crate::{GRID_WAIT_CAPABILITY, GRID_WAITS_FLAG, Result, closure_hash, hopper_requested};

/// The architectures and the compiler of each. A cubin runs on devices of its major capability from its minor on (`sm_80` on 8.6 and 8.9
/// too), and with drivers from its compiler's CUDA version on: hence NVRTC 12.4 as for the PTX, and 12.8 for what 12.4 does not know.
pub const CUBINS: [(&str, (u32, u32), &str); 4] = [
    ("sm_80", (8, 0), "NVRTC 12.4"),
    ("sm_90", (9, 0), "NVRTC 12.4"),
    ("sm_100", (10, 0), "NVRTC 12.8"),
    ("sm_120", (12, 0), "NVRTC 12.8"),
];

/// The flags of every cubin, beside the architecture. No line tables: they are most of a file.
pub const CUBIN_FLAGS: &[&str] = &["--std=c++17"];

/// One module's machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The kernel file's stem.
    pub module: String,
    /// `sm_80`; `sm_90a` where the source asks for Hopper's own instructions.
    pub arch: String,
    /// The first capability that runs it, major and minor.
    pub capability: (u32, u32),
    /// Its compiler.
    pub compiler: &'static str,
}

impl Cubin {
    /// The cubins of a kernel file.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn all_of(kernel: &Path) -> Result<Vec<Self>> {
        let source = std::fs::read_to_string(kernel)
            .map_err(|e| crate::Error::new(&kernel.display().to_string(), 0, format!("cannot be read: {e}")))?;
        let module = kernel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let hopper = hopper_requested(&source);
        let cubin = |&(arch, capability, compiler): &(&str, (u32, u32), &'static str)| {
            let own = if hopper && arch == "sm_90" { "a" } else { "" };
            Self { module: module.clone(), arch: format!("{arch}{own}"), capability, compiler }
        };
        Ok(CUBINS.iter().map(cubin).collect())
    }

    /// Its path, with a hash of everything that it is made from: one of older source is not found.
    ///
    /// # Errors
    /// Where a source cannot be read.
    pub fn path(&self, kernels: &Path) -> Result<PathBuf> {
        let arch = format!("--gpu-architecture={}", self.arch);
        let waits = (self.capability >= GRID_WAIT_CAPABILITY).then_some(GRID_WAITS_FLAG);
        let flags: Vec<&str> = CUBIN_FLAGS.iter().copied().chain([arch.as_str()]).chain(waits).collect();
        let hash = closure_hash(kernels, &kernels.join(format!("{}.cu", self.module)), &flags, self.compiler)?;
        Ok(kernels.join("cubins").join(format!("{}.{}.{hash}.cubin", self.module, self.arch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cubin_is_found_for_its_source_alone() {
        let kernels = std::env::temp_dir().join(format!("engine-cubins-{}", std::process::id()));
        std::fs::create_dir_all(&kernels).unwrap();
        let source = kernels.join("add.cu");
        std::fs::write(&source, "// arch: sm_90a\nint a;\n").unwrap();
        let all = Cubin::all_of(&source).unwrap();
        assert_eq!(all.iter().map(|c| c.arch.as_str()).collect::<Vec<_>>(), ["sm_80", "sm_90a", "sm_100", "sm_120"]);
        let paths = |all: &[Cubin]| all.iter().map(|cubin| cubin.path(&kernels).unwrap()).collect::<Vec<_>>();
        let before = paths(&all);
        assert!(before[0].file_name().unwrap().to_string_lossy().starts_with("add.sm_80."));
        std::fs::write(&source, "// arch: sm_90a\nint b;\n").unwrap();
        assert!(paths(&all).iter().zip(&before).all(|(now, before)| now != before));
        std::fs::remove_dir_all(&kernels).unwrap();
    }
}
