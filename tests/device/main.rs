//! Every kernel on a real GPU: each op's cases in f32, TF32 and bf16 against the CPU op, then whole training steps and samples.
//!
//! Without a usable GPU everything here is skipped, with a message; with `ENGINE_REQUIRE_GPU=1` a skip is a failure. Needs only
//! the binary, so that `tools/gpu-pack` can copy it to a machine without Rust. `ENGINE_OP=linear` selects one op,
//! `ENGINE_DEVICE=cuda:1` another GPU. The tests named `small_…` also run under `compute-sanitizer`.
//!
//! Without a GPU, `ENGINE_PTX_MACHINE=target/ptx-machine` runs them on `tools/ptx-machine`, which executes the same PTX on the CPU
//! and checks every access: each test is then a child process that loads it as its driver.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../common/tiny.rs"]
mod tiny;

mod command;
mod models;
mod profile;
mod ranks;
mod waits;
mod weights;

use std::io::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use engine::config::Precision;
use engine::device::DeviceChoice;
use engine::ops::case::Case;
use engine::ops::cases;
use engine::ops::tf32::OPS_IN_TF32;
use engine::tensor::Device;
use engine::train::{Recipe, Residency, Trainer};
use tiny::{State, TOKEN, config, dataset, distance, sample, train};

/// One test at a time uses the GPU, because its memory is not shared.
static GPU: Mutex<()> = Mutex::new(());

/// The GPU, or none with a message.
fn device(test: &str) -> Option<(MutexGuard<'static, ()>, Device)> {
    device_with(test, &[])
}

/// As [`device`]; on the PTX machine with these variables set.
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
    // Not with a macro, whose output a passing test hides.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no GPU was tested: {fault}");
    None
}

/// The requested device, newly opened; or why there is none.
fn open() -> Result<Device, String> {
    let choice = choice();
    let chosen = choice.parse::<DeviceChoice>().and_then(DeviceChoice::open).map_err(|error| error.to_string())?;
    chosen.accelerator.map(Device::Accelerator).ok_or_else(|| format!("ENGINE_DEVICE={choice} is not a GPU"))
}

/// The requested device.
fn choice() -> String {
    std::env::var("ENGINE_DEVICE").unwrap_or_else(|_| "cuda".into())
}

/// Sizes of cases, by what the PTX machine can run in CI's minutes.
#[derive(Clone, Copy, PartialEq)]
enum Size {
    Small,
    Large,
    /// Once on the PTX machine, without its checks of races and of unwritten memory: small cases of the op launch the same kernels
    /// in the same ways, as `tests/kernels.rs` shows, and run with them.
    Largest,
}

/// Operations and bytes of a forward pass above which a case is one of the largest.
const LARGEST: f64 = 5e7;

/// Operations of a forward pass in f32 that the PTX machine has no minutes for; in bf16 it runs these cases.
const TOO_LONG: f64 = 5e9;

/// The PTX machine without its checks of races and of unwritten memory, which take most of its time.
const UNCHECKED: [(&str, &str); 1] = [("PTX_MACHINE_CHECKS", "off")];

impl Size {
    fn of(case: &Case) -> Self {
        if !case.large {
            return Self::Small;
        }
        let cost = case.cost().unwrap();
        if cost.flops + cost.bytes > LARGEST { Self::Largest } else { Self::Large }
    }
}

/// Checks that a case agrees with the CPU op, and that a second run has the same bits; returns errors.
fn check(case: &Case, device: &Device, precision: Precision, twice: bool) -> Result<(), String> {
    let in_tf32 = precision == Precision::Tf32;
    let first = if in_tf32 { case.check_tf32(device) } else { case.check_device(device, precision.dtype()) };
    let first = first.map_err(|error| error.to_string())?;
    if !twice {
        return Ok(());
    }
    let second = if in_tf32 { case.run_tf32(device) } else { case.run_poisoned(device, precision.dtype()) };
    let second = second.map_err(|error| error.to_string())?;
    let outputs = first.outputs.iter().zip(&second.outputs).map(|(a, b)| (&a.0, &b.0));
    let gradients = first.gradients.iter().zip(&second.gradients).map(|(a, b)| (&a.1, &b.1));
    if outputs.chain(gradients).any(|(a, b)| a != b) { Err("other bits in a second run".into()) } else { Ok(()) }
}

fn every_case(test: &str, size: Size, precision: Precision) {
    let environment: &[_] = if size == Size::Largest { &UNCHECKED } else { &[] };
    let Some((_guard, device)) = device_with(test, environment) else { return };
    let only = std::env::var("ENGINE_OP").ok();
    let cases = cases();
    let of_op: Vec<&Case> = cases.iter().filter(|case| only.as_deref().is_none_or(|op| case.op == op)).collect();
    assert!(!of_op.is_empty(), "ENGINE_OP names no op: {only:?}");
    let (all, name) = (precision != Precision::Tf32, precision.name());
    let of_op = of_op.into_iter().filter(|case| all || OPS_IN_TF32.contains(&case.op));
    // Such cases are for a GPU. In TF32 the tiles are those of bf16, whose cases of this size run.
    let too_long = |case: &Case| {
        size == Size::Largest
            && machine::is_here()
            && match precision {
                Precision::Bf16 => false,
                Precision::Tf32 => true,
                _ => case.cost().unwrap().flops > TOO_LONG,
            }
    };
    let (mut faults, mut ran, mut left_out) = (Vec::new(), 0, 0);
    for case in of_op.filter(|case| Size::of(case) == size) {
        if too_long(case) {
            left_out += 1;
            continue;
        }
        ran += 1;
        let start = Instant::now();
        let twice = size != Size::Largest || !machine::is_here();
        if let Err(fault) = check(case, &device, precision, twice) {
            faults.push(format!("{} {name}: {fault}", case.id()));
        }
        if size == Size::Largest {
            println!("{} {name}: {:.1} s", case.id(), start.elapsed().as_secs_f64());
        }
    }
    assert!(faults.is_empty(), "{} of {ran} cases:\n{}", faults.len(), faults.join("\n"));
    println!("{ran} case{}", if ran == 1 { "" } else { "s" });
    if left_out > 0 {
        println!("NOT TESTED: {left_out} more, which take too long on the PTX machine");
    }
}

/// The first check of `tools/gpu-pack`.
#[test]
fn a_gpu_is_usable() {
    let Some((_guard, Device::Accelerator(accelerator))) = device("a_gpu_is_usable") else { return };
    let (free, total) = accelerator.memory().unwrap();
    println!("GPU: {}, {} of {} MiB free", accelerator.name(), free >> 20, total >> 20);
}

#[test]
fn small_cases_in_f32() {
    every_case("small_cases_in_f32", Size::Small, Precision::F32);
}

#[test]
fn small_cases_in_tf32() {
    every_case("small_cases_in_tf32", Size::Small, Precision::Tf32);
}

#[test]
fn small_cases_in_bf16() {
    every_case("small_cases_in_bf16", Size::Small, Precision::Bf16);
}

#[test]
fn large_cases_in_f32() {
    every_case("large_cases_in_f32", Size::Large, Precision::F32);
}

#[test]
fn large_cases_in_tf32() {
    every_case("large_cases_in_tf32", Size::Large, Precision::Tf32);
}

#[test]
fn large_cases_in_bf16() {
    every_case("large_cases_in_bf16", Size::Large, Precision::Bf16);
}

#[test]
fn largest_cases_in_f32() {
    every_case("largest_cases_in_f32", Size::Largest, Precision::F32);
}

#[test]
fn largest_cases_in_tf32() {
    every_case("largest_cases_in_tf32", Size::Largest, Precision::Tf32);
}

#[test]
fn largest_cases_in_bf16() {
    every_case("largest_cases_in_bf16", Size::Largest, Precision::Bf16);
}

const BF16: &str = "training.precision=bf16";

#[test]
fn small_training_replays_its_graph() {
    let Some((_guard, device)) = device("small_training_replays_its_graph") else { return };
    for settings in [
        &[][..],
        &["training.precision=tf32"],
        &[BF16],
        &[&TOKEN[..], &[BF16, "training.gradient_accumulation=3"]].concat(),
    ] {
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
        for (precision, allowed) in [(Precision::F32, 1e-5), (Precision::Tf32, 0.01), (Precision::Bf16, 0.05)] {
            let (one, name) = (sample(&config, &device, precision, 1, 9), precision.name());
            for batch in [4, 9, 64] {
                assert_eq!(sample(&config, &device, precision, batch, 9), one, "{name}, batches of {batch}");
            }
            let apart = distance(&sample(&config, &Device::Cpu, Precision::F32, 9, 9), &one);
            assert!(apart < allowed, "{name}: {apart:.1e} from the cpu's");
        }
    }
}
