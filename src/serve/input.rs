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

/// Longest name of a field, and longest rest of an error, in a message.
const NAME: usize = 60;
const LONGEST: usize = 1000;

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
/// 415 for another content type, 400 with the position of an error and, where it is one of a field, the field's name.
pub fn json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Refusal> {
    if media_type(headers) != "application/json" {
        return Err(other_type("application/json"));
    }
    serde_json::from_slice(bytes).map_err(|error| invalid("body", "invalid_json", &error))
}

/// 400 for a body or a form that the parser refuses, with the field's name where the error is about one.
pub fn invalid(what: &str, code: &'static str, error: &serde_json::Error) -> Refusal {
    let text: String = error.to_string().chars().filter(|c| !c.is_control()).collect();
    let message = format!("the {what} is not a valid request: {}", shortened(&text));
    Refusal { param: field_of(&text), ..Refusal::new(StatusCode::BAD_REQUEST, code, message) }
}

/// The field that an error of the parser is about.
fn field_of(text: &str) -> Option<String> {
    let about = ["unknown field `", "missing field `", "duplicate field `"];
    let (name, _) = about.iter().find_map(|about| text.strip_prefix(about))?.split_once('`')?;
    Some(name.chars().take(NAME).collect())
}

/// The error of the parser, in which only quoted text of the client is cut: what follows it, as the list of fields, stays whole.
fn shortened(text: &str) -> String {
    let most = |text: &str, most: usize| match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    };
    // `unknown field `NAME`, expected …`, `invalid type: string "TEXT", expected …`
    let quoted =
        ['`', '"'].into_iter().filter_map(|quote| Some((text.find(quote)? + 1, text.find(", expected")?, quote)));
    match quoted.filter(|(from, to, _)| from < to).min() {
        Some((from, to, quote)) if text[from..to].ends_with(quote) => {
            format!("{}{}{quote}{}", &text[..from], most(&text[from..to - 1], NAME), most(&text[to..], LONGEST))
        }
        _ => most(text, LONGEST),
    }
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Body {
        first: u64,
        second: Option<String>,
    }

    fn refused(text: &str) -> Refusal {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        json::<Body>(&headers, text.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_field_that_is_not_one_is_named_with_those_that_are() {
        let refusal = refused(r#"{"first": 1, "frist": 2}"#);
        assert_eq!(refusal.param.as_deref(), Some("frist"));
        let expected = "unknown field `frist`, expected `first` or `second` at line 1 column 20";
        assert_eq!(refusal.message, format!("the body is not a valid request: {expected}"));
        assert_eq!(refused("{}").param.as_deref(), Some("first"));
        assert_eq!(refused(r#"{"first": 1, "first": 1}"#).param.as_deref(), Some("first"));
        assert_eq!(refused("{").param, None);
    }

    #[test]
    fn long_text_of_a_client_is_cut_and_the_sentence_is_not() {
        for body in [format!(r#"{{"{}": 1}}"#, "x".repeat(5000)), format!(r#"{{"first": "{}"}}"#, "é".repeat(5000))] {
            let message = refused(&body).message;
            assert!(
                message.chars().count() < 250 && message.contains('…') && message.contains(", expected"),
                "{message}"
            );
            assert!(message.contains("at line 1 column "), "{message}");
        }
    }
}
