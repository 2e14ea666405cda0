//! `engine profile --check`: compares the accepted counters with those of this tree.

use std::path::Path;

use super::machine::PrecisionChoice;
use super::profile::ProfiledRun;
use crate::error::{Error, Result};
use crate::profile::gpu::Gpu;
use crate::profile::keep::{Changes, Kept, KeptFile, compare, sections};
use crate::profile::profile;
use crate::words::counted;

/// Counts each of the file's runs; `update` writes the results to the file.
pub(super) fn run(path: &Path, update: bool, gpu: &Gpu) -> Result<()> {
    let mut file = KeptFile::read(path)?;
    let mut all = Changes::default();
    for kept in &mut file.runs {
        let report = profile(&options(kept, path)?.count(gpu)?, gpu.clone(), None)?;
        let new = sections(&report);
        let changes = compare(kept, &new);
        all.faults.extend(changes.faults);
        all.notes.extend(changes.notes);
        kept.sections = new;
    }
    all.faults.iter().for_each(|line| println!("GREW     {line}"));
    all.notes.iter().for_each(|line| println!("changed  {line}"));
    let (faults, notes) = (all.faults.len(), all.notes.len());
    let command = format!("engine profile --check {} --update", path.display());
    if update {
        file.write(path)?;
        println!("{}: {} accepted", path.display(), counted(faults + notes, "changed counter"));
        return Ok(());
    }
    match all.faults.first() {
        None => {
            let (runs, others) = (counted(file.runs.len(), "run"), counted(notes, "other change"));
            println!("{runs}, no counter grew by more than 2 %, {others}");
            Ok(())
        }
        Some(first) => {
            let more = if faults == 1 { String::new() } else { format!(", and {} more", faults - 1) };
            let advice = format!("reduce the cost, or accept it with `{command}`, and commit the file");
            Err(Error::config(
                path.display().to_string(),
                format!("a counter grew by more than 2 %: {first}{more}"),
                advice,
            ))
        }
    }
}

fn options(kept: &Kept, path: &Path) -> Result<ProfiledRun> {
    let precision = match kept.precision.as_str() {
        "f32" => PrecisionChoice::F32,
        "tf32" => PrecisionChoice::Tf32,
        "bf16" => PrecisionChoice::Bf16,
        other => {
            let message = format!("a precision of `{}`", other.escape_debug());
            return Err(Error::file(path, message, "write f32, tf32 or bf16"));
        }
    };
    Ok(ProfiledRun {
        preset: Some(kept.preset.clone()),
        batch: Some(kept.batch),
        precision: Some(precision),
        set: kept.set.clone(),
        blocks: kept.blocks,
        ..ProfiledRun::default()
    })
}
