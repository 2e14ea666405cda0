//! Accepted counters: `benches/counters.json`. Growth of more than [`MOST`] is an error until it is accepted too.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::report::{Report, Row};
use crate::error::{Error, Result};

/// The share by which a counter may grow.
pub const MOST: f64 = 0.02;

/// A run, as flags of `engine profile`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// `--preset`
    pub preset: String,
    /// `--batch`
    pub batch: usize,
    /// `--precision`
    pub precision: String,
    /// `--set`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// `--blocks`: executed blocks of a launch, which represent all; 0 means all.
    #[serde(default)]
    pub blocks: u32,
    /// By section: nodes of its graph, and each kernel's counters.
    #[serde(default)]
    pub sections: BTreeMap<String, Section>,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Launches, copies and fills.
    pub nodes: u64,
    /// By kernel.
    pub kernels: BTreeMap<String, KernelCounters>,
}

/// The counters of a kernel, summed over its launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelCounters {
    /// Launches.
    pub calls: u64,
    /// Warp instructions of PTX.
    pub slots: u64,
    /// Sectors of global memory.
    pub sectors: u64,
    /// Passes over the banks of shared memory beyond the minimum.
    pub conflicts: u64,
    /// Registers per thread, as estimated by the PTX machine: they depend only on the PTX, not on an available compiler.
    pub registers: u64,
}

impl KernelCounters {
    fn of(row: &Row) -> Self {
        let counters = &row.counters;
        Self {
            calls: row.calls as u64,
            slots: counters.warp_instructions,
            sectors: counters.global_sectors,
            conflicts: counters.shared_wavefronts.saturating_sub(counters.shared_wavefronts_least),
            registers: row.last.estimated_registers,
        }
    }

    fn named(&self) -> [(&'static str, u64); 5] {
        let Self { calls, slots, sectors, conflicts, registers } = *self;
        [
            ("launches", calls),
            ("issue slots", slots),
            ("sectors", sectors),
            ("bank conflicts", conflicts),
            ("registers", registers),
        ]
    }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptFile {
    /// A description for readers of the file.
    pub about: String,
    /// The runs.
    pub runs: Vec<Kept>,
}

impl KeptFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::file(path, format!("no kept counters: {error}"), "take it from the repository, `git checkout`")
        })
    }

    /// Writes it with one kernel per line, for readable diffs.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{{\n\"about\": {},\n\"runs\": [", json!(self.about));
        for (number, run) in self.runs.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            let (preset, precision, set) = (json!(run.preset), json!(run.precision), json!(run.set));
            text += &format!("{comma}\n{{\"preset\": {preset}, \"batch\": {}, \"precision\": {precision}, ", run.batch);
            text += &format!("\"set\": {set}, \"blocks\": {}, \"sections\": {{", run.blocks);
            for (number, (name, section)) in run.sections.iter().enumerate() {
                let comma = if number > 0 { "," } else { "" };
                text += &format!("{comma}\n {}: {{\"nodes\": {}, \"kernels\": {{", json!(name), section.nodes);
                for (number, (kernel, counters)) in section.kernels.iter().enumerate() {
                    let comma = if number > 0 { "," } else { "" };
                    text += &format!("{comma}\n  {}: {}", json!(kernel), json!(counters));
                }
                text += "}}";
            }
            text += "}}";
        }
        std::fs::write(path, text + "\n]\n}\n").map_err(Error::io(path, "write"))
    }
}

/// The counters of a profile by section.
pub fn sections(report: &Report) -> BTreeMap<String, Section> {
    let mut all: BTreeMap<String, Section> = BTreeMap::new();
    for row in &report.rows {
        let section = all.entry(row.section.clone()).or_default();
        section.nodes += row.calls as u64;
        if row.last.launch.is_some() {
            section.kernels.insert(row.kernel.clone(), KernelCounters::of(row));
        }
    }
    all
}

/// Differences between accepted and new counters: excessive growth, and all other changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Each with run, kernel and counter.
    pub faults: Vec<String>,
    /// Smaller changes, added and removed kernels.
    pub notes: Vec<String>,
}

/// Compares a run's accepted counters with new ones.
pub fn compare(kept: &Kept, new: &BTreeMap<String, Section>) -> Changes {
    let mut changes = Changes::default();
    let run = format!("{} in {} at batch {}", kept.preset, kept.precision, kept.batch);
    let none = Section::default();
    for (name, section) in new {
        let before = kept.sections.get(name).unwrap_or(&none);
        let mut look = |what: String, old: u64, now: u64| {
            let line = || format!("{run}, {name}: {what}: {old} to {now}{}", percent(old, now));
            if now as f64 > old as f64 * (1.0 + MOST) {
                changes.faults.push(line());
            } else if now != old {
                changes.notes.push(line());
            }
        };
        look("nodes of the step".into(), before.nodes, section.nodes);
        for (kernel, counters) in &section.kernels {
            let old = before.kernels.get(kernel).copied().unwrap_or_default();
            for ((what, old), (_, now)) in old.named().into_iter().zip(counters.named()) {
                look(format!("kernel {kernel}, {what}"), old, now);
            }
        }
        for kernel in before.kernels.keys().filter(|kernel| !section.kernels.contains_key(*kernel)) {
            changes.notes.push(format!("{run}, {name}: kernel {kernel} is no longer launched"));
        }
    }
    changes
}

fn percent(old: u64, now: u64) -> String {
    if old == 0 { String::new() } else { format!(" ({:+.1} %)", 100.0 * (now as f64 / old as f64 - 1.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        let kernel = KernelCounters { calls: 2, slots: 1000, sectors: 200, conflicts: 0, registers: 40 };
        let section = Section { nodes: 5, kernels: BTreeMap::from([("linear_fwd".into(), kernel)]) };
        Kept {
            preset: "quickstart".into(),
            batch: 2,
            precision: "bf16".into(),
            set: vec!["model.depth=1".into()],
            blocks: 6,
            sections: BTreeMap::from([("training".into(), section)]),
        }
    }

    fn changed(change: impl Fn(&mut Section, &mut KernelCounters)) -> Changes {
        let mut new = kept().sections;
        let section = new.get_mut("training").unwrap();
        let mut kernel = section.kernels["linear_fwd"];
        change(section, &mut kernel);
        section.kernels.insert("linear_fwd".into(), kernel);
        compare(&kept(), &new)
    }

    #[test]
    fn what_grows_is_named_and_what_shrinks_is_noted() {
        assert_eq!(changed(|_, _| ()), Changes::default());
        let slots = changed(|_, kernel| kernel.slots = 1030);
        assert_eq!(
            slots.faults,
            ["quickstart in bf16 at batch 2, training: kernel linear_fwd, issue slots: 1000 to 1030 (+3.0 %)"]
        );
        let within = changed(|_, kernel| kernel.slots = 1020);
        assert_eq!((within.faults.len(), within.notes.len()), (0, 1));
        assert!(changed(|_, kernel| kernel.conflicts = 1).faults[0].contains("bank conflicts: 0 to 1"));
        assert!(changed(|_, kernel| kernel.sectors = 205).faults[0].contains("sectors"));
        assert!(changed(|_, kernel| kernel.registers = 48).faults[0].contains("registers"));
        assert!(changed(|section, _| section.nodes = 6).faults[0].contains("nodes of the step: 5 to 6"));
        let fewer = changed(|_, kernel| (kernel.sectors, kernel.calls) = (100, 1));
        assert_eq!((fewer.faults.len(), fewer.notes.len()), (0, 2));
    }

    #[test]
    fn the_file_reads_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let kept = KeptFile { about: "a \"test\"".into(), runs: vec![kept(), Kept { set: Vec::new(), ..kept() }] };
        kept.write(file.path()).unwrap();
        assert_eq!(KeptFile::read(file.path()).unwrap(), kept);
        assert!(KeptFile::read(Path::new("/nowhere")).unwrap_err().to_string().starts_with("/nowhere: cannot read"));
    }
}
