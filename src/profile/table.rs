//! A profile as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::file::{KernelLines, Scaling};
use super::lines::source_lines;
use super::model::Part;
use super::report::{Report, Row, note, scaling};

/// Lines shown per kernel.
const LINES: usize = 12;
/// Findings shown per section.
const FINDINGS: usize = 24;

/// Heading, both steps by kernel, and the findings. `op` limits it to the kernels of one op.
pub fn text(report: &Report, op: Option<&str>) -> String {
    let note = note(report.calibrated_by.is_some());
    let gpu = &report.gpu;
    let mut text = format!("{}\n", report.run);
    let share = 100.0 * gpu.mma_sync_share;
    let _ = writeln!(
        text,
        "on {}: {} multiprocessors at {:.2} GHz; {:.0} TFLOP/s bf16, of which mma.sync reaches {share:.0} %; {:.2} TB/s; times {note}",
        gpu.name,
        gpu.multiprocessors,
        gpu.clock * 1e-9,
        gpu.tensor_rate() * 1e-12,
        gpu.dram * 1e-12,
    );
    if let Some(device) = &report.calibrated_by {
        let _ = writeln!(text, "corrected by times that were measured on {device}");
    }
    if let Some(device) = &report.measured_on {
        let _ = writeln!(text, "measured on {device}: each launch between two events, without the gaps between them");
    }
    text += &estimated(report);
    for section in ["training", "sampling"] {
        text += &step(report, section, op);
    }
    text
}

/// The number of kernels to which the results of `ptxas` do not apply.
fn estimated(report: &Report) -> String {
    let is_estimated = |row: &&Row| row.last.figures.as_ref().is_some_and(|figures| !figures.compiled);
    let kernels: BTreeSet<&str> = report.rows.iter().filter(is_estimated).map(|row| row.kernel.as_str()).collect();
    let which = match kernels.len() {
        0 => return String::new(),
        1 => "1 kernel has".into(),
        count => format!("{count} kernels have"),
    };
    format!("{which} replaced or changed PTX: registers are estimated, at one issue slot per PTX instruction\n")
}

fn step(report: &Report, section: &str, op: Option<&str>) -> String {
    let (nodes, seconds, measured) = report.total(section);
    if nodes == 0 {
        return String::new();
    }
    let all: Vec<&Row> = report.rows.iter().filter(|row| row.section == section).collect();
    let floor: f64 = all.iter().map(|row| row.floor).sum();
    let gaps: f64 = all.iter().map(|row| row.gaps).sum();
    let what = if section == "sampling" {
        "sampling step (one evaluation of the network and its update)"
    } else {
        "training step"
    };
    let mut text = format!("\n{what}: {}, {}", time(seconds), note(report.calibrated_by.is_some()));
    if let Some(measured) = measured {
        let _ = write!(text, "; measured {}", time(measured));
    }
    let _ = writeln!(
        text,
        "\n  {nodes} nodes, of which gaps {}; roofline {}: {:.0} % of the modelled time",
        time(gaps),
        time(floor),
        100.0 * floor / seconds
    );
    let shown: Vec<&Row> = all.iter().copied().filter(|row| op.is_none_or(|op| row.module == op)).collect();
    if let (true, Some(op)) = (shown.is_empty(), op) {
        return format!("{text}  this step launches no kernel of {op}\n");
    }
    text += &rows(&shown, seconds, report.measured_on.is_some());
    let told: Vec<&Row> = shown.iter().copied().filter(|row| matches!(row.scaling, Scaling::Sampled { .. })).collect();
    if let Some(row) = told.iter().max_by(|a, b| spread(a).total_cmp(&spread(b))) {
        let _ = writeln!(
            text,
            "  counters of {} of {} kernels are not exact: their executed blocks differ (at most {}: {})",
            told.len(),
            shown.len(),
            row.kernel,
            scaling(row.scaling)
        );
    }
    text + &findings(report, section, op)
}

fn spread(row: &Row) -> f64 {
    match row.scaling {
        Scaling::Sampled { spread, .. } => spread,
        _ => 0.0,
    }
}

fn rows(rows: &[&Row], total: f64, measured: bool) -> String {
    let wide = rows.iter().map(|row| row.kernel.len()).max().unwrap_or(0).max(6);
    let extra = if measured { format!("{:>10}", "measured") } else { String::new() };
    let mut text = format!(
        "  {:<wide$}{:>7}{:>10}{extra}{:>7}  {:<21}{:>7}{:>9}{:>11}{:>7}\n",
        "kernel", "calls", "modelled", "share", "bound by", "floor", "sectors", "conflicts", "warps"
    );
    for row in rows {
        let (second, margin) = row.second();
        let bound = format!("{} ({} x {})", row.bound_by().name(), ratio(margin), second.name());
        let measured = match (measured, row.measured) {
            (false, _) => String::new(),
            (true, Some(seconds)) => format!("{:>10}", time(seconds)),
            (true, None) => format!("{:>10}", "-"),
        };
        let counters = &row.counters;
        let of = |count: u64, ratio: f64| if count == 0 { "-".into() } else { format!("{ratio:.2}x") };
        let warps = row.shapes.first().map_or("-".to_string(), |shape| {
            let warps = u64::from(shape.block.iter().product::<u32>().div_ceil(32));
            (warps * u64::from(shape.resident_blocks).min(shape.busiest)).to_string()
        });
        let _ = writeln!(
            text,
            "  {:<wide$}{:>7}{:>10}{measured}{:>6.1}%  {bound:<21}{:>6.0}%{:>9}{:>11}{warps:>7}",
            row.kernel,
            row.calls,
            time(row.seconds),
            100.0 * row.seconds / total,
            100.0 * row.floor / row.seconds,
            of(counters.global_sectors, counters.sector_ratio()),
            of(counters.shared_wavefronts, counters.conflict_ratio()),
        );
    }
    text
}

fn findings(report: &Report, section: &str, op: Option<&str>) -> String {
    let of_op =
        |kernel: &str| op.is_none_or(|op| report.rows.iter().any(|row| row.kernel == kernel && row.module == op));
    let found = || report.findings.iter().filter(|finding| finding.section == section && of_op(&finding.kernel));
    let mut text = String::new();
    let mut last = "";
    for finding in found().take(FINDINGS) {
        if last.is_empty() {
            text += "  findings, most expensive kernels first\n";
        }
        if last != finding.kernel {
            let _ = writeln!(text, "    {}", finding.kernel);
        }
        last = &finding.kernel;
        let _ = writeln!(text, "      {:<11}{}", finding.kind, finding.text);
    }
    let more = found().count().saturating_sub(FINDINGS);
    if more > 0 {
        let _ = writeln!(text, "    and {more} more: `json = FILE` has all, `op` shows one op");
    }
    text
}

/// The most expensive lines of a kernel in a section.
pub fn lines(kernel: &KernelLines, section: &str) -> String {
    let mut text = format!(
        "\n{} in the {section} step, its most expensive lines\n  {:>7}{:>15}{:>15}{:>7}  line\n",
        kernel.name, "slots", "sectors", "passes", "lanes"
    );
    for line in source_lines(kernel, section).iter().take(LINES) {
        let counters = &line.counters;
        let of = |count: u64, share: f64, ratio: f64| match count {
            0 => "-".into(),
            _ => format!("{:.1}% {ratio:.2}x", 100.0 * share),
        };
        let place = if line.line == 0 { "(no line)".into() } else { format!("{}:{}", line.file, line.line) };
        let _ = writeln!(
            text,
            "  {:>6.1}%{:>15}{:>15}{:>7.1}  {place}{}",
            100.0 * line.slots,
            of(counters.global_sectors, line.sectors, counters.sector_ratio()),
            of(counters.shared_wavefronts, line.passes, counters.conflict_ratio()),
            counters.lanes(),
            line.text.as_deref().map(cut).unwrap_or_default(),
        );
    }
    text
}

/// The beginning of a line of source, behind two spaces.
fn cut(text: &str) -> String {
    const MOST: usize = 88;
    let end = if text.chars().count() > MOST { "…" } else { "" };
    format!("  {}{end}", text.chars().take(MOST).collect::<String>())
}

fn ratio(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.1}"),
        v if v < 100.0 => format!("{v:.0}"),
        _ => ">99".into(),
    }
}

/// `12.3 µs`, `1.50 ms`.
fn time(seconds: f64) -> String {
    let three = |value: f64| match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    match seconds {
        s if s < 1e-3 => format!("{} µs", three(s * 1e6)),
        s if s < 1.0 => format!("{} ms", three(s * 1e3)),
        s => format!("{} s", three(s)),
    }
}

/// The parts of the model, for a legend.
pub fn legend() -> String {
    let parts: Vec<&str> = Part::ALL.into_iter().map(Part::name).collect();
    format!(
        "bound by: the slowest of {}, and its ratio to the next; floor: the roofline's share of the time, above 100 % where\n\
         the second-level cache keeps data that the roofline counts as memory traffic; sectors, conflicts: sectors of global\n\
         memory and passes over the banks of shared memory, as ratios to the minimum; warps: resident on a multiprocessor; of\n\
         lines: shares of the kernel's slots, sectors and passes, those of small inlined functions at their call\n",
        parts.join(", ")
    )
}
