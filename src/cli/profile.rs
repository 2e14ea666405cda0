//! `engine profile`: the time of a step by kernel and source line, with or without a GPU.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::bar::Bar;
use super::flags;
use super::machine::PrecisionChoice;
use super::output::refuse_taken;
use super::presets::configuration;
use super::profile_check;
use crate::config::Config;
use crate::device::{DeviceChoice, launches};
use crate::error::{Error, Result, nearest};
use crate::profile::calibration::Calibration;
use crate::profile::file::{Counted, KernelLines};
use crate::profile::gpu::Gpu;
use crate::profile::lines::{hashes, sha256, source_lines};
use crate::profile::machine::{BEGINS, Order};
use crate::profile::report::Report;
use crate::profile::{self, machine, steps, table, trace};
use crate::words::counted;

/// Kernels of a section whose lines are shown if no op is given.
const KERNELS: usize = 3;
/// Measured steps on a GPU.
const REPEATS: usize = 5;

/// Options that mean nothing for `--check`: its file has the runs.
const NOT_CHECKED: [&str; 13] = [
    "preset",
    "config",
    "batch",
    "precision",
    "set",
    "blocks",
    "op",
    "lines",
    "json",
    "trace",
    "calibration",
    "counters",
    "force",
];

/// Count the work of the kernels of a training step and a sampling step, by line, and model their times on a GPU.
///
/// Needs no GPU: kernels run on the PTX machine, `cargo run --release -p ptx-machine -- target/ptx-machine`. A few blocks of each
/// launch are executed, at the real batch size, and represent all. Times are modelled, never measured; `--on here` on a GPU also
/// measures them.
#[derive(Clone, Debug, Args)]
pub struct ProfileCommand {
    #[command(flatten)]
    run: ProfiledRun,
    /// The GPU to model: a100, h100, h200, b200, rtx4090, or here: this machine's GPU, which is also measured
    #[arg(long, value_name = "DEVICE", default_value = "h100")]
    on: String,
    /// Show only the kernels of this op
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// Also show the most expensive lines of kernels
    #[arg(long)]
    lines: bool,
    /// Write everything as JSON; with --lines also the lines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write both steps as a trace that ui.perfetto.dev opens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Correct the model with measured times: the output of `--on here --json FILE` on a GPU
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Store the counters in FILE, or read them if it exists: a GPU machine then needs no PTX machine
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
    /// Count the runs in FILE and compare with its counters: growth of more than 2 % is an error
    #[arg(long, value_name = "FILE", conflicts_with_all = NOT_CHECKED)]
    check: Option<PathBuf>,
    /// Replace the files of --json and --trace if they exist
    #[arg(long)]
    force: bool,
    /// With --check: write the new counters to FILE, which accepts them
    #[arg(long, requires = "check")]
    update: bool,
}

/// The run to profile.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ProfiledRun {
    /// A preset [default: quickstart]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,
    /// A YAML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Images in a batch [default: the configuration's]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// f32, tf32 or bf16 [default: the configuration's; auto is bf16]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionChoice>,
    /// Override a value, as in --set model.depth=6
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Executed blocks of a launch, which represent all; 0: all of them
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub blocks: u32,
}

impl ProfiledRun {
    /// Name and configuration.
    fn configuration(&self) -> Result<(String, Config)> {
        let (preset, file) = (self.preset.as_deref(), self.config.as_deref());
        let (name, mut config) = configuration(preset, file, &self.set, self.batch, self.precision)?;
        config.training.precision = config.training.precision.settled(true);
        Ok((name, config))
    }

    /// The run as text; equal texts mean equal runs.
    fn words(&self, name: &str, config: &Config) -> String {
        let precision = config.training.precision.name();
        let mut words = format!("{name}, batch {}, {precision}", config.training.batch_size);
        self.set.iter().for_each(|set| words += &format!(", {set}"));
        let blocks = match self.blocks {
            0 => "every block executed".into(),
            blocks => format!("{} of each launch executed", counted(blocks, "block")),
        };
        format!("{words}; {blocks}")
    }

    /// The arguments of the child process.
    fn arguments(&self, config: &Config) -> Vec<String> {
        let mut arguments = vec!["profile-count".to_string()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_string(), value]);
        if let Some(preset) = &self.preset {
            add("--preset", preset.clone());
        }
        if let Some(path) = &self.config {
            add("--config", path.display().to_string());
        }
        add("--batch", config.training.batch_size.to_string());
        add("--precision", config.training.precision.name().into());
        self.set.iter().for_each(|set| add("--set", set.clone()));
        add("--blocks", self.blocks.to_string());
        arguments
    }

    /// Counts both steps, in a child process on the PTX machine.
    pub fn count(&self, gpu: &Gpu) -> Result<Counted> {
        let (name, config) = self.configuration()?;
        let bar = Bar::of_unknown_length(false);
        let order = Order {
            arguments: self.arguments(&config),
            device: gpu.key,
            run: self.words(&name, &config),
            configuration: sha256(&config.to_yaml()?),
        };
        machine::count(order, &mut |begun| say(&bar, begun))
    }
}

impl ProfileCommand {
    /// Prints the profile to standard output.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown or invalid run; [`Error::Device`] if the PTX machine is missing or a kernel fails on it;
    /// files that cannot be read or written.
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.check {
            let gpu = Gpu::named(&self.on)?;
            if self.update {
                look_at_output(path)?;
            }
            return profile_check::run(path, self.update, &gpu);
        }
        self.look_at_op()?;
        let unread = self.counters.as_ref().filter(|path| !path.exists());
        [self.json.as_ref(), self.trace.as_ref(), unread]
            .into_iter()
            .flatten()
            .try_for_each(|path| look_at_output(path))?;
        let outputs = [self.json.as_ref(), self.trace.as_ref()];
        outputs.into_iter().flatten().try_for_each(|path| refuse_taken(path, self.force))?;
        let (_, config) = self.run.configuration()?;
        let here = self.on == "here";
        let gpu = if here { Gpu::of_name(&here_name()?)? } else { Gpu::named(&self.on)? };
        let calibration = self.calibration.as_ref().map(|path| Calibration::read(path, &gpu)).transpose()?;
        let counted = self.counted(&gpu)?;
        let mut report = profile::profile(&counted, gpu, calibration.as_ref())?;
        if here {
            profile::beside(&mut report, steps::measure(&config, REPEATS)?)?;
        }
        let lines = self.kernels(&report, &counted);
        if let Some(path) = &self.json {
            let mut json = report.json();
            if self.lines {
                let lines = lines.iter().map(|&(section, kernel)| {
                    let lines = source_lines(kernel, section);
                    serde_json::json!({ "section": section, "kernel": kernel.name, "op": kernel.module, "lines": lines })
                });
                json["lines"] = lines.collect();
            }
            write(path, &json)?;
        }
        if let Some(path) = &self.trace {
            write(path, &trace::trace(&report))?;
        }
        let lines: String = lines.iter().map(|&(section, kernel)| table::lines(kernel, section)).collect();
        let text = flags::noted(&table::text(&report, self.op.as_deref()));
        print!("{text}{lines}\n{}", table::legend());
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
        let advice = match nearest(op, known) {
            Some(near) => format!("did you mean {near}? Known: {all}"),
            None => format!("use one of {all}"),
        };
        let short: String = op.chars().take(60).collect();
        Err(Error::config("--op", format!("no op is called `{}`", short.escape_debug()), advice))
    }

    /// The counters, counted now or read from a file.
    fn counted(&self, gpu: &Gpu) -> Result<Counted> {
        let Some(path) = &self.counters else { return self.run.count(gpu) };
        if !path.exists() {
            let counted = self.run.count(gpu)?;
            counted.write(path)?;
            return Ok(counted);
        }
        let counted = Counted::read(path)?;
        let (name, config) = self.run.configuration()?;
        let (wanted, configuration) = (self.run.words(&name, &config), sha256(&config.to_yaml()?));
        match counted.differs(&wanted, gpu.key, &configuration, &hashes(&counted.machine)) {
            None => Ok(counted),
            Some(message) => Err(Error::file(path, message, "delete it, or give another file")),
        }
    }

    /// With `--lines`, the kernels whose lines are shown, each with its section.
    fn kernels<'a>(&self, report: &Report, counted: &'a Counted) -> Vec<(&'static str, &'a KernelLines)> {
        let mut kernels = Vec::new();
        let op = self.op.as_deref();
        for section in steps::SECTIONS.into_iter().filter(|_| self.lines) {
            let of = report.rows.iter().filter(|row| row.section == section && row.last.launch.is_some());
            let rows = of.filter(|row| op.is_none_or(|op| row.module == op));
            for row in rows.take(if op.is_some() { usize::MAX } else { KERNELS }) {
                let found = counted.machine.kernels.iter().find(|kernel| kernel.name == row.kernel);
                kernels.extend(found.map(|kernel| (section, kernel)));
            }
        }
        kernels
    }
}

/// This machine's GPU as text.
fn here_name() -> Result<String> {
    let cause = match DeviceChoice::Cuda(0).open().map(|chosen| chosen.accelerator) {
        Ok(Some(accelerator)) => return Ok(accelerator.name()),
        Ok(None) => String::new(),
        Err(Error::Device { message, .. }) => format!(" ({message})"),
        Err(error) => return Err(error),
    };
    Err(Error::config("--on here", format!("this machine has no GPU{cause}"), "give one, as in --on h100"))
}

/// Fails if a file cannot be written: before the work whose results it is for.
fn look_at_output(path: &Path) -> Result<()> {
    let outcome = match path.metadata() {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => {
            std::fs::OpenOptions::new().append(true).open(path).map(drop)
        }
        // Opening and closing a pipe would end its reader.
        Ok(_) => Ok(()),
        Err(_) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).map(drop)
        }
    };
    outcome.map_err(Error::io(path, "write"))
}

fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    std::fs::write(path, format!("{value}\n")).map_err(Error::io(path, "write"))
}

/// Reports that a part of the counting begins.
fn say(bar: &Bar, begun: &str) {
    let text = match begun {
        "prepare" => "counting on the PTX machine: weights and images".to_string(),
        section => format!("counting on the PTX machine: the {section} step"),
    };
    match bar.is_hidden() {
        // If this cannot be printed, nothing else can be done.
        true => drop(writeln!(std::io::stderr(), "{text}")),
        false => bar.say(text),
    }
}

/// The child process of `engine profile`: runs both steps on the PTX machine and writes the submitted work.
#[derive(Clone, Debug, Args)]
pub struct ProfileCountCommand {
    #[command(flatten)]
    run: ProfiledRun,
    /// The file to write
    nodes: PathBuf,
}

impl ProfileCountCommand {
    /// Counts.
    ///
    /// # Errors
    /// Those of [`steps::count`]; a file that cannot be written.
    pub fn run(self) -> Result<()> {
        machine::end_with_the_parent(&self.nodes);
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
            run: ProfiledRun { blocks: 6, ..ProfiledRun::default() },
            on: "h100".into(),
            op: None,
            lines: false,
            json: None,
            trace: None,
            calibration: None,
            counters: None,
            force: false,
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
        // Outputs are looked at before the work.
        for path in ["/nowhere/p.json", "/"] {
            for option in 0..3 {
                let error = fault(&|command| {
                    let options = [&mut command.json, &mut command.trace, &mut command.counters];
                    *options.into_iter().nth(option).unwrap() = Some(path.into());
                });
                // A folder of counters would be read.
                let doing = if (path, option) == ("/", 2) { "read" } else { "write" };
                assert!(error.starts_with(&format!("{path}: cannot {doing}")), "{error}");
            }
        }
        if DeviceChoice::Cuda(0).open().is_err() {
            let error = fault(&|command| command.on = "here".into());
            assert!(
                error.starts_with("--on here: this machine has no GPU (") && error.ends_with("--on h100"),
                "{error}"
            );
        }
    }

    #[test]
    fn outputs_are_left_as_they_are_until_there_is_something_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old.json");
        std::fs::write(&old, "1").unwrap();
        look_at_output(&old).unwrap();
        look_at_output(&folder.path().join("new.json")).unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_check_has_its_runs_from_its_file() {
        use clap::{Command, FromArgMatches};
        let read = |flags: &[&str]| {
            let command = ProfileCommand::augment_args(Command::new("profile"));
            let matches = command.try_get_matches_from([&["profile", "--check", "c.json"], flags].concat())?;
            ProfileCommand::from_arg_matches(&matches)
        };
        assert!(read(&["--update", "--on", "a100"]).is_ok());
        for flags in [
            ["--preset", "quickstart"],
            ["--config", "c.yaml"],
            ["--batch", "2"],
            ["--precision", "bf16"],
            ["--set", "model.depth=1"],
            ["--blocks", "6"],
            ["--op", "linear"],
            ["--counters", "c.json"],
        ] {
            let error = read(&flags).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{flags:?}: {error}");
        }
    }

    #[test]
    fn the_child_gets_the_run() {
        let run = ProfiledRun {
            preset: Some("dit-cifar10".into()),
            batch: Some(8),
            set: vec!["model.depth=2".into()],
            blocks: 3,
            ..ProfiledRun::default()
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
