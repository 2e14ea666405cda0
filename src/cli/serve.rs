//! `engine serve`: serves models over HTTP, with a page.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::flags;
use super::machine::MachineOptions;
use crate::error::{Error, Result};
use crate::serve::{Keys, Limits, Runs, Settings, run};
use crate::tensor::Device;

/// Serve models over HTTP, with an interactive page.
///
/// The default model is the one that comes with the engine. Image k of a seed is the same as from `engine sample`, whatever else
/// the server draws with it. The API is described at /docs; OpenAI clients can use /v1.
#[derive(Clone, Debug, Args)]
pub struct ServeCommand {
    /// A model file, a checkpoint, a run folder, or the name of a model that comes with the engine; may be given several times
    #[arg(long, value_name = "FILE|RUN|NAME")]
    model: Vec<PathBuf>,
    /// A folder of more models: .safetensors files and run folders
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Address to listen on; port 0 chooses a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7860")]
    listen: SocketAddr,
    #[command(flatten)]
    machine: MachineOptions,
    /// Images that share a denoising step; a guided image counts twice [default: 16 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N")]
    max_batch: Option<usize>,
    /// Most unfinished jobs; further requests are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// Most images of a job
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_images: usize,
    /// Most denoising steps of an image
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_steps: usize,
    /// Longest time of a job in seconds, including the queue
    #[arg(long, value_name = "S", default_value_t = 300)]
    timeout: u64,
    /// Seconds that running jobs may take after the server is told to stop
    #[arg(long, value_name = "S", default_value_t = 20)]
    grace: u64,
    /// Most open connections
    #[arg(long, value_name = "N", default_value_t = 256)]
    connections: usize,
    /// Memory in MiB for models and their batches; unused models are evicted
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: usize,
    /// A file of accepted keys: the SHA-256 of each, one per line, followed by a name
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// An additional host name for the server, besides localhost and addresses
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// An allowed origin of another page, as in `https://example.org`
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Folder for finished jobs, which survive a restart, or none [default: a folder per address under ~/.local/state/engine; none
    /// for port 0]
    #[arg(long, value_name = "DIR|none")]
    keep: Option<PathBuf>,
    /// A folder of run folders, shown during training
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Print only the address
    #[arg(long)]
    quiet: bool,
}

impl ServeCommand {
    /// Serves until it is stopped.
    ///
    /// # Errors
    /// Those of [`run`], and invalid options.
    pub fn run(self) -> Result<()> {
        let bounds = [("--queue", self.queue), ("--max-images", self.max_images), ("--max-steps", self.max_steps)];
        let more =
            [("--connections", self.connections), ("--timeout", self.timeout as usize), ("--memory", self.memory)];
        for (option, value) in bounds.into_iter().chain(more) {
            if !(1..=1_000_000).contains(&value) {
                return Err(Error::config(option, value.to_string(), "give 1 to 1000000"));
            }
        }
        let machine = self.machine.open()?;
        let keys = self.api_keys.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
        if keys.is_empty() && !self.listen.ip().is_loopback() && !self.quiet {
            eprintln!(
                "warning: anyone who can reach {} can send requests; give --api-keys, or listen on 127.0.0.1",
                self.listen
            );
        }
        let usual = if matches!(machine.device, Device::Cpu) { 16 } else { 256 };
        let settings = Settings {
            listen: self.listen,
            models: self.model,
            folder: self.models,
            keep: self
                .keep
                .map_or_else(|| usual_folder(self.listen), |folder| (folder != Path::new("none")).then_some(folder)),
            runs: self.runs.as_deref().map(Runs::new).transpose()?,
            precision: machine.precision(),
            device: machine.device,
            note: machine.note,
            rows: self.max_batch.unwrap_or(usual),
            memory: self.memory << 20,
            keys,
            hosts: self.allow_host,
            origins: self.allow_origin,
            naming: flags::of_server,
            limits: Limits {
                queue: self.queue,
                images: self.max_images,
                steps: self.max_steps,
                job: Duration::from_secs(self.timeout),
                grace: Duration::from_secs(self.grace),
                connections: self.connections,
                ..Limits::default()
            },
        };
        let quiet = self.quiet;
        run(settings, move |text| {
            if text.starts_with("http") {
                println!("{text}");
            } else if !quiet {
                eprintln!("{text}");
            }
        })
    }
}

/// The job folder of a server at an address, following the XDG base directory specification. None if no such folder is writable.
fn usual_folder(listen: SocketAddr) -> Option<PathBuf> {
    if listen.port() == 0 {
        return None;
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let folder = state.join("engine").join(format!("serve-{}", listen.to_string().replace(':', "-")));
    // Read-only file systems, as in containers, are not an error. Only this user may read the images.
    let probe = folder.join(".probe");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.and_then(|()| std::fs::write(&probe, "")).ok()?;
    let _ = std::fs::remove_file(probe);
    Some(folder)
}
