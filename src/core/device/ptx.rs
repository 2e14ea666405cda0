//! The PTX that `build.rs` embedded: compiled where the engine was built if nvcc was there, and the committed one.

use std::io::Read;

use crate::error::{Error, Result};

/// Where an embedded PTX comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Compiled by this nvcc when the engine was built.
    #[allow(dead_code, reason = "constructed only where nvcc was found")]
    Nvcc { version: &'static str },
    /// From `kernels/prebuilt/`; stale where its source has changed since.
    Prebuilt { stale: bool },
}

/// One module's PTX for one virtual architecture.
#[derive(Debug)]
pub(crate) struct EmbeddedPtx {
    /// The kernel file's stem.
    pub module: &'static str,
    /// `compute_80` or `compute_90a`.
    pub arch: &'static str,
    pub origin: Origin,
    /// Bytes of the text.
    pub length: usize,
    /// zlib.
    pub compressed: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/embedded_ptx.rs"));

impl EmbeddedPtx {
    /// The text, with the zero byte that the driver expects at its end.
    pub(crate) fn text(&self) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(self.length + 1);
        let read = flate2::read::ZlibDecoder::new(self.compressed).take(self.length as u64).read_to_end(&mut text);
        if read.is_err() || text.len() != self.length {
            return Err(Error::Kernel {
                kernel: self.module.into(),
                message: "the embedded PTX is damaged; build the engine again".into(),
            });
        }
        text.push(0);
        Ok(text)
    }

    fn runs_on(&self, capability: (u32, u32)) -> bool {
        // An architecture's own instructions (the `a`) are in no other one, later ones included.
        if self.arch == "compute_90a" { capability == (9, 0) } else { capability >= (8, 0) }
    }
}

/// A module's PTX for a device, in the order to try: Hopper's own before the common one, nvcc's before the prebuilt.
pub(crate) fn candidates(module: &str, capability: (u32, u32)) -> Vec<&'static EmbeddedPtx> {
    let mut found: Vec<_> = EMBEDDED.iter().filter(|e| e.module == module && e.runs_on(capability)).collect();
    found.sort_by_key(|e| (e.arch != "compute_90a", matches!(e.origin, Origin::Prebuilt { .. })));
    found
}

/// A kernel module as this binary carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedModule {
    /// The kernel file's stem.
    pub module: &'static str,
    /// `compute_80` or `compute_90a`.
    pub arch: &'static str,
    /// The nvcc that compiled it when the engine was built; None for the committed PTX.
    pub nvcc: Option<&'static str>,
    /// Committed PTX whose source has changed since: it cannot be loaded.
    pub stale: bool,
}

/// The PTX of every kernel module in this binary.
pub fn embedded_modules() -> Vec<EmbeddedModule> {
    EMBEDDED
        .iter()
        .map(|ptx| {
            let (nvcc, stale) = match ptx.origin {
                Origin::Nvcc { version } => (Some(version), false),
                Origin::Prebuilt { stale } => (None, stale),
            };
            EmbeddedModule { module: ptx.module, arch: ptx.arch, nvcc, stale }
        })
        .collect()
}

/// The PTX that a device of this compute capability is given for a module; None where there is no such module.
///
/// # Errors
/// [`Error::Kernel`] where it is damaged.
pub fn module_text(module: &str, capability: (u32, u32)) -> Result<Option<String>> {
    let Some(found) = candidates(module, capability).into_iter().next() else { return Ok(None) };
    let mut text = found.text()?;
    // Without the driver's zero byte.
    text.pop();
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_ptx_is_readable_and_has_the_entries() {
        for ptx in EMBEDDED {
            let text = ptx.text().unwrap();
            assert_eq!(text.last(), Some(&0));
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(".target sm_"), "{}", ptx.module);
            if ptx.origin == (Origin::Prebuilt { stale: true }) {
                continue;
            }
            for kernel in super::super::launches::ALL.iter().filter(|kernel| kernel.module == ptx.module) {
                assert!(text.contains(&format!(".entry {}(", kernel.name)), "{}", kernel.name);
            }
        }
    }

    #[test]
    fn older_devices_get_nothing() {
        for kernel in super::super::launches::ALL {
            assert!(candidates(kernel.module, (7, 5)).is_empty());
        }
    }
}
