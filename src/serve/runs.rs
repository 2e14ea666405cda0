//! Run folders, shown read-only during training.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::api::Answer;
#[cfg(test)]
use super::description::Finds;
use super::input::{App, aside};
use super::refusal::{Refusal, json};
use crate::config::Config;
use crate::error::{Error, Result};

/// Most listed runs.
const MOST: usize = 500;
/// Most bytes read from the end of `metrics.jsonl`.
const TAIL: u64 = 4 << 20;
/// Most points of a curve.
const POINTS: usize = 500;
/// Most bytes of a picture.
const PICTURE: u64 = 32 << 20;

/// A folder of run folders, or one run folder.
#[derive(Clone, Debug)]
pub struct Runs(PathBuf);

/// A run, as returned to clients.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RunView {
    /// Its folder's name.
    name: String,
    /// The last line of its log.
    #[cfg_attr(test, schema(value_type = Object))]
    last: Value,
    /// Step and training loss.
    loss: Vec<[f64; 2]>,
    /// Step and validation loss.
    validation: Vec<[f64; 2]>,
    /// Seconds since the last write.
    quiet_seconds: Option<f64>,
    /// Estimated seconds of training left.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<f64>,
    /// The newest sheet of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<String>,
}

impl Runs {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be listed.
    pub fn new(path: &Path) -> Result<Self> {
        std::fs::read_dir(path).map_err(Error::io(path, "list the folder"))?;
        Ok(Self(path.to_path_buf()))
    }

    /// The run folders, by name.
    fn folders(&self) -> Vec<(String, PathBuf)> {
        let is_run = |path: &Path| path.join("metrics.jsonl").is_file();
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if is_run(&self.0) {
            let whole = self.0.canonicalize().unwrap_or_else(|_| self.0.clone());
            return vec![(name(&whole), self.0.clone())];
        }
        let listed = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut folders: Vec<(String, PathBuf)> =
            listed.filter(|path| is_run(path)).map(|path| (name(&path), path)).take(MOST).collect();
        folders.sort();
        folders
    }

    fn views(&self) -> Vec<RunView> {
        self.folders().into_iter().filter_map(|(name, path)| view(name, &path)).collect()
    }

    /// The newest sheet of samples of a run.
    fn samples(&self, run: &str) -> Option<PathBuf> {
        let (_, folder) = self.folders().into_iter().find(|(name, _)| name == run)?;
        newest_samples(&folder)
    }
}

fn newest_samples(folder: &Path) -> Option<PathBuf> {
    let listed = std::fs::read_dir(folder.join("samples")).ok()?.flatten().map(|entry| entry.path());
    let pictures = listed.filter(|path| path.extension().is_some_and(|ending| ending == "png") && path.is_file());
    pictures.max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
}

/// The end of a file, starting at a full line.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(if length > TAIL { text.split_once('\n').map(|(_, rest)| rest.to_string()).unwrap_or_default() } else { text })
}

fn view(name: String, folder: &Path) -> Option<RunView> {
    let log = folder.join("metrics.jsonl");
    let text = tail(&log).ok()?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let curve = |keys: &[&str]| -> Vec<[f64; 2]> {
        let point = |line: &Value| {
            let value = keys.iter().find_map(|key| line.get(*key)?.as_f64())?;
            Some([line.get("step")?.as_f64()?, value])
        };
        let all: Vec<[f64; 2]> = lines.iter().filter_map(point).collect();
        let every = all.len().div_ceil(POINTS).max(1);
        // Always keep the last one.
        all.iter().rev().step_by(every).rev().copied().collect()
    };
    let quiet = log.metadata().ok()?.modified().ok().and_then(|time| time.elapsed().ok());
    let last = lines.iter().rev().find(|line| line.get("loss").is_some()).cloned().unwrap_or(Value::Null);
    Some(RunView {
        seconds_left: seconds_left(folder, &last),
        last,
        loss: curve(&["loss"]),
        validation: curve(&["validation_loss", "validation"]),
        quiet_seconds: quiet.map(|time| time.as_secs_f64()),
        samples: newest_samples(folder).map(|_| format!("/v1/runs/{}/samples.png", encoded(&name))),
        name,
    })
}

/// Remaining time of a run at its pace so far, from its configuration.
fn seconds_left(folder: &Path, last: &Value) -> Option<f64> {
    let training = Config::from_file(folder.join("config.yaml")).ok()?.training;
    let of = |key: &str| last.get(key)?.as_f64();
    let (done, all) = match (training.num_steps, training.num_epochs) {
        (Some(steps), _) => (of("step")?, steps as f64),
        (None, Some(epochs)) => (of("epoch")?, epochs as f64),
        (None, None) => return None,
    };
    (done > 0.0).then_some(of("seconds")? * (all - done).max(0.0) / done)
}

/// A name escaped for a URL.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn none() -> Refusal {
    Refusal::unknown("the server shows no runs: start it with a folder of `runs`")
}

/// The runs of the server's folder, each with its curves: read only.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/runs",
    responses((status = 200, body = Vec<RunView>), Finds)
))]
pub async fn runs(State(app): State<App>) -> Answer {
    let runs = app.runs.clone().ok_or_else(none)?;
    let views = aside(move || Ok(runs.views())).await?;
    Ok(json(StatusCode::OK, &views))
}

/// The newest sheet of samples of a run.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/runs/{name}/samples.png",
    params(("name" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "image/png"), Finds)
))]
pub async fn samples(State(app): State<App>, UrlPath(name): UrlPath<String>) -> Answer {
    let runs = app.runs.clone().ok_or_else(none)?;
    let bytes = aside(move || {
        let path = runs.samples(&name).ok_or_else(|| Refusal::unknown("there is no such run with samples"))?;
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(Error::io("samples", "open"))?;
        file.take(PICTURE).read_to_end(&mut bytes).map_err(Error::io("samples", "read"))?;
        Ok(bytes)
    });
    let response: Response =
        ([(header::CONTENT_TYPE, HeaderValue::from_static("image/png"))], bytes.await?).into_response();
    Ok(response)
}
