//! A step as a trace for Perfetto and `chrome://tracing`: Chrome's trace event format, JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::model::Part;
use super::report::{Report, note};

/// The trace: a process for each section, with a row of launches and one of their limiting parts. Times in microseconds.
pub fn trace(report: &Report) -> Value {
    let note = note(report.calibrated_by.is_some());
    let mut events = Vec::new();
    for (number, section) in ["training", "sampling"].into_iter().enumerate() {
        let process = number + 1;
        let title = format!("{section} step on {} ({note})", report.gpu.name);
        events.push(metadata("process_name", process, 0, &title));
        events.push(metadata("thread_name", process, 1, "launches"));
        events.push(metadata("thread_name", process, 2, "bound by"));
        let mut now = 0.0;
        for piece in report.pieces.iter().filter(|piece| piece.section == section) {
            // The gap comes first.
            let (start, length) = (now + 1e6 * piece.modelled.gap, 1e6 * (piece.seconds - piece.modelled.gap));
            now += 1e6 * piece.seconds;
            let parts: BTreeMap<&str, f64> =
                Part::ALL.into_iter().map(|part| (part.name(), 1e6 * piece.modelled.of(part))).collect();
            let arguments = json!({
                "modelled": true, "note": note, "parts_us": parts, "floor_us": 1e6 * piece.modelled.floor,
                "measured_us": piece.measured.map(|seconds| 1e6 * seconds),
                "grid": piece.launch.as_ref().map(|launch| launch.grid), "block": piece.launch.as_ref().map(|launch| launch.block),
                "sector_ratio": piece.counters.sector_ratio(), "conflict_ratio": piece.counters.conflict_ratio(),
                "counters": piece.counters,
            });
            events.push(complete(&piece.kernel, &piece.module, process, 1, (start, length), arguments));
            let bound = piece.modelled.bound.name();
            events.push(complete(
                bound,
                "bound",
                process,
                2,
                (start, length),
                json!({ "modelled": true, "note": note, "margin": piece.modelled.margin() }),
            ));
        }
    }
    json!({
        "displayTimeUnit": "ns",
        "otherData": { "title": format!("{} ({note})", report.run), "modelled": true, "device": report.gpu.name },
        "traceEvents": events,
    })
}

fn metadata(name: &str, process: usize, thread: usize, value: &str) -> Value {
    json!({ "ph": "M", "name": name, "pid": process, "tid": thread, "ts": 0, "args": { "name": value } })
}

/// An event with a start and a duration.
fn complete(
    name: &str,
    category: &str,
    process: usize,
    thread: usize,
    (start, length): (f64, f64),
    args: Value,
) -> Value {
    let category = if category.is_empty() { "memory" } else { category };
    json!({ "ph": "X", "name": name, "cat": category, "pid": process, "tid": thread, "ts": start, "dur": length, "args": args })
}
