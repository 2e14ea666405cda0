//! The folder of a run: its layout, its lock, and the removal of old files.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::list_checkpoints;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::write_atomically;

const CONFIG: &str = "config.yaml";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model.safetensors";
const BEST: &str = "best.safetensors";
const CHECKPOINTS: &str = "checkpoints";
const SAMPLES: &str = "samples";
const PLOTS: &str = "plots";
const LOCK: &str = ".lock";

/// A run's folder, locked for this process:
///
/// ```text
/// config.yaml  metrics.jsonl  events.out.tfevents.*  model.safetensors  best.safetensors
/// checkpoints/step-N.safetensors  samples/  plots/
/// ```
///
/// The lock is the operating system's, so it ends with the process in any case.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    lock: File,
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is just starting still holds it.
        let _ = self.lock.unlock();
    }
}

impl RunFolder {
    /// The folder of a new run: `out`, else `runs/NAME`, or `runs/NAME-2` and so on if that exists.
    ///
    /// # Errors
    /// [`Error::Config`] if `out` holds a run, [`Error::File`] if another process trains in it, [`Error::Io`] if it cannot be created.
    pub fn create(out: Option<&Path>, name: &str) -> Result<Self> {
        Self::create_in(Path::new("runs"), out, name)
    }

    fn create_in(runs: &Path, out: Option<&Path>, name: &str) -> Result<Self> {
        if let Some(out) = out {
            refuse_taken(out)?;
            let folder = Self::lock(out)?;
            // Another run may have started and ended in between.
            refuse_taken(out)?;
            return folder.prepared();
        }
        for number in 1u32.. {
            let root = runs.join(if number == 1 { name.to_string() } else { format!("{name}-{number}") });
            if holds_run(&root) {
                continue;
            }
            match Self::lock(&root) {
                Ok(folder) if !holds_run(&root) => return folder.prepared(),
                Ok(_) | Err(Error::File { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("there are fewer runs than numbers")
    }

    /// The folder of a run to resume. Partially written files are removed.
    ///
    /// # Errors
    /// [`Error::Config`] if it holds no run, [`Error::File`] if another process trains in it, [`Error::Io`].
    pub fn resume(root: &Path) -> Result<Self> {
        if !holds_run(root) {
            let message = if root.is_dir() { "this folder holds no run" } else { "there is no such run folder" };
            let advice = "give the folder that training printed at its start, as in `resume = runs/quickstart`";
            return Err(Error::config(format!("resume {}", root.display()), message, advice));
        }
        Self::lock(root)?.prepared()
    }

    fn lock(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io(root, "create the folder"))?;
        let path = root.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io(&path, "open"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { root: root.to_path_buf(), lock: file }),
            Err(TryLockError::WouldBlock) => Err(Error::file(
                root,
                "another process is training in this folder",
                "wait for it or stop it, or give another folder with `out`",
            )),
            Err(TryLockError::Error(fault)) => Err(Error::io(&path, "lock")(fault)),
        }
    }

    /// Creates the subfolders and removes partially written files of an earlier process.
    fn prepared(self) -> Result<Self> {
        for name in [CHECKPOINTS, SAMPLES, PLOTS] {
            let folder = self.root.join(name);
            fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
            remove_parts(&folder, |_| true)?;
        }
        // The folder may hold other files of the user.
        remove_parts(&self.root, |name| [CONFIG, METRICS, MODEL, BEST].iter().any(|own| name.starts_with(own)))?;
        Ok(self)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.yaml`
    pub fn config(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// `metrics.jsonl`
    pub fn metrics(&self) -> PathBuf {
        self.root.join(METRICS)
    }

    /// `model.safetensors`: the newest moving average.
    pub fn model(&self) -> PathBuf {
        self.root.join(MODEL)
    }

    /// `best.safetensors`: the moving average with the lowest validation loss.
    pub fn best(&self) -> PathBuf {
        self.root.join(BEST)
    }

    /// `checkpoints/`
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join(CHECKPOINTS)
    }

    /// `checkpoints/step-N.safetensors`
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join(CHECKPOINTS).join(format!("step-{step}.safetensors"))
    }

    /// `samples/NAME.png`
    pub fn sample(&self, name: &str) -> PathBuf {
        self.root.join(SAMPLES).join(format!("{name}.png"))
    }

    /// `plots/NAME.png`
    pub fn plot(&self, name: &str) -> PathBuf {
        self.root.join(PLOTS).join(format!("{name}.png"))
    }

    /// Writes `config.yaml`.
    ///
    /// # Errors
    /// [`Error::Io`]; an existing file is then unchanged.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        write_atomically(self.config(), config.to_yaml()?.as_bytes())
    }

    /// Removes checkpoints except the newest `keep` and those whose step `keeps` accepts.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prune(&self, keep: usize, keeps: impl Fn(u64) -> bool) -> Result<()> {
        for (step, path) in list_checkpoints(&self.checkpoints())?.into_iter().skip(keep) {
            if !keeps(step) {
                fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

/// Whether the folder holds any file of a run.
fn holds_run(root: &Path) -> bool {
    let any = |names: &[&str]| names.iter().any(|name| root.join(name).exists());
    any(&[CONFIG, METRICS, MODEL, BEST]) || list_checkpoints(&root.join(CHECKPOINTS)).is_ok_and(|list| !list.is_empty())
}

/// A folder given as `out` must not hold a run.
///
/// # Errors
/// [`Error::Config`] with both alternatives.
pub(super) fn refuse_taken(out: &Path) -> Result<()> {
    if out.exists() && !out.is_dir() {
        return Err(Error::config(format!("out {}", out.display()), "this is a file", "give a folder"));
    }
    if holds_run(out) {
        let advice = format!("resume it with `resume = {}`, or give another folder", out.display());
        return Err(Error::config(format!("out {}", out.display()), "this folder already holds a run", advice));
    }
    Ok(())
}

/// Removes the files `*.part` in a folder whose names `own` accepts.
fn remove_parts(folder: &Path, own: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let part = entry.file_name().to_str().is_some_and(|name| name.ends_with(".part") && own(name));
        if part && entry.path().is_file() {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path(), "remove"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_up_past_runs_and_past_runs_under_way() {
        let base = tempfile::tempdir().unwrap();
        let create = || RunFolder::create_in(base.path(), None, "quickstart").unwrap();
        let first = create();
        assert_eq!(first.root(), base.path().join("quickstart"));
        // In use, although still empty.
        assert_eq!(create().root(), base.path().join("quickstart-2"));
        first.write_config(&Config::default()).unwrap();
        drop(first);
        assert_eq!(create().root(), base.path().join("quickstart-2"));
    }

    #[test]
    fn a_folder_takes_one_run_and_one_process() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("run");
        let message = |result: Result<RunFolder>| result.unwrap_err().to_string();
        assert!(message(RunFolder::resume(&out)).contains("no such run folder"));
        let folder = RunFolder::create(Some(&out), "x").unwrap();
        assert!(message(RunFolder::create(Some(&out), "x")).contains("another process"));
        folder.write_config(&Config::default()).unwrap();
        assert!(message(RunFolder::resume(&out)).contains("another process"));
        drop(folder);
        assert!(message(RunFolder::create(Some(&out), "x")).contains("`resume = "));
        assert!(message(RunFolder::create(Some(&out.join(CONFIG)), "x")).contains("is a file"));
        RunFolder::resume(&out).unwrap();
        assert!(message(RunFolder::resume(base.path())).contains("holds no run"));
    }

    #[test]
    fn remains_are_removed_and_strangers_are_left() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("run");
        drop(RunFolder::create(Some(&out), "x").unwrap());
        let remains = ["config.yaml.part", "checkpoints/step-4.safetensors.part", "samples/final.png.17.part"];
        for name in remains.iter().chain(&["film.mkv.part"]) {
            fs::write(out.join(name), b"x").unwrap();
        }
        drop(RunFolder::create(Some(&out), "x").unwrap());
        assert!(remains.iter().all(|name| !out.join(name).exists()));
        assert!(out.join("film.mkv.part").exists());
    }

    #[test]
    fn the_newest_and_the_named_checkpoints_stay() {
        let base = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(Some(base.path()), "x").unwrap();
        for step in [5, 10, 15, 20, 100] {
            fs::write(folder.checkpoint(step), b"x").unwrap();
        }
        folder.prune(2, |step| step == 10).unwrap();
        let left: Vec<u64> =
            list_checkpoints(&folder.checkpoints()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(left, [100, 20, 10]);
    }
}
