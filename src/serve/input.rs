//! Request input: bodies, queries, headers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::job::Key;
use super::limits::Limits;
use super::refusal::Refusal;

/// Longest idempotency key.
const KEY: usize = 200;

/// Reads a whole body within its size and time limits.
///
/// # Errors
/// 413 if it is too long, 408 if too slow, 400 if it breaks off.
pub async fn body(request: Request, limits: &Limits) -> Result<(Parts, Bytes), Refusal> {
    let too_long = || {
        let message = format!("the body is longer than {} bytes", limits.body);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_long", message)
    };
    let (parts, body) = request.into_parts();
    let declared =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limits.body as u64) {
        return Err(too_long());
    }
    // A long body gets more time, at the rate of a slow line.
    let time = limits.arrival + Duration::from_millis(declared.unwrap_or(0) / 64);
    match tokio::time::timeout(time, to_bytes(body, limits.body)).await {
        Ok(Ok(bytes)) => Ok((parts, bytes)),
        Ok(Err(error)) if error.to_string().contains("length limit") => Err(too_long()),
        Ok(Err(_)) => Err(Refusal::bad("the body broke off")),
        Err(_) => {
            let message = "the body did not arrive in time";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
        }
    }
}

/// The media type of a body, without its parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// 415 with the accepted type.
pub fn other_type(taken: &str) -> Refusal {
    let message = format!("the body's content type is not taken here; send {taken}");
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}

/// A JSON body.
///
/// # Errors
/// 415 for another content type, 400 with the position of an error.
pub fn json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Refusal> {
    if media_type(headers) != "application/json" {
        return Err(other_type("application/json"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(300).collect();
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not a valid request: {text}"))
    })
}

/// The idempotency key of a request, with the digest of its body.
///
/// # Errors
/// 400 if it is too long or not text.
pub fn key(headers: &HeaderMap, bytes: &[u8]) -> Result<Option<Key>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=KEY).contains(&key.len()) => {
            Ok(Some(Key { key: key.into(), digest: Sha256::digest(bytes).to_vec() }))
        }
        _ => Err(Refusal::field("idempotency-key", format!("idempotency-key: give 1 to {KEY} letters or digits"))),
    }
}

/// The value of a query's field.
pub fn query<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    let pairs = parts.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

/// Runs slow work on a thread that may block.
///
/// # Errors
/// Those of `work`; 500 if it panics.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let failed = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the work failed unexpectedly");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Shared by the blocking threads.
pub type App = Arc<super::state::Shared>;
