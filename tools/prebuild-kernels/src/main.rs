//! Writes and checks `kernels/prebuilt/*.ptx`, and tries every kernel with nvcc.

mod cubins;
mod nvcc;
mod table;
mod usage;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kernel_signatures::{Prebuilt, kernel_files, parse, with_project_paths};
use prebuild_kernels::Nvrtc;

const USAGE: &str = "\
Usage: prebuild-kernels [--nvrtc PATH]          write those of kernels/prebuilt/*.ptx that are stale, with NVRTC 12.4
       prebuild-kernels --check [--nvrtc PATH]  fail where a file is stale, missing or orphaned; with NVRTC also where
                                                its text is not what NVRTC writes
       prebuild-kernels --registers FOLDER      write kernels/prebuilt/registers.json with ptxas and nvdisasm below FOLDER:
                                                registers, shared memory, spills and SASS of each kernel (of modules
                                                that changed); with --check measure all and fail where the file says otherwise
       prebuild-kernels --cubins FOLDER …       write kernels/cubins/*.cubin, which builds embed where they are there: machine code,
                                                with NVRTC 12.4 up to sm_90 and NVRTC 12.8 for sm_100 and sm_120, below FOLDERs
       prebuild-kernels --nvcc PATH             compile every kernel for sm_80, sm_90a and sm_100; report registers
                                                and spills

PATH of NVRTC is libnvrtc.so.12 or a folder (a virtual environment, say) that holds it; without --nvrtc it is sought in
$VIRTUAL_ENV and on the loader's path. `pip install 'nvidia-cuda-nvrtc-cu12==12.4.*'` brings it.";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prebuild-kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<()> {
    let (mut check, mut nvrtc, mut nvcc, mut registers) = (false, None, None, None);
    let mut cubins: Option<Vec<PathBuf>> = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut path = || arguments.next().map(PathBuf::from).ok_or(format!("{argument} wants a path\n{USAGE}"));
        match argument.as_str() {
            "--check" => check = true,
            "--nvrtc" => nvrtc = Some(path()?),
            "--nvcc" => nvcc = Some(path()?),
            "--registers" => registers = Some(path()?),
            "--cubins" => cubins = Some(vec![path()?]),
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            folder if !folder.starts_with('-') && cubins.is_some() => {
                cubins.iter_mut().for_each(|all| all.push(folder.into()))
            }
            _ => return Err(format!("unknown argument {argument}\n{USAGE}").into()),
        }
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels").canonicalize()?;
    let files = kernel_files(&kernels)?;
    for file in &files {
        parse(&std::fs::read_to_string(file)?, &file.to_string_lossy())?;
    }
    if let Some(nvcc) = nvcc {
        return nvcc::compile_all(&nvcc, &kernels, &files);
    }
    if let Some(folders) = cubins {
        return cubins::write(&folders, &kernels, &files);
    }
    let mut wanted = Vec::new();
    for file in &files {
        wanted.extend(Prebuilt::all_of(file)?);
    }
    let orphans = orphans(&kernels, &wanted)?;
    if let Some(folder) = registers {
        // A table of stale PTX would be a stale table.
        check_all(&kernels, &wanted, &orphans, None, Vec::new())?;
        return table::run(&folder, &kernels, &wanted, check);
    }
    if check {
        let nvrtc = nvrtc.map(|path| Nvrtc::find(Some(&path))).transpose()?;
        let stale = table::stale(&kernels, &wanted)?;
        return check_all(&kernels, &wanted, &orphans, nvrtc.as_ref(), stale);
    }
    let nvrtc = Nvrtc::find(nvrtc.as_deref())?;
    std::fs::create_dir_all(kernels.join("prebuilt"))?;
    for part in &wanted {
        let path = part.path(&kernels);
        // Of the same source, flags and compiler NVRTC writes the same text: --check holds it to that.
        let hash = part.expected_hash(&kernels)?;
        if std::fs::read_to_string(&path).is_ok_and(|old| Prebuilt::carried_hash(&old) == Some(&hash)) {
            continue;
        }
        let text = render(&nvrtc, &kernels, part)?;
        std::fs::write(&path, &text)?;
        println!("written {} ({} bytes)", part.file_name(), text.len());
    }
    println!("{} prebuilt files are current", wanted.len());
    for orphan in orphans {
        std::fs::remove_file(&orphan)?;
        println!("removed {}: its kernel is gone", orphan.display());
    }
    Ok(())
}

fn render(nvrtc: &Nvrtc, kernels: &Path, part: &Prebuilt) -> Result<String> {
    let source = kernels.join(format!("{}.cu", part.module));
    let ptx = nvrtc.compile(&source, kernels, &part.arch)?;
    Ok(part.render(&part.expected_hash(kernels)?, &with_project_paths(&ptx, kernels)))
}

/// Files in `kernels/prebuilt/` that belong to no kernel.
fn orphans(kernels: &Path, wanted: &[Prebuilt]) -> Result<Vec<PathBuf>> {
    let folder = kernels.join("prebuilt");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "ptx") && !wanted.iter().any(|part| part.path(kernels) == path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Fails with everything that is wrong, `others` included.
fn check_all(
    kernels: &Path,
    wanted: &[Prebuilt],
    orphans: &[PathBuf],
    nvrtc: Option<&Nvrtc>,
    others: Vec<String>,
) -> Result<()> {
    let mut wrong = others;
    wrong.extend(orphans.iter().map(|o| format!("{}: no kernel of that name", o.display())));
    for part in wanted {
        let path = part.path(kernels);
        let Ok(text) = std::fs::read_to_string(&path) else {
            wrong.push(format!("{}: missing", path.display()));
            continue;
        };
        if Prebuilt::carried_hash(&text) != Some(&part.expected_hash(kernels)?) {
            wrong.push(format!("{}: older than its source", path.display()));
        } else if let Some(nvrtc) = nvrtc
            && render(nvrtc, kernels, part)? != text
        {
            wrong.push(format!("{}: not what NVRTC writes for its source", path.display()));
        }
    }
    if wrong.is_empty() {
        println!("{} prebuilt files are current", wanted.len());
        return Ok(());
    }
    Err(format!("run `cargo run -p prebuild-kernels` and commit its files:\n{}", wrong.join("\n")).into())
}
