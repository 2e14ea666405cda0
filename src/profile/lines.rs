//! Counters by source line, and the width of accesses from the PTX.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::counters::Counters;
use super::file::{KernelLines, Line, MachineFile};
use crate::device::module_text;

/// A folder of PTX files that replace the embedded ones.
const REPLACE: &str = "PTX_MACHINE_REPLACE";

/// The file that replaces a module's embedded PTX, if there is one.
pub fn replaced(module: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(REPLACE).filter(|folder| !folder.is_empty())?;
    Some(Path::new(&folder).join(format!("{module}.ptx"))).filter(|path| path.is_file())
}

/// A file and a line of it.
type Place<'a> = (&'a str, u32);

/// The largest share of a kernel's issue slots of a line that also stands for the functions it calls.
const CALL: f64 = 0.2;

/// A line of a kernel's source with its counters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceLine {
    /// `kernels/linear.cu`.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// Its text, if the source is available.
    pub text: Option<String>,
    /// Its counters.
    pub counters: Counters,
    /// Its share of the kernel's issue slots, 0 to 1.
    #[serde(rename = "slots_share")]
    pub slots: f64,
    /// As `slots`, of the sectors of global memory.
    #[serde(rename = "sectors_share")]
    pub sectors: f64,
    /// As `slots`, of the passes over the banks of shared memory.
    #[serde(rename = "passes_share")]
    pub passes: f64,
}

impl SourceLine {
    /// The largest of its shares.
    pub fn share(&self) -> f64 {
        self.slots.max(self.sectors).max(self.passes)
    }
}

/// The lines of a kernel in a section, most expensive first. Instructions without a line count as line 0.
///
/// An inlined function counts at the outermost call that has at most a fifth of the issue slots, or most of its slots itself:
/// `warp_sum(x)` is one line, the function with the loop of a matrix product is shown by its own lines.
pub fn source_lines(kernel: &KernelLines, section: &str) -> Vec<SourceLine> {
    let lines = || kernel.lines.iter().filter(|line| line.section == section);
    let instructions: Vec<(Vec<Place<'_>>, Counters)> = lines().map(|line| (places(line), line.counters)).collect();
    // Issue slots of each place, alone and with the functions that it calls.
    let mut slots: HashMap<Place<'_>, [u64; 2]> = HashMap::new();
    let mut all = Counters::default();
    for (places, counters) in &instructions {
        for (depth, place) in places.iter().enumerate().filter(|(depth, place)| !places[..*depth].contains(place)) {
            let [alone, with] = slots.entry(*place).or_default();
            *with += counters.warp_instructions;
            *alone += if depth + 1 == places.len() { counters.warp_instructions } else { 0 };
        }
        all += *counters;
    }
    let stands = |place: &&Place<'_>| {
        let [alone, with] = slots[*place];
        with as f64 <= CALL * all.warp_instructions as f64 || 2 * alone >= with
    };
    let mut sums: BTreeMap<Place<'_>, Counters> = BTreeMap::new();
    for (places, counters) in &instructions {
        let place = places.iter().find(stands).or(places.last()).copied().unwrap_or(("", 0));
        *sums.entry(place).or_default() += *counters;
    }
    let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    let mut sources: HashMap<&str, Vec<String>> = HashMap::new();
    let mut lines: Vec<SourceLine> = sums
        .into_iter()
        .map(|((file, line), counters)| {
            let text = sources.entry(file).or_insert_with(|| source(file));
            SourceLine {
                text: (line as usize).checked_sub(1).and_then(|at| text.get(at)).map(|text| text.trim().to_string()),
                file: file.to_string(),
                line,
                slots: share(counters.warp_instructions, all.warp_instructions),
                sectors: share(counters.global_sectors, all.global_sectors),
                passes: share(counters.shared_wavefronts, all.shared_wavefronts),
                counters,
            }
        })
        .collect();
    lines.sort_by(|a, b| b.share().total_cmp(&a.share()));
    lines
}

/// The places of an instruction, from the kernel inwards: the calls that were inlined, then its own. Those without a line are
/// left out.
fn places(line: &Line) -> Vec<Place<'_>> {
    let calls = line.called_at.iter().rev().map(|(file, line)| (file.as_str(), *line));
    calls.chain([(line.file.as_str(), line.line)]).filter(|(_, line)| *line > 0).collect()
}

/// The lines of a source file; none if it is missing: from the current folder, else from the build's.
fn source(file: &str) -> Vec<String> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = [Path::new(file).to_path_buf(), built.join(file)].into_iter().find_map(|path| {
        // A line table may name any file; only the project's kernels are read.
        (file.starts_with("kernels/") && !file.contains("..")).then(|| std::fs::read_to_string(path).ok()).flatten()
    });
    text.map_or_else(Vec::new, |text| text.lines().map(String::from).collect())
}

/// Global memory accesses by bytes per lane: warp instructions of loads and of stores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Widths {
    /// Bytes per lane to warp instructions.
    pub loads: BTreeMap<u32, u64>,
    /// As `loads`.
    pub stores: BTreeMap<u32, u64>,
}

impl Widths {
    /// The share of warp instructions with at most `bytes` per lane, 0 to 1; 0 without any.
    pub fn narrow(widths: &BTreeMap<u32, u64>, bytes: u32) -> f64 {
        let all: u64 = widths.values().sum();
        widths.range(..=bytes).map(|(_, count)| count).sum::<u64>() as f64 / all.max(1) as f64
    }
}

/// The access widths of a kernel in a section, from its PTX.
pub fn widths(kernel: &KernelLines, section: &str, ptx: &[&str]) -> Widths {
    let mut widths = Widths::default();
    for line in kernel.lines.iter().filter(|line| line.section == section) {
        let Counters { global_load, global_store, .. } = line.counters;
        if global_load + global_store == 0 {
            continue;
        }
        let text = (line.ptx as usize).checked_sub(1).and_then(|at| ptx.get(at));
        let Some(bytes) = text.and_then(|text| width(text)) else { continue };
        if global_load > 0 {
            *widths.loads.entry(bytes).or_default() += global_load;
        }
        if global_store > 0 {
            *widths.stores.entry(bytes).or_default() += global_store;
        }
    }
    widths
}

/// Bytes per lane of a load or store in PTX: 16 for `st.global.v4.f32`.
fn width(instruction: &str) -> Option<u32> {
    let opcode = instruction.split_whitespace().find(|word| word.starts_with("ld.") || word.starts_with("st."))?;
    let mut parts = opcode.split('.').rev();
    let kind = parts.next()?.trim_end_matches(';');
    let bits: u32 = kind.trim_start_matches(|c: char| c.is_alphabetic()).parse().ok()?;
    let count = opcode.split('.').find_map(|part| part.strip_prefix('v')?.parse::<u32>().ok()).unwrap_or(1);
    Some(bits / 8 * count)
}

/// PTX by module.
pub type Texts = BTreeMap<String, String>;

/// The PTX of a file's modules, as the PTX machine used it.
pub fn texts(file: &MachineFile) -> Texts {
    let capability = (file.capability[0], file.capability[1]);
    let mut texts = Texts::new();
    for kernel in &file.kernels {
        let module = &kernel.module;
        if texts.contains_key(module) {
            continue;
        }
        let other = replaced(module).and_then(|path| std::fs::read_to_string(path).ok());
        if let Some(text) = other.or_else(|| module_text(module, capability).ok().flatten()) {
            texts.insert(module.clone(), text);
        }
    }
    texts
}

/// The SHA-256 of the PTX of a file's modules, by module.
pub fn hashes(file: &MachineFile) -> BTreeMap<String, String> {
    texts(file).into_iter().map(|(module, text)| (module, sha256(&text))).collect()
}

/// The SHA-256 of a text, in hexadecimal digits.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_instructions() {
        for (text, bytes) in [
            ("\tst.global.u16 \t[%rd1], %rs1;", Some(2)),
            ("\t@%p1 ld.global.nc.v4.f32 \t{%f1, %f2, %f3, %f4}, [%rd1];", Some(16)),
            ("\tld.global.nc.u64 %rd2, [%rd1];", Some(8)),
            ("\tcp.async.cg.shared.global [%r1], [%rd1], 16;", None),
        ] {
            assert_eq!(width(text), bytes, "{text}");
        }
        let line = |ptx, counters| Line { section: "training".into(), ptx, counters, ..Line::default() };
        let stores = |global_store| Counters { global_store, ..Counters::default() };
        let lines = vec![line(1, stores(30)), line(2, stores(10)), line(9, stores(5))];
        let kernel = KernelLines { lines, ..KernelLines::default() };
        let found =
            widths(&kernel, "training", &["st.global.b16 [%rd1], %rs1;", "st.global.v2.b32 [%rd1], {%r1, %r2};"]);
        assert_eq!(found.stores, BTreeMap::from([(2, 30), (8, 10)]));
        assert_eq!((Widths::narrow(&found.stores, 2), Widths::narrow(&found.loads, 2)), (0.75, 0.0));
        assert_eq!(widths(&kernel, "sampling", &[]), Widths::default());
    }

    #[test]
    fn lines_are_sorted_by_what_they_cost_and_have_their_text() {
        let line = |file: &str, line, counters| Line {
            section: "training".into(),
            file: file.into(),
            line,
            counters,
            ..Line::default()
        };
        let slots = |warp_instructions| Counters { warp_instructions, ..Counters::default() };
        let lines = vec![
            line("kernels/linear.cu", 1, slots(10)),
            line("kernels/linear.cu", 2, slots(20)),
            line("kernels/linear.cu", 1, slots(30)),
            line("/etc/hostname", 1, slots(1)),
        ];
        let found = source_lines(&KernelLines { lines, ..KernelLines::default() }, "training");
        assert_eq!((found[0].line, found[0].counters.warp_instructions), (1, 40));
        assert!(found[0].text.as_ref().unwrap().starts_with("//"));
        assert_eq!(found[2].text, None);
    }

    #[test]
    fn small_functions_count_at_their_calls_and_large_ones_by_line() {
        let line = |place: (&str, u32), calls: &[(&str, u32)], warp_instructions| Line {
            section: "training".into(),
            file: place.0.into(),
            line: place.1,
            called_at: calls.iter().map(|(file, line)| (file.to_string(), *line)).collect(),
            counters: Counters { warp_instructions, ..Counters::default() },
            ptx: 1,
        };
        let (sum, body) = (("reduce.cuh", 8), ("body.cuh", 5));
        let lines = vec![
            // A function that is called twice, of which each call is small.
            line(sum, &[("own.cu", 10), ("own.cu", 90)], 12),
            line(sum, &[("own.cu", 20), ("own.cu", 90)], 8),
            line(("own.cu", 10), &[("own.cu", 90)], 1),
            // What only calls has no slots itself: the lines of the function are shown.
            line(body, &[("own.cu", 30), ("own.cu", 90)], 15),
            line(("body.cuh", 6), &[("own.cu", 30), ("own.cu", 90)], 14),
            // A loop that converts what it adds.
            line(("own.cu", 40), &[("own.cu", 90)], 25),
            line(("types.cuh", 4), &[("own.cu", 40), ("own.cu", 90)], 20),
            // Without a line: at the call.
            line(("types.cuh", 0), &[("own.cu", 50), ("own.cu", 90)], 3),
            line(("own.cu", 0), &[], 2),
        ];
        let kernel = KernelLines { lines, ..KernelLines::default() };
        let found = source_lines(&kernel, "training");
        let shown: Vec<_> =
            found.iter().map(|line| (line.file.as_str(), line.line, line.counters.warp_instructions)).collect();
        assert_eq!(
            shown,
            [
                ("own.cu", 40, 45),
                ("body.cuh", 5, 15),
                ("body.cuh", 6, 14),
                ("own.cu", 10, 13),
                ("own.cu", 20, 8),
                ("own.cu", 50, 3),
                ("", 0, 2)
            ]
        );
        assert!((found.iter().map(|line| line.slots).sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
