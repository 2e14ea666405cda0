//! `engine serve`: serves models, with an interactive page.
//!
//! HTTP runs on one thread, the device on another, which owns models and batches ([`crate::pipeline::Batch`]): requests for one
//! model share denoising steps, whatever their settings. Size and precision are properties of the model and the server. Image k of
//! a seed has the same bits whatever else is drawn, and the same as from `engine sample`.

mod api;
mod connection;
#[cfg(test)]
mod description;
mod drawer;
mod events;
mod guard;
mod input;
mod job;
mod kept;
mod limits;
mod metrics;
mod models;
mod openai;
mod order;
mod page;
mod patience;
mod refusal;
mod results;
mod runs;
mod state;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::config::Precision;
use crate::error::{Error, Result};
use crate::ops::host::parallel::install;
use crate::tensor::Device;
use crate::words::counted;

use drawer::{Bench, Command, Drawer};
use guard::Names;
use job::Jobs;
use metrics::Metrics;
use models::Models;
use refusal::Refusal;
use state::{Shared, Stopping};

pub use guard::Keys;
pub use limits::Limits;
pub use runs::Runs;

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Models by file, run folder or name; the first is the default of requests.
    pub models: Vec<PathBuf>,
    /// A folder of more models.
    pub folder: Option<PathBuf>,
    /// The folder for finished jobs, which the next server loads.
    pub keep: Option<PathBuf>,
    /// Run folders to show.
    pub runs: Option<Runs>,
    /// The device, and its name.
    pub device: Device,
    pub note: String,
    /// Dtype of activations, and how products are made; `auto` is f32.
    pub precision: Precision,
    /// Rows of a batch.
    pub rows: usize,
    /// Bytes that models and batches may take.
    pub memory: usize,
    /// The accepted keys.
    pub keys: Keys,
    /// Allowed host names besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Allowed foreign origins.
    pub origins: Vec<String>,
    /// Bounds.
    pub limits: Limits,
    /// Turns advice that names these settings in backticks, as `hosts = NAME`, into the terms of the program that serves.
    pub naming: fn(&str) -> String,
}

impl Settings {
    /// `model` (a file, a run folder, or a name) on the CPU in f32, without keys and without stored jobs, with the standard limits.
    pub fn new(listen: SocketAddr, model: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            models: vec![model.into()],
            folder: None,
            keep: None,
            runs: None,
            device: Device::Cpu,
            note: "cpu".into(),
            precision: Precision::F32,
            rows: 16,
            memory: 4 << 30,
            keys: Keys::default(),
            hosts: Vec::new(),
            origins: Vec::new(),
            limits: Limits::default(),
            naming: str::to_owned,
        }
    }
}

/// Serves until the process is told to stop (SIGTERM, SIGINT), then finishes accepted jobs within [`Limits::grace`]. `say`
/// receives messages for the user.
///
/// # Errors
/// [`Error::Config`] for an address that cannot be used; those of the first model, which is loaded immediately.
pub fn run(settings: Settings, say: impl Fn(&str) + Clone + Send + 'static) -> Result<()> {
    let Settings { listen, device, note, precision, rows, memory, keys, limits, naming, .. } = settings;
    let notes = say.clone();
    let models =
        Models::find(&settings.models, settings.folder.as_deref(), move |text| notes(&format!("note: {text}")))?;
    let refused = |error: std::io::Error| {
        let message = format!("cannot listen on {listen}: {error}");
        Error::config("listen", message, "give another address or port, as in 127.0.0.1:7861")
    };
    let listener = TcpListener::bind(listen).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let (commands, received) = mpsc::channel();
    let metrics = Arc::new(Metrics::default());
    let jobs = Jobs::new(limits.clone(), settings.keep.clone());
    let keeper = settings.keep.map(|folder| keeping(folder, &limits, &models, &jobs, &say)).transpose()?;
    let bench = Bench {
        device,
        precision,
        note: note.clone(),
        naming,
        rows,
        memory,
        time: limits.job,
        metrics: metrics.clone(),
        keeper,
    };
    let drawing = thread::Builder::new().name("device".into());
    let drawing = drawing.spawn(move || install(move || Drawer::new(bench).run(received)));
    let drawing = drawing.map_err(|error| Error::device("device thread", error.to_string(), "free some memory"))?;
    let shared = Arc::new(Shared {
        models,
        jobs,
        metrics,
        limits,
        keys,
        names: Names { hosts: settings.hosts, origins: settings.origins },
        naming,
        runs: settings.runs,
        commands: commands.clone(),
        ready: AtomicBool::new(false),
        stopping: watch::Sender::new(Stopping::No),
        device: note,
        started: Instant::now(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime =
        runtime.map_err(|error| Error::device("the server", error.to_string(), "free some file descriptors"))?;
    let outcome = runtime.block_on(serve(shared, listener, address, say));
    // It has already ended if it panicked.
    let _ = commands.send(Command::Stop);
    let _ = drawing.join();
    outcome
}

/// Loads the jobs that an earlier server stored, and starts the thread that stores new ones.
fn keeping(
    folder: PathBuf,
    limits: &Limits,
    models: &Models,
    jobs: &Jobs,
    say: impl Fn(&str),
) -> Result<mpsc::Sender<Arc<job::Job>>> {
    let known = kept::load(&folder, limits.kept, models, jobs)?;
    if known > 0 {
        let are = if known == 1 { "is" } else { "are" };
        say(&format!("{} {are} known from before", counted(known, "finished job")));
    }
    let (keeper, finished) = mpsc::channel();
    let started = thread::Builder::new().name("keeper".into()).spawn(move || kept::keep(&folder, &finished));
    started.map_err(|error| Error::device("keeper thread", error.to_string(), "free some memory"))?;
    Ok(keeper)
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, address: SocketAddr, say: impl Fn(&str)) -> Result<()> {
    let failed = |error: std::io::Error| Error::device("the server", error.to_string(), "start it again");
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let accepting = tokio::spawn(connection::accept(listener, router(shared.clone()), shared.clone()));
    let (answer, loaded) = oneshot::channel();
    let first = shared.models.all()[0].clone();
    // Without the thread nothing is answered; the error is reported below.
    let _ = shared.commands.send(Command::Load(first.clone(), answer));
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let loaded = tokio::select! {
        loaded = loaded => Some(loaded.map_err(|_| Error::device("the device", "its thread ended", "start it again"))?),
        () = &mut stopped => None,
    };
    if let Some(loaded) = loaded {
        let bytes = loaded
            .map_err(|refusal| Error::device("the first model", refusal.message, "give another with `models`"))?;
        shared.ready.store(true, Ordering::Release);
        let models = shared.models.all().len();
        let others = if models > 1 { format!(" (and {} more)", models - 1) } else { String::new() };
        say(&format!(
            "{}{others}: {} MiB with a full batch, on {}",
            first.name,
            bytes.div_ceil(1 << 20),
            shared.device
        ));
        say(&format!("http://{address}/"));
        stopped.await;
    }
    drain(&shared, say).await;
    // It waits for connections, with its own time limit.
    let _ = accepting.await;
    Ok(())
}

/// Finishes accepted jobs, or reports which were dropped.
async fn drain(shared: &Arc<Shared>, say: impl Fn(&str)) {
    shared.stopping.send_replace(Stopping::Draining);
    let open = shared.jobs.open();
    if !open.is_empty() {
        let (jobs, grace) = (counted(open.len(), "job"), shared.limits.grace.as_secs());
        say(&format!("stopping: finishing {jobs} first, for up to {grace} s"));
    }
    let finished = async {
        for job in &open {
            let mut changed = job.subscribe();
            while !job.state().phase.is_end() {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        }
    };
    if tokio::time::timeout(shared.limits.grace, finished).await.is_err() {
        let dropped = shared.jobs.open();
        for job in &dropped {
            shared.cancel(job);
            job.end(job::Phase::Cancelled, Some("the server stopped".into()));
        }
        let were = if dropped.len() == 1 { "was" } else { "were" };
        say(&format!("stopped: {} {were} dropped", counted(dropped.len(), "job")));
    }
    // Streams need time to report how their jobs ended.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    shared.stopping.send_replace(Stopping::Closing);
}

fn router(shared: Arc<Shared>) -> Router {
    let unknown = || async { Refusal::unknown("there is nothing at this path; see /docs") };
    let other = || async {
        Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take that method; see /docs",
        )
    };
    Router::new()
        .route("/", get(page::index))
        .route("/style.css", get(page::style))
        .route("/script.js", get(page::script))
        .route("/pictures.js", get(page::pictures))
        .route("/icon.svg", get(page::icon))
        .route("/docs", get(page::docs))
        .route("/docs.js", get(page::docs_script))
        .route("/runs", get(page::runs))
        .route("/runs.js", get(page::runs_script))
        .route("/openapi.json", get(page::openapi))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(api::metrics))
        .route("/version", get(api::version))
        .route("/v1/samples", post(api::samples))
        .route("/v1/jobs/{id}", get(api::job).delete(api::cancel))
        .route("/v1/jobs/{id}/events", get(api::events))
        .route("/v1/jobs/{id}/images/{file}", get(api::image))
        .route("/v1/jobs/{id}/{file}", get(api::file))
        .route("/v1/models", get(api::models))
        .route("/v1/models/{name}", get(api::model))
        .route("/v1/images/generations", post(openai::generations))
        .route("/v1/images/edits", post(openai::edits))
        .route("/v1/runs", get(runs::runs))
        .route("/v1/runs/{name}/samples.png", get(runs::samples))
        .fallback(unknown)
        .method_not_allowed_fallback(other)
        .layer(from_fn_with_state(shared.clone(), guard::guard))
        .with_state(shared)
}
