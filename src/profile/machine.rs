//! The PTX machine: its location, and the child process that runs on it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::file::{Counted, MachineFile};
use crate::error::{Error, Result};

/// Environment variable with the PTX machine's folder, instead of `target/ptx-machine`.
pub const FOLDER: &str = "ENGINE_PTX_MACHINE";

/// The prefix of the PTX machine's variables.
const PREFIX: &str = "PTX_MACHINE_";

/// The prefix of a child's progress lines.
pub const BEGINS: &str = "counting: ";

/// The folder with the PTX machine's `libcuda.so.1`.
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

/// An order for a child process.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The program's arguments; the file for the submitted work is appended.
    pub arguments: Vec<String>,
    /// The emulated device: `h100`.
    pub device: &'a str,
    /// The run as text, for [`Counted::run`].
    pub run: String,
}

/// Counts in a child process: this program with other arguments, on the PTX machine. `said` receives progress.
///
/// # Errors
/// If the PTX machine is missing, and those of the child.
pub fn count(order: Order, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let machine = folder()?;
    let place = std::env::temp_dir().join(format!("engine-profile-{}", std::process::id()));
    std::fs::create_dir(&place).map_err(Error::io(&place, "create"))?;
    let outcome = child(&order, &machine, &place, said);
    // Only this process knows the folder; if it cannot be removed, it stays.
    let _ = std::fs::remove_dir_all(&place);
    outcome
}

fn child(order: &Order, machine: &Path, place: &Path, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let (counts, nodes) = (place.join("machine.json"), place.join("nodes.json"));
    let program = std::env::current_exe().map_err(Error::io("/proc/self/exe", "find"))?;
    let mut command = Command::new(&program);
    command.args(&order.arguments).arg(&nodes).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The user's variables for the PTX machine are kept, except for those set here.
    command.env("LD_LIBRARY_PATH", machine).env(format!("{PREFIX}DEVICE"), order.device);
    command.env(format!("{PREFIX}CHECKS"), "off").env(format!("{PREFIX}PROFILE"), &counts);
    let mut child = command.spawn().map_err(Error::io(&program, "start"))?;
    // A long error must not fill the pipe while the other one is read.
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
