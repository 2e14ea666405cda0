//! The thread that owns the device: it holds the models and their batches, and chooses which image joins next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::job::{Job, Made, Phase};
use super::metrics::{Metrics, count};
use super::models::Card;
use super::refusal::Refusal;
use crate::config::Precision;
use crate::error::{Error, Result};
use crate::model_file::ModelFile;
use crate::picture::{Image, encode_png};
use crate::pipeline::{Batch, DrawingTask, EditRecipe, Model, Recipe};
use crate::tensor::Device;

/// The shortest time between two previews of a job.
const PREVIEW: Duration = Duration::from_millis(60);

/// A message to the device thread.
pub enum Command {
    /// Accept a job; answers whether the model can draw it.
    Admit(Arc<Job>, oneshot::Sender<Result<(), Refusal>>),
    /// Load a model now; answers with its bytes, including its batch.
    Load(Arc<Card>, oneshot::Sender<Result<usize, Refusal>>),
    /// Check for changes: a job was cancelled.
    Look,
    /// End.
    Stop,
}

/// The configuration of the device thread.
#[derive(Clone)]
pub struct Bench {
    /// The device for computation.
    pub device: Device,
    /// Dtype of activations, and how products are made.
    pub precision: Precision,
    /// The device as text.
    pub note: String,
    /// Turns advice about the settings into the terms of the program that serves.
    pub naming: fn(&str) -> String,
    /// Rows of a batch.
    pub rows: usize,
    /// Most bytes for models and batches.
    pub memory: usize,
    /// Longest time of a job.
    pub time: Duration,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The keeper of finished jobs, which then reports them as done.
    pub keeper: Option<Sender<Arc<Job>>>,
}

/// A model on the device.
struct Loaded {
    card: Arc<Card>,
    model: Model,
    batch: Batch,
    bytes: usize,
    /// When it was last used.
    used: u64,
}

/// A job in progress.
struct Live {
    job: Arc<Job>,
    task: DrawingTask,
    shown: Instant,
}

/// The device's thread.
pub struct Drawer {
    bench: Bench,
    loaded: Vec<Loaded>,
    live: Vec<Live>,
    clock: u64,
}

impl Drawer {
    /// Starts with no model loaded.
    pub fn new(bench: Bench) -> Self {
        Self { bench, loaded: Vec::new(), live: Vec::new(), clock: 0 }
    }

    /// Handles messages until it is told to stop, or all senders are gone.
    pub fn run(mut self, commands: Receiver<Command>) {
        loop {
            let first = if self.live.is_empty() {
                match commands.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return,
                }
            } else {
                None
            };
            for command in first.into_iter().chain(std::iter::from_fn(|| commands.try_recv().ok())) {
                match command {
                    // The receiver of the answer may be gone.
                    Command::Admit(job, answer) => drop(answer.send(self.admit(&job))),
                    Command::Load(card, answer) => {
                        let loaded = self.load(&card).map(|at| self.loaded[at].bytes);
                        drop(answer.send(loaded.map_err(Refusal::from)));
                    }
                    Command::Look => {}
                    Command::Stop => return,
                }
            }
            self.sweep();
            self.step();
        }
    }

    /// Accepts a job.
    fn admit(&mut self, job: &Arc<Job>) -> Result<(), Refusal> {
        let order = &job.order;
        let at = self.load(&order.card)?;
        let model = &self.loaded[at].model;
        let task = DrawingTask::new(model, order.subject.drawing(), &order.request)?;
        if task.rows() > self.loaded[at].batch.capacity() {
            return Err(Refusal::bad("the batch of this server is too small for guidance"));
        }
        let made = match order.subject.edit(order.request.labels.len()) {
            None => Made::Sampled(Box::new(Recipe::new(model, &order.request, &self.bench.note))),
            Some(edit) => Made::Edited(EditRecipe::new(model, &order.request, order.class.as_deref(), edit).text()),
        };
        let (_, total) = task.progress(|_| 0);
        job.update(|state| (state.made, state.total) = (Some(made), total));
        self.live.push(Live { job: job.clone(), task, shown: Instant::now() });
        if self.live.last().is_some_and(|live| live.task.is_done()) {
            self.deliver(self.live.len() - 1);
        }
        Ok(())
    }

    /// The index of a loaded model; loads it if necessary, and evicts others if there is no room.
    fn load(&mut self, card: &Arc<Card>) -> Result<usize> {
        self.clock += 1;
        if let Some(at) = self.loaded.iter().position(|loaded| Arc::ptr_eq(&loaded.card, card)) {
            self.loaded[at].used = self.clock;
            return Ok(at);
        }
        // Check the size of its weights before reading anything.
        self.make_room(card, 4 * card.parameters)?;
        let precision = self.bench.precision;
        let context = precision.context(&self.bench.device);
        let model: Model = ModelFile::open(&card.path)?.load(&context, precision.dtype(), None)?;
        let batch = Batch::new(&model, self.bench.rows)?;
        let bytes = batch.memory(&model);
        self.make_room(card, bytes)?;
        self.loaded.push(Loaded { card: card.clone(), model, batch, bytes, used: self.clock });
        self.count_memory();
        Ok(self.loaded.len() - 1)
    }

    /// Evicts the least recently used models until `bytes` more fit.
    fn make_room(&mut self, card: &Card, bytes: usize) -> Result<()> {
        while self.loaded.iter().map(|loaded| loaded.bytes).sum::<usize>() + bytes > self.bench.memory {
            let busy = |loaded: &Loaded| self.live.iter().any(|live| Arc::ptr_eq(&live.job.order.card, &loaded.card));
            let idle = self.loaded.iter().enumerate().filter(|(_, loaded)| !busy(loaded));
            let Some(oldest) = idle.min_by_key(|(_, loaded)| loaded.used).map(|(at, _)| at) else {
                return Err(Error::OutOfMemory {
                    device: format!("model {}", card.name),
                    needed: bytes as u64,
                    available: self.bench.memory as u64,
                    advice: (self.bench.naming)(
                        "wait until other models are idle, or start the server with more `memory`",
                    ),
                });
            };
            self.loaded.remove(oldest);
        }
        self.count_memory();
        Ok(())
    }

    fn count_memory(&self) {
        let bytes: usize = self.loaded.iter().map(|loaded| loaded.bytes).sum();
        self.bench.metrics.memory.store(bytes as u64, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ends jobs that were cancelled or have taken too long; their rows are free immediately.
    fn sweep(&mut self) {
        let time = self.bench.time;
        let mut at = 0;
        while at < self.live.len() {
            let job = self.live[at].job.clone();
            if job.is_cancelled() {
                self.drop_job(at);
                job.end(Phase::Cancelled, None);
                count(&self.bench.metrics.cancelled);
            } else if job.created.elapsed() > time {
                self.drop_job(at);
                job.end(Phase::Failed, Some(format!("it took longer than {} s", time.as_secs())));
                count(&self.bench.metrics.failed);
            } else {
                at += 1;
            }
        }
    }

    /// Removes a job from its batch.
    fn drop_job(&mut self, at: usize) {
        let live = self.live.remove(at);
        let card = &live.job.order.card;
        if let Some(loaded) = self.loaded.iter_mut().find(|loaded| Arc::ptr_eq(&loaded.card, card)) {
            live.task.underway().iter().for_each(|(ticket, _)| loaded.batch.leave(*ticket));
        }
    }

    /// Runs a step of the model with work that has waited longest.
    fn step(&mut self) {
        let works = |loaded: &Loaded| self.live.iter().any(|live| Arc::ptr_eq(&live.job.order.card, &loaded.card));
        let with_work = self.loaded.iter().enumerate().filter(|(_, loaded)| works(loaded));
        let Some(at) = with_work.min_by_key(|(_, loaded)| loaded.used).map(|(at, _)| at) else { return };
        self.clock += 1;
        self.loaded[at].used = self.clock;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.fill(at)?;
            self.advance(at)
        }));
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the device failed unexpectedly".into(),
        };
        // The batch may be corrupt; the next request reloads the model.
        let card = self.loaded.remove(at).card;
        self.count_memory();
        self.live.retain(|live| {
            let fails = Arc::ptr_eq(&live.job.order.card, &card);
            if fails {
                live.job.end(Phase::Failed, Some(error.clone()));
                count(&self.bench.metrics.failed);
            }
            !fails
        });
    }

    /// Lets images join while there is room: the oldest job of the client with the fewest rows comes first.
    fn fill(&mut self, at: usize) -> Result<()> {
        let loaded = &mut self.loaded[at];
        loop {
            let room = loaded.batch.room();
            let mine = |live: &&Live| Arc::ptr_eq(&live.job.order.card, &loaded.card);
            let rows = |client: &str| -> usize {
                let own = self.live.iter().filter(mine).filter(|live| live.job.client == client);
                own.map(|live| live.task.underway().len() * live.task.rows()).sum()
            };
            let waiting = self.live.iter().enumerate().filter(|(_, live)| mine(live));
            // The next job waits for its rows even if smaller ones would fit, so that it cannot starve.
            let waiting = waiting.filter(|(_, live)| live.task.next_place(usize::MAX).is_some());
            let next = waiting.min_by_key(|(_, live)| (rows(&live.job.client), live.job.number)).map(|(at, _)| at);
            let Some(live) = next.map(|next| &mut self.live[next]) else { return Ok(()) };
            let Some(place) = live.task.next_place(room) else { return Ok(()) };
            let ticket = loaded.batch.join(live.task.joining(place))?;
            live.task.joined(place, ticket);
            if live.job.state().started.is_none() {
                live.job.update(|state| (state.phase, state.started) = (Phase::Drawing, Some(Instant::now())));
            }
        }
    }

    /// Runs the step and distributes the results.
    fn advance(&mut self, at: usize) -> Result<()> {
        let loaded = &mut self.loaded[at];
        let (rows, started) = (loaded.batch.capacity() - loaded.batch.room(), Instant::now());
        let finished = loaded.batch.step()?;
        self.bench.metrics.step(rows, started.elapsed());
        for (ticket, values) in finished {
            for live in self.live.iter_mut().filter(|live| Arc::ptr_eq(&live.job.order.card, &loaded.card)) {
                let place = live.task.underway().iter().find(|(own, _)| *own == ticket).map(|(_, place)| *place);
                let Some(place) = place else { continue };
                // Frames between given images are blended once all are finished.
                if live.task.is_final() {
                    let image = picture(&loaded.card, &values)?;
                    live.job.update(|state| state.images[place] = Some(image));
                }
                live.task.take(&loaded.model, ticket, values)?;
                break;
            }
        }
        let mut done = Vec::new();
        for (number, live) in self.live.iter_mut().enumerate() {
            if !Arc::ptr_eq(&live.job.order.card, &loaded.card) {
                continue;
            }
            let (stages, total) = live.task.progress(|ticket| loaded.batch.stages_done(ticket).unwrap_or(0));
            live.job.update(|state| (state.done, state.total) = (stages, total));
            if live.task.is_done() {
                done.push(number);
            } else if live.job.is_watched() && live.task.is_shown() && live.shown.elapsed() >= PREVIEW {
                live.shown = Instant::now();
                for &(ticket, place) in live.task.underway() {
                    if let Some(values) = loaded.batch.preview(ticket)? {
                        live.job.show(place, encode_png(&picture(&loaded.card, &values)?, &[])?);
                    }
                }
            }
        }
        done.into_iter().rev().for_each(|number| self.deliver(number));
        Ok(())
    }

    /// Delivers a job's images.
    fn deliver(&mut self, at: usize) {
        let Live { job, task, .. } = self.live.remove(at);
        let images: Result<Vec<Image>> =
            task.into_images().iter().map(|values| picture(&job.order.card, values)).collect();
        match images {
            Ok(images) => {
                self.bench.metrics.images.fetch_add(images.len() as u64, std::sync::atomic::Ordering::Relaxed);
                count(&self.bench.metrics.done);
                job.update(|state| {
                    state.started.get_or_insert_with(Instant::now);
                    (state.done, state.images) = (state.total, images.into_iter().map(Some).collect());
                });
                match &self.bench.keeper {
                    Some(keeper) if keeper.send(job.clone()).is_ok() => {}
                    _ => job.end(Phase::Done, None),
                }
            }
            Err(error) => job.end(Phase::Failed, Some(error.to_string())),
        }
    }
}

fn picture(card: &Card, values: &[f32]) -> Result<Image> {
    let [height, width, channels] = card.shape;
    Image::from_signed(width, height, channels, values)
}
