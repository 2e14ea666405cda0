//! Counted data: the PTX machine's file, and the work that the engine submitted.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use crate::error::{Error, Result};

/// The version of the PTX machine's file.
const FORMAT: u32 = 1;

/// The file of `tools/ptx-machine`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineFile {
    /// Version of the format.
    pub format: u32,
    /// The emulated device: `h100`.
    pub device: String,
    /// Its compute capability.
    pub capability: [u32; 2],
    /// The kernels that were launched.
    pub kernels: Vec<KernelLines>,
    /// The launches, in order.
    pub launches: Vec<Launch>,
}

/// A kernel with its counters by line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelLines {
    /// The stem of its source.
    pub module: String,
    /// Its entry.
    pub name: String,
    /// Registers per thread, as estimated by the PTX machine.
    #[serde(default)]
    pub registers: u32,
    /// Bytes of shared memory declared by the kernel.
    #[serde(default)]
    pub static_shared: u32,
    /// By line of PTX.
    #[serde(default)]
    pub lines: Vec<Line>,
}

/// A line of PTX with its counters, over all launches of a section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// `training` or `sampling`.
    pub section: String,
    /// Counted from 1.
    pub ptx: u32,
    /// The source: `kernels/linear.cu`.
    #[serde(default)]
    pub file: String,
    /// Counted from 1; 0 if unknown.
    #[serde(default)]
    pub line: u32,
    /// File and line of the calls that were inlined, up to the kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub called_at: Vec<(String, u32)>,
    /// The counters of the line.
    pub counters: Counters,
}

/// One launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// `training` or `sampling`.
    pub section: String,
    /// The index of the kernel in the file.
    pub kernel: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    #[serde(default)]
    pub dynamic_shared: u32,
    /// Whether it may start before the previous launch has ended.
    #[serde(default)]
    pub dependent: bool,
    /// None if it was only listed.
    pub counters: Option<Counters>,
    /// Number of executed blocks that represent all; None: all of them.
    #[serde(default)]
    pub executed_blocks: Option<u64>,
    /// Warp instructions of an executed block: minimum and maximum.
    #[serde(default)]
    pub block_slots: Option<[u64; 2]>,
    /// The accessed sectors; None if not every block was executed.
    #[serde(default)]
    pub footprint: Option<Footprint>,
}

/// Distinct sectors of 32 bytes accessed by a launch, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Read.
    pub read_bytes: u64,
    /// Written.
    pub written_bytes: u64,
}

/// A submitted piece of work: a node of the step's graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// `training` or `sampling`.
    pub section: String,
    /// The kernel, or None for a copy or a fill with zeros.
    pub kernel: Option<String>,
    /// `(address, bytes, written)` of each tensor.
    pub buffers: Vec<(u64, u64, bool)>,
}

/// All counted data of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// The run as text: preset, batch, precision, overrides.
    pub run: String,
    /// The SHA-256 of the run's whole configuration.
    pub configuration: String,
    /// The SHA-256 of the executed PTX, by module.
    pub modules: BTreeMap<String, String>,
    /// The step's work, in order.
    pub nodes: Vec<Node>,
    /// The PTX machine's data.
    pub machine: MachineFile,
}

impl Counted {
    /// Reads the output of [`Counted::write`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for another file or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let counted: Self = serde_json::from_slice(&text).map_err(|error| {
            Error::file(path, format!("no counters of `engine profile`: {error}"), "delete it, or give another file")
        })?;
        counted.machine.check(path)?;
        Ok(counted)
    }

    /// Why these are not the counters of a run on a device; None if they are. `modules` has the PTX that would be executed now.
    pub fn differs(
        &self,
        run: &str,
        device: &str,
        configuration: &str,
        modules: &BTreeMap<String, String>,
    ) -> Option<String> {
        if self.run != run || self.machine.device != device {
            let own = &self.machine.device;
            return Some(format!("it holds the counters of {} on {own}, not of {run} on {device}", self.run));
        }
        if self.configuration != configuration {
            return Some(format!("it holds the counters of another configuration of {run}"));
        }
        let other = self.modules.iter().filter(|(module, hash)| modules.get(*module) != Some(hash));
        let other: Vec<&str> = other.map(|(module, _)| module.as_str()).collect();
        (!other.is_empty()).then(|| format!("it holds the counters of other PTX of {}", other.join(", ")))
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::file(path, error.to_string(), "report this"))?;
        std::fs::write(path, text).map_err(Error::io(path, "write"))
    }
}

impl MachineFile {
    /// Reads the PTX machine's file.
    ///
    /// # Errors
    /// As [`Counted::read`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file: Self = serde_json::from_slice(&text)
            .map_err(|error| Error::file(path, format!("no file of the PTX machine: {error}"), REBUILD))?;
        file.check(path)?;
        Ok(file)
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.format != FORMAT {
            let message = format!("format {}, and this engine reads {FORMAT}", self.format);
            return Err(Error::file(path, message, REBUILD));
        }
        let kernels = self.kernels.len();
        match self.launches.iter().position(|launch| launch.kernel >= kernels) {
            None => Ok(()),
            Some(at) => {
                let message = format!("launch {at} is of kernel {} of {kernels}", self.launches[at].kernel);
                Err(Error::file(path, message, REBUILD))
            }
        }
    }
}

/// Advice for mismatched versions of engine and PTX machine.
const REBUILD: &str =
    "build engine and machine (`cargo run --release -p ptx-machine -- target/ptx-machine`) from the same tree";

impl Launch {
    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&size| u64::from(size)).product()
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Warps of a block.
    pub fn warps(&self) -> u32 {
        self.threads().div_ceil(32)
    }

    /// How the counters of the whole launch were obtained.
    pub fn scaling(&self) -> Scaling {
        match (self.executed_blocks, self.block_slots) {
            (None, _) => Scaling::Exact,
            (Some(executed), Some([least, most])) if least == most => Scaling::Uniform { executed },
            (Some(executed), slots) => {
                let [least, most] = slots.unwrap_or([0, 0]);
                Scaling::Sampled { executed, spread: 1.0 - least as f64 / most.max(1) as f64 }
            }
        }
    }
}

/// How the counters of a launch were obtained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Every block was executed.
    Exact,
    /// Some blocks were executed, with equal numbers of warp instructions.
    Uniform {
        /// Their number.
        executed: u64,
    },
    /// Some blocks were executed, with differing numbers.
    Sampled {
        /// Their number.
        executed: u64,
        /// Relative difference of the smallest to the largest: 0 to 1.
        spread: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"format": 1, "device": "h100", "capability": [9, 0], "multiprocessors": 132, "l2_bytes": 52428800,
        "kernels": [{"module": "linear", "name": "linear_fwd", "registers": 96, "static_shared": 0, "lines": []}],
        "launches": [{"section": "training", "kernel": 0, "grid": [5, 2, 1], "block": [100, 1, 1], "dynamic_shared": 16,
            "dependent": false, "counters": {"mma": 7}, "executed_blocks": 4, "block_slots": [9, 12], "footprint": null}]}"#;

    fn read(text: &str) -> Result<MachineFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        MachineFile::read(file.path())
    }

    #[test]
    fn the_machines_file_is_read() {
        let file = read(TEXT).unwrap();
        let launch = &file.launches[0];
        assert_eq!((launch.blocks(), launch.warps(), launch.counters.unwrap().mma), (10, 4, 7));
        assert_eq!(launch.scaling(), Scaling::Sampled { executed: 4, spread: 0.25 });
        let even = TEXT.replace("[9, 12]", "[9, 9]");
        assert_eq!(read(&even).unwrap().launches[0].scaling(), Scaling::Uniform { executed: 4 });
    }

    #[test]
    fn counters_are_of_one_run_configuration_and_ptx() {
        let hashes =
            |tokens: &str| BTreeMap::from([("linear", "1"), ("tokens", tokens)].map(|(a, b)| (a.into(), b.into())));
        let counted = Counted {
            run: "quickstart".into(),
            configuration: "c".into(),
            modules: hashes("2"),
            machine: read(TEXT).unwrap(),
            ..Counted::default()
        };
        let differs = |run, device, configuration, tokens| counted.differs(run, device, configuration, &hashes(tokens));
        assert_eq!(differs("quickstart", "h100", "c", "2"), None);
        assert!(differs("quick", "h100", "c", "2").unwrap().contains("of quickstart on h100, not of quick on h100"));
        assert!(differs("quickstart", "a100", "c", "2").unwrap().ends_with("on a100"));
        assert!(differs("quickstart", "h100", "d", "2").unwrap().contains("another configuration of quickstart"));
        assert!(differs("quickstart", "h100", "c", "3").unwrap().ends_with("other PTX of tokens"));
        assert!(counted.differs("quickstart", "h100", "c", &BTreeMap::new()).unwrap().ends_with("linear, tokens"));
        // A file of a time before these hashes were stored is no file of counters.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!(r#"{{"run": "quickstart", "nodes": [], "machine": {TEXT}}}"#)).unwrap();
        let error = Counted::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("no counters of `engine profile`: missing field `configuration`"), "{error}");
        counted.write(file.path()).unwrap();
        assert_eq!(Counted::read(file.path()).unwrap(), counted);
    }

    #[test]
    fn another_file_is_told() {
        for (text, words) in [
            (TEXT.replace("\"format\": 1", "\"format\": 2"), "format 2"),
            (TEXT.replace("\"kernel\": 0", "\"kernel\": 1"), "launch 0 is of kernel 1 of 1"),
            ("{}".into(), "no file of the PTX machine"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("from the same tree"), "{error}");
        }
    }
}
