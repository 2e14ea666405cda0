//! Jobs: requests, their progress and results.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::watch;

use super::kept::{self, Restored};
use super::limits::Limits;
use super::order::Order;
use super::refusal::Refusal;
use crate::picture::Image;
use crate::pipeline::Recipe;

/// The texts of a picture: keywords and values.
pub type Texts = Vec<(&'static str, String)>;

/// Locks, ignoring poisoning: every stored state is consistent.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The origin of a picture, for its metadata.
#[derive(Clone, Debug)]
pub enum Made {
    /// From noise: each picture has its own recipe.
    Sampled(Box<Recipe>),
    /// From given pictures.
    Edited(Texts),
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Queued,
    Drawing,
    Done,
    Failed,
    Cancelled,
}

impl Phase {
    /// Whether the job has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// The changing part of a job.
#[derive(Debug)]
pub struct State {
    /// Its state.
    pub phase: Phase,
    /// Evaluations of the network for one image each: done and total.
    pub done: usize,
    pub total: usize,
    /// The error, if it failed.
    pub error: Option<String>,
    /// When it left the queue.
    pub started: Option<Instant>,
    pub ended: Option<Instant>,
    /// PNGs of unfinished images, each with an increasing version.
    pub previews: Vec<Option<(u64, Arc<Vec<u8>>)>>,
    /// The finished images.
    pub images: Vec<Option<Image>>,
    /// Their origins, once the model is known.
    pub made: Option<Made>,
    shown: u64,
}

/// A job.
#[derive(Debug)]
pub struct Job {
    /// Its unguessable identifier.
    pub id: String,
    /// Its client.
    pub client: String,
    /// The request.
    pub order: Order,
    /// Its idempotency key.
    pub key: Option<Key>,
    /// Number of earlier jobs.
    pub number: u64,
    /// When it was accepted.
    pub created: Instant,
    cancelled: AtomicBool,
    /// Number of event streams that want previews.
    watchers: AtomicUsize,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// A job, as returned to clients.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its identifier.
    pub id: String,
    /// Its state.
    pub status: Phase,
    /// The model's name.
    pub model: String,
    /// Number of images.
    pub count: usize,
    /// Jobs before it in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<usize>,
    /// Evaluations of the network done, one per image and step.
    pub done: usize,
    /// Total evaluations.
    pub total: usize,
    /// Seconds since its arrival, or its duration.
    pub seconds: f64,
    /// Remaining seconds, while it is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// URLs of its finished images.
    pub images: Vec<String>,
    /// The class name of each image.
    pub classes: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// The number of the first image.
    pub first: u32,
    /// Sampler, steps, guidance.
    #[cfg_attr(test, schema(value_type = Object))]
    pub sampling: serde_json::Value,
}

impl Job {
    /// Its state, locked: never held over an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and notifies watchers.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|version| *version += 1);
    }

    /// Subscribes to changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Requests cancellation; the device thread notices it.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Whether any stream wants previews.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Requests previews until the returned guard is dropped.
    pub fn watch(self: &Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(self.clone())
    }

    /// Ends it, unless it has already ended: with an error, or cancelled.
    pub fn end(&self, phase: Phase, error: Option<String>) {
        self.update(|state| {
            if !state.phase.is_end() {
                (state.phase, state.error, state.ended) = (phase, error, Some(Instant::now()));
                state.previews = Vec::new();
            }
        });
    }

    /// Stores a preview of the image at an index.
    pub fn show(&self, place: usize, png: Vec<u8>) {
        self.update(|state| {
            state.shown += 1;
            let version = state.shown;
            if let Some(preview) = state.previews.get_mut(place) {
                *preview = Some((version, Arc::new(png)));
            }
        });
    }

    /// The texts of the picture at an index.
    pub fn texts(&self, place: usize) -> Texts {
        let request = &self.order.request;
        match &self.state().made {
            Some(Made::Sampled(recipe)) => {
                let label = request.labels.get(place).copied().unwrap_or_default();
                let name = self.order.card.info.label_names(&[label]).pop().unwrap_or_default();
                let first = request.first.wrapping_add(place as u32);
                let class = (!name.is_empty()).then(|| name.clone());
                let recipe = Recipe { first, single: true, count: 1, images: 1, class, ..(**recipe).clone() };
                let mut texts = recipe.text();
                texts.extend([("engine.image", first.to_string()), ("engine.class", name)]);
                texts
            }
            Some(Made::Edited(texts)) => texts.clone(),
            None => Vec::new(),
        }
    }

    /// As returned to clients; `place` is its position in the queue.
    pub fn view(&self, place: Option<usize>) -> JobView {
        let state = self.state();
        let now = Instant::now();
        let seconds_left = match (state.phase, state.started) {
            (Phase::Drawing, Some(started)) if state.done > 0 => {
                let rate = now.duration_since(started).as_secs_f64() / state.done as f64;
                Some(rate * (state.total - state.done.min(state.total)) as f64)
            }
            _ => None,
        };
        let there = state.images.iter().enumerate().filter(|(_, image)| image.is_some());
        JobView {
            id: self.id.clone(),
            status: state.phase,
            model: self.order.card.name.clone(),
            count: self.order.request.labels.len(),
            place: place.filter(|_| state.phase == Phase::Queued),
            done: state.done,
            total: state.total,
            seconds: state.ended.unwrap_or(now).duration_since(self.created).as_secs_f64(),
            seconds_left,
            error: state.error.clone(),
            images: there.map(|(k, _)| format!("/v1/jobs/{}/images/{k}.png", self.id)).collect(),
            classes: self.order.card.info.label_names(&self.order.request.labels),
            seed: self.order.request.seed,
            first: self.order.request.first,
            sampling: serde_json::to_value(&self.order.request.sampling).unwrap_or_default(),
        }
    }

    /// All images, once it is done.
    pub fn pictures(&self) -> Option<Vec<Image>> {
        let state = self.state();
        (state.phase == Phase::Done).then(|| state.images.iter().flatten().cloned().collect())
    }
}

/// A subscription to previews.
#[derive(Debug)]
pub struct Watching(Arc<Job>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<String, Arc<Job>>,
    /// In the order of arrival.
    order: VecDeque<Arc<Job>>,
    /// By client and idempotency key: the digest of the request, and the job.
    keys: HashMap<(String, String), (Vec<u8>, String)>,
    number: u64,
}

impl Table {
    /// Appends a new job.
    fn insert(&mut self, new: Restored) -> Arc<Job> {
        self.number += 1;
        let Restored { id, client, order, key } = new;
        let count = order.request.labels.len();
        let job = Arc::new(Job {
            id,
            client,
            order,
            key,
            number: self.number,
            created: Instant::now(),
            cancelled: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            state: Mutex::new(State {
                phase: Phase::Queued,
                done: 0,
                total: 0,
                error: None,
                started: None,
                ended: None,
                previews: vec![None; count],
                images: vec![None; count],
                made: None,
                shown: 0,
            }),
            changed: watch::Sender::new(0),
        });
        self.jobs.insert(job.id.clone(), job.clone());
        self.order.push_back(job.clone());
        if let Some(Key { key, digest }) = &job.key {
            self.keys.insert((job.client.clone(), key.clone()), (digest.clone(), job.id.clone()));
        }
        job
    }

    fn remove(&mut self, id: &str) {
        self.jobs.remove(id);
        self.order.retain(|other| other.id != id);
        self.keys.retain(|_, (_, of)| of != id);
    }
}

/// All jobs that the server remembers.
#[derive(Debug)]
pub struct Jobs {
    table: Mutex<Table>,
    limits: Limits,
    /// The folder for finished jobs.
    folder: Option<PathBuf>,
}

/// The data of an idempotency key.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub digest: Vec<u8>,
}

impl Jobs {
    /// Starts empty; finished jobs that are forgotten are also deleted from `folder`.
    pub fn new(limits: Limits, folder: Option<PathBuf>) -> Self {
        Self { table: Mutex::default(), limits, folder }
    }

    /// The earlier job with a client's idempotency key.
    ///
    /// # Errors
    /// 409 if the key came with a different body.
    pub fn known(&self, client: &str, key: &Key) -> Result<Option<Arc<Job>>, Refusal> {
        let table = lock(&self.table);
        let Some((digest, id)) = table.keys.get(&(client.to_string(), key.key.clone())) else { return Ok(None) };
        if *digest != key.digest {
            let message = "the idempotency key was used with another request; give a new key";
            return Err(Refusal::new(StatusCode::CONFLICT, "idempotency_key_reused", message));
        }
        Ok(table.jobs.get(id).cloned())
    }

    /// Puts an order into the queue.
    ///
    /// # Errors
    /// 429 if it is full; as [`Jobs::known`].
    pub fn add(
        &self,
        client: &str,
        order: Order,
        key: Option<Key>,
        retry_after: u64,
    ) -> Result<(Arc<Job>, bool), Refusal> {
        if let Some(job) = key.as_ref().map(|key| self.known(client, key)).transpose()?.flatten() {
            return Ok((job, false));
        }
        let mut table = lock(&self.table);
        self.forget(&mut table);
        let unfinished = table.order.iter().filter(|job| !job.state().phase.is_end()).count();
        if unfinished >= self.limits.queue {
            let message = format!("the queue is full: {unfinished} jobs are unfinished; try again later");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).retry_after(retry_after));
        }
        let id = format!("{:032x}", rand::random::<u128>());
        Ok((table.insert(Restored { id, client: client.to_string(), order, key }), true))
    }

    /// Adds a job that an earlier server finished.
    pub fn restore(&self, restored: Restored, made: Made, images: Vec<Image>) {
        let job = lock(&self.table).insert(restored);
        job.update(|state| {
            (state.made, state.images) = (Some(made), images.into_iter().map(Some).collect());
            (state.phase, state.ended) = (Phase::Done, Some(job.created));
        });
    }

    /// Forgets a job that was never started.
    pub fn remove(&self, job: &Job) {
        lock(&self.table).remove(&job.id);
    }

    /// Removes the oldest finished jobs over the limit.
    fn forget(&self, table: &mut Table) {
        let bytes =
            |job: &Arc<Job>| job.state().images.iter().flatten().map(|image| image.pixels().len()).sum::<usize>();
        let finished: Vec<Arc<Job>> = table.order.iter().filter(|job| job.state().phase.is_end()).cloned().collect();
        let mut all: usize = finished.iter().map(bytes).sum();
        let mut left = finished.len();
        for job in &finished {
            if left <= self.limits.kept && all <= self.limits.kept_bytes {
                return;
            }
            (left, all) = (left - 1, all - bytes(job));
            table.remove(&job.id);
            self.folder.iter().for_each(|folder| kept::forget(folder, &job.id));
        }
    }

    /// A client's job by its identifier.
    ///
    /// # Errors
    /// 404, also for another client's job.
    pub fn get(&self, client: &str, id: &str) -> Result<Arc<Job>, Refusal> {
        let job = lock(&self.table).jobs.get(id).cloned();
        job.filter(|job| job.client == client)
            .ok_or_else(|| Refusal::unknown("there is no such job: it never existed, or newer jobs have displaced it"))
    }

    /// Jobs before one in the queue.
    pub fn place(&self, job: &Job) -> usize {
        let before = |other: &&Arc<Job>| other.number < job.number && other.state().phase == Phase::Queued;
        lock(&self.table).order.iter().filter(before).count()
    }

    /// Numbers of queued and running jobs.
    pub fn unfinished(&self) -> (usize, usize) {
        let table = lock(&self.table);
        let count = |phase| table.order.iter().filter(|job| job.state().phase == phase).count();
        (count(Phase::Queued), count(Phase::Drawing))
    }

    /// The unfinished jobs.
    pub fn open(&self) -> Vec<Arc<Job>> {
        lock(&self.table).order.iter().filter(|job| !job.state().phase.is_end()).cloned().collect()
    }
}
