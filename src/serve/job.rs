//! Jobs: what was asked for, how far it is, and what came of it.

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

/// The texts of a picture: keywords and what they hold.
pub type Texts = Vec<(&'static str, String)>;

/// Locks, whatever happened to whoever held the lock before: every state that is stored is whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a picture's metadata says of how it was made.
#[derive(Clone, Debug)]
pub enum Made {
    /// Out of noise: each picture has a recipe of its own.
    Sampled(Box<Recipe>),
    /// Out of given ones.
    Edited(Texts),
}

/// Where a job is.
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
    /// Whether nothing more will come.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What changes about a job.
#[derive(Debug)]
pub struct State {
    /// Where it is.
    pub phase: Phase,
    /// Evaluations of the network for one image each, done and in all.
    pub done: usize,
    pub total: usize,
    /// Why it failed.
    pub error: Option<String>,
    /// When it left the queue.
    pub started: Option<Instant>,
    pub ended: Option<Instant>,
    /// PNGs of what is being drawn, with a number that rises with each.
    pub previews: Vec<Option<(u64, Arc<Vec<u8>>)>>,
    /// The images that are there.
    pub images: Vec<Option<Image>>,
    /// How they were made, once the model is known.
    pub made: Option<Made>,
    shown: u64,
}

/// A job.
#[derive(Debug)]
pub struct Job {
    /// Its name: nobody guesses it.
    pub id: String,
    /// Whose it is.
    pub client: String,
    /// What was asked for.
    pub order: Order,
    /// Its idempotency key.
    pub key: Option<Key>,
    /// Jobs before it, ever.
    pub number: u64,
    /// When it came.
    pub created: Instant,
    cancelled: AtomicBool,
    /// Event streams that want previews.
    watchers: AtomicUsize,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// A job as clients see it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub status: Phase,
    /// The model's name.
    pub model: String,
    /// How many images it has.
    pub count: usize,
    /// Jobs before it in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<usize>,
    /// Evaluations of the network that are done, of each image.
    pub done: usize,
    /// Evaluations in all.
    pub total: usize,
    /// Seconds since it came, or that it took.
    pub seconds: f64,
    /// Seconds that it will still take, while it is being drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where its images are, those that are there.
    pub images: Vec<String>,
    /// The class of each image in words.
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

    /// Changes the state and tells whoever watches.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|version| *version += 1);
    }

    /// Is told of each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks for an end; whoever draws it will see.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether an end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Whether anyone wants to see previews.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Somebody wants previews until what is returned is dropped.
    pub fn watch(self: &Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(self.clone())
    }

    /// Ends it, unless it has ended: with an error, or cancelled.
    pub fn end(&self, phase: Phase, error: Option<String>) {
        self.update(|state| {
            if !state.phase.is_end() {
                (state.phase, state.error, state.ended) = (phase, error, Some(Instant::now()));
                state.previews = Vec::new();
            }
        });
    }

    /// Shows a picture of what is being drawn at a place.
    pub fn show(&self, place: usize, png: Vec<u8>) {
        self.update(|state| {
            state.shown += 1;
            let version = state.shown;
            if let Some(preview) = state.previews.get_mut(place) {
                *preview = Some((version, Arc::new(png)));
            }
        });
    }

    /// The texts of the picture at a place.
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

    /// As clients see it; `place` is its place in the queue.
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

/// Somebody who wants previews.
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
    /// In the order in which they came.
    order: VecDeque<Arc<Job>>,
    /// By client and idempotency key: the digest of the request, and the job.
    keys: HashMap<(String, String), (Vec<u8>, String)>,
    number: u64,
}

impl Table {
    /// Puts a new job at the end.
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

/// All jobs of a server that are not forgotten yet.
#[derive(Debug)]
pub struct Jobs {
    table: Mutex<Table>,
    limits: Limits,
    /// Where finished ones are kept.
    folder: Option<PathBuf>,
}

/// Of an idempotency key.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub digest: Vec<u8>,
}

impl Jobs {
    /// None yet; finished ones that are forgotten go out of `folder` too.
    pub fn new(limits: Limits, folder: Option<PathBuf>) -> Self {
        Self { table: Mutex::default(), limits, folder }
    }

    /// The job that a client's idempotency key means already.
    ///
    /// # Errors
    /// 409 where the key came with another body.
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
    /// 429 where it is full; as [`Jobs::known`].
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

    /// Takes in a job that an earlier server finished.
    pub fn restore(&self, restored: Restored, made: Made, images: Vec<Image>) {
        let job = lock(&self.table).insert(restored);
        job.update(|state| {
            (state.made, state.images) = (Some(made), images.into_iter().map(Some).collect());
            (state.phase, state.ended) = (Phase::Done, Some(job.created));
        });
    }

    /// Forgets a job that was never begun.
    pub fn remove(&self, job: &Job) {
        lock(&self.table).remove(&job.id);
    }

    /// The oldest finished jobs go where there are too many.
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

    /// A client's job by its name.
    ///
    /// # Errors
    /// 404, for another client's too.
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

    /// Jobs that are queued, and that are being drawn.
    pub fn unfinished(&self) -> (usize, usize) {
        let table = lock(&self.table);
        let count = |phase| table.order.iter().filter(|job| job.state().phase == phase).count();
        (count(Phase::Queued), count(Phase::Drawing))
    }

    /// Those that are unfinished.
    pub fn open(&self) -> Vec<Arc<Job>> {
        lock(&self.table).order.iter().filter(|job| !job.state().phase.is_end()).cloned().collect()
    }
}
