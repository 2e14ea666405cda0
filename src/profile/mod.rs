//! Where the time of a step goes, without a GPU: counters of the machine that executes PTX, and a model of what they cost on a GPU.
//!
//! `engine profile` runs a training step and a sampling step at their real batch in a child process whose driver is the machine of
//! `tools/ptx-machine`. It executes a few blocks of each launch, spread over the grid, and multiplies; for kernels differ with the batch (tiles,
//! splits of sums), so that no small batch tells of a large one. Where the blocks that ran issued differently many instructions, a kernel is said not
//! to be exact. Every output says "modelled, never measured" until a calibration file has measured times.
//!
//! - [`steps`] runs the steps and writes down what is submitted, [`machine`] starts the child, [`mod@file`] is what both leave;
//! - [`gpu`] has devices as data, [`registers`] what `ptxas` makes of the kernels, [`memory`] which bytes the second-level cache keeps;
//! - [`model`] makes times of all that, [`calibration`] corrects them;
//! - [`report`], [`findings`], [`lines`], [`table`] and [`trace`] tell; [`keep`] holds counters against those that were acknowledged.

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
/// Where what was counted is not what was submitted.
pub fn profile(counted: &Counted, gpu: Gpu, calibration: Option<&Calibration>) -> Result<Report> {
    let pieces = pieces::pieces(counted, &gpu, calibration)?;
    let rows = Report::rows(&pieces);
    let findings = findings::findings(&rows, &counted.machine, &gpu);
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

/// Puts measured times beside the modelled ones.
///
/// # Errors
/// Where other work was measured than was counted.
pub fn beside(report: &mut Report, measured: steps::Measured) -> Result<()> {
    let names = |piece: &pieces::Piece| (piece.section.clone(), piece.launch.is_some().then(|| piece.kernel.clone()));
    let same = report.pieces.len() == measured.nodes.len()
        && report
            .pieces
            .iter()
            .zip(&measured.nodes)
            .all(|(piece, (node, _))| names(piece) == (node.section.clone(), node.kernel.clone()));
    if !same {
        let mend = "count for this device: leave out --counters";
        return Err(crate::Error::device(measured.device, "it runs other work than was counted", mend));
    }
    for (piece, (_, seconds)) in report.pieces.iter_mut().zip(&measured.nodes) {
        piece.measured = Some(*seconds);
    }
    report.rows = Report::rows(&report.pieces);
    (report.measured_on, report.measured_steps) = (Some(measured.device), measured.steps);
    Ok(())
}
