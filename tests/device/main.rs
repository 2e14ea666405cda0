//! Every kernel on a real GPU: each op's cases in f32 and bf16 against the CPU op, then whole training steps and samples.
//!
//! Without a usable GPU everything here is skipped, loudly; with `ENGINE_REQUIRE_GPU=1` a skip is a failure. Needs nothing
//! but the binary, so that `tools/gpu-pack` can carry it to a machine without Rust. `ENGINE_OP=linear` picks one op,
//! `ENGINE_DEVICE=cuda:1` another GPU. The tests named `small_…` are those that run under `compute-sanitizer`.
//!
//! Where there is no GPU, `ENGINE_PTX_MACHINE=target/ptx-machine` runs them on the machine of `tools/ptx-machine`, which executes
//! the same PTX on the CPU and checks every access: each test is then a child process that loads it as its driver.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../common/tiny.rs"]
mod tiny;

mod command;
mod models;
mod ranks;
mod waits;
mod weights;

use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use engine::device::DeviceChoice;
use engine::ops::case::Case;
use engine::ops::cases;
use engine::tensor::{DType, Device};
use engine::train::{Recipe, Residency, Trainer};
use tiny::{State, TOKEN, config, dataset, distance, sample, train};

/// One test at a time has the GPU: its memory is not shared out.
static GPU: Mutex<()> = Mutex::new(());

/// The GPU, or none with a word on why.
fn device(test: &str) -> Option<(MutexGuard<'static, ()>, Device)> {
    device_with(test, &[])
}

/// As [`device`]; on the machine with these variables set.
fn device_with(test: &str, environment: &[(&str, &str)]) -> Option<(MutexGuard<'static, ()>, Device)> {
    let guard = GPU.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if machine::ran(test, environment) {
        return None;
    }
    let fault = match open() {
        Ok(device) => return Some((guard, device)),
        Err(fault) => fault,
    };
    let required = std::env::var("ENGINE_REQUIRE_GPU").is_ok_and(|value| !["", "0"].contains(&value.as_str()));
    assert!(!required, "ENGINE_REQUIRE_GPU is set, and there is no usable GPU: {fault}");
    // Not by a macro, whose output a passing test keeps to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no GPU was tested: {fault}");
    None
}

/// The device that is asked for, opened anew; or why there is none.
fn open() -> Result<Device, String> {
    let choice = choice();
    let chosen = choice.parse::<DeviceChoice>().and_then(DeviceChoice::open).map_err(|error| error.to_string())?;
    chosen.accelerator.map(Device::Accelerator).ok_or_else(|| format!("ENGINE_DEVICE={choice} is no GPU"))
}

/// The device that is asked for.
fn choice() -> String {
    std::env::var("ENGINE_DEVICE").unwrap_or_else(|_| "cuda".into())
}

/// Operations and bytes from which on a large case is left out on the machine, which would take minutes for it: large cases are there
/// to be timed, and `tests/kernels.rs` shows of each that small ones launch the same kernels in the same ways.
const MACHINE_COST: f64 = 5e7;

fn is_left_out(case: &Case) -> bool {
    let cost = case.cost().unwrap();
    case.large && machine::is_here() && cost.flops + cost.bytes > MACHINE_COST
}

/// Every case agrees with the CPU op, and a second run has the same bits.
fn every_case(test: &str, large: bool, dtype: DType) {
    let Some((_guard, device)) = device(test) else { return };
    let only = std::env::var("ENGINE_OP").ok();
    let cases = cases();
    let mut faults = Vec::new();
    let (mut ran, mut left_out) = (0, 0);
    for case in cases.iter().filter(|case| case.large == large && only.as_deref().is_none_or(|op| case.op == op)) {
        if is_left_out(case) {
            left_out += 1;
            continue;
        }
        ran += 1;
        let outcomes = [(); 2].map(|()| case.check_device(&device, dtype));
        let [Ok(first), Ok(second)] = &outcomes else {
            let fault = outcomes.into_iter().find_map(Result::err).map_or_else(String::new, |error| error.to_string());
            faults.push(format!("{} {dtype}: {fault}", case.id()));
            continue;
        };
        let outputs = first.outputs.iter().zip(&second.outputs).map(|(a, b)| (&a.0, &b.0));
        let gradients = first.gradients.iter().zip(&second.gradients).map(|(a, b)| (&a.1, &b.1));
        if outputs.chain(gradients).any(|(a, b)| a != b) {
            faults.push(format!("{} {dtype}: other bits in a second run", case.id()));
        }
    }
    assert!(ran + left_out > 0, "ENGINE_OP names no op: {only:?}");
    assert!(faults.is_empty(), "{} of {ran} cases:\n{}", faults.len(), faults.join("\n"));
    println!("{ran} cases, {left_out} left to their smaller twins");
}

/// What `tools/gpu-pack` asks before anything else.
#[test]
fn a_gpu_is_usable() {
    let Some((_guard, Device::Accelerator(accelerator))) = device("a_gpu_is_usable") else { return };
    let (free, total) = accelerator.memory().unwrap();
    println!("GPU: {}, {} of {} MiB free", accelerator.name(), free >> 20, total >> 20);
}

#[test]
fn small_cases_in_f32() {
    every_case("small_cases_in_f32", false, DType::F32);
}

#[test]
fn small_cases_in_bf16() {
    every_case("small_cases_in_bf16", false, DType::BF16);
}

#[test]
fn large_cases_in_f32() {
    every_case("large_cases_in_f32", true, DType::F32);
}

#[test]
fn large_cases_in_bf16() {
    every_case("large_cases_in_bf16", true, DType::BF16);
}

const BF16: &str = "training.precision=bf16";

#[test]
fn small_training_replays_its_graph() {
    let Some((_guard, device)) = device("small_training_replays_its_graph") else { return };
    for settings in [&[][..], &[BF16], &[&TOKEN[..], &[BF16, "training.gradient_accumulation=3"]].concat()] {
        let config = config(settings);
        let [replayed, eager] = [true, false].map(|graphs| train(&config, &device, graphs, 6));
        assert_eq!(replayed, eager, "{settings:?}: replayed and eager steps differ");
    }
}

#[test]
fn small_streamed_training_has_the_bits_of_resident() {
    let Some((_guard, device)) = device("small_streamed_training_has_the_bits_of_resident") else { return };
    let config = config(&[]);
    let with = |residency| {
        let recipe = Recipe { residency: Some(residency), ..Recipe::new(&config, device.clone()) };
        let mut trainer = Trainer::new(&config.model, &dataset(), &recipe).unwrap();
        (0..7).for_each(|_| trainer.train_step().unwrap());
        State::of(&mut trainer)
    };
    assert_eq!(with(Residency::Streamed), with(Residency::Resident));
}

#[test]
fn small_training_agrees_with_the_cpu() {
    let Some((_guard, device)) = device("small_training_agrees_with_the_cpu") else { return };
    for settings in [&["training.epsilon=1e-3"][..], &[&TOKEN[..], &["training.epsilon=1e-3"]].concat()] {
        let config = config(settings);
        let (gpu, cpu) = (train(&config, &device, true, 5), train(&config, &Device::Cpu, true, 5));
        let apart = distance(&cpu.weights, &gpu.weights).max(distance(&cpu.average, &gpu.average));
        assert!(apart < 1e-6, "{settings:?}: apart by {apart:.1e}");
    }
}

#[test]
fn small_images_do_not_depend_on_their_batch() {
    let Some((_guard, device)) = device("small_images_do_not_depend_on_their_batch") else { return };
    let heun = config(&["sampling.sampler=heun", "sampling.num_steps=3", "sampling.guidance=2"]);
    let ddim: &[&str] = &["sampling.sampler=ddim", "sampling.num_steps=4", "sampling.eta=0.5", "sampling.guidance=1"];
    let ddim = config(&[&TOKEN[..], ddim].concat());
    for config in [heun, ddim] {
        for dtype in [DType::F32, DType::BF16] {
            let one = sample(&config, &device, dtype, 1, 9);
            for batch in [4, 9, 64] {
                assert_eq!(sample(&config, &device, dtype, batch, 9), one, "{dtype}, batches of {batch}");
            }
            let apart = distance(&sample(&config, &Device::Cpu, DType::F32, 9, 9), &one);
            let allowed = if dtype == DType::F32 { 1e-5 } else { 0.05 };
            assert!(apart < allowed, "{dtype}: {apart:.1e} from the cpu's");
        }
    }
}
