//! State shared by all requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use axum::http::StatusCode;
use tokio::sync::{oneshot, watch};

use super::drawer::Command;
use super::guard::{Keys, Names};
use super::job::{Job, Jobs, Key};
use super::limits::Limits;
use super::metrics::{Metrics, count};
use super::models::Models;
use super::order::Order;
use super::refusal::Refusal;
use super::runs::Runs;

/// The shutdown phase of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopping {
    /// Serving.
    No,
    /// No new jobs; accepted ones are finished.
    Draining,
    /// Event streams end.
    Closing,
}

/// Waits until the server closes.
pub async fn closing(stopping: &mut watch::Receiver<Stopping>) {
    // A dropped server has closed too.
    let _ = stopping.wait_for(|stopping| *stopping == Stopping::Closing).await;
}

/// State shared by all requests.
pub struct Shared {
    /// The models by name.
    pub models: Models,
    /// All jobs.
    pub jobs: Jobs,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub limits: Limits,
    /// The accepted keys.
    pub keys: Keys,
    /// The allowed host names and origins.
    pub names: Names,
    /// Turns advice about the settings into the terms of the program that serves.
    pub naming: fn(&str) -> String,
    /// Run folders to show.
    pub runs: Option<Runs>,
    /// Sender to the device thread.
    pub commands: Sender<Command>,
    /// Whether the first model is loaded.
    pub ready: AtomicBool,
    /// The shutdown phase.
    pub stopping: watch::Sender<Stopping>,
    /// The device as text.
    pub device: String,
    /// When it was started.
    pub started: Instant,
}

/// Cancels a job whose client has gone.
pub struct Waiting(Option<Arc<Job>>, Arc<Shared>);

impl Waiting {
    /// Active while the returned guard lives.
    pub fn new(job: &Arc<Job>, shared: &Arc<Shared>) -> Self {
        Self(Some(job.clone()), shared.clone())
    }

    /// The client has received the job's identifier.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(job) = self.0.take() {
            self.1.cancel(&job);
        }
    }
}

impl Shared {
    /// Whether it still accepts jobs.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow() > Stopping::No
    }

    /// Cancels a job; its rows are free at the next step.
    pub fn cancel(&self, job: &Job) {
        job.cancel();
        // Without the device thread nothing is drawn anyway.
        let _ = self.commands.send(Command::Look);
    }

    /// Puts an order into the queue and waits until it is clear whether it can be drawn.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 while the server stops, 409 for a reused key; those of the model.
    pub async fn submit(self: &Arc<Self>, client: &str, order: Order, key: Option<Key>) -> Result<Arc<Job>, Refusal> {
        if self.is_stopping() {
            let message = "the server is stopping and takes no new jobs";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).retry_after(5));
        }
        let (job, is_new) = self.jobs.add(client, order, key, 2).inspect_err(|refusal| {
            if refusal.status == StatusCode::TOO_MANY_REQUESTS {
                count(&self.metrics.turned_away);
            }
        })?;
        if !is_new {
            return Ok(job);
        }
        let waiting = Waiting::new(&job, self);
        let (answer, answered) = oneshot::channel();
        let gone = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the device's thread has ended");
        let sent = self.commands.send(Command::Admit(job.clone(), answer));
        let outcome = match sent {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(gone()),
        };
        waiting.keep();
        match outcome {
            Ok(()) => Ok(job),
            Err(refusal) => {
                self.jobs.remove(&job);
                Err(refusal)
            }
        }
    }

    /// Whether the first model is loaded and jobs are accepted.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_stopping()
    }
}
