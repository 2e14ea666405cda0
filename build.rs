//! Generates the typed launches from `kernels/*.cu`, and embeds their PTX: always the committed one, and one compiled here if nvcc
//! is found (`ENGINE_NVCC` gives its path, `ENGINE_NVCC=off` skips it). Also embeds machine code from `kernels/cubins/`
//! (`ENGINE_CUBINS=off` skips it).

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

use kernel_signatures::{
    Cubin, PREBUILT_FLAGS, Prebuilt, Result, closure_hash, generate, kernel_files, parse, with_project_paths,
};

/// The command that builds the committed PTX.
const PREBUILD: &str = "`cargo run --release -p prebuild-kernels -- --nvrtc FOLDER` (see CONTRIBUTING.md)";

fn main() {
    for variable in ["ENGINE_CUBINS", "ENGINE_NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // The script runs for `engine-core`, in `src/core`.
    println!("cargo::rerun-if-changed=../../build.rs");
    println!("cargo::rerun-if-changed=../../kernels");
    if let Err(error) = env::set_current_dir("../..").map_err(Into::into).and_then(|()| build()) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn build() -> Outcome {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let kernels = Path::new("kernels");
    let files = kernel_files(kernels)?;
    let mut signatures = Vec::new();
    for file in &files {
        signatures.extend(parse(&fs::read_to_string(file)?, &file.to_string_lossy())?);
    }
    let common = kernels.join("common");
    if common.exists() {
        for header in fs::read_dir(common)? {
            let header = header?.path();
            parse(&fs::read_to_string(&header)?, &header.to_string_lossy())?;
        }
    }
    write_if_changed(&out.join("launches.rs"), generate(&signatures)?.as_bytes())?;

    let wanted = files.iter().map(|file| Prebuilt::all_of(file)).collect::<Result<Vec<_>>>()?.concat();
    let mut manifest = String::from("/// Every embedded PTX.\npub(crate) static EMBEDDED: &[EmbeddedPtx] = &[\n");
    for (part, ptx) in wanted.iter().zip(compile_all(kernels, &wanted, &out)?) {
        if let Some((version, ptx)) = ptx {
            embed(
                &mut manifest,
                &out,
                &part.module,
                &part.arch,
                &format!("Origin::Nvcc {{ version: {version:?} }}"),
                &ptx,
            )?;
        }
    }
    for part in &wanted {
        let path = part.path(kernels);
        let Ok(ptx) = fs::read(&path) else {
            println!("cargo::warning={}: no such file; run {PREBUILD}", path.display());
            continue;
        };
        let stale = Prebuilt::carried_hash(&String::from_utf8_lossy(&ptx)) != Some(&part.expected_hash(kernels)?);
        if stale {
            println!(
                "cargo::warning={} is older than its source: CUDA devices will refuse it; run {PREBUILD}",
                path.display()
            );
        }
        embed(&mut manifest, &out, &part.module, &part.arch, &format!("Origin::Prebuilt {{ stale: {stale} }}"), &ptx)?;
    }
    embed_cubins(kernels, &files, &out, &mut manifest)?;
    manifest.push_str("];\n");
    write_if_changed(&out.join("embedded_ptx.rs"), manifest.as_bytes())?;
    Ok(())
}

/// Embeds the machine code of `kernels/cubins/` (`prebuild-kernels --cubins`), which is not in the repository. Files of other
/// sources are ignored.
fn embed_cubins(kernels: &Path, files: &[PathBuf], out: &Path, manifest: &mut String) -> Outcome {
    let (mut found, mut missing) = (0, 0);
    let wanted = kernels.join("cubins").exists() && env::var_os("ENGINE_CUBINS").is_none_or(|value| value != "off");
    for file in files.iter().filter(|_| wanted) {
        for cubin in Cubin::all_of(file)? {
            let Ok(code) = fs::read(cubin.path(kernels)?) else {
                missing += 1;
                continue;
            };
            let origin = format!("Origin::Cubin {{ capability: {:?} }}", cubin.capability);
            embed(manifest, out, &cubin.module, &cubin.arch, &origin, &code)?;
            found += 1;
        }
    }
    if found > 0 && missing > 0 {
        println!(
            "cargo::warning=kernels/cubins lacks {missing} files of this source: there the driver compiles PTX; run prebuild-kernels --cubins"
        );
    }
    Ok(())
}

/// Compresses one PTX or cubin into `out` and adds its line to the manifest.
fn embed(manifest: &mut String, out: &Path, module: &str, arch: &str, origin: &str, ptx: &[u8]) -> io::Result<()> {
    let kind = origin.split_once("::").map_or(origin, |(_, kind)| kind).split(' ').next().unwrap_or_default();
    let name = format!("{module}.{arch}.{}.z", kind.to_lowercase());
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(ptx)?;
    write_if_changed(&out.join(&name), &encoder.finish()?)?;
    let _ = writeln!(
        manifest,
        "    EmbeddedPtx {{ module: {module:?}, arch: {arch:?}, origin: {origin}, length: {}, \
         compressed: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")) }},",
        ptx.len(),
    );
    Ok(())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) { Ok(()) } else { fs::write(path, bytes) }
}

/// nvcc's output for one part: its version and the PTX.
type Compiled = (String, Vec<u8>);

/// nvcc's output for each part, with its version: `None` if there is no nvcc or it failed, which is a warning.
fn compile_all(kernels: &Path, wanted: &[Prebuilt], out: &Path) -> Result<Vec<Option<Compiled>>> {
    let Some((nvcc, version)) = find_nvcc() else {
        return Ok(vec![None; wanted.len()]);
    };
    let cache = out.join("nvcc");
    let threads =
        env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, wanted.len().max(1));
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = wanted.get(index) else { return Result::Ok(done) };
            done.push((index, compile(&nvcc, &version, kernels, part, &cache)?));
        }
    };
    let results = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut all = vec![None; wanted.len()];
    for (index, result) in results.into_iter().flatten() {
        match result {
            Ok(ptx) => all[index] = Some((version.clone(), ptx)),
            Err(message) => {
                println!(
                    "cargo::warning={}: nvcc failed, the prebuilt PTX is used: {message}",
                    wanted[index].file_name()
                );
            }
        }
    }
    Ok(all)
}

/// One run of nvcc, or the cached result for the same text, flags and version.
fn compile(
    nvcc: &Path,
    version: &str,
    kernels: &Path,
    part: &Prebuilt,
    cache: &Path,
) -> Result<std::result::Result<Vec<u8>, String>> {
    let source = kernels.join(format!("{}.cu", part.module));
    let arch = format!("-arch={}", part.arch);
    let flags: Vec<&str> = PREBUILT_FLAGS.iter().copied().chain([arch.as_str()]).collect();
    let hash = closure_hash(kernels, &source, &flags, version)?;
    let target = cache.join(format!("{}.{hash}.ptx", part.module));
    let run = || -> io::Result<Vec<u8>> {
        if let Ok(ptx) = fs::read(&target) {
            return Ok(ptx);
        }
        fs::create_dir_all(cache)?;
        let beside = target.with_extension("new");
        let output = Command::new(nvcc)
            .arg("-ptx")
            .args(&flags)
            .arg("-I")
            .arg(kernels)
            .arg("-o")
            .args([&beside, &source])
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Err(io::Error::other(first.to_string()));
        }
        // Its line tables have absolute paths.
        let ptx = String::from_utf8(fs::read(&beside)?).map_err(io::Error::other)?;
        fs::write(&beside, with_project_paths(&ptx, &kernels.canonicalize()?))?;
        fs::rename(&beside, &target)?;
        fs::read(&target)
    };
    Ok(run().map_err(|error| error.to_string()))
}

/// nvcc and its version: from `ENGINE_NVCC`, the toolkit of `CUDA_HOME` or `CUDA_PATH`, then the `PATH`.
fn find_nvcc() -> Option<(PathBuf, String)> {
    let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    let asked = env::var_os("ENGINE_NVCC").filter(|value| !value.is_empty());
    let candidates: Vec<PathBuf> = match &asked {
        Some(value) if value == "off" => return None,
        Some(value) => vec![value.into()],
        None => ["CUDA_HOME", "CUDA_PATH"]
            .iter()
            .filter_map(|variable| Some(PathBuf::from(env::var_os(variable)?).join("bin")))
            .chain(env::var_os("PATH").iter().flat_map(env::split_paths))
            .map(|folder| folder.join(name))
            .collect(),
    };
    for candidate in candidates.iter().filter(|path| path.is_file()) {
        let Ok(output) = Command::new(candidate).arg("--version").output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some((_, version)) = text.rsplit_once("release ") {
            let version = version.lines().next().unwrap_or_default();
            println!("cargo::rerun-if-changed={}", candidate.display());
            return Some((candidate.clone(), version.to_string()));
        }
    }
    if let Some(value) = asked {
        println!("cargo::warning=ENGINE_NVCC={}: no nvcc there, the prebuilt PTX is used", value.display());
    }
    None
}
