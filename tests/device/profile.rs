//! `engine profile` as a program, if the PTX machine is available: counting, its outputs, and slowdowns planted in kernels.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A model that is counted in seconds.
const SMALL: [&str; 10] = [
    "--preset",
    "quickstart",
    "--batch",
    "2",
    "--precision",
    "bf16",
    "--set",
    "model.hidden_dim=64",
    "--set",
    "model.depth=1",
];

struct Profile {
    engine: &'static Path,
    machine: PathBuf,
    folder: tempfile::TempDir,
}

impl Profile {
    /// None, with a message, if the PTX machine is not requested.
    fn new(test: &str) -> Option<Self> {
        let engine = Path::new(env!("CARGO_BIN_EXE_engine"));
        let machine = std::env::var_os("ENGINE_PTX_MACHINE").filter(|folder| !folder.is_empty());
        let Some(machine) = machine.filter(|_| engine.exists() && !super::machine::is_here()) else {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: ENGINE_PTX_MACHINE names no machine");
            return None;
        };
        let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join(machine);
        Some(Self { engine, machine, folder: tempfile::tempdir().unwrap() })
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &Path)]) -> (bool, String, String) {
        let mut command = Command::new(self.engine);
        command.arg("profile").args(arguments).current_dir(&self.folder);
        command.env("ENGINE_PTX_MACHINE", &self.machine).envs(environment.iter().copied());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (status.success(), text(stdout), text(stderr))
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (done, said, errors) = self.command(arguments, &[]);
        assert!(done, "{arguments:?}: {said}{errors}");
        said
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.path().join(name)).unwrap()).unwrap()
    }
}

/// Chrome's trace events as Perfetto reads them: metadata, and complete events that do not overlap in their row.
fn is_a_trace(trace: &Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    let mut ends: std::collections::BTreeMap<(u64, u64), f64> = std::collections::BTreeMap::new();
    let mut names = BTreeSet::new();
    for event in events {
        let row = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        let name = event["name"].as_str().unwrap();
        match event["ph"].as_str().unwrap() {
            "M" => {
                let title = event["args"]["name"].as_str().unwrap();
                assert!(name != "process_name" || title.contains("modelled, never measured"), "{title}");
            }
            "X" => {
                let (start, length) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
                let end = ends.entry(row).or_insert(0.0);
                assert!(length >= 0.0 && start >= *end - 1e-6, "{event}");
                assert!(event["args"]["modelled"] == true, "{event}");
                *end = start + length;
                names.insert(name);
            }
            other => panic!("an event of kind {other}"),
        }
    }
    assert!(ends.len() == 4 && names.contains("adamw_update_bf16"), "{names:?}");
}

#[test]
fn small_profile_tells_everything() {
    let Some(profile) = Profile::new("small_profile_tells_everything") else { return };
    let files = ["--json", "p.json", "--trace", "t.json", "--counters", "c.json", "--lines", "--op", "linear"];
    let said = profile.ok(&[&SMALL[..], &files].concat());
    for part in [
        "modelled, never measured",
        "training step",
        "sampling step (one evaluation",
        "bound by",
        "linear_fwd_eight_bf16",
        "its most expensive lines",
        "kernels/common/",
    ] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    assert!(!said.contains("layer_norm_fwd_narrow_bf16 "), "another op is shown");

    let json = profile.json("p.json");
    assert_eq!((&json["modelled"], &json["note"]), (&Value::from(true), &Value::from("modelled, never measured")));
    let kernels = json["kernels"].as_array().unwrap();
    assert!(kernels.iter().all(|kernel| kernel["modelled"] == true && kernel["modelled_ms"].as_f64().unwrap() > 0.0));
    let launches: Vec<&Value> = kernels.iter().flat_map(|kernel| kernel["launches"].as_array().unwrap()).collect();
    assert!(!launches.is_empty() && launches.iter().all(|launch| launch["modelled"] == true));
    let lines = json["lines"].as_array().unwrap();
    assert!(lines.iter().all(|kernel| kernel["op"] == "linear"));
    for kernel in lines {
        let share = |line: &Value| line["slots_share"].as_f64().unwrap();
        let sum: f64 = kernel["lines"].as_array().unwrap().iter().map(share).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{kernel}");
        assert!(said.contains(&format!("{} in the", kernel["kernel"].as_str().unwrap())), "{kernel}");
    }
    for section in ["training", "sampling"] {
        let of = kernels.iter().filter(|kernel| kernel["section"] == section);
        let sum: f64 = of.map(|kernel| kernel["modelled_ms"].as_f64().unwrap()).sum();
        let total = json[format!("{section}_step_ms")].as_f64().unwrap();
        assert!((sum / total - 1.0).abs() < 1e-9 && total > 0.0, "{section}: {sum} {total}");
    }
    is_a_trace(&profile.json("t.json"));

    // Stored counters are used again, but not for another run or device.
    let again = profile.ok(&[&SMALL[..], &["--counters", "c.json", "--op", "linear", "--lines"]].concat());
    assert_eq!(again, said);
    let (done, _, errors) = profile.command(&[&SMALL[..], &["--counters", "c.json", "--on", "b200"]].concat(), &[]);
    assert!(!done && errors.contains("on b200"), "{errors}");
    let (done, _, errors) = profile.command(&["--preset", "quickstart", "--batch", "4", "--counters", "c.json"], &[]);
    assert!(!done && errors.contains("c.json: it holds the counters of") && errors.lines().count() == 1, "{errors}");

    let none = profile.ok(&[&SMALL[..], &["--counters", "c.json", "--op", "conv2d"]].concat());
    assert_eq!(none.matches("this step launches no kernel of conv2d").count(), 2, "{none}");
    let (done, _, errors) = profile.command(&[&SMALL[..], &["--json", "nowhere/p.json"]].concat(), &[]);
    assert!(!done && errors.starts_with("error: nowhere/p.json: cannot write"), "{errors}");
}

/// Stored counters are not those of edited kernels, nor of an edited configuration.
#[test]
fn small_profile_refuses_counters_of_other_work() {
    let Some(profile) = Profile::new("small_profile_refuses_counters_of_other_work") else { return };
    let small = ["--set", "model.hidden_dim=64", "--set", "model.depth=1", "--batch", "2", "--precision", "bf16"];
    let yaml = Command::new(profile.engine).args(["presets", "quickstart"]).output().unwrap().stdout;
    let yaml = String::from_utf8(yaml).unwrap();
    std::fs::write(profile.folder.path().join("my.yaml"), &yaml).unwrap();
    let arguments = [&["--config", "my.yaml", "--counters", "c.json"][..], &small].concat();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prebuilt/tokens.compute_80.ptx");
    let text = std::fs::read_to_string(path).unwrap();
    let folders = ["before", "after"].map(|name| profile.folder.path().join(name));
    for (folder, end) in folders.iter().zip(["// before\n", "// after\n"]) {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("tokens.ptx"), format!("{text}{end}")).unwrap();
    }
    let [before, after] = folders.each_ref().map(|folder| ("PTX_MACHINE_REPLACE", folder.as_path()));
    let (done, said, errors) = profile.command(&arguments, &[before]);
    assert!(done && said.contains("replaced or changed PTX: registers are estimated"), "{said}{errors}");
    assert!(profile.command(&arguments, &[before]).0);
    for environment in [vec![after], Vec::new()] {
        let (done, _, errors) = profile.command(&arguments, &environment);
        assert!(!done && errors.contains("c.json: it holds the counters of other PTX of tokens"), "{errors}");
    }
    let edited = yaml.replace("num_heads: 4", "num_heads: 2");
    assert_ne!(edited, yaml);
    std::fs::write(profile.folder.path().join("my.yaml"), edited).unwrap();
    let (done, _, errors) = profile.command(&arguments, &[before]);
    assert!(!done && errors.contains("it holds the counters of another configuration of my.yaml"), "{errors}");
}

/// The child ends with its parent, and its results with both.
#[test]
#[cfg(target_os = "linux")]
fn small_profile_that_is_killed_leaves_nothing() {
    let Some(profile) = Profile::new("small_profile_that_is_killed_leaves_nothing") else { return };
    let temporary = profile.folder.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(profile.engine);
    command.args(["profile", "--preset", "dit-cifar10", "--batch", "64", "--blocks", "0"]).env("TMPDIR", &temporary);
    command.env("ENGINE_PTX_MACHINE", &profile.machine).stderr(std::process::Stdio::null());
    let mut parent = command.spawn().unwrap();
    let children = || {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let words = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            let text = String::from_utf8_lossy(&words).into_owned();
            (text.contains("profile-count") && text.contains(temporary.to_str()?)).then_some(())
        });
        processes.count()
    };
    let files = || std::fs::read_dir(&temporary).unwrap().count();
    let until = |what: &dyn Fn() -> bool| {
        (0..600).any(|_| {
            what() || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        })
    };
    assert!(until(&|| children() == 1 && files() == 1), "no child begins");
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(until(&|| children() == 0 && files() == 0), "{} processes and {} folders stay", children(), files());
}

#[test]
fn small_profile_without_a_machine_names_the_command() {
    let Some(profile) = Profile::new("small_profile_without_a_machine_names_the_command") else { return };
    let nowhere = profile.folder.path().join("nowhere");
    let (done, _, errors) = profile.command(&SMALL, &[("ENGINE_PTX_MACHINE", &nowhere)]);
    let advice = "build it in a checkout of the project: `cargo run --release -p ptx-machine -- ";
    assert!(!done && errors.contains(advice) && errors.lines().count() == 1, "{errors}");
    // Neither an empty library nor a text is a machine.
    std::fs::create_dir(&nowhere).unwrap();
    for text in ["", "a text"] {
        std::fs::write(nowhere.join("libcuda.so.1"), text).unwrap();
        let (done, _, errors) = profile.command(&SMALL, &[("ENGINE_PTX_MACHINE", &nowhere)]);
        let words = format!("the machine in {} does not load", nowhere.canonicalize().unwrap().display());
        assert!(!done && errors.contains(&words) && errors.lines().count() == 1, "{errors}");
    }
}

/// Measured times beside the model, on a driver with events but no GPU.
#[test]
fn small_profile_measures_where_it_runs() {
    let Some(profile) = Profile::new("small_profile_measures_where_it_runs") else { return };
    let arguments = [&SMALL[..], &["--set", "diffusion.num_steps=20", "--on", "here", "--json", "p.json"]].concat();
    let environment = [
        ("LD_LIBRARY_PATH", profile.machine.as_path()),
        ("PTX_MACHINE_CHECKS", Path::new("off")),
        ("PTX_MACHINE_DEVICE", Path::new("a100")),
    ];
    let (done, said, errors) = profile.command(&arguments, &environment);
    assert!(done && said.contains("; measured "), "{said}{errors}");
    let json = profile.json("p.json");
    assert_eq!(json["on"], "a100");
    assert!(json["measured_training_step_ms"].as_f64().unwrap() > 0.0);
    assert!(json["kernels"].as_array().unwrap().iter().all(|kernel| kernel["measured_ms"].as_f64().is_some()));
    let corrected = profile.ok(&[
        &SMALL[..],
        &["--set", "diffusion.num_steps=20", "--on", "a100", "--calibration", "p.json"],
    ]
    .concat());
    assert!(corrected.contains("corrected by times that were measured on PTX machine (A100)"), "{corrected}");
    assert!(!corrected.contains("never measured"), "{corrected}");
}

/// An edit of a kernel's instructions that makes it slower.
struct Slowdown {
    module: &'static str,
    kernel: &'static str,
    counter: &'static str,
    edit: fn(&str) -> Option<Vec<String>>,
}

/// Each access of four words becomes four accesses of one.
fn apart(line: &str, opcode: &str, single: &str, bytes: usize) -> Option<Vec<String>> {
    let rest = line.trim().strip_prefix(opcode)?.trim().strip_suffix(';')?;
    let (vector, address) = match rest.strip_prefix('{') {
        // A load: what it writes, then the address.
        Some(rest) => rest.split_once("}, [").map(|(vector, address)| (vector, address.trim_end_matches(']')))?,
        // A store: the other way round.
        None => {
            let (address, vector) = rest.strip_prefix('[')?.split_once("], {")?;
            (vector.trim_end_matches('}'), address)
        }
    };
    let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
    let offset: usize = offset.parse().ok()?;
    let one = |(at, register): (usize, &str)| {
        let place = format!("[{base}+{}]", offset + at * bytes);
        if rest.starts_with('{') {
            format!("{single} {register}, {place};")
        } else {
            format!("{single} {place}, {register};")
        }
    };
    Some(vector.split(", ").enumerate().map(one).collect())
}

fn repeated(line: &str, opcode: &str, times: usize) -> Option<Vec<String>> {
    line.trim().starts_with(opcode).then(|| vec![line.to_string(); times])
}

const SLOWDOWNS: [Slowdown; 5] = [
    // The moments are read twice.
    Slowdown {
        module: "adamw",
        kernel: "adamw_update_bf16",
        counter: "sectors",
        edit: |line| repeated(line, "ld.global.v4", 2),
    },
    // Loads whose lanes are further apart than the data that they read.
    Slowdown {
        module: "layer_norm",
        kernel: "layer_norm_fwd_narrow_bf16",
        counter: "sectors",
        edit: |line| apart(line, "ld.global.nc.v4.u16", "ld.global.nc.u16", 2),
    },
    // Warp sums are repeated several times.
    Slowdown {
        module: "mse_loss",
        kernel: "mse_loss_fwd_items",
        counter: "issue slots",
        edit: |line| repeated(line, "shfl.sync.bfly", 4),
    },
    // Tiles without their swizzle.
    Slowdown {
        module: "linear",
        kernel: "linear_fwd_eight_bf16",
        counter: "bank conflicts",
        edit: |line| {
            let (to, from) = line.trim().strip_prefix("xor.b32")?.trim().strip_suffix(';')?.split_once(", ")?;
            let (from, other) = from.split_once(", ")?;
            other.starts_with('%').then(|| vec![format!("mov.b32 {to}, {from};")])
        },
    },
    // Loads whose lanes use only a quarter of the banks.
    Slowdown {
        module: "attention",
        kernel: "attention_fwd_narrow_bf16",
        counter: "bank conflicts",
        edit: |line| apart(line, "ld.shared.v4.u32", "ld.shared.u32", 4),
    },
];

impl Slowdown {
    /// The module's PTX with the edit in this kernel only.
    fn planted(&self) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prebuilt");
        let text = std::fs::read_to_string(path.join(format!("{}.compute_80.ptx", self.module))).unwrap();
        let (mut inside, mut edits, mut lines) = (false, 0, Vec::new());
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once(".entry ") {
                inside = rest.trim_end_matches('(') == self.kernel;
            }
            match (self.edit)(line).filter(|_| inside) {
                Some(changed) => {
                    edits += 1;
                    lines.extend(changed);
                }
                None => lines.push(line.to_string()),
            }
        }
        assert!(edits > 0, "nothing to change in {}", self.kernel);
        lines.join("\n")
    }
}

/// Tests the check that CI runs.
#[test]
fn small_planted_slowdowns_are_named() {
    let Some(profile) = Profile::new("small_planted_slowdowns_are_named") else { return };
    let file = profile.folder.path().join("counters.json");
    let run = r#"{"about": "", "runs": [{"preset": "quickstart", "batch": 2, "precision": "bf16", "set": ["model.hidden_dim=64", "model.depth=1"]}]}"#;
    std::fs::write(&file, run).unwrap();
    let (new, said, errors) = profile.command(&["--check", "counters.json"], &[]);
    assert!(!new && errors.contains("--update"), "{said}{errors}");
    profile.ok(&["--check", "counters.json", "--update"]);
    assert!(profile.ok(&["--check", "counters.json"]).contains("no counter grew"));
    for slowdown in &SLOWDOWNS {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(format!("{}.ptx", slowdown.module)), slowdown.planted()).unwrap();
        let (done, said, errors) =
            profile.command(&["--check", "counters.json"], &[("PTX_MACHINE_REPLACE", folder.path())]);
        let named = format!("kernel {}, {}: ", slowdown.kernel, slowdown.counter);
        assert!(!done && said.contains(&named), "{named} is missing in\n{said}{errors}");
        let others: Vec<&str> =
            said.lines().filter(|line| line.starts_with("GREW") && !line.contains(slowdown.kernel)).collect();
        assert!(others.is_empty(), "{named}{others:?}");
        assert!(
            errors.contains(slowdown.kernel) && errors.contains("engine profile --check counters.json --update"),
            "{errors}"
        );
    }
}
