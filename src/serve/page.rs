//! The page, embedded: it needs nothing from elsewhere.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// What the page may load: its own files, and pictures that it made or was given.
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

/// How it looks.
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("page/style.css"))
}

/// What it does.
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/script.js"))
}

/// Its pictures in and out: PNG's texts, files, the brush.
pub async fn pictures() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/pictures.js"))
}

/// The API's page.
pub async fn docs() -> Response {
    asset("text/html; charset=utf-8", include_str!("page/docs.html"))
}

/// What the API's page does.
pub async fn docs_script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/docs.js"))
}

/// The runs' page.
pub async fn runs() -> Response {
    asset("text/html; charset=utf-8", include_str!("page/runs.html"))
}

/// What the runs' page does.
pub async fn runs_script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page/runs.js"))
}

/// The little picture in the browser's tab.
pub async fn icon() -> Response {
    asset("image/svg+xml", include_str!("page/icon.svg"))
}

/// The API's description, as OpenAPI has it. It is made of the code by a test, which holds that it is true to it: so its
/// maker is nothing that a build has to wait for.
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], include_str!("page/openapi.json"))
        .into_response()
}
