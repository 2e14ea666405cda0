//! The PTX machine: its location, and the child process that runs on it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::file::{Counted, MachineFile};
use super::lines::hashes;
use crate::error::{Error, Result};
use crate::files::describe;

/// Environment variable with the PTX machine's folder, instead of `target/ptx-machine`.
pub const FOLDER: &str = "ENGINE_PTX_MACHINE";

/// The prefix of the PTX machine's variables.
const PREFIX: &str = "PTX_MACHINE_";

/// Its variable for the file that it writes.
const PROFILE: &str = "PTX_MACHINE_PROFILE";

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
    let message = format!("no libcuda.so.1 in {}, and kernels are counted on it", folder.display());
    Err(Error::device("ptx-machine", message, format!("{}; {FOLDER} names another folder", build(&folder))))
}

/// How to build the machine, as advice.
fn build(folder: &Path) -> String {
    let place = if Path::new("tools/ptx-machine").is_dir() { "" } else { " in a checkout of the project" };
    format!("build it{place}: `cargo run --release -p ptx-machine -- {}`", folder.display())
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
    /// The SHA-256 of its configuration, for [`Counted::configuration`].
    pub configuration: String,
}

/// Counts in a child process: this program with other arguments, on the PTX machine. `said` receives progress. The child must call
/// [`end_with_the_parent`].
///
/// # Errors
/// If the PTX machine is missing, and those of the child.
pub fn count(order: Order, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let machine = folder()?;
    look_at(&machine)?;
    let place = tempfile::Builder::new().prefix("engine-profile-").tempdir();
    let place = place.map_err(Error::io(std::env::temp_dir(), "create a folder in"))?;
    child(&order, &machine, place.path(), said)
}

/// Fails if the machine is no library at all: the loader would look for another driver elsewhere.
fn look_at(machine: &Path) -> Result<()> {
    let path = machine.join("libcuda.so.1");
    let mut start = Vec::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(512).read_to_end(&mut start));
    read.map_err(Error::io(&path, "read"))?;
    if start.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let message = format!("the machine in {} does not load: libcuda.so.1 is {}", machine.display(), describe(&start));
    Err(Error::device("ptx-machine", message, build(machine)))
}

/// Ends this process, a child of [`count`], when its parent ends, however it ends: removes the folder of the results, `nodes` among
/// them.
pub fn end_with_the_parent(nodes: &Path) {
    let results = [Some(nodes.to_path_buf()), std::env::var_os(PROFILE).map(PathBuf::from)];
    let folder = nodes.parent().map(Path::to_path_buf);
    std::thread::spawn(move || {
        // The other end of the pipe is the parent's, which writes nothing to it.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        for file in results.into_iter().flatten() {
            let _ = std::fs::remove_file(file);
        }
        if let Some(folder) = folder {
            let _ = std::fs::remove_dir(folder);
        }
        // SAFETY: ends the process; the driver's own threads still run, so that nothing is unwound.
        unsafe { libc::_exit(1) }
    });
}

fn child(order: &Order, machine: &Path, place: &Path, said: &mut dyn FnMut(&str)) -> Result<Counted> {
    let (counts, nodes) = (place.join("machine.json"), place.join("nodes.json"));
    let program = std::env::current_exe().map_err(Error::io("/proc/self/exe", "find"))?;
    let mut command = Command::new(&program);
    command.args(&order.arguments).arg(&nodes).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // An interrupt from the keyboard ends this process, and the child notices that and cleans up.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // The user's variables for the PTX machine are kept, except for those set here.
    command.env_remove(FOLDER).env("LD_LIBRARY_PATH", machine).env(format!("{PREFIX}DEVICE"), order.device);
    command.env(format!("{PREFIX}CHECKS"), "off").env(PROFILE, &counts);
    let mut child = command.spawn().map_err(Error::io(&program, "start"))?;
    // Open until the child has ended, which would else end early.
    let _input = child.stdin.take();
    let mut begun = false;
    // A long error must not fill the pipe while the other one is read.
    let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || std::io::read_to_string(pipe)));
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            if let Some(part) = line.strip_prefix(BEGINS) {
                begun = true;
                said(part);
            }
        }
    }
    let status = child.wait().map_err(Error::io(&program, "wait for"))?;
    if !status.success() {
        let text = errors.and_then(|thread| thread.join().ok()).and_then(std::result::Result::ok).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" ");
        let cause = last.trim_start_matches("error: ");
        if !begun {
            let message = format!("the machine in {} does not load ({status}): {cause}", machine.display());
            return Err(Error::device("ptx-machine", message, format!("correct that, or {}", build(machine))));
        }
        let message = format!("counting failed ({status}): {cause}");
        return Err(Error::device("ptx-machine", message, "correct it, and run `engine doctor` on the machine"));
    }
    let text = std::fs::read(&nodes).map_err(Error::io(&nodes, "read"))?;
    let nodes = serde_json::from_slice(&text).map_err(|error| Error::file(&nodes, error.to_string(), "report this"))?;
    if !counts.is_file() {
        let message = format!("{} counts nothing: it is of an older version", machine.display());
        return Err(Error::device("ptx-machine", message, build(machine)));
    }
    let (run, configuration, machine) = (order.run.clone(), order.configuration.clone(), MachineFile::read(&counts)?);
    Ok(Counted { run, configuration, modules: hashes(&machine), nodes, machine })
}
