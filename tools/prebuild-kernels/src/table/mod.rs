//! `kernels/prebuilt/registers.json`: what a GPU's own compiler makes of the prebuilt PTX. A driver hands the embedded PTX to the same
//! `ptxas`, so that these are the registers and instructions that a GPU runs, as far as versions of it agree.
//!
//! ```json
//! { "about": "…", "format": 2, "ptxas": "13.0.88", "nvdisasm": "13.2.78",
//!   "modules": { "linear.compute_80": "<hash of the prebuilt file>" },
//!   "kernels": {
//!     "linear_fwd_large_bf16": {"module": "linear", "ptx": 5049, "sm_80": …, "sm_100": …,
//!       "sm_90": {"registers": 127, "static_shared": 0, "spill": 0, "stack": 0, "sass": 4490,
//!                 "loop": {"by": "mma", "anchors": 32, "sass": 279, "ptx": 286, "unroll": 1, "lines": [9485, 10151]}}} } }
//! ```
//!
//! - `ptx`, `sass`: instructions of the whole kernel, each once; the SASS without padding, without the two instructions that wait for the grids before
//!   (`kernel_signatures::ptx_with_grid_waits`, from `sm_90` on) and without the subroutines for operands that seldom come
//!   (a denormal divisor), so that `sass / ptx` is what a PTX instruction costs where no loop is hot.
//! - `spill`: bytes of spill stores and loads; `stack`: bytes of the frame; both lie in local memory. `static_shared`: bytes.
//! - `loop`: the hot loop, `null` where the kernel has none. It is, in the SASS, the loop with the most `mma` outside of the loops within
//!   it; where the kernel has no `mma`, with the most f32 sums and products; where no loop has any, with the most accesses of global memory
//!   (`by`; their number is `anchors`). `sass` counts its instructions without those of the loops within it: a product's loop has copies of rows that are not
//!   aligned within, which seldom run. Arms of a branch that close no loop count, all of them.
//! - Its PTX is the loop that most of these anchors come from, by the line that ptxas notes with each SASS instruction. ptxas may have unrolled it:
//!   `unroll` is how many SASS anchors each PTX anchor became (the most frequent number), and `ptx` is the instructions of the PTX loop, without the loops
//!   within it, times `unroll`. So `sass / ptx` is the issue slots that a PTX instruction of the loop costs. `lines` are the first and the last line
//!   of that loop in `kernels/prebuilt/<module>.<arch>.ptx`: what share of a kernel's instructions it runs, counters by line tell.
//!
//! The keys `sm_80`, `sm_90`, `sm_100` are a device's capability, its PTX the one that the engine would choose: `compute_90a` for `sm_90` where the
//! kernel has one, else `compute_80`.

mod flow;
mod ptx;
mod sass;
mod witness;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernel_signatures::{Prebuilt, ptx_with_grid_waits};
use prebuild_kernels::search;

use self::flow::{Anchor, Instruction, innermost_loops};
use crate::Result;
use crate::usage::{Usage, usages};

const FILE: &str = "registers.json";
const PTXAS: &str = "13.0.88";
const NVDISASM: &str = "13.2.78";
const MAKE: &str =
    "run `cargo run --release -p prebuild-kernels -- --registers FOLDER` and commit kernels/prebuilt/registers.json";

/// Capabilities in the file's order: key, PTX in the order to try, what ptxas compiles each for.
const DEVICES: [(&str, &[(&str, &str)]); 3] = [
    ("sm_80", &[("compute_80", "sm_80")]),
    ("sm_90", &[("compute_90a", "sm_90a"), ("compute_80", "sm_90")]),
    ("sm_100", &[("compute_80", "sm_100")]),
];

/// ptxas and nvdisasm of the pinned versions.
struct Tools {
    ptxas: PathBuf,
    nvdisasm: PathBuf,
}

impl Tools {
    fn find(folder: &Path) -> Result<Self> {
        let find = |name: &str, version: &str, wheel: &str| -> Result<PathBuf> {
            let wanted = format!(
                "{FILE} is made with {name} {version}: pip install {wheel}=={version}, and name the environment"
            );
            let mut said = format!("none in {}", folder.display());
            for path in search(folder, name) {
                let output = Command::new(&path).arg("--version").output();
                let text =
                    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
                match text.split_whitespace().find_map(|word| word.strip_prefix('V')) {
                    Some(found) if found == version => return Ok(path),
                    found => said = format!("{} is {}", path.display(), found.unwrap_or("not to be run")),
                }
            }
            Err(format!("{wanted} ({said})").into())
        };
        Ok(Self {
            ptxas: find("ptxas", PTXAS, "nvidia-cuda-nvcc")?,
            nvdisasm: find("nvdisasm", NVDISASM, "nvidia-cuda-nvdisasm")?,
        })
    }

    /// The cubin of a PTX for an architecture, put at `to`, and what ptxas says of its entries.
    fn assemble(&self, ptx: &Path, arch: &str, to: &Path) -> Result<Vec<Usage>> {
        // Line tables change no instruction.
        let options = ["-v", "--generate-line-info", "-arch", arch, "-o"];
        Ok(usages(&said(Command::new(&self.ptxas).args(options).arg(to).arg(ptx))?.1))
    }

    fn disassemble(&self, cubin: &Path, options: &[&str]) -> Result<String> {
        Ok(said(Command::new(&self.nvdisasm).args(options).arg(cubin))?.0)
    }
}

/// A command's two outputs; an error, with what it said, where it fails.
fn said(command: &mut Command) -> Result<(String, String)> {
    let output = command.output().map_err(|error| format!("{command:?}: cannot run: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, text(&output.stderr).trim_end()).into());
    }
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// A kernel on one device.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    usage: Usage,
    sass: usize,
    hot: Option<Hot>,
}

/// Its hot loop.
#[derive(Debug, PartialEq, Eq)]
struct Hot {
    by: Anchor,
    anchors: usize,
    sass: usize,
    ptx: usize,
    unroll: usize,
    /// First and last line of the loop in the PTX.
    lines: (usize, usize),
}

fn most_frequent<K: Ord + Copy>(keys: impl Iterator<Item = K>) -> Option<(K, usize)> {
    let mut counts: BTreeMap<K, usize> = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    // Of equals the smallest key.
    counts.into_iter().rev().max_by_key(|&(_, count)| count)
}

/// The hot loop of a kernel's SASS, and the loop of its PTX that it comes from.
fn hot_loop(sass: &[Instruction], ptx: &[Instruction]) -> Option<Hot> {
    let (sass_loops, ptx_loops) = (innermost_loops(sass), innermost_loops(ptx));
    let has_mma = sass.iter().any(|instruction| instruction.anchor == Some(Anchor::Mma));
    let classes = if has_mma { &Anchor::ALL[..1] } else { &Anchor::ALL[1..] };
    let (by, (hot, anchors)) = classes.iter().find_map(|&by| {
        let of_class = sass.iter().zip(&sass_loops).filter(|(instruction, _)| instruction.anchor == Some(by));
        Some((by, most_frequent(of_class.filter_map(|(_, &number)| number))?))
    })?;
    let by_line: BTreeMap<usize, usize> = ptx.iter().enumerate().map(|(index, i)| (i.line, index)).collect();
    let own =
        || sass.iter().zip(&sass_loops).filter(|(_, number)| **number == Some(hot)).map(|(instruction, _)| instruction);
    let sources = || own().filter(|i| i.anchor == Some(by)).filter_map(|i| by_line.get(&i.line).copied());
    let (source, _) = most_frequent(sources().filter_map(|index| ptx_loops[index]))?;
    // A division has products too, but its line is no anchor of the PTX.
    let in_source = |index: &usize| ptx_loops[*index] == Some(source) && ptx[*index].anchor == Some(by);
    let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
    for index in sources().filter(in_source) {
        *copies.entry(index).or_default() += 1;
    }
    let (unroll, _) = most_frequent(copies.into_values())?;
    let places = ptx.iter().zip(&ptx_loops).filter(|(_, number)| **number == Some(source)).map(|(i, _)| i.line);
    let lines = (places.clone().min()?, places.clone().max()?);
    Some(Hot { by, anchors, sass: own().count(), ptx: unroll * places.count(), unroll, lines })
}

/// One PTX for one architecture.
struct Job<'a> {
    device: usize,
    part: &'a Prebuilt,
    arch: &'a str,
}

/// Writes the table, measuring only modules that changed since, or (`check`) measures all and fails where the file is not it.
pub fn run(folder: &Path, kernels: &Path, wanted: &[Prebuilt], check: bool) -> Result<()> {
    let tools = Tools::find(folder)?;
    let path = kernels.join("prebuilt").join(FILE);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let kept = if check { BTreeMap::new() } else { kept(&old, kernels, wanted)? };
    let mut lines = measure(&tools, kernels, &jobs(wanted, &kept))?;
    lines.extend(kept.into_values().flatten());
    let text = render(kernels, wanted, &lines)?;
    if check && old != text {
        return Err(format!(
            "{} is not what ptxas and nvdisasm say; {MAKE}\n{}",
            path.display(),
            differences(&old, &text)
        )
        .into());
    }
    if !check && old != text {
        std::fs::write(&path, &text)?;
    }
    println!(
        "{} {FILE} ({} kernels, {} bytes)",
        if old == text { "current" } else { "written" },
        text.matches("\"module\"").count(),
        text.len()
    );
    Ok(())
}

/// Lines of the file, by kernel.
type Lines = BTreeMap<String, String>;

/// The lines of modules that are as they were when the file was written by the same tools.
fn kept(old: &str, kernels: &Path, wanted: &[Prebuilt]) -> Result<BTreeMap<String, Lines>> {
    let mut kept = BTreeMap::new();
    if !old.starts_with(&head()) {
        return Ok(kept);
    }
    let mut changed = Vec::new();
    for part in wanted {
        if !old.contains(&module_line(kernels, part)?) {
            changed.push(part.module.as_str());
        }
    }
    for part in wanted.iter().filter(|part| !changed.contains(&part.module.as_str())) {
        let of_module = format!(": {{\"module\": \"{}\", ", part.module);
        let lines = old.lines().filter(|line| line.contains(&of_module)).filter_map(|line| {
            let kernel = line.split('"').nth(1)?;
            Some((kernel.to_string(), line.trim_end_matches(',').to_string()))
        });
        kept.insert(part.module.clone(), lines.collect());
    }
    Ok(kept)
}

/// The compilations that ptxas must do: of modules that are not kept.
fn jobs<'a>(wanted: &'a [Prebuilt], kept: &BTreeMap<String, Lines>) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for (device, (_, choices)) in DEVICES.iter().enumerate() {
        let of_module = |part: &&Prebuilt| {
            let better = choices.iter().take_while(|(ptx, _)| *ptx != part.arch);
            let taken = better.clone().any(|(ptx, _)| wanted.iter().any(|p| p.module == part.module && p.arch == *ptx));
            !taken && better.count() < choices.len()
        };
        for part in wanted.iter().filter(of_module).filter(|part| !kept.contains_key(&part.module)) {
            let arch = choices.iter().find(|(ptx, _)| *ptx == part.arch).map_or("", |(_, arch)| arch);
            jobs.push(Job { device, part, arch });
        }
    }
    jobs
}

/// Does the jobs, on all cores.
fn measure(tools: &Tools, kernels: &Path, jobs: &[Job]) -> Result<Lines> {
    let scratch = tempfile::tempdir()?;
    let rows = Mutex::new(BTreeMap::new());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match rows_of(tools, kernels, job, scratch.path()) {
                Ok(found) => rows.lock().unwrap_or_else(|e| e.into_inner()).extend(found),
                Err(error) => failed.lock().unwrap_or_else(|e| e.into_inner()).push(error.to_string()),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let (rows, failed) =
        (rows.into_inner().unwrap_or_else(|e| e.into_inner()), failed.into_inner().unwrap_or_else(|e| e.into_inner()));
    if failed.is_empty() { Ok(lines_of(&rows)) } else { Err(failed.join("\n").into()) }
}

/// The key of the rows: kernel, module, place of the device.
type Key = (String, String, usize);

/// The rows of one job, with the number of each kernel's PTX instructions.
fn rows_of(tools: &Tools, kernels: &Path, job: &Job, scratch: &Path) -> Result<Vec<(Key, (usize, Row))>> {
    let path = job.part.path(kernels);
    let fail = |error: String| format!("{} for {}: {error}", path.display(), job.arch);
    let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let ptx = ptx::kernels(&text).map_err(fail)?;
    let cubin = scratch.join(format!("{}.{}.cubin", job.part.module, job.arch));
    let usages = if DEVICES[job.device].0 == "sm_80" {
        tools.assemble(&path, job.arch, &cubin)?
    } else {
        let with_waits = ptx_with_grid_waits(&text).ok_or_else(|| fail("an entry without a body".into()))?;
        let loaded = cubin.with_extension("ptx");
        std::fs::write(&loaded, with_waits)?;
        tools.assemble(&loaded, job.arch, &cubin)?
    };
    let sass = sass::kernels(&tools.disassemble(&cubin, &["-c", "-gp"])?).map_err(fail)?;
    let witnesses: Vec<_> = witness::KERNELS.into_iter().filter(|kernel| ptx.contains_key(*kernel)).collect();
    let json = if witnesses.is_empty() { String::new() } else { tools.disassemble(&cubin, &["-json"])? };
    std::fs::remove_file(&cubin)?;
    let mut rows = Vec::new();
    for (kernel, ptx) in ptx {
        let usage = usages
            .iter()
            .find(|usage| usage.kernel == kernel)
            .ok_or_else(|| fail(format!("ptxas does not name {kernel}")))?;
        let sass = sass.get(&kernel).ok_or_else(|| fail(format!("nvdisasm does not list {kernel}")))?;
        let row = Row {
            usage: usage.clone(),
            sass: sass.iter().filter(|instruction| !instruction.seldom).count(),
            hot: hot_loop(sass, &ptx),
        };
        if witnesses.contains(&kernel.as_str()) {
            let (ours, theirs) = (row.hot.as_ref().map_or(0, |hot| hot.sass), witness::hot_loop(&json, &kernel)?);
            if ours != theirs {
                return Err(fail(format!(
                    "{kernel}'s hot loop has {ours} instructions by its control flow, {theirs} by addresses"
                ))
                .into());
            }
        }
        rows.push(((kernel, job.part.module.clone(), job.device), (ptx.len(), row)));
    }
    Ok(rows)
}

/// The file up to its modules.
fn head() -> String {
    format!(
        "{{\n\"about\": \"Generated by tools/prebuild-kernels, do not edit. What ptxas makes of the prebuilt PTX: \
         tools/prebuild-kernels/src/table/mod.rs tells what each number is.\",\n\"format\": 2,\n\"ptxas\": \"{PTXAS}\",\n\"nvdisasm\": \"{NVDISASM}\",\n\"modules\": {{\n"
    )
}

/// A module and the hash of its prebuilt file.
fn module_line(kernels: &Path, part: &Prebuilt) -> Result<String> {
    Ok(format!("\"{}.{}\": \"{}\"", part.module, part.arch, part.expected_hash(kernels)?))
}

/// One line for each kernel.
fn lines_of(rows: &BTreeMap<Key, (usize, Row)>) -> Lines {
    let mut lines = Lines::new();
    for ((kernel, module, device), (ptx, row)) in rows {
        let line = lines
            .entry(kernel.clone())
            .or_insert_with(|| format!("\"{kernel}\": {{\"module\": \"{module}\", \"ptx\": {ptx}"));
        let Usage { registers, spills, shared, stack, .. } = &row.usage;
        let _ = write!(
            line,
            ", \"{}\": {{\"registers\": {registers}, \"static_shared\": {shared}, \"spill\": {spills}, \"stack\": {stack}, \"sass\": {}, \"loop\": ",
            DEVICES[*device].0, row.sass
        );
        let _ = match &row.hot {
            Some(Hot { by, anchors, sass, ptx, unroll, lines }) => write!(
                line,
                "{{\"by\": \"{}\", \"anchors\": {anchors}, \"sass\": {sass}, \"ptx\": {ptx}, \"unroll\": {unroll}, \"lines\": [{}, {}]}}}}",
                by.name(),
                lines.0,
                lines.1
            ),
            None => write!(line, "null}}"),
        };
    }
    lines.values_mut().for_each(|line| line.push('}'));
    lines
}

fn render(kernels: &Path, wanted: &[Prebuilt], lines: &Lines) -> Result<String> {
    let modules = wanted.iter().map(|part| module_line(kernels, part)).collect::<Result<Vec<_>>>()?;
    let kernels: Vec<&str> = lines.values().map(String::as_str).collect();
    Ok(format!("{}{}\n}},\n\"kernels\": {{\n{}\n}}\n}}\n", head(), modules.join(",\n"), kernels.join(",\n")))
}

/// The first lines that differ, as they are and as they should be.
fn differences(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    gone.take(5).chain(come.take(5)).collect::<Vec<_>>().join("\n")
}

/// Whether the file was made of the PTX as it is, without any tool: the modules that it is older than.
pub fn stale(kernels: &Path, wanted: &[Prebuilt]) -> Result<Vec<String>> {
    let path = kernels.join("prebuilt").join(FILE);
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(vec![format!("{}: missing; {MAKE}", path.display())]);
    };
    let mut wrong = Vec::new();
    for part in wanted {
        if !text.contains(&module_line(kernels, part)?) {
            wrong.push(format!("{}: older than {}; {MAKE}", path.display(), part.file_name()));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::flow::Flow;

    fn instruction(line: usize, anchor: Option<Anchor>, flow: Flow) -> Instruction {
        Instruction { line, seldom: false, anchor, flow }
    }

    #[test]
    fn a_loop_that_ptxas_unrolled_is_counted_so_often() {
        let float = Some(Anchor::Float);
        // PTX: 3 instructions in a loop, an fma among them.
        let ptx = [
            instruction(1, None, Flow::Next),
            instruction(2, float, Flow::Next),
            instruction(3, None, Flow::Next),
            instruction(4, None, Flow::Branch(1)),
            instruction(5, None, Flow::End),
        ];
        // SASS: the loop twice, and a rest of one.
        let sass = [
            instruction(1, None, Flow::Branch(5)),
            instruction(2, float, Flow::Next),
            instruction(3, None, Flow::Next),
            instruction(2, float, Flow::Next),
            instruction(4, None, Flow::Branch(1)),
            instruction(2, float, Flow::Next),
            instruction(4, None, Flow::Branch(5)),
            instruction(5, None, Flow::End),
        ];
        let hot = Hot { by: Anchor::Float, anchors: 2, sass: 4, ptx: 6, unroll: 2, lines: (2, 4) };
        assert_eq!(hot_loop(&sass, &ptx), Some(hot));
        assert_eq!(hot_loop(&sass[7..], &ptx[4..]), None);
    }

    #[test]
    fn an_mma_outside_of_loops_makes_no_other_loop_hot() {
        let ptx = [instruction(1, Some(Anchor::Mma), Flow::Next), instruction(2, Some(Anchor::Float), Flow::Branch(1))];
        assert_eq!(hot_loop(&ptx, &ptx), None);
    }
}
