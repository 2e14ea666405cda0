//! The progress bar of every command, on standard error if that is a terminal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::progress::{Reporter, Unit, Update};

/// A bar; it disappears when it is dropped.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar that shows nothing.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// A bar over work counted in `unit`, such as "evaluations"; it shows speed and time left.
    pub fn of(unit: &str, quiet: bool) -> Self {
        Self::styled(quiet, &format!("{{msg}}{{bar:30}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left"))
    }

    /// A bar over the steps of a run, from step `from` of `total`, with a message beside it.
    pub fn of_steps(from: u64, total: u64) -> Self {
        let bar = Self::styled(false, "{bar:30} {pos}/{len} {msg}");
        bar.at(from as usize, total as usize);
        bar
    }

    /// Work of unknown length: a message, and the time it has taken.
    pub fn of_unknown_length(quiet: bool) -> Self {
        let bar = Self::styled(quiet, "{spinner} {msg} ({elapsed})");
        if !bar.is_hidden() {
            bar.0.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    fn styled(quiet: bool, template: &str) -> Self {
        if quiet {
            return Self::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        // The templates are constants, all of them shown by some command.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Whether nothing is shown: quiet, or not on a terminal.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Begins new work, named before the bar.
    pub fn begin(&self, name: &str) {
        self.0.reset();
        self.0.set_message(format!("{name} "));
    }

    /// The message beside the bar.
    pub fn say(&self, message: impl Into<String>) {
        self.0.set_message(message.into());
    }

    /// `done` of `total` is done.
    pub fn at(&self, done: usize, total: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
    }

    /// [`Bar::at`] as a function, for work that reports its progress to one.
    pub fn updates(&self) -> impl FnMut(usize, usize) {
        |done, total| self.at(done, total)
    }

    /// Prints with the bar out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Shows what lower layers report: downloads and imports. A download without a terminal is one line.
pub(super) fn shown(quiet: bool) -> Reporter {
    if quiet {
        return Reporter::default();
    }
    let current: Mutex<Option<(Bar, usize)>> = Mutex::new(None);
    Reporter::new(move |update| {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        match update {
            Update::Begun { name, unit, total } => {
                let bar = match (unit, total) {
                    (Unit::Bytes, _) => {
                        Bar::styled(false, "{msg}{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
                    }
                    (Unit::Pictures, Some(_)) => Bar::of("pictures", false),
                    (Unit::Pictures, None) => Bar::of_unknown_length(false),
                };
                if let (true, Unit::Bytes, Some(total)) = (bar.is_hidden(), unit, total) {
                    eprintln!("fetching {name} ({total} bytes)");
                }
                bar.begin(name);
                *current = Some((bar, total.unwrap_or_default() as usize));
            }
            Update::At { done } => {
                if let Some((bar, total)) = &*current {
                    bar.at(done as usize, *total);
                }
            }
            Update::Ended => *current = None,
        }
    })
}
