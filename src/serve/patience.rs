//! A connection whose peer must read: otherwise a client that requests but never reads would keep its connection, and its results,
//! forever.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How many write timeouts the peer may lag behind in total: otherwise a peer that reads single bytes would never time out.
const BEHIND: u32 = 12;

/// A stream that fails if nothing could be written for a while, or if written data was not fully taken for a longer while.
pub struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Runs while something waits to be written.
    waiting: Option<Pin<Box<Sleep>>>,
    /// When data began to wait without a break.
    behind: Option<Instant>,
}

impl<S> Patient<S> {
    /// With this timeout for each write.
    pub fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None, behind: None }
    }

    /// Passes on the result of a write, or a timeout.
    fn watched<T>(&mut self, context: &mut Context<'_>, outcome: Poll<Result<T>>) -> Poll<Result<T>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| {
            let behind = self.behind.get_or_insert_with(Instant::now).elapsed();
            Box::pin(sleep(patience.min((BEHIND * patience).saturating_sub(behind))))
        });
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the other end does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watched(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        // Called when all has been written.
        self.behind = None;
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn whoever_does_not_read_is_given_up_and_whoever_reads_slowly_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(16);
            let mut near = Patient::new(near, Duration::from_millis(200));
            let slow = async {
                let mut read = Vec::new();
                // Takes longer in total than any single write may.
                while read.len() < 160 {
                    sleep(Duration::from_millis(40)).await;
                    let mut some = [0; 16];
                    let count = far.read(&mut some).await.unwrap();
                    read.extend_from_slice(&some[..count]);
                }
                read
            };
            let (written, read) = tokio::join!(near.write_all(&[7; 160]), slow);
            written.unwrap();
            assert_eq!(read, [7; 160]);
            near.write_all(&[8; 16]).await.unwrap();
            let refused = near.write_all(&[9; 16]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::TimedOut);

            // Each write is in time, but together they would take 8 s.
            let (near, mut far) = tokio::io::duplex(1);
            let mut near = Patient::new(near, Duration::from_millis(50));
            let drip = async {
                let mut read = 0;
                while far.read(&mut [0]).await.unwrap() == 1 {
                    read += 1;
                    sleep(Duration::from_millis(20)).await;
                }
                read
            };
            let giving = async {
                let outcome = near.write_all(&[7; 400]).await;
                drop(near);
                outcome
            };
            let (refused, read) = tokio::join!(giving, drip);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut);
            assert!((10..100).contains(&read), "{read} bytes");
        });
    }
}
