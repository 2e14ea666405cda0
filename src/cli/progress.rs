//! The progress of a run: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use super::bar::Bar;
use crate::ops::host::parallel::threads;
use crate::train::{Event, Start, Summary, TrainingLine};
use crate::words::counted;

/// Shows a run's events: permanent lines on standard output, the rest on standard error.
pub(super) struct Terminal {
    quiet: bool,
    /// Whether standard error is a terminal, for a bar.
    live: bool,
    bar: Bar,
    steps: u64,
    images_per_step: f64,
    last: Option<TrainingLine>,
    epochs: Epochs,
    /// Whether the run had ended before.
    complete: bool,
}

/// Which ends of epochs have a line: at most one for each of the log's lines, and the last of the run.
#[derive(Default)]
struct Epochs {
    /// Steps of an epoch, of the run, and between two lines of the log.
    each: u64,
    all: u64,
    log: u64,
    /// The step of the last line.
    told: u64,
}

impl Epochs {
    fn is_due(&mut self, epoch: u64) -> bool {
        let step = epoch * self.each;
        let log = self.log.max(1);
        let is_due = step / log > self.told / log || step + self.each > self.all;
        if is_due {
            self.told = step;
        }
        is_due
    }
}

impl Terminal {
    pub fn new(quiet: bool) -> Self {
        let live = !quiet && std::io::stderr().is_terminal();
        Self {
            quiet,
            live,
            bar: Bar::hidden(),
            steps: 0,
            images_per_step: 0.0,
            last: None,
            epochs: Epochs::default(),
            complete: false,
        }
    }

    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Warning(text) => self.warn(text),
            _ if self.quiet => {}
            Event::Start(start) => self.start(start),
            Event::Step { step, loss } => {
                self.bar.at(*step as usize, self.steps as usize);
                if self.last.is_none() {
                    self.bar.say(format!("loss {loss:.4}"));
                }
            }
            Event::Logged(line) => self.logged(line),
            Event::Complete => {
                self.complete = true;
                self.say("the run is complete: nothing is left to do");
            }
            Event::Epoch { epoch, .. } if !self.epochs.is_due(*epoch) => {}
            Event::Epoch { epoch, loss, seconds } => {
                self.say(&format!("Finished epoch: {epoch} | Loss: {loss:.6} | Time: {seconds:.2}s"));
            }
            Event::Validated { line, best } => {
                let best = if *best { " (best so far)" } else { "" };
                let accuracy =
                    line.validation_accuracy.map_or(String::new(), |share| format!(", accuracy {}", percent(share)));
                self.say(&format!("Step {}: validation loss {:.6}{accuracy}{best}", line.step, line.validation_loss));
            }
            Event::Evaluated { line, best, last } => {
                let best = if *best { " (best so far)" } else { "" };
                let rule = line.rule.map_or(String::new(), |rule| format!(", rule {}", rule.name()));
                let (step, metric, value, samples) = (line.step, &line.metric, line.value, line.samples);
                self.say(&format!("Step {step}: {metric} {value:.6} of {}{rule}{best}", counted(samples, "sample")));
                if *last {
                    self.say("No better one came for as long as training.patience says: the run ends here.");
                }
            }
            // Long work is told without a terminal too.
            Event::Busy(doing) if !self.quiet && self.bar.is_hidden() && doing.starts_with("extracts") => {
                self.say(doing)
            }
            Event::Busy(doing) => self.bar.say(*doing),
            Event::Wrote(path) => {
                if path.extension().is_some_and(|extension| extension == "png") {
                    self.say(&format!("wrote {}", path.display()));
                }
            }
        }
    }

    /// The last lines; `summary` is None for a run that failed, whose error is reported elsewhere.
    pub fn end(&mut self, summary: Option<&Summary>) {
        self.bar = Bar::hidden();
        if let (Some(summary), false) = (summary, self.quiet) {
            let validation =
                summary.validation_loss.map_or(String::new(), |loss| format!(", validation loss {loss:.6}"));
            let accuracy =
                summary.validation_accuracy.map_or(String::new(), |share| format!(", accuracy {}", percent(share)));
            let loss = summary.loss.map_or(String::new(), |loss| format!(", loss {loss:.6}"));
            if !self.complete {
                let steps = counted(summary.steps, "step");
                self.say(&format!("{steps} in {}{loss}{validation}{accuracy}", duration(summary.seconds)));
            }
            self.say(&format!("samples  {}", summary.samples.display()));
            self.say(&format!("model    {}", summary.model.display()));
        }
    }

    fn start(&mut self, start: &Start) {
        let training = &start.config.training;
        let images = training.batch_size * training.micro_batches();
        self.images_per_step = images as f64;
        self.steps = start.steps;
        self.epochs =
            Epochs { each: start.steps_per_epoch, all: start.steps, log: training.log_every, told: start.from };
        let on_cpu = start.device.starts_with("cpu");
        let device =
            if on_cpu { format!("{}, {}", start.device, counted(threads(), "thread")) } else { start.device.clone() };
        let free = start.memory.available.map_or(String::new(), |free| format!(", {} free", size(free)));
        let epochs = start.steps as f64 / start.steps_per_epoch as f64;
        let from = if start.from > 0 { format!(", resumes after step {}", start.from) } else { String::new() };
        let lines = [
            format!("model    {}: {}, {} parameters", start.name, start.config.model.kind(), count(start.parameters)),
            format!("data     {}", start.data),
            format!("device   {device}, {}", training.precision.name()),
            format!(
                "memory   {} planned{free}{}",
                size(start.memory.needed()),
                if start.ranks.is_empty() { "" } else { ", on each" }
            ),
            format!(
                "run      {}: {} of {} ({epochs:.1} epochs){from}",
                start.folder.display(),
                counted(start.steps, "step"),
                counted(images, "image")
            ),
        ];
        for line in &lines {
            self.say(line);
        }
        if !start.ranks.is_empty() {
            let (rate, count) = (training.learning_rate, training.micro_batches());
            let note = match count {
                1 => String::new(),
                _ => format!(
                    "; the learning rate stays {rate} (linear scaling to {count} batches a step would be {})",
                    rate * count as f64
                ),
            };
            self.say(&format!("ranks    {}{note}", start.ranks));
        }
        if self.live {
            self.bar = Bar::of_steps(start.from, start.steps);
        }
    }

    fn logged(&mut self, line: &TrainingLine) {
        let left = (self.steps - line.step.min(self.steps)) as f64 * self.images_per_step / line.images_per_second;
        let accuracy = line.accuracy.map_or(String::new(), |share| format!(" | accuracy {}", percent(share)));
        let (loss, speed) = (line.loss, line.images_per_second);
        let text = format!("loss {loss:.4}{accuracy} | {speed:.0} images/s | {} left", duration(left));
        if self.live {
            self.bar.say(text);
        } else {
            eprintln!("step {}/{} | {text}", line.step, self.steps);
        }
        self.last = Some(line.clone());
    }

    /// A permanent line.
    fn say(&self, line: &str) {
        // A closed reader, such as `head`, does not end a run.
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }

    fn warn(&self, text: &str) {
        self.bar.suspend(|| eprintln!("warning: {}", super::one_line(text)));
    }
}

/// Progress of sampling: a bar on a terminal; else, on request, one line per second.
pub(super) struct Drawing {
    bar: Bar,
    images: usize,
    started: Instant,
    /// Time of the last line, if lines are requested.
    line: Option<Instant>,
}

impl Drawing {
    pub fn new(quiet: bool, always: bool, images: usize) -> Self {
        let live = !quiet && std::io::stderr().is_terminal();
        let bar = Bar::of("images", !live);
        bar.at(0, images);
        let now = Instant::now();
        Self { bar, images, started: now, line: (always && !live).then_some(now) }
    }

    /// `done` of `total` evaluations of the network are made.
    pub fn update(&mut self, done: usize, total: usize) {
        self.bar.at(done * self.images / total, self.images);
        let now = Instant::now();
        let due = |last: &Instant| now.duration_since(*last).as_secs_f64() >= 1.0 || done == total;
        if let Some(last) = self.line.as_mut().filter(|last| due(last)) {
            *last = now;
            let share = done as f64 / total as f64;
            let seconds = now.duration_since(self.started).as_secs_f64();
            eprintln!(
                "{:3.0} % | {}/{} images | {:.1} images/s | {} left",
                100.0 * share,
                done * self.images / total,
                self.images,
                self.images as f64 * share / seconds.max(1e-9),
                duration(seconds / share - seconds)
            );
        }
    }
}

/// `65.2%`
fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// `19.1 M`
fn count(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{:.1} k", number as f64 / 1e3),
        _ => format!("{:.1} M", number as f64 / 1e6),
    }
}

/// `312 MiB`
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// `1 h 05 min`, `3 min 20 s`, `12 s`
fn duration(seconds: f64) -> String {
    // Longer than a hundred years is not shown in full; the cast would saturate.
    let whole = seconds.clamp(0.0, 4e9).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s:02} s"),
        (h, min, _) => format!("{h} h {min:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_epochs_have_no_more_lines_than_the_log() {
        let told = |each, all, log| {
            let mut epochs = Epochs { each, all, log, told: 0 };
            (1..=all / each).filter(|epoch| epochs.is_due(*epoch)).collect::<Vec<u64>>()
        };
        assert_eq!(told(100, 300, 50), [1, 2, 3]);
        // Epochs of one step: as many lines as steps / 50, not 200.
        assert_eq!(told(1, 200, 50), [50, 100, 150, 200]);
        // A line every 50 steps, at the epoch that first passes them; the last epoch always.
        assert_eq!(told(4, 130, 50), [13, 25, 32]);
        assert_eq!(told(7, 20, 50), [2]);
    }

    #[test]
    fn numbers_are_said_as_people_do() {
        assert_eq!([count(999), count(1_050), count(19_107_920)], ["999", "1.1 k", "19.1 M"]);
        assert_eq!([size(327_155_712), size(3 << 30)], ["312 MiB", "3.0 GiB"]);
        assert_eq!(
            [duration(11.6), duration(200.0), duration(3900.0), duration(f64::INFINITY)],
            ["12 s", "3 min 20 s", "1 h 05 min", "1111111 h 06 min"]
        );
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
