//! Counters by source line, and the width of accesses from the PTX.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::counters::Counters;
use super::file::{KernelLines, MachineFile};
use crate::device::module_text;

/// A folder of PTX files that replace the embedded ones.
const REPLACE: &str = "PTX_MACHINE_REPLACE";

/// The file that replaces a module's embedded PTX, if there is one.
pub fn replaced(module: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(REPLACE).filter(|folder| !folder.is_empty())?;
    Some(Path::new(&folder).join(format!("{module}.ptx"))).filter(|path| path.is_file())
}

/// A line of a kernel's source with its counters.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceLine {
    /// `kernels/linear.cu`.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// Its text, if the source is available.
    pub text: Option<String>,
    /// Its counters.
    pub counters: Counters,
    /// The largest of its shares of the kernel's issue slots, sectors and bank passes, 0 to 1.
    pub share: f64,
}

/// The lines of a kernel in a section, most expensive first. Instructions without a line count as line 0.
pub fn source_lines(kernel: &KernelLines, section: &str) -> Vec<SourceLine> {
    let mut sums: BTreeMap<(&str, u32), Counters> = BTreeMap::new();
    let mut all = Counters::default();
    for line in kernel.lines.iter().filter(|line| line.section == section) {
        *sums.entry((&line.file, line.line)).or_default() += line.counters;
        all += line.counters;
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
                share: share(counters.warp_instructions, all.warp_instructions)
                    .max(share(counters.global_sectors, all.global_sectors))
                    .max(share(counters.shared_wavefronts, all.shared_wavefronts)),
                counters,
            }
        })
        .collect();
    lines.sort_by(|a, b| b.share.total_cmp(&a.share));
    lines
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

/// The PTX of a file's modules, as the PTX machine used it.
pub fn texts(file: &MachineFile) -> HashMap<String, String> {
    let capability = (file.capability[0], file.capability[1]);
    let mut texts = HashMap::new();
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

#[cfg(test)]
mod tests {
    use super::super::file::Line;
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
        let line =
            |file: &str, line, counters| Line { section: "training".into(), file: file.into(), line, counters, ptx: 1 };
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
}
