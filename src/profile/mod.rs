//! The time of a step without a GPU: counters from a machine that executes PTX, and a model of their cost on a GPU.
//!
//! `engine profile` runs a training step and a sampling step at their real batch size in a child process whose driver is
//! `tools/ptx-machine`. It executes a few blocks of each launch, spread over the grid, and scales up; kernels depend on the batch
//! (tiles, splits of sums), so a small batch would mislead. If the executed blocks issued different numbers of instructions, a
//! kernel is reported as inexact. Every output says "modelled, never measured" until a calibration file provides measured times.
//!
//! - [`steps`] runs the steps and records the submitted work, [`machine`] starts the child process, [`mod@file`] has their data;
//! - [`gpu`] has the devices, [`registers`] the results of `ptxas`, [`memory`] the traffic of the second-level cache;
//! - [`model`] computes times, [`calibration`] corrects them;
//! - [`report`], [`findings`], [`lines`], [`table`] and [`trace`] are the output; [`keep`] compares counters with accepted ones.

pub mod calibration;
pub mod counters;
pub mod file;
pub mod findings;
pub mod gpu;
pub mod keep;
pub mod lines;
pub mod machine;
pub mod memory;
pub mod model;
pub mod pieces;
pub mod record;
pub mod registers;
pub mod report;
pub mod steps;
pub mod table;
pub mod trace;

use crate::error::Result;
use calibration::Calibration;
use file::Counted;
use gpu::Gpu;
use report::Report;

/// The profile of counted steps on a GPU.
///
/// # Errors
/// If the counted work is not the submitted work.
pub fn profile(counted: &Counted, gpu: Gpu, calibration: Option<&Calibration>) -> Result<Report> {
    let texts = lines::texts(&counted.machine);
    let pieces = pieces::pieces(counted, &texts, &gpu, calibration)?;
    let rows = Report::rows(&pieces);
    let findings = findings::findings(&rows, &counted.machine, &texts, &gpu);
    Ok(Report {
        run: counted.run.clone(),
        gpu,
        measured_on: None,
        measured_steps: Vec::new(),
        calibrated_by: calibration.map(|calibration| calibration.device.clone()),
        pieces,
        rows,
        findings,
    })
}

/// Adds measured times.
///
/// # Errors
/// If the measured work is not the counted work.
pub fn beside(report: &mut Report, measured: steps::Measured) -> Result<()> {
    let names = |piece: &pieces::Piece| (piece.section.clone(), piece.launch.is_some().then(|| piece.kernel.clone()));
    let same = report.pieces.len() == measured.nodes.len()
        && report
            .pieces
            .iter()
            .zip(&measured.nodes)
            .all(|(piece, (node, _))| names(piece) == (node.section.clone(), node.kernel.clone()));
    if !same {
        let advice = "count for this device: leave out `counters`";
        return Err(crate::Error::device(measured.device, "it runs other work than was counted", advice));
    }
    for (piece, (_, seconds)) in report.pieces.iter_mut().zip(&measured.nodes) {
        piece.measured = Some(*seconds);
    }
    report.rows = Report::rows(&report.pieces);
    (report.measured_on, report.measured_steps) = (Some(measured.device), measured.steps);
    Ok(())
}
