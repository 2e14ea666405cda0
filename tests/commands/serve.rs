//! `engine serve`: the same bits as `engine sample`, whatever else it draws; limits; shutdown.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use engine::config::Config;
use engine::picture::{Image, decode_picture, encode_png};
use engine::pipeline::Model;
use engine::tensor::{Context, DType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::serve_client::{Server, response};

/// A small untrained model, in `model.safetensors`.
fn folder() -> tempfile::TempDir {
    let mut config = Config::preset("quickstart").unwrap();
    for set in ["model.conditioning=token", "model.hidden_dim=32", "model.depth=1", "model.condition_hidden_dim=32"] {
        config.set(set).unwrap();
    }
    let mut model = Model::untrained(&config, &Context::cpu(), DType::F32, 5).unwrap();
    let flat = model.parameters.flat_len();
    let weights: Vec<f32> = (0..flat).map(|i| 0.2 * ((i as f32 * 0.7).sin() + (i as f32 * 0.013).cos())).collect();
    model.parameters.set_flat(&weights).unwrap();
    let names = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "stripes", "arrow", "half"];
    model.info.classes = names.map(String::from).to_vec();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path().join("small.safetensors")).unwrap();
    folder
}

fn server(folder: &Path, options: &[&str]) -> Server {
    Server::start(folder, &[&["--model", "small.safetensors"], options].concat())
}

fn pixels(png: &[u8]) -> Vec<u8> {
    decode_picture(png, [255; 3]).unwrap().image.into_pixels()
}

/// A slow request.
fn long() -> Value {
    json!({ "class": "star", "count": 16, "steps": 1000, "sampler": "heun" })
}

/// The output of `engine sample`: the pixels of each image.
fn sampled(folder: &Path, options: &[&str]) -> Vec<Vec<u8>> {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.current_dir(folder).args(["sample", "--quiet", "--device", "cpu", "--model", "small.safetensors"]);
    let status = command.args(options).arg("--out").arg(out.path()).status().unwrap();
    assert!(status.success());
    let mut paths: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| pixels(&std::fs::read(path).unwrap())).collect()
}

#[test]
fn an_image_is_the_same_alone_in_company_after_a_cancel_after_a_restart_and_by_the_command() {
    let folder = folder();
    let expected = sampled(
        folder.path(),
        &["--class", "star", "--count", "3", "--steps", "7", "--seed", "11", "--guidance", "2.5"],
    );
    let body = json!({ "class": "star", "count": 3, "steps": 7, "seed": 11, "guidance": 2.5 });
    let drawn = |server: &Server| -> Vec<Vec<u8>> {
        server.pictures(&server.submit(&body)).iter().map(|png| pixels(png)).collect()
    };
    let first = server(folder.path(), &["--max-batch", "9"]);
    assert_eq!(drawn(&first), expected, "alone");
    let others: Vec<Value> = ["ddim", "heun", "dpmpp2m"]
        .iter()
        .enumerate()
        .map(|(k, sampler)| {
            json!({ "class": k, "count": 2 + k, "steps": 5 + 3 * k, "sampler": sampler, "seed": k, "guidance": 1 + k, "temperature": 0.8 })
        })
        .collect();
    let ids: Vec<String> = others.iter().map(|other| first.submit(other)).collect();
    assert_eq!(drawn(&first), expected, "in company");
    let cancelled = first.submit(&long());
    let own = first.submit(&body);
    assert_eq!(first.request("DELETE", &format!("/v1/jobs/{cancelled}"), &[], b"").status, 202);
    let images: Vec<Vec<u8>> = first.pictures(&own).iter().map(|png| pixels(png)).collect();
    assert_eq!(images, expected, "beside one that was cancelled");
    assert_eq!(first.wait(&cancelled)["status"], "cancelled");
    for id in ids {
        assert_eq!(first.wait(&id)["status"], "done");
    }
    drop(first);
    let second = server(folder.path(), &[]);
    assert_eq!(drawn(&second), expected, "after a restart");

    // The PNG holds its parameters: the command reproduces it from them.
    let png = second.pictures(&second.submit(&body))[1].clone();
    std::fs::write(folder.path().join("served.png"), &png).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.current_dir(folder.path()).args([
        "sample",
        "--quiet",
        "--device",
        "cpu",
        "--like",
        "served.png",
        "--out",
        "again.png",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(pixels(&std::fs::read(folder.path().join("again.png")).unwrap()), expected[1]);
}

#[test]
fn results_come_in_every_form() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let id = server.submit(&json!({ "class": ["star", 3, "none"], "steps": 2 }));
    let singles: Vec<Vec<u8>> = server.pictures(&id).iter().map(|png| pixels(png)).collect();
    assert_eq!(singles.len(), 3);
    let npy = server.get(&format!("/v1/jobs/{id}/images.npy"));
    let npy = npyz::NpyFile::new(npy.body.as_slice()).unwrap();
    assert_eq!(npy.shape(), [3, 32, 32, 3]);
    let values: Vec<f32> = npy.into_vec().unwrap();
    assert_eq!(values[..singles[0].len()], singles[0].iter().map(|v| f32::from(*v) / 255.0).collect::<Vec<_>>()[..]);
    for (file, kind) in [("sheet.png", "image/png"), ("animation.gif", "image/gif"), ("animation.apng", "image/apng")] {
        let response = server.get(&format!("/v1/jobs/{id}/{file}?bounce=1&delay=5"));
        assert_eq!((response.status, response.header("content-type")), (200, Some(kind)), "{file}");
        assert!(decode_picture(&response.body, [0; 3]).is_ok(), "{file}");
    }
    for (path, status) in [("images/9.png", 404), ("images/x", 404), ("other.zip", 404), ("images.npy?delay=0", 400)] {
        assert_eq!(server.get(&format!("/v1/jobs/{id}/{path}")).status, status, "{path}");
    }
    let model = server.get("/v1/models/small").json();
    assert_eq!((&model["shape"], &model["classes"][3]), (&json!([32, 32, 3]), &json!("star")));
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "small");
    assert_eq!((server.get("/healthz").status, server.get("/readyz").status), (200, 200));
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(
        metrics.contains("engine_images_total 3\n") && metrics.contains("engine_jobs{state=\"queued\"} 0\n"),
        "{metrics}"
    );
    assert!(server.get("/openapi.json").json()["paths"]["/v1/samples"]["post"].is_object());
    for page in ["/", "/docs", "/style.css", "/script.js", "/pictures.js", "/runs", "/icon.svg"] {
        let response = server.get(page);
        assert!(response.status == 200 && response.header("content-security-policy").is_some(), "{page}");
        assert!(response.body.len() > 100, "{page}");
    }
    // The device is named as in files; why it is no GPU is told by `engine doctor`.
    assert_eq!(server.get("/version").json()["device"], "cpu");
    let text = |page: &str| String::from_utf8(server.get(page).body).unwrap();
    let (index, docs) = (text("/"), text("/docs"));
    for part in [">Interpolate</button>", ">Remove</button>", ">Delete all</button>", ">Use as A</button>"] {
        assert!(index.contains(part), "{part}");
    }
    assert!(docs.contains("API reference") && docs.contains("One-line examples"), "{docs}");
    // The script puts the page's own address in place of the default one.
    assert!(
        docs.contains("<pre id=\"examples\">curl -s localhost:7860/") && text("/docs.js").contains("location.host")
    );
}

/// A picture of the small model's size as a data URL.
fn picture(width: usize, height: usize) -> String {
    let pixels = (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect();
    let png = encode_png(&Image::new(width, height, 3, pixels).unwrap(), &[]).unwrap();
    format!("data:image/png;base64,{}", BASE64.encode(png))
}

#[test]
fn given_pictures_are_varied_filled_in_enlarged_and_walked_between() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let (image, small) = (picture(32, 32), picture(16, 16));
    let given = decode_picture(&BASE64.decode(image.split_once(',').unwrap().1).unwrap(), [0; 3]).unwrap().image;
    let mask: Vec<u8> = (0..32 * 32).map(|i| if i % 32 < 16 { 255 } else { 0 }).collect();
    let mask = BASE64.encode(encode_png(&Image::new(32, 32, 1, mask).unwrap(), &[]).unwrap());
    let draw = |body: Value| -> Vec<Vec<u8>> {
        server.pictures(&server.submit(&body)).iter().map(|png| pixels(png)).collect()
    };
    let varied = draw(json!({ "class": "star", "steps": 3, "vary": { "image": image, "strength": 0 } }));
    assert_eq!(varied, [given.pixels()]);
    let filled = draw(
        json!({ "class": "star", "steps": 3, "sampler": "ddim", "count": 2, "inpaint": { "image": image, "mask": mask, "resample": 2 } }),
    );
    for filled in &filled {
        for (at, (ours, theirs)) in filled.iter().zip(given.pixels()).enumerate() {
            assert!((at / 3) % 32 < 16 || ours == theirs, "pixel {} is kept", at / 3);
        }
    }
    assert_ne!(filled[0], filled[1]);
    assert_eq!(draw(json!({ "class": 1, "steps": 3, "upscale": { "image": small, "factor": 2 } })).len(), 1);
    let between =
        draw(json!({ "class": "star", "steps": 3, "count": 4, "interpolate": { "images": [image, picture(40, 32)] } }));
    assert_eq!((between.len(), &between[0][..]), (4, given.pixels()));
    let seeds =
        draw(json!({ "class": "star", "steps": 3, "count": 3, "sampler": "ddim", "interpolate": { "seeds": [1, 2] } }));
    assert_eq!(seeds[0], draw(json!({ "class": "star", "steps": 3, "count": 1, "sampler": "ddim", "seed": 1 }))[0]);
}

#[test]
fn events_tell_all_and_end() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    // Long enough for a preview, every 60 ms, on a fast machine too.
    let id = server.submit(&json!({ "class": "star", "count": 2, "steps": 500, "sampler": "heun" }));
    let events = server.get(&format!("/v1/jobs/{id}/events?previews=1"));
    assert_eq!((events.status, events.header("content-type")), (200, Some("text/event-stream")));
    let text = String::from_utf8(events.body).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((names.first(), names.last()), (Some(&"job"), Some(&"end")), "{names:?}");
    assert_eq!(names.iter().filter(|name| **name == "image").count(), 2);
    assert!(names.contains(&"preview"), "{names:?}");
    let datas: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert!(
        datas.iter().any(|data| data["image"].as_str().is_some_and(|url| url.starts_with("data:image/png;base64,")))
    );
    assert_eq!(datas.last().unwrap()["status"], "done");
    // For a finished job they come at once.
    assert!(server.get(&format!("/v1/jobs/{id}/events")).body.ends_with(b"\n\n"));
}

#[test]
fn an_idempotency_key_means_one_job() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let post = |key: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        server.request("POST", "/v1/samples", &headers, body.as_bytes())
    };
    let first = post("a", r#"{"class": 1, "steps": 2}"#);
    let again = post("a", r#"{"class": 1, "steps": 2}"#);
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.json()["id"], again.json()["id"]);
    let other = post("a", r#"{"class": 2, "steps": 2}"#);
    assert_eq!((other.status, other.refusal().1.as_str()), (409, "idempotency_key_reused"));
    assert_ne!(post("b", r#"{"class": 1, "steps": 2}"#).json()["id"], first.json()["id"]);
    assert_eq!(post(&"x".repeat(500), "{}").status, 400);
}

#[test]
fn bad_input_is_refused_in_a_sentence_and_leaves_no_trace() {
    let folder = folder();
    let server = server(folder.path(), &["--max-steps", "200"]);
    let good = json!({ "class": "star", "count": 1, "steps": 3, "seed": 2 });
    let before = server.pictures(&server.submit(&good));
    let image = picture(32, 32);
    let wrong_mask = picture(8, 9);
    let bodies = [
        (json!({ "class": "sstar" }), "class"),
        (json!({ "class": 99 }), "class"),
        (json!({ "count": 0 }), "count"),
        (json!({ "count": 1000 }), "count"),
        (json!({ "count": -1 }), "the body is not a valid request"),
        (json!({ "steps": 0 }), "steps"),
        (json!({ "steps": 201 }), "steps"),
        (json!({ "timesteps": [] }), "timesteps"),
        (json!({ "guidance": -1 }), "guidance"),
        (json!({ "guidance": 1e300 }), "guidance"),
        (json!({ "temperature": -0.5 }), "temperature"),
        (json!({ "sampler": "euler" }), "sampler"),
        (json!({ "schedule": "karras" }), "schedule"),
        (json!({ "guidance_schedule": "1,,2" }), "guidance_schedule"),
        (json!({ "size": "64x64" }), "size"),
        (json!({ "sizes": 1 }), "unknown field `sizes`, expected one of `"),
        (json!({ "vary": { "image": "%%%" } }), "vary.image"),
        (json!({ "vary": { "image": BASE64.encode("no picture") } }), "vary.image"),
        (json!({ "vary": { "image": image, "strength": 7 } }), "strength"),
        (json!({ "inpaint": { "image": image, "mask": wrong_mask } }), "inpaint.mask"),
        (json!({ "inpaint": { "image": image, "mask": image, "resample": 10000 } }), "inpaint.resample"),
        (json!({ "upscale": { "image": image, "factor": 5 } }), "upscale.factor"),
        (json!({ "interpolate": {} }), "interpolate"),
        (json!({ "interpolate": { "seeds": [1, 2] }, "count": 1 }), "frames"),
        (json!({ "interpolate": { "seeds": [1, 2] }, "sampler": "ddpm" }), "sampler"),
        (json!({ "vary": { "image": image }, "upscale": { "image": image, "factor": 2 } }), "exclude each other"),
    ];
    for (body, part) in bodies {
        let response = server.post("/v1/samples", &body);
        let (message, _) = response.refusal();
        assert_eq!(response.status, 400, "{body}: {message}");
        assert!(message.contains(part) && !message.contains('\n') && !message.contains("--"), "{body}: {message}");
    }
    let unknown = server.post("/v1/samples", &json!({ "model": "smalll" }));
    assert_eq!((unknown.status, unknown.refusal().1.as_str()), (404, "model_not_found"));
    assert!(unknown.refusal().0.contains("did you mean small?"));
    let raw = |headers: &[(&str, &str)], body: &[u8]| server.request("POST", "/v1/samples", headers, body);
    let as_json = ("content-type", "application/json");
    assert_eq!(raw(&[as_json], b"{\"steps\": NaN}").status, 400);
    assert_eq!(raw(&[as_json], b"{").status, 400);
    assert_eq!(raw(&[as_json], "[".repeat(100_000).as_bytes()).status, 400);
    assert_eq!(raw(&[as_json], b"\xff\xfe").status, 400);
    assert_eq!(raw(&[("content-type", "text/plain")], b"{}").status, 415);
    assert_eq!(server.request("PUT", "/v1/samples", &[], b"").status, 405);
    assert_eq!(server.get("/nowhere").status, 404);
    assert_eq!(server.get("/v1/jobs/0000").status, 404);
    assert_eq!(server.pictures(&server.submit(&good)), before);
}

#[test]
fn bodies_and_pictures_are_bounded() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let head = format!("POST /v1/samples HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", server.address);
    let long = server.raw(format!("{head}content-length: 99999999\r\n\r\n").as_bytes());
    assert_eq!((long.status, long.refusal().1.as_str()), (413, "body_too_long"));
    // A chunked body declares no length: it is cut off at the limit.
    let mut chunked = format!("{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n").into_bytes();
    for _ in 0..10 {
        chunked.extend(b"100000\r\n");
        chunked.extend(vec![b' '; 0x10_0000]);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(server.raw(&chunked).status, 413);
    // A picture that declares a width of 60000 pixels is never decoded.
    let mut bomb = encode_png(&Image::filled(8, 8, [1; 3]), &[]).unwrap();
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let started = Instant::now();
    let refused = server.post("/v1/samples", &json!({ "vary": { "image": BASE64.encode(&bomb) } }));
    assert_eq!(refused.status, 400, "{refused:?}");
    let large = encode_png(&Image::filled(3000, 8, [1; 3]), &[]).unwrap();
    let refused = server.post("/v1/samples", &json!({ "vary": { "image": BASE64.encode(&large) } }));
    assert!(refused.refusal().0.contains("3000x8"), "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn slow_bodies_and_idle_connections_end_and_too_many_are_told() {
    let folder = folder();
    let server = server(folder.path(), &["--connections", "20"]);
    let mut slow = server.connect();
    slow.write_all(
        format!("POST /v1/samples HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{{", server.address).as_bytes(),
    )
    .unwrap();
    let idle: Vec<_> = (0..19).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(300));
    // A thousand more, a hundred at a time: the test has file descriptors too.
    for _ in 0..10 {
        let mut refused: Vec<_> = (0..100).map(|_| server.connect()).collect();
        let statuses: Vec<u16> = refused.iter_mut().map(|stream| response(stream).status).collect();
        assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    }
    assert_eq!(response(&mut slow).status, 408);
    // The idle ones are closed after the timeout, and there is room again.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(server.get("/healthz").status, 200);
    drop(idle);
}

#[test]
fn keys_names_and_origins_are_checked() {
    let folder = folder();
    let digest = |key: &str| Sha256::digest(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    std::fs::write(folder.path().join("keys"), format!("{} anna\n{} ben\n", digest("one"), digest("two"))).unwrap();
    let server = server(
        folder.path(),
        &["--api-keys", "keys", "--allow-host", "models.test", "--allow-origin", "https://a.test"],
    );
    let as_json = ("content-type", "application/json");
    let post =
        |headers: &[(&str, &str)]| server.request("POST", "/v1/samples", headers, br#"{"class": 1, "steps": 2}"#);
    for headers in [&[as_json][..], &[as_json, ("authorization", "Bearer wrong")], &[as_json, ("authorization", "one")]]
    {
        let refused = post(headers);
        assert_eq!((refused.status, refused.refusal().1.as_str()), (401, "invalid_api_key"));
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    let job = post(&[as_json, ("authorization", "Bearer one")]);
    assert_eq!(job.status, 202);
    let path = format!("/v1/jobs/{}", job.json()["id"].as_str().unwrap());
    let get = |headers: &[(&str, &str)]| server.request("GET", &path, headers, b"").status;
    assert_eq!(get(&[("authorization", "Bearer one")]), 200);
    assert_eq!(get(&[("authorization", "Bearer two")]), 404, "another client's job");
    assert_eq!((server.get("/healthz").status, server.get("/").status, server.get("/metrics").status), (200, 200, 401));

    let ask = |headers: &[(&str, &str)]| server.request("GET", "/version", headers, b"");
    for (host, status) in
        [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]", 200), ("models.test", 200), ("evil.test", 403)]
    {
        assert_eq!(ask(&[("host", host)]).status, status, "{host}");
    }
    for (header, value, told) in [
        ("host", "evil.test", "start it with --allow-host NAME"),
        ("origin", "http://evil.test", "start the server with --allow-origin ORIGIN"),
    ] {
        let refused = ask(&[(header, value)]).json();
        assert!(refused["error"]["message"].as_str().unwrap().ends_with(told), "{refused}");
    }
    assert_eq!(ask(&[("host", "localhost:1"), ("origin", "http://localhost:1")]).status, 200);
    assert_eq!(ask(&[("origin", "http://evil.test")]).status, 403);
    let allowed = ask(&[("origin", "https://a.test")]);
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("https://a.test")));
    assert_eq!(server.request("OPTIONS", "/v1/samples", &[("origin", "https://a.test")], b"").status, 204);
    assert_eq!(ask(&[]).header("access-control-allow-origin"), None);
}

#[test]
fn a_full_queue_turns_away_and_a_cancelled_job_makes_room() {
    let folder = folder();
    let server = server(folder.path(), &["--queue", "2", "--max-batch", "2"]);
    let jobs = [server.submit(&long()), server.submit(&long())];
    let refused = server.post("/v1/samples", &long());
    assert_eq!((refused.status, refused.refusal().1.as_str()), (429, "queue_full"));
    assert!(refused.header("retry-after").is_some());
    let place = server.get(&format!("/v1/jobs/{}", jobs[1])).json();
    assert!(place["status"] == "queued" || place["status"] == "drawing", "{place}");
    for id in &jobs {
        server.request("DELETE", &format!("/v1/jobs/{id}"), &[], b"");
        assert_eq!(server.wait(id)["status"], "cancelled");
    }
    assert_eq!(server.wait(&server.submit(&json!({ "class": 1, "steps": 2 })))["status"], "done");
}

#[test]
fn it_ends_within_its_bound_and_finishes_what_it_can() {
    let folder = folder();
    let quick = server(folder.path(), &[]);
    let id = quick.submit(&json!({ "class": 1, "count": 4, "steps": 200 }));
    let mut stream = quick.connect();
    stream.write_all(format!("GET /v1/jobs/{id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    let (said, code) = quick.stop();
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    assert!(lines.iter().any(|line| line.contains("\"status\":\"done\"")), "{lines:?}");

    let slow = server(folder.path(), &["--grace", "1", "--max-batch", "2"]);
    let id = slow.submit(&long());
    let mut stream = slow.connect();
    stream.write_all(format!("GET /v1/jobs/{id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    let started = Instant::now();
    let (said, code) = slow.stop();
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(said.contains("finishing 1 job first") && said.contains("1 job was dropped"), "{said}");
    assert_eq!(code, Some(0));
}

#[test]
fn openais_clients_are_answered() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let response = server.post(
        "/v1/images/generations",
        &json!({ "prompt": "star, 1", "n": 3, "seed": 4, "steps": 3, "size": "32x32" }),
    );
    assert_eq!(response.status, 200, "{response:?}");
    let data = response.json()["data"].clone();
    let own = server.submit(&json!({ "class": ["star", "square"], "count": 3, "seed": 4, "steps": 3 }));
    for (image, png) in data.as_array().unwrap().iter().zip(server.pictures(&own)) {
        assert_eq!(pixels(&BASE64.decode(image["b64_json"].as_str().unwrap()).unwrap()), pixels(&png));
    }
    let by_url =
        server.post("/v1/images/generations", &json!({ "prompt": "star", "steps": 2, "response_format": "url" }));
    let url = by_url.json()["data"][0]["url"].as_str().unwrap().to_string();
    let path = url.strip_prefix(&format!("http://{}", server.address)).unwrap();
    assert!(decode_picture(&server.get(path).body, [0; 3]).is_ok());
    let stream = json!({ "prompt": "star", "steps": 150, "sampler": "heun", "stream": true, "partial_images": 2 });
    let text = String::from_utf8(server.post("/v1/images/generations", &stream).body).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.last(), Some(&"image_generation.completed"), "{names:?}");
    assert!(names.iter().filter(|name| **name == "image_generation.partial_image").count() <= 2);
    for (field, value) in [
        ("quality", json!("hd")),
        ("style", json!("vivid")),
        ("size", json!("1024x1024")),
        ("background", json!("transparent")),
        ("output_format", json!("webp")),
        ("partial_images", json!(2)),
        ("prompt", json!("a red dragon")),
    ] {
        let mut body = json!({ "prompt": "star", "steps": 2 });
        body[field] = value;
        let refused = server.post("/v1/images/generations", &body);
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some(field)), "{refused:?}");
    }
    assert_eq!(server.post("/v1/images/generations", &json!({ "model": "gpt-image-1", "prompt": "star" })).status, 404);
}

#[test]
fn an_edit_draws_what_is_transparent() {
    let folder = folder();
    let server = server(folder.path(), &[]);
    let given: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 5 % 251) as u8).collect();
    let image = encode_png(&Image::new(32, 32, 3, given.clone()).unwrap(), &[]).unwrap();
    // The right half of the mask is transparent.
    let mut mask = Vec::new();
    let mut encoder = png::Encoder::new(&mut mask, 32, 32);
    encoder.set_color(png::ColorType::Rgba);
    let pixels_of_mask: Vec<u8> = (0..32 * 32).flat_map(|i| [9, 9, 9, if i % 32 < 16 { 255 } else { 0 }]).collect();
    encoder.write_header().unwrap().write_image_data(&pixels_of_mask).unwrap();
    let mut form = Vec::new();
    for (name, file, bytes) in [("image", "a.png", &image), ("mask", "m.png", &mask)] {
        form.extend(format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\ncontent-type: image/png\r\n\r\n").bytes());
        form.extend(bytes.iter());
        form.extend(b"\r\n");
    }
    for (name, value) in [("prompt", "star"), ("steps", "3"), ("n", "2")] {
        form.extend(format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    form.extend(b"--XX--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=XX")];
    let response = server.request("POST", "/v1/images/edits", &headers, &form);
    assert_eq!(response.status, 200, "{response:?}");
    for image in response.json()["data"].as_array().unwrap() {
        let drawn = pixels(&BASE64.decode(image["b64_json"].as_str().unwrap()).unwrap());
        let changed = (0..32 * 32).filter(|i| drawn[3 * i..3 * i + 3] != given[3 * i..3 * i + 3]);
        let (kept, free): (Vec<usize>, Vec<usize>) = changed.partition(|i| i % 32 < 16);
        assert!(kept.is_empty() && free.len() > 100, "{} kept pixels changed, {} free ones", kept.len(), free.len());
    }
    assert_eq!(server.request("POST", "/v1/images/edits", &headers, b"--XX\r\nbroken").status, 400);
    assert_eq!(server.request("POST", "/v1/images/edits", &[("content-type", "application/json")], b"{}").status, 415);
}

#[test]
fn several_models_share_a_bound_and_take_turns() {
    let folder = folder();
    for name in ["b", "c"] {
        std::fs::copy(folder.path().join("small.safetensors"), folder.path().join(format!("{name}.safetensors")))
            .unwrap();
    }
    std::fs::write(folder.path().join("broken.safetensors"), b"no model").unwrap();
    let server = Server::start(folder.path(), &["--models", "."]);
    let names: Vec<Value> =
        server.get("/v1/models").json()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(names, ["b", "c", "small"]);
    let ids = ["b", "c", "small", "b"]
        .map(|model| server.submit(&json!({ "model": model, "class": 2, "steps": 4, "seed": 3 })));
    let drawn: Vec<Vec<u8>> = ids.iter().map(|id| pixels(&server.pictures(id)[0])).collect();
    assert!(drawn.iter().all(|pixels| *pixels == drawn[0]), "the same weights");
}

/// Kills a server, restarts it with the same options, and checks that finished jobs are still there.
fn killed_and_started_again(folder: &Path, options: &[&str]) {
    let mut first = server(folder, options);
    let body = br#"{"class": "star", "count": 2, "steps": 3, "seed": 8}"#;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let done = first.request("POST", "/v1/samples", &headers, body).json()["id"].as_str().unwrap().to_string();
    let before = first.pictures(&done);
    let unfinished = first.submit(&long());
    // SIGKILL.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    drop(first);
    let second = server(folder, options);
    assert_eq!(second.pictures(&done), before);
    assert_eq!(second.get(&format!("/v1/jobs/{unfinished}")).status, 404);
    let again = second.request("POST", "/v1/samples", &headers, body);
    assert_eq!(again.json()["id"].as_str(), Some(done.as_str()), "the key is known too");
}

#[test]
fn a_server_that_was_killed_loses_only_what_was_unfinished() {
    let folder = folder();
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("0123.job.json"), b"{ half").unwrap();
    std::fs::write(kept.join("4567.job.part"), b"{ ha").unwrap();
    killed_and_started_again(folder.path(), &["--keep", "kept", "--max-batch", "2"]);
    assert!(!kept.join("4567.job.part").exists(), "what was being written is cleared away");
}

#[test]
fn finished_jobs_are_kept_without_being_asked_to() {
    let folder = folder();
    // A port that was just free: the folder is named after it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    killed_and_started_again(folder.path(), &["--listen", &address, "--max-batch", "2"]);
    let kept = folder.path().join(format!("engine/serve-{}", address.replace(':', "-")));
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
    let none = server(folder.path(), &["--listen", &address, "--keep", "none"]);
    none.pictures(&none.submit(&json!({ "class": 1, "steps": 2 })));
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1, "none is kept where none is wanted");
}

#[test]
fn whoever_never_reads_holds_nothing_for_ever() {
    let folder = folder();
    let server = server(folder.path(), &["--connections", "2"]);
    let id = server.submit(&json!({ "class": "star", "count": 64, "steps": 2 }));
    server.wait(&id);
    // Three quarters of a megabyte each: more than socket buffers hold.
    let request = format!("GET /v1/jobs/{id}/images.npy HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(40);
    let idle: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for mut stream in &idle {
        stream.write_all(request.as_bytes()).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.get("/healthz").status, 503, "both places are taken");
    let started = Instant::now();
    while server.get("/healthz").status == 503 {
        assert!(started.elapsed() < Duration::from_secs(30), "they are held for ever");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(started.elapsed() > Duration::from_secs(5), "there is time to read");
    drop(idle);
}

#[test]
fn runs_are_shown_while_they_train() {
    let folder = folder();
    let run = folder.path().join("runs/one");
    std::fs::create_dir_all(run.join("samples")).unwrap();
    let mut config = Config::preset("quickstart").unwrap();
    config.set("training.num_steps=400").unwrap();
    std::fs::write(run.join("config.yaml"), config.to_yaml().unwrap()).unwrap();
    let line = |step: usize| json!({ "step": step, "loss": 1.0 / step as f64, "seconds": 0.5 * step as f64, "images_per_second": 64.0 });
    let lines: Vec<String> = (1..=1000).step_by(3).take(67).map(|step| line(step).to_string()).collect();
    std::fs::write(run.join("metrics.jsonl"), lines.join("\n") + "\n{\"step\": 2").unwrap();
    let sheet = encode_png(&Image::filled(8, 8, [1, 2, 3]), &[]).unwrap();
    std::fs::write(run.join("samples/step-1.png"), b"an older one").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(run.join("samples/step-2.png"), &sheet).unwrap();
    std::fs::create_dir_all(folder.path().join("runs/no run")).unwrap();
    let server = server(folder.path(), &["--runs", "runs"]);
    let runs = server.get("/v1/runs").json();
    assert_eq!(runs.as_array().unwrap().len(), 1, "{runs}");
    let one = &runs[0];
    assert_eq!((&one["name"], &one["last"]["step"]), (&json!("one"), &json!(199)), "half a line is not read");
    assert_eq!(one["loss"].as_array().unwrap().len(), 67);
    assert_eq!(one["seconds_left"].as_f64().unwrap().round(), 101.0, "half a second a step, 201 steps");
    assert_eq!(server.get(one["samples"].as_str().unwrap()).body, sheet, "the newest sheet");
    std::fs::write(run.join("metrics.jsonl"), format!("{}\n{}\n", lines.join("\n"), line(300))).unwrap();
    assert_eq!(server.get("/v1/runs").json()[0]["last"]["step"], 300, "it follows the run");
    for path in ["/v1/runs/two/samples.png", "/v1/runs/../samples.png", "/v1/runs/..%2f..%2fsmall/samples.png"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.request("POST", "/v1/runs", &[], b"").status, 405, "read only");
    assert_eq!(server.get("/version").json()["runs"], true);
}
