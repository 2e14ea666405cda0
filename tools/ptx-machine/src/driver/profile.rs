//! `PTX_MACHINE_PROFILE`: what launches are counted, and the file that tells it.
//!
//! Launches count from the first [`ptxMachineMark`] with a name on. The file is JSON: the device, the kernels with what each line of their
//! PTX did in each section, and the launches in their order with their counters and footprints; [`crate::count`] says what each
//! count means. A count of zero is left out.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::call;
use super::code::{self, Code, Outcome};
use super::model::Model;
use super::module::registers;
use super::queue::Launch;
use super::state::Driver;
use crate::count::{Counters, Counts, Footprint, Place, SECTOR, Sums, Touches};
use crate::exec::{self, Grid};
use crate::fault::Report;
use crate::ir::Program;

/// No call of cuda.h: all that was submitted is done; launches that follow belong to `section`, those behind an empty name (and before
/// the first call) are executed and not counted. `CUDA_ERROR_ILLEGAL_STATE` without `PTX_MACHINE_PROFILE`; the code of a fault where one
/// was found.
///
/// # Safety
/// `section` is null, which is refused, or ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptxMachineMark(section: *const c_char) -> Code {
    call("ptxMachineMark", |driver| {
        if section.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(section) }.to_str().map_err(|_| code::INVALID_VALUE)?;
        finish(driver)?.mark(name);
        Ok(())
    })
}

/// No call of cuda.h: all that was submitted is done; with `on` 0, launches that follow are not executed, and those in a section are
/// listed without counters, until a call with 1. Copies and fills are done in any case. Results as for [`ptxMachineMark`].
#[unsafe(no_mangle)]
pub extern "C" fn ptxMachineExecute(on: c_int) -> Code {
    call("ptxMachineExecute", |driver| {
        if !matches!(on, 0 | 1) {
            return Err(code::INVALID_VALUE);
        }
        finish(driver)?.executes = on == 1;
        Ok(())
    })
}

/// No call of cuda.h: all that was submitted is done; of launches in a section that have more than `blocks` blocks, only so many are executed
/// from here on, until a call with 0. They are spread over the grid, one in each of as many equal parts, at a fixed place that
/// follows no period. What they count is multiplied to stand for all; what the launch writes is incomplete. Results as for
/// [`ptxMachineMark`].
#[unsafe(no_mangle)]
pub extern "C" fn ptxMachineSample(blocks: c_uint) -> Code {
    call("ptxMachineSample", |driver| {
        finish(driver)?.sample = blocks;
        Ok(())
    })
}

/// Does all work, and gives the profile.
fn finish(driver: &mut Driver) -> Outcome<&mut Profile> {
    if driver.profile.is_none() {
        return Err(code::ILLEGAL_STATE);
    }
    let mut contexts: Vec<_> = driver.contexts.keys().copied().collect();
    contexts.sort_unstable();
    for context in contexts {
        driver.drain(context, None);
        if let Some(fault) = driver.context(context)?.fault {
            return Err(fault);
        }
    }
    driver.profile.as_mut().ok_or(code::ILLEGAL_STATE)
}

/// A kernel that was launched in a section.
struct Kernel {
    program: Arc<Program>,
    /// By section.
    sums: BTreeMap<usize, Sums>,
}

struct Listed {
    section: usize,
    kernel: usize,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    dependent: bool,
    counted: Option<Counted>,
    /// The first launch whose touches count as before this one.
    first: usize,
}

/// The record of a launch.
struct Counted {
    counters: Counters,
    /// None where not every block was executed.
    footprint: Option<Footprint>,
    /// None where every block was.
    sampled: Option<Sampled>,
}

/// Blocks that stand for all.
#[derive(Clone, Copy, Debug)]
struct Sampled {
    executed: u64,
    /// The least and the most warp instructions of one.
    slots: [u64; 2],
}

/// The treatment of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Execute,
    Count,
    /// Neither, but it is listed where a section is open.
    Skip,
}

pub struct Profile {
    pub file: PathBuf,
    model: Model,
    executes: bool,
    /// The most blocks of a launch that are executed; 0: all.
    sample: u32,
    sections: Vec<String>,
    section: Option<usize>,
    /// The first launch of the section that is open.
    first: usize,
    kernels: Vec<Kernel>,
    launches: Vec<Listed>,
}

impl Profile {
    pub fn new(file: &Path, model: Model) -> Self {
        Self {
            file: file.into(),
            model,
            executes: true,
            sample: 0,
            sections: Vec::new(),
            section: None,
            first: 0,
            kernels: Vec::new(),
            launches: Vec::new(),
        }
    }

    fn mark(&mut self, name: &str) {
        self.first = self.launches.len();
        self.section = (!name.is_empty()).then(|| {
            self.sections.iter().position(|known| known == name).unwrap_or_else(|| {
                self.sections.push(name.into());
                self.sections.len() - 1
            })
        });
    }

    pub fn way(&self) -> Way {
        match (self.executes, self.section) {
            (false, _) => Way::Skip,
            (true, Some(_)) => Way::Count,
            (true, None) => Way::Execute,
        }
    }

    /// Lists a launch that is not executed.
    pub fn list(&mut self, launch: &Launch, dependent: bool) {
        self.add(launch, dependent, None);
    }

    /// Executes a launch and counts what it does. Returns the lines of PTX that were executed.
    ///
    /// # Errors
    /// A fault of the kernel, which is then not listed.
    pub fn count(
        &mut self,
        grid: &Grid<'_>,
        launch: &Launch,
        dependent: bool,
        touches: Option<&Touches>,
    ) -> Result<Vec<u32>, Box<Report>> {
        let program = &launch.program;
        let blocks = grid.grid.iter().map(|&size| u64::from(size)).product::<u64>();
        if self.sample > 0 && blocks > u64::from(self.sample) {
            let (sums, sampled) = sample(grid, program, blocks, u64::from(self.sample))?;
            return Ok(self.keep(launch, dependent, &sums, None, Some(sampled)));
        }
        let base = grid.memory.span().0;
        // Launches are numbered from 1 on: 0 is a sector that nobody touched.
        let number = |index: usize| u32::try_from(index + 1).unwrap_or(u32::MAX);
        let (own, first) = (number(self.launches.len()), number(self.first));
        let place = touches.map(|touches| Place { touches, base, launch: own, first });
        let counted = exec::run_observed(grid, || Counts::new(program, place))?;
        let (sums, footprint) = Sums::of(program, counted);
        Ok(self.keep(launch, dependent, &sums, Some(footprint), None))
    }

    /// Adds what a launch did to its kernel. Returns the lines of PTX that were executed.
    fn keep(
        &mut self,
        launch: &Launch,
        dependent: bool,
        sums: &Sums,
        footprint: Option<Footprint>,
        sampled: Option<Sampled>,
    ) -> Vec<u32> {
        let program = &launch.program;
        let counted = Counted { counters: sums.total(program), footprint, sampled };
        if let Some((kernel, section)) = self.add(launch, dependent, Some(counted)) {
            let all = self.kernels[kernel].sums.entry(section).or_insert_with(|| Sums::new(program));
            all.add(sums);
        }
        sums.executed().map(|index| program.lines[index].ptx).collect()
    }

    fn add(&mut self, launch: &Launch, dependent: bool, counted: Option<Counted>) -> Option<(usize, usize)> {
        let section = self.section?;
        let kernel = self.kernel(&launch.program);
        let Launch { grid, block, dynamic_shared, .. } = *launch;
        let first = self.first;
        self.launches.push(Listed { section, kernel, grid, block, dynamic_shared, dependent, counted, first });
        Some((kernel, section))
    }

    /// The number of a kernel: one that was loaded again is the same.
    fn kernel(&mut self, program: &Arc<Program>) -> usize {
        let same = |known: &Kernel| {
            let other = &known.program;
            Arc::ptr_eq(other, program)
                || (&other.module, &other.name, other.registers, other.static_shared, other.code.len())
                    == (&program.module, &program.name, program.registers, program.static_shared, program.code.len())
        };
        self.kernels.iter().position(same).unwrap_or_else(|| {
            self.kernels.push(Kernel { program: Arc::clone(program), sums: BTreeMap::new() });
            self.kernels.len() - 1
        })
    }

    /// The file's text.
    pub fn json(&self) -> String {
        let mut text = String::new();
        let Model { word, capability: (major, minor), multiprocessors, l2_bytes, .. } = self.model;
        let _ = write!(
            text,
            "{{\n\"format\": 1,\n\"device\": {}, \"capability\": [{major}, {minor}], \"multiprocessors\": {multiprocessors}, \
             \"l2_bytes\": {l2_bytes},\n\"kernels\": [",
            quoted(word)
        );
        for (index, kernel) in self.kernels.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            self.write_kernel(&mut text, kernel);
        }
        text.push_str("\n],\n\"launches\": [");
        for (index, launch) in self.launches.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            self.write_launch(&mut text, launch);
        }
        text.push_str("\n]\n}\n");
        text
    }

    fn write_kernel(&self, text: &mut String, kernel: &Kernel) {
        let program = &kernel.program;
        let _ = write!(
            text,
            "{{\"module\": {}, \"name\": {}, \"registers\": {}, \"static_shared\": {}, \"lines\": [",
            quoted(short(&program.module)),
            quoted(&program.name),
            registers(program),
            program.static_shared
        );
        let mut before = "\n  ";
        for (&section, sums) in &kernel.sums {
            let mut lines: BTreeMap<u32, (usize, Counters)> = BTreeMap::new();
            for (index, counters) in sums.operations(program) {
                let (_, all) = lines.entry(program.lines[index].ptx).or_insert((index, Counters::default()));
                *all += counters;
            }
            for (ptx, (index, counters)) in lines {
                let _ = write!(text, "{before}{{\"section\": {}, \"ptx\": {ptx}", quoted(&self.sections[section]));
                let mut places = program.source_places(index).into_iter();
                if let Some((file, line)) = places.next() {
                    let _ = write!(text, ", \"file\": {}, \"line\": {line}", quoted(file));
                    let callers: Vec<_> = places.map(|(file, line)| format!("[{}, {line}]", quoted(file))).collect();
                    if !callers.is_empty() {
                        let _ = write!(text, ", \"called_at\": [{}]", callers.join(", "));
                    }
                }
                let _ = write!(text, ", \"counters\": {}}}", object(&counters));
                before = ",\n  ";
            }
        }
        text.push_str("]}");
    }

    fn write_launch(&self, text: &mut String, launch: &Listed) {
        let Listed { section, kernel, grid, block, dynamic_shared, dependent, ref counted, first } = *launch;
        let _ = write!(
            text,
            "{{\"section\": {}, \"kernel\": {kernel}, \"grid\": {grid:?}, \"block\": {block:?}, \
             \"dynamic_shared\": {dynamic_shared}, \"dependent\": {dependent}, ",
            quoted(&self.sections[section])
        );
        let Some(Counted { counters, footprint, sampled }) = counted else {
            text.push_str("\"counters\": null, \"footprint\": null}");
            return;
        };
        let _ = write!(text, "\"counters\": {}, ", object(counters));
        if let Some(Sampled { executed, slots }) = sampled {
            let _ = write!(text, "\"executed_blocks\": {executed}, \"block_slots\": {slots:?}, ");
        }
        let Some(footprint) = footprint else {
            text.push_str("\"footprint\": null}");
            return;
        };
        let reused: Vec<String> = footprint
            .reused
            .iter()
            .enumerate()
            .filter(|(_, sectors)| **sectors > 0)
            .map(|(index, sectors)| format!("[{}, {}]", first + index, sectors * SECTOR))
            .collect();
        let _ = write!(
            text,
            "\"footprint\": {{\"read_bytes\": {}, \"written_bytes\": {}, \"reused\": [{}]}}}}",
            footprint.read * SECTOR,
            footprint.written * SECTOR,
            reused.join(", ")
        );
    }
}

/// Executes `count` of a grid's blocks, on as many host threads as its limits say: what they did, multiplied to stand for all.
fn sample(grid: &Grid<'_>, program: &Program, blocks: u64, count: u64) -> Result<(Sums, Sampled), Box<Report>> {
    let next = AtomicU64::new(0);
    let work = || -> Result<Vec<Sums>, Box<Report>> {
        let mut done = Vec::new();
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= count {
                return Ok(done);
            }
            let counts = exec::run_block(grid, place(part, blocks, count), Counts::new(program, None))?;
            done.push(Sums::of(program, vec![counts]).0);
        }
    };
    let cores = grid.limits.cores.clamp(1, count as usize);
    let parts = std::thread::scope(|scope| {
        let running: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
        let own = work();
        // A thread that panicked has its message on standard error; what it did not do is missed below.
        let others = running.into_iter().filter_map(|thread| thread.join().ok());
        std::iter::once(own).chain(others).collect::<Result<Vec<_>, _>>()
    })?;
    let mut all = Sums::new(program);
    let (mut executed, mut slots) = (0, [u64::MAX, 0]);
    for sums in parts.iter().flatten() {
        let own = sums.total(program).warp_instructions;
        slots = [slots[0].min(own), slots[1].max(own)];
        all.add(sums);
        executed += 1;
    }
    all.scale(blocks, executed);
    Ok((all, Sampled { executed, slots }))
}

/// The block that stands for part `part` of `count` of a grid.
fn place(part: u64, blocks: u64, count: u64) -> u64 {
    let (first, end) = (part * blocks / count, (part + 1) * blocks / count);
    // Steps of SplitMix64: grids have periods of a few blocks, such as the columns of a product's tiles.
    let mut mixed = (part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 27;
    first + mixed % (end - first).max(1)
}

/// `linear` for the PTX of `kernels/linear.cu`.
fn short(module: &str) -> &str {
    let path = module.strip_prefix("ptx of ").unwrap_or(module);
    Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or(path)
}

fn object(counters: &Counters) -> String {
    let fields = counters.named().filter(|(_, count)| *count > 0);
    let fields: Vec<String> = fields.map(|(name, count)| format!("\"{name}\": {count}")).collect();
    format!("{{{}}}", fields.join(", "))
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut all = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => all.extend(['\\', c]),
            c if (c as u32) < 0x20 => {
                let _ = write!(all, "\\u{:04x}", c as u32);
            }
            c => all.push(c),
        }
    }
    all.push('"');
    all
}
