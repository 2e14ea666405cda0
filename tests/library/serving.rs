//! `tools/examples/serve.rs`: a program that serves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[path = "../../tools/examples/serve.rs"]
#[allow(dead_code)]
mod serve;

/// Tells the child process of a test to be the server.
const SERVER: &str = "ENGINE_TEST_SERVER";

#[test]
fn a_program_serves() {
    if std::env::var_os(SERVER).is_some() {
        return serve::serve(0).unwrap();
    }
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serving::a_program_serves", "--nocapture"])
        .env(SERVER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: the server prints until it ends.
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| line.unwrap().strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned()))
        .expect("a server that prints its address");
    let mut client = TcpStream::connect(&address).unwrap();
    write!(client, "GET /v1/models HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("unet-fashion-small"), "{answer}");
    // SAFETY: the process is our child, not yet waited for.
    unsafe { libc::kill(server.id() as i32, libc::SIGTERM) };
    assert!(server.wait().unwrap().success());
}
