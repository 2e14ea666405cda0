//! The meaning of the paths given to `engine eval`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Whether a path holds statistics rather than pictures: an archive of arrays with `mu`.
pub(super) fn is_statistics(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "npz")
        && crate::data::read_npz(path).is_ok_and(|arrays| arrays.contains_key("mu") || arrays.contains_key("sigma"))
}

/// The checkpoints of a run, sorted by step.
pub(super) fn checkpoints(run: &Path) -> Result<Vec<PathBuf>> {
    let folder = run.join("checkpoints");
    let entries = std::fs::read_dir(&folder).map_err(Error::io(&folder, "read"))?;
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(&folder, "read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    if found.is_empty() {
        return Err(Error::file(&folder, "there is no checkpoint", "give the folder of a run that has checkpoints"));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
