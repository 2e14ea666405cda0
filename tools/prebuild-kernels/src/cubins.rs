//! `kernels/cubins/*.cubin`: machine code for the architectures that people have, for releases and `gpu-pack`.

use std::path::{Path, PathBuf};

use kernel_signatures::{CUBIN_FLAGS, Cubin, GRID_WAIT_CAPABILITY, GRID_WAITS_FLAG};
use prebuild_kernels::Nvrtc;

use crate::Result;

/// Compiles what is missing with the compilers below `folders`, and removes what belongs to older source.
pub fn write(folders: &[PathBuf], kernels: &Path, files: &[PathBuf]) -> Result<()> {
    let mut wanted = Vec::new();
    for file in files {
        wanted.extend(Cubin::all_of(file)?);
    }
    let target = kernels.join("cubins");
    std::fs::create_dir_all(&target)?;
    let mut compilers: Vec<&str> = wanted.iter().map(|cubin| cubin.compiler).collect();
    compilers.sort_unstable();
    compilers.dedup();
    let mut bytes = 0;
    for compiler in compilers {
        // Only where something is missing is its compiler needed.
        let mut nvrtc = None;
        for cubin in wanted.iter().filter(|cubin| cubin.compiler == compiler) {
            let path = cubin.path(kernels)?;
            if !path.exists() {
                if nvrtc.is_none() {
                    nvrtc = Some(Nvrtc::find_version(folders, compiler)?);
                }
                let Some(nvrtc) = &nvrtc else { continue };
                let source = kernels.join(format!("{}.cu", cubin.module));
                let waits = (cubin.capability >= GRID_WAIT_CAPABILITY).then_some(GRID_WAITS_FLAG);
                let flags: Vec<&str> = CUBIN_FLAGS.iter().copied().chain(waits).collect();
                let beside = path.with_extension("new");
                std::fs::write(&beside, nvrtc.cubin(&source, kernels, &flags, &cubin.arch)?)?;
                std::fs::rename(&beside, &path)?;
                println!("{} by {compiler}", path.display());
            }
            bytes += std::fs::metadata(&path)?.len();
        }
    }
    let wanted = wanted.iter().map(|cubin| cubin.path(kernels)).collect::<std::result::Result<Vec<_>, _>>()?;
    for entry in std::fs::read_dir(&target)? {
        let path = entry?.path();
        if !wanted.contains(&path) {
            std::fs::remove_file(&path)?;
            println!("removed {}: not of this source", path.display());
        }
    }
    println!("{} cubins of {bytes} bytes in {}; build the engine again to embed them", wanted.len(), target.display());
    Ok(())
}
