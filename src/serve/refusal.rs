//! Errors returned to clients.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Error;

/// A refusal: a status, a code for programs and a message for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// For programs: `queue_full`.
    pub code: &'static str,
    /// One sentence for people.
    pub message: String,
    /// The field concerned, if any.
    pub param: Option<String>,
    /// Seconds to wait before trying again.
    pub retry_after: Option<u64>,
}

/// In the format of OpenAI's clients.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
struct ErrorDetail {
    /// One sentence.
    message: String,
    /// `invalid_request_error` or `server_error`.
    r#type: &'static str,
    /// The field concerned.
    param: Option<String>,
    /// A code for programs.
    code: &'static str,
}

impl Refusal {
    /// With a status, a code and a message.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message)
    }

    /// 400 with the name of the field.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad(message) }
    }

    /// 404.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Adds the seconds to wait.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

/// Fields of the library that have another name in a request.
const RENAMED: &[(&str, &str)] = &[
    ("guidance schedule", "guidance_schedule"),
    ("rounds", "resample"),
    ("rows", "max_batch"),
    ("sampling.eta", "eta"),
    ("sampling.guidance", "guidance"),
    ("sampling.guidance_schedule", "guidance_schedule"),
    ("sampling.num_steps", "steps"),
    ("sampling.sampler", "sampler"),
    ("sampling.schedule", "schedule"),
    ("sampling.temperature", "temperature"),
    ("sampling.timesteps", "timesteps"),
];

/// The request's field.
fn field(place: &str) -> &str {
    RENAMED.iter().find(|(name, _)| *name == place).map_or(place, |(_, field)| field)
}

/// Advice with the request's fields.
fn advised(advice: &str) -> String {
    RENAMED
        .iter()
        .fold(advice.to_string(), |text, (name, field)| text.replace(&format!("`{name}`"), &format!("`{field}`")))
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let plain = |text: &str| text.replace(['\n', '\r'], " ");
        match error {
            Error::Config { place, message, advice } => {
                let place = field(&place);
                Self::field(place, plain(&format!("{place}: {message}; {}", advised(&advice))))
            }
            Error::Shape { .. } | Error::File { .. } => Self::bad(plain(&error.to_string())),
            Error::OutOfMemory { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_memory", plain(&error.to_string()))
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "device_failed", plain(&error.to_string())),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let kind = if self.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let detail = ErrorDetail { message: self.message, r#type: kind, param: self.param, code: self.code };
        let mut response = json(self.status, &ErrorBody { error: detail });
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response of JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // Only our own strings, numbers and lists: serialization cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
