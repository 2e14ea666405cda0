//! `engine profile`: where the time of a step goes, kernel by kernel and line by line, with a GPU and without.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::machine::PrecisionChoice;
use super::presets::configuration;
use super::profile_check;
use crate::config::{Config, Precision};
use crate::device::{DeviceChoice, launches};
use crate::error::{Error, Result, nearest};
use crate::profile::calibration::Calibration;
use crate::profile::file::Counted;
use crate::profile::gpu::Gpu;
use crate::profile::machine::{BEGINS, Order};
use crate::profile::report::Report;
use crate::profile::{self, machine, steps, table, trace};

/// Kernels of a section whose lines are shown where no op is named.
const KERNELS: usize = 3;
/// Steps that are measured on a GPU.
const REPEATS: usize = 5;

/// Count what the kernels of a training step and a sampling step do, line by line, and model their times on a GPU.
///
/// Needs no GPU: kernels run on the PTX machine, `cargo run --release -p ptx-machine -- target/ptx-machine`. A few blocks of each launch
/// are executed, at the real batch, and stand for all. Times are modelled, never measured; `--on here` on a GPU measures them too.
#[derive(Clone, Debug, Args)]
pub struct ProfileCommand {
    #[command(flatten)]
    run: RunOptions,
    /// The GPU whose times are modelled: a100, h100, h200, b200, rtx4090, or here: this machine's, which is measured too
    #[arg(long, value_name = "DEVICE", default_value = "h100")]
    on: String,
    /// Show the kernels of this op alone
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// Show the dearest lines of kernels too
    #[arg(long)]
    lines: bool,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write both steps as a trace that ui.perfetto.dev opens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Correct the model by measured times: what `--on here --json FILE` wrote on a GPU
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Keep what is counted in FILE, or take it from there where it exists: a GPU machine then needs no PTX machine
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
    /// Count the runs of FILE and hold them against its counters: one that grew by more than 2 % is an error
    #[arg(long, value_name = "FILE", conflicts_with_all = ["op", "lines", "json", "trace", "calibration", "counters"])]
    check: Option<PathBuf>,
    /// With --check: write the new counters into FILE, which acknowledges them
    #[arg(long, requires = "check")]
    update: bool,
}

/// What is run.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct RunOptions {
    /// A preset [default: quickstart]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,
    /// A YAML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Images in a batch [default: the configuration's]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// f32 or bf16 [default: the configuration's; auto is bf16]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionChoice>,
    /// Override a value, as in --set model.depth=6
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Blocks of a launch that are executed and stand for all; 0: all of them
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub blocks: u32,
}

impl RunOptions {
    /// Name and configuration.
    fn configuration(&self) -> Result<(String, Config)> {
        let (preset, file) = (self.preset.as_deref(), self.config.as_deref());
        let (name, mut config) = configuration(preset, file, &self.set, self.batch, self.precision)?;
        config.training.precision = config.training.precision.settled(true);
        Ok((name, config))
    }

    /// What is run, in words; two that are alike are the same run.
    fn words(&self, name: &str, config: &Config) -> String {
        let precision = config.training.precision.name();
        let mut words = format!("{name}, batch {}, {precision}", config.training.batch_size);
        self.set.iter().for_each(|set| words += &format!(", {set}"));
        let blocks = match self.blocks {
            0 => "every block executed".into(),
            blocks => format!("{blocks} blocks of each launch executed"),
        };
        format!("{words}; {blocks}")
    }

    /// As arguments of the child.
    fn arguments(&self, config: &Config) -> Vec<String> {
        let mut arguments = vec!["profile-count".to_string()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_string(), value]);
        if let Some(preset) = &self.preset {
            add("--preset", preset.clone());
        }
        if let Some(path) = &self.config {
            add("--config", path.display().to_string());
        }
        let precision = if config.training.precision == Precision::Bf16 { "bf16" } else { "f32" };
        add("--batch", config.training.batch_size.to_string());
        add("--precision", precision.into());
        self.set.iter().for_each(|set| add("--set", set.clone()));
        add("--blocks", self.blocks.to_string());
        arguments
    }

    /// Counts both steps, in a child on the machine.
    pub fn count(&self, gpu: &Gpu) -> Result<Counted> {
        let (name, config) = self.configuration()?;
        let progress = Progress::new();
        let order = Order { arguments: self.arguments(&config), device: gpu.key, run: self.words(&name, &config) };
        machine::count(order, &mut |begun| progress.say(begun))
    }
}

impl ProfileCommand {
    /// Prints the profile to standard output.
    ///
    /// # Errors
    /// [`Error::Config`] for what cannot be run or is not known; [`Error::Device`] where the machine is missing or a kernel fails on it;
    /// files that cannot be read or written.
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.check {
            let gpu = Gpu::named(&self.on)?;
            return profile_check::run(path, self.update, &gpu);
        }
        self.look_at_op()?;
        let (_, config) = self.run.configuration()?;
        let here = self.on == "here";
        let gpu = if here { Gpu::of_name(&here_name()?)? } else { Gpu::named(&self.on)? };
        let calibration = self.calibration.as_ref().map(|path| Calibration::read(path, &gpu)).transpose()?;
        let counted = self.counted(&gpu)?;
        let mut report = profile::profile(&counted, gpu, calibration.as_ref())?;
        if here {
            profile::beside(&mut report, steps::measure(&config, REPEATS)?)?;
        }
        if let Some(path) = &self.json {
            write(path, &report.json())?;
        }
        if let Some(path) = &self.trace {
            write(path, &trace::trace(&report))?;
        }
        print!("{}", self.text(&report, &counted));
        Ok(())
    }

    fn look_at_op(&self) -> Result<()> {
        let Some(op) = &self.op else { return Ok(()) };
        let mut known: Vec<&str> = launches::ALL.iter().map(|kernel| kernel.module).collect();
        known.dedup();
        if known.contains(&op.as_str()) {
            return Ok(());
        }
        let all = known.join(", ");
        let mend = match nearest(op, known) {
            Some(near) => format!("did you mean {near}? There are {all}"),
            None => format!("there are {all}"),
        };
        let short: String = op.chars().take(60).collect();
        Err(Error::config("--op", format!("no kernels are called `{}`", short.escape_debug()), mend))
    }

    /// What was counted, now or before.
    fn counted(&self, gpu: &Gpu) -> Result<Counted> {
        let Some(path) = &self.counters else { return self.run.count(gpu) };
        if !path.exists() {
            let counted = self.run.count(gpu)?;
            counted.write(path)?;
            return Ok(counted);
        }
        let counted = Counted::read(path)?;
        let (name, config) = self.run.configuration()?;
        let wanted = self.run.words(&name, &config);
        let device = &counted.machine.device;
        if counted.run != wanted || device != gpu.key {
            let message = format!("it has the counters of {} on {device}, not of {wanted} on {}", counted.run, gpu.key);
            return Err(Error::file(path, message, "delete it, or name another file"));
        }
        Ok(counted)
    }

    fn text(&self, report: &Report, counted: &Counted) -> String {
        let op = self.op.as_deref();
        let mut text = table::text(report, op);
        for section in steps::SECTIONS.into_iter().filter(|_| self.lines) {
            let of = report.rows.iter().filter(|row| row.section == section && row.last.launch.is_some());
            let rows: Vec<_> = of.filter(|row| op.is_none_or(|op| row.module == op)).collect();
            for row in rows.iter().take(if op.is_some() { usize::MAX } else { KERNELS }) {
                if let Some(kernel) = counted.machine.kernels.iter().find(|kernel| kernel.name == row.kernel) {
                    text += &table::lines(kernel, section);
                }
            }
        }
        text + "\n" + &table::legend()
    }
}

/// This machine's GPU in words.
fn here_name() -> Result<String> {
    match DeviceChoice::Cuda(0).open()?.accelerator {
        Some(accelerator) => Ok(accelerator.name()),
        None => Err(Error::config("--on here", "this machine has no GPU", "name one, as in --on h100")),
    }
}

fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    std::fs::write(path, format!("{value}\n")).map_err(Error::io(path, "write"))
}

/// Says on standard error what is counted.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar }
    }

    fn say(&self, begun: &str) {
        let text = match begun {
            "prepare" => "counting on the PTX machine: weights and images".to_string(),
            section => format!("counting on the PTX machine: the {section} step"),
        };
        match &self.bar {
            Some(bar) => bar.set_message(text),
            // Nobody is left to tell if this cannot be printed.
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The child of `engine profile`: runs both steps on the machine and writes what the engine submits.
#[derive(Clone, Debug, Args)]
pub struct ProfileCountCommand {
    #[command(flatten)]
    run: RunOptions,
    /// The file to write
    nodes: PathBuf,
}

impl ProfileCountCommand {
    /// Counts.
    ///
    /// # Errors
    /// Those of [`steps::count`]; a file that cannot be written.
    pub fn run(self) -> Result<()> {
        let (_, config) = self.run.configuration()?;
        let nodes = steps::count(&config, self.run.blocks, &mut |begun| println!("{BEGINS}{begun}"))?;
        write(&self.nodes, &serde_json::json!(nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> ProfileCommand {
        ProfileCommand {
            run: RunOptions { blocks: 6, ..RunOptions::default() },
            on: "h100".into(),
            op: None,
            lines: false,
            json: None,
            trace: None,
            calibration: None,
            counters: None,
            check: None,
            update: false,
        }
    }

    #[test]
    fn what_cannot_be_profiled_is_told() {
        let fault = |change: &dyn Fn(&mut ProfileCommand)| {
            let mut command = command();
            change(&mut command);
            command.run().unwrap_err().to_string()
        };
        assert!(fault(&|command| command.on = "h10".into()).contains("did you mean h100?"));
        assert!(fault(&|command| command.op = Some("lineer".into())).contains("did you mean linear?"));
        assert!(fault(&|command| command.run.preset = Some("dit-cifar".into())).contains("did you mean dit-cifar10?"));
        assert!(fault(&|command| command.run.batch = Some(0)).starts_with("--batch: "));
        assert!(fault(&|command| command.calibration = Some("/nowhere".into())).starts_with("/nowhere: cannot read"));
    }

    #[test]
    fn the_child_gets_the_run() {
        let run = RunOptions {
            preset: Some("dit-cifar10".into()),
            batch: Some(8),
            set: vec!["model.depth=2".into()],
            blocks: 3,
            ..RunOptions::default()
        };
        let (name, config) = run.configuration().unwrap();
        let arguments = run.arguments(&config).join(" ");
        assert_eq!(
            arguments,
            "profile-count --preset dit-cifar10 --batch 8 --precision bf16 --set model.depth=2 --blocks 3"
        );
        assert_eq!(
            run.words(&name, &config),
            "dit-cifar10, batch 8, bf16, model.depth=2; 3 blocks of each launch executed"
        );
    }
}
