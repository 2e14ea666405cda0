//! Metrics of the server in the text format of Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const RELAXED: Ordering = Ordering::Relaxed;
/// Upper bounds of the histogram of rows in a step.
const ROWS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Counters and gauges; all start at 0.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Steps by number of rows: up to each bound of [`ROWS`], and beyond.
    rows: [AtomicU64; ROWS.len() + 1],
    row_sum: AtomicU64,
    steps: AtomicU64,
    step_nanoseconds: AtomicU64,
    /// Finished images.
    pub images: AtomicU64,
    /// Jobs by how they ended.
    pub done: AtomicU64,
    pub failed: AtomicU64,
    pub cancelled: AtomicU64,
    /// Requests refused by a full queue.
    pub turned_away: AtomicU64,
    /// Responses by the first digit of their status, from 1.
    responses: [AtomicU64; 5],
    /// Open connections, and refused ones.
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    /// Bytes of the loaded models and their batches on the device.
    pub memory: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, RELAXED);
}

impl Metrics {
    /// Records a step of `rows` rows.
    pub fn step(&self, rows: usize, time: Duration) {
        let rows = rows as u64;
        let bucket = ROWS.iter().position(|most| rows <= *most).unwrap_or(ROWS.len());
        count(&self.rows[bucket]);
        count(&self.steps);
        self.row_sum.fetch_add(rows, RELAXED);
        self.step_nanoseconds.fetch_add(time.as_nanos() as u64, RELAXED);
    }

    /// Records a response with this status.
    pub fn response(&self, status: u16) {
        if let Some(counter) = self.responses.get((status as usize / 100).wrapping_sub(1)) {
            count(counter);
        }
    }

    /// Mean seconds of a step per row; None before the first.
    pub fn seconds_per_row(&self) -> Option<f64> {
        let rows = self.row_sum.load(RELAXED);
        (rows > 0).then(|| self.step_nanoseconds.load(RELAXED) as f64 / 1e9 / rows as f64)
    }

    /// The text, including the numbers of queued and running jobs.
    pub fn text(&self, queued: usize, drawing: usize) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let get = |counter: &AtomicU64| counter.load(RELAXED) as f64;
        let one = |value: f64| vec![(String::new(), value)];
        let jobs = [("queued", queued), ("drawing", drawing)];
        family("engine_jobs", "gauge", "Unfinished jobs.", &labelled("state", jobs.map(|(k, v)| (k, v as f64))));
        let ended = [("done", get(&self.done)), ("failed", get(&self.failed)), ("cancelled", get(&self.cancelled))];
        family("engine_jobs_ended_total", "counter", "Jobs by how they ended.", &labelled("outcome", ended));
        family("engine_images_total", "counter", "Images drawn.", &one(get(&self.images)));
        let away = one(get(&self.turned_away));
        family("engine_turned_away_total", "counter", "Requests that met a full queue.", &away);
        let mut below = 0.0;
        let mut lines: Vec<(String, f64)> = Vec::new();
        for (bound, counter) in ROWS.iter().map(u64::to_string).chain(["+Inf".into()]).zip(&self.rows) {
            below += get(counter);
            lines.push((format!("_bucket{{le=\"{bound}\"}}"), below));
        }
        lines.push(("_sum".into(), get(&self.row_sum)));
        lines.push(("_count".into(), get(&self.steps)));
        family("engine_step_rows", "histogram", "Rows that share a denoising step.", &lines);
        let lines = [("_sum".into(), get(&self.step_nanoseconds) / 1e9), ("_count".into(), get(&self.steps))];
        family("engine_step_seconds", "summary", "Seconds of a denoising step.", &lines);
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let responses: Vec<(&str, f64)> = classes.into_iter().zip(self.responses.iter().map(get)).collect();
        family("engine_responses_total", "counter", "Responses by status.", &labelled("status", responses));
        family("engine_connections", "gauge", "Open connections.", &one(get(&self.connections)));
        let refused = one(get(&self.connections_refused));
        family("engine_connections_refused_total", "counter", "Connections beyond the bound.", &refused);
        family("engine_memory_bytes", "gauge", "Memory of models and batches.", &one(get(&self.memory)));
        text
    }
}

fn labelled<'a>(label: &str, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<(String, f64)> {
    values.into_iter().map(|(name, value)| (format!("{{{label}=\"{name}\"}}"), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_family_once_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.step(3, Duration::from_millis(20));
        metrics.step(300, Duration::from_millis(40));
        metrics.response(404);
        let text = metrics.text(2, 1);
        for line in [
            "engine_jobs{state=\"queued\"} 2",
            "engine_step_rows_bucket{le=\"2\"} 0",
            "engine_step_rows_bucket{le=\"4\"} 1",
            "engine_step_rows_bucket{le=\"+Inf\"} 2",
            "engine_step_rows_sum 303",
            "engine_step_seconds_sum 0.06",
            "engine_responses_total{status=\"4xx\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        let names: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
    }
}
