//! Measured times that correct the model: the JSON from `engine profile --on here` on a GPU.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::gpu::Gpu;
use crate::error::{Error, Result};

/// The ratio of measured to modelled time of each kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The measured GPU as text.
    pub device: String,
    kernels: BTreeMap<String, f64>,
    /// The median ratio, for kernels that were not measured.
    median: f64,
}

#[derive(Debug, Deserialize)]
struct Document {
    on: String,
    device: String,
    kernels: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    kernel: String,
    modelled_ms: f64,
    /// The modelled time includes the gaps between launches, which events around a launch do not.
    #[serde(default)]
    gaps_ms: f64,
    measured_ms: Option<f64>,
}

impl Calibration {
    /// Reads measured times, which must be of the modelled GPU.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for another file, one without measured times, and one of another GPU.
    pub fn read(path: &Path, gpu: &Gpu) -> Result<Self> {
        const ADVICE: &str = "write it on a GPU: `profile(on = here, json = FILE)`";
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let document: Document = serde_json::from_slice(&text)
            .map_err(|error| Error::file(path, format!("no measured times: {error}"), ADVICE))?;
        if document.on != gpu.key {
            let message = format!("it was measured on {}, and {} is modelled", document.on, gpu.key);
            return Err(Error::file(path, message, format!("give `on = {}`", document.on)));
        }
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for row in document.kernels {
            let alone = row.modelled_ms - row.gaps_ms;
            if let Some(measured) = row.measured_ms.filter(|measured| *measured > 0.0 && alone > 0.0) {
                let (all, model) = sums.entry(row.kernel).or_default();
                *all += measured;
                *model += alone;
            }
        }
        let kernels: BTreeMap<String, f64> =
            sums.into_iter().map(|(kernel, (measured, modelled))| (kernel, measured / modelled)).collect();
        let mut factors: Vec<f64> = kernels.values().copied().collect();
        factors.sort_by(f64::total_cmp);
        match factors.get(factors.len() / 2) {
            Some(&median) => Ok(Self { device: document.device, kernels, median }),
            None => Err(Error::file(path, "no kernel in it was measured", ADVICE)),
        }
    }

    /// The factor for a kernel's modelled time without the gap before it.
    pub fn factor(&self, kernel: &str) -> f64 {
        self.kernels.get(kernel).copied().unwrap_or(self.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, on: &str) -> Result<Calibration> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Calibration::read(file.path(), &Gpu::named(on).unwrap())
    }

    #[test]
    fn kernels_have_their_factor_and_others_the_median() {
        let text = r#"{"on": "h100", "device": "NVIDIA H100 (cuda:0)", "kernels": [
            {"kernel": "a", "modelled_ms": 1.0, "measured_ms": 2.0}, {"kernel": "a", "modelled_ms": 1.0, "measured_ms": 4.0},
            {"kernel": "b", "modelled_ms": 3.0, "gaps_ms": 1.0, "measured_ms": 3.0}, {"kernel": "c", "modelled_ms": 2.0, "measured_ms": 2.0},
            {"kernel": "d", "modelled_ms": 2.0, "measured_ms": null}]}"#;
        let calibration = read(text, "h100").unwrap();
        assert_eq!(["a", "b", "c", "d"].map(|kernel| calibration.factor(kernel)), [3.0, 1.5, 1.0, 1.5]);
        assert!(read(text, "a100").unwrap_err().to_string().contains("give `on = h100`"));
        let none = text.replace("_ms\": 2.0}", "_ms\": null}").replace("_ms\": 4.0}", "_ms\": null}");
        let none = none.replace("_ms\": 3.0}", "_ms\": null}");
        assert!(read(&none, "h100").unwrap_err().to_string().contains("no kernel in it was measured"));
        assert!(read("[]", "h100").unwrap_err().to_string().contains("`profile(on = here"));
    }
}
