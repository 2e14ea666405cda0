//! The page, embedded: it loads nothing from other hosts.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// The page may load only its own files, and pictures that it made or was given.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

/// The page.
pub async fn index() -> Response {
    asset("text/html; charset=utf-8", include_str!("page/index.html"))
}

/// Its style.
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("page/style.css"))
}

/// Its script.
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/script.js"))
}

/// Picture input and output: PNG texts, files, the brush.
pub async fn pictures() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/pictures.js"))
}

/// The API's page.
pub async fn docs() -> Response {
    asset("text/html; charset=utf-8", include_str!("page/docs.html"))
}

/// The script of the API's page.
pub async fn docs_script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/docs.js"))
}

/// The runs' page.
pub async fn runs() -> Response {
    asset("text/html; charset=utf-8", include_str!("page/runs.html"))
}

/// The script of the runs' page.
pub async fn runs_script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/runs.js"))
}

/// The icon of the page.
pub async fn icon() -> Response {
    asset("image/svg+xml", include_str!("page/icon.svg"))
}

/// The OpenAPI description. A test generates it from the code and checks that it is current, so that a build needs no generator.
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], include_str!("page/openapi.json"))
        .into_response()
}
