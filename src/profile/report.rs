//! The cost of a step by kernel, and its JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::counters::Counters;
use super::file::Scaling;
use super::findings::Finding;
use super::gpu::Gpu;
use super::model::{Modelled, Part};
use super::pieces::Piece;

/// The label of modelled numbers.
pub const NEVER: &str = "modelled, never measured";

/// A kernel's launches with the same grid, block and sector use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Launches.
    pub calls: usize,
    /// Modelled time of all of them.
    pub seconds: f64,
    /// Blocks on the busiest multiprocessor.
    pub busiest: u64,
    /// The share of the multiprocessors' time that is idle because blocks are indivisible.
    pub idle: f64,
    /// Resident blocks of a multiprocessor.
    pub resident_blocks: u32,
    /// Their limit.
    pub limit: &'static str,
    /// Sectors of global memory, and the minimum, of all of them.
    pub sectors: [u64; 2],
    /// Always true: its times follow from a model.
    pub modelled: bool,
}

/// A kernel in a section.
#[derive(Clone, Debug)]
pub struct Row {
    /// `training` or `sampling`.
    pub section: String,
    /// Its entry.
    pub kernel: String,
    /// Its op.
    pub module: String,
    /// Launches.
    pub calls: usize,
    /// Modelled time, corrected by the calibration if there is one.
    pub seconds: f64,
    /// Measured time, if there is a GPU.
    pub measured: Option<f64>,
    /// The roofline's time.
    pub floor: f64,
    /// Gaps before its launches.
    pub gaps: f64,
    /// Seconds of each part, in the order of [`Part::ALL`].
    pub parts: [f64; 6],
    /// Seconds of launches by their limiting part.
    bound: [f64; 6],
    /// Seconds of the second slowest parts of their launches.
    next: [f64; 6],
    /// Seconds of the limiting parts.
    longest: f64,
    /// Its counters.
    pub counters: Counters,
    /// Bytes from and to memory.
    pub dram: f64,
    /// Its grids, longest time first.
    pub shapes: Vec<Shape>,
    /// The last launch with its figures.
    pub last: Piece,
    /// The least exact scaling of its launches.
    pub scaling: Scaling,
}

impl Row {
    /// The part that limits most of its time.
    pub fn bound_by(&self) -> Part {
        let mut order = Part::ALL;
        order.sort_by(|a, b| self.bound[*b as usize].total_cmp(&self.bound[*a as usize]));
        order[0]
    }

    /// The next part after [`Row::bound_by`], and the ratio of the limiting parts' time to that of the next ones.
    pub fn second(&self) -> (Part, f64) {
        let bound = self.bound_by();
        let mut order = Part::ALL;
        order.sort_by(|a, b| self.next[*b as usize].total_cmp(&self.next[*a as usize]));
        let (first, next): (f64, f64) = (self.longest, self.next.iter().sum());
        (if order[0] == bound { order[1] } else { order[0] }, first / next.max(1e-12))
    }

    /// Issue slots of the real instructions.
    pub fn slots(&self) -> f64 {
        let ratio = self.last.figures.as_ref().map_or(1.0, |figures| figures.slots_per_ptx);
        ratio * self.counters.warp_instructions as f64
    }

    fn of(piece: &Piece) -> Self {
        Self {
            section: piece.section.clone(),
            kernel: piece.kernel.clone(),
            module: piece.module.clone(),
            calls: 0,
            seconds: 0.0,
            measured: None,
            floor: 0.0,
            gaps: 0.0,
            parts: [0.0; 6],
            bound: [0.0; 6],
            next: [0.0; 6],
            longest: 0.0,
            counters: Counters::default(),
            dram: 0.0,
            shapes: Vec::new(),
            last: piece.clone(),
            scaling: Scaling::Exact,
        }
    }

    fn add(&mut self, piece: &Piece) {
        self.calls += 1;
        self.seconds += piece.seconds;
        if let Some(measured) = piece.measured {
            *self.measured.get_or_insert(0.0) += measured;
        }
        self.floor += piece.modelled.floor;
        self.gaps += piece.modelled.gap;
        self.parts.iter_mut().zip(piece.modelled.parts).for_each(|(sum, part)| *sum += part);
        let Modelled { bound, second, .. } = piece.modelled;
        self.bound[bound as usize] += piece.modelled.seconds;
        self.next[second as usize] += piece.modelled.of(second);
        self.longest += piece.modelled.of(bound);
        self.counters += piece.counters;
        self.dram += piece.traffic.dram();
        self.last = piece.clone();
        let Some(launch) = &piece.launch else { return };
        self.scaling = worse(self.scaling, launch.scaling());
        let sectors = [piece.counters.global_sectors, piece.counters.global_sectors_least];
        // A grid may serve tensors of several shapes, some of which fill their sectors.
        let ratio = |[sectors, least]: [u64; 2]| sectors as f64 / least.max(1) as f64;
        let alike = |other: [u64; 2]| (ratio(other) - ratio(sectors)).abs() <= 0.1 * ratio(sectors);
        let same =
            |shape: &&mut Shape| (shape.grid, shape.block) == (launch.grid, launch.block) && alike(shape.sectors);
        match self.shapes.iter_mut().find(same) {
            Some(shape) => {
                shape.calls += 1;
                shape.seconds += piece.seconds;
                shape.sectors.iter_mut().zip(sectors).for_each(|(sum, count)| *sum += count);
            }
            None => self.shapes.push(Shape {
                grid: launch.grid,
                block: launch.block,
                calls: 1,
                seconds: piece.seconds,
                busiest: piece.modelled.busiest,
                idle: piece.modelled.idle,
                resident_blocks: piece.modelled.occupancy.blocks,
                limit: piece.modelled.occupancy.limit,
                sectors,
                modelled: true,
            }),
        }
    }

    /// As JSON. `measured` says whether the modelled time is calibrated.
    fn json(&self, total: f64, calibrated: bool) -> Value {
        let figures = self.last.figures.as_ref();
        let (second, margin) = self.second();
        let parts: BTreeMap<&str, f64> =
            Part::ALL.into_iter().map(|part| (part.name(), 1e3 * self.parts[part as usize])).collect();
        json!({
            "section": self.section, "kernel": self.kernel, "op": self.module, "calls": self.calls,
            "modelled": true, "note": note(calibrated), "modelled_ms": 1e3 * self.seconds, "share": self.seconds / total,
            "measured_ms": self.measured.map(|seconds| 1e3 * seconds),
            "floor_ms": 1e3 * self.floor, "floor_share": self.floor / self.seconds,
            "bound_by": self.bound_by(), "second": second, "margin": margin, "gaps_ms": 1e3 * self.gaps, "parts_ms": parts,
            "sector_ratio": self.counters.sector_ratio(), "conflict_ratio": self.counters.conflict_ratio(),
            "l2_bytes": 32 * self.counters.global_sectors, "dram_bytes": self.dram, "counters": self.counters,
            "issue_slots": self.slots(), "slots_per_ptx": figures.map(|figures| figures.slots_per_ptx),
            "registers": figures.map(|figures| figures.registers), "spill_bytes": figures.map(|figures| figures.spill),
            "registers_from": figures.map(|figures| if figures.compiled { "ptxas" } else { "the machine's estimate" }),
            "scaling": scaling(self.scaling), "launches": self.shapes,
        })
    }
}

/// How counters of a whole launch were obtained, as text.
pub fn scaling(scaling: Scaling) -> String {
    match scaling {
        Scaling::Exact => "exact".into(),
        Scaling::Uniform { executed } => format!("{executed} equal blocks represent all"),
        Scaling::Sampled { executed, spread } => {
            format!("{executed} blocks, which differ by up to {:.0} %, stand for all", 100.0 * spread)
        }
    }
}

fn worse(a: Scaling, b: Scaling) -> Scaling {
    let rank = |scaling: Scaling| match scaling {
        Scaling::Exact => -2.0,
        Scaling::Uniform { .. } => -1.0,
        Scaling::Sampled { spread, .. } => spread,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// The label of a modelled number.
pub fn note(calibrated: bool) -> &'static str {
    if calibrated { "modelled, corrected by measured times" } else { NEVER }
}

/// A profile of both steps.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run as text.
    pub run: String,
    /// The modelled GPU.
    pub gpu: Gpu,
    /// The measured GPU as text.
    pub measured_on: Option<String>,
    /// Measured seconds of a whole replayed step, by section.
    pub measured_steps: Vec<(&'static str, f64)>,
    /// The GPU whose measured times calibrate the model.
    pub calibrated_by: Option<String>,
    /// In order.
    pub pieces: Vec<Piece>,
    /// By section and kernel, longest time first.
    pub rows: Vec<Row>,
    /// The findings, most expensive kernels first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The kernels of these pieces.
    pub fn rows(pieces: &[Piece]) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for piece in pieces {
            let same = |row: &Row| row.kernel == piece.kernel && row.section == piece.section;
            let at = rows.iter().position(same).unwrap_or_else(|| {
                rows.push(Row::of(piece));
                rows.len() - 1
            });
            rows[at].add(piece);
        }
        rows.iter_mut().for_each(|row| row.shapes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds)));
        rows.sort_by(|a, b| b.section.cmp(&a.section).then(b.seconds.total_cmp(&a.seconds)));
        rows
    }

    /// Pieces of a section, its modelled seconds, and the measured seconds of its whole step, if any.
    pub fn total(&self, section: &str) -> (usize, f64, Option<f64>) {
        let of = || self.pieces.iter().filter(|piece| piece.section == section);
        let measured = self.measured_steps.iter().find(|(name, _)| *name == section).map(|(_, seconds)| *seconds);
        (of().count(), of().map(|piece| piece.seconds).sum(), measured)
    }

    /// All data as JSON.
    pub fn json(&self) -> Value {
        let calibrated = self.calibrated_by.is_some();
        let (training, sampling) = (self.total("training"), self.total("sampling"));
        let total = |section: &str| if section == "training" { training.1 } else { sampling.1 };
        let measured = |total: (usize, f64, Option<f64>)| total.2.map(|seconds| 1e3 * seconds);
        json!({
            "run": self.run, "on": self.gpu.key,
            "device": self.measured_on.clone().unwrap_or_else(|| self.gpu.name.clone()),
            "modelled": true, "note": note(calibrated), "calibrated_by": self.calibrated_by,
            "training_step_ms": 1e3 * training.1, "sampling_step_ms": 1e3 * sampling.1,
            "measured_training_step_ms": measured(training), "measured_sampling_step_ms": measured(sampling),
            "training_nodes": training.0, "sampling_nodes": sampling.0,
            "kernels": self.rows.iter().map(|row| row.json(total(&row.section), calibrated)).collect::<Vec<_>>(),
            "findings": self.findings,
        })
    }
}
