//! The PTX embedded by `build.rs`: compiled at build time if nvcc was there, and the committed one; and machine code, if
//! `kernels/cubins/` has some.

use std::io::Read;

use kernel_signatures::{GRID_WAIT_CAPABILITY, ptx_with_grid_waits};

use crate::error::{Error, Result};

/// The origin of an embedded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Compiled by this nvcc at build time.
    #[allow(dead_code, reason = "constructed only where nvcc was found")]
    Nvcc { version: &'static str },
    /// Machine code from `kernels/cubins/`, for devices of this major and at least this minor capability.
    #[allow(dead_code, reason = "constructed only where there were cubins")]
    Cubin { capability: (u32, u32) },
    /// From `kernels/prebuilt/`; stale if its source has changed since.
    Prebuilt { stale: bool },
}

/// One module's PTX for one virtual architecture, or its machine code for one architecture.
#[derive(Debug)]
pub(crate) struct EmbeddedPtx {
    /// The kernel file's stem.
    pub module: &'static str,
    /// `compute_80` or `compute_90a`; for machine code `sm_80` and so on.
    pub arch: &'static str,
    pub origin: Origin,
    /// Bytes of the text or of the machine code.
    pub length: usize,
    /// Compressed with zlib.
    pub compressed: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/embedded_ptx.rs"));

impl EmbeddedPtx {
    /// The text as it is embedded, with a final zero byte; or the machine code, for which the byte does not matter.
    fn stored(&self) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(self.length + 1);
        let read = flate2::read::ZlibDecoder::new(self.compressed).take(self.length as u64).read_to_end(&mut text);
        if read.is_err() || text.len() != self.length {
            return Err(Error::Kernel {
                kernel: self.module.into(),
                message: "what is embedded of it is damaged; build the engine again".into(),
            });
        }
        text.push(0);
        Ok(text)
    }

    /// The text for a device of this compute capability, with the final zero byte that the driver expects; or the machine code.
    /// From 9.0 on each kernel waits for the grids before it: launches may be programmatic ([`kernel_signatures::ptx_with_grid_waits`]).
    pub(crate) fn text(&self, capability: (u32, u32)) -> Result<Vec<u8>> {
        let text = self.stored()?;
        // Machine code for these devices has the waits already.
        if capability < GRID_WAIT_CAPABILITY || matches!(self.origin, Origin::Cubin { .. }) {
            return Ok(text);
        }
        let with_waits = str::from_utf8(&text).ok().and_then(ptx_with_grid_waits);
        let message = "its PTX is not as a compiler writes it: an entry without a body; build the engine again";
        with_waits
            .map(String::into_bytes)
            .ok_or_else(|| Error::Kernel { kernel: self.module.into(), message: message.into() })
    }

    fn runs_on(&self, capability: (u32, u32)) -> bool {
        if let Origin::Cubin { capability: (major, minor) } = self.origin {
            let exact = self.arch.ends_with('a');
            return capability.0 == major && if exact { capability.1 == minor } else { capability.1 >= minor };
        }
        // Architecture-specific instructions (the `a`) exist in no other architecture, not even later ones.
        if self.arch == "compute_90a" { capability == (9, 0) } else { capability >= (8, 0) }
    }
}

/// The candidates of a module for a device, in order: machine code before PTX, which the driver must compile; then Hopper's own
/// before the common one, nvcc's before the prebuilt.
pub(crate) fn candidates(module: &str, capability: (u32, u32)) -> Vec<&'static EmbeddedPtx> {
    let mut found: Vec<_> = EMBEDDED.iter().filter(|e| e.module == module && e.runs_on(capability)).collect();
    found.sort_by_key(|e| {
        let cubin = matches!(e.origin, Origin::Cubin { .. });
        (!cubin, e.arch != "compute_90a", matches!(e.origin, Origin::Prebuilt { .. }))
    });
    found
}

/// A kernel module in this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedModule {
    /// The kernel file's stem.
    pub module: &'static str,
    /// `compute_80` or `compute_90a`; for machine code `sm_80` and so on.
    pub arch: &'static str,
    /// Machine code, which the driver need not compile.
    pub cubin: bool,
    /// The nvcc that compiled it at build time; None for the committed PTX and for machine code.
    pub nvcc: Option<&'static str>,
    /// Committed PTX whose source has changed since: it cannot be loaded.
    pub stale: bool,
}

/// The PTX and the machine code of every kernel module in this binary.
pub fn embedded_modules() -> Vec<EmbeddedModule> {
    EMBEDDED
        .iter()
        .map(|ptx| {
            let (nvcc, stale) = match ptx.origin {
                Origin::Nvcc { version } => (Some(version), false),
                Origin::Cubin { .. } => (None, false),
                Origin::Prebuilt { stale } => (None, stale),
            };
            let cubin = matches!(ptx.origin, Origin::Cubin { .. });
            EmbeddedModule { module: ptx.module, arch: ptx.arch, cubin, nvcc, stale }
        })
        .collect()
}

/// The PTX of a module for a device of this compute capability; None if there is no such module.
///
/// # Errors
/// [`Error::Kernel`] if it is damaged.
pub fn module_text(module: &str, capability: (u32, u32)) -> Result<Option<String>> {
    let is_text = |candidate: &&EmbeddedPtx| !matches!(candidate.origin, Origin::Cubin { .. });
    let Some(found) = candidates(module, capability).into_iter().find(is_text) else { return Ok(None) };
    let mut text = found.text(capability)?;
    // Without the final zero byte.
    text.pop();
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_ptx_is_readable_and_has_the_entries() {
        for ptx in EMBEDDED {
            let text = ptx.stored().unwrap();
            assert_eq!(text.last(), Some(&0));
            if matches!(ptx.origin, Origin::Cubin { .. }) {
                assert!(text.starts_with(b"\x7fELF"), "{} {}", ptx.module, ptx.arch);
                continue;
            }
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(".target sm_"), "{}", ptx.module);
            if ptx.origin == (Origin::Prebuilt { stale: true }) {
                continue;
            }
            let kernels = super::super::launches::ALL.iter().filter(|kernel| kernel.module == ptx.module);
            for kernel in kernels.clone() {
                assert!(text.contains(&format!(".entry {}(", kernel.name)), "{}", kernel.name);
            }
            let waiting = String::from_utf8(ptx.text((9, 0)).unwrap()).unwrap();
            assert_eq!(waiting.matches("griddepcontrol.wait").count(), kernels.count(), "{}", ptx.module);
            assert_eq!(ptx.text((8, 9)).unwrap(), text.as_bytes(), "{}", ptx.module);
        }
    }

    #[test]
    fn machine_code_is_for_its_major_capability() {
        let runs = |arch, capability, device| {
            let origin = Origin::Cubin { capability };
            EmbeddedPtx { module: "m", arch, origin, length: 0, compressed: &[] }.runs_on(device)
        };
        assert!(runs("sm_80", (8, 0), (8, 9)) && runs("sm_90", (9, 0), (9, 0)) && runs("sm_100", (10, 0), (10, 3)));
        assert!(!runs("sm_80", (8, 0), (9, 0)) && !runs("sm_100", (10, 0), (12, 0)) && !runs("sm_90a", (9, 0), (9, 1)));
    }

    #[test]
    fn older_devices_get_nothing() {
        for kernel in super::super::launches::ALL {
            assert!(candidates(kernel.module, (7, 5)).is_empty());
        }
    }
}
