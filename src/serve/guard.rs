//! Access control: keys, host names and origins.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::refusal::Refusal;
use super::state::Shared;
use crate::error::{Error, Result};

/// Most bytes of a key file.
const MAX_BYTES: u64 = 1 << 20;

/// The client: a key's name, or an address.
#[derive(Clone, Debug)]
pub struct Client(pub String);

/// The peer address of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The accepted keys, stored as SHA-256 digests.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<([u8; 32], String)>,
}

impl Keys {
    /// Reads a file with one key per line: its SHA-256 in hexadecimal digits, as `sha256sum` prints it, then an optional name.
    /// Lines that begin with `#` are comments.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for an invalid line or a file without keys.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::io(path, "look at"))?.len();
        if size > MAX_BYTES {
            return Err(Error::file(path, format!("is {size} bytes long"), "give a file with one key per line"));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (digest, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let Some(digest) = from_hex(digest) else {
                let message = format!("line {number} does not begin with a SHA-256 of 64 hexadecimal digits");
                return Err(Error::file(path, message, "make it with `printf %s KEY | sha256sum`"));
            };
            let name = match name.trim() {
                "" | "-" => format!("key {}", keys.len() + 1),
                name => name.to_string(),
            };
            keys.push((digest, name));
        }
        if keys.is_empty() {
            return Err(Error::file(path, "holds no key", "add one with `printf %s KEY | sha256sum`"));
        }
        Ok(Self { keys })
    }

    /// Whether no key is needed.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name of a key. It takes constant time for all keys.
    pub fn name(&self, key: &str) -> Option<&str> {
        let given: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = None;
        for (digest, name) in &self.keys {
            let differ = digest.iter().zip(&given).fold(0u8, |all, (a, b)| all | (a ^ b));
            if std::hint::black_box(differ) == 0 {
                found = Some(name.as_str());
            }
        }
        found
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The allowed host names and origins. The check prevents DNS rebinding: a foreign page can point its own name at this machine.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Allowed names besides `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Allowed foreign origins, as in `https://example.org`.
    pub origins: Vec<String>,
}

impl Names {
    fn knows(&self, authority: &str) -> bool {
        let host = host_of(authority);
        // A page can rebind its own name, but never an address.
        host.eq_ignore_ascii_case("localhost")
            || host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Whether an origin is the server's own, and whether it is an allowed foreign one.
    fn origin(&self, origin: &str, authority: &str) -> (bool, bool) {
        let own = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(authority));
        (own, self.origins.iter().any(|allowed| allowed == origin))
    }
}

/// `[::1]:80` without its port.
fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// Checks each request before anything else, and adds headers to each response.
pub async fn guard(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match check(&shared, &mut request) {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    shared.metrics.response(response.status().as_u16());
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
    }
    if let Some(origin) =
        origin.filter(|origin| shared.names.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()))
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, idempotency-key"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Checks a request and records its client. True for a CORS preflight request.
fn check(shared: &Shared, request: &mut Request) -> Result<bool, Refusal> {
    let headers = request.headers();
    let authority = match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => one(headers, &header::HOST).to_string(),
    };
    if !shared.names.knows(&authority) {
        let message = (shared.naming)("the server is not known by this name; start it with `hosts = NAME`");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "unknown_host", message));
    }
    if headers.contains_key(header::ORIGIN) {
        let (own, allowed) = shared.names.origin(one(headers, &header::ORIGIN), &authority);
        if !own && !allowed {
            let message = "pages of other origins may not send requests; start the server with `origins = ORIGIN`";
            let message = (shared.naming)(message);
            return Err(Refusal::new(StatusCode::FORBIDDEN, "foreign_origin", message));
        }
        if request.method() == Method::OPTIONS {
            return Ok(true);
        }
    }
    let peer = request.extensions().get::<Peer>().map_or(String::new(), |Peer(address)| address.to_string());
    let path = request.uri().path();
    let needs_key = path.starts_with("/v1/") || path == "/metrics";
    let client = if shared.keys.is_empty() || !needs_key {
        peer
    } else {
        let given = one(headers, &header::AUTHORIZATION).split_once(' ');
        let key = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
        let name = key.and_then(|key| shared.keys.name(key));
        let refused = || {
            let message = "a key is needed: send the header `Authorization: Bearer KEY` with one that the server knows";
            Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
        };
        name.ok_or_else(refused)?.to_string()
    };
    request.extensions_mut().insert(Client(client));
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_names_of_every_server() {
        let names = Names { hosts: vec!["models.example.org".into()], origins: vec!["https://a.example".into()] };
        for good in ["localhost:7860", "LOCALHOST", "127.0.0.1:1", "[::1]:7860", "10.0.0.7", "Models.Example.org:443"] {
            assert!(names.knows(good), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "models.example.org.x"] {
            assert!(!names.knows(bad), "{bad}");
        }
        assert_eq!(names.origin("http://localhost:7860", "localhost:7860"), (true, false));
        assert_eq!(names.origin("https://a.example", "localhost:7860"), (false, true));
        for bad in ["null", "http://localhost:1", "http://localhost:78601", "https://a.example.evil"] {
            assert_eq!(names.origin(bad, "localhost:7860"), (false, false), "{bad}");
        }
    }

    #[test]
    fn keys_are_read_and_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let digest = |key: &str| Sha256::digest(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
        std::fs::write(&path, format!("# keys\n\n{}  -\n{} anna\n", digest("one"), digest("two"))).unwrap();
        let keys = Keys::read(&path).unwrap();
        assert_eq!((keys.name("one"), keys.name("two"), keys.name("three")), (Some("key 1"), Some("anna"), None));
        for (bad, part) in [("", "holds no key"), ("one\n", "line 1"), (&format!("{}0\n", digest("x")), "line 1")] {
            std::fs::write(&path, bad).unwrap();
            assert!(Keys::read(&path).unwrap_err().to_string().contains(part), "{bad}");
        }
    }
}
