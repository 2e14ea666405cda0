//! Checks the disk space for a run before it starts.

use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result};

/// Room for pictures, logs and TensorBoard's events: far more than an ordinary run writes.
const BESIDES: u64 = 64 << 20;

/// The most bytes that a run of `config` with `numbers` weights has on disk at once: the kept checkpoints, one being written, and
/// the model files.
fn needed_space(config: &Config, numbers: usize) -> u64 {
    let weights = 4 * numbers as u64;
    // A checkpoint has the weights, their average and two moments.
    let checkpoint = 4 * weights;
    let t = &config.training;
    let most = t.num_steps.map_or(u64::MAX, |steps| steps.div_ceil(t.checkpoint_every.max(1)) + 1);
    let kept = (t.keep_checkpoints as u64).min(most) + t.milestone_epochs.len() as u64 + 2;
    kept.saturating_mul(checkpoint).saturating_add(2 * weights + BESIDES)
}

/// Refuses a run of `config` with `numbers` weights in `folder`, which need not exist, if the disk has too little room.
///
/// # Errors
/// [`Error::File`] with the required and the available space.
pub(super) fn check_space(config: &Config, numbers: usize, folder: &Path) -> Result<()> {
    let needed = needed_space(config, numbers);
    match free_space(folder) {
        Some(free) if free < needed => {
            let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
            let message = format!("the run writes up to {}, and its disk has {}", megabytes(needed), megabytes(free));
            let advice =
                "free some space, use another disk with `out`, or keep fewer with `training.keep_checkpoints = 1`";
            Err(Error::file(folder, message, advice))
        }
        _ => Ok(()),
    }
}

/// Free bytes for this user on the disk of `folder`, which need not exist; None if unknown.
fn free_space(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    free_of(there)
}

#[cfg(unix)]
fn free_of(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;

    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: zeros are a valid `statvfs`.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills `found`; the path ends with a zero byte and outlives the call.
    let outcome = unsafe { libc::statvfs(path.as_ptr(), &mut found) };
    #[allow(clippy::unnecessary_cast, reason = "these have other widths on other systems")]
    (outcome == 0).then(|| (found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
}

#[cfg(not(unix))]
fn free_of(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_cannot_fit_is_refused_before_it_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::preset("quickstart").unwrap();
        let few = needed_space(&config, 1_000_000);
        assert!(few > 20_000_000, "{few}");
        check_space(&config, 1_000_000, &folder.path().join("runs/new")).unwrap();
        for set in ["training.keep_checkpoints=1000000", "training.checkpoint_every=1", "training.num_steps=2000000"] {
            config.set(set).unwrap();
        }
        assert!(needed_space(&config, 1_000_000) > 1000 * few);
        let error = check_space(&config, 1_000_000, &folder.path().join("runs/new")).unwrap_err().to_string();
        assert!(error.contains("runs/new: the run writes up to") && error.contains("keep_checkpoints = 1"), "{error}");
    }

    #[test]
    fn free_space_is_that_of_the_nearest_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let near = free_space(&folder.path().join("a/b/c"));
        assert!(cfg!(not(unix)) || near.is_some_and(|free| free > 0));
    }
}
