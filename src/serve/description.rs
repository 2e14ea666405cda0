//! The API's description, generated from the handlers and their bodies into `page/openapi.json`, which is served.

use std::collections::BTreeMap;
use std::path::Path;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi, openapi};

/// The refusals of a path, for its description.
type Described = BTreeMap<String, RefOr<openapi::Response>>;

fn described(refusals: &[(u16, &str)]) -> Described {
    let refusal = |&(status, description): &(u16, &str)| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = ResponseBuilder::new().description(description).content("application/json", content).build();
        (status.to_string(), RefOr::T(response))
    };
    refusals.iter().map(refusal).collect()
}

/// Refusals of every request.
pub struct Asks;

/// Refusals of requests for a named object.
pub struct Finds;

/// Refusals of requests for images.
pub struct Posts;

impl IntoResponses for Asks {
    fn responses() -> Described {
        described(&[(401, "A key is needed"), (403, "Another name or origin")])
    }
}

impl IntoResponses for Finds {
    fn responses() -> Described {
        let mut all = Asks::responses();
        all.append(&mut described(&[(404, "Unknown name")]));
        all
    }
}

impl IntoResponses for Posts {
    fn responses() -> Described {
        let mut all = Finds::responses();
        all.append(&mut described(&[
            (400, "An invalid field, which is named"),
            (408, "A body that is too slow"),
            (413, "A body that is too long"),
            (415, "Another content type"),
            (429, "The queue is full"),
            (500, "The device failed"),
            (503, "The server is stopping, or the model does not fit"),
        ]));
        all
    }
}

/// The API's description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "engine",
        description = "Draws images with small diffusion models. Image k of a seed is the same image, bit for bit, whatever else is drawn beside it."
    ),
    paths(
        super::api::samples,
        super::api::job,
        super::api::cancel,
        super::api::events,
        super::api::image,
        super::api::file,
        super::api::models,
        super::api::model,
        super::api::healthz,
        super::api::readyz,
        super::api::metrics,
        super::api::version,
        super::openai::generations,
        super::openai::edits,
        super::runs::runs,
        super::runs::samples,
    )
)]
struct Api;

/// `ENGINE_WRITE_OPENAPI=1` writes the file.
#[test]
fn what_is_served_is_what_the_code_says() {
    let made = Api::openapi().to_pretty_json().unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/page/openapi.json");
    if std::env::var_os("ENGINE_WRITE_OPENAPI").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let served = std::fs::read_to_string(&path).unwrap();
    assert!(served == made, "src/serve/page/openapi.json is stale: run this test with ENGINE_WRITE_OPENAPI=1");
}
