//! Runs every command of the README and of the guide with the built binary, in a folder per page; checks every link and path.
//! Errors have page and line.
//!
//! A block of commands is marked ```` ```sh ````. Its `engine` commands run unchanged except for fewer steps and images
//! ([`small`]), with tiny data and runs under the published names ([`Fixture`]). ```` ```sh server ```` starts a server for each
//! `engine serve`, on a free port instead of 7860. A block that cannot be run gives the reason (`pages::REASONS`); its `engine`
//! commands are parsed. Names in `cargo` commands are checked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use engine::config::presets;
use engine::data::{Dataset, Parts};
use engine::picture::{Image, write_png};
use engine::rng::{Philox, Purpose};

use crate::pages::{Block, Command, Mode, Page, pages, root, words};

/// Time limit of a block. Two cores need seconds for each.
const LIMIT: Duration = Duration::from_secs(120);

/// The address in the pages, in any spelling, is replaced by the test server's.
const ADDRESSES: [&str; 3] = ["http://127.0.0.1:7860", "http://localhost:7860", "localhost:7860"];

/// Settings that make a preset's network small.
const SMALL_MODELS: &[(&str, &[&str])] = &[
    ("dit", &["model.depth=1"]),
    ("quickstart", &["model.depth=1"]),
    ("ddpm", &["model.channels=[8,16,16]", "model.norm_groups=8"]),
    ("unet", &["model.channels=[8,16,16]"]),
    ("pets", &["model.depth=1"]),
    ("resnet18", &["model.blocks=[1,1,1,1]", "model.widths=[8,8,8,8]"]),
];

/// Small values for options of a subcommand: existing options are reduced, and those with a final `!` are added if missing.
const SMALL_OPTIONS: &[(&str, &[(&str, &str)])] = &[
    ("train", &[("--steps!", "2"), ("--batch!", "4")]),
    ("sample", &[("--steps!", "2")]),
    ("interpolate", &[("--steps!", "2")]),
    ("vary", &[("--steps!", "2")]),
    ("inpaint", &[("--steps!", "2")]),
    ("upscale", &[("--steps!", "2")]),
    ("score", &[("--levels!", "2"), ("--reference-count!", "10"), ("--count", "4")]),
    ("classify", &[("--levels!", "2"), ("--count", "10")]),
    (
        "compare",
        &[("--levels!", "2"), ("--images!", "20"), ("--count!", "2"), ("--steps!", "2"), ("--num-samples", "20")],
    ),
    ("eval", &[("--num-samples!", "20"), ("--steps!", "1"), ("--reference-count!", "20"), ("--draws!", "2")]),
];

/// The arguments of `engine` in a command, made small; none for other programs.
fn small(words: &[String]) -> Option<Vec<String>> {
    let start = words.iter().position(|word| !word.contains('='))?;
    let (name, rest) = (words[start].as_str(), &words[start + 1..]);
    let from_source = ["run", "--release", "--"];
    let (before, arguments) = match name {
        "engine" | "target/release/engine" => (&words[..start], rest),
        "cargo" if rest.len() > 3 && rest[..3] == from_source => (&words[..start], &rest[3..]),
        _ => return None,
    };
    let end = arguments.iter().position(|word| ["|", ">", ">>", "&&", ";", "&"].contains(&word.as_str()));
    let (own, behind) = arguments.split_at(end.unwrap_or(arguments.len()));
    let mut own = own.to_vec();
    let command = own.first().cloned().unwrap_or_default();
    let has = |own: &[String], option: &str| own.iter().any(|word| word == option);
    let fixed = ["--resume", "--like", "--profile", "--timesteps", "--samples"].iter().any(|option| has(&own, option));
    let options = SMALL_OPTIONS.iter().find(|(name, _)| *name == command).map_or(&[][..], |(_, options)| options);
    if let Some(at) = own.iter().position(|word| command == "train" && word == "--epochs") {
        own.splice(at..at + 2, ["--steps".to_string(), "2".to_string()]);
    }
    for (option, value) in options {
        let (option, added) = option.strip_suffix('!').map_or((*option, false), |option| (option, true));
        match own.iter().position(|word| word == option) {
            Some(at) => own[at + 1] = cut(&own[at + 1], value),
            None if added && !fixed => own.extend([option.to_string(), value.to_string()]),
            None => {}
        }
    }
    if command == "train" && !fixed {
        let settings = small_run(&own);
        own.extend(settings.into_iter().flat_map(|setting| ["--set".to_string(), setting]));
    }
    Some([before, &["engine".to_string()], &own, behind].concat())
}

/// Settings that make a run small.
fn small_run(own: &[String]) -> Vec<String> {
    let value = |option: &str| own.iter().position(|word| word == option).map(|at| own[at + 1].as_str());
    let common = ["training.validation_batches=1", "data.shapes_count=200"];
    let drawn = ["sampling.num_steps=2", "sampling.count_per_class=1"];
    let evaluated = ["training.evaluate_samples=10", "training.evaluate_reference=10"];
    let preset = value("--preset").unwrap_or("quickstart");
    let model = SMALL_MODELS.iter().find(|(name, _)| preset.starts_with(name) && value("--config").is_none());
    let evaluates = own.iter().any(|word| word.starts_with("training.evaluate_every"));
    let all = common.iter().chain(model.map_or(&[][..], |(_, settings)| settings));
    // A classifier draws nothing.
    let all = all.chain(if preset.starts_with("resnet18") { &[][..] } else { &drawn });
    let all = all.chain(if evaluates { &evaluated[..] } else { &[] });
    all.map(|setting| format!("'{setting}'")).collect()
}

/// A number no larger than `most`; for a list, as many small numbers.
fn cut(value: &str, most: &str) -> String {
    if value.contains(',') {
        return (1..=value.split(',').count()).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    }
    let most: u64 = most.parse().unwrap();
    value.parse::<u64>().map_or_else(|_| value.to_string(), |value| value.min(most).to_string())
}

#[test]
fn commands_are_made_small_and_keep_their_words() {
    let of = |text: &str| small(&words(text)).map(|words| words.join(" "));
    assert_eq!(of("engine sample --count 4 | head").unwrap(), "engine sample --count 4 --steps 2 | head");
    assert_eq!(of("engine sample --steps 50 --profile fast").unwrap(), "engine sample --steps 2 --profile fast");
    assert_eq!(of("engine eval --samples d --steps 10,20").unwrap(), "engine eval --samples d --steps 1,2");
    assert!(
        of("X=1 cargo run --release -- train --epochs 9").unwrap().starts_with("X=1 engine train --steps 2 --batch 4")
    );
    assert_eq!(of("engine train --resume r").unwrap(), "engine train --resume r");
    assert_eq!(of("cargo test --release"), None);
}

/// The data that the pages assume: `data/` with small sets of noise under the published names, `photos/` in two folders, the runs
/// `quickstart`, from the README's first command, and `classifier`.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        let garments =
            ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
        let things = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
        fs::create_dir(fixture.path("data")).unwrap();
        noise_set("fashion-mnist", (28, 1), &garments)
            .write(fixture.path("data/fashion-mnist.safetensors"), false)
            .unwrap();
        noise_set("cifar10", (32, 3), &things).write(fixture.path("data/cifar10.safetensors"), false).unwrap();
        for class in ["cats", "dogs"] {
            fs::create_dir_all(fixture.path("photos").join(class)).unwrap();
            for number in 0..12 {
                fixture.picture(&format!("photos/{class}/{number}.png"), 40);
            }
        }
        fixture.train("engine train");
        fixture.train("engine train --preset resnet18-cifar10 --data builtin --out runs/classifier");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn picture(&self, name: &str, side: usize) {
        let pixels = noise(name.len() as u64, side * side * 3);
        write_png(self.path(name), &Image::new(side, side, 3, pixels).unwrap(), &[]).unwrap();
    }

    fn train(&self, command: &str) {
        let script = small(&words(command)).unwrap().join(" ");
        run(&script, self.0.path()).unwrap_or_else(|error| panic!("{script}: {error}"));
    }

    /// A copy for a page, without the runs that its own commands create.
    fn copy(&self, blocks: &[Block]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        copy(self.0.path(), folder.path());
        for command in blocks.iter().flat_map(|block| &block.commands) {
            let words = words(&command.text);
            let out = words.iter().zip(words.iter().skip(1)).find(|(option, _)| *option == "--out");
            if let Some((_, run)) = out.filter(|(_, run)| run.starts_with("runs/")) {
                let _ = fs::remove_dir_all(folder.path().join(run));
            }
        }
        folder
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

fn noise(seed: u64, count: usize) -> Vec<u8> {
    (0..count).map(|at| Philox::new(seed).bits4(at as u32, 0, 0, Purpose::Probe)[0] as u8).collect()
}

/// Random pixels, 20 training and 4 held-out images of each class.
fn noise_set(name: &str, (side, channels): (usize, usize), classes: &[&str]) -> Dataset {
    let (train, held_out) = (20 * classes.len(), 4 * classes.len());
    Dataset::from_parts(Parts {
        name: name.into(),
        height: side,
        width: side,
        channels,
        class_names: classes.iter().map(|class| class.to_string()).collect(),
        images: noise(side as u64, (train + held_out) * side * side * channels),
        labels: (0..train + held_out).map(|at| (at % classes.len()) as u16).collect(),
        train,
        ..Parts::default()
    })
    .unwrap()
}

/// Runs a shell script; an error has its standard error, or says that it took too long.
fn run(script: &str, folder: &Path) -> Result<(), String> {
    let binary = Path::new(env!("CARGO_BIN_EXE_engine"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let log = folder.join(".log");
    let mut child = Process::new("sh")
        .args(["-eu", "-c", script])
        .current_dir(folder)
        .env("PATH", path)
        .env("HOME", folder)
        .env("ENGINE_THREADS", "1")
        .env_remove("XDG_STATE_HOME")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .map_err(|error| error.to_string())?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Ok(status),
            None if start.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                break Err(format!("took longer than {} s\n", LIMIT.as_secs()));
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = fs::read_to_string(&log).unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(said),
        Err(late) => Err(late + &said),
    }
}

/// The marker on standard error for the line of a page being run.
const MARK: &str = "@line ";

/// A block as a script that marks its lines.
fn script(mode: Mode, commands: &[Command]) -> String {
    let mut text = String::new();
    for command in commands {
        let all = words(&command.text);
        let Some(engine) = small(&all) else {
            if mode != Mode::Skip && !all.iter().any(|word| word == "cargo") {
                let _ = writeln!(text, "echo '{MARK}{}' >&2\n{}", command.line, asked(mode, &command.text));
            }
            continue;
        };
        let line = match mode {
            Mode::Run => engine.join(" "),
            Mode::Skip => format!("{} --help", engine.join(" ")),
            Mode::Server if engine.get(1).is_some_and(|word| word == "serve") => served(&engine),
            Mode::Server => asked(mode, &engine.join(" ")),
        };
        let _ = writeln!(text, "echo '{MARK}{}' >&2\n{line}", command.line);
    }
    text
}

/// Starts a server on a free port, in place of the previous one.
fn served(words: &[String]) -> String {
    let mut words = words.to_vec();
    match words.iter().position(|word| word == "--listen") {
        Some(at) => words[at + 1] = "127.0.0.1:0".into(),
        None => words.extend(["--listen".into(), "127.0.0.1:0".into()]),
    }
    format!(
        "kill ${{server:-}} 2>/dev/null || true\nrm -f address\n{} >address & server=$!\ntrap 'kill $server' EXIT\n\
         for try in $(seq 100); do test -s address && break; kill -0 $server; sleep 0.1; done\naddress=$(sed 's,/$,,' address)",
        words.join(" ")
    )
}

/// A command for the running server.
fn asked(mode: Mode, command: &str) -> String {
    match (mode, ADDRESSES.iter().find(|address| command.contains(*address))) {
        (Mode::Server, Some(address)) => command.replace(address, "\"$address\""),
        _ => command.to_string(),
    }
}

/// Whether the tools for server requests are installed; only the project's checks install them.
fn has_curl() -> bool {
    Process::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Errors in the commands of a page.
fn try_commands(page: &Page, fixture: &Fixture) -> Vec<String> {
    let (blocks, mut faults) = page.blocks();
    let folder = fixture.copy(&blocks);
    for block in &blocks {
        faults.extend(block.commands.iter().filter_map(|command| unknown_names(page, command)));
        let asks = |command: &Command| command.text.contains("curl ");
        if block.mode == Mode::Server && block.commands.iter().any(asks) && !has_curl() {
            println!("SKIPPED: {}:{}: there is no curl", page.name, block.commands[0].line);
            continue;
        }
        if let Err(said) = run(&script(block.mode, &block.commands), folder.path()) {
            let marks = said.lines().filter_map(|line| line.strip_prefix(MARK)).collect::<Vec<_>>();
            let line = marks.last().map_or_else(|| block.commands[0].line.to_string(), |line| line.to_string());
            let behind = said.rsplit(MARK).next().unwrap_or_default().trim_start_matches(&line).trim();
            let command = block.commands.iter().find(|command| command.line.to_string() == line);
            faults.push(format!("{}:{line}: {}\n    {behind}", page.name, command.map_or("", |command| &command.text)));
        }
    }
    faults
}

/// The first missing name in a `cargo` command, or the missing program of the project.
fn unknown_names(page: &Page, command: &Command) -> Option<String> {
    let words = words(&command.text);
    let manifests = ["Cargo.toml", "src/core/Cargo.toml", "benches/Cargo.toml", "tools/ptx-machine/Cargo.toml"];
    let mut declared: String = manifests.iter().map(|path| fs::read_to_string(root().join(path)).unwrap()).collect();
    for folder in ["src/core", "tools", "tools/ptx-machine/examples"] {
        for entry in fs::read_dir(root().join(folder)).into_iter().flatten().map(Result::unwrap) {
            let _ = writeln!(declared, "name = {:?}", entry.path().file_stem().unwrap().to_str().unwrap());
        }
    }
    let program = words.iter().find(|word| !word.contains('='))?;
    let fault = |name: &str| Some(format!("{}:{}: there is no `{name}`: {}", page.name, command.line, command.text));
    if program.starts_with("tools/") || program.starts_with(".ci/") {
        return if root().join(program).exists() { None } else { fault(program) };
    }
    if program != "cargo" {
        return None;
    }
    for (option, name) in words.iter().zip(words.iter().skip(1)).take_while(|(option, _)| *option != "--") {
        let known = match option.as_str() {
            "-p" | "--package" | "--test" | "--bench" | "--example" => declared.contains(&format!("name = \"{name}\"")),
            "--path" => root().join(name).join("Cargo.toml").exists(),
            "--profile" => declared.contains(&format!("[profile.{name}]")),
            _ => true,
        };
        if !known {
            return fault(name);
        }
    }
    None
}

#[test]
fn every_command_works() {
    let fixture = Fixture::new();
    let mut pages = pages();
    // Longest first, so that the last one is short.
    pages.sort_by_key(|page| page.text.matches("engine ").count());
    let (pages, faults) = (Mutex::new(pages), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(page) = pages.lock().unwrap().pop() else { break };
                    let start = Instant::now();
                    let found = try_commands(&page, &fixture);
                    println!("{}: {:.1} s", page.name, start.elapsed().as_secs_f64());
                    faults.lock().unwrap().extend(found);
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} commands fail:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_link_and_path_leads_somewhere() {
    let pages = pages();
    let anchors: BTreeMap<PathBuf, Vec<String>> =
        pages.iter().map(|page| (root().join(&page.name), page.anchors())).collect();
    let mut faults = Vec::new();
    for page in &pages {
        let own = root().join(&page.name);
        for (line, target) in page.links() {
            if target.starts_with("https://") || target.starts_with("http://") || target.starts_with("crate::") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() { own.clone() } else { own.parent().unwrap().join(path) };
            let path = path.canonicalize().unwrap_or(path);
            let known = anchors.get(&path).cloned().unwrap_or_else(|| {
                let text = fs::read_to_string(&path).unwrap_or_default();
                Page { name: target.clone(), text }.anchors()
            });
            if !path.exists() || !(anchor.is_empty() || known.iter().any(|known| known == anchor)) {
                faults.push(format!("{}:{line}: the link has no target: {target}", page.name));
            }
        }
        let missing = page.paths().into_iter().filter(|(_, path)| !root().join(path).exists());
        faults.extend(missing.map(|(line, path)| format!("{}:{line}: there is no `{path}`", page.name)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_readme_is_short_and_lists_every_preset() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(text.lines().count() <= 120, "README.md has {} lines, at most 120 are read", text.lines().count());
    for preset in presets() {
        assert!(text.contains(&format!("| `{}` |", preset.name)), "README.md: the table lacks `{}`", preset.name);
    }
}

/// Each page is a module of `engine::guide`, and each module's page is in the table of contents.
#[test]
fn every_page_is_in_the_guide() {
    let module = fs::read_to_string(root().join("src/guide/mod.rs")).unwrap();
    let mut faults = Vec::new();
    for page in pages().iter().filter(|page| page.name.starts_with("src/guide/")) {
        let file = page.name.rsplit('/').next().unwrap();
        if !module.contains(&format!("\"{file}\"")) {
            faults.push(format!("{}: add the page to src/guide/mod.rs", page.name));
        }
        let long = page.prose().into_iter().filter(|(_, line)| line.chars().count() > 160 && !line.starts_with('|'));
        faults.extend(long.map(|(line, _)| format!("{}:{line}: more than 160 characters", page.name)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
