//! Connections: their number, timeouts and end.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::guard::Peer;
use super::metrics::count;
use super::patience::Patient;
use super::state::{Shared, closing};

/// The response to a connection over the limit.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\nconnection: close\r\ncontent-type: application/json\r\n\
content-length: 115\r\n\r\n{\"error\":{\"message\":\"too many connections are open\",\"type\":\"server_error\",\"param\":null,\"code\":\"connections_full\"}}\n";
/// Most bytes of a request head.
const HEAD: usize = 64 << 10;

/// Accepts connections until the server closes, then waits for the open ones to end.
pub async fn accept(listener: TcpListener, router: Router, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(shared.limits.connections));
    let mut stopping = shared.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing(&mut stopping) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Either the peer has already gone, or there are no file descriptors left: then some connections must end first.
                if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        // Responses are small and urgent; Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        match room.clone().try_acquire_owned() {
            Ok(permit) => {
                let peer = Peer(address.ip());
                tokio::spawn(serve(stream, peer, router.clone(), shared.clone(), permit));
            }
            Err(_) => {
                count(&shared.metrics.connections_refused);
                tokio::spawn(refuse(stream));
            }
        }
    }
    // All permits together: no connection is open any more.
    let all = room.acquire_many(shared.limits.connections as u32);
    let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
}

/// Refuses a client because there are too many connections, without reading its request.
async fn refuse(mut stream: TcpStream) {
    let told = async {
        stream.write_all(FULL).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
}

async fn serve(stream: TcpStream, peer: Peer, router: Router, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    shared.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let service = TowerToHyperService::new(router);
    let with_peer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        service.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(shared.limits.arrival).max_buf_size(HEAD);
    let connection = builder.serve_connection(TokioIo::new(Patient::new(stream, shared.limits.reading)), with_peer);
    let mut stopping = shared.stopping.subscribe();
    tokio::pin!(connection);
    tokio::select! {
        // Connection errors are visible to the client only.
        _ = connection.as_mut() => {}
        () = closing(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(2), connection).await;
        }
    }
    shared.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    drop(permit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
