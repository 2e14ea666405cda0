//! Two GPUs that train one model with NCCL; on the PTX machine with the stand-in of `tools/nccl-double`, which records its calls.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::MutexGuard;
use std::thread;
use std::time::{Duration, Instant};

use engine::cluster::{Limits, Placement, here, join};
use engine::config::{CommunicationDtype, Config};
use engine::data::{Dataset, shapes};
use engine::device::DeviceChoice;
use engine::device::cuda::CudaDevice;
use engine::tensor::Device;
use engine::train::{Recipe, Trainer};

use super::device_with;
use super::machine::is_here;
use super::tiny::{BALANCED, State, config, dataset, distance};

const STEPS: u64 = 4;
/// Files for the calls of the stand-in and of the PTX machine.
const LOG: &str = "NCCL_DOUBLE_LOG";
const TRACE: &str = "PTX_MACHINE_TRACE";

fn gpu(ordinal: u32) -> Device {
    Device::Accelerator(DeviceChoice::Cuda(ordinal).open().unwrap().accelerator.unwrap())
}

/// Two GPUs with NCCL, or none with a message.
fn two(test: &str, environment: &[(&str, &str)]) -> Option<MutexGuard<'static, ()>> {
    let (guard, _) = device_with(test, &[&[("PTX_MACHINE_DEVICE", "a100,a100")], environment].concat())?;
    let double = std::env::var_os("LD_LIBRARY_PATH").map(|folder| Path::new(&folder).join("libnccl.so.2"));
    let missing = is_here() && !double.is_some_and(|double| double.exists());
    if missing || CudaDevice::count().unwrap() < 2 {
        let why = "two GPUs and NCCL are needed, or `cargo run -p nccl-double -- FOLDER` beside the machine";
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
        return None;
    }
    Some(guard)
}

/// One rank on each GPU, and the transports that they report.
fn on_two(config: &Config, data: &Dataset) -> (State, String) {
    let (leader, listener) = here(2).unwrap();
    let mut listener = Some(listener);
    let threads: Vec<_> = (0..2)
        .map(|rank| {
            let (placement, listener) = (Placement { rank, local_rank: rank, ..leader.clone() }, listener.take());
            let (config, data) = (config.clone(), data.clone());
            thread::spawn(move || {
                let team = join(&placement, listener, Limits::default(), &mut || Ok(())).unwrap();
                let recipe = Recipe { team: team.clone(), ..Recipe::new(&config, gpu(rank as u32)) };
                let mut trainer = Trainer::new(&config.model, &data, &recipe).unwrap();
                (0..STEPS).for_each(|_| trainer.train_step().unwrap());
                let end = (State::of(&mut trainer), trainer.exchange());
                team.barrier().unwrap();
                drop(trainer);
                team.leave(None);
                end
            })
        })
        .collect();
    let mut ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let last = ends.pop().unwrap();
    assert!(ends.iter().all(|end| *end == last), "the ranks came to different ends");
    last
}

fn on_one(config: &Config, data: &Dataset) -> State {
    let mut trainer = Trainer::new(&config.model, data, &Recipe::new(config, gpu(0))).unwrap();
    (0..STEPS).for_each(|_| trainer.train_step().unwrap());
    State::of(&mut trainer)
}

/// Whether two states differ only by the order of sums, or by rounding.
fn near(state: &State, one: &State, weights: f64, loss: f64) {
    let apart = distance(&state.weights, &one.weights);
    assert!(apart < weights, "{apart}");
    let pairs = state.metrics.iter().zip(&one.metrics);
    assert!(pairs.clone().all(|(a, b)| (a.loss - b.loss).abs() < loss * b.loss), "{:?}", pairs.collect::<Vec<_>>());
}

#[test]
fn two_gpus_by_nccl() {
    const TEST: &str = "ranks::two_gpus_by_nccl";
    let calls = tempfile::NamedTempFile::new().unwrap();
    let Some(_guard) = two(TEST, &[(LOG, calls.path().to_str().unwrap())]) else { return };
    let mut sharded = config(&[&BALANCED[..], &["training.precision=bf16", "training.batch_size=2"]].concat());
    sharded.training.shards = Some(2);
    let (state, exchange) = on_two(&sharded, &dataset());
    assert_eq!(exchange, "NCCL");
    assert!(state == on_one(&sharded, &dataset()), "with shards two GPUs have the bits of one");

    let mut plain = sharded.clone();
    (plain.training.shards, plain.training.gradient_accumulation) = (None, 4);
    let lines = || is_here().then(|| std::fs::read_to_string(std::env::var(LOG).unwrap()).unwrap());
    let before = lines().map(|text| text.lines().count());
    let (state, one) = (on_two(&plain, &dataset()).0, on_one(&plain, &dataset()));
    near(&state, &one, 1e-4, 1e-3);
    let after = lines();
    plain.training.communication_dtype = CommunicationDtype::Bf16;
    let (state, exchange) = on_two(&plain, &dataset());
    assert_eq!(exchange, "NCCL in bf16");
    near(&state, &one, 1e-2, 1e-2);
    let (Some(before), Some(log), Some(last)) = (before, after, lines()) else { return };
    // Each rank makes the same calls in the same order: the gradient, then the records of the batches; once to warm up, once
    // eagerly, and once captured, however many steps there are.
    let of = |text: &str, rank: &str, skip: usize| -> Vec<String> {
        let own = text.lines().skip(skip).filter_map(|line| line.strip_prefix(rank));
        own.map(|line| line.split(" 0x").next().unwrap().to_string()).collect()
    };
    let first = of(&log, "0 ", before);
    assert_eq!(first, of(&log, "1 ", before));
    let kinds: Vec<&str> = first.iter().map(|call| call.split(' ').next().unwrap()).collect();
    let one = ["all-reduce", "all-gather", "all-gather", "all-gather", "all-gather"].repeat(3);
    assert_eq!(kinds, [&["init"], &one[..], &["destroy"]].concat(), "{first:?}");
    let rounded = of(&last, "0 ", log.lines().count());
    let sums: Vec<&String> = rounded.iter().filter(|call| call.starts_with("all-reduce")).collect();
    assert!(sums.len() == 3 && sums.iter().all(|call| call.ends_with(" bf16")), "{rounded:?}");
}

/// `quickstart` with small batches, two per step.
fn quickstart() -> (Config, Dataset) {
    let mut config = Config::preset("quickstart").unwrap();
    for setting in ["training.batch_size=1", "training.gradient_accumulation=2", "training.warmup_steps=1"] {
        config.set(setting).unwrap();
    }
    (config, shapes(0, 40))
}

/// The calls of a rank's two streams during the capture of its exchanges.
fn captured(trace: &str, rank: &str) -> (Vec<String>, Vec<String>) {
    let sum = format!("{rank} all-reduce");
    let is_sum = |line: &&str| line.starts_with(&sum);
    let side = trace.lines().find(is_sum).and_then(|line| line.rsplit(' ').next()).expect("an exchange").to_string();
    // The side stream waits for an event recorded in the main one.
    let wait = format!("wait {side} ");
    let event = trace.lines().find_map(|line| line.strip_prefix(&wait)).expect("a fork");
    let record = format!("record {event} ");
    let main = trace.lines().find_map(|line| line.strip_prefix(&record)).expect("a record").to_string();
    let named = |line: &str| line.split(' ').any(|word| word == main || word == side);
    let own: Vec<String> = trace
        .lines()
        .filter(|line| named(line))
        .map(|line| line.replace(&main, "main").replace(&side, "side").replace(event, "fork"))
        .collect();
    let ends: Vec<usize> = (0..own.len()).filter(|at| own[*at] == "end-capture main").collect();
    let [(begin, end)] = ends
        .iter()
        .map(|end| (own[..*end].iter().rposition(|line| line == "begin-capture main").unwrap(), *end))
        .filter(|(begin, end)| own[*begin..*end].iter().any(|line| line.starts_with(&sum)))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one capture exchanges: {own:?}")
    };
    (own[begin + 1..end].to_vec(), own[end..].to_vec())
}

/// The exchange calls in a captured step, and the host's calls in a replay.
fn order_of_calls(test: &str, forks: &str) {
    let calls = tempfile::NamedTempFile::new().unwrap();
    let path = calls.path().to_str().unwrap();
    let environment = [(LOG, path), (TRACE, path), ("PTX_MACHINE_CHECKS", "off"), ("PTX_MACHINE_FORKS", forks)];
    let Some(_guard) = two(test, &environment) else { return };
    let (config, data) = quickstart();
    let state = on_two(&config, &data).0;
    let trace = is_here().then(|| std::fs::read_to_string(std::env::var(TRACE).unwrap()).unwrap());
    near(&state, &on_one(&config, &data), 1e-4, 1e-3);
    let Some(trace) = trace else { return };
    for rank in ["0", "1"] {
        let (step, rest) = captured(&trace, rank);
        let sums: Vec<usize> =
            (0..step.len()).filter(|at| step[*at].starts_with(&format!("{rank} all-reduce"))).collect();
        // Each exchange is forked when its bucket is complete: record, wait, exchange.
        let mut exchanges = (0..step.len()).filter(|at| step[*at].starts_with(&format!("{rank} all-")));
        for at in exchanges.clone() {
            assert_eq!(step[at - 2..at], ["record fork main", "wait side fork"], "{at}");
        }
        assert!(sums.len() > 2, "{} buckets", sums.len());
        let elements = |at: &usize| step[*at].split(' ').nth(2).unwrap().parse::<usize>().unwrap();
        let gradient: usize = sums.iter().map(elements).sum();
        assert!(gradient >= state.weights.len(), "{gradient} of {}", state.weights.len());
        // The backward pass continues concurrently, bucket after bucket.
        let backward =
            |range: &[String]| range.iter().any(|line| line.starts_with("launch main ") && line.contains("_bwd_"));
        assert!(sums.windows(2).filter(|pair| backward(&step[pair[0]..pair[1]])).count() > 1, "{step:?}");
        // It is joined once, after the last exchange and before the update.
        let joins: Vec<usize> = (0..step.len()).filter(|at| step[*at].starts_with("wait main ")).collect();
        let update = step.iter().position(|line| line.starts_with("launch main adamw")).expect("an update");
        let last = exchanges.next_back().unwrap();
        assert!(joins.len() == 1 && last < joins[0] && joins[0] < update, "{joins:?} {last} {update}");
        assert!(step[joins[0] - 1].starts_with("record ") && step[joins[0] - 1].ends_with(" side"));
        let norm = step.iter().position(|line| line.starts_with("launch main gradient_norm"));
        assert!(norm.is_none_or(|norm| joins[0] < norm), "the norm is of all ranks' gradient");
        assert!(!step.iter().any(|line| line.contains("synchronize")), "{step:?}");
        // From the first replay to the last the host waits for nothing, and all exchanges are in the graph.
        let replays: Vec<usize> = (0..rest.len()).filter(|at| rest[*at] == "launch-graph main").collect();
        assert_eq!(replays.len() as u64, STEPS - 1);
        let between = &rest[replays[0]..replays[replays.len() - 1]];
        let host = |line: &&String| line.starts_with("synchronize") || line.starts_with(rank);
        assert_eq!(between.iter().filter(host).count(), 0, "{between:?}");
    }
}

#[test]
fn buckets_are_exchanged_beside_the_backward_and_joined_before_the_update() {
    order_of_calls("ranks::buckets_are_exchanged_beside_the_backward_and_joined_before_the_update", "late");
}

/// As above, with the forked stream's work done as early as possible: a bucket exchanged too early would have other numbers.
#[test]
fn buckets_are_whole_where_they_are_exchanged() {
    order_of_calls("ranks::buckets_are_whole_where_they_are_exchanged", "early");
}

/// The program, by two processes.
fn engine(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    let settings = [
        "training.validate_every=never",
        "training.sample_every=never",
        "training.checkpoint_every=1",
        "sampling.num_steps=1",
        "sampling.count_per_class=1",
        "data.shapes_count=80",
    ];
    let run = ["train", "--preset", "quickstart", "--device", "cuda", "--gpus", "2", "--batch", "1", "--out", out];
    command.current_dir(folder).args(run).args(more);
    command.args(settings.into_iter().flat_map(|setting| ["--set", setting]));
    command.env_remove(TRACE).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: Output) -> (bool, String) {
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn two_processes_have_the_same_bits_captured_or_not_and_through_their_hosts() {
    const TEST: &str = "ranks::two_processes_have_the_same_bits_captured_or_not_and_through_their_hosts";
    let Some(_guard) = two(TEST, &[("PTX_MACHINE_CHECKS", "off")]) else { return };
    if !is_here() || !Path::new(env!("CARGO_BIN_EXE_engine")).exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED {TEST}: it is for the machine");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The PTX machine without NCCL.
    let machine = PathBuf::from(std::env::var_os("LD_LIBRARY_PATH").unwrap());
    let bare = folder.path().join("ptx-machine");
    std::fs::create_dir(&bare).unwrap();
    std::os::unix::fs::symlink(machine.join("libcuda.so.1"), bare.join("libcuda.so.1")).unwrap();
    let run = |out: &str, more: &[&str], says: &str, libraries: &Path| -> Vec<u8> {
        let more = [&["--steps", "3"], more].concat();
        let mut command = engine(folder.path(), out, &more);
        let (done, said) = text(command.env("LD_LIBRARY_PATH", libraries).output().unwrap());
        assert!(done && said.contains(says), "{said}");
        std::fs::read(folder.path().join(out).join("model.safetensors")).unwrap()
    };
    let captured = run("captured", &[], "2 processes, by NCCL", &machine);
    assert!(run("eager", &["--no-graph"], "2 processes, by NCCL", &machine) == captured);
    // A sum of two has only one order.
    let through = run("hosts", &[], "by TCP through the hosts' memory (nccl: no NCCL", &bare);
    assert!(through == captured, "by TCP");
}

/// The process started by the first one.
fn second(first: &Child) -> u32 {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", first.id())).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        assert!(Instant::now() < until, "no second process");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn whoever_waits_in_nccl_for_a_rank_that_is_gone_is_ended() {
    const TEST: &str = "ranks::whoever_waits_in_nccl_for_a_rank_that_is_gone_is_ended";
    let Some(_guard) = two(TEST, &[("PTX_MACHINE_CHECKS", "off")]) else { return };
    if !is_here() || !Path::new(env!("CARGO_BIN_EXE_engine")).exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED {TEST}: it is for the machine");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = engine(folder.path(), "run", &["--steps", "100000"]).spawn().unwrap();
    let gone = second(&first);
    let until = Instant::now() + Duration::from_secs(120);
    while std::fs::read_dir(folder.path().join("run/checkpoints")).map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < until, "no checkpoint");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-KILL", &gone.to_string()]).status().unwrap().success());
    let began = Instant::now();
    let (done, said) = text(first.wait_with_output().unwrap());
    assert!(!done && said.contains(&format!("rank 1 (process {gone} on")) && said.contains("is gone"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}: {said}", began.elapsed());
}
