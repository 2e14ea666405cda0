//! The transfer of one file over HTTP: it resumes after an interruption of the network or of the process.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::Agent;
use ureq::config::AutoHeaderValue;

use super::{FetchOptions, check};
use crate::data::dataset::part_path;
use crate::data::official::OfficialFile;
use crate::error::{Error, Result};
use crate::progress::{Activity, Unit};

/// Number of retries of an interrupted transfer before the next server is tried.
const ATTEMPTS: u32 = 5;

/// Downloads `url` to `path`, and checks it.
pub(super) fn download_from(url: &str, file: &OfficialFile, path: &Path, options: &FetchOptions) -> Result<()> {
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
    let task = options.progress.begin(url, Unit::Bytes, Some(file.bytes));
    let mut attempt = 0;
    // Whether the file consists of several pieces, which may come from different versions of it.
    let mut pieces = false;
    let mut restarted = false;
    loop {
        let have = part.seek(SeekFrom::End(0)).map_err(Error::io(&part_path, "write"))?;
        task.at(have.min(file.bytes));
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
        match transfer(&agent, url, file, &mut part, &part_path, &task)? {
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
    task: &Activity,
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
        task.at(have.min(file.bytes));
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

fn unreachable(url: &str, reason: &str) -> Error {
    let message = format!("cannot be fetched: {}", reason.replace('\n', " "));
    let advice = "check the network and run it again (it resumes), or give a mirror with `base_url`";
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
