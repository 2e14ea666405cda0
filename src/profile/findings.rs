//! Findings from the counters: idle multiprocessors, few warps, half-used sectors, conflicts, narrow accesses, issue slots.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::file::{KernelLines, MachineFile};
use super::gpu::Gpu;
use super::lines::{Texts, Widths, widths};
use super::model::Part;
use super::report::{Row, Shape};
use crate::words::counted;

/// Smallest idle share of the multiprocessors that is reported.
const IDLE: f64 = 0.2;
/// Most grids in a finding.
const GRIDS: usize = 4;
/// Number of resident warps per multiprocessor that counts as few: two per scheduler.
const FEW_WARPS: u64 = 8;
/// Smallest reported ratio of sectors, or of passes over the banks, to the minimum.
const WASTE: f64 = 1.25;
/// Smallest share of narrow accesses of a kernel that is reported.
const NARROW: f64 = 0.1;
/// Bytes per lane of a narrow access.
const NARROW_BYTES: u32 = 2;
/// Number of active lanes below which divergence is reported.
const LANES: f64 = 24.0;
/// Smallest share of a section for a kernel with findings.
const SMALL: f64 = 0.002;

/// A finding about a kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// `training` or `sampling`.
    pub section: String,
    /// The kernel.
    pub kernel: String,
    /// `waves`, `occupancy`, `sectors`, `conflicts`, `narrow`, `slots`, `spills`, `lanes`.
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// The kernel's modelled milliseconds over all launches.
    pub modelled_ms: f64,
    /// Always true: it follows from a model and counters; nothing was measured.
    pub modelled: bool,
}

/// The findings of a profile, most expensive kernels first. `texts` has the PTX of the file's modules.
pub fn findings(rows: &[Row], file: &MachineFile, texts: &Texts, gpu: &Gpu) -> Vec<Finding> {
    let split: HashMap<&String, Vec<&str>> =
        texts.iter().map(|(module, text)| (module, text.lines().collect())).collect();
    let total =
        |section: &str| -> f64 { rows.iter().filter(|row| row.section == section).map(|row| row.seconds).sum() };
    let mut all = Vec::new();
    for row in rows.iter().filter(|row| row.last.launch.is_some()) {
        let is_small = row.seconds < SMALL * total(&row.section);
        let kernel = file.kernels.iter().find(|kernel| kernel.name == row.kernel);
        let mut said: Vec<(&'static str, String)> = Vec::new();
        if !is_small {
            said.extend(waves(row, gpu));
            said.extend(occupancy(row));
            said.extend(slots(row, gpu));
        }
        said.extend(waste(row).into_iter().filter(|_| !is_small));
        if let Some(kernel) = kernel.filter(|_| !is_small) {
            said.extend(narrow(row, kernel, split.get(&kernel.module).map_or(&[][..], Vec::as_slice)));
        }
        said.extend(spills(row));
        all.extend(said.into_iter().map(|(kind, text)| Finding {
            section: row.section.clone(),
            kernel: row.kernel.clone(),
            kind,
            text,
            modelled_ms: 1e3 * row.seconds,
            modelled: true,
        }));
    }
    all.sort_by(|a, b| b.section.cmp(&a.section).then(b.modelled_ms.total_cmp(&a.modelled_ms)));
    all
}

fn blocks(shape: &Shape) -> u64 {
    shape.grid.iter().map(|&size| u64::from(size)).product()
}

/// Grids that leave multiprocessors idle, for kernels that are not memory-bound.
fn waves(row: &Row, gpu: &Gpu) -> Option<(&'static str, String)> {
    if matches!(row.bound_by(), Part::Dram | Part::L2) {
        return None;
    }
    let idle: Vec<&Shape> = row.shapes.iter().filter(|shape| shape.idle >= IDLE).collect();
    let dear: f64 = idle.iter().map(|shape| shape.seconds).sum();
    if idle.is_empty() || dear < 0.25 * row.seconds {
        return None;
    }
    let mut grids: BTreeMap<u64, (usize, f64)> = BTreeMap::new();
    for shape in idle {
        let (calls, share) = grids.entry(blocks(shape)).or_default();
        *calls += shape.calls;
        *share = shape.idle;
    }
    let mut grids: Vec<(u64, (usize, f64))> = grids.into_iter().collect();
    grids.sort_by_key(|(_, (calls, _))| std::cmp::Reverse(*calls));
    let said: Vec<String> = grids
        .iter()
        .take(GRIDS)
        .map(|(blocks, (calls, idle))| format!("{calls} of {} ({:.0} % idle)", counted(*blocks, "block"), 100.0 * idle))
        .collect();
    let count = gpu.multiprocessors;
    Some((
        "waves",
        format!("blocks are whole, so that of {count} multiprocessors some idle: launches {}", said.join(", ")),
    ))
}

/// Few warps on a multiprocessor, because of its limits or of the grid.
fn occupancy(row: &Row) -> Option<(&'static str, String)> {
    let shape = row.shapes.first()?;
    let warps = u64::from(shape.block.iter().product::<u32>().div_ceil(32));
    let resident = u64::from(shape.resident_blocks).min(shape.busiest);
    if resident * warps > FEW_WARPS {
        return None;
    }
    // A grid with fewer blocks than multiprocessors is reported above.
    if resident == shape.busiest && shape.busiest == 1 {
        return None;
    }
    let registers = row.last.figures.as_ref().map_or(0, |figures| figures.registers);
    Some(("occupancy", residence(shape.limit, registers, [resident, shape.busiest - resident], warps)))
}

/// The resident blocks of a multiprocessor, and those that run after them: what limits the first, if there are others.
fn residence(limit: &str, registers: u32, [resident, later]: [u64; 2], warps: u64) -> String {
    let warps = counted(warps, "warp");
    if later == 0 {
        return format!("the grid has {} of {warps} for a multiprocessor", counted(resident, "block"));
    }
    let cause = match limit {
        "registers" => format!("{registers} registers per thread allow"),
        "shared memory" => "the shared memory of a block allows".into(),
        other => format!("the limit of {other} allows"),
    };
    let blocks = if resident == 1 { "one resident block".into() } else { format!("{resident} resident blocks") };
    let after = if later == 1 { "1 more block runs".into() } else { format!("{later} more blocks run") };
    format!("{cause} {blocks} of {warps}; {after} after {}", if resident == 1 { "it" } else { "them" })
}

/// Sectors, banks and lanes that are not fully used.
fn waste(row: &Row) -> Vec<(&'static str, String)> {
    let counters = &row.counters;
    let (sectors, conflicts, lanes) = (counters.sector_ratio(), counters.conflict_ratio(), counters.lanes());
    let mut said = Vec::new();
    let worst = row.shapes.iter().filter(|shape| shape.sectors[1] > 0 && shape.seconds >= 0.05 * row.seconds);
    let worst = worst.map(|shape| (shape.sectors[0] as f64 / shape.sectors[1] as f64, shape));
    if let Some((ratio, shape)) = worst.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(ratio, _)| *ratio >= 1.1 * sectors)
        && ratio >= WASTE
    {
        let launches = format!("{} of {}", shape.calls, counted(blocks(shape), "block"));
        let (used, all) = (100.0 / ratio, 100.0 / sectors);
        let text =
            format!("launches {launches} use {used:.0} % of each sector of global memory, all launches {all:.0} %");
        said.push(("sectors", text));
    } else if sectors >= WASTE {
        let used = 100.0 / sectors;
        said.push((
            "sectors",
            format!("uses {used:.0} % of each sector of global memory ({sectors:.2} times the minimum)"),
        ));
    }
    if conflicts >= WASTE {
        said.push(("conflicts", format!("{conflicts:.2} times the minimum passes over the banks of shared memory")));
    }
    if lanes < LANES {
        said.push(("lanes", format!("{lanes:.1} of 32 lanes are active, on average")));
    }
    said
}

/// Loads and stores of at most 16 bits per lane.
fn narrow(row: &Row, kernel: &KernelLines, ptx: &[&str]) -> Option<(&'static str, String)> {
    let widths = widths(kernel, &row.section, ptx);
    let of = |name: &str, found| {
        let share = Widths::narrow(found, NARROW_BYTES);
        (share >= NARROW).then(|| format!("{:.0} % of its {name}", 100.0 * share))
    };
    let said: Vec<String> = [of("loads", &widths.loads), of("stores", &widths.stores)].into_iter().flatten().collect();
    (!said.is_empty()).then(|| {
        let bits = 8 * NARROW_BYTES;
        ("narrow", format!("{} of global memory have {bits} bits a lane or less", said.join(" and ")))
    })
}

/// Issue slots compared with what tensor cores leave time for.
fn slots(row: &Row, gpu: &Gpu) -> Option<(&'static str, String)> {
    if row.counters.mma == 0 {
        return None;
    }
    let flops = row.counters.mma_flops as f64 / row.counters.mma as f64;
    let room = flops / (gpu.tensor_per_cycle * gpu.mma_sync_share) * gpu.issue_per_cycle;
    let hot = row.last.figures.as_ref().and_then(|figures| figures.hot.as_ref()).filter(|hot| hot.by == "mma");
    let (slots, mma, place) = match hot {
        Some(hot) => (hot.sass as f64, hot.anchors as f64, "per loop iteration (ptxas)"),
        None => (row.slots() / row.counters.mma as f64 * 32.0, 32.0, "in the whole kernel"),
    };
    (slots > room * mma).then(|| {
        let room = room * mma;
        (
            "slots",
            format!(
                "{slots:.0} issue slots a warp for {mma:.0} mma {place}; at most {room:.0} would keep tensor cores busy"
            ),
        )
    })
}

fn spills(row: &Row) -> Option<(&'static str, String)> {
    let figures = row.last.figures.as_ref()?;
    (figures.spill > 0)
        .then(|| ("spills", format!("{} of registers spilled to local memory", counted(figures.spill, "byte"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_blocks_have_their_limit() {
        for (limit, blocks, text) in [
            (
                "registers",
                [1, 7],
                "170 registers per thread allow one resident block of 8 warps; 7 more blocks run after it",
            ),
            (
                "registers",
                [2, 1],
                "170 registers per thread allow 2 resident blocks of 8 warps; 1 more block runs after them",
            ),
            (
                "shared memory",
                [1, 2],
                "the shared memory of a block allows one resident block of 8 warps; 2 more blocks run after it",
            ),
            (
                "threads",
                [1, 2],
                "the limit of threads allows one resident block of 8 warps; 2 more blocks run after it",
            ),
            ("registers", [2, 0], "the grid has 2 blocks of 8 warps for a multiprocessor"),
        ] {
            assert_eq!(residence(limit, 170, blocks, 8), text);
        }
    }
}
