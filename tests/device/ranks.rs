//! Two GPUs that train one model by NCCL; on the PTX machine by the stand-in of `tools/nccl-double`, which writes its calls down.

use std::io::Write;
use std::path::Path;
use std::thread;

use engine::cluster::{Limits, Placement, here, join};
use engine::config::Config;
use engine::device::DeviceChoice;
use engine::device::cuda::CudaDevice;
use engine::tensor::Device;
use engine::train::{Recipe, Trainer};

use super::device_with;
use super::machine::is_here;
use super::tiny::{BALANCED, State, config, dataset, distance};

const TEST: &str = "ranks::two_gpus_by_nccl";
const STEPS: u64 = 4;
/// Where the stand-in writes its calls.
const LOG: &str = "NCCL_DOUBLE_LOG";

fn gpu(ordinal: u32) -> Device {
    Device::Accelerator(DeviceChoice::Cuda(ordinal).open().unwrap().accelerator.unwrap())
}

/// One rank of each GPU, and how they said that they exchange.
fn on_two(config: &Config) -> (State, String) {
    let (leader, listener) = here(2).unwrap();
    let mut listener = Some(listener);
    let threads: Vec<_> = (0..2)
        .map(|rank| {
            let (placement, listener) = (Placement { rank, local_rank: rank, ..leader.clone() }, listener.take());
            let config = config.clone();
            thread::spawn(move || {
                let team = join(&placement, listener, Limits::default(), &mut || Ok(())).unwrap();
                let recipe = Recipe { team: team.clone(), ..Recipe::new(&config, gpu(rank as u32)) };
                let mut trainer = Trainer::new(&config.model, &dataset(), &recipe).unwrap();
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

fn on_one(config: &Config) -> State {
    let mut trainer = Trainer::new(&config.model, &dataset(), &Recipe::new(config, gpu(0))).unwrap();
    (0..STEPS).for_each(|_| trainer.train_step().unwrap());
    State::of(&mut trainer)
}

#[test]
fn two_gpus_by_nccl() {
    let calls = tempfile::NamedTempFile::new().unwrap();
    let path = calls.path().to_str().unwrap();
    let Some((_guard, _)) = device_with(TEST, &[("PTX_MACHINE_DEVICE", "a100,a100"), (LOG, path)]) else { return };
    let double = std::env::var_os("LD_LIBRARY_PATH").map(|folder| Path::new(&folder).join("libnccl.so.2"));
    let missing = is_here() && !double.is_some_and(|double| double.exists());
    if missing || CudaDevice::count().unwrap() < 2 {
        let why = "two GPUs and NCCL are needed, or `cargo run -p nccl-double -- FOLDER` beside the machine";
        let _ = writeln!(std::io::stderr(), "SKIPPED {TEST}: {why}");
        return;
    }
    let mut sharded = config(&[&BALANCED[..], &["training.precision=bf16", "training.batch_size=2"]].concat());
    sharded.training.shards = Some(2);
    let (state, exchange) = on_two(&sharded);
    assert_eq!(exchange, "NCCL");
    assert!(state == on_one(&sharded), "with shards two GPUs have the bits of one");

    let mut plain = sharded.clone();
    (plain.training.shards, plain.training.gradient_accumulation) = (None, 4);
    let before = is_here().then(|| std::fs::read_to_string(std::env::var(LOG).unwrap()).unwrap().lines().count());
    let (state, one) = (on_two(&plain).0, on_one(&plain));
    assert!(distance(&state.weights, &one.weights) < 1e-4, "{}", distance(&state.weights, &one.weights));
    assert!(state.metrics.iter().zip(&one.metrics).all(|(a, b)| (a.loss - b.loss).abs() < 1e-3 * b.loss));
    let Some(before) = before else { return };
    // Each rank makes the same calls in the same order: in each step the gradient, then the records of the batches.
    let log = std::fs::read_to_string(std::env::var(LOG).unwrap()).unwrap();
    let of =
        |rank: &str| -> Vec<&str> { log.lines().skip(before).filter_map(|line| line.strip_prefix(rank)).collect() };
    let (first, second) = (of("0 "), of("1 "));
    assert_eq!(first, second);
    let step: Vec<&str> = first[1..first.len() - 1].to_vec();
    let kinds: Vec<&str> = step.iter().map(|call| call.split(' ').next().unwrap()).collect();
    let one = ["all-reduce", "all-gather", "all-gather", "all-gather", "all-gather"];
    assert_eq!(kinds, one.repeat(STEPS as usize), "{first:?}");
    assert!(first[0] == "init 2" && first[first.len() - 1] == "destroy", "{first:?}");
}
