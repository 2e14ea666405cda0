//! Puts the stand-in where a loader finds it as NCCL: `nccl-double FOLDER`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("Usage: nccl-double FOLDER    put the stand-in into FOLDER as libnccl.so.2");
        return ExitCode::FAILURE;
    };
    match install(Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nccl-double: {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install(folder: &Path) -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    let beside = own.parent().unwrap_or(Path::new("."));
    let found = ["libnccl_double.so", "deps/libnccl_double.so"].map(|name| beside.join(name));
    let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let newest = found.iter().filter(|path| path.exists()).max_by_key(|path| age(path));
    let library = newest.ok_or_else(|| std::io::Error::other("no libnccl_double.so was built beside this program"))?;
    std::fs::create_dir_all(folder)?;
    let (new, to) = (folder.join(".libnccl.so.2.new"), folder.join("libnccl.so.2"));
    std::fs::copy(library, &new)?;
    std::fs::rename(&new, &to)?;
    println!("{}", to.display());
    Ok(())
}
