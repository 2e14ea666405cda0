//! The work of a step, piece by piece: the submitted work, its counters, and its modelled time.

use std::collections::HashMap;

use super::calibration::Calibration;
use super::counters::Counters;
use super::file::{Counted, Launch, Node};
use super::gpu::Gpu;
use super::lines::{Texts, replaced};
use super::memory::{Touch, Traffic, traffic};
use super::model::{Modelled, Occupancy, Part, Work, model};
use super::registers::{Figures, figures};
use crate::error::{Error, Result};

/// A kernel's name for copies on the device.
pub const COPY: &str = "(copy)";
/// A kernel's name for fills with zeros.
pub const ZERO: &str = "(zero)";

/// A launch, copy or fill.
#[derive(Clone, Debug)]
pub struct Piece {
    /// `training` or `sampling`.
    pub section: String,
    /// The kernel's entry, [`COPY`] or [`ZERO`].
    pub kernel: String,
    /// The stem of its source: the op. Empty for copies.
    pub module: String,
    /// Its launch; None for copies.
    pub launch: Option<Launch>,
    /// Registers and other figures; None for copies.
    pub figures: Option<Figures>,
    /// Registers per thread as estimated by the PTX machine.
    pub estimated_registers: u64,
    /// Its counters.
    pub counters: Counters,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its modelled times.
    pub modelled: Modelled,
    /// The modelled time, corrected by a calibration if there is one.
    pub seconds: f64,
    /// The measured time, if there is a GPU.
    pub measured: Option<f64>,
}

/// All pieces of a counted run, in order. `texts` has the PTX of its modules.
///
/// # Errors
/// If the PTX machine's launches are not the engine's.
pub fn pieces(counted: &Counted, texts: &Texts, gpu: &Gpu, calibration: Option<&Calibration>) -> Result<Vec<Piece>> {
    let launches = matched(counted)?;
    let touches: Vec<Touch> = counted.nodes.iter().zip(&launches).map(|(node, launch)| touch(node, *launch)).collect();
    let moved = by_section(&counted.nodes, &touches, gpu.l2);
    let mut known: HashMap<usize, Figures> = HashMap::new();
    let mut all = Vec::with_capacity(counted.nodes.len());
    for ((node, launch), traffic) in counted.nodes.iter().zip(launches).zip(moved) {
        let piece = match launch {
            None => copy(node, gpu, traffic),
            Some(launch) => {
                let kernel = &counted.machine.kernels[launch.kernel];
                let figures = known.entry(launch.kernel).or_insert_with(|| {
                    let embedded = texts.get(&kernel.module).filter(|_| replaced(&kernel.module).is_none());
                    figures(kernel, counted.machine.capability, embedded.map(String::as_str))
                });
                let counters = launch.counters.unwrap_or_default();
                let work = Work {
                    blocks: launch.blocks(),
                    warps: launch.warps(),
                    registers: figures.registers,
                    shared: figures.static_shared + launch.dynamic_shared,
                    dependent: launch.dependent,
                    slots_per_ptx: figures.slots_per_ptx,
                    counters,
                    traffic,
                };
                let modelled = model(gpu, &work);
                Piece {
                    section: node.section.clone(),
                    kernel: kernel.name.clone(),
                    module: kernel.module.clone(),
                    launch: Some(launch.clone()),
                    figures: Some(figures.clone()),
                    estimated_registers: u64::from(kernel.registers),
                    counters,
                    traffic,
                    seconds: modelled.seconds,
                    modelled,
                    measured: None,
                }
            }
        };
        let (gap, factor) = (piece.modelled.gap, calibration.map_or(1.0, |known| known.factor(&piece.kernel)));
        all.push(Piece { seconds: gap + factor * (piece.seconds - gap), ..piece });
    }
    Ok(all)
}

/// The PTX machine's launch of each node; None for copies.
fn matched(counted: &Counted) -> Result<Vec<Option<&Launch>>> {
    let mut launches = counted.machine.launches.iter();
    let other = |what: String| {
        let advice = "build engine and PTX machine from the same tree";
        Error::device("ptx-machine", format!("it counted other work than was submitted: {what}"), advice)
    };
    let mut found = Vec::with_capacity(counted.nodes.len());
    for (at, node) in counted.nodes.iter().enumerate() {
        let Some(name) = &node.kernel else {
            found.push(None);
            continue;
        };
        let launch = launches.next().ok_or_else(|| other(format!("it has no launch {at}, of {name}")))?;
        let kernel = &counted.machine.kernels[launch.kernel].name;
        if kernel != name || launch.section != node.section {
            return Err(other(format!("launch {at} is of {kernel} in {}, not of {name}", launch.section)));
        }
        found.push(Some(launch));
    }
    match launches.count() {
        0 => Ok(found),
        more => Err(other(format!("{more} launches more"))),
    }
}

/// The accesses of a node, by its arguments; the share that is actually read, by its counters.
fn touch(node: &Node, launch: Option<&Launch>) -> Touch {
    let of = |written: bool| node.buffers.iter().filter(move |buffer| buffer.2 == written).map(|b| (b.0, b.1));
    let (mut reads, writes): (Vec<_>, Vec<_>) = (of(false).collect(), of(true).collect());
    let Some(launch) = launch else { return Touch { reads, share: 1.0, writes } };
    let extent = |ranges: &[(u64, u64)]| ranges.iter().map(|range| range.1).sum::<u64>() as f64;
    let loaded = 32.0 * launch.counters.unwrap_or_default().global_load_sectors as f64;
    // Arguments do not tell whether an output is read too, as by an optimizer or an accumulation: it is assumed to be if the loads
    // add up to about all tensors. A product loads its operands many times, which does not indicate it.
    let all = extent(&reads) + extent(&writes);
    if all > extent(&reads) && (0.9 * all..1.5 * all).contains(&loaded) {
        reads.extend(&writes);
    }
    let exactly = launch.footprint.as_ref().map_or(loaded, |footprint| footprint.read_bytes as f64);
    let share = (exactly / extent(&reads).max(1.0)).min(1.0);
    Touch { reads, share, writes }
}

/// The traffic of each node; each section repeats itself, independent of the other.
fn by_section(nodes: &[Node], touches: &[Touch], l2: u64) -> Vec<Traffic> {
    let mut all = Vec::with_capacity(nodes.len());
    let mut first = 0;
    while first < nodes.len() {
        let same = nodes[first..].iter().take_while(|node| node.section == nodes[first].section).count();
        all.extend(traffic(&touches[first..first + same], l2));
        first += same;
    }
    all
}

/// A copy or fill: its memory traffic, and the gap before it.
fn copy(node: &Node, gpu: &Gpu, traffic: Traffic) -> Piece {
    let dram = traffic.dram() / gpu.dram;
    let l2 = (traffic.read + traffic.written) / gpu.l2_per_cycle / gpu.clock;
    let mut parts = [0.0; 6];
    (parts[Part::L2 as usize], parts[Part::Dram as usize]) = (l2, dram);
    let (bound, second) = if dram >= l2 { (Part::Dram, Part::L2) } else { (Part::L2, Part::Dram) };
    let seconds = gpu.launch_gap + dram.max(l2);
    let floor = (traffic.read + traffic.written) / gpu.dram;
    let occupancy = Occupancy { blocks: 0, warps: 0, limit: "none" };
    let gap = gpu.launch_gap;
    Piece {
        section: node.section.clone(),
        kernel: if node.buffers.len() > 1 { COPY } else { ZERO }.into(),
        module: String::new(),
        launch: None,
        figures: None,
        estimated_registers: 0,
        counters: Counters::default(),
        traffic,
        modelled: Modelled { parts, bound, second, seconds, gap, floor, occupancy, busiest: 0, idle: 0.0 },
        seconds,
        measured: None,
    }
}
