//! The engine's own API: samples, jobs, models and the state of the server.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

#[cfg(test)]
use super::description::{Asks, Finds, Posts};
use super::events;
use super::guard::Client;
use super::input::{self, App, aside};
use super::job::JobView;
use super::models::Card;
use super::order::{Order, SamplesBody};
#[cfg(test)]
use super::refusal::ErrorBody;
use super::refusal::{Refusal, json};
use super::results::{File, encode};

/// The result of a handler.
pub type Answer = Result<Response, Refusal>;

/// Requests images; the answer is a job.
#[cfg_attr(test, utoipa::path(
    post,
    path = "/v1/samples",
    request_body = SamplesBody,
    params(("idempotency-key" = Option<String>, Header, description = "The same key and body mean the same job.")),
    responses(
        (status = 202, description = "The job", body = JobView),
        (status = 409, description = "The idempotency key was used with another body", body = ErrorBody),
        Posts,
    )
))]
pub async fn samples(State(app): State<App>, Extension(Client(client)): Extension<Client>, request: Request) -> Answer {
    let (parts, bytes) = input::body(request, &app.limits).await?;
    let key = input::key(&parts.headers, &bytes)?;
    if let Some(job) = key.as_ref().map(|key| app.jobs.known(&client, key)).transpose()?.flatten() {
        return Ok(accepted(&app, &job.view(Some(app.jobs.place(&job)))));
    }
    let body: SamplesBody = input::json(&parts.headers, &bytes)?;
    let shared = app.clone();
    let order = aside(move || Order::new(&body, &shared.models, &shared.limits)).await?;
    let job = app.submit(&client, order, key).await?;
    Ok(accepted(&app, &job.view(Some(app.jobs.place(&job)))))
}

fn accepted(_: &App, view: &JobView) -> Response {
    let mut response = json(StatusCode::ACCEPTED, view);
    if let Ok(place) = HeaderValue::try_from(format!("/v1/jobs/{}", view.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// A job: its state, progress and results.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The job", body = JobView),
        Finds,
    )
))]
pub async fn job(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
) -> Answer {
    let job = app.jobs.get(&client, &id)?;
    Ok(json(StatusCode::OK, &job.view(Some(app.jobs.place(&job)))))
}

/// Cancels a job without affecting others. A job that has ended is not changed.
#[cfg_attr(test, utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 202, description = "The job's current state; it ends at the next step", body = JobView),
        Finds,
    )
))]
pub async fn cancel(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
) -> Answer {
    let job = app.jobs.get(&client, &id)?;
    app.cancel(&job);
    Ok(json(StatusCode::ACCEPTED, &job.view(Some(app.jobs.place(&job)))))
}

/// A job's events until it ends, as server-sent events: `job`, `image`, with `previews=1` `preview`, and `end`.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    params(("id" = String, Path), ("previews" = Option<String>, Query, description = "1 for preview pictures")),
    responses(
        (status = 200, description = "Events", body = String, content_type = "text/event-stream"),
        Finds,
    )
))]
pub async fn events(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
    parts: Parts,
) -> Answer {
    let job = app.jobs.get(&client, &id)?;
    Ok(events::own(&app, job, input::query(&parts, "previews") == Some("1")))
}

/// An image of a job, once it is finished; the PNG holds its parameters.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/jobs/{id}/images/{file}",
    params(("id" = String, Path), ("file" = String, Path, description = "The image's index: `0.png`")),
    responses(
        (status = 200, description = "The image", body = Vec<u8>, content_type = "image/png"),
        Finds,
        (status = 409, description = "It is not finished yet", body = ErrorBody),
    )
))]
pub async fn image(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    Path((id, file)): Path<(String, String)>,
) -> Answer {
    let job = app.jobs.get(&client, &id)?;
    let place = file.strip_suffix(".png").and_then(|place| place.parse::<usize>().ok());
    let place = place.filter(|place| *place < job.order.request.labels.len());
    let place = place.ok_or_else(|| Refusal::unknown("the job has no such image; give an index, as in 0.png"))?;
    // Two statements, because the state is locked until the end of a statement.
    let image = job.state().images[place].clone();
    let image = image.ok_or_else(|| not_yet(&job.view(None)))?;
    encode(&job, &[image], File::Png(place)).map(|(kind, bytes)| file_response(kind, bytes))
}

/// All images of a job in one file: `images.npy` (f32 in [0, 1]), `sheet.png`, `animation.gif` or `animation.apng`.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/jobs/{id}/{file}",
    params(
        ("id" = String, Path),
        ("file" = String, Path),
        ("delay" = Option<String>, Query, description = "Duration of a frame in hundredths of a second"),
        ("bounce" = Option<String>, Query, description = "1: append the frames in reverse"),
    ),
    responses(
        (status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "An invalid delay", body = ErrorBody),
        Finds,
        (status = 409, description = "It is not finished yet", body = ErrorBody),
    )
))]
pub async fn file(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    Path((id, name)): Path<(String, String)>,
    parts: Parts,
) -> Answer {
    let job = app.jobs.get(&client, &id)?;
    let delay = input::query(&parts, "delay").map_or(Ok(10), str::parse::<u16>).ok().filter(|delay| *delay > 0);
    let delay = delay.ok_or_else(|| Refusal::field("delay", "delay: give hundredths of a second, 1 to 65535"))?;
    let file = File::named(&name, delay, input::query(&parts, "bounce") == Some("1"))?;
    let images = job.pictures().ok_or_else(|| not_yet(&job.view(None)))?;
    let (kind, bytes) = aside(move || encode(&job, &images, file)).await?;
    Ok(file_response(kind, bytes))
}

fn not_yet(view: &JobView) -> Refusal {
    let status = serde_json::to_value(view.status).unwrap_or_default();
    let message = format!("the job is {}: it has no such file", status.as_str().unwrap_or("unfinished"));
    Refusal::new(StatusCode::CONFLICT, "not_there", message)
}

fn file_response(kind: &'static str, bytes: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // The URL identifies the content permanently.
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600, immutable")),
    ];
    (headers, bytes).into_response()
}

/// A model, as returned to clients.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ModelView {
    /// Its name.
    id: String,
    /// `model`.
    object: &'static str,
    /// Height, width and channels of its images.
    shape: [usize; 3],
    /// Names of its classes.
    classes: Vec<String>,
    /// Whether it can draw unconditional images and use guidance.
    null_label: bool,
    /// Number of trained parameters.
    parameters: usize,
    /// Its architecture.
    kind: String,
    /// Its default sampling settings.
    #[cfg_attr(test, schema(value_type = Object))]
    sampling: serde_json::Value,
    /// Number of noise levels: the most steps.
    noise_levels: usize,
}

/// All models.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ModelsView {
    /// `list`.
    object: &'static str,
    /// The default model comes first.
    data: Vec<ModelView>,
}

/// A model with all details.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ModelDetail {
    /// As in the list.
    #[serde(flatten)]
    model: ModelView,
    /// `ema` or `raw`.
    weights: String,
    /// Number of optimizer steps of its training.
    step: u64,
    /// Mean time so far of a network evaluation for one image, in milliseconds.
    milliseconds_per_evaluation: Option<f64>,
    /// The whole configuration.
    #[cfg_attr(test, schema(value_type = Object))]
    config: serde_json::Value,
}

impl ModelView {
    fn new(card: &Card) -> Self {
        let config = &card.info.config;
        Self {
            id: card.name.clone(),
            object: "model",
            shape: card.shape,
            classes: card.info.class_names(),
            null_label: config.model.null_label().is_some(),
            parameters: card.parameters,
            kind: config.model.kind().to_string(),
            sampling: serde_json::to_value(&config.sampling).unwrap_or_default(),
            noise_levels: config.diffusion.num_steps,
        }
    }
}

/// The available models.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/models",
    responses((status = 200, body = ModelsView), Asks)
))]
pub async fn models(State(app): State<App>) -> Response {
    let data = app.models.all().iter().map(|card| ModelView::new(card)).collect();
    json(StatusCode::OK, &ModelsView { object: "list", data })
}

/// One model: its classes, its configuration, its speed.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/v1/models/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = ModelDetail), Finds)
))]
pub async fn model(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let card = app.models.get(Some(&name))?;
    let mut config = card.info.config.clone();
    // The path of the data is not public.
    config.data.path = None;
    let detail = ModelDetail {
        model: ModelView::new(card),
        weights: card.info.weights.clone(),
        step: card.info.step,
        milliseconds_per_evaluation: app.metrics.seconds_per_row().map(|seconds| 1e3 * seconds),
        config: config.to_json().ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
    };
    Ok(json(StatusCode::OK, &detail))
}

/// Whether the process is alive.
#[cfg_attr(test, utoipa::path(get, path = "/healthz", responses((status = 200, body = String))))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether it accepts jobs: the first model is loaded, and it is not stopping.
#[cfg_attr(test, utoipa::path(
    get,
    path = "/readyz",
    responses((status = 200, body = String), (status = 503, body = String))
))]
pub async fn readyz(State(app): State<App>) -> Response {
    match app.is_ready() {
        true => (StatusCode::OK, "ready\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

/// Metrics for Prometheus.
#[cfg_attr(test, utoipa::path(get, path = "/metrics", responses((status = 200, body = String), Asks)))]
pub async fn metrics(State(app): State<App>) -> Response {
    let (queued, drawing) = app.jobs.unfinished();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    (headers, app.metrics.text(queued, drawing)).into_response()
}

/// Version, device and uptime of the server.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Version {
    name: &'static str,
    version: &'static str,
    /// The device as text.
    device: String,
    seconds: f64,
    /// Whether requests need a key.
    needs_key: bool,
    /// Whether run folders are shown.
    runs: bool,
    /// Most images of a job, and most steps.
    images: usize,
    steps: usize,
}

/// Version, device and uptime of the server.
#[cfg_attr(test, utoipa::path(get, path = "/version", responses((status = 200, body = Version))))]
pub async fn version(State(app): State<App>) -> Response {
    let version = Version {
        name: "engine",
        version: env!("CARGO_PKG_VERSION"),
        device: app.device.clone(),
        seconds: app.started.elapsed().as_secs_f64(),
        needs_key: !app.keys.is_empty(),
        runs: app.runs.is_some(),
        images: app.limits.images,
        steps: app.limits.steps,
    };
    json(StatusCode::OK, &version)
}
