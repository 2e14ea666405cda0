//! The compile step: one shared library per `.cu`, cached by what went into it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use kernel_signatures::{ArgumentKind, Element, Signature};

const RUNTIME: &[(&str, &str)] = &[
    ("abi.h", kernel_abi::HEADER),
    ("device.h", include_str!("../runtime/device.h")),
    ("machine.h", include_str!("../runtime/machine.h")),
    ("access.cpp", include_str!("../runtime/access.cpp")),
    ("collectives.cpp", include_str!("../runtime/collectives.cpp")),
    ("fibers.cpp", include_str!("../runtime/fibers.cpp")),
    ("launch.cpp", include_str!("../runtime/launch.cpp")),
    ("undefined.cpp", include_str!("../runtime/undefined.cpp")),
    ("runtime.cpp", include_str!("../runtime/runtime.cpp")),
];

/// DWARF 4: of version 5, some releases of addr2line take the file's number for another's.
const COMMON_FLAGS: &[&str] = &["-std=c++17", "-fPIC", "-fvisibility=hidden", "-g1", "-gdwarf-4", "-ffp-contract=off"];

/// The words of a fault with which the compiler ran and failed.
const REFUSED: &str = "the host's compiler refused it";

/// What to do about a fault of [`compile`].
pub fn advice(fault: &str) -> &'static str {
    match fault.contains(REFUSED) {
        true => "fix the kernel; the compiler's message is above",
        false if fault.starts_with(NO_COMPILER) => "install a C++ compiler (g++ or clang++)",
        false => "look at the file that it names",
    }
}

/// The first words of the fault without a compiler.
const NO_COMPILER: &str = "no C++ compiler";

const RUNTIME_FLAGS: &[&str] = &["-O2", "-shared", "-ftls-model=initial-exec"];

/// `-O1`: early enough optimisation that the sanitizers still see each access of the source, and no vectoriser. Of
/// `undefined`, everything that a kernel can get wrong; null and out-of-extent pointers are the access checks' own. `trace-pc`
/// counts steps, so that a kernel which does not end is found.
const KERNEL_FLAGS: &[&str] = &[
    "-O1",
    "-c",
    "-fsanitize=thread",
    "-fsanitize-coverage=trace-pc",
    "-fsanitize=signed-integer-overflow,shift,integer-divide-by-zero,bounds,alignment,bool,enum,return,unreachable",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-tree-loop-distribute-patterns",
    "-Wno-unknown-pragmas",
    "-Werror=frame-larger-than=65536",
    "-Werror=return-type",
];

/// Compiles the `.cu` files of `kernels` into a folder below `out` and returns that folder, for
/// [`crate::Emulator::load`] or the engine's adapter.
///
/// A module is compiled again only when its source, something it includes, the compiler or this crate has changed.
/// Several processes may do this at once in one `out`. The compiler is `$CXX`, else `c++`, else `g++`.
///
/// # Errors
/// Without a compiler, where a source breaks the kernel conventions, and with the compiler's own words where it refuses one.
pub fn compile(kernels: &Path, out: &Path) -> Result<PathBuf, String> {
    compile_sources(&kernel_signatures::kernel_files(kernels).map_err(|e| e.to_string())?, kernels, out)
}

/// [`compile`] for tests and benchmarks: the kernels of the project at `root`, into a folder beside the running test
/// binaries, so that all of them share what has been compiled.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_cached(root: &Path) -> Result<PathBuf, String> {
    let binary = std::env::current_exe().map_err(|e| format!("the running program's path: {e}"))?;
    let out = match binary.ancestors().find(|p| p.ends_with("deps") || p.ends_with("examples")).and_then(Path::parent) {
        Some(profile) => profile.join("emulator"),
        None => std::env::temp_dir().join("kernel-emulator"),
    };
    compile(&root.join("kernels"), &out)
}

/// [`compile`] for some of a folder's files, or for files of another folder that include from `include`.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_sources(files: &[PathBuf], include: &Path, out: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot be made: {e}", out.display()))?;
    let out = fs::canonicalize(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let include = fs::canonicalize(include).map_err(|e| format!("{}: {e}", include.display()))?;
    let lock = fs::File::create(out.join("lock")).map_err(|e| format!("{}: {e}", out.join("lock").display()))?;
    lock.lock().map_err(|e| format!("{}: cannot be locked: {e}", out.join("lock").display()))?;

    let compiler = Compiler::find()?;
    let runtime = compiler.runtime(&out)?;
    let modules = files
        .iter()
        .map(|file| Module::read(file, &include, &compiler, &runtime))
        .collect::<Result<Vec<_>, String>>()?;

    let objects = out.join("modules");
    fs::create_dir_all(&objects).map_err(|e| format!("{}: {e}", objects.display()))?;
    let missing: Vec<&Module> = modules.iter().filter(|m| !objects.join(m.file_name()).exists()).collect();
    in_parallel(&missing, |module| compiler.module(module, &include, &objects, &runtime))?;

    let mut set = Hash::new();
    modules.iter().for_each(|m| set.add(m.file_name().as_bytes()));
    let folder = out.join(format!("set-{}", set.finish()));
    if !folder.exists() {
        let new = out.join(format!("new-{}", std::process::id()));
        let _ = fs::remove_dir_all(&new);
        let made = (|| {
            fs::create_dir_all(&new)?;
            fs::hard_link(&runtime, new.join(runtime.file_name().unwrap_or_default()))?;
            for module in &modules {
                fs::hard_link(objects.join(module.file_name()), new.join(format!("{}.so", module.name)))?;
            }
            fs::rename(&new, &folder)
        })();
        made.map_err(|e: std::io::Error| format!("{}: cannot be made: {e}", folder.display()))?;
    }
    remove_old(&out, &folder);
    remove_old(&objects, &folder);
    Ok(folder)
}

/// Removes what no compile of the last two days made or used (a set's time is that of its making: a set that is made
/// again costs links only).
fn remove_old(folder: &Path, keep: &Path) {
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with("set-") || name.ends_with(".so");
        let linked = fs::metadata(&path).is_ok_and(|m| std::os::unix::fs::MetadataExt::nlink(&m) > 1 && m.is_file());
        if ours && !linked && path != keep && entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t < old) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Runs `work` over `items` on as many threads as there are cores; returns the first error of the list's order.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    if let Err(e) = work(item) {
                        errors.lock().unwrap_or_else(|e| e.into_inner()).push((index, e));
                    }
                }
            });
        }
    });
    let mut errors = errors.into_inner().unwrap_or_else(|e| e.into_inner());
    errors.sort();
    errors.into_iter().next().map_or(Ok(()), |(_, e)| Err(e))
}

struct Compiler {
    command: Vec<String>,
    version: String,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let named = std::env::var("CXX").ok().filter(|c| !c.trim().is_empty());
        let candidates = match &named {
            Some(command) => vec![command.as_str()],
            None => vec!["c++", "g++"],
        };
        for candidate in &candidates {
            let command: Vec<String> = candidate.split_whitespace().map(String::from).collect();
            let output = Command::new(&command[0]).args(&command[1..]).arg("--version").output();
            if let Ok(output) = output.as_ref().map_err(|_| ()).and_then(|o| o.status.success().then_some(o).ok_or(()))
            {
                return Ok(Self { command, version: String::from_utf8_lossy(&output.stdout).into_owned() });
            }
        }
        Err(format!("{NO_COMPILER} ({} does not run): install g++ or name one in CXX", candidates.join(" and ")))
    }

    fn run(&self, folder: &Path, arguments: &[String], what: &str) -> Result<(), String> {
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(arguments)
            .current_dir(folder)
            .output()
            .map_err(|e| format!("{}: {e}", self.command[0]))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{what}: {REFUSED}:\n{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The emulator's own library; its sources lie beside it.
    fn runtime(&self, out: &Path) -> Result<PathBuf, String> {
        let mut hash = Hash::new();
        hash.add(self.version.as_bytes());
        COMMON_FLAGS.iter().chain(RUNTIME_FLAGS).chain(KERNEL_FLAGS).for_each(|f| hash.add(f.as_bytes()));
        RUNTIME.iter().for_each(|(_, text)| hash.add(text.as_bytes()));
        let hash = hash.finish();
        let library = out.join(format!("libemulator-{hash}.so"));
        let sources = out.join("runtime");
        let write = || {
            fs::create_dir_all(&sources)?;
            for (name, text) in RUNTIME {
                let path = sources.join(name);
                if fs::read_to_string(&path).ok().as_deref() != Some(text) {
                    fs::write(path, text)?;
                }
            }
            Ok(())
        };
        write().map_err(|e: std::io::Error| format!("{}: cannot be written: {e}", sources.display()))?;
        if library.exists() {
            return Ok(library);
        }
        let part = out.join(format!("part-{hash}"));
        let mut arguments: Vec<String> = COMMON_FLAGS.iter().chain(RUNTIME_FLAGS).map(|f| f.to_string()).collect();
        arguments.push(format!("-Wl,-soname,libemulator-{hash}.so"));
        arguments.extend([text(&sources.join("runtime.cpp")), "-o".into(), text(&part)]);
        self.run(out, &arguments, "the emulator")?;
        fs::rename(&part, &library).map_err(|e| format!("{}: {e}", library.display()))?;
        Ok(library)
    }

    fn module(&self, module: &Module, include: &Path, objects: &Path, runtime: &Path) -> Result<(), String> {
        let base = objects.join(format!("part-{}-{}", module.name, module.hash));
        let [host, object, library] = ["cpp", "o", "so"].map(|e| base.with_extension(e));
        fs::write(&host, module.host_source()).map_err(|e| format!("{}: {e}", host.display()))?;
        let mut arguments: Vec<String> = COMMON_FLAGS.iter().chain(KERNEL_FLAGS).map(|f| f.to_string()).collect();
        // The compiler runs in the folder that holds the kernels' folder and is given names from there, so that messages
        // name `kernels/op.cu:12`.
        let root = include.parent().unwrap_or(include);
        let folder = runtime.with_file_name("runtime");
        arguments.push(format!("-fdebug-prefix-map={}=.", root.display()));
        for directory in [include.strip_prefix(root).unwrap_or(include), &folder] {
            arguments.extend(["-I".into(), text(directory)]);
        }
        for header in [&folder.join("device.h"), module.path.strip_prefix(root).unwrap_or(&module.path)] {
            arguments.extend(["-include".into(), text(header)]);
        }
        arguments.extend([text(&host), "-o".into(), text(&object)]);
        self.run(root, &arguments, &module.path.display().to_string())?;
        let link = ["-shared", "-Wl,-z,now", "-Wl,-rpath,$ORIGIN"].map(String::from);
        let mut arguments: Vec<String> = link.to_vec();
        arguments.extend([text(&object), text(runtime), "-lm".into(), "-o".into(), text(&library)]);
        self.run(root, &arguments, &module.path.display().to_string())?;
        let _ = fs::remove_file(&host);
        let _ = fs::remove_file(&object);
        fs::rename(&library, objects.join(module.file_name())).map_err(|e| format!("{}: {e}", library.display()))
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

struct Module {
    name: String,
    path: PathBuf,
    signatures: Vec<Signature>,
    hash: String,
}

impl Module {
    fn read(path: &Path, include: &Path, compiler: &Compiler, runtime: &Path) -> Result<Self, String> {
        let path = fs::canonicalize(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let signatures = kernel_signatures::parse(&source, &path.display().to_string()).map_err(|e| e.to_string())?;
        let mut hash = Hash::new();
        hash.add(text(runtime).as_bytes());
        hash.add(compiler.version.as_bytes());
        hash.add(text(&path).as_bytes());
        let mut seen = Vec::new();
        add_closure(&path, include, &mut hash, &mut seen)?;
        Ok(Self { name, path, signatures, hash: hash.finish() })
    }

    fn file_name(&self) -> String {
        format!("{}-{}.so", self.name, self.hash)
    }

    /// The entry points of the emulator, to be compiled behind the source: a table of the kernels, and per kernel a function that takes
    /// its arguments out of an array.
    fn host_source(&self) -> String {
        let mut out = String::new();
        let mut table = String::new();
        for s in &self.signatures {
            let (mut parameters, mut values) = (String::new(), Vec::new());
            for (index, argument) in s.arguments.iter().enumerate() {
                let (type_name, bytes, writable) = match &argument.kind {
                    ArgumentKind::Pointer { writable, element } => {
                        let constant = if *writable { "" } else { "const " };
                        (format!("{constant}{}*", element.kernel_name()), element_bytes(*element), *writable)
                    }
                    ArgumentKind::Scalar(scalar) => (scalar.name().to_string(), 0, false),
                };
                let _ = write!(
                    parameters,
                    "{{\"{}\", \"{type_name}\", {bytes}, {}}}, ",
                    argument.name,
                    u32::from(writable)
                );
                values.push(match type_name.as_str() {
                    "f32" => format!("__uint_as_float((unsigned)v[{index}])"),
                    _ => format!("({type_name})v[{index}]"),
                });
            }
            let name = &s.name;
            let _ = writeln!(
                out,
                "__attribute__((no_sanitize(\"thread\"), no_sanitize(\"undefined\"))) static void invoke_{name}(const \
                 unsigned long long* v) {{ (void)v; {name}_entry::{name}({}); }}\n\
                 static const EmulatorParameter parameters_{name}[] = {{{parameters}{{0, 0, 0, 0}}}};",
                values.join(", ")
            );
            let _ = write!(
                table,
                "{{\"{name}\", {}, {}, parameters_{name}, invoke_{name}}}, ",
                s.max_threads,
                s.arguments.len()
            );
        }
        let _ = writeln!(
            out,
            "static const EmulatorKernel all_kernels[] = {{{table}{{0, 0, 0, 0, 0}}}};\n\
             static const EmulatorModule this_module = {{EMULATOR_ABI, {}, all_kernels}};\n\
             __attribute__((visibility(\"default\"), no_sanitize(\"thread\"))) const EmulatorModule* emulator_module() {{ \
             return &this_module; }}",
            self.signatures.len()
        );
        out
    }
}

fn element_bytes(element: Element) -> usize {
    match element.kernel_name() {
        "u8" | "i8" => 1,
        "bf16" | "u16" | "i16" => 2,
        "u64" | "i64" => 8,
        _ => 4,
    }
}

/// Adds a file and everything it includes from the kernels' folder.
fn add_closure(path: &Path, include: &Path, hash: &mut Hash, seen: &mut Vec<PathBuf>) -> Result<(), String> {
    if seen.iter().any(|p| p == path) {
        return Ok(());
    }
    seen.push(path.to_path_buf());
    let source = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    hash.add(source.as_bytes());
    for line in source.lines() {
        let Some(rest) = line.trim_start().strip_prefix("#include") else { continue };
        let Some(name) = rest.split('"').nth(1) else { continue };
        let beside = path.with_file_name(name);
        let found = if beside.exists() { beside } else { include.join(name) };
        add_closure(&found, include, hash, seen)?;
    }
    Ok(())
}

/// FNV-1a with 128 bits: tells versions of a file apart, nothing more.
struct Hash(u128);

impl Hash {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn finish(&self) -> String {
        format!("{:016x}", (self.0 >> 64) as u64 ^ self.0 as u64)
    }
}
