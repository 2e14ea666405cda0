//! The machine that counts: where it is, and the child that runs on it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::file::{Counted, MachineFile};
use crate::error::{Error, Result};

/// Names the machine's folder, in the place of `target/ptx-machine`.
pub const FOLDER: &str = "ENGINE_PTX_MACHINE";

/// The machine's own variables.
const PREFIX: &str = "PTX_MACHINE_";

/// What a child prints in front of the name of what it begins.
pub const BEGINS: &str = "counting: ";

/// The folder with the machine's `libcuda.so.1`.
///
/// # Errors
/// [`Error::Device`] with the command that builds it.
pub fn folder() -> Result<PathBuf> {
    let named = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let beside = || {
        let executable = std::env::current_exe().ok()?;
        executable.ancestors().map(|folder| folder.join("ptx-machine")).find(|folder| is_there(folder))
    };
    let usual = || Path::new("target/ptx-machine").to_path_buf();
    let folder = named.or_else(beside).unwrap_or_else(usual);
    if is_there(&folder) {
        return folder.canonicalize().map_err(Error::io(&folder, "find"));
    }
    let shown = folder.display();
    Err(Error::device(
        "ptx-machine",
        format!("no libcuda.so.1 in {shown}, and kernels are counted on it"),
        format!("build it, `cargo run --release -p ptx-machine -- {shown}`; {FOLDER} names another folder"),
    ))
}

fn is_there(folder: &Path) -> bool {
    folder.join("libcuda.so.1").is_file()
}

/// What a child is to count.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The program's arguments; behind them comes the file for what the engine submits.
    pub arguments: Vec<String>,
    /// The device that the machine is: `h100`.
    pub device: &'a str,
    /// What is counted, in words, for [`Counted::run`].
    pub run: String,
}

/// Counts in a child: this program with other arguments, on the machine. `said` hears what it begins.
///
/// # Errors
/// Where the machine is missing, and whatever the child fails with.
pub fn count(order: Order, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let machine = folder()?;
    let place = std::env::temp_dir().join(format!("engine-profile-{}", std::process::id()));
    std::fs::create_dir(&place).map_err(Error::io(&place, "create"))?;
    let outcome = child(&order, &machine, &place, said);
    // Only this process knows the folder; it may stay where it cannot be removed.
    let _ = std::fs::remove_dir_all(&place);
    outcome
}

fn child(order: &Order, machine: &Path, place: &Path, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let (counts, nodes) = (place.join("machine.json"), place.join("nodes.json"));
    let program = std::env::current_exe().map_err(Error::io("/proc/self/exe", "find"))?;
    let mut command = Command::new(&program);
    command.args(&order.arguments).arg(&nodes).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What is set for the machine stays, but for what this run decides.
    command.env("LD_LIBRARY_PATH", machine).env(format!("{PREFIX}DEVICE"), order.device);
    command.env(format!("{PREFIX}CHECKS"), "off").env(format!("{PREFIX}PROFILE"), &counts);
    let mut child = command.spawn().map_err(Error::io(&program, "start"))?;
    // A long fault must not fill the pipe while the other one is read.
    let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || std::io::read_to_string(pipe)));
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            if let Some(begun) = line.strip_prefix(BEGINS) {
                said(begun);
            }
        }
    }
    let status = child.wait().map_err(Error::io(&program, "wait for"))?;
    if !status.success() {
        let text = errors.and_then(|thread| thread.join().ok()).and_then(std::result::Result::ok).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" ");
        let message = format!("counting failed ({status}): {}", last.trim_start_matches("error: "));
        return Err(Error::device("ptx-machine", message, "correct it, and run `engine doctor` on the machine"));
    }
    let text = std::fs::read(&nodes).map_err(Error::io(&nodes, "read"))?;
    let nodes = serde_json::from_slice(&text).map_err(|error| Error::file(&nodes, error.to_string(), "report this"))?;
    if !counts.is_file() {
        let message = format!("{} counts nothing: it is of an older version", machine.display());
        let command = format!("cargo run --release -p ptx-machine -- {}", machine.display());
        return Err(Error::device("ptx-machine", message, format!("build it again, `{command}`")));
    }
    Ok(Counted { run: order.run.clone(), nodes, machine: MachineFile::read(&counts)? })
}
