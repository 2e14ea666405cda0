//! Fixed limits on all requests.

use std::time::Duration;

/// Limits on requests and connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Unfinished jobs, including running ones.
    pub queue: usize,
    /// Images of a job.
    pub images: usize,
    /// Denoising steps of an image.
    pub steps: usize,
    /// Repetitions of a step around known pixels.
    pub rounds: usize,
    /// Pixels per side of a given picture.
    pub side: u32,
    /// Bytes of a request's body.
    pub body: usize,
    /// Time for a body, or a request head, to arrive.
    pub arrival: Duration,
    /// Time that a client may leave pending data unread.
    pub reading: Duration,
    /// Time of a job, including the queue.
    pub job: Duration,
    /// Open connections.
    pub connections: usize,
    /// Stored finished jobs, and the bytes of their pixels.
    pub kept: usize,
    pub kept_bytes: usize,
    /// Time for running jobs after the server is told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 64,
            images: 64,
            steps: 1000,
            rounds: 20,
            side: 2048,
            body: 8 << 20,
            arrival: Duration::from_secs(10),
            reading: Duration::from_secs(10),
            job: Duration::from_secs(300),
            connections: 256,
            kept: 256,
            kept_bytes: 64 << 20,
            grace: Duration::from_secs(20),
        }
    }
}
