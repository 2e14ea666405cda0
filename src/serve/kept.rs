//! Finished jobs in a folder, so that they survive a killed server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::job::{Job, Jobs, Key, Made, Phase, Texts};
use super::models::Models;
use super::order::{Order, Subject};
use crate::diffusion::SamplingConfig;
use crate::error::{Error, Result};
use crate::picture::Image;
use crate::pipeline::{Recipe, SampleRequest};

/// Longest file that is read: more than the images of a job need.
const LONGEST: u64 = 256 << 20;
/// Keywords of a picture's texts.
const KEYWORDS: [&str; 2] = ["Software", "engine.edit"];

/// The ending of a file that is being written.
const PART: &str = "part";

/// A finished job as stored in its file.
#[derive(Serialize, Deserialize)]
struct Record {
    id: String,
    client: String,
    model: String,
    labels: Vec<usize>,
    sampling: SamplingConfig,
    seed: u64,
    first: u32,
    /// The origin of its pictures: noise, or the texts of edited ones.
    recipe: Option<Recipe>,
    texts: Vec<(String, String)>,
    /// The idempotency key, and the digest of its request.
    key: Option<(String, Vec<u8>)>,
    /// Width, height, channels.
    size: [usize; 3],
    /// Pixels in base64.
    images: Vec<String>,
}

/// The path of a job's file. The name is the engine's own: 32 hexadecimal digits.
fn path(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.job.json"))
}

/// Deletes a job's file.
pub fn forget(folder: &Path, id: &str) {
    // An unfinished job has no file.
    let _ = std::fs::remove_file(path(folder, id));
}

/// Writes each finished job, and only then reports it as done.
pub fn keep(folder: &Path, finished: &Receiver<Arc<Job>>) {
    while let Ok(job) = finished.recv() {
        match record(&job).map_or(Ok(()), |record| write(folder, &record)) {
            Ok(()) => job.end(Phase::Done, None),
            Err(error) => job.end(Phase::Failed, Some(format!("it could not be kept: {error}"))),
        }
    }
}

fn record(job: &Job) -> Option<Record> {
    let request = &job.order.request;
    let state = job.state();
    let images: Vec<&Image> = state.images.iter().flatten().collect();
    let first = images.first()?;
    let (recipe, texts) = match &state.made {
        Some(Made::Sampled(recipe)) => (Some((**recipe).clone()), Vec::new()),
        Some(Made::Edited(texts)) => (None, texts.clone()),
        None => (None, Vec::new()),
    };
    Some(Record {
        id: job.id.clone(),
        client: job.client.clone(),
        model: job.order.card.name.clone(),
        labels: request.labels.clone(),
        sampling: request.sampling.clone(),
        seed: request.seed,
        first: request.first,
        recipe,
        texts: texts.into_iter().map(|(keyword, text)| (keyword.to_string(), text)).collect(),
        key: job.key.as_ref().map(|key| (key.key.clone(), key.digest.clone())),
        size: [first.width(), first.height(), first.channels()],
        images: images.iter().map(|image| BASE64.encode(image.pixels())).collect(),
    })
}

fn write(folder: &Path, record: &Record) -> Result<()> {
    let path = path(folder, &record.id);
    let text = serde_json::to_vec(record).map_err(|error| Error::file(&path, error.to_string(), "report it"))?;
    // Not synced: the file must survive the process, not the machine, and syncing would delay every image. A file damaged by a
    // power cut is ignored.
    let beside = path.with_extension(PART);
    std::fs::write(&beside, &text).and_then(|()| std::fs::rename(&beside, &path)).map_err(Error::io(&path, "write"))
}

/// Loads the jobs that an earlier server stored, newest first, up to the limit. Files that cannot be read, or whose model is gone,
/// are left alone. Returns their number.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be made or listed.
pub fn load(folder: &Path, most: usize, models: &Models, jobs: &Jobs) -> Result<usize> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    let listed = std::fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))?;
    let mut files: Vec<(std::time::SystemTime, PathBuf)> = listed
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            if path.to_string_lossy().ends_with(&format!(".job.{PART}")) {
                // Left by a server that was killed while writing.
                let _ = std::fs::remove_file(&path);
            }
            let is_job = path.to_string_lossy().ends_with(".job.json");
            let data = path.metadata().ok().filter(|data| is_job && data.len() <= LONGEST)?;
            Some((data.modified().ok()?, path))
        })
        .collect();
    files.sort();
    let newest = files.len().saturating_sub(most);
    let mut count = 0;
    for (_, path) in &files[newest..] {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        if let Some((job, made, images)) = restored(&text, models) {
            jobs.restore(job, made, images);
            count += 1;
        }
    }
    Ok(count)
}

/// The data to restore a job.
pub struct Restored {
    pub id: String,
    pub client: String,
    pub order: Order,
    pub key: Option<Key>,
}

fn restored(text: &[u8], models: &Models) -> Option<(Restored, Made, Vec<Image>)> {
    let record: Record = serde_json::from_slice(text).ok()?;
    let card = models.get(Some(&record.model)).ok()?.clone();
    let [width, height, channels] = record.size;
    let image = |text: &String| Image::new(width, height, channels, BASE64.decode(text).ok()?).ok();
    let images: Vec<Image> = record.images.iter().map(image).collect::<Option<_>>()?;
    let is_name = record.id.len() == 32 && record.id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_name || images.len() != record.labels.len() {
        return None;
    }
    let keyword = |name: &str| KEYWORDS.into_iter().find(|known| *known == name);
    let texts: Texts = record.texts.into_iter().filter_map(|(name, text)| Some((keyword(&name)?, text))).collect();
    let made = record.recipe.map_or(Made::Edited(texts), |recipe| Made::Sampled(Box::new(recipe)));
    let Record { labels, sampling, seed, first, .. } = record;
    let request = SampleRequest { labels, sampling, seed, first, batch: 1 };
    let order = Order { card, request, subject: Subject::Noise, class: None };
    let key = record.key.map(|(key, digest)| Key { key, digest });
    Some((Restored { id: record.id, client: record.client, order, key }, made, images))
}
