//! Puts the machine's library where a loader finds it as the driver: `ptx-machine FOLDER`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: ptx-machine FOLDER    put the machine into FOLDER as libcuda.so.1 and libcuda.so

A program that is started with LD_LIBRARY_PATH=FOLDER finds it as its CUDA driver.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = match arguments.as_slice() {
        [word] if matches!(word.as_str(), "--help" | "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [folder] if !folder.is_empty() && !folder.starts_with('-') => folder,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match install(Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ptx-machine: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The library that was built with this program.
fn library() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot tell where this program is: {error}"))?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let found = ["libptx_machine.so", "deps/libptx_machine.so"].map(|name| folder.join(name));
    let newest = found
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok());
    newest.ok_or_else(|| {
        format!("no libptx_machine.so in {}; run `cargo build --release -p ptx-machine`", folder.display())
    })
}

fn install(folder: &Path) -> Result<(), String> {
    let library = library()?;
    let fault = |path: &Path, error: std::io::Error| {
        format!(
            "cannot write {}: {error}; name a folder that you may write to, such as target/ptx-machine",
            path.display()
        )
    };
    std::fs::create_dir_all(folder).map_err(|error| fault(folder, error))?;
    // Written beside and renamed: a process that has the old one loaded keeps it. One file under two names: whoever loads both has
    // one driver.
    let (to, other) = (folder.join("libcuda.so.1"), folder.join("libcuda.so"));
    let (first, second) = (folder.join(".libcuda.so.1.new"), folder.join(".libcuda.so.new"));
    std::fs::copy(&library, &first).map_err(|error| fault(&first, error))?;
    let _ = std::fs::remove_file(&second);
    std::fs::hard_link(&first, &second).map_err(|error| fault(&second, error))?;
    for (from, to) in [(&first, &to), (&second, &other)] {
        std::fs::rename(from, to).map_err(|error| fault(to, error))?;
        println!("{}", to.display());
    }
    Ok(())
}
