//! OpenAI's images interface, for its clients: a prompt names classes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::response::sse::Event;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as object};

use super::api::Answer;
#[cfg(test)]
use super::description::Posts;
use super::events::{News, follow};
use super::guard::Client;
use super::input::{self, App, aside};
use super::job::{Job, Phase};
use super::order::{ClassField, Given, OneClass, Order, SamplesBody, Subject};
use super::refusal::{Refusal, json};
use super::results::{File, encode};
use super::state::Waiting;
use crate::picture::{Fit, Image};

/// Most fields of a form.
const FIELDS: usize = 40;

/// `POST /v1/images/generations`. `prompt` is a class by name or number, `none`, or several classes separated by commas. `seed`,
/// `steps`, `sampler`, `guidance` and `temperature` are extensions (`extra_body` in OpenAI's clients).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImagesBody {
    pub model: Option<String>,
    pub prompt: Option<String>,
    pub n: Option<usize>,
    /// The model's own size, or `auto`.
    pub size: Option<String>,
    /// `b64_json` or `url`.
    pub response_format: Option<String>,
    /// `png`.
    pub output_format: Option<String>,
    /// 100.
    pub output_compression: Option<u32>,
    /// `auto` or `opaque`.
    pub background: Option<String>,
    /// `auto`.
    pub quality: Option<String>,
    /// Not supported.
    pub style: Option<String>,
    /// `auto` or `low`.
    pub moderation: Option<String>,
    /// Not supported.
    pub input_fidelity: Option<String>,
    pub user: Option<String>,
    pub stream: Option<bool>,
    pub partial_images: Option<u32>,
    pub seed: Option<u64>,
    pub steps: Option<usize>,
    pub sampler: Option<String>,
    pub guidance: Option<f64>,
    pub temperature: Option<f64>,
    /// For edits without a mask: the share of the steps to run.
    pub strength: Option<f64>,
}

/// The response.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ImagesAnswer {
    /// Seconds since 1970.
    created: u64,
    data: Vec<ImageAnswer>,
    background: &'static str,
    output_format: &'static str,
    quality: &'static str,
    size: String,
}

/// One image.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
struct ImageAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl ImagesBody {
    /// Refuses unsupported fields.
    fn check(&self) -> Result<(), Refusal> {
        let words = [
            ("response_format", &self.response_format, &["b64_json", "url"][..]),
            ("output_format", &self.output_format, &["png"]),
            ("background", &self.background, &["auto", "opaque"]),
            ("quality", &self.quality, &["auto", "standard"]),
            ("style", &self.style, &[]),
            ("moderation", &self.moderation, &["auto", "low"]),
            ("input_fidelity", &self.input_fidelity, &[]),
        ];
        for (name, given, taken) in words {
            if let Some(given) = given.as_deref().filter(|given| !taken.contains(given)) {
                let short: String = given.chars().take(30).collect();
                let advice =
                    if taken.is_empty() { "leave it out".into() } else { format!("give {}", taken.join(" or ")) };
                return Err(Refusal::field(
                    name,
                    format!("{name}: `{}` is not supported; {advice}", short.escape_debug()),
                ));
            }
        }
        if self.output_compression.is_some_and(|share| share != 100) {
            return Err(Refusal::field("output_compression", "output_compression: a PNG is lossless; leave it out"));
        }
        match self.partial_images {
            Some(4..) => Err(Refusal::field("partial_images", "partial_images: give 0 to 3")),
            Some(1..) if self.stream != Some(true) => {
                Err(Refusal::field("partial_images", "partial_images: they come with stream = true"))
            }
            _ => Ok(()),
        }
    }

    /// As a request of the engine's own API.
    fn samples(&self, app: &App) -> Result<SamplesBody, Refusal> {
        self.check()?;
        let card = app.models.get(self.model.as_deref())?;
        let prompt = self.prompt.as_deref().map(str::trim).unwrap_or_default();
        let class = match prompt {
            // A model without classes ignores the prompt.
            _ if card.info.config.model.num_classes() == 0 => None,
            "" => {
                return Err(Refusal::field(
                    "prompt",
                    "prompt: give a class of the model, or several separated by commas",
                ));
            }
            one if card.info.class_label(one).is_ok() => Some(ClassField::Name(one.into())),
            several => {
                let names: Vec<&str> = several.split(',').map(str::trim).collect();
                for name in &names {
                    card.info.class_label(name).map_err(|error| Refusal {
                        param: Some("prompt".into()),
                        message: Refusal::from(error).message.replacen("class", "prompt", 1),
                        ..Refusal::bad("")
                    })?;
                }
                Some(ClassField::Several(names.into_iter().map(|name| OneClass::Name(name.into())).collect()))
            }
        };
        let several = matches!(class, Some(ClassField::Several(_)));
        Ok(SamplesBody {
            model: self.model.clone(),
            class,
            count: self.n.or((!several).then_some(1)),
            size: self.size.clone().filter(|size| size != "auto"),
            seed: self.seed,
            steps: self.steps,
            sampler: self.sampler.clone(),
            guidance: self.guidance,
            temperature: self.temperature,
            ..SamplesBody::default()
        })
    }
}

/// Draws images of the classes in a prompt.
#[cfg_attr(test, utoipa::path(
    post,
    path = "/v1/images/generations",
    request_body = ImagesBody,
    responses(
        (status = 200, description = "The images, or with `stream` their events", body = ImagesAnswer),
        Posts,
    )
))]
pub async fn generations(
    State(app): State<App>,
    Extension(Client(client)): Extension<Client>,
    request: Request,
) -> Answer {
    let (parts, bytes) = input::body(request, &app.limits).await?;
    let body: ImagesBody = input::json(&parts.headers, &bytes)?;
    let samples = body.samples(&app)?;
    let order = Order::new(&samples, &app.models, &app.limits)?;
    let job = app.submit(&client, order, None).await?;
    answer(&app, job, &body, &parts.headers, "image_generation").await
}

/// A form of `POST /v1/images/edits`.
#[cfg(test)]
#[derive(utoipa::ToSchema)]
#[allow(dead_code)] // For its schema alone: a form is read field by field.
pub struct EditsForm {
    /// A picture file.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// A picture of the same size; its transparent area is drawn. Without it, the transparent area of `image`; if there is none,
    /// the whole picture is varied by `strength`.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
    /// As in generations.
    prompt: String,
    /// As in generations, like all other fields.
    n: Option<usize>,
}

/// Draws the transparent area of a picture or a mask.
#[cfg_attr(test, utoipa::path(
    post,
    path = "/v1/images/edits",
    request_body(content = EditsForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The images, or with `stream` their events", body = ImagesAnswer),
        Posts,
    )
))]
pub async fn edits(State(app): State<App>, Extension(Client(client)): Extension<Client>, request: Request) -> Answer {
    let (parts, bytes) = input::body(request, &app.limits).await?;
    if input::media_type(&parts.headers) != "multipart/form-data" {
        return Err(input::other_type("multipart/form-data"));
    }
    let (headers, form) = (parts.headers.clone(), form(parts, bytes).await?);
    let samples = form.body.samples(&app)?;
    let (shared, body) = (app.clone(), form.body.clone());
    let order = aside(move || edit(&shared, &samples, form)).await?;
    let job = app.submit(&client, order, None).await?;
    answer(&app, job, &body, &headers, "image_edit").await
}

/// A parsed form.
struct Form {
    body: ImagesBody,
    image: Vec<u8>,
    mask: Option<Vec<u8>>,
}

async fn form(parts: Parts, bytes: Bytes) -> Result<Form, Refusal> {
    let broken = |_| Refusal::bad("the form is broken: its parts or its boundary cannot be read");
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut multipart = Multipart::from_request(request, &())
        .await
        .map_err(|_| Refusal::bad("the form has no boundary: let the client set its content type"))?;
    let (mut fields, mut image, mut mask) = (serde_json::Map::new(), None, None);
    let mut count = 0;
    while let Some(field) = multipart.next_field().await.map_err(broken)? {
        count += 1;
        if count > FIELDS {
            return Err(Refusal::bad(format!("the form has more than {FIELDS} fields")));
        }
        let name = field.name().unwrap_or_default().to_string();
        match name.as_str() {
            "image" | "image[]" if image.is_some() => {
                return Err(Refusal::field("image", "image: only one picture can be edited at a time"));
            }
            "image" | "image[]" => image = Some(field.bytes().await.map_err(broken)?.to_vec()),
            "mask" => mask = Some(field.bytes().await.map_err(broken)?.to_vec()),
            _ => {
                let text = field.text().await.map_err(broken)?;
                // Numbers and booleans are written as in JSON; anything else is text.
                let words = ["model", "prompt", "size", "user", "sampler"];
                let value = match serde_json::from_str::<Value>(&text) {
                    Ok(value @ (Value::Number(_) | Value::Bool(_))) if !words.contains(&name.as_str()) => value,
                    _ => Value::String(text),
                };
                fields.insert(name, value);
            }
        }
    }
    let body = serde_json::from_value(Value::Object(fields))
        .map_err(|error| input::invalid("form", "invalid_value", &error))?;
    let image = image.ok_or_else(|| Refusal::field("image", "image: the form has none"))?;
    Ok(Form { body, image, mask })
}

/// An order to fill the transparent area.
fn edit(app: &App, samples: &SamplesBody, form: Form) -> Result<Order, Refusal> {
    // Check everything else before the picture.
    let mut order = Order::new(samples, &app.models, &app.limits)?;
    let given = Given { limits: &app.limits, fit: Fit::Crop };
    let shape = order.card.shape;
    let picture = given.decode("image", &form.image, [255; 3])?;
    let over = [picture.height(), picture.width()];
    let mask = match &form.mask {
        Some(mask) => Some(transparent(&given, "mask", mask)?),
        None => Some(transparent(&given, "image", &form.image)?).filter(|mask| mask.pixels().contains(&255)),
    };
    let image = given.fitted("image", picture, shape)?;
    order.subject = match mask {
        Some(mask) => Subject::Inpaint { free: given.mask("mask", mask, over, shape)?, image, rounds: 1 },
        None => Subject::Vary { image, strength: form.body.strength.unwrap_or(0.6) },
    };
    Ok(order)
}

/// White where a picture is transparent, else black.
fn transparent(given: &Given, field: &str, bytes: &[u8]) -> Result<Image, Refusal> {
    let [on_black, on_white] = [[0; 3], [255; 3]].map(|background| given.decode(field, bytes, background));
    let (on_black, on_white) = (on_black?.to_rgb(), on_white?.to_rgb());
    let pixels = on_black.pixels().chunks_exact(3).zip(on_white.pixels().chunks_exact(3));
    // Where the background shows through, the picture is missing.
    let pixels = pixels.map(|(black, white)| if white[0].saturating_sub(black[0]) > 127 { 255 } else { 0 }).collect();
    Ok(Image::new(on_black.width(), on_black.height(), 1, pixels)?)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn size(job: &Job) -> String {
    let [height, width, _] = job.order.card.shape;
    format!("{width}x{height}")
}

fn png(job: &Job, place: usize) -> Result<String, Refusal> {
    let image = job.state().images.get(place).cloned().flatten();
    let image = image.ok_or_else(|| Refusal::unknown("the image is gone"))?;
    Ok(BASE64.encode(encode(job, &[image], File::Png(place))?.1))
}

/// Waits for a job, or streams its events. Cancels the job if the client disconnects.
async fn answer(app: &App, job: Arc<Job>, body: &ImagesBody, headers: &HeaderMap, name: &'static str) -> Answer {
    let waiting = Waiting::new(&job, app);
    if body.stream == Some(true) {
        return Ok(stream(app, job, body.partial_images.unwrap_or(0) as usize, name, waiting));
    }
    let mut changed = job.subscribe();
    while !job.state().phase.is_end() {
        if changed.changed().await.is_err() {
            break;
        }
    }
    waiting.keep();
    let (phase, error) = {
        let state = job.state();
        (state.phase, state.error.clone())
    };
    if phase != Phase::Done {
        return Err(failure(phase, error));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let image = |place: usize| -> Result<ImageAnswer, Refusal> {
        Ok(match body.response_format.as_deref() {
            Some("url") => {
                let url = format!("http://{host}/v1/jobs/{}/images/{place}.png", job.id);
                ImageAnswer { b64_json: None, url: Some(url) }
            }
            _ => ImageAnswer { b64_json: Some(png(&job, place)?), url: None },
        })
    };
    let data = (0..job.order.request.labels.len()).map(image).collect::<Result<_, _>>()?;
    let answer = ImagesAnswer {
        created: seconds(),
        data,
        background: "opaque",
        output_format: "png",
        quality: "auto",
        size: size(&job),
    };
    Ok(json(StatusCode::OK, &answer))
}

fn failure(phase: Phase, error: Option<String>) -> Refusal {
    match phase {
        Phase::Cancelled => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled", "the job was cancelled"),
        _ => {
            let message = error.unwrap_or_else(|| "the job failed".into());
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "job_failed", message)
        }
    }
}

/// A job's progress as OpenAI's events. Cancels the job if the client disconnects before its end.
fn stream(app: &App, job: Arc<Job>, partials: usize, name: &'static str, waiting: Waiting) -> Response {
    // Partial images sent for each image.
    let mut sent = vec![0; job.order.request.labels.len()];
    let mut waiting = Some(waiting);
    follow(app, job, partials > 0, move |job, news| match news {
        News::State => None,
        // Evenly spaced over the steps.
        News::Preview(place, png, share) => {
            let before = sent[place];
            (before < partials && share >= before as f64 / (partials + 1) as f64).then(|| {
                sent[place] += 1;
                let data = object!({ "b64_json": BASE64.encode(&*png), "partial_image_index": before });
                event(job, format!("{name}.partial_image"), data)
            })
        }
        News::Image(place) => {
            let details = object!({ "image_tokens": 0, "text_tokens": 0 });
            let usage =
                object!({ "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details });
            let data = object!({ "b64_json": png(job, place).ok()?, "usage": usage });
            Some(event(job, format!("{name}.completed"), data))
        }
        News::End(phase, error) => {
            waiting.take().into_iter().for_each(Waiting::keep);
            (phase != Phase::Done).then(|| {
                let refusal = failure(phase, error);
                let data = object!({ "error": { "message": refusal.message, "type": "server_error", "code": refusal.code, "param": null } });
                Event::default().event("error").data(data.to_string())
            })
        }
    })
}

fn event(job: &Job, kind: String, mut data: Value) -> Event {
    data["type"] = kind.clone().into();
    data["created_at"] = seconds().into();
    for (key, value) in [("background", "opaque"), ("output_format", "png"), ("quality", "auto")] {
        data[key] = value.into();
    }
    data["size"] = size(job).into();
    Event::default().event(kind).data(data.to_string())
}
