//! `engine train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use super::bar::shown;
use super::crew::Crew;
use super::data::{ClassList, PictureArgs};
use super::flags;
use super::options::DataFolder;
use super::progress::Terminal;
use super::train_data::{self, Given};
use crate::config::{Config, ModelConfig, presets};
use crate::data::{FetchOptions, WEIGHTS, WEIGHTS_DIR, fetch_weights};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::ops::host::parallel::set_threads;
use crate::train::{Event, TrainRequest, check_ranks, follow, train};
use crate::words::counted;

/// Train a model; without options, a small one on built-in shapes.
///
/// The run folder holds everything: the model, checkpoints, samples, the loss curve, metrics.jsonl. Ctrl-C saves and prints how to
/// resume.
#[derive(Debug, Args)]
pub struct TrainCommand {
    /// A configuration that comes with the engine; see `engine presets` [default: quickstart]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,
    /// A configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder or an archive of pictures, a data set in another format, a data set file, the name of a published set, or
    /// `builtin`; give it several times to join sets [default: the configured set]
    ///
    /// Anything but a data set file is imported into the data folder, once; `engine data import --help` lists the formats.
    #[arg(long, value_name = "DATA")]
    data: Vec<String>,
    /// Train only on these classes of the data set, and set the model's class count
    #[arg(long, value_name = "A,B,…")]
    classes: Option<ClassList>,
    #[command(flatten)]
    folder: DataFolder,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// The run folder [default: runs/NAME, or runs/NAME-2 …]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Resume the run in this folder from its newest checkpoint
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// The run's length in optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<u64>,
    /// The run's length in passes over the training images
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Images in a batch
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// Seed of all random numbers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// CPU threads of the computation [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Number of processes on this machine, which share its cores; a step has as many batches
    #[arg(long, value_name = "N")]
    processes: Option<usize>,
    /// Number of GPUs of this machine, with one process each
    #[arg(long, value_name = "N", conflicts_with = "processes")]
    gpus: Option<usize>,
    /// Launch each step eagerly on a GPU instead of replaying a captured graph: slower, with the same bits
    #[arg(long)]
    no_graph: bool,
    /// Override a value of the configuration: --set training.learning_rate=1e-3
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten, next_help_heading = "Pictures that --data imports")]
    pictures: PictureArgs,
}

impl TrainCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`train()`], and of the configuration.
    pub fn run(self) -> Result<()> {
        let device: DeviceChoice = self.device.parse()?;
        let option = if self.gpus.is_some() { "--gpus" } else { "--processes" };
        self.check_before_processes()?;
        let crew = Crew::gather(self.processes.or(self.gpus), option)?;
        let device = Crew::device_of(crew.as_ref(), device, self.gpus.is_some(), self.processes.is_some());
        let outcome = self.train(crew.as_ref(), device);
        if let (Some(crew), Err(error)) = (&crew, &outcome) {
            // A rank that fails at the start ends the others.
            crew.team.leave(Some(&flags::with_flags(error, &[])));
        }
        outcome
    }

    /// What would fail in each process of this machine alike fails here once, before any is started.
    fn check_before_processes(&self) -> Result<()> {
        let is_started = std::env::var_os("ENGINE_RANK").is_some();
        let Some(processes) = self.processes.or(self.gpus).filter(|count| *count > 1 && !is_started) else {
            return Ok(());
        };
        let request = match &self.resume {
            Some(folder) => self.refuse_changes().map(|()| TrainRequest::resume(folder))?,
            None => {
                let (name, config) = self.configuration(false)?;
                TrainRequest::new(name, config)
            }
        };
        check_ranks(&request, processes)
    }

    fn train(&self, crew: Option<&Crew>, device: DeviceChoice) -> Result<()> {
        if let Some(crew) = crew {
            crew.share_threads(self.threads)?;
        }
        if let Some(threads) = self.threads {
            if !(1..=4096).contains(&threads) {
                let message = counted(threads, "thread");
                return Err(Error::config("--threads", message, "give 1 to 4096, or leave it out to use all"));
            }
            set_threads(Some(threads))?;
        }
        let mut request = match crew {
            Some(crew) => crew.leader_first(|| self.request(crew.leads()))?,
            None => self.request(true)?,
        };
        request.out = self.out.clone();
        if request.resume.is_some() {
            request.data = self.resumed_data()?;
        }
        request.data_dir = self.folder.data_dir.clone();
        (request.device, request.graphs) = (device, !self.no_graph);
        request.team = crew.map(|crew| crew.team.clone());
        (request.steps, request.epochs) = (self.steps, self.epochs);
        request.progress = shown(self.quiet);
        if let Some(crew) = crew.filter(|crew| !crew.leads()) {
            // The handler lives until the process ends; the team must end before.
            let team = Arc::downgrade(&crew.team);
            on_interrupt(move || {
                if let Some(team) = team.upgrade() {
                    team.ask_to_stop();
                }
            })?;
            return follow(&request);
        }
        if let Some(config) = &request.config {
            fetch_backbone(config, self.quiet)?;
        }
        catch_interrupts(request.stop.clone())?;
        let mut terminal = Terminal::new(self.quiet);
        let outcome = train(request, &mut |event| match event {
            Event::Warning(text) => terminal.event(&Event::Warning(flags::noted(text))),
            _ => terminal.event(event),
        });
        terminal.end(outcome.as_ref().ok());
        outcome.map(|_| ())
    }

    /// The run that the options describe, with its data found or imported; `tells` reports progress.
    fn request(&self, tells: bool) -> Result<TrainRequest> {
        let Some(folder) = &self.resume else {
            let (name, mut config) = self.configuration(tells)?;
            let data = self.find_data(&mut config, tells)?;
            return Ok(TrainRequest { data, ..TrainRequest::new(name, config) });
        };
        self.refuse_changes()?;
        Ok(TrainRequest::resume(folder))
    }

    /// The data set given with `--data`, imported if it is not a data set file; the model adapts to it.
    fn find_data(&self, config: &mut Config, tells: bool) -> Result<Option<String>> {
        let text = match &self.config {
            Some(path) => Some(std::fs::read_to_string(path).map_err(Error::io(path, "read"))?),
            None => None,
        };
        let given = Given::new(&self.set, text.as_deref());
        let quiet = self.quiet || !tells;
        let mut say = |text: String| {
            if !quiet {
                println!("{text}");
            }
        };
        let data = match &config.data.path {
            // A configuration may also give a folder.
            Some(path) if self.data.is_empty() && path.exists() => vec![path.display().to_string()],
            _ => self.data.clone(),
        };
        let found = train_data::find(&data, &self.pictures, &self.folder.data_dir, config, &given, quiet, &mut say)?;
        let Some((data, set)) = found else { return Ok(None) };
        train_data::follow(config, &set, &given, &mut say)?;
        Ok(Some(data))
    }

    /// A resumed run may get a new path for its data set.
    fn resumed_data(&self) -> Result<Option<String>> {
        match &self.data[..] {
            [] => Ok(None),
            [data] => Ok(Some(data.clone())),
            _ => Err(Error::config("--data", "a resumed run keeps its data set", "give one file, or leave it out")),
        }
    }

    /// The configuration of a new run, and its name.
    fn configuration(&self, tells: bool) -> Result<(String, Config)> {
        let (name, mut config) = match &self.config {
            Some(path) => {
                let name = path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
                (name, Config::from_file(path)?)
            }
            None => {
                let name = self.preset.clone().unwrap_or_else(|| presets()[0].name.to_string());
                (name.clone(), Config::preset(&name)?)
            }
        };
        for assignment in &self.set {
            config.set(assignment)?;
        }
        if let Some(batch) = self.batch {
            config.set(&format!("training.batch_size={batch}"))?;
        }
        if let Some(seed) = self.seed {
            config.set(&format!("training.seed={seed}"))?;
        }
        if let Some(ClassList(classes)) = &self.classes {
            self.keep(classes, &mut config, tells)?;
        }
        Ok((name, config))
    }

    /// Sets `data.classes`, and `model.num_classes` if the model has classes and the user did not set it.
    fn keep(&self, classes: &[String], config: &mut Config, tells: bool) -> Result<()> {
        if classes.is_empty() {
            let advice = "give one or more, as in cat,dog";
            return Err(Error::config("--classes", "the list of classes is empty", advice));
        }
        config.data.classes = classes.to_vec();
        let given = self.set.iter().any(|assignment| assignment.trim_start().starts_with("model.num_classes"));
        let (count, before) = (classes.len(), config.model.num_classes());
        if given || before == 0 || before == count {
            return Ok(());
        }
        config.set(&format!("model.num_classes={count}"))?;
        if tells && !self.quiet {
            println!("classes  {}: model.num_classes is {count}, not {before}", classes.join(", "));
        }
        Ok(())
    }

    /// A resumed run keeps its configuration.
    fn refuse_changes(&self) -> Result<()> {
        let given = [
            ("--preset", self.preset.is_some()),
            ("--config", self.config.is_some()),
            ("--batch", self.batch.is_some()),
            ("--seed", self.seed.is_some()),
            ("--set", !self.set.is_empty()),
            ("--classes", self.classes.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::config(
                option,
                "a resumed run keeps its configuration",
                "leave it out, or start a new run without --resume",
            )),
            None => Ok(()),
        }
    }
}

/// Downloads the model's pretrained backbone if it is missing, like a data set.
fn fetch_backbone(config: &Config, quiet: bool) -> Result<()> {
    let ModelConfig::ResnetDit(model) = &config.model else { return Ok(()) };
    let Some(name) = model.backbone.as_deref().filter(|name| !Path::new(name).exists()) else { return Ok(()) };
    if WEIGHTS.iter().any(|weights| weights.name == name) {
        let options = FetchOptions { data_dir: WEIGHTS_DIR.into(), progress: shown(quiet), ..FetchOptions::default() };
        fetch_weights(name, &options).map_err(|error| unfetched(name, error))?;
    }
    Ok(())
}

/// The error of a download that this command cannot send elsewhere: `engine fetch` can.
fn unfetched(name: &str, error: Error) -> Error {
    let advice = format!(
        "check the network, or place a copy with `engine fetch {name} --from FILE`, or fetch it from another server with \
         `engine fetch {name} --base-url URL`"
    );
    match error {
        Error::Config { place, message, .. } => Error::Config { place, message, advice },
        Error::File { path, message, .. } => Error::File { path, message, advice },
        error => error,
    }
}

/// The first Ctrl-C (or SIGTERM) saves and ends the run; a second one ends it immediately.
fn catch_interrupts(stop: Arc<AtomicBool>) -> Result<()> {
    on_interrupt(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nsaving after this step; once more ends at once");
    })
}

fn on_interrupt(act: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(act)
        .map_err(|error| Error::config("Ctrl-C", format!("cannot be caught: {error}"), "report this as a bug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backbone_that_cannot_be_fetched_can_be_placed() {
        for error in [
            Error::config("https://x/", "cannot be fetched", "give a mirror with `base_url`"),
            Error::file("weights/resnet18.pth", "is another file", "fetch again with `base_url`"),
        ] {
            let told = flags::with_flags(&unfetched("resnet18", error), &[]);
            assert!(told.contains("`engine fetch resnet18 --from FILE`") && !told.contains("base_url"), "{told}");
        }
    }
}
