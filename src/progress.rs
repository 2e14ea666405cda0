//! The progress of long work, as lower layers report it. They print nothing: a receiver shows it, on a terminal or elsewhere.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use engine::progress::{Reporter, Unit, Update};
//!
//! let seen = Arc::new(Mutex::new(Vec::new()));
//! let receiver = seen.clone();
//! let progress = Reporter::new(move |update| receiver.lock().unwrap().push(format!("{update:?}")));
//! let task = progress.begin("pictures", Unit::Pictures, Some(500));
//! task.at(250);
//! drop(task);
//! assert_eq!(seen.lock().unwrap().len(), 3);
//! // By default nobody listens.
//! Reporter::default().begin("pictures", Unit::Pictures, None).at(1);
//! ```

use std::fmt;
use std::sync::Arc;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a transfer.
    Bytes,
    /// Pictures of a data set.
    Pictures,
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update<'a> {
    /// The work `name` begins; `total` is its size, if it is known.
    Begun { name: &'a str, unit: Unit, total: Option<u64> },
    /// `done` units are done.
    At { done: u64 },
    /// The work has ended, or failed.
    Ended,
}

type Receiver = dyn Fn(Update) + Send + Sync;

/// The receiver of reports. Clones share it; the default drops every report.
#[derive(Clone, Default)]
pub struct Reporter(Option<Arc<Receiver>>);

impl Reporter {
    /// Reports go to `receiver`.
    pub fn new(receiver: impl Fn(Update) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(receiver)))
    }

    /// Begins a piece of work, which ends when the result is dropped.
    pub fn begin(&self, name: &str, unit: Unit, total: Option<u64>) -> Activity {
        self.send(Update::Begun { name, unit, total });
        Activity(self.clone())
    }

    fn send(&self, update: Update) {
        if let Some(receiver) = &self.0 {
            receiver(update);
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Reporter(reported)" } else { "Reporter(dropped)" })
    }
}

/// A piece of work in progress.
#[derive(Debug)]
pub struct Activity(Reporter);

impl Activity {
    /// `done` units are done.
    pub fn at(&self, done: u64) {
        self.0.send(Update::At { done });
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.0.send(Update::Ended);
    }
}
