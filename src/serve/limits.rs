//! Bounds that hold whatever is asked.

use std::time::Duration;

/// Bounds on requests and connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Unfinished jobs, those that are being drawn among them.
    pub queue: usize,
    /// Images of a job.
    pub images: usize,
    /// Denoising steps of an image.
    pub steps: usize,
    /// How often a step is done again around what is known.
    pub rounds: usize,
    /// Pixels a side of a picture that is given.
    pub side: u32,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long a body, or the head of a request, may take to arrive.
    pub arrival: Duration,
    /// How long a client may read nothing of what waits for it.
    pub reading: Duration,
    /// How long a job may take, the time in the queue included.
    pub job: Duration,
    /// Open connections.
    pub connections: usize,
    /// Finished jobs that are kept, and the bytes of their pixels.
    pub kept: usize,
    pub kept_bytes: usize,
    /// How long running jobs may go on when the server is told to stop.
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
