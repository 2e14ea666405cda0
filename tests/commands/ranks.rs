//! `engine train` with several processes: the same bits for any number, a dead process named, nothing written on a mismatch.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use engine::config::Config;
use engine::data::shapes;
use engine::model_file::ClassifierModel;
use engine::tensor::{Context, DType};

const SETTINGS: [&str; 9] = [
    "training.shards=4",
    "training.batch_size=2",
    "data.shapes_count=120",
    "training.log_every=5",
    "training.validate_every=never",
    "training.sample_every=never",
    "training.lr_schedule=constant",
    "sampling.num_steps=2",
    "sampling.count_per_class=1",
];

const TINY: [&str; 5] = [
    "model.hidden_dim=16",
    "model.depth=1",
    "model.patch_size=8",
    "model.num_heads=2",
    "model.condition_hidden_dim=16",
];

fn train(folder: &Path, arguments: &[&str], settings: &[&str]) -> Command {
    train_by(Path::new(env!("CARGO_BIN_EXE_engine")), folder, arguments, settings)
}

fn train_by(program: &Path, folder: &Path, arguments: &[&str], settings: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(["train", "--device", "cpu"]).args(arguments);
    for setting in settings {
        command.args(["--set", setting]);
    }
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let launchers =
            ["RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "PET_", "SLURM_", "OMPI_", "PMI", "TORCHELASTIC_", "ENGINE_"];
        if launchers.iter().any(|launcher| name.starts_with(launcher)) {
            command.env_remove(name);
        }
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits at most `most`: returns whether it succeeded, and its output.
fn wait(mut child: Child, most: Duration) -> (bool, String) {
    let mut streams: Vec<Box<dyn Read + Send>> =
        vec![Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    let readers: Vec<_> = streams
        .drain(..)
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            })
        })
        .collect();
    let until = Instant::now() + most;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text: String = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let status = status.unwrap_or_else(|| panic!("it did not end within {most:?}: {text}"));
    (status.success(), text)
}

const LONG: Duration = Duration::from_secs(120);

fn done(command: &mut Command) -> String {
    let (success, text) = wait(command.spawn().unwrap(), LONG);
    assert!(success, "{text}");
    text
}

fn model(run: &Path) -> Vec<u8> {
    fs::read(run.join("model.safetensors")).unwrap()
}

fn losses(run: &Path) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        (value["step"].as_u64().unwrap(), value["loss"].as_f64().unwrap_or(0.0))
    };
    text.lines().map(line).collect()
}

#[test]
fn fifty_steps_of_quickstart_have_the_same_bits_on_1_2_and_4_processes() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    done(&mut train(folder, &["--steps", "50", "--out", "one"], &SETTINGS));
    for processes in ["2", "4"] {
        let text =
            done(&mut train(folder, &["--steps", "50", "--out", processes, "--processes", processes], &SETTINGS));
        assert!(text.contains(&format!("{processes} processes, by TCP")), "{text}");
        assert_eq!(losses(&folder.join(processes)), losses(&folder.join("one")));
        assert!(model(&folder.join(processes)) == model(&folder.join("one")), "{processes} processes");
        for picture in ["final.png", "timesteps.png"] {
            let of = |run: &str| fs::read(folder.join(run).join("samples").join(picture)).unwrap();
            assert!(of(processes) == of("one"), "{picture} of {processes} processes");
        }
    }
}

/// A run of four processes, once it has a checkpoint; and one of the processes that it started.
fn under_way(folder: &Path, out: &str, which: usize) -> (Child, u32) {
    let every = ["training.checkpoint_every=10"];
    let settings = [&SETTINGS[..], &TINY, &every].concat();
    let arguments = ["--processes", "4", "--threads", "1", "--steps", "1000000", "--out", out];
    let child = train(folder, &arguments, &settings).spawn().unwrap();
    let until = Instant::now() + LONG;
    while fs::read_dir(folder.join(out).join("checkpoints")).map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < until, "no checkpoint after {LONG:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let children: Vec<u32> = children.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(children.len(), 3);
    (child, children[which])
}

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

#[test]
fn a_process_that_is_killed_or_stopped_is_named_and_the_run_goes_on_with_two() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    for (how, sent, which, word) in [("killed", "-KILL", 1, "is gone"), ("stopped", "-STOP", 2, "hangs")] {
        let (child, victim) = under_way(folder, how, which);
        signal(victim, sent);
        let (success, text) = wait(child, Duration::from_secs(30));
        let named = format!("rank {} (process {victim} on", which + 1);
        assert!(!success && text.contains(&named) && text.contains(word), "{text}");
        assert!(!Path::new(&format!("/proc/{victim}")).exists(), "nobody is left behind");
        let last = losses(&folder.join(how)).last().unwrap().0;
        let steps = (last + 25).to_string();
        done(&mut train(folder, &["--resume", how, "--steps", &steps, "--processes", "2"], &[]));
        let whole = [&SETTINGS[..], &TINY, &["training.checkpoint_every=10"]].concat();
        let name = format!("{how}-never");
        done(&mut train(folder, &["--steps", &steps, "--out", &name], &whole));
        // No image lost or repeated: every loss and every weight equals the uninterrupted run's.
        assert_eq!(losses(&folder.join(how)), losses(&folder.join(&name)), "{how}");
        assert!(model(&folder.join(how)) == model(&folder.join(&name)), "{how}");
    }
}

#[test]
fn rank_0_that_is_stopped_is_named_by_all_others() {
    let place = tempfile::tempdir().unwrap();
    let (child, _) = under_way(place.path(), "run", 0);
    let others = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let others: Vec<u32> = others.split_whitespace().map(|id| id.parse().unwrap()).collect();
    signal(child.id(), "-STOP");
    // Their parent is suspended, so they stay zombies.
    let has_ended = |id: &u32| {
        let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    let until = Instant::now() + Duration::from_secs(30);
    while !others.iter().all(has_ended) {
        assert!(Instant::now() < until, "the others wait for a rank 0 that is stopped");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (leader, last) = (child.id(), losses(&place.path().join("run")).last().unwrap().0);
    signal(leader, "-CONT");
    let (success, text) = wait(child, Duration::from_secs(30));
    let named = format!("rank 0 (process {leader} on");
    assert!(!success && text.matches(&named).count() >= 3 && text.contains("hangs"), "{text}");
    let steps = (last + 15).to_string();
    done(&mut train(place.path(), &["--resume", "run", "--steps", &steps, "--processes", "2"], &[]));
}

#[test]
fn too_many_processes_are_refused_once_before_any_is_started() {
    let place = tempfile::tempdir().unwrap();
    // Without the shards, which come first: a step has as many batches as processes.
    let unsharded = [&SETTINGS[1..], &TINY].concat();
    done(&mut train(place.path(), &["--steps", "4", "--out", "run", "--processes", "2"], &unsharded));
    let refused = |arguments: &[&str], settings: &[&str]| {
        let (success, text) = wait(train(place.path(), arguments, settings).spawn().unwrap(), LONG);
        assert!(!success && text.matches("error: ").count() == 1, "{text}");
        text
    };
    let text = refused(&["--resume", "run", "--steps", "8", "--processes", "8"], &[]);
    assert!(text.contains("a step of 2 batches") && text.contains("start 1 or 2 processes"), "{text}");
    let sharded = [&TINY[..], &["training.shards=4"]].concat();
    let text = refused(&["--steps", "4", "--out", "new", "--processes", "3"], &sharded);
    assert!(text.contains("a step of 4 shards cannot be shared by 3 processes; start 1, 2 or 4 processes"), "{text}");
    assert!(!place.path().join("new").exists());
}

/// Processes as started by a launcher, each with its own settings.
fn launched(folder: &Path, port: u16, ranks: usize, more: impl Fn(usize) -> Vec<String>) -> Vec<(bool, String)> {
    launched_by(|_| PathBuf::from(env!("CARGO_BIN_EXE_engine")), folder, port, ranks, more)
}

/// As [`launched`], each with its own program.
fn launched_by(
    program: impl Fn(usize) -> PathBuf,
    folder: &Path,
    port: u16,
    ranks: usize,
    more: impl Fn(usize) -> Vec<String>,
) -> Vec<(bool, String)> {
    let start = |rank: usize| {
        let settings = [&SETTINGS[..], &TINY].concat();
        let arguments = ["--steps", "4", "--threads", "1", "--out", "run"];
        let mut command = train_by(&program(rank), folder, &arguments, &settings);
        command.args(more(rank)).env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", ranks.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("TORCHELASTIC_RUN_ID", format!("job{port}")).env("TORCHELASTIC_USE_AGENT_STORE", "True");
        command.spawn().unwrap()
    };
    let children: Vec<Child> = (0..ranks).map(start).collect();
    children.into_iter().map(|child| wait(child, LONG)).collect()
}

#[test]
fn torchruns_variables_are_enough_and_its_agent_keeps_its_port() {
    let agent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = agent.local_addr().unwrap().port();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Two jobs on one machine.
    let other = second.path().to_path_buf();
    let beside = std::thread::spawn(move || {
        done(&mut train(
            &other,
            &["--steps", "4", "--processes", "2", "--out", "run"],
            &[&SETTINGS[..], &TINY].concat(),
        ));
    });
    let ends = launched(first.path(), port, 2, |_| Vec::new());
    assert!(ends.iter().all(|(success, _)| *success), "{ends:?}");
    beside.join().unwrap();
    assert!(model(&first.path().join("run")) == model(&second.path().join("run")));
    assert_eq!(fs::read_dir(first.path()).unwrap().count(), 1, "rank 0 alone writes");
}

#[test]
fn ranks_that_do_not_fit_together_say_so_and_write_nothing() {
    type More = fn(usize) -> Vec<String>;
    let cases: [(More, &str); 2] = [
        (
            |rank| vec!["--set".into(), format!("training.learning_rate=1e-{}", 3 + rank)],
            "a different configuration than rank 0: `",
        ),
        (
            |rank| vec!["--set".into(), format!("data.shapes_seed={}", 3 + rank)],
            "a different configuration than rank 0: `",
        ),
    ];
    for (more, expected) in cases {
        let place = tempfile::tempdir().unwrap();
        for (success, text) in launched(place.path(), a_port(), 2, more) {
            assert!(!success && text.contains("rank 1 has ") && text.contains(expected), "{text}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is written");
    }
    let place = tempfile::tempdir().unwrap();
    let mut command = train(place.path(), &["--processes", "2"], &TINY);
    let (success, text) =
        wait(command.env("RANK", "0").env("WORLD_SIZE", "2").env("MASTER_ADDR", "h").spawn().unwrap(), LONG);
    assert!(!success && text.contains("--processes: 2 processes are requested, but torchrun has started"), "{text}");
}

/// `ENGINE_RENDEZVOUS` bounds the wait for ranks that do not connect.
#[test]
fn ranks_wait_as_long_as_the_variable_says() {
    let place = tempfile::tempdir().unwrap();
    let alone = |seconds: &str| {
        let mut command = train(place.path(), &["--steps", "4", "--out", "run"], &TINY);
        command.env("RANK", "0").env("WORLD_SIZE", "2").env("LOCAL_RANK", "0").env("LOCAL_WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", a_port().to_string());
        wait(command.env("ENGINE_RENDEZVOUS", seconds).spawn().unwrap(), LONG)
    };
    let started = Instant::now();
    let (success, text) = alone("2");
    assert!(!success && text.contains("rank 1 of 2 did not connect") && text.contains("waited 2 s"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(25), "less than without the variable");
    let (success, text) = alone("soon");
    assert!(!success && text.contains("ENGINE_RENDEZVOUS: `soon` is not a number of seconds"), "{text}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is written");
}

/// A free port, below those that the system gives to connections: one of these might be taken before a rank listens there.
fn a_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = || 20_000 + ((std::process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000) as u16;
    std::iter::repeat_with(port).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

/// Checks that each rank reports this about rank 1, once, and that nothing was written.
fn all_say(ends: &[(bool, String)], folder: &Path, what: &str) {
    for (success, text) in ends {
        let said = format!("the ranks do not match: rank 1 has a different {what} than rank 0: `");
        assert!(!success && text.matches("error: ").count() == 1 && text.contains(&said), "{text}");
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "nothing is written");
}

#[test]
fn another_data_set_on_one_rank_is_told_on_all() {
    let (place, sets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |rank: usize| sets.path().join(format!("set-{rank}.safetensors"));
    // As many images with the same names and sizes: only the pixels differ.
    (0..2).for_each(|rank| shapes(rank as u64, 120).write(path(rank), false).unwrap());
    let data = |rank: usize| vec!["--data".to_string(), path(rank).display().to_string()];
    all_say(&launched(place.path(), a_port(), 2, data), place.path(), "data set");
}

#[test]
fn another_program_on_one_rank_is_told_on_all() {
    let (place, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A byte after its end changes nothing in its behaviour. A separate process writes it: this one starts others meanwhile.
    let other = programs.path().join("engine");
    let copy = format!("cp '{}' '{1}' && printf x >>'{1}'", env!("CARGO_BIN_EXE_engine"), other.display());
    assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
    let program = |rank| if rank == 0 { PathBuf::from(env!("CARGO_BIN_EXE_engine")) } else { other.clone() };
    all_say(&launched_by(program, place.path(), a_port(), 2, |_| Vec::new()), place.path(), "engine");
}

#[test]
fn a_metric_in_training_has_the_same_digits_on_1_and_2_processes() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let size = Config::preset("quickstart").unwrap().model.image_size();
    let mut config = Config::preset("resnet18-cifar10").unwrap();
    for setting in
        [&format!("model.image_size={}", size.width), "model.blocks=[1, 1]", "model.widths=[8, 16]", "data.name=shapes"]
    {
        config.set(setting).unwrap();
    }
    let judge = ClassifierModel::untrained(&config, &Context::cpu(), DType::F32, 2).unwrap();
    judge.save(folder.join("judge.safetensors")).unwrap();
    let extractor = format!("training.evaluate_extractor={}", folder.join("judge.safetensors").display());
    let of_metric =
        ["training.evaluate_every=5", "training.evaluate_samples=13", "training.evaluate_reference=40", &extractor];
    let settings = [&SETTINGS[..], &TINY, &of_metric].concat();
    let values = |out: &str, more: &[&str]| -> Vec<String> {
        done(&mut train(folder, &[&["--steps", "10", "--out", out, "--data-dir", out][..], more].concat(), &settings));
        let text = fs::read_to_string(folder.join(out).join("metrics.jsonl")).unwrap();
        text.lines().filter(|line| line.contains("fd") || line.contains("FD")).map(String::from).collect()
    };
    let one = values("one", &[]);
    assert_eq!(one.len(), 2, "{one:?}");
    assert_eq!(values("two", &["--processes", "2"]), one);
}
